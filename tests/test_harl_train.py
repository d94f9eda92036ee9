"""`experiments.harl_train` without HARL itself: what HARL's runner would see of our environments, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.mamujoco import MAMuJoCoVecEnv
from common.mpe import MPEVecEnv
from experiments import harl_driver, harl_train


def test_environment_is_the_one_underneath() -> None:
    """HARL's arrays (E, N, .) hold, step for step, what a second copy of our environment returns."""
    ours, theirs = MPEVecEnv("simple_spread", 3, "harl"), harl_train.HarlEnv(MPEVecEnv("simple_spread", 3, "harl"), 7)
    (obs, state), (seen, shared, available) = ours.reset(7), theirs.reset()
    rng = np.random.default_rng(0)
    for step in range(1, 27):
        for agent in range(3):
            np.testing.assert_array_equal(seen[:, agent], obs[agent])
            np.testing.assert_array_equal(shared[:, agent], state)
        assert list(available) == [None] * 3
        actions = rng.uniform(0, 1, (3, 3, 5)).astype(np.float32)
        result = ours.step([actions[:, agent] for agent in range(3)])
        seen, shared, rewards, dones, infos, available = theirs.step(actions)
        obs, state = result.obs, result.state
        np.testing.assert_array_equal(rewards[..., 0], np.repeat(result.reward[:, None], 3, axis=1))
        timed_out = step == 25
        assert dones.shape == (3, 3) and (dones == timed_out).all()
        assert [[info["bad_transition"] for info in of_agents] for of_agents in infos] == [[timed_out] * 3] * 3


def test_a_fall_is_no_time_out() -> None:
    theirs = harl_train.HarlEnv(MAMuJoCoVecEnv("Walker2d-2x3", 4), 1)
    theirs.reset()
    rng = np.random.default_rng(0)
    for _ in range(300):
        *_, dones, infos, _ = theirs.step(rng.uniform(-1, 1, (4, 2, 3)).astype(np.float32))
        if dones.any():
            break
    assert dones.any() and not any(info["bad_transition"] for of_agents in infos for info in of_agents)


def test_every_reset_starts_other_episodes() -> None:
    theirs = harl_train.HarlEnv(MPEVecEnv("simple_spread", 2, "harl"), 7)
    starts = [theirs.reset()[0] for _ in range(3)]
    assert len({episode.tobytes() for start in starts for episode in start}) == 6


@pytest.mark.parametrize(
    ("scenario", "folder"),
    [
        ("HalfCheetah-2x3", "mamujoco/HalfCheetah-v2-2x3"),
        ("ManyAgentSwimmer-10x2", "mamujoco/manyagent_swimmer-10x2"),
        ("simple_spread", "pettingzoo_mpe/simple_spread_v2-continuous"),
        ("simple_speaker_listener", "pettingzoo_mpe/simple_speaker_listener_v3-continuous"),
    ],
)
def test_configuration_is_that_of_the_task(scenario: str, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned_configs" / folder / "happo/config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"main_args": {}}))
    assert harl_driver.tuned_config(str(tmp_path), scenario, "happo") == {"main_args": {}}


def test_evaluations_are_read(tmp_path: Path) -> None:
    (tmp_path / "progress.txt").write_text("100000,-6.25\n200000,12.5\n")
    assert harl_train.evaluations(tmp_path / "progress.txt") == [(100_000, -6.25), (200_000, 12.5)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere happo HalfCheetah-2x3 --out x.csv", "nowhere: no checkout of HARL there"),
        ("nowhere ppo HalfCheetah-2x3 --out x.csv", "ppo"),
        ("nowhere happo ShadowHandOver --out x.csv", "ShadowHandOver"),
        ("nowhere happo HalfCheetah-2x3", "--out"),
    ],
)
def test_mistakes_are_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        harl_train.main(words.split())
    error = capsys.readouterr().err
    assert failure.value.code == 2 and said in error and error.count("\n") == 1
