"""his_mpe.py as a user runs it: the paper's values, both back ends and rules, exact continuation, folder, video."""

import dataclasses
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from script_helpers import (
    ROOT,
    Driver,
    assert_same_run,
    differences,
    flags,
    metrics,
    step_files,
    training_state,
    usage_error,
)

import his_mpe as H
from common import checkpoint, cli

# Speaker and listener see and do things of different size. Episodes of 25 steps end all together, 8 times.
TINY: dict[str, Any] = dict(
    scenario="simple_speaker_listener",
    seed=3,
    total_timesteps=800,
    num_envs=4,
    warmup_steps=200,
    train_interval=5,
    batch_size=64,
    hidden_sizes=(32, 32),
    buffer_size=600,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
MPE = Driver(H, H.MPEVecEnv, TINY)
PACKAGE: dict[str, Any] = dict(env_backend="mpe2")
WAYS = [
    pytest.param(dict(), id="batched"),
    pytest.param(dict(rules="harl"), id="harl"),
    pytest.param(PACKAGE, id="mpe2"),
]
# Table 1 (common) and Table 4 (MPE).
PAPER = dict(
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
    warmup_steps=10_000,
    buffer_size=1_000_000,
    tau=0.005,
    hidden_sizes=(256, 256),
    train_interval=50,
    update_per_train=1,
    policy_frequency=2,
    rules="mpe2",
    env_backend="batched",
    credit="his",
)


def folder_of(runs_dir: Path, way: dict[str, Any]) -> Path:
    """Where a tiny run of that way lives."""
    return MPE.folder_of(runs_dir).with_name("-".join(["seed3", *way.values()]))


def train(runs_dir: Path, way: dict[str, Any], **overrides: Any) -> Path:
    assert H.main(MPE.command(runs_dir, **(way | overrides))) == 0
    return folder_of(runs_dir, way)


# ---- command line


@pytest.mark.parametrize("script", [H, importlib.import_module("baselines.hasac_mpe")])
def test_rules_and_back_end_reach_the_environment(script: Any) -> None:
    def env(**changes: Any) -> Any:
        return script.make_env(dataclasses.replace(script.Args(), scenario="simple_speaker_listener", **changes), 1)

    old, new, package = env(rules="harl"), env(), env(env_backend="mpe2")
    assert (old.rules, old.action_dims) == ("harl", [5, 5]) and (new.rules, new.action_dims) == ("mpe2", [3, 5])
    assert [type(each).__name__ for each in (old, new, package)] == ["MPEVecEnv", "MPEVecEnv", "MPE2VecEnv"]


@pytest.mark.parametrize("scenario", ["simple_spread", "simple_reference", "simple_speaker_listener"])
def test_preset_is_the_papers(scenario: str) -> None:
    args = dataclasses.asdict(cli.parse(H.Args, H.PRESETS, H.LIMITS, ["--scenario", scenario]))
    assert {key: args[key] for key in PAPER} == PAPER
    assert sorted(H.PRESETS) == sorted(H.NUM_AGENTS)
    assert H.make_env(H.Args(scenario=scenario), 1).num_agents == H.NUM_AGENTS[scenario]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scenario", "simple_tag"], ["--scenario simple_tag", "simple_spread", "simple_reference"]),
        (["--rules", "old"], ["--rules old", "mpe2", "harl"]),
        (["--rules", "harl", "--env-backend", "mpe2"], ["--rules harl", "--env-backend batched"]),
        (["--obs-mode", "local"], ["--obs-mode"]),
    ],
)
def test_refused_in_one_line(
    argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = MPE.usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_its_back_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith("mpe2.")]:  # of an earlier test
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mpe2", None)  # importing it raises ImportError
    monkeypatch.chdir(tmp_path)
    line = MPE.usage_error(capsys, ["--env-backend", "mpe2"])
    assert "--env-backend mpe2" in line and "pip install mpe2" in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_script_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = train(tmp_path, {}, total_timesteps=40)
    line = usage_error(capsys, ["--resume", str(folder)])
    assert f"--resume {folder}" in line and "does not fit this script" in line


# ---- the run


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    way: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGTERM inside a round of updates, in the middle of an episode."""
    reference = train(tmp_path / "reference", way)
    with monkeypatch.context() as patch:
        MPE.on_update(patch, 22, lambda learner, buffer: signal.raise_signal(signal.SIGTERM))
        assert H.main(MPE.command(tmp_path / "stopped", **way)) == 143
    folder = folder_of(tmp_path / "stopped", way)
    saved = checkpoint.load(step_files(folder)[-1])
    assert saved["progress"]["global_step"] % (25 * 4) != 0 or saved["progress"]["pending_updates"] > 0
    assert H.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, reference)


def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path: Path) -> None:
    steps = dict(total_timesteps=2400, save_every=400)
    reference = MPE.train(tmp_path / "reference", **steps)
    folder = MPE.folder_of(tmp_path / "killed")
    words = MPE.script(*MPE.command(tmp_path / "killed", **steps))
    killed = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (len(step_files(folder)) and metrics(folder)[-1]["global_step"] > 500):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and not (folder / "finished.json").exists()
    continued = MPE.run_script("--resume", folder)
    assert continued.returncode == 0, continued.stderr
    assert_same_run(folder, reference)


def test_looking_leaves_training_bit_equal(tmp_path: Path) -> None:
    plain = MPE.train(tmp_path / "plain")
    looking = dict(eval_every=120, eval_episodes=4, eval_envs=1, log_every=20, capture_video=True, profile=True)
    looked_at = MPE.train(tmp_path / "looked_at", **looking)
    state, expected = (training_state(step_files(f)[-1]) for f in (looked_at, plain))
    assert differences(state, expected) == [] and state["learner"]["update_step"] == 150


def test_both_back_ends_train_alike(tmp_path: Path) -> None:
    """The package and our numpy version differ in rounding only: same warm-up, nearly the same first updates."""
    ours, theirs = (metrics(train(tmp_path, way, total_timesteps=240, log_every=20)) for way in ({}, PACKAGE))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    compared = 0
    for one, other in zip(ours, theirs):
        for key in one.keys() - {"wall_s", "charts/SPS", "charts/updates_per_s"}:
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-3), key
            compared += key in ("charts/episodic_return", "losses/critic", "eval/return_mean")
    assert compared >= 4


VARIANTS: list[dict[str, Any]] = [
    dict(credit="share"),
    dict(credit="local", num_coalitions=2, shapley="antithetic"),
    dict(credit="none", mini_epochs=2),
    dict(credit_actions="policy", shapley="exact"),
    dict(rules="harl", marginal="value", box_cox=False),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
@pytest.mark.parametrize("scenario", ["simple_spread", "simple_speaker_listener"])
def test_every_variant_trains(scenario: str, variant: dict[str, Any], tmp_path: Path) -> None:
    values = TINY | dict(runs_dir=tmp_path, scenario=scenario, total_timesteps=240, eval_every=240) | variant
    assert H.main(flags(values)) == 0
    (newest,) = tmp_path.rglob("step_240.pt")
    state = training_state(newest)
    assert state["learner"]["update_step"] >= 10
    assert all(np.isfinite(tensor.numpy()).all() for tensor in state["learner"]["actors"].values())


# ---- what it leaves behind


def test_folder_and_metrics(tmp_path: Path) -> None:
    done = MPE.run_script(*MPE.command(tmp_path, profile=True))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folder = MPE.folder_of(tmp_path)
    files = {path.name for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert files == {
        *("config.json", "metrics.jsonl", "eval.csv", "finished.json"),
        *("step_400.pt", "step_800.pt", "best.pt", "policy.safetensors"),
    }
    documented = re.findall(r"^\|\s*`(\w+/[^`]+)`\s*\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    written = set().union(*metrics(folder)) - {"global_step", "update_step", "wall_s"}
    assert {re.sub(r"_\d+$", "_<i>", key) for key in written} == set(documented) - {"eval/success_rate"}
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["rules"] == "mpe2" and "his_mpe.py --scenario" in config["command"]
    lengths = {line["charts/episodic_length"] for line in metrics(folder) if "charts/episodic_length" in line}
    assert lengths == {25.0}
    shares = dict(re.findall(r"^([a-z ]+?) +[\d.]+ s +([\d.]+) %$", done.stdout, re.MULTILINE))
    assert {"environment", "acting", "storing", "updates", "evaluation", "checkpoints", "everything else"} == set(
        shares
    )
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.5)
    assert float(shares["updates"]) > float(shares["acting"])


def test_video_shows_an_episode(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = MPE.train(tmp_path, total_timesteps=240, eval_every=240, capture_video=True)
    (video,) = (folder / "videos").iterdir()
    frames = np.stack([np.asarray(frame, dtype=int) for frame in imageio.mimread(video)])
    assert len(frames) == 25 and frames.shape[1:] == (480, 480, 3)
    assert all(np.abs(after - before).max() > 30 for before, after in zip(frames, frames[1:]))
    assert H.main(["--evaluate", str(folder), "--eval-episodes", "6"]) == 0
    assert len(re.findall(r"^episode \d+: return -?[\d.]+, length 25$", capsys.readouterr().out, re.MULTILINE)) == 6
