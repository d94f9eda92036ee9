"""Every figure and table of the paper as data: which tasks, which variants of which script, seeds, steps.

`python -m experiments.run SUITE` runs one of them; docs/experiments.md has them as a table. Nothing here imports a
script: a run is a command line. The paper gives no step counts, and neither text version that we have of it names the
tasks of Figures 3, 6 and 7, the panels of Figure 2 or the values swept; the titles say where a choice is ours.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]  # field of a script's `Args` -> value


# ---- tasks -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Task:
    """One scenario; `steps` is its full budget, from HARL's HASAC configurations (the paper is silent)."""

    benchmark: str
    agents: int
    steps: int = 10_000_000


MPE = {"simple_spread": 3, "simple_reference": 2, "simple_speaker_listener": 2}
MAMUJOCO = "Ant-2x4 Ant-4x2 Ant-8x1 Walker2d-2x3 Walker2d-6x1 HalfCheetah-2x3 HalfCheetah-3x2 HalfCheetah-6x1".split()
MAMUJOCO += ["ManyAgentSwimmer-10x2"]
BIDEXHANDS = [
    f"ShadowHand{name}"
    for name in (
        "CatchAbreast TwoCatchUnderarm CatchOver2Underarm DoorCloseInward DoorOpenInward DoorOpenOutward "
        "LiftUnderarm Over Pen"
    ).split()
]
TASKS: dict[str, Task] = {
    **{name: Task("mpe", agents) for name, agents in MPE.items()},
    **{name: Task("mamujoco", int(name.split("-")[1].split("x")[0])) for name in MAMUJOCO},
    **{name: Task("bidexhands", 2) for name in BIDEXHANDS},
    "ShadowHandOver": Task("bidexhands", 2, 50_000_000),
    "ShadowHandCatchOver2Underarm": Task("bidexhands", 2, 20_000_000),
}


def task_label(task: str, sim: str = "mujoco") -> str:
    """What a task is called in plots and tables: BiDexMJ/<task> for our port of Bi-DexHands, which is not the original.

    `sim`: the back end of the run; what ran in Isaac Gym is BiDexHands/<task> (docs/bidexhands.md).
    """
    if task not in BIDEXHANDS:
        return task
    return f"{'BiDexHands' if sim == 'isaacgym' else 'BiDexMJ'}/{task}"


# ---- variants --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Variant:
    """A script and what it gets beside the paper's values; {benchmark} and "1/n" are filled in for each task."""

    settings: Settings = field(default_factory=dict)
    script: str = "his_{benchmark}.py"
    off_policy: bool = True
    num_envs: int | None = None
    """parallel environments by default, where they are not the paper's"""


def _on_policy(name: str) -> Variant:
    return Variant({"benchmark": "{benchmark}"}, f"baselines/{name}.py", off_policy=False)


IDEAS = (
    "centred standardised alpha standardised-alpha positive capped agreeing annealed relative relative-positive "
    "half half-history half-buffer terminal"
).split()
VARIANTS: dict[str, Variant] = {
    "his": Variant(),
    # HASAC with HIS's values: not in the paper, and the only comparison that isolates what HIS adds.
    "none": Variant({"credit": "none"}),
    "hasac": Variant(script="baselines/hasac_{benchmark}.py", num_envs=20),
    **{name: _on_policy(name) for name in ("happo", "hatrpo", "mappo", "ppo")},
    "facmac": Variant({"benchmark": "{benchmark}"}, "baselines/facmac.py", num_envs=1),
    "sqddpg": Variant({"benchmark": "{benchmark}"}, "baselines/sqddpg.py", num_envs=20),
    # Ablations: Figures 3 and 8.
    "share": Variant({"credit": "share"}),
    "local": Variant({"credit": "local"}),
    "no-bc": Variant({"box_cox": False}),
    "action": Variant({"credit_actions": "policy"}),
    # Sweeps: Figures 6 and 7.
    **{f"M{m}": Variant({"num_coalitions": m}) for m in (1, 2, 3, 5)},
    **{f"beta{beta:g}": Variant({"beta": beta}) for beta in (2.0, 5.0, 10.0, 20.0, 50.0)},
    # The environments as HARL and the paper have them.
    "his-harl-rules": Variant({"rules": "harl"}),
    # Longer than the rest of `readings`.
    "his-long": Variant(),
    "none-long": Variant({"credit": "none"}),
    # Readings of the paper's unclear spots that its text allows (docs/paper_notes.md).
    "marginal-value": Variant({"marginal": "value"}),
    "floor-product": Variant({"floor": "minus_beta_times_max"}),
    "floor-none": Variant({"floor": "none"}),
    "below-literal": Variant({"below_floor": "literal"}),
    "below-hard": Variant({"below_floor": "hard"}),
    "bounds-0-1": Variant({"boxcox_high": 1.0}),
    "bounds-wide": Variant({"boxcox_low": -2.0, "boxcox_high": 5.0}),
    "geometric": Variant({"boxcox_scale": "geometric"}),
    "frequency-1": Variant({"policy_frequency": 1}),
    "coef-half": Variant({"credit_coef": 0.5}),
    "coef-1-n": Variant({"credit_coef": "1/n"}),
    # Beyond the text (experiments/ideas.py). Teammates masked by a coalition in all of the first term's Q: "local".
    **{f"idea-{idea}": Variant({"idea": idea}, "experiments/ideas.py") for idea in IDEAS},
    "idea-capped-tenth": Variant({"idea": "capped", "idea_strength": 0.1}, "experiments/ideas.py"),
    "idea-annealed-early": Variant({"idea": "annealed", "idea_strength": 0.3}, "experiments/ideas.py"),
    "idea-relative-positive-tenth": Variant({"idea": "relative-positive", "credit_coef": 0.1}, "experiments/ideas.py"),
    "idea-recent": Variant({"idea": "recent", "idea_strength": 0.1}, "experiments/ideas.py"),
    # At strength 2 nothing is left of the whole team's Q: as "local", the absent (or the members) as in the buffer.
    "idea-masked-history": Variant({"idea": "half-history", "idea_strength": 2.0}, "experiments/ideas.py"),
    "idea-masked-buffer": Variant({"idea": "half-buffer", "idea_strength": 2.0}, "experiments/ideas.py"),
    "none-terminal": Variant({"idea": "terminal", "credit": "none"}, "experiments/ideas.py"),
    "none-frequency-1": Variant({"credit": "none", "policy_frequency": 1}),
    "none-alpha-0.05": Variant({"credit": "none", "alpha": 0.05}),
}
# HASAC with the same change, where that changes HASAC, too.
CONTROLS = {"idea-terminal": "none-terminal", "frequency-1": "none-frequency-1"}
_IDEAS = [name for name in VARIANTS if name.startswith("idea-")] + ["local", "none-terminal"]
READINGS = (
    "marginal-value floor-product floor-none below-literal below-hard no-bc bounds-0-1 bounds-wide geometric "
    "frequency-1 coef-half coef-1-n"
).split()


def script_of(variant: str, task: str) -> str:
    """The script of a variant, as a path from the root of the project."""
    return VARIANTS[variant].script.format(benchmark=TASKS[task].benchmark)


def settings_of(variant: str, task: str) -> dict[str, Any]:
    """What a variant sets beside the paper's values of the task."""
    filled = {"1/n": 1 / TASKS[task].agents, "{benchmark}": TASKS[task].benchmark}
    return {name: filled.get(value, value) for name, value in VARIANTS[variant].settings.items()}


# ---- suites ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Group:
    """All tasks x variants x seeds; `steps` None is each task's full budget, `settings` what all its runs get."""

    tasks: Sequence[str]
    variants: Sequence[str]
    seeds: Sequence[int] = (1, 2, 3, 4, 5)
    steps: int | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """`smoke`: tiny runs that only show that everything works. `check`: config.json is held against Tables 1-6."""

    title: str
    groups: Sequence[Group]
    smoke: bool = False
    check: bool = False


_ABLATION_TASKS = ["Ant-2x4", "Ant-8x1", "ShadowHandDoorOpenOutward"]
_SWEEP_TASKS = ["simple_spread", "HalfCheetah-6x1", "ShadowHandDoorOpenOutward"]
_SHARED, _ABLATED = ["his", "none", "local"], ["share", "no-bc", "action"]
_ABLATIONS = [*_SHARED, *_ABLATED]
_FACMAC_TASKS = "Ant-2x4 Ant-4x2 HalfCheetah-2x3 HalfCheetah-6x1 Walker2d-2x3 ManyAgentSwimmer-10x2".split()
_SCREENED, _HELD_OUT = ["simple_spread", "HalfCheetah-2x3"], ["simple_reference", "HalfCheetah-6x1", "Ant-4x2"]
# What the screens left, with the paper's default and the control: results/README.md says why these.
SURVIVORS = "his none local idea-half-history".split()
# The second round and the ablations: seeds that no screen has seen, the same in both, which so share HIS, HASAC, LOCAL.
_FRESH = (11, 12, 13)
# A seventh of an update's time. As many updates as with the paper's values, so that the temperature falls as far.
_SMALL: Settings = dict(batch_size=256, hidden_sizes=(128, 128))
_M, _BETA = [f"M{m}" for m in (1, 2, 3, 5)], [f"beta{beta}" for beta in (2, 5, 10, 20, 50)]
_OTHER_BETA = [name for name in _BETA if name != "beta10"]
_HARL_BASELINES = "hasac hatrpo happo mappo".split()

_FULL: dict[str, Suite] = {
    "fig2": Suite(
        "Figure 2, the MPE panels: curves of all algorithms (its other panels repeat tasks of fig4 and fig5)",
        [Group(list(MPE), ["his", "none", *_HARL_BASELINES])],
    ),
    "fig3": Suite(
        "Figure 3: HIS against SHARE and LOCAL (tasks unreadable; those of Figure 8)",
        [Group(_ABLATION_TASKS, ["his", "share", "local"])],
    ),
    "fig4": Suite("Figure 4: Bi-DexHands, nine tasks", [Group(BIDEXHANDS, ["his", "none", *_HARL_BASELINES, "ppo"])]),
    "fig5": Suite(
        "Figure 5: MAMuJoCo, nine tasks; FACMAC on the six that it has",
        [Group(MAMUJOCO, ["his", "none", *_HARL_BASELINES]), Group(_FACMAC_TASKS, ["facmac"])],
    ),
    "fig6": Suite("Figure 6: sweep of M (tasks and values are our choice)", [Group(_SWEEP_TASKS, _M)]),
    "fig7": Suite("Figure 7: sweep of beta (tasks and values are our choice)", [Group(_SWEEP_TASKS, _BETA)]),
    "fig8": Suite("Figure 8: HIS against -BC and -ACTION", [Group(_ABLATION_TASKS, ["his", "no-bc", "action"])]),
    "tables": Suite(
        "Tables 1-6: the values that each scenario picks are the paper's",
        [Group(list(TASKS), ["his"], (1,), 1)],
        check=True,
    ),
    "mpe": Suite(
        "HIS against HASAC with HIS's values on the particle environments, 500,000 steps",
        [
            Group(list(MPE), ["his", "none"], steps=500_000),
            Group(list(MPE), ["his-harl-rules"], (1,), 500_000),
        ],
    ),
    "hands": Suite(
        "HIS against HASAC with HIS's values on three tasks for two hands, a million steps, one seed",
        [
            Group(
                ["ShadowHandOver", "ShadowHandCatchAbreast", "ShadowHandDoorOpenOutward"],
                ["his", "none"],
                (1,),
                1_000_000,
            )
        ],
    ),
    "baselines": Suite(
        "HIS beside every baseline at a scale that two cores can do; on-policy algorithms four times as long",
        [
            Group(["simple_spread"], ["his", "none", *_HARL_BASELINES, "ppo", "facmac", "sqddpg"], (1, 2, 3), 500_000),
            Group(["HalfCheetah-2x3"], ["his", "none", "hasac", "facmac"], (1, 2, 3), 500_000),
            Group(["HalfCheetah-2x3"], ["hatrpo", "happo", "mappo"], (1, 2, 3), 2_000_000),
            Group(["ShadowHandOver"], ["his", "none", "hasac", "ppo"], (1,), 1_000_000),
        ],
    ),
    "ablations": Suite(
        "The ablations and sweeps of Figures 3, 6, 7 and 8 at a scale that two cores can do, small networks",
        [
            # M of the paper (3 and 1) and beta 10 are "his". HalfCheetah-6x1 takes four times as long: there those that
            # `readings` has not run make half the steps, the same ones as in a run of 500,000, and are compared there.
            Group(["simple_spread"], [*_ABLATIONS, "M1", "M2", "M5", *_OTHER_BETA], _FRESH, 500_000, _SMALL),
            Group(["HalfCheetah-6x1"], _SHARED, _FRESH, 500_000, _SMALL),
            Group(["HalfCheetah-6x1"], [*_ABLATED, "M2", "M3", "M5", *_OTHER_BETA], _FRESH, 250_000, _SMALL),
        ],
    ),
    "readings-screen": Suite(
        "Readings of the unclear spots, first round: every reading inside the text, one seed, small networks",
        [Group(_SCREENED, ["his", "none", *READINGS, "none-frequency-1"], (1,), 500_000, _SMALL)],
    ),
    "ideas-screen": Suite(
        "Beyond the paper's text, first round: scale, gradient, baseline and age of the credit, as readings-screen",
        [Group(_SCREENED, ["his", "none", *_IDEAS], (1,), 500_000, _SMALL)],
    ),
    "readings": Suite(
        "Readings study, second round: the survivors, fresh seeds, three more tasks, two longer runs, small networks",
        [
            Group([*_SCREENED, *_HELD_OUT], SURVIVORS, _FRESH, 500_000, _SMALL),
            Group(["HalfCheetah-2x3"], ["his-long", "none-long"], (11,), 2_000_000, _SMALL),
        ],
    ),
    "ant": Suite(
        "Where HIS is ahead of HASAC, Ant-4x2: what does it, and is it so on Walker2d-2x3, too? Small networks",
        [
            Group(["Ant-4x2"], ["his", "none", "none-alpha-0.05", "share", "action"], _FRESH, 500_000, _SMALL),
            Group(["Walker2d-2x3"], ["his", "none"], _FRESH, 500_000, _SMALL),
        ],
    ),
}


def _smoke(suite: Suite) -> Suite:
    """Every task and variant of a suite once, with tiny settings."""
    groups = [dataclasses.replace(group, seeds=group.seeds[:1], steps=SMOKE_STEPS) for group in suite.groups]
    return Suite(f"tiny runs: {suite.title}", groups, smoke=True)


SMOKE_STEPS = 400
SMOKE: Settings = dict(num_envs=4, eval_every=200, eval_episodes=2, eval_envs=2, log_every=100, save_every=200)
SMOKE_OFF_POLICY: Settings = dict(
    warmup_steps=100, train_interval=5, batch_size=32, hidden_sizes=(32, 32), buffer_size=1000
)
SMOKE_ON_POLICY: Settings = dict(rollout_steps=20, hidden_sizes=(32, 32))
SUITES: dict[str, Suite] = _FULL | {f"smoke-{name}": _smoke(s) for name, s in _FULL.items() if not s.check}


# ---- runs ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """One process: `script --scenario --seed --run-name <variant>` and `settings`, which include total_timesteps."""

    script: str
    scenario: str
    variant: str
    seed: int
    settings: Settings

    @property
    def total_steps(self) -> int:
        return self.settings["total_timesteps"]

    @property
    def name(self) -> str:
        """Unique in a suite; words of a file name."""
        return f"{self.scenario}_{self.variant}_seed{self.seed}"

    def command(self, runs_dir: str, extra: Iterable[str] = ()) -> list[str]:
        """The words after `python` that start this run."""
        own = {"scenario": self.scenario, "seed": self.seed, **self.settings}
        return [self.script, *flags(own), "--runs-dir", runs_dir, "--run-name", self.variant, *extra]


def flags(settings: Settings) -> list[str]:
    """The command line that sets these fields of a script's `Args`."""
    words: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, (tuple, list)) else [str(value)])]
    return words


def schedule(steps: int, off_policy: bool = True) -> dict[str, Any]:
    """What goes with a number of steps.

    100 evaluations a run, but not oftener than every 10,000 steps; 1000 log lines, but not oftener than every 5000; 10
    checkpoints (of the hands they hold up to 9 GB), at most 250,000 steps apart; a short run has 10 evaluations and 10
    log lines. The warm-up stays the paper's 10,000 steps unless that is more than a tenth of the run. Nothing else
    depends on the number of steps.
    """
    tenth = max(steps // 10, 1)
    settings: dict[str, Any] = {
        "total_timesteps": steps,
        "eval_every": max(min(10_000, tenth), steps // 100),
        "log_every": max(min(5_000, tenth), steps // 1000),
        "save_every": min(tenth, 250_000),
    }
    if off_policy and tenth < 10_000:
        settings["warmup_steps"] = tenth
    return settings


def expand(
    suite: Suite,
    seeds: int | None = None,
    scale: float = 1.0,
    tasks: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
) -> list[Run]:
    """The runs of a suite: all of the first seed, then all of the second, so that an unfinished suite is balanced.

    `seeds` N takes the first N of a group's seeds, or goes on counting from its last. `scale` multiplies the steps
    (rounded to thousands; at least 1000) and `schedule` does the rest. `tasks`, `variants` keep only these.
    """
    runs: list[tuple[int, Run]] = []
    for group in suite.groups:
        count = len(group.seeds) if seeds is None else seeds
        wanted = [*group.seeds, *range(group.seeds[-1] + 1, group.seeds[-1] + 1 + count)][:count]
        for position, seed in enumerate(wanted):
            for task in group.tasks:
                if tasks is not None and task not in tasks:
                    continue
                for variant in group.variants:
                    if variants is None or variant in variants:
                        own = {**group.settings, **settings_of(variant, task)}
                        settings = own | _lengths(suite, group, task, variant, scale)
                        runs.append((position, Run(script_of(variant, task), task, variant, seed, settings)))
    return [run for _, run in sorted(runs, key=lambda item: item[0])]


def _lengths(suite: Suite, group: Group, task: str, variant: str, scale: float) -> dict[str, Any]:
    """Everything that belongs to the number of steps."""
    off_policy = VARIANTS[variant].off_policy
    if suite.check:  # only what config.json then says counts
        return {"total_timesteps": 1, "eval_episodes": 1, "eval_envs": 1}
    if suite.smoke:
        return {"total_timesteps": SMOKE_STEPS, **SMOKE, **(SMOKE_OFF_POLICY if off_policy else SMOKE_ON_POLICY)}
    steps = TASKS[task].steps if group.steps is None else group.steps
    return schedule(max(round(steps * scale / 1000), 1) * 1000, off_policy)


# ---- the paper's tables ----------------------------------------------------------------------------------------------
# Rows that no flag sets (activations, proper time limits, target entropy, learning rate decay, ...) are not here.
# Tables 1 and 6 have lost their exponents; the warm-up and the buffer are HARL's.
TABLE_1: Settings = dict(
    warmup_steps=10_000,
    buffer_size=1_000_000,
    tau=0.005,
    hidden_sizes=(256, 256),
    update_per_train=1,
    train_interval=50,
    policy_frequency=2,
)
TABLE_2: Settings = dict(
    num_envs=20, gamma=0.95, batch_size=1000, actor_lr=5e-4, critic_lr=5e-4, n_step=20, num_coalitions=2, beta=10.0
)
_TUNED: Settings = dict(auto_alpha=True, alpha_lr=3e-4)
TABLE_3: Mapping[str, Settings] = dict.fromkeys(BIDEXHANDS, _TUNED) | {
    "ShadowHandTwoCatchUnderarm": dict(auto_alpha=False, alpha=5e-5)
}
TABLE_4: Settings = dict(
    num_envs=20,
    batch_size=1000,
    critic_lr=5e-4,
    gamma=0.99,
    actor_lr=5e-4,
    n_step=20,
    auto_alpha=True,
    alpha_lr=3e-4,
    num_coalitions=3,
    beta=10.0,
)
_ANT: Settings = dict(actor_lr=3e-4, auto_alpha=False, alpha=0.2, n_step=5)
_WALKER: Settings = dict(actor_lr=5e-4, auto_alpha=False, alpha=0.2, batch_size=1000, n_step=20)
_REST: Settings = dict(actor_lr=1e-3, auto_alpha=True, alpha_lr=3e-4, batch_size=1000, n_step=10)
TABLE_5: Mapping[str, Settings] = dict.fromkeys(MAMUJOCO, _REST) | {
    "Ant-2x4": dict(_ANT, batch_size=2200),
    "Ant-4x2": dict(_ANT, batch_size=1000),
    "Ant-8x1": dict(_ANT, batch_size=2200),
    "Walker2d-2x3": _WALKER,
    "Walker2d-6x1": _WALKER,
}
TABLE_6: Settings = dict(num_envs=10, train_interval=50, critic_lr=1e-3, gamma=0.99, num_coalitions=1, beta=10.0)


def paper_values(scenario: str) -> dict[str, Any]:
    """What Tables 1-6 say about a scenario: field of `Args` -> value."""
    benchmark = TASKS[scenario].benchmark
    if benchmark == "mpe":
        return {**TABLE_1, **TABLE_4}
    own = (TABLE_2, TABLE_3[scenario]) if benchmark == "bidexhands" else (TABLE_5[scenario], TABLE_6)
    return {**TABLE_1, **own[0], **own[1]}


def table_mismatches(scenario: str, args: Settings) -> list[str]:
    """Where the arguments of a run (its config.json) are not the paper's, one line each."""
    lines = []
    for name, value in paper_values(scenario).items():
        actual = args.get(name)
        if (tuple(actual) if isinstance(actual, list) else actual) != value:
            lines.append(f"{scenario}: {name} is {actual}, the paper has {value}")
    return lines
