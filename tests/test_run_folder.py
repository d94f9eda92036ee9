"""What a run leaves behind and says: config.json, metrics, TensorBoard, eval.csv, checkpoints, videos, a full disk."""

import csv
import json
import re
import resource
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from script_helpers import ROOT, TINY, command, folder_of, metrics, run_script, step_files, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import his_mamujoco as H
from common import checkpoint
from common.vecenv import RenderError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with four checkpoints, of which two are to stay."""
    return train(tmp_path_factory.mktemp("run"), save_every=200)


# ---- files


def test_what_a_run_folder_holds(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        *("config.json", "metrics.jsonl", "eval.csv", "finished.json"),
        *(f"checkpoints/{name}" for name in ("step_600.pt", "step_800.pt", "best.pt", "policy.safetensors")),
    }
    assert (folder / "videos").is_dir()


def test_config_json_is_enough_to_repeat_the_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert set(config) == {"args", "command", "git_commit", "packages", "host"}
    assert set(config["args"]) == set(H.Args.__dataclass_fields__)
    assert {key: config["args"][key] for key in TINY} == TINY | {"hidden_sizes": [32, 32], "save_every": 200}
    assert config["args"]["n_step"] == 20 and config["args"]["actor_lr"] == 5e-4  # of the preset
    assert config["command"] == "python his_mamujoco.py " + " ".join(command(folder.parents[2], save_every=200))
    assert config["packages"]["torch"] == torch.__version__ and "mujoco" in config["packages"]
    assert config["host"]["torch_threads"] == 1


def test_the_folder_is_named_after_what_was_run(tmp_path: Path) -> None:
    def name(**values: Any) -> str:
        runs = tmp_path / str(len(list(tmp_path.iterdir())))
        assert H.main(command(runs, total_timesteps=8, eval_every=8, **values)) == 0
        (config,) = runs.rglob("config.json")
        return str(config.parent.relative_to(runs))

    assert name() == "his_mamujoco/Walker2d-2x3/seed3"
    assert name(seed=5, run_name="first") == "his_mamujoco/Walker2d-2x3/seed5-first"
    local = name(obs_mode="local", obs_neighbors=2)
    assert re.fullmatch(r"his_mamujoco/Walker2d-2x3/seed3-.*local.*2.*", local), local


# ---- numbers


def general(key: str) -> str:
    """A key with the agent's number replaced: losses/actor_3 -> losses/actor_<i>."""
    return re.sub(r"_\d+$", "_<i>", key)


def test_the_keys_are_those_of_the_documentation(folder: Path) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    documented = re.findall(r"^\|\s*`(\w+/[^`]+)`\s*\|\s*\S", text, re.MULTILINE)
    assert len(documented) == len(set(documented)) > 10
    written = set().union(*metrics(folder)) - {"global_step", "update_step", "wall_s"}
    assert {general(key) for key in written} == set(documented) - {"eval/success_rate"}  # these tasks have no success
    for prefix in ("losses/actor", "losses/alpha", "losses/entropy", "credit/shapley", "diag/grad_norm_history"):
        assert {f"{prefix}_0", f"{prefix}_1"} <= written and f"{prefix}_2" not in written


def test_metrics_say_when_and_are_finite(folder: Path) -> None:
    lines = metrics(folder)
    assert len(lines) == 8 + 4  # every 100 steps, and evaluations every 200
    for key in ("global_step", "update_step", "wall_s"):
        values = [line[key] for line in lines]
        assert values == sorted(values)
    last = next(line for line in reversed(lines) if "losses/critic" in line)
    assert (last["global_step"], last["update_step"]) == (800, 150)
    assert all(isinstance(value, (int, float)) and np.isfinite(value) for line in lines for value in line.values())
    assert last["credit/efficiency_gap"] < 1e-3 * max(1.0, abs(last["losses/q_mean"]))
    assert not any(key.startswith(("losses", "credit", "diag")) for line in lines[:3] for key in line)  # warm-up


def test_tensorboard_holds_the_same_numbers(folder: Path) -> None:
    events = EventAccumulator(str(folder)).Reload()
    lines = metrics(folder)
    keys = set().union(*lines) - {"global_step", "update_step", "wall_s"}
    assert set(events.Tags()["scalars"]) == keys
    for key in keys:
        shown = [(event.step, event.value) for event in events.Scalars(key)]
        expected = [(line["global_step"], float(np.float32(line[key]))) for line in lines if key in line]
        assert shown == expected, key


def test_eval_csv_has_the_same_number_of_episodes_of_each_evaluation(tmp_path: Path) -> None:
    folder = train(tmp_path, total_timesteps=400, eval_episodes=6, eval_envs=3)
    with open(folder / "eval.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["global_step", "episode", "return", "length"]
    assert [(row["global_step"], row["episode"]) for row in rows] == [
        (s, str(i)) for s in ("200", "400") for i in range(6)
    ]
    # Two episodes of each environment, environment by environment, where one that starts anew starts elsewhere.
    assert len({row["return"] for row in rows}) == len(rows)
    for line in metrics(folder):
        if "eval/return_mean" in line:
            returns = [float(row["return"]) for row in rows if int(row["global_step"]) == line["global_step"]]
            assert line["eval/return_mean"] == pytest.approx(np.mean(returns), rel=1e-12)
            assert line["eval/return_std"] == pytest.approx(np.std(returns), rel=1e-12)


def test_the_best_policy_stays(folder: Path) -> None:
    means = {m["global_step"]: m["eval/return_mean"] for m in metrics(folder) if "eval/return_mean" in m}
    best = max(means, key=lambda step: means[step])
    saved = checkpoint.load(folder / "checkpoints/best.pt")
    tensors, about = checkpoint.load_policy(folder / "checkpoints/policy.safetensors")
    assert saved["progress"]["global_step"] == best == int(about["global_step"])
    assert saved["progress"]["best_return"] == means[best] == float(about["eval_return_mean"])
    assert "buffer" not in saved
    assert tensors.keys() == saved["learner"]["actors"].keys()
    assert all(torch.equal(tensors[name], saved["learner"]["actors"][name]) for name in tensors)


# ---- output


def test_without_a_terminal_one_plain_line_an_evaluation(tmp_path: Path) -> None:
    done = run_script(*command(tmp_path, total_timesteps=400))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "\r" not in done.stdout and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    evaluations = [line for line in lines if "return" in line]
    assert len(evaluations) == 2
    for line, step in zip(evaluations, (200, 400)):
        (mean,) = [
            m["eval/return_mean"]
            for m in metrics(folder_of(tmp_path))
            if m["global_step"] == step and "eval/return_mean" in m
        ]
        assert f"step {step}/400" in line and f"{mean:.1f}" in line
    assert any("replay buffer" in line and "GiB" in line for line in lines)
    assert any(str(folder_of(tmp_path)) in line for line in lines)
    assert len(lines) == 4


# ---- videos


def test_a_machine_that_cannot_draw_costs_one_line_and_the_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def render(self: Any, *size: int, **named: int) -> np.ndarray:
        raise RenderError("cannot render: install libegl1")

    monkeypatch.setattr(H.MAMuJoCoVecEnv, "render", render)
    folder = train(tmp_path, total_timesteps=400, capture_video=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "--capture-video" in line or "render" in line]
    assert len(lines) == 1 and "install libegl1" in lines[0]
    assert list((folder / "videos").iterdir()) == []
    assert len({m["global_step"] for m in metrics(folder) if "eval/return_mean" in m}) == 2


def require_drawing() -> None:
    """Skip where there is no OpenGL."""
    env = H.MAMuJoCoVecEnv(TINY["scenario"], 1)
    env.reset(0)
    try:
        env.render()
    except RenderError as error:
        pytest.skip(str(error))
    finally:
        env.close()


def test_videos_show_the_evaluated_episodes(tmp_path: Path) -> None:
    require_drawing()
    done = run_script(*command(tmp_path, total_timesteps=400, capture_video=True))
    folder = folder_of(tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["step_200.mp4", "step_400.mp4"]
    with open(folder / "eval.csv", newline="") as file:
        first = {row["global_step"]: int(row["length"]) for row in csv.DictReader(file) if row["episode"] == "0"}
    fps = H.MAMuJoCoVecEnv(TINY["scenario"], 1).render_fps
    for step, length in first.items():
        frames = np.stack([np.asarray(f, dtype=int) for f in imageio.mimread(folder / f"videos/step_{step}.mp4")])
        stride = fps // 25
        assert len(frames) == -(-length // stride) >= 3, (len(frames), length)
        assert frames.shape[1:] == (480, 480, 3)
        assert all(np.abs(after - before).max() > 30 for before, after in zip(frames, frames[1:]))


def test_evaluate_writes_a_video(tmp_path: Path) -> None:
    require_drawing()
    folder = train(tmp_path, total_timesteps=40, eval_every=40)
    assert H.main(["--evaluate", str(folder), "--capture-video"]) == 0
    (video,) = (folder / "videos").iterdir()
    assert len(imageio.mimread(video)) >= 3


# ---- a full disk


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first checkpoint on, no file may grow beyond 250 kB, less than a checkpoint and more than a log."""
    first: dict[Path, bytes] = {}
    original, limits = H.act_and_store, resource.getrlimit(resource.RLIMIT_FSIZE)

    def act_and_store(run: Any) -> None:
        if not first and step_files(folder_of(tmp_path)):
            first.update({path: path.read_bytes() for path in step_files(folder_of(tmp_path))})
            resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, limits[1]))
        original(run)

    monkeypatch.setattr(H, "act_and_store", act_and_store)
    try:
        folder = train(tmp_path, save_every=200, total_timesteps=800)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = capsys.readouterr().out.splitlines()
    for step in (400, 600, 800):
        assert sum(f"step_{step}.pt" in line for line in lines) == 1, lines
    assert {path: path.read_bytes() for path in step_files(folder)} == first
    ((path, content),) = first.items()
    assert path.name == "step_200.pt" and len(content) > 250_000
    assert checkpoint.load(path)["progress"]["global_step"] == 200
    assert not list(folder.rglob("*.tmp"))
    assert metrics(folder)[-1]["global_step"] == 800
