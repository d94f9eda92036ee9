"""HARL's tuned values for HASAC (https://github.com/PKU-MARL/HARL, tuned_configs, commit d539bad), as `--preset hasac`.

HIS took them over (Tables 1 to 6 of its paper) but for a few, and only those stand here: 20 environments and an actor
update at every critic update everywhere; on Multi-Agent MuJoCo's Ant the two step sizes the other way round; on three
tasks of Bi-DexHands another discount factor.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

ALL: dict[str, Any] = dict(num_envs=20, policy_frequency=1)
TASKS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("Ant-2x4", "Ant-4x2", "Ant-8x1"), dict(actor_lr=1e-3, critic_lr=3e-4)),
    **dict.fromkeys(
        ("ShadowHandLiftUnderarm", "ShadowHandCatchOver2Underarm", "ShadowHandDoorOpenOutward"), dict(gamma=0.99)
    ),
}


@dataclass
class Preset:
    """The part of a HASAC script's arguments that says where its values come from."""

    preset: Literal["hasac", "his"] = "hasac"
    """hasac: HARL's tuned values; his: those of the HIS scripts, the fair control (equal to `his_* --credit none`)"""

    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "his": {},
        "hasac": {"": ALL, **{task: ALL | values for task, values in TASKS.items()}},
    }
    """preset -> scenario ("" for the rest) -> what it changes in the script's own values"""
