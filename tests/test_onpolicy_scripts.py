"""happo.py, hatrpo.py, mappo.py as a user runs them: presets, refusals, benchmarks, exact continuation, guards."""

import dataclasses
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onpolicy_helpers import DRIVERS, SCRIPTS, TINY
from script_helpers import (
    ROOT,
    assert_same_run,
    checkpoint,
    differences,
    metrics,
    step_files,
    training_state,
    tree_bytes,
)

from common import benchmarks, cli
from common.mpe import MPEVecEnv
from common.vecenv import StepResult

NAMES = list(SCRIPTS)

# ---- presets: HARL's tuned values, and DexterousHands' for HATRPO's threshold there

COMMON: dict[str, Any] = dict(
    gae_lambda=0.95,
    std_x_coef=1.0,
    std_y_coef=0.5,
    adam_eps=1e-5,
    value_coef=1.0,
    huber_delta=10.0,
    value_norm=True,
    max_grad_norm=10.0,
)
OF_BENCHMARK: dict[str, dict[str, Any]] = {
    "mpe": dict(
        *[{"num_envs": 20, "total_timesteps": 10_000_000, "rollout_steps": 200, "gamma": 0.99}],
        hidden_sizes=(128, 128),
        time_limits="mask",
    ),
    "mamujoco": dict(
        *[{"num_envs": 20, "total_timesteps": 10_000_000, "rollout_steps": 200, "gamma": 0.99}],
        hidden_sizes=(128, 128, 128),
        time_limits="mask",
    ),
    "bidexhands": dict(
        *[{"num_envs": 256, "total_timesteps": 50_000_000, "gamma": 0.95}],
        hidden_sizes=(256, 256, 256),
        time_limits="terminate",
    ),
}
EPISODES = {
    "ShadowHandOver": 75,
    "ShadowHandCatchAbreast": 150,
    "ShadowHandTwoCatchUnderarm": 75,
    "ShadowHandLiftUnderarm": 500,
    "ShadowHandCatchOver2Underarm": 75,
    "ShadowHandPen": 125,
    "ShadowHandDoorCloseInward": 250,
    "ShadowHandDoorOpenInward": 250,
    "ShadowHandDoorOpenOutward": 250,
}
# clip, entropy, epochs of actor and critic, learning rate of both, minibatches of both, decay
PLAIN, ANT, CHEETAH = (0.2, 0.01, 5, 5e-4, 1, False), (0.1, 0.0, 5, 5e-4, 1, False), (0.05, 0.01, 15, 5e-4, 1, False)
PPO_VALUES = {
    **dict.fromkeys(("simple_spread", "simple_reference", "simple_speaker_listener", *EPISODES), PLAIN),
    **dict.fromkeys(("Ant-2x4", "Ant-4x2", "Ant-8x1"), ANT),
    **dict.fromkeys(("HalfCheetah-2x3", "HalfCheetah-3x2", "HalfCheetah-6x1"), CHEETAH),
    "Walker2d-2x3": (0.05, 0.0, 5, 1e-3, 2, True),
    "Walker2d-6x1": (0.1, 0.01, 5, 5e-4, 1, False),
    "ManyAgentSwimmer-10x2": PLAIN,
}
THRESHOLDS = {
    **dict.fromkeys(("simple_spread", "simple_reference", "simple_speaker_listener"), 0.005),
    **dict.fromkeys(("Ant-2x4", "Ant-4x2", "Ant-8x1", "Walker2d-6x1"), 0.005),
    **dict.fromkeys(("HalfCheetah-2x3", "HalfCheetah-3x2", "HalfCheetah-6x1", "Walker2d-2x3"), 0.01),
    "ManyAgentSwimmer-10x2": 0.01,
    **dict.fromkeys(EPISODES, 0.016),
}


def parse(name: str, *argv: str) -> dict[str, Any]:
    module = SCRIPTS[name]
    return dataclasses.asdict(cli.parse(module.Args, module.PRESETS, module.LIMITS, benchmarks.with_scenario(argv)))


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_harls(name: str) -> None:
    presets = SCRIPTS[name].PRESETS
    assert len(presets) == 21 and presets.keys() == PPO_VALUES.keys() == THRESHOLDS.keys()
    for scenario in presets:
        args = parse(name, "--scenario", scenario)
        expected = COMMON | OF_BENCHMARK[args["benchmark"]] | dict(scenario=scenario)
        if scenario in EPISODES:
            expected |= dict(rollout_steps=EPISODES[scenario], benchmark="bidexhands")
        if name == "hatrpo":
            expected |= dict(kl_threshold=THRESHOLDS[scenario], clip=0.2, critic_epochs=5, critic_minibatches=1)
            expected |= dict(cg_iterations=10, cg_tolerance=1e-10, cg_damping=0.1, line_search_steps=10)
            expected |= dict(backtrack=0.8, accept_ratio=0.5, critic_lr=5e-4, lr_decay=False)
        else:
            clip, entropy, epochs, rate, minibatches, decay = PPO_VALUES[scenario]
            expected |= dict(clip=clip, entropy_coef=entropy, epochs=epochs, critic_epochs=epochs, lr_decay=decay)
            expected |= dict(actor_lr=rate, critic_lr=rate, minibatches=minibatches, critic_minibatches=minibatches)
        if name == "mappo":
            expected |= dict(share_param=scenario != "simple_speaker_listener")
        assert {key: args[key] for key in expected} == expected, scenario


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_or_a_scenario_is_enough(name: str) -> None:
    def chosen(*argv: str) -> tuple[str, str]:
        args = parse(name, *argv)
        return args["benchmark"], args["scenario"]

    assert chosen() == ("mpe", "simple_spread")
    assert chosen("--benchmark", "mamujoco") == ("mamujoco", "HalfCheetah-2x3")
    assert chosen("--benchmark=bidexhands", "--seed", "2") == ("bidexhands", "ShadowHandOver")
    assert chosen("--scenario", "Ant-4x2") == ("mamujoco", "Ant-4x2")
    assert chosen("--scenario=ShadowHandPen", "--benchmark", "bidexhands") == ("bidexhands", "ShadowHandPen")
    assert parse(name, "--hidden-sizes", "64", "32", "16")["hidden_sizes"] == (64, 32, 16)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scenario", "simple_tag"], ["--scenario simple_tag", "simple_spread", "Ant-4x2"]),
        (["--benchmark", "atari"], ["--benchmark atari", "mpe", "mamujoco", "bidexhands"]),
        (["--benchmark", "mpe", "--scenario", "Ant-4x2"], ["--scenario Ant-4x2", "--benchmark mpe", "simple_spread"]),
        (["--obs-mode", "local"], ["--obs-mode local", "simple_spread", "--benchmark mamujoco"]),
        (["--benchmark", "mamujoco", "--rules", "harl"], ["--rules harl", "--benchmark mpe"]),
        (["--rules", "harl", "--env-backend", "mpe2"], ["--rules harl", "--env-backend batched"]),
        (["--eval-episodes", "7", "--eval-envs", "2"], ["--eval-episodes 7", "--eval-envs 2"]),
        (["--critic-minibatches", "100000"], ["--critic-minibatches 100000", "4000"]),
        (["--hidden-sizes", "8", "x", "8"], ["--hidden-sizes 8 x 8", "whole number"]),
        (["--hidden-sizes", "8", "8", "8", "--seed", "x"], ["--seed x", "whole number"]),
        (["--hidden-sizes", "8", "0"], ["--hidden-sizes 8 0", "at least 1"]),
        (["--hidden-sizes"], ["--hidden-sizes:", "at least one"]),
        (
            ["--scenario", "ShadowHandOver", "--isaac-done-semantics", "--time-limits", "mask"],
            ["--time-limits mask", "--isaac-done-semantics"],
        ),
        (["--gae-lambda", "1.5"], ["--gae-lambda 1.5", "between 0 and 1"]),
        (["--time-limits", "ignore"], ["--time-limits ignore", "mask", "terminate", "bootstrap"]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_refused_in_one_line(
    name: str,
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = DRIVERS[name].usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_unlike_agents_cannot_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = DRIVERS["mappo"].usage_error(capsys, ["--scenario", "simple_speaker_listener", "--share-param"])
    assert "--share-param" in line and "simple_speaker_listener" in line
    assert list(tmp_path.iterdir()) == []


# ---- the benchmarks

SHORT: dict[str, Any] = dict(
    total_timesteps=320, eval_every=320, save_every=320, eval_episodes=2, num_envs=4, rollout_steps=20
)


@pytest.mark.parametrize("scenario", ["simple_speaker_listener", "Walker2d-2x3", "ShadowHandCatchOver2Underarm"])
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_trains(name: str, scenario: str, tmp_path: Path) -> None:
    driver = DRIVERS[name]
    values = SHORT | dict(scenario=scenario)
    if name == "mappo":
        values |= dict(share_param=scenario != "simple_speaker_listener")
    folder = driver.train(tmp_path, **values)
    state = checkpoint.load(folder / "checkpoints/step_320.pt")
    assert state["learner"]["iteration"] == 4 and state["learner"]["update_step"] == 4 * 2 * 2
    assert all(bool(torch.isfinite(x).all()) for x in state["learner"]["actors"].values())
    rows = (folder / "eval.csv").read_text().splitlines()
    assert rows[0] == "global_step,episode,return,length" and len(rows) == 3
    benchmark, task = folder.parts[-3:-1]
    assert task == scenario and benchmark in ("mpe", "mamujoco", "BiDexMJ")
    config = json.loads((folder / "config.json").read_text())
    assert f"baselines/{name}.py" in config["command"] and config["args"]["benchmark"] in (
        "mpe",
        "mamujoco",
        "bidexhands",
    )


def test_the_folder_says_what_is_not_the_default() -> None:
    def words(**values: Any) -> tuple[str, list[str]]:
        return benchmarks.task_and_variant(benchmarks.BenchmarkArgs(**values))

    hands = dict(benchmark="bidexhands", scenario="ShadowHandPen")
    assert words() == ("mpe/simple_spread", [])
    assert words(rules="harl") == ("mpe/simple_spread", ["harl"])
    assert words(benchmark="mamujoco", scenario="Ant-4x2", obs_mode="local", obs_neighbors=0)[1] == ["local0"]
    assert words(**hands, base_force_scale=1.0, isaac_done_semantics=True)[1] == ["force1", "isaacdone"]
    assert words(**hands) == ("BiDexMJ/ShadowHandPen", [])
    assert words(**hands, sim="isaacgym") == ("BiDexHands/ShadowHandPen", [])
    assert words(**hands, sim="mujoco_warp") == ("BiDexMJ/ShadowHandPen", ["mujoco_warp"])


# ---- exact continuation


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run of each script that nothing interrupted."""
    return {name: driver.train(tmp_path_factory.mktemp(name)) for name, driver in DRIVERS.items()}


def test_the_tiny_run_is_worth_continuing(undisturbed: dict[str, Path]) -> None:
    for folder in undisturbed.values():
        saved = [checkpoint.load(path) for path in step_files(folder)]
        assert [state["progress"]["global_step"] for state in saved] == [400, 800]
        assert [state["learner"]["iteration"] for state in saved] == [6, 13]
        assert [state["buffer"]["position"] for state in saved] == [10, 5]  # in the middle of rollouts


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_run_and_another_another(name: str, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    assert_same_run(DRIVERS[name].train(tmp_path), undisturbed[name])
    other = training_state(step_files(DRIVERS[name].train(tmp_path, seed=4))[-1])
    assert differences(other["learner"], training_state(step_files(undisturbed[name])[-1])["learner"]) != []


@pytest.mark.parametrize(
    ("moment", "at"),
    [
        pytest.param("rollout", 37, id="in-a-rollout"),
        pytest.param("rollout", 45, id="before-updates"),
        pytest.param("update", 13, id="in-an-update"),
        pytest.param("first evaluation", 7, id="in-an-evaluation"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    name: str, moment: str, at: int, undisturbed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, signum = DRIVERS[name], signal.SIGINT if moment == "update" else signal.SIGTERM

    def stop(*_: object) -> None:
        signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        if moment == "update":
            driver.on_update(patch, at, stop)
        else:
            driver.on_env_step(patch, 4 if moment == "rollout" else 2, at, stop)
        assert driver.module.main(driver.command(tmp_path)) == 128 + signum
    folder = driver.folder_of(tmp_path)
    saved = checkpoint.load(step_files(folder)[-1])
    position, iteration = {
        "rollout": (7 if at == 37 else 15, 2),
        "update": (0, 4),
        "first evaluation": (5, 3),
    }[moment]
    assert (saved["buffer"]["position"], saved["learner"]["iteration"]) == (position, iteration)
    assert not (folder / "finished.json").exists()
    assert driver.module.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, undisturbed[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_continues_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    driver, steps = DRIVERS[name], dict(total_timesteps=2400, save_every=400)
    folder = driver.folder_of(tmp_path / "killed")
    words = driver.script(*driver.command(tmp_path / "killed", **steps | dict(total_timesteps=2_000_000)))
    killed = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (paths := step_files(folder)) or metrics(folder)[-1]["global_step"] <= int(paths[-1].stem[5:]):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (folder / "finished.json").exists()
    at_kill = checkpoint.load(step_files(folder)[-1])["progress"]["global_step"]
    total = max(2400, (at_kill // 400 + 2) * 400)
    reference = driver.train(tmp_path / "reference", **steps | dict(total_timesteps=total))
    continued = driver.run_script("--resume", folder, "--total-timesteps", total)
    assert continued.returncode == 0, continued.stderr
    assert f"step_{at_kill}.pt" in continued.stdout
    assert_same_run(folder, reference)


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_a_run_does_not_change_it(name: str, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    folder = DRIVERS[name].train(tmp_path, eval_every=100, eval_episodes=4, log_every=60, save_every=100, profile=True)
    state, expected = (training_state(step_files(f)[-1]) for f in (folder, undisturbed[name]))
    for key in ("learner", "streams", "buffer", "env", "obs", "state"):
        assert differences(state[key], expected[key]) == [], key


@pytest.mark.parametrize("name", NAMES)
def test_a_decay_has_one_end(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    driver = DRIVERS[name]
    folder = driver.train(tmp_path, lr_decay=True, total_timesteps=400)
    line = driver.usage_error(capsys, ["--resume", str(folder), "--total-timesteps", "800"])
    assert "--total-timesteps 800" in line and "--lr-decay" in line and "400" in line


@pytest.mark.parametrize("flag", ["--resume", "--evaluate"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_another_script_is_refused(
    name: str, flag: str, undisturbed: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    """HAPPO's arguments are all known to MAPPO, too."""
    for other in set(NAMES) - {name}:
        before = tree_bytes(undisturbed[name])
        line = DRIVERS[other].usage_error(capsys, [flag, str(undisturbed[name])])
        assert str(undisturbed[name]) in line and "does not fit this script" in line
        assert tree_bytes(undisturbed[name]) == before


# ---- guards


def spoiled(monkeypatch: pytest.MonkeyPatch, at: int, field: str, num_envs: int = 4) -> None:
    """Environment 1 returns a NaN in `field` at step `at`."""
    original, steps = MPEVecEnv.step, []

    def step(self: Any, actions: Any) -> StepResult:
        result = original(self, actions)
        if self.num_envs == num_envs:
            steps.append(1)
            if len(steps) == at:
                array = getattr(result, field)
                (array[2] if isinstance(array, list) else array)[1] = np.nan
        return result

    monkeypatch.setattr(MPEVecEnv, "step", step)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("final_obs", ["observation of agent 2 in environment 1"]),
        ("final_state", ["state in environment 1"]),
        ("reward", ["reward in environment 1"]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_value_from_the_environment_stops_the_run(
    name: str,
    field: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    spoiled(monkeypatch, 103, field)
    driver = DRIVERS[name]
    assert driver.module.main(driver.command(tmp_path)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in [*words, "global_step 412"]), error
    folder = driver.folder_of(tmp_path)
    assert [path.name for path in step_files(folder)] == ["step_400.pt"] and not (folder / "finished.json").exists()


@pytest.mark.parametrize("part", ["critic", "actor"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_loss_stops_the_run(
    name: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    driver = DRIVERS[name]

    def poison(learner: Any, buffer: Any) -> None:
        if part == "critic":
            learner.critic.net[1].weight.data[0, 0] = np.nan
        else:
            buffer.data["actions"][3, 2, -1] = np.nan

    driver.on_update(monkeypatch, 25, poison)  # the seventh round
    before: list[dict[str, bytes]] = []
    original = driver.module.Run.save

    def save(run: Any, folder: Path, log: Any) -> None:
        original(run, folder, log)
        before.append(tree_bytes(folder / "checkpoints"))

    monkeypatch.setattr(driver.module.Run, "save", save)
    assert driver.module.main(driver.command(tmp_path)) == 3
    error = capsys.readouterr().err
    # a bad critic spoils the advantages: the actors' losses are the first to show it
    assert error.count("\n") == 1 and "is not finite" in error and "losses/actor_" in error, error
    folder = driver.folder_of(tmp_path)
    assert tree_bytes(folder / "checkpoints") == before[-1]
    assert len(torch.load(folder / "nonfinite_batch.pt", weights_only=True)["advantage"]) == 60


# ---- what it leaves behind


@pytest.mark.parametrize("name", NAMES)
def test_folder_metrics_and_profile(name: str, tmp_path: Path) -> None:
    driver = DRIVERS[name]
    done = driver.run_script(*driver.command(tmp_path, profile=True))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder = driver.folder_of(tmp_path)
    files = {path.name for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert files == {
        *("config.json", "metrics.jsonl", "eval.csv", "finished.json"),
        *("step_400.pt", "step_800.pt", "best.pt", "policy.safetensors"),
    }
    text = (ROOT / "docs/baselines.md").read_text()
    rows = re.findall(r"^\|\s*`(\w+/[^`]+)`\s*\|\s*([^|]+?)\s*\|", text, re.MULTILINE)
    documented = {key for key, scripts in rows if scripts == "all" or name in scripts.split(", ")}
    written = set().union(*metrics(folder)) - {"global_step", "update_step", "wall_s"}
    assert {re.sub(r"_\d+$", "_<i>", key) for key in written} == documented
    shares = dict(re.findall(r"^([a-z ]+?) +[\d.]+ s +([\d.]+) %$", done.stdout, re.MULTILINE))
    assert shares.keys() == {
        *("environment", "acting", "storing", "updates", "evaluation", "checkpoints", "everything else"),
    }
    logged = [line["global_step"] for line in metrics(folder) if "losses/critic" in line]
    assert logged == [120, 240, 300, 420, 540, 600, 720]  # updates every 60 steps, a line after each 100


@pytest.mark.parametrize("name", NAMES)
def test_the_best_policy_can_be_evaluated_again(
    name: str, undisturbed: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    folder = undisturbed[name]
    capsys.readouterr()
    assert SCRIPTS[name].main(["--evaluate", str(folder)]) == 0
    found = re.findall(r"^episode \d+: return (-?[\d.]+), length 25$", capsys.readouterr().out, re.MULTILINE)
    rows = np.loadtxt(folder / "eval.csv", delimiter=",", skiprows=1)  # global_step, episode, return, length
    best = max((rows[rows[:, 0] == step, 2] for step in np.unique(rows[:, 0])), key=np.mean)
    assert [float(x) for x in found] == pytest.approx(best.tolist(), abs=0.006)


def test_help_is_the_documentation() -> None:
    for name, module in SCRIPTS.items():
        for cls in module.Args.__mro__[:2]:
            source = Path(__import__(cls.__module__, fromlist=["x"]).__file__).read_text()
            for field in cls.__annotations__:
                assert re.search(rf'^    {field}: [^\n]+\n    """', source, re.MULTILINE), (name, field)
    assert "rollout_steps" in SCRIPTS["happo"].Args.__annotations__ and TINY["rollout_steps"] == 15
