"""`common.bidexhands` as a vector environment: the contract, threads, episodes, resuming, rendering, errors."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bidex_helpers import EGGS, KINDS, arrays_of, assert_same, data_of, random_actions, raw, through_torch, zero_actions

from common.bidexhands import SCENARIOS, BiDexHandsVecEnv, hand, tasks
from common.mamujoco_robots import mujoco
from common.vecenv import NonFiniteError, RenderError, StepResult

DIMS = {  # scenario: actions of an agent, state, observation, time limit
    "ShadowHandOver": (20, 398, 211, 75),
    "ShadowHandCatchAbreast": (26, 422, 223, 150),
    "ShadowHandTwoCatchUnderarm": (26, 446, 247, 75),
    "ShadowHandCatchOver2Underarm": (26, 422, 223, 75),
    "ShadowHandLiftUnderarm": (26, 417, 218, 500),
    "ShadowHandPen": (26, 417, 218, 125),
    "ShadowHandDoorCloseInward": (26, 417, 218, 250),
    "ShadowHandDoorOpenInward": (26, 417, 218, 250),
    "ShadowHandDoorOpenOutward": (26, 417, 218, 250),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sizes(scenario: str) -> None:
    assert set(DIMS) == set(SCENARIOS)
    actions, state, obs_dim, limit = DIMS[scenario]
    env = BiDexHandsVecEnv(scenario, 2)
    assert (env.num_envs, env.num_agents, env.state_dim, env.max_episode_steps) == (2, 2, state, limit)
    assert (env.obs_dims, env.action_dims, env.render_fps) == ([obs_dim] * 2, [actions] * 2, 60)
    assert env.label == f"BiDexMJ/{scenario}"
    for low, high in zip(env.action_low, env.action_high, strict=True):
        assert low.dtype == high.dtype == np.float32
        np.testing.assert_array_equal(low, [-1.0] * actions)
        np.testing.assert_array_equal(high, [1.0] * actions)
    obs, s = env.reset(0)
    result = env.step(zero_actions(env))
    for some_obs, some_state in [(obs, s), (result.obs, result.state), (result.final_obs, result.final_state)]:
        assert [(o.shape, o.dtype) for o in some_obs] == [((2, obs_dim), np.float32)] * 2
        assert (some_state.shape, some_state.dtype) == ((2, state), np.float32)
    assert (result.reward.shape, result.reward.dtype) == ((2,), np.float32)
    for flag in (result.terminated, result.truncated, env.last_success):
        assert (flag.shape, flag.dtype) == ((2,), bool)


def test_same_seed_same_run() -> None:
    env = BiDexHandsVecEnv("ShadowHandCatchOver2Underarm", 3)

    def run(seed: int) -> list[StepResult]:
        rng = np.random.default_rng(0)
        env.reset(seed)
        return [env.step(random_actions(env, rng)) for _ in range(60)]

    first, again, other = run(1), run(1), run(2)
    assert any(r.terminated.any() for r in first)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)
    assert not np.array_equal(first[0].state, other[0].state)


@pytest.mark.parametrize("scenario", KINDS)
def test_threads_change_nothing(scenario: str) -> None:
    """Bit for bit, over episode ends, with more environments than threads and the other way round."""
    envs = [BiDexHandsVecEnv(scenario, 5, sim_threads=threads) for threads in (1, 2, 7)]
    for env in envs:
        env.max_episode_steps = 25
        env.reset(3)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(40):
        actions = random_actions(envs[0], rng)
        first, *others = [env.step(actions) for env in envs]
        ended += int((first.terminated | first.truncated).sum())
        for env, other in zip(envs[1:], others, strict=True):
            assert_same(first, other)
            np.testing.assert_array_equal(raw(envs[0]), raw(env))
    assert ended >= 5
    for env in envs:
        env.close()


@pytest.mark.parametrize("scenario", KINDS)
def test_environment_of_many_equals_environment_alone(scenario: str) -> None:
    many, alone = BiDexHandsVecEnv(scenario, 3), BiDexHandsVecEnv(scenario, 1)
    many.max_episode_steps = alone.max_episode_steps = 20
    rng = np.random.default_rng(0)
    steps = [random_actions(many, rng) for _ in range(45)]
    many.reset(7)
    together = [many.step(actions) for actions in steps]
    assert sum(int((r.terminated | r.truncated).sum()) for r in together) >= 6
    for i in range(3):
        alone.reset(7 + i)
        for actions, expected in zip(steps, together, strict=True):
            result = alone.step([a[i : i + 1] for a in actions])
            for x, y in zip(arrays_of(result), arrays_of(expected), strict=True):
                np.testing.assert_array_equal(x[0], y[i])


# ---- episodes


@pytest.mark.parametrize("scenario", ["ShadowHandOver", "ShadowHandPen"])
def test_truncates_at_the_time_limit(scenario: str) -> None:
    env = BiDexHandsVecEnv(scenario, 1)
    env.reset(0)
    limit = env.max_episode_steps
    results = [env.step(zero_actions(env)) for _ in range(2 * limit + 1)]
    assert np.flatnonzero([r.truncated[0] for r in results]).tolist() == [limit - 1, 2 * limit - 1]
    assert not any(r.terminated[0] for r in results)


def test_an_end_on_the_last_step_is_termination() -> None:
    env = BiDexHandsVecEnv("ShadowHandCatchOver2Underarm", 1)
    env.reset(0)
    end = next(t for t in range(1, 75) if env.step(zero_actions(env)).terminated[0])
    env.max_episode_steps = end
    env.reset(0)
    results = [env.step(zero_actions(env)) for _ in range(end)]
    assert [bool(r.terminated[0]) for r in results] == [False] * (end - 1) + [True]
    assert not any(r.truncated[0] for r in results)


@pytest.mark.parametrize("scenario", ["ShadowHandTwoCatchUnderarm", "ShadowHandDoorOpenInward"])
def test_final_obs_is_the_observation_before_the_reset(scenario: str) -> None:
    """A twin without a time limit shows what the successor is."""
    env, twin = BiDexHandsVecEnv(scenario, 2), BiDexHandsVecEnv(scenario, 2)
    env.max_episode_steps = 12
    env.reset(0)
    twin.reset(0)
    rng = np.random.default_rng(0)
    for step in range(1, 13):
        actions = random_actions(env, rng)
        result, expected = env.step(actions), twin.step(actions)
        for x, y in zip([*result.final_obs, result.final_state], [*expected.obs, expected.state], strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip([*result.obs, result.state], [*result.final_obs, result.final_state], strict=True):
            assert np.array_equal(x, y) == (step < 12)


def test_a_new_episode_has_no_last_action() -> None:
    env = BiDexHandsVecEnv("ShadowHandOver", 2)
    env.max_episode_steps = 3
    obs, _ = env.reset(0)
    actions = [np.full((2, 20), 0.5, dtype=np.float32)] * 2
    for step in range(1, 7):
        own = slice(env.task.hand_dim - 20, env.task.hand_dim)
        assert (obs[0][:, own] == (0.0 if step in (1, 4) else 0.5)).all()
        result = env.step(actions)
        assert (result.final_obs[1][:, own] == 0.5).all()
        obs = result.obs


def test_isaac_done_semantics() -> None:
    """The same physics as without; the last observation stands, time-outs terminate, the reset comes a step later."""
    ours, theirs = (BiDexHandsVecEnv("ShadowHandCatchAbreast", 4, isaac_done_semantics=x) for x in (False, True))
    ours.max_episode_steps = theirs.max_episode_steps = 50
    ours.reset(0)
    theirs.reset(0)
    rng, timeouts, falls = np.random.default_rng(0), 0, 0
    done = np.ones(4, dtype=bool)
    for _ in range(160):
        actions = random_actions(ours, rng)
        a, b = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(a.reward, b.reward)  # also in the step that leads from one episode to the next
        for x, y in zip([*a.final_obs, a.final_state], [*b.final_obs, b.final_state], strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip([*b.final_obs, b.final_state], [*b.obs, b.state], strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(b.terminated, a.terminated | a.truncated)
        assert not b.truncated.any()
        np.testing.assert_array_equal(theirs._steps == 1, done)
        done = b.terminated
        timeouts += int(a.truncated.sum())
        falls += int(a.terminated.sum())
    assert timeouts > 0 and falls > 0


def test_success_stays_until_the_episode_is_over() -> None:
    env = BiDexHandsVecEnv("ShadowHandOver", 2)
    env.max_episode_steps = 6
    env.reset(0)
    egg = env.model.joint("object_free").qposadr[0]

    def put(position: tuple[float, float, float]) -> None:
        data_of(env)[1].qpos[egg : egg + 3] = position
        mujoco.mj_step1(env.model, data_of(env)[1])

    seen = []
    for step in range(8):
        if step == 2:
            put((0.0, -0.64, 0.56))  # falls 2 mm in a step, stays closer than 3 cm to the goal
        if step == 3:
            put((0.0, -0.39, 0.54))
        env.step(zero_actions(env))
        seen.append(env.last_success.tolist())
    assert seen == [[False, step in (2, 3, 4, 5)] for step in range(8)]


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_force_scale(scale: float) -> None:
    """A full push of 0.5 * 1e5 / 60 N against 100 /s * 5.012 kg of damping ends at 1.66 m/s times the scale."""
    env = BiDexHandsVecEnv("ShadowHandCatchAbreast", 1, base_force_scale=scale)
    env.reset(0)
    push = zero_actions(env)
    push[0][:, 2] = 1.0
    for _ in range(3):
        env.step(push)
    pushed, other = (data_of(env)[0].joint(f"hand{h}_base").qvel[2] for h in range(2))
    assert pushed == pytest.approx(scale * 0.5 * 1e5 / 60 / (100 * 5.012), rel=0.05, abs=0.01)
    assert abs(other) < 0.01


FORCES = {  # scenario: transition_scale and orientation_scale of the original's configuration
    "ShadowHandCatchAbreast": (0.5, 1.0),
    "ShadowHandTwoCatchUnderarm": (0.05, 0.5),
    "ShadowHandCatchOver2Underarm": (0.1, 2.0),
    "ShadowHandLiftUnderarm": (0.25, 1.0),
    "ShadowHandPen": (0.5, 0.1),
    "ShadowHandDoorCloseInward": (0.5, 0.5),
    "ShadowHandDoorOpenInward": (0.5, 0.5),
    "ShadowHandDoorOpenOutward": (0.5, 0.5),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_an_action_does(scenario: str) -> None:
    """Every entry: force, torque, 20 joint targets of its own hand, in this order; forces act on nothing else."""
    env = BiDexHandsVecEnv(scenario, 1, isaac_done_semantics=True)
    env.reset(0)
    rng, data, model = np.random.default_rng(0), data_of(env)[0], env.model
    actions = random_actions(env, rng)
    env.step(actions)
    wrenches = data.xfrc_applied.copy()
    for h, action in enumerate(a[0].astype(np.float64) for a in actions):
        driven = [i for i, (name, *_) in enumerate(tasks.JOINTS) if name not in ("FFJ0", "MFJ0", "RFJ0", "LFJ0")]
        assert len(driven) == 20
        for a, joint in zip(action[-20:], driven):
            name, low, high = tasks.JOINTS[joint]
            target = data.actuator(f"hand{h}_A_{name}").ctrl[0]
            assert target == pytest.approx(low + (a + 1) / 2 * (high - low), abs=1e-12)
        forearm = model.body(f"hand{h}_forearm").id
        if scenario in FORCES:
            force, torque = FORCES[scenario]
            np.testing.assert_allclose(wrenches[forearm, :3], 0.25 * action[:3] / 60 * force * 1e5)
            np.testing.assert_allclose(wrenches[forearm, 3:], 0.25 * action[3:6] / 60 * torque * 1e3)
            wrenches[forearm] = 0
    assert not wrenches.any()


# ---- what is returned and what is saved


def test_results_belong_to_the_caller() -> None:
    env, twin = BiDexHandsVecEnv("ShadowHandCatchAbreast", 2), BiDexHandsVecEnv("ShadowHandCatchAbreast", 2)
    env.max_episode_steps = twin.max_episode_steps = 15
    env.reset(0)
    for x in [*(pair := twin.reset(0))[0], pair[1]]:
        x.fill(1)
    rng, kept = np.random.default_rng(0), []
    for _ in range(40):
        actions = random_actions(env, rng)
        result, scribbled = env.step(actions), twin.step(actions)
        assert_same(result, scribbled)
        arrays = [*arrays_of(result), env.last_success]
        assert not any(np.shares_memory(x, y) for i, x in enumerate(arrays) for y in arrays[:i])
        kept += [(x, x.copy()) for x in arrays]
        for x in [*arrays_of(scribbled), *actions, twin.last_success]:
            x.fill(1)
    for x, copy in kept:
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("isaac", [False, True])
@pytest.mark.parametrize("scenario", KINDS)
def test_saved_state_continues_bit_exactly(scenario: str, isaac: bool) -> None:
    def make() -> BiDexHandsVecEnv:
        env = BiDexHandsVecEnv(scenario, 3, isaac_done_semantics=isaac)
        env.max_episode_steps = 20  # so that the comparison goes through resets
        return env

    env = make()
    env.reset(4)
    rng = np.random.default_rng(0)
    for _ in range(40 if isaac else 33):  # 40: an episode has just timed out, its reset is still to come
        env.step(random_actions(env, rng))
    saved, before = env.get_state(), raw(env)
    steps = [random_actions(env, rng) for _ in range(30)]
    expected = [(env.step(actions), raw(env), env.last_success.copy()) for actions in steps]
    assert any((result.terminated | result.truncated).any() for result, *_ in expected)

    fresh, reseeded = make(), make()
    reseeded.reset(99)
    for copy, state in ((fresh, saved), (env, saved), (reseeded, through_torch(saved))):
        copy.set_state(state)
        np.testing.assert_array_equal(raw(copy), before)
        for actions, (result, after, success) in zip(steps, expected, strict=True):
            assert_same(copy.step(actions), result)
            np.testing.assert_array_equal(raw(copy), after)
            np.testing.assert_array_equal(copy.last_success, success)


def test_saved_state_is_a_snapshot() -> None:
    env = BiDexHandsVecEnv("ShadowHandTwoCatchUnderarm", 2)
    env.max_episode_steps = 4
    env.reset(0)
    saved = env.get_state()
    before = {k: v.copy() for k, v in saved.items() if isinstance(v, np.ndarray)}
    rng = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(5):
            env.step(random_actions(env, rng))
        env.set_state(saved)
    env.step(random_actions(env, rng))
    for key, value in before.items():
        np.testing.assert_array_equal(saved[key], value)


def test_state_that_does_not_fit_is_refused() -> None:
    env = BiDexHandsVecEnv("ShadowHandOver", 2)
    env.reset(0)
    state = env.get_state()
    with pytest.raises(ValueError, match="'ShadowHandOver', not 'ShadowHandPen'"):
        BiDexHandsVecEnv("ShadowHandPen", 2).set_state(state)
    with pytest.raises(ValueError, match=r"'physics': expected shape \(3, \d+\), got \(2, \d+\)"):
        BiDexHandsVecEnv("ShadowHandOver", 3).set_state(state)
    for key in ("physics", "steps", "success", "pending", "goal_rot", "rngs"):
        with pytest.raises(ValueError, match=f"'{key}'"):
            env.set_state({k: v for k, v in state.items() if k != key})


# ---- errors


def test_wrong_action_is_named() -> None:
    env = BiDexHandsVecEnv("ShadowHandOver", 4)
    env.reset(0)
    good = np.zeros((4, 20), dtype=np.float32)
    with pytest.raises(ValueError, match="2 agents, got 1"):
        env.step([good])
    with pytest.raises(ValueError, match=r"agent 1: expected shape \(4, 20\).*got \(4, 26\)"):
        env.step([good, np.zeros((4, 26))])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_action_is_named_and_not_applied(value: float) -> None:
    env = BiDexHandsVecEnv("ShadowHandPen", 3)
    env.reset(0)
    actions = zero_actions(env)
    actions[1][2, 0] = value
    before = raw(env)
    with pytest.raises(NonFiniteError, match="agent 1 in environment 2"):
        env.step(actions)
    np.testing.assert_array_equal(raw(env), before)


def test_actions_are_clipped() -> None:
    env, twin = BiDexHandsVecEnv("ShadowHandDoorOpenOutward", 1), BiDexHandsVecEnv("ShadowHandDoorOpenOutward", 1)
    env.reset(0)
    twin.reset(0)
    wild = [np.linspace(-3, 3, 26, dtype=np.float32)[None] * sign for sign in (1, -1)]
    assert_same(env.step(wild), twin.step([a.clip(-1, 1) for a in wild]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scenario": "ShadowHandKettle"}, "'ShadowHandKettle'.*" + ", ".join(SCENARIOS)),
        ({"sim": "bullet"}, "'bullet'.*mujoco, mujoco_warp, isaacgym"),
        ({"sim": "isaacgym"}, "'isaacgym'"),
        ({"num_envs": 0}, "got 0 and 1"),
        ({"sim_threads": 0}, "got 1 and 0"),
        ({"base_force_scale": -0.1}, "-0.1"),
        ({"base_force_scale": float("nan")}, "nan"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        BiDexHandsVecEnv(**{"scenario": "ShadowHandOver", "num_envs": 1, **arguments})
    assert "\n" not in str(error.value)


def test_missing_hand_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install 'gymnasium-robotics>=1.4'") as error:
        BiDexHandsVecEnv("ShadowHandOver", 1)
    assert "\n" not in str(error.value)


def test_step_before_reset_is_refused() -> None:
    env = BiDexHandsVecEnv("ShadowHandOver", 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(zero_actions(env))
    with pytest.raises(RuntimeError, match="reset"):
        env.get_state()


# ---- rendering


def frame_or_skip(env: BiDexHandsVecEnv) -> np.ndarray:
    try:
        return env.render()
    except RenderError as error:
        if not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")):
            pytest.skip(f"no OpenGL library on this machine: {error}")
        raise


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_render_shows_the_scene_and_changes_nothing(scenario: str) -> None:
    env, twin = BiDexHandsVecEnv(scenario, 1), BiDexHandsVecEnv(scenario, 1)
    env.reset(0)
    twin.reset(0)
    first = frame_or_skip(env)
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = random_actions(env, rng)
        assert_same(env.step(actions), twin.step(actions))
    later = env.render()
    assert later.shape == (480, 480, 3) and later.dtype == np.uint8
    assert later.std() > 10, "the picture is blank"
    assert np.abs(later.astype(int) - first).max() > 50, "the hands moved, the picture did not"
    assert env.render(width=320, height=64).shape == (64, 320, 3)
    env.close()
    env.close()
    assert_same(env.step(actions), twin.step(actions))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_camera_sees_hands_and_objects(scenario: str) -> None:
    """Their origins project into the middle nine tenths of a square picture, in front of the camera."""
    env = BiDexHandsVecEnv(scenario, 1)
    env.reset(0)
    data, camera = data_of(env)[0], env.model.camera("view").id
    axes, eye = data.cam_xmat[camera].reshape(3, 3), data.cam_xpos[camera]
    half = np.tan(np.radians(env.model.cam_fovy[camera]) / 2)
    names = ["hand0_palm", "hand1_palm", "hand0_wrist", "hand1_wrist", "object"]
    names += ["object2"] if scenario == EGGS[2] else []
    for name in names:
        x, y, z = axes.T @ (data.body(name).xpos - eye)
        assert z < -0.3
        assert max(abs(x), abs(y)) / -z < 0.9 * half, name


def test_render_error_is_one_line_and_the_users_backend_is_kept() -> None:
    code = (
        "from common.bidexhands import BiDexHandsVecEnv; from common.vecenv import RenderError\n"
        "env = BiDexHandsVecEnv('ShadowHandOver', 1); env.reset(0)\n"
        "try: env.render()\n"
        "except RenderError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUJOCO_GL": "disabled"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = run.stdout.splitlines()
    assert all(word in line for word in ("libegl1 libegl-mesa0 libgl1-mesa-dri", "libosmesa6", "MUJOCO_GL is disabled"))
