"""`common.mamujoco` against the originals: Gymnasium's robots, Gymnasium-Robotics' local views, HARL's formula."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import ctypes.util
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from common.mamujoco import SCENARIOS, MAMuJoCoVecEnv
from common.vecenv import NonFiniteError, RenderError, StepResult

BODIES = ("Ant-4x2", "Walker2d-2x3", "HalfCheetah-6x1", "ManyAgentSwimmer-10x2")


def random_actions(env: MAMuJoCoVecEnv, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.uniform(-1, 1, (env.num_envs, dim)).astype(np.float32) for dim in env.action_dims]


def arrays_of(result: StepResult) -> list[np.ndarray]:
    return [*result.obs, *result.final_obs, *(x for x in result if isinstance(x, np.ndarray))]


def assert_same(a: StepResult, b: StepResult) -> None:
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        np.testing.assert_array_equal(x, y)


def farama_swimmer_xml(folder: Path) -> str:
    """The model file of Gymnasium-Robotics' 20-joint swimmer at HARL's time step."""
    from gymnasium_robotics.envs.multiagent_mujoco.many_segment_swimmer import gen_asset

    path = folder / "swimmer.xml"
    gen_asset(n_segs=20, asset_path=str(path))
    original = path.read_text()
    assert original.count('timestep="0.01"') == 1
    path.write_text(original.replace('timestep="0.01"', 'timestep="0.005"'))
    return str(path)


# ---- against Gymnasium


@pytest.mark.parametrize(
    "scenario, gym_id, limit, still_first",
    [
        ("HalfCheetah-6x1", "HalfCheetah-v4", 1000, False),
        ("Walker2d-2x3", "Walker2d-v4", 25, False),  # about as many falls as truncations, some in the same step
        ("Ant-4x2", "Ant-v4", 1000, True),  # without action the Ant of environment 0 stands until the time limit
        ("ManyAgentSwimmer-10x2", "Swimmer-v5", 1000, False),
    ],
)
def test_equals_gymnasium(scenario: str, gym_id: str, limit: int, still_first: bool, tmp_path: Path) -> None:
    num_envs, num_steps, seed = 3, 1050, 10
    env = MAMuJoCoVecEnv(scenario, num_envs)
    assert env.max_episode_steps == 1000
    env.max_episode_steps = limit
    kwargs: dict[str, Any] = {"xml_file": farama_swimmer_xml(tmp_path)} if gym_id.startswith("Swimmer") else {}
    gyms = [gymnasium.make(gym_id, max_episode_steps=limit, **kwargs) for _ in range(num_envs)]
    if gym_id.startswith("Ant"):
        for g in gyms:
            g.unwrapped.model.geom("floor").margin[:] = 0.0

    env.reset(seed)
    raw = np.stack([g.reset(seed=seed + i)[0] for i, g in enumerate(gyms)])
    width = raw.shape[1]
    np.testing.assert_array_equal(env.raw_state[:, :width], raw)

    rng = np.random.default_rng(0)
    falls = truncations = both = 0
    for _ in range(num_steps):
        actions = random_actions(env, rng)
        if still_first:
            for a in actions:
                a[0] = 0.0
        result = env.step(actions)
        joint = np.concatenate(actions, axis=1)
        for i, g in enumerate(gyms):
            obs, reward, terminated, truncated, _ = g.step(joint[i])
            assert result.terminated[i] == (terminated and not truncated)
            assert result.truncated[i] == truncated
            np.testing.assert_allclose(result.reward[i], float(reward), rtol=0, atol=1e-6)
            padded = np.concatenate([obs, np.zeros(env.state_dim - width)])
            naive = (padded - padded.mean()) / padded.std()
            np.testing.assert_allclose(result.final_state[i], naive, rtol=1e-6, atol=1e-6)
            falls += terminated
            truncations += truncated
            both += terminated and truncated
            raw[i] = g.reset()[0] if terminated or truncated else obs
        np.testing.assert_array_equal(env.raw_state[:, :width], raw)
        assert not env.raw_state[:, width:].any()
    assert truncations > 0
    assert (falls > 0) == scenario.startswith(("Ant", "Walker2d"))
    assert (both > 0) == (limit == 25), "falls on the very last step must be part of the comparison"


def test_ant_contact_margin_is_that_of_the_published_ant() -> None:
    env = MAMuJoCoVecEnv("Ant-2x4", 1)
    env.reset(0)
    rng, margins = np.random.default_rng(0), set()
    for _ in range(50):
        env.step(random_actions(env, rng))
        margins |= {contact.includemargin for contact in env._data[0].contact}
    assert margins == {0.01}


# ---- observations

DIMS = {  # scenario: agents, actions, state, full observation, local observations with 0 and 1 neighbours
    "Ant-2x4": (2, 4, 111, 113, [61] * 2, [63] * 2),
    "Ant-4x2": (4, 2, 111, 115, [39] * 4, [42] * 4),
    "Ant-8x1": (8, 1, 111, 119, [25, 31] * 4, [29, 32] * 4),
    "Walker2d-2x3": (2, 3, 17, 19, [11] * 2, [12] * 2),
    "Walker2d-6x1": (6, 1, 17, 23, [7] * 6, [9, 9, 8, 9, 9, 8]),
    "HalfCheetah-2x3": (2, 3, 17, 19, [11] * 2, [12] * 2),
    "HalfCheetah-3x2": (3, 2, 17, 20, [9] * 3, [11, 12, 10]),
    "HalfCheetah-6x1": (6, 1, 17, 23, [7] * 6, [9, 9, 8, 9, 9, 8]),
    "ManyAgentSwimmer-10x2": (10, 2, 44, 54, [4] * 10, [5, *[6] * 8, 5]),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sizes(scenario: str) -> None:
    assert set(DIMS) == set(SCENARIOS)
    agents, actions, state, full, local_0, local_1 = DIMS[scenario]
    for kwargs, obs_dims in [
        ({}, [full] * agents),
        ({"obs_mode": "local", "obs_neighbors": 0}, local_0),
        ({"obs_mode": "local"}, local_1),
    ]:
        env = MAMuJoCoVecEnv(scenario, 2, **kwargs)
        assert (env.num_envs, env.num_agents, env.state_dim) == (2, agents, state)
        assert env.obs_dims == obs_dims
        assert env.action_dims == [actions] * agents
        for low, high in zip(env.action_low, env.action_high, strict=True):
            assert low.dtype == high.dtype == np.float32
            np.testing.assert_array_equal(low, [-1.0] * actions)
            np.testing.assert_array_equal(high, [1.0] * actions)
        obs, s = env.reset(0)
        result = env.step([np.zeros((2, actions))] * agents)
        for some_obs, some_state in [(obs, s), (result.obs, result.state), (result.final_obs, result.final_state)]:
            assert [(o.shape, o.dtype) for o in some_obs] == [((2, d), np.float32) for d in obs_dims]
            assert (some_state.shape, some_state.dtype) == ((2, state), np.float32)
        assert (result.reward.shape, result.reward.dtype) == ((2,), np.float32)
        for flag in (result.terminated, result.truncated):
            assert (flag.shape, flag.dtype) == ((2,), bool)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_full_observation_is_harls_formula(scenario: str) -> None:
    env = MAMuJoCoVecEnv(scenario, 2)
    obs, state = env.reset(3)
    rng = np.random.default_rng(0)
    for _ in range(10):
        for e, raw in enumerate(env.raw_state):
            np.testing.assert_allclose(state[e], (raw - raw.mean()) / raw.std(), rtol=1e-6, atol=1e-6)
            for agent in range(env.num_agents):
                x = np.concatenate([raw, np.eye(env.num_agents)[agent]])
                np.testing.assert_allclose(obs[agent][e], (x - x.mean()) / x.std(), rtol=1e-6, atol=1e-6)
        obs, state, *_ = env.step(random_actions(env, rng))


def farama_multi_agent_env(scenario: str, neighbors: int, folder: Path):
    """`mamujoco_v1` with HARL's partition, and for each of our agents the name of the one with the same joints."""
    from gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi import MultiAgentMujocoEnv
    from gymnasium_robotics.envs.multiagent_mujoco.obsk import get_parts_and_edges

    robot, partition = scenario.split("-")
    num_agents, size = map(int, partition.split("x"))
    joints = [set(range(i * size, (i + 1) * size)) for i in range(num_agents)]
    kwargs = {}
    if robot == "ManyAgentSwimmer":
        robot = "ManySegmentSwimmer"
        kwargs["gym_env"] = gymnasium.make("Swimmer-v5", xml_file=farama_swimmer_xml(folder))
    elif robot == "Walker2d":
        kwargs["xml_file"] = "walker2d.xml"
    if scenario in ("Ant-2x4", "Ant-8x1", "Walker2d-6x1", "HalfCheetah-3x2"):  # unknown there, or another split
        parts, edges, globals_ = get_parts_and_edges(robot, None)
        parts = [tuple(node for node in parts[0] if node.act_ids in own) for own in joints]
        kwargs["agent_factorization"] = {"partition": parts, "edges": edges, "globals": globals_}
    env = MultiAgentMujocoEnv(robot, partition, agent_obsk=neighbors, **kwargs)
    if robot == "Ant":
        env.single_agent_env.unwrapped.model.geom("floor").margin[:] = 0.0
    theirs = [{node.act_ids for node in part} for part in env.agent_action_partitions]
    return env, [f"agent_{theirs.index(own)}" for own in joints]


@pytest.mark.parametrize("neighbors", [0, 1, 2])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_local_observation_equals_gymnasium_robotics(scenario: str, neighbors: int, tmp_path: Path) -> None:
    oracle, names = farama_multi_agent_env(scenario, neighbors, tmp_path)
    env = MAMuJoCoVecEnv(scenario, 1, obs_mode="local", obs_neighbors=neighbors)
    rng = np.random.default_rng(0)

    def check(obs: list[np.ndarray], expected: dict[str, np.ndarray]) -> None:
        for o, name in zip(obs, names, strict=True):
            np.testing.assert_array_equal(o[0], expected[name].astype(np.float32))

    obs, _ = env.reset(5)
    check(obs, oracle.reset(seed=5)[0])
    for _ in range(60):
        actions = random_actions(env, rng)
        result = env.step(actions)
        expected, *_ = oracle.step(oracle.map_global_action_to_local_actions(np.concatenate(actions, axis=1)[0]))
        check(result.final_obs, expected)
        if result.terminated[0]:
            check(result.obs, oracle.reset()[0])


def test_local_and_full_mode_share_state_and_physics() -> None:
    full, local = MAMuJoCoVecEnv("Ant-4x2", 2), MAMuJoCoVecEnv("Ant-4x2", 2, obs_mode="local")
    np.testing.assert_array_equal(full.reset(0)[1], local.reset(0)[1])
    rng = np.random.default_rng(0)
    for _ in range(150):
        actions = random_actions(full, rng)
        a, b = full.step(actions), local.step(actions)
        np.testing.assert_array_equal(a.state, b.state)
        np.testing.assert_array_equal(a.reward, b.reward)


OWN_JOINTS = {  # agent by agent, in the order of their names
    "Ant-2x4": [["ankle_1", "ankle_4", "hip_1", "hip_4"], ["ankle_2", "ankle_3", "hip_2", "hip_3"]],
    "Walker2d-2x3": [
        ["foot_joint", "leg_joint", "thigh_joint"],
        ["foot_left_joint", "leg_left_joint", "thigh_left_joint"],
    ],
    "HalfCheetah-6x1": [["bthigh"], ["bshin"], ["bfoot"], ["fthigh"], ["fshin"], ["ffoot"]],
    "ManyAgentSwimmer-10x2": [[f"rot{2 * i}", f"rot{2 * i + 1}"] for i in range(10)],
}


@pytest.mark.parametrize("scenario", OWN_JOINTS)
def test_joints_mode_shows_own_joints_and_the_raw_state(scenario: str) -> None:
    env, full = MAMuJoCoVecEnv(scenario, 2, obs_mode="joints"), MAMuJoCoVecEnv(scenario, 2)
    env.reset(0)
    full.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = random_actions(env, rng)
        result, reference = env.step(actions), full.step(actions)
        np.testing.assert_array_equal(result.reward, reference.reward)
        np.testing.assert_array_equal(result.state, env.raw_state.astype(np.float32))
        for e, data in enumerate(env._data):
            for obs, joints in zip(result.obs, OWN_JOINTS[scenario], strict=True):
                expected = [x for name in joints for x in (*data.joint(name).qpos, *data.joint(name).qvel)]
                np.testing.assert_array_equal(obs[e], np.array(expected, dtype=np.float32))
        assert not np.allclose(result.state, reference.state)  # which is standardised


# ---- the contract of a vector environment


def test_same_seed_same_run() -> None:
    env = MAMuJoCoVecEnv("Walker2d-6x1", 3)

    def run(seed: int) -> list[StepResult]:
        rng = np.random.default_rng(0)
        env.reset(seed)
        return [env.step(random_actions(env, rng)) for _ in range(100)]

    first, again, other = run(1), run(1), run(2)
    assert any(r.terminated.any() for r in first)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)
    assert not np.array_equal(first[0].state, other[0].state)


def test_environment_of_many_equals_environment_alone() -> None:
    many, alone = MAMuJoCoVecEnv("Walker2d-2x3", 3), MAMuJoCoVecEnv("Walker2d-2x3", 1)
    rng, ended = np.random.default_rng(0), 0
    steps = [random_actions(many, rng) for _ in range(120)]
    many.reset(7)
    together = [many.step(actions) for actions in steps]
    for i in range(3):
        alone.reset(7 + i)
        for actions, expected in zip(steps, together, strict=True):
            result = alone.step([a[i : i + 1] for a in actions])
            ended += int(result.terminated[0])
            for x, y in zip(arrays_of(result), arrays_of(expected), strict=True):
                np.testing.assert_array_equal(x[0], y[i])
    assert ended > 3


@pytest.mark.parametrize("scenario", ["HalfCheetah-2x3", "ManyAgentSwimmer-10x2"])
def test_truncates_at_exactly_1000(scenario: str) -> None:
    env = MAMuJoCoVecEnv(scenario, 1)
    env.reset(0)
    zeros = [np.zeros((1, dim)) for dim in env.action_dims]
    truncated = [bool(env.step(zeros).truncated[0]) for _ in range(2001)]
    assert np.flatnonzero(truncated).tolist() == [999, 1999]


def test_final_obs_is_the_observation_before_the_reset() -> None:
    """A twin without a time limit shows what the successor is."""
    env, twin = MAMuJoCoVecEnv("HalfCheetah-3x2", 2), MAMuJoCoVecEnv("HalfCheetah-3x2", 2)
    env.max_episode_steps = 20
    env.reset(0)
    twin.reset(0)
    rng = np.random.default_rng(0)
    for step in range(1, 21):
        actions = random_actions(env, rng)
        result, expected = env.step(actions), twin.step(actions)
        for x, y in zip([*result.final_obs, result.final_state], [*expected.obs, expected.state], strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip([*result.obs, result.state], [*result.final_obs, result.final_state], strict=True):
            assert np.array_equal(x, y) == (step < 20)


@pytest.mark.parametrize("obs_mode", ["full", "local"])
def test_results_belong_to_the_caller(obs_mode: str) -> None:
    env = MAMuJoCoVecEnv("Walker2d-2x3", 2, obs_mode=obs_mode)
    twin = MAMuJoCoVecEnv("Walker2d-2x3", 2, obs_mode=obs_mode)
    env.reset(0)
    twin.reset(0)
    rng, kept = np.random.default_rng(0), []
    for _ in range(60):
        actions = random_actions(env, rng)
        result, scribbled = env.step(actions), twin.step(actions)
        assert_same(result, scribbled)
        arrays = arrays_of(result)
        assert not any(np.shares_memory(x, y) for i, x in enumerate(arrays) for y in arrays[:i])
        kept += [(x, x.copy()) for x in arrays]
        for x in [*arrays_of(scribbled), *actions, twin.raw_state]:
            x.fill(1)
    for x, copy in kept:
        np.testing.assert_array_equal(x, copy)


def through_torch(state: dict) -> dict:
    """Save and load as a checkpoint does: arrays become tensors, loading is limited to plain data."""

    def to_tensor(x):
        if isinstance(x, np.ndarray):
            return torch.from_numpy(x)
        if isinstance(x, dict):
            return {k: to_tensor(v) for k, v in x.items()}
        return [to_tensor(v) for v in x] if isinstance(x, list) else x

    buffer = io.BytesIO()
    torch.save(to_tensor(state), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("obs_mode", ["full", "local", "joints"])
@pytest.mark.parametrize("scenario", BODIES)
def test_saved_state_continues_bit_exactly(scenario: str, obs_mode: str) -> None:
    def make() -> MAMuJoCoVecEnv:
        env = MAMuJoCoVecEnv(scenario, 3, obs_mode=obs_mode)
        env.max_episode_steps = 70  # so that the comparison goes through resets
        return env

    env = make()
    env.reset(4)
    rng = np.random.default_rng(0)
    for _ in range(47):
        env.step(random_actions(env, rng))
    saved, raw = env.get_state(), env.raw_state
    steps = [random_actions(env, rng) for _ in range(60)]
    expected = [(env.step(actions), env.raw_state) for actions in steps]  # raw: float32 hides the last bits
    assert any((result.terminated | result.truncated).any() for result, _ in expected)

    fresh, reseeded = make(), make()
    reseeded.reset(99)
    for copy, state in ((fresh, saved), (env, saved), (reseeded, through_torch(saved))):
        copy.set_state(state)
        np.testing.assert_array_equal(copy.raw_state, raw)
        for actions, (result, raw_after) in zip(steps, expected, strict=True):
            assert_same(copy.step(actions), result)
            np.testing.assert_array_equal(copy.raw_state, raw_after)


def test_saved_state_is_a_snapshot() -> None:
    env = MAMuJoCoVecEnv("HalfCheetah-6x1", 2)
    env.reset(0)
    saved = env.get_state()
    before = {k: v.copy() for k, v in saved.items() if isinstance(v, np.ndarray)}
    rng = np.random.default_rng(0)
    for _ in range(5):
        env.step(random_actions(env, rng))
    env.set_state(saved)
    for _ in range(5):
        env.step(random_actions(env, rng))
    for key, value in before.items():
        np.testing.assert_array_equal(saved[key], value)


def test_state_that_does_not_fit_is_refused() -> None:
    env = MAMuJoCoVecEnv("HalfCheetah-6x1", 2)
    env.reset(0)
    state = env.get_state()
    with pytest.raises(ValueError, match="'HalfCheetah-6x1', not 'Ant-8x1'"):
        MAMuJoCoVecEnv("Ant-8x1", 2).set_state(state)
    with pytest.raises(ValueError, match=r"'physics': expected shape \(3, \d+\), got \(2, \d+\)"):
        MAMuJoCoVecEnv("HalfCheetah-6x1", 3).set_state(state)
    for key in ("physics", "forward_x", "steps", "rngs"):
        with pytest.raises(ValueError, match=f"'{key}'"):
            env.set_state({k: v for k, v in state.items() if k != key})


# ---- errors


@pytest.fixture
def cheetah() -> MAMuJoCoVecEnv:
    env = MAMuJoCoVecEnv("HalfCheetah-3x2", 4)
    env.reset(0)
    return env


def test_wrong_action_is_named(cheetah: MAMuJoCoVecEnv) -> None:
    good = np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="3 agents, got 2"):
        cheetah.step([good, good])
    with pytest.raises(ValueError, match=r"agent 1: expected shape \(4, 2\).*got \(4, 3\)"):
        cheetah.step([good, np.zeros((4, 3)), good])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_action_is_named_and_not_applied(cheetah: MAMuJoCoVecEnv, value: float) -> None:
    actions = [np.zeros((4, 2), dtype=np.float32) for _ in range(3)]
    actions[1][2, 0] = value
    before = cheetah.raw_state
    with pytest.raises(NonFiniteError, match="agent 1 in environment 2"):
        cheetah.step(actions)
    np.testing.assert_array_equal(cheetah.raw_state, before)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError) as unknown:
        MAMuJoCoVecEnv("Ant-3x3", 1)
    assert "\n" not in str(unknown.value)
    assert all(name in str(unknown.value) for name in ("Ant-3x3", *SCENARIOS))
    with pytest.raises(ValueError, match="'partial'.*full, local, joints"):
        MAMuJoCoVecEnv("Ant-2x4", 1, obs_mode="partial")
    with pytest.raises(ValueError, match="-1"):
        MAMuJoCoVecEnv("Ant-2x4", 1, obs_mode="local", obs_neighbors=-1)


def test_step_before_reset_is_refused() -> None:
    env = MAMuJoCoVecEnv("HalfCheetah-2x3", 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step([np.zeros((1, 3))] * 2)
    with pytest.raises(RuntimeError, match="reset"):
        env.get_state()


# ---- rendering


def frame_or_skip(env: MAMuJoCoVecEnv, **size: int) -> np.ndarray:
    try:
        return env.render(**size)
    except RenderError as error:
        if not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")):
            pytest.skip(f"no OpenGL library on this machine: {error}")
        raise


@pytest.mark.parametrize("scenario", BODIES)
def test_render_shows_the_robot_and_changes_nothing(scenario: str) -> None:
    env, twin = MAMuJoCoVecEnv(scenario, 1), MAMuJoCoVecEnv(scenario, 1)
    env.reset(0)
    twin.reset(0)
    first = frame_or_skip(env)
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = random_actions(env, rng)
        assert_same(env.step(actions), twin.step(actions))
    later = env.render()
    assert later.shape == (480, 480, 3) and later.dtype == np.uint8
    assert later.std() > 5, "the picture is blank"
    assert np.abs(later.astype(int) - first).max() > 50, "the robot moved, the picture did not"
    assert env.render(width=800, height=64).shape == (64, 800, 3)
    env.close()
    env.close()
    assert env.render_fps == {"A": 20, "W": 125, "H": 20, "M": 50}[scenario[0]]


def test_render_error_is_one_line_and_the_users_backend_is_kept() -> None:
    code = (
        "import os; from common.mamujoco import MAMuJoCoVecEnv; from common.vecenv import RenderError\n"
        "env = MAMuJoCoVecEnv('HalfCheetah-2x3', 1); env.reset(0)\n"
        "try: env.render()\n"
        "except RenderError as error: print(error)\n"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUJOCO_GL": "disabled"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = run.stdout.splitlines()
    assert all(word in line for word in ("libegl1 libegl-mesa0 libgl1-mesa-dri", "libosmesa6", "MUJOCO_GL is disabled"))
