"""his_bidexhands.py as a user runs it: the paper's values, simulators, names, exact continuation, success, video."""

import dataclasses
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from script_helpers import ROOT, Driver, assert_same_run, checkpoint, differences, metrics, step_files, training_state

import his_bidexhands as H
from common import cli
from common.vecenv import RenderError

# Episodes of CatchOver2Underarm end after some 20 to 40 steps of random play.
TINY: dict[str, Any] = dict(
    scenario="ShadowHandCatchOver2Underarm",
    seed=3,
    total_timesteps=400,
    num_envs=4,
    warmup_steps=100,
    train_interval=5,
    batch_size=32,
    hidden_sizes=(32, 32),
    buffer_size=300,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=200,
)
HANDS = Driver(H, H.BiDexHandsVecEnv, TINY)
# Tables 1, 2 and 3; the budgets are those of HARL's HASAC.
PAPER = dict(
    num_envs=20,
    gamma=0.95,
    batch_size=1000,
    actor_lr=5e-4,
    critic_lr=5e-4,
    n_step=20,
    num_coalitions=2,
    beta=10.0,
    warmup_steps=10_000,
    buffer_size=1_000_000,
    tau=0.005,
    hidden_sizes=(256, 256),
    train_interval=50,
    update_per_train=1,
    policy_frequency=2,
    credit="his",
    sim="mujoco",
    base_force_scale=0.25,
    isaac_done_semantics=False,
)
TUNED, FIXED = dict(auto_alpha=True, alpha_lr=3e-4), dict(auto_alpha=False, alpha=5e-5)
BUDGETS = {"ShadowHandOver": 50_000_000, "ShadowHandCatchOver2Underarm": 20_000_000}


def folder_of(runs_dir: Path, words: str = "") -> Path:
    return runs_dir / "his_bidexhands/BiDexMJ" / TINY["scenario"] / f"seed3{words}"


def train(runs_dir: Path, words: str = "", **overrides: Any) -> Path:
    assert H.main(HANDS.command(runs_dir, **overrides)) == 0
    return folder_of(runs_dir, words)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("undisturbed"))


def test_the_nine_scenarios() -> None:
    assert len(H.PRESETS) == 9 and sorted(H.PRESETS) == sorted(H.NUM_AGENTS)


@pytest.mark.parametrize("scenario", H.PRESETS)
def test_preset_is_the_papers(scenario: str) -> None:
    args = dataclasses.asdict(cli.parse(H.Args, H.PRESETS, H.LIMITS, ["--scenario", scenario]))
    expected = PAPER | (FIXED if "TwoCatch" in scenario else TUNED)
    expected["total_timesteps"] = BUDGETS.get(scenario, 10_000_000)
    assert {key: args[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scenario", "ShadowHandSwingCup"], ["--scenario ShadowHandSwingCup", "ShadowHandOver", "ShadowHandPen"]),
        (["--sim", "bullet"], ["--sim bullet", "mujoco", "mujoco_warp", "isaacgym"]),
        (["--sim-threads", "0"], ["--sim-threads 0", "at least 1"]),
        (["--base-force-scale", "-1"], ["--base-force-scale -1", "at least 0"]),
        (["--sim", "isaacgym"], ["--isaac-task-root"]),
        (["--isaac-python", "python3.8"], ["--isaac-python and --isaac-task-root need --sim isaacgym"]),
        (["--isaac-task-root", "HARL"], ["--isaac-python and --isaac-task-root need --sim isaacgym"]),
        (["--sim", "isaacgym", "--isaac-task-root", "nowhere"], ["--isaac-task-root", "nowhere"]),
    ],
)
def test_refused_in_one_line(
    argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = HANDS.usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_simulator_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)  # importing it raises ImportError
    monkeypatch.chdir(tmp_path)
    line = HANDS.usage_error(capsys, ["--sim", "mujoco_warp"])
    assert "--sim mujoco_warp" in line and "pip install" in line
    assert list(tmp_path.iterdir()) == []


def test_folder_metrics_and_success(undisturbed: Path) -> None:
    """The run is named after the port; the success rate of each evaluation is recorded."""
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["args"]["scenario"] == TINY["scenario"] and config["args"]["sim"] == "mujoco"
    lines = metrics(undisturbed)
    documented = re.findall(r"^\|\s*`(\w+/[^`]+)`\s*\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    written = set().union(*lines) - {"global_step", "update_step", "wall_s"}
    assert {re.sub(r"_\d+$", "_<i>", key) for key in written} == set(documented)
    rates = [line["eval/success_rate"] for line in lines if "eval/success_rate" in line]
    assert len(rates) == 2 and all(rate in (0.0, 0.5, 1.0) for rate in rates)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("-force0.5", dict(base_force_scale=0.5)),
        ("-isaacdone", dict(isaac_done_semantics=True)),
        ("-force1-isaacdone-first", dict(base_force_scale=1.0, isaac_done_semantics=True, run_name="first")),
    ],
)
def test_the_folder_says_what_is_not_the_default(words: str, values: dict[str, Any], tmp_path: Path) -> None:
    folder = train(tmp_path, words, total_timesteps=160, **values)
    state = training_state(step_files(folder)[-1])
    assert state["learner"]["update_step"] > 0
    if values.get("isaac_done_semantics"):
        assert state["buffer"]["data"]["ended"].sum() == state["buffer"]["data"]["terminated"].sum() > 0


def test_a_stopped_run_continues_as_if_nothing_had_happened(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside a round of updates and in the middle of episodes; continued on another number of threads."""
    with monkeypatch.context() as patch:
        HANDS.on_update(patch, 22, lambda learner, buffer: signal.raise_signal(signal.SIGTERM))
        assert H.main(HANDS.command(tmp_path)) == 143
    folder = folder_of(tmp_path)
    saved = checkpoint.load(step_files(folder)[-1])
    assert saved["learner"]["update_step"] == 22 and (saved["env"]["steps"].numpy() > 0).any()
    assert H.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, undisturbed)


def test_threads_change_nothing(undisturbed: Path, tmp_path: Path) -> None:
    state, expected = (training_state(step_files(f)[-1]) for f in (train(tmp_path, sim_threads=2), undisturbed))
    assert differences(state, expected) == []


def test_video_shows_an_episode(tmp_path: Path) -> None:
    env = H.BiDexHandsVecEnv(TINY["scenario"], 1)
    env.reset(0)
    try:
        env.render()
    except RenderError as error:
        pytest.skip(str(error))
    finally:
        env.close()
    folder = train(tmp_path, total_timesteps=40, eval_every=40, capture_video=True)
    (video,) = (folder / "videos").iterdir()
    frames = np.stack([np.asarray(frame, dtype=int) for frame in imageio.mimread(video)])
    assert len(frames) >= 3 and frames.shape[1:] == (480, 480, 3)
    assert all(np.abs(after - before).max() > 30 for before, after in zip(frames, frames[1:]))
