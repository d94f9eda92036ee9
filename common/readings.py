"""How HIS reads what its paper leaves unclear: one field a spot, numbered as in docs/paper_notes.md."""

from dataclasses import dataclass
from typing import Any, Literal

from common import cli, shapley

LIMITS: dict[str, tuple[float | None, float | None]] = {
    "num_coalitions": (1, None),
    "beta": (1e-12, None),
    "xi": (1e-12, None),
    "credit_coef": (0, None),
    "boxcox_low": (-50, 50),
    "boxcox_high": (-50, 50),
}


@dataclass
class Readings:
    """The part of a HIS script's arguments that chooses between readings; the defaults are the most defensible ones."""

    LISTED_LAST = True

    credit_coef: float = 1.0
    """c, weight of the historical term in Eq. (10) (READING 12)"""
    credit_actions: Literal["history", "policy"] = "history"
    """history: actions of the replay buffer; policy: those of the sequential update (-ACTION, Eq. (33); READING 10)"""
    shapley: Literal["permutation", "antithetic", "exact"] = "permutation"
    """coalition sampler: M permutations, M/2 with their reverses, or all 2^N coalitions (READING 8)"""
    marginal: Literal["difference", "value"] = "difference"
    """marginal contribution: Q(C+i) - Q(C), Eq. (7), or Q(C+i) alone (READING 3)"""
    floor: Literal["max_minus_beta", "minus_beta_times_max", "none"] = "max_minus_beta"
    """the lower threshold of the log density, Eq. (30) (READING 1)"""
    below_floor: Literal["elu", "literal", "hard"] = "elu"
    """what becomes of log densities below the threshold, Eq. (31) (READING 2)"""
    boxcox_low: float = 0.0
    """lower bound of the fitted lambda (READING 6)"""
    boxcox_high: float = 2.0
    """upper bound of the fitted lambda (READING 6)"""
    boxcox_scale: Literal["none", "geometric"] = "none"
    """geometric: divide by the derivative at the geometric mean (Box and Cox 1964; READING 6)"""


def check(args: Any, num_agents: int) -> None:
    """Raise `cli.UsageError` for arguments of the credit that are out of range or do not fit together."""
    cli.check_limits(args, LIMITS)
    if args.boxcox_low >= args.boxcox_high:
        raise cli.UsageError(f"--boxcox-low {args.boxcox_low}: must be below --boxcox-high {args.boxcox_high}")
    if args.shapley == "antithetic" and args.num_coalitions % 2:
        raise cli.UsageError(f"--num-coalitions {args.num_coalitions}: must be even with --shapley antithetic")
    if args.shapley == "exact" and num_agents > shapley.MAX_EXACT_AGENTS:
        limit = f"N is {num_agents}, at most {shapley.MAX_EXACT_AGENTS}"
        raise cli.UsageError(f"--shapley exact: takes 2^N critic calls; {limit}")
