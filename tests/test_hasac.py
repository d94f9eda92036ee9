"""baselines/hasac_*.py: little but the credit tells them from the HIS scripts, and their numbers are HARL's."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_helpers import ROOT, flags, metrics, step_files
from test_twins import parts

import baselines.hasac_mamujoco as hasac
from common import checkpoint, harl
from common.streams import Streams

BENCHMARKS = ("mpe", "mamujoco", "bidexhands")
MAX_LINES, MAX_HUNKS = 120, 8
# The statements of a HIS script that its twin has otherwise or not at all: arguments, credit, its use in the update.
MAY_DIFFER = {"Args()", "check_args", "update_actors", "ACTION_BOUND"}
MAY_DIFFER |= {"shapley_values", "historical_loss", "HistoricalCredit"}
MAY_DIFFER |= {"num_coalitions: int", "beta: float", "xi: float", "box_cox: bool"}
MAY_DIFFER |= {"credit: Literal['his', 'share', 'local', 'none']"}
SCENARIOS = {"mpe": "simple_reference", "mamujoco": "Walker2d-2x3", "bidexhands": "ShadowHandOver"}
# 200 updates: 40 vector steps of warm-up, then 20 rounds of 10.
TINY: dict[str, Any] = dict(
    seed=3,
    total_timesteps=2 * 240,
    num_envs=2,
    warmup_steps=2 * 40,
    train_interval=10,
    batch_size=32,
    hidden_sizes=(16, 16),
    buffer_size=600,
    eval_every=240,
    eval_episodes=1,
    eval_envs=1,
    log_every=100,
    save_every=1000,
)


def script(name: str) -> Any:
    return importlib.import_module(name)


# ---- the difference --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_difference_from_his_is_small(benchmark: str) -> None:
    command = ["diff", f"baselines/hasac_{benchmark}.py", f"his_{benchmark}.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    changed = [line for line in found.stdout.splitlines() if line[:1] in "<>"]
    hunks = [line for line in found.stdout.splitlines() if re.match(r"\d", line)]
    assert 60 < len(changed) <= MAX_LINES and 4 < len(hunks) <= MAX_HUNKS


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_what_differs_is_the_credit(benchmark: str) -> None:
    his, twin = parts(f"his_{benchmark}.py"), parts(f"baselines/hasac_{benchmark}.py")
    unequal = {key for key in his.keys() | twin.keys() if his.get(key) != twin.get(key)}
    assert {key for key in unequal if not key.startswith("from common import ")} == MAY_DIFFER
    assert not [word for word in ("credit", "shapley", "boxcox") if word in twin["update_actors"][0]]


# ---- presets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_his_preset_is_that_of_the_his_script(benchmark: str) -> None:
    ours, twin = script(f"his_{benchmark}"), script(f"baselines.hasac_{benchmark}")
    for scenario in ours.PRESETS:
        his = vars(parsed(ours, scenario))
        got = vars(parsed(twin, scenario, "--preset", "his"))
        assert got.pop("preset") == "his"
        assert got == {key: his[key] for key in got}


def parsed(module: Any, scenario: str, *words: str) -> Any:
    argv = ["--scenario", scenario, *words]
    return module.cli.parse(module.Args, module.PRESETS, module.LIMITS, argv)


# (environments, actor step, critic step, fixed temperature or None, gamma, batch, n-step) of HARL's tuned_configs.
ANT, WALKER, CHEETAH = (20, 1e-3, 3e-4, 0.2, 0.99), (20, 5e-4, 1e-3, 0.2, 0.99), (20, 1e-3, 1e-3, None, 0.99)
HANDS, LONG_HANDS, MPE = (20, 5e-4, 5e-4, None, 0.95), (20, 5e-4, 5e-4, None, 0.99), (20, 5e-4, 5e-4, None, 0.99)
HARL: dict[str, tuple[Any, ...]] = {
    "Ant-2x4": (*ANT, 2200, 5),
    "Ant-4x2": (*ANT, 1000, 5),
    "Ant-8x1": (*ANT, 2200, 5),
    **dict.fromkeys(("Walker2d-2x3", "Walker2d-6x1"), (*WALKER, 1000, 20)),
    **dict.fromkeys(("HalfCheetah-2x3", "HalfCheetah-3x2", "HalfCheetah-6x1"), (*CHEETAH, 1000, 10)),
    "ManyAgentSwimmer-10x2": (*CHEETAH, 1000, 10),
    **dict.fromkeys(("simple_spread", "simple_reference", "simple_speaker_listener"), (*MPE, 1000, 20)),
    "ShadowHandTwoCatchUnderarm": (20, 5e-4, 5e-4, 5e-5, 0.95, 1000, 20),
    **{
        f"ShadowHand{task}": (*HANDS, 1000, 20)
        for task in "CatchAbreast Over Pen DoorCloseInward DoorOpenInward".split()
    },
    **{
        f"ShadowHand{task}": (*LONG_HANDS, 1000, 20)
        for task in "LiftUnderarm CatchOver2Underarm DoorOpenOutward".split()
    },
}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_default_preset_is_harls(benchmark: str) -> None:
    twin = script(f"baselines.hasac_{benchmark}")
    for scenario in twin.PRESETS:
        args = parsed(twin, scenario)
        alpha = None if args.auto_alpha else args.alpha
        values = (args.num_envs, args.actor_lr, args.critic_lr, alpha, args.gamma, args.batch_size, args.n_step)
        assert values == HARL[scenario], scenario
        assert (args.preset, args.policy_frequency, args.train_interval, args.tau) == ("hasac", 1, 50, 0.005)
        assert (args.warmup_steps, args.buffer_size, args.hidden_sizes) == (10_000, 1_000_000, (256, 256))
    assert set(harl.TASKS) <= set(HARL)


def test_flags_override_the_preset_and_a_wrong_one_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(hasac, "Ant-2x4", "--actor-lr", "0.5", "--preset=his").actor_lr == 0.5
    for words, message in (
        (["--preset", "best"], "--preset best: must be one of hasac, his"),
        (["--credit", "his"], "--credit: no such flag"),
    ):
        with pytest.raises(SystemExit) as stop:
            hasac.main(words)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("hasac_mamujoco.py: error: ") and message in error


# ---- the control -----------------------------------------------------------------------------------------------------
def train(module: Any, benchmark: str, runs_dir: Path, *words: str, **values: Any) -> Path:
    """A tiny run; returns its folder."""
    scenario = SCENARIOS[benchmark]
    argv = flags(TINY | {"scenario": scenario, "runs_dir": runs_dir} | values)
    assert module.main([*argv, *words]) == 0
    task = f"BiDexMJ/{scenario}" if benchmark == "bidexhands" else scenario
    return runs_dir / module.SCRIPT / task / "seed3"


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_hasac_with_the_values_of_his_is_his_without_credit_to_the_bit(benchmark: str, tmp_path: Path) -> None:
    twin = train(script(f"baselines.hasac_{benchmark}"), benchmark, tmp_path, "--preset", "his")
    control = tmp_path / "control"
    none = next(train_control(benchmark, control).glob("seed3*"))
    loaded = [checkpoint.load_newest(folder / "checkpoints")[1] for folder in (twin, none)]
    assert [saved["learner"]["update_step"] for saved in loaded] == [200, 200]
    for part in ("learner", "buffer", "env", "obs", "state"):
        assert equal(loaded[0][part], loaded[1][part]), part
    assert (twin / "eval.csv").read_text() == (none / "eval.csv").read_text()
    ours, theirs = ([row for row in metrics(folder) if "losses/critic" in row][-1] for folder in (twin, none))
    assert ours.keys() == theirs.keys()
    same = [key for key in ours if key.startswith(("losses/", "diag/", "eval/"))]
    assert len(same) > 10 and all(ours[key] == theirs[key] for key in same)


def train_control(benchmark: str, runs_dir: Path) -> Path:
    return train(script(f"his_{benchmark}"), benchmark, runs_dir, "--credit", "none").parent


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    # the scripts' frame is that of HIS, which tests/test_resume.py takes apart; here, that it came over whole
    whole = train(hasac, "mamujoco", tmp_path / "whole", save_every=240)
    half = train(hasac, "mamujoco", tmp_path / "half", save_every=240, total_timesteps=240)
    assert hasac.main(["--resume", str(half), "--total-timesteps", "480"]) == 0
    saved = [torch.load(step_files(folder)[-1], weights_only=True) for folder in (whole, half)]
    assert equal(saved[0]["learner"], saved[1]["learner"])


def test_it_starts_as_a_script_and_names_itself(tmp_path: Path) -> None:
    words = flags(TINY | {"total_timesteps": 80, "scenario": "simple_spread", "runs_dir": tmp_path})
    command = [sys.executable, "baselines/hasac_mpe.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "hasac_mpe/simple_spread/seed3/config.json").read_text())
    assert config["command"].startswith("python baselines/hasac_mpe.py ") and config["args"]["preset"] == "hasac"


# ---- HARL's own numbers ----------------------------------------------------------------------------------------------
class Recorded:
    """Stands in for the replay buffer: hands out the recorded batches."""

    def __init__(self, record: Any):
        self.batches = []
        for update in range(2):
            part = {key: torch.tensor(record[f"batch/{key}"][update]) for key in
                    "obs state actions reward gamma terminated next_obs next_state".split()}  # fmt: skip
            self.batches.append(
                hasac.Batch(
                    obs=list(part["obs"]),
                    state=part["state"],
                    actions=torch.cat(list(part["actions"]), dim=1),
                    reward=part["reward"][:, 0],
                    discount=(part["gamma"] * (1 - part["terminated"]))[:, 0],
                    next_obs=list(part["next_obs"]),
                    next_state=part["next_state"],
                )
            )

    def sample(self, batch_size: int, generator: torch.Generator) -> Any:
        return self.batches.pop(0)


class Shapes:
    """What a learner asks of an environment."""

    num_agents, obs_dims, action_dims, state_dim = 3, [4] * 3, [2] * 3, 5


def weights_of(record: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.tensor(record[k]) for k in record if k.startswith(prefix)}


def test_two_updates_equal_those_of_harl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Critic target, losses, log-probabilities, temperatures and all weights, in a recorded order of the agents."""
    record = np.load(ROOT / "tests/data/hasac_harl.npz")
    args = parsed(hasac, "Ant-2x4", *"--auto-alpha --actor-lr 5e-4 --critic-lr 1e-3 --hidden-sizes 16 16".split())
    cpu = torch.device("cpu")
    env: Any = Shapes()
    learner = hasac.Learner(env, Streams(1, cpu), args, cpu)
    modules = {f"actor_{i}": actor for i, actor in enumerate(learner.actors)}
    modules |= {"critic": learner.critic, "target": learner.target_critic}
    for name, module in modules.items():
        module.load_state_dict(weights_of(record, f"start/{name}/"))
    buffer: Any = Recorded(record)
    seen: dict[str, Any] = {}

    def watch(name: str, key: str, take: Any) -> None:
        original = getattr(hasac, name)

        def call(*inputs: Any) -> Any:
            result = original(*inputs)
            seen[key] = take(result)
            return result

        monkeypatch.setattr(hasac, name, call)

    watch("critic_target", "target", lambda target: target.numpy().copy())
    watch("update_actors", "log_probs", lambda result: result[0].numpy().copy())
    for update in range(2):
        order = record["orders"][update].tolist()
        noise = {phase: torch.tensor(record[f"noise/{phase}"][update]) for phase in ("next", "before", "after")}
        draws = iter([*noise["next"], *noise["before"], *(noise["after"][i] for i in order[:-1])])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *args, draws=draws, **named: next(draws))
            patch.setattr(torch, "randperm", lambda n, order=order, **named: torch.tensor(order))
            found = learner.update(buffer)
        assert next(draws, None) is None
        prefix = f"update_{update}/"
        close: dict[str, Any] = dict(rtol=1e-5, atol=1e-5)
        for key in ("target", "log_probs"):
            np.testing.assert_allclose(seen[key], record[prefix + key], **close)
        np.testing.assert_allclose(float(found["losses/critic"]), record[prefix + "critic_loss"], **close)
        losses = [float(found[f"losses/actor_{i}"]) for i in range(3)]
        np.testing.assert_allclose(losses, record[prefix + "actor_losses"], **close)
        np.testing.assert_allclose(learner.log_alpha.detach(), record[prefix + "log_alpha"], **close)
        for name, module in modules.items():
            expected = weights_of(record, f"{prefix}{name}/")
            assert expected.keys() == module.state_dict().keys()
            for key, value in module.state_dict().items():
                np.testing.assert_allclose(value, expected[key], err_msg=f"{name} {key}", **close)
            moved = [(expected[k] - v).abs().max() for k, v in weights_of(record, f"start/{name}/").items()]
            assert max(moved) > 1e-6  # the comparison is of something that an update changes
