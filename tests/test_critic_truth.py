"""experiments/critic_truth.py against values known in closed form, and against the episodes that a run evaluates."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_helpers import flags, step_files
from test_ideas import TINY

import his_mpe
from common import checkpoint
from common.mpe import MPEVecEnv
from experiments import critic_truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs_dir = tmp_path_factory.mktemp("truth")
    assert his_mpe.main(flags(TINY | {"runs_dir": runs_dir, "scenario": "simple_spread"})) == 0
    return runs_dir / "his_mpe/simple_spread/seed3"


@pytest.mark.parametrize("idea", [None, "terminal"])
def test_a_constant_reward_and_a_constant_critic(
    folder: Path, idea: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: dict[str, Any] = checkpoint.load(step_files(folder)[-1])
    saved["learner"]["log_alpha"].fill_(-40.0)  # no entropy bonus
    for tensor in saved["learner"]["critic"].values():
        tensor.fill_(7.0 if tensor.shape == (1,) else 0.0)
    if idea:
        saved["args"]["idea"] = idea
    monkeypatch.setattr(MPEVecEnv, "_reward", lambda env, to_landmarks: np.full(env.num_envs, -2.0))
    truth = critic_truth.measure(saved, 5, 10)
    steps = 25 if idea else 35
    assert truth.critic == pytest.approx(np.full(steps, 7.0)) and truth.reward == pytest.approx(np.full(steps, -2.0))
    left = 25 - np.arange(25)
    expected = -2 * (1 - 0.99**left) / 0.01 if idea else np.full(35, -200.0)
    assert truth.true == pytest.approx(expected, rel=1e-6 if idea else 1e-3)


def test_entropy_counts_at_the_critics_own_temperature(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies with a known entropy: the Gaussian's, with tanh nearly linear where they act."""
    saved: dict[str, Any] = checkpoint.load(step_files(folder)[-1])
    saved["learner"]["log_alpha"] = torch.log(torch.tensor([5.0, 6.0, 7.0, 0.3]))
    sigma = 0.01
    for name, tensor in saved["learner"]["actors"].items():
        tensor.zero_()
        if name.endswith("head.bias"):
            tensor[5:] = np.log(sigma)
    for tensor in saved["learner"]["critic"].values():
        tensor.zero_()
    monkeypatch.setattr(MPEVecEnv, "_reward", lambda env, to_landmarks: np.zeros(env.num_envs))
    truth = critic_truth.measure(saved, 50, 30)
    entropy = 0.3 * 15 * (0.5 * np.log(2 * np.pi * np.e) + np.log(sigma))  # 3 agents of 5 numbers
    assert truth.critic.mean() == pytest.approx(entropy, rel=0.01)
    # Windows of 20 steps, cut at the limit of 25: from step 0 the bonus counts at 0, 20, 25, 45, 65 ...
    beyond = sum(0.99 ** (20 * k) for k in range(100))
    for t, times in ((0, 1 + 0.99**20 + 0.99**25 * beyond), (10, 1 + 0.99**15 * beyond), (30, beyond)):
        assert truth.true[t] == pytest.approx(entropy * times, rel=0.01)


def test_within_the_limit_the_rewards_are_those_of_an_episode(folder: Path) -> None:
    saved = checkpoint.load(step_files(folder)[-1])
    truth = critic_truth.measure(saved, 20, 3)
    env = MPEVecEnv("simple_spread", 20)
    env.reset(critic_truth.SEED)
    assert truth.distance[0] == pytest.approx(np.linalg.norm(env.get_state()["positions"], axis=2).mean())
    assert -5 < truth.reward[0] < -1 and truth.distance[27] > truth.distance[1] > 0
    assert not np.allclose(truth.critic, truth.true, rtol=0.1)  # after some 100 updates


def test_it_writes_every_step_of_every_checkpoint(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "new/truth.csv"
    assert critic_truth.main([str(folder), "--episodes", "4", "--csv", str(place)]) == 0
    rows = list(csv.DictReader(place.open()))
    assert [(row["global_step"], row["t"]) for row in rows] == [
        (step, str(t)) for step in ("300", "600") for t in range(51)
    ]


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step_5.pt").write_bytes(step_files(folder)[0].read_bytes()[:-100])
    for words, message in (
        ([str(tmp_path / "none")], "no checkpoint there"),
        ([str(tmp_path)], "truncated or no checkpoint"),
        ([str(folder), "--csv", str(tmp_path)], "Is a directory"),
        ([str(folder), "--episodes", "0"], "0: must be a whole number"),
    ):
        with pytest.raises(SystemExit) as stop:
            critic_truth.main(words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and message in error
