"""The formulas of the nine tasks: hand-computed cases, and loops over MuJoCo's own data written a second time."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bidex_helpers import EGGS, data_of, random_actions
from scipy.spatial.transform import Rotation

from common.bidexhands import SCENARIOS, BiDexHandsVecEnv, rotations, tasks
from common.bidexhands.tasks import TASKS, Outcome, Physics
from common.mamujoco_robots import mujoco

IDENTITY = [0.0, 0.0, 0.0, 1.0]
FINGERS = ("ff", "mf", "rf", "lf", "th")


# ---- rotations


def random_quaternions(count: int) -> np.ndarray:
    return Rotation.random(count, rng=np.random.default_rng(0)).as_quat()


def test_rotations_agree_with_scipy() -> None:
    a, b = random_quaternions(50), random_quaternions(100)[50:]
    v = np.random.default_rng(1).normal(size=(50, 3))
    ra, rb = Rotation.from_quat(a), Rotation.from_quat(b)
    np.testing.assert_allclose(rotations.cross(v, v[::-1]), np.cross(v, v[::-1]), atol=1e-12)
    np.testing.assert_allclose(rotations.rotate(a, v), ra.apply(v), atol=1e-12)
    assert Rotation.from_quat(rotations.conjugate(a)).approx_equal(ra.inv(), atol=1e-9).all()
    product = rotations.multiply(a, b)
    assert Rotation.from_quat(product).approx_equal(ra * rb, atol=1e-9).all()
    np.testing.assert_allclose(rotations.to_euler_xyz(a), ra.as_euler("xyz") % (2 * np.pi), atol=1e-9)
    euler = (0.3, -1.1, 2.2)
    expected = Rotation.from_euler("z", 2.2) * Rotation.from_euler("y", -1.1) * Rotation.from_euler("x", 0.3)
    assert Rotation.from_quat(rotations.from_euler_zyx(euler)).approx_equal(expected, atol=1e-9)


# ---- rewards, ends and success by hand


def still(objects: list[list[float]], **changes: np.ndarray) -> Physics:
    """One environment in which everything but the objects (each 13 numbers) lies at the origin, unrotated."""
    pose = np.tile([0.0, 0.0, 0.0, *IDENTITY], (1, 2, 1))
    tips = np.zeros((1, 2, 5, 13))
    tips[..., 6] = 1.0
    zeros = np.zeros((1, 2, 24))
    whole = Physics(zeros, zeros, zeros, tips, np.zeros((1, 2, 5, 6)), pose, pose, np.array([objects]), pose)
    return whole._replace(**changes)


def at(x: float, y: float, z: float, quat: list[float] = IDENTITY) -> list[float]:
    return [x, y, z, *quat, *[0.0] * 6]


def poses(*rows: list[float]) -> np.ndarray:
    return np.array([[row[:7] for row in rows]])


def check(outcome: Outcome, reward: float, ended: bool, success: bool) -> None:
    assert outcome.reward.shape == (1,)
    assert outcome.reward[0] == pytest.approx(reward, abs=1e-9)
    assert (bool(outcome.ended[0]), bool(outcome.success[0])) == (ended, success)


def evaluate(scenario: str, physics: Physics, goal_rot: list[float] = IDENTITY) -> Outcome:
    return tasks.evaluate(TASKS[scenario], physics, np.array([goal_rot]))


HALF_TURN, QUARTER_TURN = [1.0, 0.0, 0.0, 0.0], [0.5**0.5, 0.0, 0.0, 0.5**0.5]


def test_reward_of_one_egg() -> None:
    check(evaluate("ShadowHandOver", still([at(0, -0.64, 0.54)])), 1.0, False, True)
    check(evaluate("ShadowHandOver", still([at(0, -0.64, 0.5101)])), np.exp(-10 * 0.0299), False, True)
    check(evaluate("ShadowHandOver", still([at(0, -0.64, 0.5099)])), np.exp(-10 * 0.0301), False, False)
    check(evaluate("ShadowHandOver", still([at(0, -0.64, 0.2001)])), np.exp(-10 * 0.3399), False, False)
    check(evaluate("ShadowHandOver", still([at(0, -0.64, 0.2)])), np.exp(-10 * 0.34), True, False)
    turned = still([at(0, -0.64, 0.54, QUARTER_TURN)])
    check(evaluate("ShadowHandOver", turned), np.exp(-0.1 * np.pi), False, True)
    check(evaluate("ShadowHandOver", turned, QUARTER_TURN), 1.0, False, True)
    check(evaluate("ShadowHandOver", turned, HALF_TURN), np.exp(-0.1 * np.pi), False, True)
    over_one = [1.0 + 1e-7, 0.0, 0.0, 0.0]  # rounding must not make a NaN
    check(evaluate("ShadowHandOver", still([at(0, -0.64, 0.54, over_one)])), np.exp(-0.2 * np.pi), False, True)


def test_reward_and_homes_of_catch_abreast() -> None:
    homes = poses(at(-0.3, -0.55, 0.5), at(-0.3, -1.15, 0.5))
    goal = [at(-0.39, -1.15, 0.54)]
    check(evaluate("ShadowHandCatchAbreast", still(goal, palms=homes)), 1.0, False, True)
    for hand in range(2):
        for axis in range(3):
            for shift, ended in ((0.0999, False), (0.1001, True)):
                moved = homes.copy()
                moved[0, hand, axis] += shift
                check(evaluate("ShadowHandCatchAbreast", still(goal, palms=moved)), 1.0, ended, True)
    low = still([at(-0.39, -1.15, 0.2)], palms=homes)
    check(evaluate("ShadowHandCatchAbreast", low), np.exp(-10 * 0.34), True, False)


def test_reward_and_homes_of_catch_over_2_underarm() -> None:
    homes = poses(at(0, 0, 0.5), at(0, -0.8, 0.5))
    goal = [at(0, -0.4, 0.55)]
    check(evaluate("ShadowHandCatchOver2Underarm", still(goal, mounts=homes)), 1.0, False, True)
    far = still([at(0.5, -0.4, 0.55)], mounts=homes)
    check(evaluate("ShadowHandCatchOver2Underarm", far), np.exp(-0.2 * 20 * 0.5), False, False)
    for z, ended in ((0.3001, False), (0.3, True)):
        fallen = still([at(0, -0.4, z)], mounts=homes)
        check(evaluate("ShadowHandCatchOver2Underarm", fallen), np.exp(-4 * (0.55 - z)), ended, False)
    for hand in range(2):
        for shift, ended in ((0.0999, False), (0.1001, True)):
            moved = homes.copy()
            moved[0, hand, 1] += shift
            check(evaluate("ShadowHandCatchOver2Underarm", still(goal, mounts=moved)), 1.0, ended, True)


def test_reward_of_two_eggs() -> None:
    goals = [at(0, -0.79, 0.54), at(0, -0.38, 0.54)]
    check(evaluate("ShadowHandTwoCatchUnderarm", still(goals)), 2.0, False, True)
    for first, second, success in ((0.05, 0.0099, True), (0.05, 0.0101, False)):
        near = still([at(first, -0.79, 0.54), at(0, -0.38, 0.54 + second)])
        expected = np.exp(-10 * first) + np.exp(-10 * second)
        check(evaluate("ShadowHandTwoCatchUnderarm", near), expected, False, success)
    for k in range(2):
        fallen = [list(goal) for goal in goals]
        fallen[k][2] = 0.2
        check(evaluate("ShadowHandTwoCatchUnderarm", still(fallen)), 1 + np.exp(-3.4), True, False)


def test_reward_of_lifting() -> None:
    def lift(right: float, left: float, height: float) -> Outcome:
        """Hands above their handles by `right` and `left`; `hand_pos` is palm + (0, -0.02, 0.08)."""
        palms = poses(at(0, -0.43, height - 0.02 + right), at(0, -0.73, height - 0.02 + left))
        return evaluate("ShadowHandLiftUnderarm", still([at(0, -0.6, height)], palms=palms))

    check(lift(0.05, 0.06, 0.65), 0.2 - 0.11 + 3 * (0.385 - 0.2), False, False)
    check(lift(0.05, 0.0801, 0.65), 0.2 - 0.1301, False, False)
    check(lift(0.0801, 0.05, 0.65), 0.2 - 0.1301, False, False)
    check(lift(0.0799, 0.0799, 0.8001), 0.2 - 0.1598 + 3 * (0.385 - 0.0499), False, True)
    check(lift(0.0, 0.0, 0.7999), 0.2 + 3 * (0.385 - 0.0501), False, False)
    check(lift(0.1999, 0.0, 0.45), 0.2 - 0.1999, False, False)
    check(lift(0.2001, 0.0, 0.45), 0.2 - 0.2001, True, False)
    check(lift(0.0, 0.2001, 0.45), 0.2 - 0.2001, True, False)
    check(lift(0.0, 0.0, 0.3), 0.2 + 3 * (0.385 - 0.55), True, False)


def reaching(points: list[list[float]], distances: list[float]) -> np.ndarray:
    """Tips (1, 2, 5, 13), all fingers of hand i `distances[i]` / 5 away from point i, in x; tips lie 0.02 up in z."""
    tips = np.zeros((1, 2, 5, 13))
    tips[..., 6] = 1.0
    for hand in range(2):
        tips[0, hand, :, :3] = np.array(points[hand]) - [0, 0, 0.02] + [distances[hand] / 5, 0, 0]
    return tips


def test_reward_of_the_pen() -> None:
    def pen(right: float, left: float, gap: float) -> Outcome:
        """Sums of finger distances, and the gap between cap handle (cap - 0.1 y) and body handle (body + 0.07 y)."""
        parts = poses(at(0, 0.1 + gap, 1), at(0, -0.07, 1))
        tips = reaching([[0, gap, 1], [0, 0, 1]], [right, left])
        return evaluate("ShadowHandPen", still([at(0, 0, 1)], parts=parts, tips=tips))

    base = np.exp(-7.0) + np.exp(-2.0)
    check(pen(0.7, 0.2, 0.2), base + 5 * 0.2 - 0.8, False, False)
    check(pen(0.7499, 0.2, 0.2999), np.exp(-7.499) + np.exp(-2) + 5 * 0.2999 - 0.8, False, False)
    check(pen(0.7, 0.2, 0.3001), base + 5 * 0.3001 - 0.8, False, True)
    check(pen(0.7501, 0.2, 0.3001), np.exp(-7.501) + np.exp(-2), False, True)
    check(pen(0.2, 0.7501, 0.2), np.exp(-7.501) + np.exp(-2), False, False)
    check(pen(1.4999, 0.2, 0.2), np.exp(-14.999) + np.exp(-2), False, False)
    check(pen(1.5001, 0.2, 0.2), np.exp(-15.001) + np.exp(-2), True, False)
    check(pen(0.2, 1.5001, 0.2), np.exp(-15.001) + np.exp(-2), True, False)


@pytest.mark.parametrize("scenario", SCENARIOS[-3:])
def test_reward_of_the_doors(scenario: str) -> None:
    side = -1 if scenario == "ShadowHandDoorOpenOutward" else 1
    closing = scenario == "ShadowHandDoorCloseInward"

    def door(right: float, left: float, gap: float) -> Outcome:
        """Leaves unrotated, apart so that the handles' y differ by `gap`."""
        parts = poses(at(-0.39, 0.5 + gap, 0.7 - 0.04 * side), at(0.39, 0.5, 0.7 - 0.04 * side))
        tips = reaching([[0, gap, 0.7], [0, 0, 0.7]], [right, left])
        return evaluate(scenario, still([at(0, 0, 0.7)], parts=parts, tips=tips))

    for gap in (0.4999, 0.5001, -0.5001):
        bonus = 1 - 2 * abs(gap) if closing else 2 * abs(gap)
        success = (abs(gap) < 0.5) == closing
        check(door(0.4999, 0.1, gap), 2 - 0.5999 + bonus, False, success)
        check(door(0.1, 0.4999, gap), 2 - 0.5999 + bonus, False, success)
        check(door(0.5001, 0.1, gap), 2 - 0.6001, False, success)
        check(door(0.1, 0.5001, gap), 2 - 0.6001, False, success)
    check(door(1.4999, 0.1, 0.1), 2 - 1.5999, False, closing)
    check(door(1.5001, 0.1, 0.1), 2 - 1.6001, True, closing)
    check(door(0.1, 1.5001, 0.1), 2 - 1.6001, True, closing)


# ---- a second implementation, in loops, over what MuJoCo itself reports


class Naive:
    """Rewards, ends, success and state of one environment, read from `MjData` body by body."""

    def __init__(self, env: BiDexHandsVecEnv, index: int):
        self.env, self.model, self.data = env, env.model, data_of(env)[index]
        self.goal_rot = Rotation.from_quat(env._goal_rot[index])
        self.name = env.scenario

    def pose(self, name: str) -> tuple[np.ndarray, Rotation]:
        body = self.data.body(name)
        return body.xpos.copy(), Rotation.from_matrix(body.xmat.reshape(3, 3))

    def point(self, name: str, *offset: float) -> np.ndarray:
        position, rotation = self.pose(name)
        return position + rotation.apply(offset)

    def motion(self, name: str) -> np.ndarray:
        """Linear and angular velocity, world axes, at the body's origin."""
        velocity, body = np.zeros(6), self.model.body(name).id
        mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
        return np.concatenate([velocity[3:], velocity[:3]])

    def quat(self, name: str) -> np.ndarray:
        return self.data.body(name).xquat[[1, 2, 3, 0]]

    def handles(self) -> list[np.ndarray]:
        """Right, left."""
        if self.name == "ShadowHandLiftUnderarm":
            return [self.point("object", 0, 0.15, 0.06), self.point("object", 0, -0.15, 0.06)]
        if self.name == "ShadowHandPen":
            return [self.point("pen_cap", 0, -0.1, 0), self.point("pen_body", 0, 0.07, 0)]
        z = -0.04 if self.name == "ShadowHandDoorOpenOutward" else 0.04
        return [self.point("door_right", 0.39, -0.5, z), self.point("door_left", -0.39, -0.5, z)]

    def egg_term(self, name: str, goal: tuple, weight: float) -> tuple[float, float]:
        position, rotation = self.pose(name)
        distance = float(np.linalg.norm(np.array(goal) - position))
        angle = float((rotation * self.goal_rot.inv()).magnitude())  # in [0, pi], as 2 asin |v|
        return np.exp(-0.2 * (weight * distance + angle)), distance

    def outcome(self) -> tuple[Any, Any, Any]:
        z = self.data.body("object").xpos[2]
        palm, mount = (lambda h: self.pose(f"hand{h}_palm")[0]), (lambda h: self.pose(f"hand{h}_mount")[0])

        def away(position: np.ndarray, *home: float) -> bool:
            return float(np.linalg.norm(position - home)) >= 0.1

        if self.name == "ShadowHandOver":
            reward, distance = self.egg_term("object", (0, -0.64, 0.54), 50)
            return reward, z <= 0.2, distance < 0.03
        if self.name == "ShadowHandCatchAbreast":
            reward, distance = self.egg_term("object", (-0.39, -1.15, 0.54), 50)
            end = z <= 0.2 or away(palm(0), -0.3, -0.55, 0.5) or away(palm(1), -0.3, -1.15, 0.5)
            return reward, end, distance < 0.03
        if self.name == "ShadowHandTwoCatchUnderarm":
            (r1, d1), (r2, d2) = (
                self.egg_term("object", (0, -0.79, 0.54), 50),
                self.egg_term("object2", (0, -0.38, 0.54), 50),
            )
            return r1 + r2, z <= 0.2 or self.data.body("object2").xpos[2] <= 0.2, d1 + d2 < 0.06
        if self.name == "ShadowHandCatchOver2Underarm":
            reward, distance = self.egg_term("object", (0, -0.4, 0.55), 20)
            end = z <= 0.3 or away(mount(0), 0, 0, 0.5) or away(mount(1), 0, -0.8, 0.5)
            return reward, end, distance < 0.03
        right, left = self.handles()
        if self.name == "ShadowHandLiftUnderarm":
            d_right = np.linalg.norm(right - self.point("hand0_palm", 0, -0.02, 0.08))
            d_left = np.linalg.norm(left - self.point("hand1_palm", 0, -0.02, 0.08))
            distance = np.linalg.norm(self.data.body("object").xpos - [0, -0.6, 0.85])
            up = 3 * (0.385 - distance) if d_right < 0.08 and d_left < 0.08 else 0.0
            return 0.2 - d_right - d_left + up, z <= 0.3 or d_right >= 0.2 or d_left >= 0.2, distance < 0.05
        f_right = sum(np.linalg.norm(right - self.point(f"hand0_{f}distal", 0, 0, 0.02)) for f in FINGERS)
        f_left = sum(np.linalg.norm(left - self.point(f"hand1_{f}distal", 0, 0, 0.02)) for f in FINGERS)
        end = f_right >= 1.5 or f_left >= 1.5
        if self.name == "ShadowHandPen":
            gap = 5 * np.linalg.norm(right - left)
            up = gap - 0.8 if f_right < 0.75 and f_left < 0.75 else 0.0
            return np.exp(-10 * f_right) + np.exp(-10 * f_left) + up, end, gap > 1.5
        gap = abs(right[1] - left[1])
        close = self.name == "ShadowHandDoorCloseInward"
        up = (1 - 2 * gap if close else 2 * gap) if f_right < 0.5 and f_left < 0.5 else 0.0
        return 2 - f_right - f_left + up, end, gap < 0.5 if close else gap > 0.5

    def state(self, actions: list[np.ndarray], tip_force: np.ndarray) -> np.ndarray:
        """`tip_force`: (2, 5, 6), checked elsewhere."""
        rows: list[float] = []
        fixed = self.name == "ShadowHandOver"
        for h in range(2):
            joints = [self.model.joint(i) for i in range(self.model.njnt)]
            joints = [j for j in joints if j.name.startswith(f"hand{h}_") and j.name[-1] in "01234" and "J" in j.name]
            assert len(joints) == 24
            for joint in joints:
                low, high = joint.range
                rows.append((2 * self.data.qpos[joint.qposadr[0]] - high - low) / (high - low))
            rows += [0.2 * self.data.qvel[joint.dofadr[0]] for joint in joints]
            rows += [10 * self.data.qfrc_actuator[joint.dofadr[0]] for joint in joints]
            for finger in FINGERS:
                name = f"hand{h}_{finger}distal"
                rows += [*self.pose(name)[0], *self.quat(name), *self.motion(name)]
            rows += (10 * tip_force[h]).ravel().tolist()
            if not fixed:
                egg = self.name in EGGS
                rows += (
                    self.pose(f"hand{h}_mount")[0].tolist() if egg else [*self.point(f"hand{h}_palm", 0, -0.02, 0.08)]
                )
                rows += (self.pose(f"hand{h}_mount")[1].as_euler("xyz") % (2 * np.pi)).tolist()
            rows += actions[h].tolist()
        eggs = {EGGS[2]: ["object", "object2"]}.get(self.name, ["object"])
        for k, name in enumerate(eggs):
            linear, angular = np.split(self.motion(name), 2)
            rows += [*self.pose(name)[0], *self.quat(name), *linear, *(0.2 * angular)]
            if self.name in EGGS:
                relative = rotations.multiply(self.quat(name), rotations.conjugate(self.goal_rot.as_quat()))
                rows += [*TASKS[self.name].goals[k], *self.goal_rot.as_quat(), *relative]
        if self.name not in EGGS:
            right, left = self.handles()
            rows += [*left, *right] if "Door" in self.name else [*right, *left]
        return np.clip(rows, -5, 5)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_state_reward_and_end_equal_the_loops(scenario: str) -> None:
    env = BiDexHandsVecEnv(scenario, 3, isaac_done_semantics=True)  # no reset before we look at the physics
    limit = env.max_episode_steps = 40
    env.reset(11)
    rng, ends = np.random.default_rng(0), 0
    success = np.zeros(3, dtype=bool)
    for step in range(60):
        actions = random_actions(env, rng)
        success &= ~env._pending
        result = env.step(actions)
        tip_force = env._read([0, 1, 2]).tip_force
        for i in range(3):
            naive = Naive(env, i)
            reward, end, good = naive.outcome()
            success[i] |= good
            assert result.reward[i] == pytest.approx(reward, abs=1e-6)
            assert result.terminated[i] == (end or env._steps[i] >= limit)
            assert env.last_success[i] == success[i]
            ends += bool(end)
            if step % 7 == 0:
                expected = naive.state([a[i] for a in actions], tip_force[i])
                np.testing.assert_allclose(result.final_state[i], expected, rtol=0, atol=2e-6)
    if scenario in ("ShadowHandCatchAbreast", "ShadowHandCatchOver2Underarm"):
        assert ends > 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_observation_is_the_state_without_the_other_hand(scenario: str) -> None:
    env = BiDexHandsVecEnv(scenario, 2)
    obs, state = env.reset(0)
    h = {"ShadowHandOver": 187}.get(scenario, 199)
    rng = np.random.default_rng(0)
    for _ in range(5):
        np.testing.assert_array_equal(obs[0], np.delete(state, np.s_[h : 2 * h], axis=1))
        np.testing.assert_array_equal(obs[1], state[:, h:])
        obs, state, *_ = env.step(random_actions(env, rng))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agents_do_not_see_the_other_hand(scenario: str) -> None:
    env = BiDexHandsVecEnv(scenario, 2)
    env.reset(0)
    physics, task = env._read([0, 1]), env.task
    actions = np.zeros((2, 2, task.action_dim))
    obs, state = tasks.observe(task, physics, env._goal_rot, actions)

    def shifted(name: str) -> np.ndarray:
        x = getattr(physics, name).copy()
        x[:, 1] += 0.1
        return x

    fields = ("joint_pos", "joint_vel", "joint_force", "tips", "tip_force", "mounts", "palms")
    other = physics._replace(**{name: shifted(name) for name in fields})
    actions[:, 1] = 0.5
    new_obs, new_state = tasks.observe(task, other, env._goal_rot, actions)
    np.testing.assert_array_equal(new_obs[0], obs[0])
    own = slice(0, task.hand_dim)
    changed = (new_obs[1][:, own] != obs[1][:, own]).all(axis=0)
    assert changed.sum() > 0.9 * task.hand_dim  # all but angles beyond the clip
    np.testing.assert_array_equal(new_obs[1][:, task.hand_dim :], obs[1][:, task.hand_dim :])
    assert not np.array_equal(new_state, state)


@pytest.mark.parametrize("scenario", ["ShadowHandOver", "ShadowHandCatchOver2Underarm"])
def test_physics_and_contact_forces_equal_mujocos_own_step(scenario: str) -> None:
    """`mj_step` twice gives the same bits; the forces on the fingertips are the sums over the contacts it lists."""
    env = BiDexHandsVecEnv(scenario, 1, isaac_done_semantics=True)  # no reset before we look at the physics
    env.reset(2)
    model, data, twin = env.model, data_of(env)[0], mujoco.MjData(env.model)
    rng, touched, done = np.random.default_rng(0), 0, False
    while not done:
        saved = env.get_state()["physics"][0]
        mujoco.mj_setState(model, twin, saved, mujoco.mjtState.mjSTATE_INTEGRATION.value)
        result = env.step(random_actions(env, rng))
        twin.ctrl[:], twin.xfrc_applied[:] = data.ctrl, data.xfrc_applied
        mujoco.mj_step(model, twin, 2)
        np.testing.assert_array_equal(twin.qpos, data.qpos)
        np.testing.assert_array_equal(twin.qvel, data.qvel)
        done = bool(result.terminated[0])

        measured = env._read([0]).tip_force[0]
        for h in range(2):
            for f, finger in enumerate(FINGERS):
                body = data.body(f"hand{h}_{finger}distal")
                force, torque = np.zeros(3), np.zeros(3)
                # the contacts are those before the last substep; so is their place relative to the hand
                move = data.subtree_com[model.body_rootid[body.id]] - twin.subtree_com[model.body_rootid[body.id]]
                for c, contact in enumerate(twin.contact):
                    for geom, sign in ((contact.geom1, -1), (contact.geom2, 1)):
                        if model.geom_bodyid[geom] == body.id:
                            wrench = np.zeros(6)
                            mujoco.mj_contactForce(model, twin, c, wrench)
                            frame = contact.frame.reshape(3, 3).T
                            push = sign * frame @ wrench[:3]
                            force += push
                            torque += np.cross(contact.pos + move - body.xpos, push) + sign * frame @ wrench[3:]
                turn = Rotation.from_matrix(body.xmat.reshape(3, 3)).inv()
                np.testing.assert_allclose(measured[h, f, :3], turn.apply(force), atol=1e-9)
                np.testing.assert_allclose(measured[h, f, 3:], turn.apply(torque), atol=1e-9)
                touched += bool(np.linalg.norm(force) > 0.01)
    assert touched > 5


# ---- starts


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_starts(scenario: str) -> None:
    task = TASKS[scenario]
    starts = [tasks.draw_start(task, np.random.default_rng(seed)) for seed in range(200)]
    noisy = scenario in ("ShadowHandOver", "ShadowHandTwoCatchUnderarm")
    low, high = np.array([j[1:] for j in tasks.JOINTS]).T
    for seed, start in enumerate(starts):
        rng = np.random.default_rng(seed)
        u, g = rng.uniform(-1, 1, 53), rng.uniform(-1, 1, 4)
        np.testing.assert_allclose(start.object_offset, 0.01 * u[:3] if noisy else np.zeros(3))
        np.testing.assert_allclose(start.joint_pos, 0.2 * (low + (high - low) * u[5:29]) if noisy else np.zeros(24))
        about_x, about_y = Rotation.from_euler("x", np.pi * u[3]), Rotation.from_euler("y", np.pi * u[4])
        goal_x, goal_y = Rotation.from_euler("x", np.pi * g[0]), Rotation.from_euler("y", np.pi * g[1])
        if scenario in EGGS:
            assert Rotation.from_quat(start.object_rot).approx_equal(about_x * about_y, atol=1e-9)
            assert Rotation.from_quat(start.goal_rot).approx_equal(goal_x * goal_y, atol=1e-9)
        else:
            np.testing.assert_array_equal(start.object_rot, rotations.from_euler_zyx(task.object_euler))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_start_reaches_the_simulator(scenario: str) -> None:
    env = BiDexHandsVecEnv(scenario, 2)
    obs, _ = env.reset(5)
    task = env.task
    physics = env._read([0, 1])
    for i in range(2):
        start = tasks.draw_start(task, np.random.default_rng(5 + i))
        for k, place in enumerate(task.objects):
            lift = {"lift": 0.0155, "pen": 0.0116}.get(task.kind, 0.0)
            np.testing.assert_allclose(physics.objects[i, k, :3], place + start.object_offset + [0, 0, lift], atol=1e-9)
            turn = Rotation.from_quat(physics.objects[i, k, 3:7])
            assert turn.approx_equal(Rotation.from_quat(start.object_rot), atol=1e-6)
        np.testing.assert_allclose(physics.joint_pos[i], np.tile(start.joint_pos, (2, 1)), atol=1e-12)
        np.testing.assert_array_equal(physics.objects[i, :, 7:], 0)
        np.testing.assert_array_equal(env._goal_rot[i], start.goal_rot)
        np.testing.assert_array_equal(obs[0][i, 24:48], 0)
    # Targets at the start are the positions, as far as these lie in range; kp is 5 in the wrist and 1 elsewhere.
    q, low, high = physics.joint_pos, *np.array([j[1:] for j in tasks.JOINTS]).T
    drive = (q.clip(low, high) - q) * np.where(np.arange(24) < 2, 5.0, 1.0)
    drive[..., [5, 9, 13, 18]] = 0.0
    np.testing.assert_allclose(physics.joint_force, drive, atol=1e-9)


def test_tasks_differ_only_where_the_table_says() -> None:
    """A change of one number of a task changes what it should: the table is used, not copied into formulas."""
    task = TASKS["ShadowHandOver"]
    physics = still([at(0, -0.5, 0.54)])
    far = tasks.evaluate(task, physics, np.array([IDENTITY])).reward
    near = tasks.evaluate(replace(task, goals=((0.0, -0.5, 0.54),)), physics, np.array([IDENTITY])).reward
    soft = tasks.evaluate(replace(task, distance_weight=5.0), physics, np.array([IDENTITY])).reward
    assert far[0] == pytest.approx(np.exp(-1.4))
    assert near[0] == 1.0
    assert soft[0] == pytest.approx(np.exp(-0.14))
