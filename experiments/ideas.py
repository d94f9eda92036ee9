"""What might make HIS better, beyond its paper's text: the HIS script of a scenario with one thing changed.

    python experiments/ideas.py --idea capped --scenario simple_spread --seed 1 --total-timesteps 500000

For the readings study (suites `ideas-screen` and `readings`). None of it is HIS: what proves itself may become a preset
of the scripts, the rest stays here. Everything else, flags, run folder and exact continuation included, is the
script's.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python experiments/ideas.py` finds the scripts

from common import cli
from experiments.suites import TASKS

Idea = Literal[
    "centred", "standardised", "alpha", "standardised-alpha", "positive", "capped", "agreeing", "annealed", "relative",
    "relative-positive", "recent", "half", "half-history", "half-buffer", "terminal",
]  # fmt: skip
IDEAS: tuple[str, ...] = get_args(Idea)


@dataclass
class Context:
    """What an idea sees of the update that is going on."""

    args: Any = None
    learner: Any = None
    buffer: Any = None
    actors: Sequence[torch.nn.Module] = ()
    alpha: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))


def scaled(idea: str, phi: Tensor, alpha: Tensor) -> Tensor:
    """The credit (B,) of one agent on another scale; alpha () is the natural scale of a log-probability term."""
    if idea == "centred":
        return phi - phi.mean()
    if idea.startswith("standardised"):
        phi = (phi - phi.mean()) / (phi.std() + 1e-8)
    if idea.endswith("positive"):
        return phi.clamp(min=0)
    return phi * alpha if idea.endswith("alpha") else phi


def pulled(idea: str, history: Tensor, main: Tensor, parameters: Sequence[Tensor], strength: float) -> Tensor:
    """A loss with the value of `history` and another gradient.

    "capped": no longer than `strength` times that of `main`. "agreeing": without its component against that of `main`.
    """
    flat = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in (history, main)
    ]
    gradient, reference = flat
    if idea == "capped":
        gradient = gradient * (strength * reference.norm() / gradient.norm().clamp(min=1e-12)).clamp(max=1)
    else:
        along = gradient.dot(reference).clamp(max=0) / reference.dot(reference).clamp(min=1e-12)
        gradient = gradient - along * reference
    linear = torch.cat([p.flatten() for p in parameters]).dot(gradient.detach())
    return history.detach() + linear - linear.detach()


def credit_class(script: ModuleType, context: Context) -> type:
    """`HistoricalCredit` of the script with the idea of its arguments."""

    class Credit(script.HistoricalCredit):
        batch: Any
        args: Any

        def __init__(self, critic: Any, batch: Any, widths: list[int], generator: torch.Generator, args: Any):
            self.fill: Tensor | float = 0.0
            if args.idea == "recent":
                batch = recent(context.buffer, batch, args.idea_strength, generator)
            if args.idea.startswith("relative"):  # absent agents act as their policies would, not zero
                with torch.no_grad():
                    policies = [actor(obs) for actor, obs in zip(context.actors, batch.obs)]
                    samples = [script.sample_action(*policy, generator) for policy in policies]
                    self.fill = torch.cat([sample.action for sample in samples], dim=1)
            super().__init__(critic, batch, widths, generator, args)

        def absent(self, members: Tensor, actions: Tensor) -> Tensor:
            """Actions (B, sum A_i) with those of the agents outside `members` replaced."""
            return torch.where(members[:, self.agent_of_slot], actions, self.fill)

        def diagnostics(self) -> dict[str, Tensor]:
            """The script's, with the empty coalition that this idea has."""
            found = super().diagnostics()
            if "credit/efficiency_gap" in found and self.args.idea.startswith("relative"):
                q, nobody = (script.min_q(self.critic, self.batch.state, a) for a in (self.batch.actions, self.fill))
                found["credit/efficiency_gap"] = (self.phi.sum(0) - (q - nobody)).abs().mean()
            return found

        def of(self, actions: Tensor, agent: int | None = None) -> Tensor:
            if not self.args.idea.startswith("relative"):
                return super().of(actions, agent)

            def value(members: Tensor) -> Tensor:
                return script.min_q(self.critic, self.batch.state, self.absent(members, actions))

            return script.shapley_values(value, self.ranks, self.args.marginal)

        def loss(self, agent: int, policy: Any, sample: Any, joint: Tensor) -> tuple[Tensor, dict]:
            idea, strength = self.args.idea, self.args.idea_strength
            if idea.startswith("half"):  # half of the first term's Q is that of a coalition, one a row
                self.fill = self.batch.actions if idea == "half-history" else 0.0
                members = self.ranks[0] <= self.ranks[0][:, agent : agent + 1]
                acting = joint
                if idea == "half-buffer":  # the other members, too, as in the buffer
                    acting = torch.where(self.agent_of_slot == agent, joint, self.batch.actions)
                q = script.min_q(self.critic, self.batch.state, joint)
                of_coalition = script.min_q(self.critic, self.batch.state, self.absent(members, acting))
                return strength * 0.5 * (q - of_coalition).mean(), {}
            if idea == "recent":
                policy = context.actors[agent](self.batch.obs[agent])
            phi = scaled(idea, self.phi[agent], context.alpha[agent])
            history, info = script.historical_loss(*policy, self.pre_tanh[agent], phi, self.args)
            if idea in ("capped", "agreeing"):
                q = script.min_q(self.critic, self.batch.state, joint)
                main = -(q - context.alpha[agent] * sample.log_prob).mean()
                history = pulled(idea, history, main, list(context.actors[agent].parameters()), strength)
            if idea == "annealed":  # to nothing over the first `strength` of the run
                updates = context.learner.update_step * self.args.num_envs / self.args.update_per_train
                steps = self.args.warmup_steps + updates
                history = history * max(0.0, 1.0 - steps / (strength * self.args.total_timesteps))
            return history, info

    return Credit


def recent(buffer: Any, batch: Any, share: float, generator: torch.Generator) -> Any:
    """As many rows as `batch`, drawn from the newest `share` of the buffer: obs, state and actions."""
    window = max(1, round(share * buffer.size))
    shape, device = (len(batch.state),), batch.state.device
    age = torch.randint(window, shape, generator=generator, device=device)
    env = torch.randint(buffer.num_envs, shape, generator=generator, device=device)
    rows = (buffer.position - 1 - age) % buffer.size * buffer.num_envs + env
    part = {key: buffer.data[key].index_select(0, rows) for key in ("obs", "state", "actions")}
    obs = list(part["obs"].split(buffer.obs_dims, 1))
    return batch._replace(obs=obs, state=part["state"], actions=part["actions"])


def buffer_class(script: ModuleType, context: Context) -> type:
    """`ReplayBuffer` of the script, for "terminal" with time-outs as ends: nothing is expected behind them."""

    class Buffer(script.ReplayBuffer):
        def add(self, *step: Any) -> None:
            *rest, terminated, truncated = step
            if context.args.idea == "terminal":
                terminated = terminated | truncated
            super().add(*rest, terminated, truncated)

    return Buffer


def with_ideas(script: ModuleType) -> ModuleType:
    """The module of a HIS script, changed in place: `--idea`, `--idea-strength` and what they do."""
    context = Context()
    update, update_actors, check_args = script.Learner.update, script.update_actors, script.check_args

    @dataclass
    class Args(script.Args):
        idea: Idea = "centred"
        """what is changed (docs/experiments.md)"""
        idea_strength: float = 1.0
        """capped: share of the main gradient; annealed, recent: share of the run, of the buffer; half: factor"""

    def check(args: Any) -> None:
        check_args(args)
        context.args = args
        if args.idea == "annealed" and args.resume:  # the rate at which it fades depends on the length
            saved = json.loads((Path(args.resume) / "config.json").read_text())["args"]["total_timesteps"]
            if args.total_timesteps != saved:
                raise cli.UsageError(f"--total-timesteps {args.total_timesteps}: --idea annealed keeps its {saved}")
        if args.idea == "terminal":  # a change of the critic's target, with any credit
            return
        for field, needed in (("credit", "his"), ("credit_actions", "history"), ("shapley", "permutation")):
            if (value := getattr(args, field)) != needed and (field != "shapley" or args.idea.startswith("relative")):
                raise cli.UsageError(f"--{field.replace('_', '-')} {value}: --idea {args.idea} needs {needed}")

    def noted_update(learner: Any, buffer: Any, *rest: Any, **named: Any) -> Any:
        context.learner, context.buffer = learner, buffer
        return update(learner, buffer, *rest, **named)

    def noted_update_actors(actors: Any, optimizers: Any, critic: Any, batch: Any, alpha: Tensor, *rest: Any) -> Any:
        context.actors, context.alpha = actors, alpha
        return update_actors(actors, optimizers, critic, batch, alpha, *rest)

    changed: Any = script
    changed.SCRIPT, changed.Args, changed.check_args = "ideas", Args, check
    changed.LIMITS = script.LIMITS | {"idea_strength": (1e-6, None)}
    changed.Learner.update, changed.update_actors = noted_update, noted_update_actors
    changed.HistoricalCredit = credit_class(script, context)
    changed.ReplayBuffer = buffer_class(script, context)
    return script


def scenario_of(argv: Sequence[str]) -> str:
    """The scenario that a command line names, or the run that it continues; "" where there is none."""
    words = [part for word in argv for part in word.split("=", 1)]
    given = dict(zip(words, [*words[1:], ""]))
    for flag in ("--resume", "--evaluate"):
        if flag in given:
            try:
                found = json.loads((Path(given[flag]) / "config.json").read_text())["args"]["scenario"]
            except (OSError, ValueError, KeyError, TypeError):
                found = None
            return str(found) if str(found) in TASKS else next(iter(TASKS))  # any script says what is wrong with it
    return given.get("--scenario", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script of the scenario with the idea; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    scenario = scenario_of(argv)
    if scenario not in TASKS and not {"--help", "-h"} & {*argv}:
        cli.fail("ideas.py", f"--scenario {scenario or '(not given)'}: must be one of {', '.join(TASKS)}")
    benchmark = TASKS[scenario].benchmark if scenario in TASKS else "mpe"
    flags = {word.partition("=")[0] for word in argv}
    if not flags & {"--idea", "--resume", "--evaluate", "--help", "-h"}:
        cli.fail("ideas.py", f"--idea (not given): must be one of {', '.join(IDEAS)}")
    script = with_ideas(importlib.import_module(f"his_{benchmark}"))
    if not flags & {"--run-name", "--resume", "--evaluate"} and "--idea" in argv[:-1]:
        argv += ["--run-name", argv[argv.index("--idea") + 1]]
    sys.argv = ["experiments/ideas.py", *argv]  # what config.json then has as the run's command
    return script.main()


if __name__ == "__main__":
    sys.exit(main())
