"""`experiments.harl_train` and `harl_compare` without HARL itself: what passes between HARL's runner and our code."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onpolicy_helpers import Errand, small_args

from baselines import happo
from common.mamujoco import MAMuJoCoVecEnv
from common.mpe import MPEVecEnv
from common.streams import Streams
from experiments import harl_compare, harl_driver, harl_train


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


def test_weights_get_the_names_of_ours() -> None:
    """HARL lists a norm of the input, then for each hidden layer a linear one, its ReLU, a norm."""
    args = small_args(happo, hidden_sizes=(8, 8))
    body = [("base.feature_norm", "0"), *((f"base.mlp.fc.{i}", str(i + 1)) for i in (0, 2, 3, 5))]
    actor, critic = happo.Actor(4, 2, args).state_dict(), happo.Critic(5, args).state_dict()
    for network, prefix, head in (
        (actor, "body", ("act.action_out.fc_mean", "mean")),
        (critic, "net.0", ("v_out", "net.1")),
    ):
        places = [(theirs, f"{prefix}.{ours}") for theirs, ours in body] + [head]
        harl = {f"{theirs}.{kind}": network[f"{ours}.{kind}"] for theirs, ours in places for kind in ("weight", "bias")}
        if network is actor:
            harl["act.action_out.log_std"] = actor["log_std"]
        named = harl_driver.named_as_ours(harl, prefix)
        assert named.keys() == network.keys() and all(named[key] is network[key] for key in network)


def test_rollout_of_harls_runner() -> None:
    """Masks to ends: environment 0 goes on, 1 terminates and 2 times out at step 1."""
    masks, bad_masks = np.ones((2, 3, 3, 1))
    masks[2, 1:], bad_masks[2, 2] = 0, 0
    states = np.arange(9.0).reshape(3, 3, 1)
    critic = SimpleNamespace(share_obs=states, rewards=np.full((2, 3, 1), 7.0), masks=masks, bad_masks=bad_masks)
    actors = [SimpleNamespace(obs=states + 10 * i, actions=states[:-1] - i) for i in range(2)]
    rollout = harl_compare.rollout_of(SimpleNamespace(critic_buffer=critic, actor_buffer=actors))
    assert rollout["terminated"][..., 0].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert rollout["truncated"][..., 0].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert rollout["state"][..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert rollout["final_state"][..., 0].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert rollout["obs"][1, 2].tolist() == [5, 15] and rollout["actions"][1, 2].tolist() == [5, 4]
    buffer = happo.RolloutBuffer(Errand(3), 2, torch.device("cpu"))
    assert rollout.keys() == buffer.data.keys()


def test_how_far_apart() -> None:
    env, args = Errand(3), small_args(happo)
    a, b = (happo.Learner(env, Streams(1, torch.device("cpu")), args, torch.device("cpu")) for _ in range(2))
    assert harl_compare.apart(a, b) == (0, 0)
    with torch.no_grad():
        b.actors[-1].log_std[0] += 0.5
        list(b.critic.parameters())[-1][0] -= 0.25
    assert harl_compare.apart(a, b) == pytest.approx((0.5, 0.25))


def test_shuffles_do_not_depend_on_who_asks() -> None:
    order = harl_compare.shuffles(3)
    assert order(50).equal(order(50, generator=None)) and sorted(order(50).tolist()) == list(range(50))
    assert not order(50).equal(harl_compare.shuffles(4)(50))


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


def test_mistakes_in_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        harl_compare.main(["nowhere", "happo", "HalfCheetah-2x3"])
    assert failure.value.code == 2 and "nowhere: no checkout of HARL there" in capsys.readouterr().err
