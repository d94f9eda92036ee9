"""The command line of his_mamujoco.py: presets, one-line refusals, help, --evaluate."""

import ast
import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_helpers import (
    ROOT,
    SCRIPT,
    TINY,
    command,
    flags,
    folder_of,
    run_script,
    step_files,
    train,
    training_state,
    tree_bytes,
    usage_error,
)

import his_mamujoco as H
from common import checkpoint, cli
from common.streams import Streams

# Hyperparameters of the paper: Table 1 (off-policy, common), Table 5 (a scenario), Table 6 (HIS).
COMMON = dict(
    warmup_steps=10_000,
    buffer_size=1_000_000,
    tau=0.005,
    hidden_sizes=(256, 256),
    train_interval=50,
    update_per_train=1,
    policy_frequency=2,
    mini_epochs=1,
    eval_every=10_000,
    eval_episodes=40,
    eval_envs=20,
    total_timesteps=10_000_000,
    num_envs=10,
    critic_lr=1e-3,
    gamma=0.99,
    num_coalitions=1,
    beta=10.0,
)
FIXED, TUNED = ("auto_alpha", False, "alpha", 0.2), ("auto_alpha", True, "alpha_lr", 3e-4)
TABLE_5 = {
    "Ant-2x4": (3e-4, 2200, 5, FIXED),
    "Ant-4x2": (3e-4, 1000, 5, FIXED),
    "Ant-8x1": (3e-4, 2200, 5, FIXED),
    "Walker2d-2x3": (5e-4, 1000, 20, FIXED),
    "Walker2d-6x1": (5e-4, 1000, 20, FIXED),
    "HalfCheetah-2x3": (1e-3, 1000, 10, TUNED),
    "HalfCheetah-3x2": (1e-3, 1000, 10, TUNED),
    "HalfCheetah-6x1": (1e-3, 1000, 10, TUNED),
    "ManyAgentSwimmer-10x2": (1e-3, 1000, 10, TUNED),
}
# What makes the method the paper's one.
METHOD = dict(
    credit="his",
    credit_actions="history",
    credit_coef=1.0,
    shapley="permutation",
    marginal="difference",
    box_cox=True,
    boxcox_scale="none",
    floor="max_minus_beta",
    obs_mode="full",
)


def parsed(*argv: str) -> H.Args:
    """The arguments that this command line gives."""
    return cli.parse(H.Args, H.PRESETS, H.LIMITS, argv, prog="his_mamujoco.py", resumable=H.RESUMABLE)


# ---- presets


def test_the_nine_scenarios() -> None:
    assert sorted(H.PRESETS) == sorted(TABLE_5) == sorted(H.NUM_AGENTS)


@pytest.mark.parametrize("scenario", TABLE_5)
def test_preset_is_the_papers(scenario: str) -> None:
    actor_lr, batch_size, n_step, (auto, tuned, name, value) = TABLE_5[scenario]
    expected = (
        COMMON | METHOD | dict(actor_lr=actor_lr, batch_size=batch_size, n_step=n_step) | {auto: tuned, name: value}
    )
    args = dataclasses.asdict(parsed("--scenario", scenario))
    assert {key: args[key] for key in expected} == expected


def test_any_flag_overrides_the_preset() -> None:
    args = parsed("--scenario", "Ant-2x4", "--batch-size", "7", "--auto-alpha")
    assert (args.batch_size, args.auto_alpha, args.n_step, args.actor_lr) == (7, True, 5, 3e-4)


# ---- refusals

REFUSED = {
    "scenario": (["--scenario", "HalfCheetah-5x1"], ["--scenario", "HalfCheetah-5x1", *TABLE_5]),
    "unknown flag": (["--gama", "0.9"], ["--gama", "--gamma"]),
    "not a number": (["--gamma", "high"], ["--gamma", "high"]),
    "missing value": (["--gamma"], ["--gamma"]),
    "gamma": (["--gamma", "1.5"], ["--gamma", "1.5", "between 0 and 1"]),
    "batch size": (["--batch-size", "0"], ["--batch-size", "0", "at least 1"]),
    "learning rate": (["--actor-lr", "nan"], ["--actor-lr", "nan"]),
    "hidden sizes": (["--hidden-sizes", "256", "0"], ["--hidden-sizes", "256 0"]),
    "choice": (["--credit", "shap"], ["--credit", "shap", "his", "share", "local", "none"]),
    "antithetic": (
        ["--shapley", "antithetic", "--num-coalitions", "3"],
        ["--num-coalitions", "3", "even", "antithetic"],
    ),
    "exact": (["--scenario", "ManyAgentSwimmer-10x2", "--shapley", "exact"], ["--shapley", "exact", "8", "10"]),
    "evaluation": (["--eval-episodes", "30"], ["--eval-episodes", "30", "multiple", "20"]),
    "box-cox equal": (["--boxcox-low", "1", "--boxcox-high", "1"], ["--boxcox-low", "1.0", "--boxcox-high"]),
    "box-cox order": (["--boxcox-low", "1", "--boxcox-high", "0.5"], ["--boxcox-low", "1.0", "--boxcox-high", "0.5"]),
    "buffer too small": (["--buffer-size", "9"], ["--buffer-size", "9", "--num-envs", "10"]),
    "buffer too large": (["--buffer-size", str(10**12)], ["--buffer-size", str(10**12), "GiB"]),
    "run name": (["--run-name", "a/b"], ["--run-name", "a/b"]),
    "resume nothing": (["--resume", "nowhere"], ["--resume", "nowhere"]),
    "evaluate nothing": (["--evaluate", "nowhere"], ["--evaluate", "nowhere"]),
    "resume and evaluate": (["--resume", "a", "--evaluate", "b"], ["--resume", "--evaluate"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_created(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, words = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    line = usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_cuda_is_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert "--device cuda" in usage_error(capsys, ["--device", "cuda"])
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_as_the_shell_sees_it(tmp_path: Path) -> None:
    done = run_script("--runs-dir", tmp_path / "runs", "--gamma", "1.5")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"his_mamujoco\.py: error: --gamma 1\.5: [^\n]+\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("factor", "fits"), [(1.01, True), (0.99, False)])
def test_the_replay_buffer_must_fit_the_machine(
    factor: float, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Walker2d-2x3: state 17, two observations of 19, both twice; 6 actions, reward and two flags; float32."""
    size = 4 * 1_000_000 * (2 * (17 + 2 * 19) + 6 + 3)
    sysconf = os.sysconf
    pages = int(factor * size / sysconf("SC_PAGE_SIZE"))
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else sysconf(name))
    argv = command(tmp_path, buffer_size=1_000_000, total_timesteps=8, eval_every=1000, eval_episodes=1)
    if fits:
        assert H.main(argv) == 0
        assert f"{size / 2**30:.2f} GiB" in capsys.readouterr().out
    else:
        line = usage_error(capsys, argv)
        assert "--buffer-size 1000000" in line and f"{size / 2**30:.1f} GiB" in line
        assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = dict(total_timesteps=40)
    folder = train(tmp_path, **short)
    before = tree_bytes(tmp_path)
    line = usage_error(capsys, command(tmp_path, **short))
    assert f"--resume {folder}" in line and "--run-name" in line
    assert tree_bytes(tmp_path) == before
    assert H.main(command(tmp_path, **short, run_name="again")) == 0
    assert step_files(folder.with_name("seed3-again"))


# ---- help


def documented_fields() -> dict[str, str]:
    """The docstring below each field of `Args`, from the source; those that it inherits last, as in `--help`."""
    found = {}
    for path, name in ((SCRIPT, "Args"), (ROOT / "common/readings.py", "Readings")):
        tree = ast.parse(path.read_text())
        body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
        for node, after in zip(body, body[1:] + [ast.Pass()]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.islower():
                text = after.value if isinstance(after, ast.Expr) else None
                found[node.target.id] = str(text.value) if isinstance(text, ast.Constant) else ""
    return found


def test_every_field_is_documented_and_help_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = documented_fields()
    assert [name for name, text in fields.items() if len(text) < 10] == []
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as stop:
        H.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out

    def squeezed(text: str) -> str:
        return re.sub(r"[^\w]", "", re.sub(r"\x1b\[[0-9;]*m", "", text))

    flags_shown = set(re.findall(r"--[a-z][a-z0-9-]*", shown))
    assert {f"--{name.replace('_', '-')}" for name in fields} <= flags_shown
    assert list(fields) == [field.name for field in dataclasses.fields(H.Args)]  # after parse has put them in order
    assert [name for name, text in fields.items() if squeezed(text) not in squeezed(shown)] == []


# ---- --evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two evaluations."""
    return train(tmp_path_factory.mktemp("trained"), total_timesteps=400)


def returns_by_hand(folder: Path, args: H.Args) -> list[float]:
    """Deterministic returns of the saved policy, one environment after the other, written without the script's loop."""
    tensors, _ = checkpoint.load_policy(folder / "checkpoints/policy.safetensors")
    env = H.make_env(args, args.eval_envs)
    actors = torch.nn.ModuleList(
        [H.Actor(obs_dim, dim, args.hidden_sizes) for obs_dim, dim in zip(env.obs_dims, env.action_dims)]
    )
    actors.load_state_dict(tensors)
    quota = args.eval_episodes // args.eval_envs
    episodes: list[list[float]] = [[0.0] for _ in range(args.eval_envs)]
    obs, _ = env.reset(Streams(args.seed, torch.device("cpu")).evaluation)
    with torch.no_grad():
        while min(map(len, episodes)) <= quota:
            step = env.step([torch.tanh(a(torch.from_numpy(o))[0]).numpy() for a, o in zip(actors, obs)])
            obs = step.obs
            for i, reward in enumerate(step.reward.tolist()):
                episodes[i][-1] += reward
                if step.terminated[i] or step.truncated[i]:
                    episodes[i].append(0.0)
    return [value for each in episodes for value in each[:quota]]


def test_evaluate_prints_mean_deviation_and_each_return(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree_bytes(trained)
    capsys.readouterr()
    assert H.main(["--evaluate", str(trained), "--eval-episodes", "6"]) == 0
    out = capsys.readouterr().out
    args = parsed("--evaluate", str(trained), "--eval-episodes", "6")
    assert (args.eval_episodes, args.eval_envs, args.hidden_sizes) == (6, 2, TINY["hidden_sizes"])
    expected = returns_by_hand(trained, args)
    shown = [float(value) for value in re.findall(r"^episode \d+: return (-?[\d.]+)", out, re.MULTILINE)]
    assert len(shown) == 6 and np.abs(np.subtract(shown, expected)).max() <= 0.0051
    last = out.splitlines()[-1]
    assert f"{np.mean(expected):.2f}" in last and f"{np.std(expected):.2f}" in last
    assert tree_bytes(trained) == before


def test_evaluate_uses_the_best_policy_and_takes_another_seed(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split(",") for line in (trained / "eval.csv").read_text().splitlines()[1:]]
    means = {step: np.mean([float(row[2]) for row in rows if row[0] == step]) for step in {row[0] for row in rows}}
    best = max(means, key=lambda step: means[step])
    outputs = []
    for seed in ("3", "4"):
        assert H.main(["--evaluate", str(trained), "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert f"step {best}" in outputs[0] and f"{means[best]:.2f}" in outputs[0]
    assert outputs[0] != outputs[1]


def test_evaluate_refuses_another_network(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--hidden-sizes" in usage_error(capsys, ["--evaluate", str(trained), "--hidden-sizes", "8", "8"])


def test_a_config_of_other_networks_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, total_timesteps=40)
    config = json.loads((folder / "config.json").read_text())
    config["args"]["hidden_sizes"][-1] += 1
    (folder / "config.json").write_text(json.dumps(config))
    for flag in ("--evaluate", "--resume"):
        error = usage_error(capsys, [flag, str(folder)])
        assert "does not fit the run's config.json" in error and "size mismatch" in error, error


def test_evaluate_of_a_run_without_a_policy_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, total_timesteps=40)
    (folder / "checkpoints/policy.safetensors").unlink()
    assert "policy.safetensors" in usage_error(capsys, ["--evaluate", str(folder)])


# ---- flags that say what they cannot do


def test_compile_on_a_cpu_and_track_without_wandb_are_said_and_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    plain = train(tmp_path / "plain", total_timesteps=280)
    capsys.readouterr()
    folder = train(tmp_path / "flags", total_timesteps=280, compile=True, track=True, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert sum("--compile" in line for line in lines) == 1 and sum("--track" in line for line in lines) == 1
    state, expected = (training_state(step_files(f)[-1]) for f in (folder, plain))
    assert torch.equal(state["learner"]["critic"]["q1.0.weight"], expected["learner"]["critic"]["q1.0.weight"])


VARIANTS: list[dict[str, Any]] = [
    dict(credit="share"),
    dict(credit="local", num_coalitions=2, shapley="antithetic"),
    dict(credit="none", auto_alpha=False, mini_epochs=2),
    dict(credit_actions="policy", mini_epochs=2, shapley="exact"),
    dict(
        marginal="value",
        floor="minus_beta_times_max",
        below_floor="literal",
        boxcox_scale="geometric",
        num_coalitions=3,
    ),
    dict(floor="none", box_cox=False, obs_mode="local", obs_neighbors=0),
    dict(below_floor="hard", credit_coef=0.0, alpha=0.0, auto_alpha=False, warmup_steps=0, n_step=1),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_every_variant_trains(variant: dict[str, Any], tmp_path: Path) -> None:
    """Each choice of each flag of the method runs through updates of actors, stays finite and moves the actors."""
    assert H.main(flags(TINY | dict(runs_dir=tmp_path, total_timesteps=240, eval_every=240) | variant)) == 0
    pattern = folder_of(tmp_path).name + "*"
    (folder,) = folder_of(tmp_path).parent.glob(pattern)
    state = training_state(step_files(folder)[-1])
    assert state["learner"]["update_step"] >= 10
    for name, tensor in state["learner"]["actors"].items():
        assert torch.isfinite(tensor).all(), name
    moved = {int(name.split(".")[0]) for name in state["learner"]["actors"]} & {
        i for i in (0, 1) if state["learner"][f"actor_optimizer_{i}"]["state"]
    }
    assert moved == {0, 1}
