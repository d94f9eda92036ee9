"""The suites are the figures and tables of the paper: tasks, variants, seeds, values; and the scripts take them."""

import json
from typing import Any

import pytest
from test_ideas import fresh_script

import his_bidexhands
import his_mamujoco
import his_mpe
from common import bidexhands, cli, mamujoco, mpe
from experiments import suites
from experiments.plot import panel_of
from experiments.scores import variant_of
from experiments.suites import SUITES, TASKS, VARIANTS, expand, flags, schedule, task_label

SCRIPTS = {"his_mpe.py": his_mpe, "his_mamujoco.py": his_mamujoco, "his_bidexhands.py": his_bidexhands}
OF_BENCHMARK = {"mpe": his_mpe, "mamujoco": his_mamujoco, "bidexhands": his_bidexhands}

# The paper's tables, copied from its text; the exponents of Table 1 (10^4, 10^6) are restored.
TABLE_1 = """
warmup steps | 1e4
buffer size | 1e6
polyak | 0.005
hidden sizes | [256, 256]
update per train | 1
train interval | 50
policy update frequency | 2
"""
TABLE_2 = """
rollout threads | 20
gamma | 0.95
batch size | 1000
actor lr | 5e-4
critic lr | 5e-4
n step | 20
sample times | 2
log adjustment factor | 10
"""
TABLE_3 = """
Catch Abreast | True | / | 3e-4
Two Catch Underarm | False | 5e-5 | /
Hand Lift Underarm | True | / | 3e-4
Hand Over | True | / | 3e-4
Catch Over2Underarm | True | / | 3e-4
Hand Pen | True | / | 3e-4
Door Close Inward | True | / | 3e-4
Door Open Inward | True | / | 3e-4
Door Open Outward | True | / | 3e-4
"""
TABLE_4 = """
rollout threads | 20
batch size | 1000
critic lr | 5e-4
gamma | 0.99
actor lr | 5e-4
n step | 20
auto alpha | True
alpha lr | 3e-4
sample times | 3
log adjustment factor | 10
"""
TABLE_5 = """
Ant 2x4 | 3e-4 | False | 0.2 | / | 2200 | 5
Ant 4x2 | 3e-4 | False | 0.2 | / | 1000 | 5
Ant 8x1 | 3e-4 | False | 0.2 | / | 2200 | 5
Walker 2x3 | 5e-4 | False | 0.2 | / | 1000 | 20
Walker 6x1 | 5e-4 | False | 0.2 | / | 1000 | 20
HalfCheetah 2x3 | 1e-3 | True | / | 3e-4 | 1000 | 10
HalfCheetah 3x2 | 1e-3 | True | / | 3e-4 | 1000 | 10
HalfCheetah 6x1 | 1e-3 | True | / | 3e-4 | 1000 | 10
manyagent_swimmer 10x2 | 1e-3 | True | / | 3e-4 | 1000 | 10
"""
TABLE_6 = """
rollout threads | 10
train interval | 50
critic lr | 1e-3
gamma | 0.99
sample times | 1
log adjustment factor | 10
"""
FIELDS = {
    "polyak": "tau",
    "policy update frequency": "policy_frequency",
    "rollout threads": "num_envs",
    "sample times": "num_coalitions",
    "log adjustment factor": "beta",
}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def number(text: str) -> Any:
    return {"True": True, "False": False}[text] if text in ("True", "False") else json.loads(text)


def two_columns(table: str) -> dict[str, Any]:
    return {FIELDS.get(name, name.replace(" ", "_")): number(value) for name, value in rows(table)}


def per_task(table: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Scenario -> field -> value; "/" is no value."""
    found = {}
    for name, *cells in rows(table):
        if "x" in name.split()[-1]:
            robot, parts = name.split()
            scenario = {"Walker": "Walker2d", "manyagent_swimmer": "ManyAgentSwimmer"}.get(robot, robot) + "-" + parts
        else:
            scenario = "ShadowHand" + name.replace("Hand ", "").replace(" ", "")
        found[scenario] = {column: number(cell) for column, cell in zip(columns, cells, strict=True) if cell != "/"}
    return found


TEMPERATURE = ["auto_alpha", "alpha", "alpha_lr"]
FROM_PAPER: dict[str, dict[str, Any]] = {
    **{name: two_columns(TABLE_4) for name in ("simple_spread", "simple_reference", "simple_speaker_listener")},
    **{name: two_columns(TABLE_2) | values for name, values in per_task(TABLE_3, TEMPERATURE).items()},
    **{
        name: two_columns(TABLE_6) | values
        for name, values in per_task(TABLE_5, ["actor_lr", *TEMPERATURE, "batch_size", "n_step"]).items()
    },
}


def as_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# ---- tables


def test_the_tasks_are_the_papers_twenty_one() -> None:
    assert set(TASKS) == set(FROM_PAPER) and len(TASKS) == 21


@pytest.mark.parametrize("scenario", FROM_PAPER)
def test_the_tables_here_are_the_papers(scenario: str) -> None:
    assert as_lists(suites.paper_values(scenario)) == two_columns(TABLE_1) | FROM_PAPER[scenario]


@pytest.mark.parametrize("scenario", FROM_PAPER)
def test_the_presets_of_the_scripts_are_the_papers(scenario: str) -> None:
    script = OF_BENCHMARK[TASKS[scenario].benchmark]
    args = {**vars(script.Args()), **script.PRESETS[scenario]}
    assert suites.table_mismatches(scenario, json.loads(json.dumps(args))) == []
    for name in suites.paper_values(scenario):
        changed = {**args, name: "other"}
        (line,) = suites.table_mismatches(scenario, changed)
        assert line.startswith(f"{scenario}: {name} is other, the paper has ")


def test_the_tables_suite_asks_every_scenario_once_and_sets_no_value_of_the_paper() -> None:
    runs = expand(SUITES["tables"])
    assert [run.scenario for run in runs] == list(TASKS) and SUITES["tables"].check
    assert all(not set(run.settings) & set(suites.paper_values(run.scenario)) for run in runs)


# ---- figures


def what(name: str) -> dict[str, set[str]]:
    """Variant -> tasks, with the full seeds and steps checked."""
    found: dict[str, set[str]] = {}
    for run in expand(SUITES[name]):
        assert run.total_steps == TASKS[run.scenario].steps
        found.setdefault(run.variant, set()).add(run.scenario)
    assert len(expand(SUITES[name])) == 5 * sum(map(len, found.values()))
    assert {run.seed for run in expand(SUITES[name])} == {1, 2, 3, 4, 5}
    return found


MPE_TASKS = {"simple_spread", "simple_reference", "simple_speaker_listener"}
MAMUJOCO_TASKS = set(per_task(TABLE_5, ["actor_lr", *TEMPERATURE, "batch_size", "n_step"]))
BIDEXHANDS_TASKS = set(per_task(TABLE_3, TEMPERATURE))
FIGURE_8 = {"Ant-2x4", "Ant-8x1", "ShadowHandDoorOpenOutward"}


def test_figures_2_4_and_5_have_all_tasks_and_algorithms() -> None:
    algorithms = ["his", "none", "hasac", "hatrpo", "happo", "mappo"]
    assert what("fig2") == dict.fromkeys(algorithms, MPE_TASKS)
    assert what("fig4") == dict.fromkeys([*algorithms, "ppo"], BIDEXHANDS_TASKS)
    facmac = MAMUJOCO_TASKS - {"Ant-8x1", "HalfCheetah-3x2", "Walker2d-6x1"}
    assert what("fig5") == dict.fromkeys(algorithms, MAMUJOCO_TASKS) | {"facmac": facmac} and len(facmac) == 6


def test_figures_3_6_7_and_8_have_the_ablations_and_sweeps() -> None:
    assert what("fig3") == dict.fromkeys(["his", "share", "local"], FIGURE_8)
    assert what("fig8") == dict.fromkeys(["his", "no-bc", "action"], FIGURE_8)
    one_a_benchmark = {"simple_spread", "HalfCheetah-6x1", "ShadowHandDoorOpenOutward"}
    assert what("fig6") == dict.fromkeys(["M1", "M2", "M3", "M5"], one_a_benchmark)
    assert what("fig7") == dict.fromkeys(["beta2", "beta5", "beta10", "beta20", "beta50"], one_a_benchmark)


def test_each_variant_sets_what_its_name_says() -> None:
    settings = {name: suites.settings_of(name, "HalfCheetah-6x1") for name in VARIANTS}
    assert settings["his"] == {} and settings["none"] == {"credit": "none"}
    assert settings["share"] == {"credit": "share"} and settings["local"] == {"credit": "local"}
    assert settings["no-bc"] == {"box_cox": False} and settings["action"] == {"credit_actions": "policy"}
    assert [settings[f"M{m}"] for m in (1, 2, 3, 5)] == [{"num_coalitions": m} for m in (1, 2, 3, 5)]
    assert [settings[f"beta{b}"] for b in (2, 5, 10, 20, 50)] == [{"beta": b} for b in (2, 5, 10, 20, 50)]
    assert settings["coef-1-n"] == {"credit_coef": 1 / 6}
    assert suites.settings_of("coef-1-n", "simple_spread") == {"credit_coef": 1 / 3}
    assert settings["mappo"] == {"benchmark": "mamujoco"}
    readings = {
        "marginal-value": {"marginal": "value"},
        "floor-product": {"floor": "minus_beta_times_max"},
        "floor-none": {"floor": "none"},
        "below-literal": {"below_floor": "literal"},
        "below-hard": {"below_floor": "hard"},
        "no-bc": {"box_cox": False},
        "bounds-0-1": {"boxcox_high": 1.0},
        "bounds-wide": {"boxcox_low": -2.0, "boxcox_high": 5.0},
        "geometric": {"boxcox_scale": "geometric"},
        "frequency-1": {"policy_frequency": 1},
        "coef-half": {"credit_coef": 0.5},
        "coef-1-n": {"credit_coef": 1 / 6},
    }
    assert {name: settings[name] for name in suites.READINGS} == readings
    plain = {f"idea-{idea}": {"idea": idea} for idea in suites.IDEAS}
    assert {name: each for name, each in settings.items() if name.startswith("idea-")} == plain | {
        "idea-capped-tenth": {"idea": "capped", "idea_strength": 0.1},
        "idea-annealed-early": {"idea": "annealed", "idea_strength": 0.3},
        "idea-relative-positive-tenth": {"idea": "relative-positive", "credit_coef": 0.1},
        "idea-recent": {"idea": "recent", "idea_strength": 0.1},
        "idea-masked-history": {"idea": "half-history", "idea_strength": 2.0},
        "idea-masked-buffer": {"idea": "half-buffer", "idea_strength": 2.0},
    }
    assert settings["none-terminal"] == {"idea": "terminal", "credit": "none"}
    assert settings["none-frequency-1"] == {"credit": "none", "policy_frequency": 1}
    assert settings["none-alpha-0.05"] == {"credit": "none", "alpha": 0.05}
    assert suites.script_of("hasac", "simple_spread") == "baselines/hasac_mpe.py"
    assert suites.script_of("mappo", "simple_spread") == "baselines/mappo.py"


def test_the_number_of_agents_and_the_budgets() -> None:
    agents = {**mpe.NUM_AGENTS, **mamujoco.NUM_AGENTS, **bidexhands.NUM_AGENTS}
    assert {name: task.agents for name, task in TASKS.items()} == agents
    other = {name: task.steps for name, task in TASKS.items() if task.steps != 10_000_000}
    assert other == {"ShadowHandOver": 50_000_000, "ShadowHandCatchOver2Underarm": 20_000_000}


# ---- our own suites


def test_the_evidence_on_the_particle_environments() -> None:
    runs = expand(SUITES["mpe"])
    assert len(runs) == 33 and {run.total_steps for run in runs} == {500_000}
    for task in MPE_TASKS:
        mine = [(run.variant, run.seed) for run in runs if run.scenario == task]
        expected = [(variant, seed) for seed in range(1, 6) for variant in ("his", "none")]
        assert sorted(mine) == sorted([*expected, ("his-harl-rules", 1)])
    (rules,) = {run.settings["rules"] for run in runs if run.variant == "his-harl-rules"}
    assert rules == "harl"


def test_the_readings_study() -> None:
    screen, final = expand(SUITES["readings-screen"]), expand(SUITES["readings"])
    assert {run.seed for run in screen} == {1} and not {run.seed for run in final} & {1}
    seeds: dict[tuple[str, str], set[int]] = {}
    for run in final:
        seeds.setdefault((run.scenario, run.variant), set()).add(run.seed)
    assert {len(each) for key, each in seeds.items() if "long" not in key[1]} == {3}
    tasks = {run.scenario for run in final}
    assert tasks == {"simple_spread", "simple_reference", "HalfCheetah-2x3", "HalfCheetah-6x1", "Ant-4x2"}
    kept = tasks - {run.scenario for run in screen}
    assert kept == {"simple_reference", "HalfCheetah-6x1", "Ant-4x2"}, "what the screening decides is tried elsewhere"
    small = {"batch_size": 256, "hidden_sizes": (128, 128)}
    assert all(run.settings.items() >= small.items() for run in (*screen, *final))
    variants = [{run.variant for run in runs} for runs in (screen, expand(SUITES["ideas-screen"]))]
    assert variants[0] & variants[1] == {"his", "none"}
    survivors = {run.variant for run in final} - {"his-long", "none-long"}
    assert {"his", "none"} < survivors < variants[0] | variants[1], "the paper's default, the control, and a few"
    long = [run for run in final if run.total_steps == 2_000_000]
    assert [run.variant for run in long] == ["his-long", "none-long"]
    assert {run.total_steps for run in [*screen, *final] if run not in long} == {500_000}


def test_where_his_is_ahead() -> None:
    runs = expand(SUITES["ant"])
    assert all(suites.paper_values(run.scenario)["auto_alpha"] is False for run in runs), "or --alpha would do nothing"
    second = {run.name: run for run in expand(SUITES["readings"])}
    same = [run for run in runs if run.name in second]
    assert all(run == second[run.name] for run in same), "what the second round has need not run twice"
    assert {(run.scenario, run.variant) for run in same} == {("Ant-4x2", "his"), ("Ant-4x2", "none")} and len(same) == 6
    assert {run.seed for run in runs} == {11, 12, 13} and {run.total_steps for run in runs} == {500_000}


def test_the_affordable_ablations() -> None:
    runs = expand(SUITES["ablations"])
    assert {run.scenario for run in runs} == {"simple_spread", "HalfCheetah-6x1"}
    assert {run.seed for run in runs} == {11, 12, 13}
    shared = {run.name: run for run in expand(SUITES["readings"])}
    same = [run for run in runs if run.name in shared]
    assert all(run == shared[run.name] for run in same), "what the second round has, too, need not run twice"
    assert {run.variant for run in same} == {"his", "none", "local"} and len(same) == 18
    for task, paper_m in (("simple_spread", 3), ("HalfCheetah-6x1", 1)):
        mine = [run for run in runs if run.scenario == task and run.seed == 11]
        values = {run.settings.get("num_coalitions", paper_m) for run in mine}
        assert values == {1, 2, 3, 5} and f"M{paper_m}" not in {run.variant for run in mine}
        assert {run.settings.get("beta", 10) for run in mine} == {2, 5, 10, 20, 50}
        assert {"his", "none", "share", "local", "no-bc", "action"} < {run.variant for run in mine}
    half = [run for run in runs if run.total_steps == 250_000]
    assert len(half) == 30 and not {run.name for run in half} & shared.keys()
    long, short = schedule(500_000), schedule(250_000)
    assert {name for name in long if long[name] != short.get(name)} == {"total_timesteps", "save_every"}, (
        "the steps of a run of 500,000"
    )


# ---- what a run is


@pytest.mark.parametrize("name", SUITES)
def test_runs_are_told_apart_by_their_names(name: str) -> None:
    runs = expand(SUITES[name])
    assert len({run.name for run in runs}) == len(runs) == len({(r.scenario, r.seed, r.variant) for r in runs})


def test_every_command_line_is_one_that_the_script_takes() -> None:
    seen = set()
    with_ideas = {benchmark: fresh_script(f"his_{benchmark}") for benchmark in ("mpe", "mamujoco")}
    for suite in SUITES.values():
        for run in expand(suite, seeds=1):
            benchmark, agents = TASKS[run.scenario].benchmark, TASKS[run.scenario].agents
            kind = (run.script, run.variant, suite.smoke, agents)
            of_idea = run.script == "experiments/ideas.py"
            if (run.script not in SCRIPTS and not of_idea) or kind in seen:
                continue
            seen.add(kind)
            script, (path, *argv) = with_ideas[benchmark] if of_idea else SCRIPTS[run.script], run.command("somewhere")
            assert path == run.script
            limits = (script.PRESETS, script.LIMITS)
            args = cli.parse(script.Args, *limits, argv, prog=path, resumable=script.RESUMABLE)
            script.check_args(args)
            actual = vars(args)
            assert {name: actual[name] for name in run.settings} == run.settings
            assert (actual["scenario"], actual["seed"], actual["run_name"]) == (run.scenario, run.seed, run.variant)
            assert actual["runs_dir"] == "somewhere"
    assert len(seen) > 130 and {variant for _, variant, *_ in seen} > {f"idea-{idea}" for idea in suites.IDEAS}


def test_flags() -> None:
    values = {"box_cox": False, "auto_alpha": True, "hidden_sizes": (3, 4), "beta": 2.0, "credit": "his"}
    words = "--no-box-cox --auto-alpha --hidden-sizes 3 4 --beta 2.0 --credit his"
    assert flags(values) == words.split()


@pytest.mark.parametrize(
    ("steps", "evaluations", "log_every", "save_every", "warmup"),
    [
        (50_000_000, 100, 50_000, 250_000, None),
        (10_000_000, 100, 10_000, 250_000, None),
        (500_000, 50, 5_000, 50_000, None),
        (300_000, 30, 5_000, 30_000, None),
        (100_000, 10, 5_000, 10_000, None),
        (50_000, 10, 5_000, 5_000, 5_000),
        (1_000, 10, 100, 100, 100),
    ],
)
def test_what_goes_with_a_number_of_steps(
    steps: int, evaluations: int, log_every: int, save_every: int, warmup: int | None
) -> None:
    settings = schedule(steps)
    assert settings["total_timesteps"] == steps and steps // settings["eval_every"] == evaluations
    assert (settings["log_every"], settings["save_every"]) == (log_every, save_every)
    assert settings.get("warmup_steps") == warmup
    assert "warmup_steps" not in schedule(steps, off_policy=False)


def test_scale_and_seeds() -> None:
    runs = expand(SUITES["fig4"], seeds=7, scale=0.03)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.seed for run in runs} == {1, 2, 3, 4, 5, 6, 7}
    steps = {run.scenario: run.total_steps for run in runs}
    assert steps["ShadowHandOver"] == 1_500_000 and steps["ShadowHandPen"] == 300_000
    assert {run.seed for run in expand(SUITES["readings"], seeds=5)} == {11, 12, 13, 14, 15}
    assert {run.seed for run in expand(SUITES["fig4"], seeds=2)} == {1, 2}
    assert {run.total_steps for run in expand(SUITES["mpe"], scale=1e-9)} == {1000}
    few = expand(SUITES["fig5"], tasks=["Ant-2x4", "Ant-8x1"], variants=["facmac", "his"])
    assert {(run.scenario, run.variant) for run in few} == {
        ("Ant-2x4", "facmac"),
        ("Ant-2x4", "his"),
        ("Ant-8x1", "his"),
    }


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.smoke])
def test_a_smoke_suite_has_every_task_and_variant_once(name: str) -> None:
    full = expand(SUITES[name.removeprefix("smoke-")])
    runs = expand(SUITES[name])
    assert sorted((r.scenario, r.variant) for r in runs) == sorted({(r.scenario, r.variant) for r in full})
    assert {run.total_steps for run in runs} == {400}
    smoke = {**suites.SMOKE, **suites.SMOKE_OFF_POLICY, **suites.SMOKE_ON_POLICY, "total_timesteps": 400}
    for run in runs:
        own = {key: value for key, value in run.settings.items() if key not in smoke}
        assert own == suites.settings_of(run.variant, run.scenario)
        if not suites.VARIANTS[run.variant].off_policy:  # else nothing would be learnt in it
            assert run.settings["rollout_steps"] * run.settings["num_envs"] <= 100


def test_the_port_of_the_hands_is_never_called_the_original() -> None:
    """In plots and tables; `sim` is the back end of a run."""
    assert task_label("ShadowHandPen") == panel_of("ShadowHandPen", "his") == "BiDexMJ/ShadowHandPen"
    assert task_label("ShadowHandPen", "isaacgym") == "BiDexHands/ShadowHandPen"
    assert task_label("Ant-4x2") == "Ant-4x2" and panel_of("simple_spread", "his-harl-rules").endswith("(HARL rules)")
    run = {"args": {"scenario": "ShadowHandPen", "credit": "his", "seed": 1, "sim": "mujoco", "run_name": ""}}
    assert variant_of(run) == "his"
    run["args"]["sim"] = "isaacgym"
    assert variant_of(run) == "his-isaacgym"
