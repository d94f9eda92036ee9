"""`common.mpe` against the originals: mpe2 step by step, recorded episodes of PettingZoo 1.22.2 for the old rules."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from common.mpe import NUM_AGENTS, SCENARIOS, MPE2VecEnv, MPEVecEnv
from common.mpe_picture import AGENT_COLORS, LANDMARK_COLORS, PLAIN_COLOR
from common.vecenv import NonFiniteError, StepResult, VecEnv
from experiments import mpe_bounds

ROOT = Path(__file__).resolve().parent.parent
OLD = np.load(ROOT / "tests/data/mpe_old_rules.npz")
BACK_ENDS = (MPEVecEnv, MPE2VecEnv)
DIMS = {  # state, observations, actions; under the old rules observations and actions as padded
    ("simple_spread", "mpe2"): (54, [18, 18, 18], [5, 5, 5]),
    ("simple_reference", "mpe2"): (42, [21, 21], [15, 15]),
    ("simple_speaker_listener", "mpe2"): (14, [3, 11], [3, 5]),
    ("simple_spread", "harl"): (54, [18, 18, 18], [5, 5, 5]),
    ("simple_reference", "harl"): (42, [21, 21], [15, 15]),
    ("simple_speaker_listener", "harl"): (14, [11, 11], [5, 5]),
}


def random_actions(env: VecEnv, rng: np.random.Generator, reach: float = 1.0) -> list[np.ndarray]:
    return [rng.uniform(-reach, reach, (env.num_envs, dim)).astype(np.float32) for dim in env.action_dims]


def arrays_of(result: StepResult) -> list[np.ndarray]:
    return [*result.obs, *result.final_obs, *(x for x in result if isinstance(x, np.ndarray))]


def assert_same(a: StepResult, b: StepResult, tolerance: float = 0.0) -> None:
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


# ---- against the originals


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_equals_mpe2(scenario: str) -> None:
    """The package driven by hand: 4 environments, 30 episodes in a row with real resets, actions beyond the box too."""
    name = {"simple_speaker_listener": "simple_speaker_listener_v4"}.get(scenario, f"{scenario}_v3")
    module = importlib.import_module(f"mpe2.{name}")
    originals = [module.parallel_env(continuous_actions=True, max_cycles=25) for _ in range(4)]
    env, rng, seed = MPEVecEnv(scenario, 4), np.random.default_rng(0), 7
    obs, state = env.reset(seed)
    theirs = [original.reset(seed=seed + i)[0] for i, original in enumerate(originals)]
    names = originals[0].possible_agents
    touched = 0
    for t in range(30 * 25):
        for i, original in enumerate(originals):
            expected = [theirs[i][n] for n in names]
            assert [e.shape[0] for e in expected] == env.obs_dims
            for agent, e in enumerate(expected):
                np.testing.assert_allclose(obs[agent][i], e, rtol=0, atol=1e-5)
            np.testing.assert_allclose(state[i], original.state(), rtol=0, atol=1e-5)
        actions = random_actions(env, rng, reach=1.3)
        step = env.step(actions)
        obs, state = step.obs, step.state
        for i, original in enumerate(originals):
            box = {n: np.clip((a[i] + 1) / 2, 0, 1).astype(np.float32) for n, a in zip(names, actions)}
            theirs[i], rewards, terminated, truncated, _ = original.step(box)
            assert step.reward[i] == pytest.approx(sum(rewards.values()), rel=1e-5, abs=1e-5)
            assert not step.terminated[i] and not any(terminated.values())
            assert step.truncated[i] == any(truncated.values()) == ((t + 1) % 25 == 0)
            touched += len(set(rewards.values())) > 1  # an agent that collides gets less than another
            for agent, n in enumerate(names):
                np.testing.assert_allclose(step.final_obs[agent][i], theirs[i][n], rtol=0, atol=1e-5)
            if step.truncated[i]:
                theirs[i] = original.reset()[0]
    assert touched > 100 or scenario != "simple_spread"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_back_ends_are_equal(scenario: str) -> None:
    ours, package, rng = MPEVecEnv(scenario, 3), MPE2VecEnv(scenario, 3), np.random.default_rng(1)
    (obs, state), (their_obs, their_state) = ours.reset(11), package.reset(11)
    for a, b in zip([*obs, state], [*their_obs, their_state], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    for _ in range(60):
        actions = random_actions(ours, rng)
        assert_same(ours.step(actions), package.step(actions), 2e-5)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_equals_the_recorded_old_rules(scenario: str) -> None:
    """Three streams, four episodes each, of PettingZoo 1.22.2; the second and later ones begin without a seed."""
    recorded = {key: OLD[f"{scenario}/{key}"] for key in ("initial", "actions", "obs", "reward")}
    streams, episodes = recorded["initial"].shape[:2]
    env = MPEVecEnv(scenario, streams, rules="harl")
    _, state = env.reset(0)
    ends = np.cumsum(env.own_action_dims)[:-1]
    clipped = 0
    for episode in range(episodes):
        np.testing.assert_allclose(state, recorded["initial"][:, episode], rtol=0, atol=1e-5)
        for t in range(25):
            joint = recorded["actions"][:, episode, t].astype(np.float32) / 64
            clipped += int((np.abs(joint) > 1).sum())
            actions = np.split(joint, ends, axis=1)
            padded = [np.pad(a, ((0, 0), (0, dim - a.shape[1]))) for a, dim in zip(actions, env.action_dims)]
            step = env.step(padded)
            state = step.state
            np.testing.assert_allclose(step.final_state, recorded["obs"][:, episode, t], rtol=0, atol=1e-5)
            np.testing.assert_allclose(step.reward, recorded["reward"][:, episode, t], rtol=1e-5, atol=1e-5)
            assert step.truncated.all() == (t == 24)
    assert clipped > 100


def test_old_rules_cost_37_5_a_spread_episode_for_standing_still() -> None:
    """The recorded difference of the two sets of rules where nothing moves: three self-collisions of 0.5 a step."""
    totals = []
    for rules in ("mpe2", "harl"):
        env = MPEVecEnv("simple_spread", 200, rules)
        env.reset(3)
        if rules == "mpe2":
            start = env.get_state()
        else:
            env.set_state({**start, "rules": "harl"})
        still = [np.zeros((200, 5), dtype=np.float32)] * 3
        apart = np.ones(200, dtype=bool)
        total = np.zeros(200)
        for _ in range(25):
            step = env.step(still)
            total += step.reward
            apart &= (np.abs(step.final_state[:, [0, 1, 18, 19, 36, 37]]) < 1e-9).all(1)
        totals.append((total, apart))
    (new, apart), (old, also) = totals
    both = apart & also
    assert both.sum() > 100
    np.testing.assert_allclose(old[both] - new[both], -37.5, atol=1e-4)


# ---- the contract


@pytest.mark.parametrize(("scenario", "rules"), DIMS)
def test_dimensions(scenario: str, rules: str) -> None:
    env = MPEVecEnv(scenario, 2, rules)
    state_dim, obs_dims, action_dims = DIMS[scenario, rules]
    assert (env.state_dim, env.obs_dims, env.action_dims) == (state_dim, obs_dims, action_dims)
    assert env.num_agents == NUM_AGENTS[scenario] == len(obs_dims) and env.max_episode_steps == 25
    obs, state = env.reset(0)
    assert [o.shape for o in obs] == [(2, d) for d in obs_dims] and state.shape == (2, state_dim)
    unpadded = [o[:, : env.task.obs_dims[i]] for i, o in enumerate(obs)]
    np.testing.assert_array_equal(np.concatenate(unpadded, axis=1), state)
    assert all((o[:, env.task.obs_dims[i] :] == 0).all() for i, o in enumerate(obs))
    for low, high, dim in zip(env.action_low, env.action_high, action_dims):
        assert low.shape == high.shape == (dim,) and (low == -1).all() and (high == 1).all()


@pytest.mark.parametrize("rules", ["mpe2", "harl"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_actions_mean(scenario: str, rules: str) -> None:
    """Zero is no force; each direction moves where its name says; a speaker's words arrive in the next observation."""
    env = MPEVecEnv(scenario, 1, rules)
    directions = {1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}
    sign = 1 if rules == "mpe2" else -1
    for agent in env.task.movers:
        for entry, direction in directions.items():
            env.reset(0)
            actions = [np.zeros((1, dim), dtype=np.float32) for dim in env.action_dims]
            actions[agent][0, entry] = 1.0
            velocity = env.step(actions).final_obs[agent][0, :2]
            half = 0.5 if rules == "mpe2" else 1.0  # under mpe2 the opposite entry rests at 0.5 of its range
            np.testing.assert_allclose(velocity, sign * half * 0.5 * np.array(direction), atol=1e-6)
            others = [i for i in env.task.movers if i != agent]
            assert all((env.get_state()["velocities"][0, i] == 0).all() for i in others)
    for speaker, listener in zip(env.task.speakers, env.task.followers):
        env.reset(0)
        actions = [np.zeros((1, dim), dtype=np.float32) for dim in env.action_dims]
        first = 5 if speaker in env.task.movers else 0
        actions[speaker][0, first : first + 2] = 1.0, -1.0
        heard = env.step(actions).final_obs[listener][0, -env.task.channels :]
        rest = 0.5 if rules == "mpe2" else 0.0
        np.testing.assert_allclose(heard, [1.0, 0.0, *[rest] * (env.task.channels - 2)], atol=1e-6)


def test_under_the_old_rules_negative_actions_are_zero() -> None:
    results = []
    for low in (0.0, -1.0):
        env = MPEVecEnv("simple_reference", 3, "harl")
        env.reset(5)
        actions = [a.clip(low, 1) for a in random_actions(env, np.random.default_rng(2))]
        results.append(env.step(actions))
    assert_same(*results)


@pytest.mark.parametrize("make", BACK_ENDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_autoreset_and_fresh_copies(make: Any, scenario: str) -> None:
    env, rng = make(scenario, 2), np.random.default_rng(3)
    env.reset(0)
    kept: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for t in range(52):
        step = env.step(random_actions(env, rng))
        now = arrays_of(step)
        pairs = [*zip(step.obs, step.final_obs), (step.state, step.final_state), *((o, step.state) for o in step.obs)]
        assert not any(np.shares_memory(a, b) for a, b in pairs)
        kept.append((now, [a.copy() for a in now]))
        ended = (t + 1) % 25 == 0
        assert (step.truncated == ended).all() and not step.terminated.any()
        same = all((o == f).all() for o, f in zip([*step.obs, step.state], [*step.final_obs, step.final_state]))
        assert same == (not ended)
        assert all(o.dtype == np.float32 for o in now if o.dtype != bool)
    for arrays, copies in kept:
        for a, copy in zip(arrays, copies):
            np.testing.assert_array_equal(a, copy)


@pytest.mark.parametrize("rules", ["mpe2", "harl"])
def test_an_environment_has_a_stream_of_its_own(rules: str) -> None:
    """Environment i of seed s is environment 0 of seed s + i, whatever the others do; another seed is another start."""
    many, rng = MPEVecEnv("simple_reference", 4, rules), np.random.default_rng(4)
    ones = [MPEVecEnv("simple_reference", 1, rules) for _ in range(4)]
    obs, _ = many.reset(20)
    starts = [one.reset(20 + i)[0] for i, one in enumerate(ones)]
    assert len({o.tobytes() for o in obs[0]}) == 4
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(obs[1][i], start[1][0])
    for _ in range(60):
        actions = random_actions(many, rng)
        result = many.step(actions)
        for i, one in enumerate(ones):
            single = one.step([a[i : i + 1] for a in actions])
            np.testing.assert_array_equal(result.state[i], single.state[0])
            assert result.reward[i] == single.reward[0]


@pytest.mark.parametrize("rules", ["mpe2", "harl", "package"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_exact_continuation(scenario: str, rules: str) -> None:
    """From a state in the middle of an episode, as tensors, over two resets; the observation before does not matter."""

    def make() -> Any:
        return MPE2VecEnv(scenario, 3) if rules == "package" else MPEVecEnv(scenario, 3, rules)

    env, rng = make(), np.random.default_rng(5)
    env.reset(1)
    for _ in range(37):
        env.step(random_actions(env, rng))
    saved = env.get_state()
    state = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in saved.items()}
    other = make()
    other.reset(99)
    other.step(random_actions(other, rng))
    other.set_state(state)
    for _ in range(60):
        actions = random_actions(env, rng)
        assert_same(env.step(actions), other.step(actions))
    np.testing.assert_array_equal(saved["steps"], 37 % 25)  # what was saved is a copy


def test_back_ends_exchange_states() -> None:
    env, package, rng = MPEVecEnv("simple_spread", 2), MPE2VecEnv("simple_spread", 2), np.random.default_rng(6)
    env.reset(2)
    for _ in range(10):
        env.step(random_actions(env, rng))
    package.reset(50)
    package.set_state(env.get_state())
    for _ in range(40):
        actions = random_actions(env, rng)
        assert_same(env.step(actions), package.step(actions), 1e-5)


@pytest.mark.parametrize("make", BACK_ENDS)
def test_mistakes_are_named(make: Any) -> None:
    env = make("simple_speaker_listener", 2)
    good = [np.zeros((2, 3), dtype=np.float32), np.zeros((2, 5), dtype=np.float32)]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(good)
    with pytest.raises(RuntimeError, match="reset"):
        env.get_state()
    env.reset(0)
    with pytest.raises(ValueError, match="2 agents, got 1"):
        env.step(good[:1])
    with pytest.raises(ValueError, match=r"agent 1.*\(2, 5\).*\(2, 4\)"):
        env.step([good[0], good[1][:, :4]])
    bad = good[1].copy()
    bad[1, 2] = np.nan
    with pytest.raises(NonFiniteError, match="agent 1 in environment 1"):
        env.step([good[0], bad])
    state = env.get_state()
    for change, message in (
        ({"scenario": "simple_spread"}, "simple_spread"),
        ({"rules": "harl"}, "harl"),
        ({"positions": state["positions"][:1]}, "positions"),
        ({"rngs": state["rngs"][:1]}, "rngs"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_state({**state, **change})
    del state["velocities"]
    with pytest.raises(ValueError, match="velocities"):
        env.set_state(state)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("simple_tag", 1), "simple_tag.*simple_spread"),
        (("simple_spread", 0), "num_envs"),
        (("simple_spread", 1, "x"), "x"),
    ],
)
def test_bad_constructor_arguments_are_named(argv: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPEVecEnv(*argv)


# ---- pictures


@pytest.mark.parametrize("make", BACK_ENDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pictures_show_agents_and_landmarks_where_they_are(make: Any, scenario: str) -> None:
    env, rng = make(scenario, 2), np.random.default_rng(7)
    env.reset(4)
    for _ in range(3):
        env.step(random_actions(env, rng))
    picture = env.render()
    assert (
        picture.shape == (480, 480, 3)
        and picture.dtype == np.uint8
        and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    )
    world = env.get_state()
    strip = 480 // 8 if env.task.speakers else 0
    scale = (480 - strip) / (2 * 1.3)

    def color_at(position: np.ndarray, offset: float) -> tuple[int, ...]:
        """A little to the left of the centre, where no number is written."""
        x, y = 240 + scale * position[0] - offset * scale, (480 - strip) / 2 - scale * position[1]
        return tuple(int(c) for c in picture[round(y), round(x)])

    assert np.abs(world["positions"][0]).max() < 1.2
    for agent, position in enumerate(world["positions"][0]):
        assert color_at(position, 0.7 * env.task.agent_radius) == AGENT_COLORS[agent]
    covered = [
        np.linalg.norm(world["positions"][0] - landmark, axis=1).min() < env.task.agent_radius + 0.1
        for landmark in world["landmarks"][0]
    ]
    assert not all(covered)
    for i, landmark in enumerate(world["landmarks"][0]):
        if not covered[i]:
            assert color_at(landmark, 0.5 * env.task.landmark_radius) == (LANDMARK_COLORS[i] if strip else PLAIN_COLOR)


def test_agents_collide_below_two_radii() -> None:
    """Just inside and just outside; the picture gives the touching ones a red rim."""
    env = MPEVecEnv("simple_spread", 2)
    env.reset(0)
    state = env.get_state()
    state["positions"][:] = [[[0.0, 0.0], [0.2999, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.3001, 0.0], [1.0, 1.0]]]
    state["velocities"][:] = 0.0
    state["landmarks"][:] = state["positions"]
    env.set_state(state)
    rim = [(env.render().reshape(-1, 3) == (220, 20, 20)).all(1).sum()]
    reward = env.step([np.zeros((2, 5), dtype=np.float32)] * 3).reward
    np.testing.assert_allclose(reward, [-1.0, 0.0], atol=1e-3)
    state["positions"][0] = state["positions"][1]
    env.set_state(state)
    rim.append((env.render().reshape(-1, 3) == (220, 20, 20)).all(1).sum())
    assert rim[0] > 50 and rim[1] == 0


def test_the_picture_shows_what_was_said() -> None:
    """The bars of the strip are filled in the speaker's colour as far as its message says."""
    env = MPEVecEnv("simple_speaker_listener", 1)
    env.reset(0)
    filled = []
    for value in (-1.0, 0.0, 1.0):
        env.step([np.full((1, 3), value, dtype=np.float32), np.zeros((1, 5), dtype=np.float32)])
        strip = env.render()[-60:]
        filled.append(int((strip.reshape(-1, 3) == AGENT_COLORS[0]).all(1).sum()))
    assert filled[0] == 0 and 0.4 < filled[1] / filled[2] < 0.6


def test_the_camera_backs_off_when_an_agent_leaves() -> None:
    env = MPEVecEnv("simple_spread", 1)
    env.reset(0)
    state = env.get_state()
    state["positions"][0, 0] = [3.0, -3.0]
    env.set_state(state)
    picture = env.render(200, 200)
    assert (picture.reshape(-1, 3) == AGENT_COLORS[0]).all(1).sum() > 20


# ---- known answers


@pytest.mark.parametrize("rules", ["mpe2", "harl"])
def test_random_and_oracle_returns(rules: str) -> None:
    """Random returns near those of a study before this code (uniform in [0, 1]); the oracles are far above them."""
    expected = {"mpe2": (-75.9, -53.9, -73.0), "harl": (-113.3, -53.9, -73.0)}[rules]
    for scenario, random in zip(SCENARIOS, expected):
        env = MPEVecEnv(scenario, 400, rules)
        drawn = mpe_bounds.returns(env, mpe_bounds.random_policy(env))
        oracle = mpe_bounds.returns(env, mpe_bounds.Oracle(env))
        assert abs(drawn.mean() - random) < 4 * drawn.std() / 20
        assert oracle.mean() > drawn.mean() + 40 and (oracle > drawn).mean() > 0.9


@pytest.mark.parametrize("rules, folder", [("mpe2", "mpe"), ("harl", "mpe_harl")])
def test_the_published_bounds_are_what_the_policies_earn(rules: str, folder: str) -> None:
    """The same episodes as in results/: landmarks shared out badly, agents that crowd or a wrong start cost return."""
    tasks = json.loads((ROOT / "results" / folder / "bounds.json").read_text())["tasks"]
    found = {scenario: mpe_bounds.measure(scenario, 5000, rules) for scenario in SCENARIOS}
    for scenario, policies in found.items():
        for name, result in policies.items():
            assert result["mean"] == pytest.approx(tasks[scenario][name]["mean"], abs=0.05), (scenario, name)


def test_a_speaker_that_names_another_landmark_costs_return() -> None:
    env = MPEVecEnv("simple_speaker_listener", 300)
    oracle = mpe_bounds.Oracle(env)

    def misled(obs: Any) -> list[np.ndarray]:
        speaker, listener = oracle(obs)
        return [np.roll(speaker, 1, axis=1), listener]

    assert mpe_bounds.returns(env, misled).mean() < 3 * mpe_bounds.returns(env, oracle).mean()


def test_the_informed_driver_is_near_the_optimum() -> None:
    """The cost of simple_speaker_listener is a sum over both axes: dynamic programming over one finds the least."""
    offsets, speeds, pushes = np.linspace(-2.2, 2.2, 221), np.linspace(-2, 2, 81), np.linspace(-0.5, 0.5, 21)
    offset, speed = np.meshgrid(offsets, speeds, indexing="ij")
    cost = np.zeros_like(offset)
    for _ in range(25):
        ahead = RegularGridInterpolator((offsets, speeds), cost, bounds_error=False, fill_value=None)  # pyright: ignore
        after = offset - 0.1 * speed
        later = [ahead(np.stack([after, np.clip(0.75 * speed + p, -2, 2)], -1)) for p in pushes]
        cost = 2 * after**2 + np.min(later, axis=0)
    least = RegularGridInterpolator((offsets, speeds), cost)
    env = MPEVecEnv("simple_speaker_listener", 500)
    env.reset(0)
    state = env.get_state()
    goal = state["landmarks"][np.arange(500), state["goals"][:, 0]]
    distance = goal - state["positions"][:, 1]
    optimum = -least(np.stack([distance, np.zeros_like(distance)], -1)).sum(1).mean()
    reached = mpe_bounds.returns(env, mpe_bounds.Oracle(env, informed=True)).mean()
    assert optimum * 1.03 < reached < optimum * 0.99
