"""The scenes of Bi-DexHands on MuJoCo against measured facts of the originals: hand, geometry, behaviour, stability."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import numpy as np
import pytest
from bidex_helpers import EGGS, data_of, zero_actions

from common.bidexhands import SCENARIOS, BiDexHandsVecEnv, scenes, tasks
from common.bidexhands.hand import asset_folder, hand_spec
from common.bidexhands.scenes import DISTALS, compile_model
from common.bidexhands.tasks import JOINTS, TASKS
from common.mamujoco_robots import mujoco

# ---- the hand


@pytest.fixture(scope="module")
def published():
    """The hand as Gymnasium-Robotics' own scene compiles it."""
    return mujoco.MjModel.from_xml_path(str(asset_folder() / "hand" / "reach.xml"))


@pytest.fixture(scope="module")
def hand():
    spec = mujoco.MjSpec()
    spec.worldbody.add_frame().attach_body(hand_spec((1, 1, 1)).body("mount"), "hand0_", "")
    return spec.compile()


def theirs(model, kind: str, name: str):
    return getattr(model, kind)(f"robot0:{name}")


def test_joints_and_motors_are_the_published_ones(hand, published) -> None:
    assert [hand.joint(j).name for j in range(hand.njnt)] == [f"hand0_{name}" for name, *_ in JOINTS]
    for name, low, high in JOINTS:
        ours, original = hand.joint(f"hand0_{name}"), theirs(published, "joint", name)
        np.testing.assert_array_equal(ours.range, (low, high))
        np.testing.assert_array_equal(ours.range, original.range)
        for field in ("damping", "armature", "frictionloss", "axis", "pos"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(original, field), err_msg=f"{name} {field}")
    driven = [JOINTS[i][0] for i in tasks.DRIVEN]
    assert [hand.actuator(a).name for a in range(hand.nu)] == [f"hand0_A_{name}" for name in driven]
    assert [hand.joint(j).name for j in hand.actuator_trnid[:, 0]] == [f"hand0_{name}" for name in driven]
    for name in driven:
        ours, original = hand.actuator(f"hand0_A_{name}"), theirs(published, "actuator", f"A_{name}")
        for field in ("gainprm", "biasprm", "forcerange", "ctrlrange", "forcelimited", "ctrllimited"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(original, field), err_msg=f"{name} {field}")


def test_bodies_and_couplings_are_the_published_ones(hand, published) -> None:
    names = [hand.body(b).name.removeprefix("hand0_") for b in range(1, hand.nbody)]
    assert len(names) == 26
    assert [names[i] for i in (0, 1, 2, 3, 7, 11, 15, 20, 25)] == ["mount", "forearm", "wrist", "palm", *DISTALS]
    for name in names:
        ours = hand.body(f"hand0_{name}")
        original = theirs(published, "body", "hand mount" if name == "mount" else name)
        for field in ("mass", "inertia", "quat", "ipos", "iquat"):
            np.testing.assert_allclose(getattr(ours, field), getattr(original, field), atol=1e-12, err_msg=name)
        np.testing.assert_array_equal(ours.pos, [0, 0, 0] if name == "mount" else original.pos)
    assert hand.body_mass.sum() == pytest.approx(5.011, abs=1e-3)
    assert (hand.body_gravcomp[1:] == 1).all()
    assert hand.ntendon == 4
    for t in range(4):
        name = hand.tendon(t).name.removeprefix("hand0_")
        assert name in ("T_FFJ1c", "T_MFJ1c", "T_RFJ1c", "T_LFJ1c")
    np.testing.assert_array_equal(hand.tendon_range, [[-0.001, 0.001]] * 4)
    assert hand.tendon_limited.all()
    np.testing.assert_array_equal(hand.wrap_prm, [0.00705, -0.00805] * 4)
    coupled = [hand.joint(j).name.removeprefix("hand0_") for j in hand.wrap_objid]
    assert coupled == [f"{finger}J{j}" for finger in ("FF", "MF", "RF", "LF") for j in (0, 1)]


def test_collision_geometry_is_the_published_one(hand, published) -> None:
    touchable = [g for g in range(hand.ngeom) if hand.geom_contype[g] or hand.geom_conaffinity[g]]
    assert len(touchable) == 20
    assert hand.npair == 19
    for g in touchable:
        ours = hand.geom(g)
        original = theirs(published, "geom", ours.name.removeprefix("hand0_"))
        for field in ("type", "size", "pos", "quat", "friction", "condim", "margin", "solref", "solimp"):
            np.testing.assert_allclose(getattr(ours, field), getattr(original, field), atol=1e-9, err_msg=ours.name)


AT_ZERO = {"ff": (0.033, 0, 0.165), "mf": (0.011, 0, 0.169), "rf": (-0.011, 0, 0.165), "lf": (-0.034, 0, 0.158),
           "th": (0.0835, -0.009, 0.0785)}  # fmt: skip
AT_MIDDLE = {"ff": (0.033, -0.0568, 0.1268), "th": (0.0745, -0.0492, 0.0696)}


@pytest.mark.parametrize("share, expected", [(0.0, AT_ZERO), (0.5, AT_MIDDLE)])
def test_distal_links_in_the_palms_frame(hand, share: float, expected: dict) -> None:
    data = mujoco.MjData(hand)
    data.qpos[:] = share * (tasks.JOINT_LOW + tasks.JOINT_HIGH)
    mujoco.mj_kinematics(hand, data)
    palm = data.body("hand0_palm")
    for finger, place in expected.items():
        seen = palm.xmat.reshape(3, 3).T @ (data.body(f"hand0_{finger}distal").xpos - palm.xpos)
        np.testing.assert_allclose(seen, place, atol=1e-4)


# ---- start geometry


def start(scenario: str) -> tuple[BiDexHandsVecEnv, tasks.Physics]:
    env = BiDexHandsVecEnv(scenario, 1)
    env.reset(0)
    return env, env._read([0])


def test_catch_abreast_starts_at_home() -> None:
    env, physics = start("ShadowHandCatchAbreast")
    np.testing.assert_allclose(physics.palms[0, :, :3], [[-0.29, -0.546, 0.491], [-0.29, -1.154, 0.491]], atol=1e-3)
    assert env.task.home is not None
    assert (np.linalg.norm(physics.palms[0, :, :3] - np.array(env.task.home), axis=1) < 0.02).all()


def test_over_2_underarm_starts_at_home_with_an_upright_hand() -> None:
    _, physics = start("ShadowHandCatchOver2Underarm")
    np.testing.assert_allclose(physics.mounts[0, :, :3], [[0, 0, 0.5], [0, -0.8, 0.5]], atol=1e-9)
    assert (physics.tips[0, 0, :4, 2] > 0.93).all()  # under the egg at z = 1
    assert (np.abs(physics.tips[0, 1, :4, 2] - 0.49) < 0.03).all()


@pytest.mark.parametrize(
    "scenario, right, left",
    [
        ("ShadowHandDoorOpenOutward", (0.032, 0.037, 0.683), (0.034, -0.030, 0.683)),
        ("ShadowHandDoorOpenInward", (0.048, 0.037, 0.717), (0.046, -0.030, 0.717)),
        ("ShadowHandLiftUnderarm", (0.0, -0.45, 0.51 + 0.0155), (0.0, -0.75, 0.51 + 0.0155)),
        ("ShadowHandPen", (0.0, 0.1, 0.6116), (0.0, -0.07, 0.6116)),
    ],
)
def test_handles_at_the_start(scenario: str, right: tuple, left: tuple) -> None:
    env, physics = start(scenario)
    np.testing.assert_allclose(tasks.handle_points(env.task, physics)[0], [right, left], atol=1e-3)


def test_door_to_be_closed_starts_open_and_opening() -> None:
    env, physics = start("ShadowHandDoorCloseInward")
    right, left = tasks.handle_points(env.task, physics)[0]
    assert right[1] - left[1] > 0.9
    for side in ("right", "left"):
        hinge = data_of(env)[0].joint(f"door_{side}_hinge")
        assert (hinge.qpos[0], hinge.qvel[0]) == (1.57, 1.57)


@pytest.mark.parametrize("scenario", SCENARIOS[-3:])
def test_leaf_handles_leave_room_for_a_finger(scenario: str) -> None:
    """The point to be reached lies between leaf and bar: a ball of a finger's radius there touches neither."""
    model = compile_model(scenario)
    side = TASKS[scenario].handle_side
    for leaf, x in (("door_right", 0.39), ("door_left", -0.39)):
        for g in np.flatnonzero(model.geom_bodyid == model.body(leaf).id):
            geom = model.geom(g)
            turn = np.empty(9)
            mujoco.mju_quat2Mat(turn, geom.quat)
            local = turn.reshape(3, 3).T @ (np.array([x, -0.5, 0.04 * side]) - geom.pos)
            if geom.type[0] == mujoco.mjtGeom.mjGEOM_CAPSULE:
                along = np.clip(local[2], -geom.size[1], geom.size[1])
                gap = np.linalg.norm(local - [0, 0, along]) - geom.size[0]
            else:
                gap = np.linalg.norm(np.maximum(np.abs(local) - geom.size, 0))
            assert gap > 0.007, "the bar's inner edge is 7.5 mm from the point"


def halves(kind: int, size: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Half the extents of a geom along the axes that its rotation matrix (3, 3) leads to."""
    geom, along = mujoco.mjtGeom, np.abs(turn[:, 2])
    if kind == geom.mjGEOM_BOX:
        return np.abs(turn) @ size
    if kind == geom.mjGEOM_ELLIPSOID:
        return np.sqrt(turn**2 @ size**2)
    if kind == geom.mjGEOM_CYLINDER:
        return along * size[1] + size[0] * np.sqrt(1 - np.minimum(along, 1) ** 2)
    assert kind == geom.mjGEOM_CAPSULE
    return along * size[1] + size[0]


def box_around(model, body: str) -> np.ndarray:
    """Smallest and largest x, y, z of a body's own geoms in its frame, (3, 2)."""
    corners = []
    for g in np.flatnonzero(model.geom_bodyid == model.body(body).id):
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, model.geom_quat[g])
        reach = halves(model.geom_type[g], model.geom_size[g], turn.reshape(3, 3))
        corners += [model.geom_pos[g] - reach, model.geom_pos[g] + reach]
    return np.stack([np.min(corners, axis=0), np.max(corners, axis=0)], axis=1)


def test_objects_have_the_measured_dimensions() -> None:
    """In m; a part's frame is that of the original's link. The tolerance is that of the measurement."""
    lift, pen = (compile_model(f"ShadowHand{name}") for name in ("LiftUnderarm", "Pen"))
    expected = {
        (compile_model("ShadowHandOver"), "object"): [(-0.03, 0.03), (-0.03, 0.03), (-0.04, 0.04)],
        # side walls of radius 0.118 about x = -0.005, bars of radius 0.0055 at y = +-0.175, z = 0.063
        (lift, "object"): [(-0.123, 0.113), (-0.1805, 0.1805), (-0.065, 0.0685)],
        (lift, "lid"): [(-0.122, 0.112), (-0.117, 0.117), (0.0514, 0.1015)],
        (pen, "pen_body"): [(-0.0105, 0.0105), (-0.16, 0.2), (-0.0105, 0.0105)],
        (pen, "pen_cap"): [(-0.0115, 0.0115), (-0.172, -0.04), (-0.0115, 0.0115)],
    }
    for (model, body), sides in expected.items():
        np.testing.assert_allclose(box_around(model, body), sides, atol=2e-3, err_msg=body)
    for model, size, middle in (
        (lift, (0.3, 0.3, 0.4), (0, -0.6, 0.2)),
        (pen, (0.5, 1.0, 0.6), (0, 0, 0.3)),
    ):
        np.testing.assert_allclose(2 * model.geom("table").size, size)
        np.testing.assert_allclose(model.geom("table").pos, middle)


@pytest.mark.parametrize("scenario", SCENARIOS[-3:])
def test_doors_have_the_measured_dimensions_and_handles_that_hold(scenario: str) -> None:
    """Leaves of 0.44 x 0.925 x 0.0176 m; on both faces a bar from y = -0.66 to -0.39, its ends on arms to the leaf."""
    model = compile_model(scenario)
    for name, side in (("door_right", 1), ("door_left", -1)):
        geoms = [model.geom(g) for g in np.flatnonzero(model.geom_bodyid == model.body(name).id)]
        (leaf,) = (g for g in geoms if g.type[0] == mujoco.mjtGeom.mjGEOM_BOX)
        np.testing.assert_allclose(2 * leaf.size, (0.44, 0.925, 0.0176), atol=1e-3)
        hinge_edge = leaf.pos[0] - side * leaf.size[0]
        assert abs(hinge_edge) < 0.03, "the leaf begins at its hinge"
        lines = []
        for geom in geoms:
            if geom.type[0] == mujoco.mjtGeom.mjGEOM_CAPSULE:
                turn = np.empty(9)
                mujoco.mju_quat2Mat(turn, geom.quat)
                reach = turn.reshape(3, 3)[:, 2] * geom.size[1]
                lines.append(np.array([geom.pos - reach, geom.pos + reach]))
        bars = [line for line in lines if np.ptp(line[:, 1]) > 0.1]
        arms = [line for line in lines if np.ptp(line[:, 1]) < 1e-6]
        assert len(bars) == 2 and len(arms) == 4
        np.testing.assert_allclose(sorted(bar[0, 2] for bar in bars), (-0.08, 0.07), atol=0.01)
        for bar in bars:
            np.testing.assert_allclose(sorted(bar[:, 1]), (-0.66, -0.39), atol=5e-3)
            np.testing.assert_allclose(side * bar[:, 0], 0.375, atol=5e-3)
            for end in bar:
                (arm,) = (a for a in arms if np.linalg.norm(a - end, axis=1).min() < 1e-6)
                foot = a if np.linalg.norm((a := arm[0]) - end) > 1e-6 else arm[1]
                assert abs(foot[2] - leaf.pos[2]) < leaf.size[2], "the other end is in the leaf"


def test_objects_weigh_what_the_originals_weigh() -> None:
    egg = compile_model("ShadowHandOver")
    assert egg.body("object").mass[0] == pytest.approx(500 * 4 / 3 * np.pi * 0.03 * 0.03 * 0.04)
    pot = compile_model("ShadowHandLiftUnderarm")
    assert (pot.body("object").mass[0], pot.body("lid").mass[0]) == (3.0, 1.0)
    np.testing.assert_allclose(pot.joint("lid_slide").range, [0, 0.06])
    np.testing.assert_allclose(compile_model("ShadowHandPen").joint("cap_slide").range, [0, 0.492])
    door = compile_model("ShadowHandDoorOpenInward")
    leaf = np.flatnonzero((door.geom_bodyid == door.body("door_right").id) & (door.geom_type == 6))
    assert 500 * 8 * door.geom_size[leaf[0]].prod() == pytest.approx(3.6, abs=0.05)


def test_what_resists_in_pot_pen_and_door() -> None:
    """Inertia, springs, dampers and friction (with a hand's 1, PhysX's mean: 0.55 for the door's 0.1)."""
    pot = compile_model("ShadowHandLiftUnderarm")
    for name in ("object", "lid"):
        np.testing.assert_array_equal(pot.body(name).inertia, [0.2, 0.4, 0.4])
        np.testing.assert_array_equal(pot.body(name).ipos, [0, 0, 0])
    pen = compile_model("ShadowHandPen").joint("cap_slide")
    assert (pen.stiffness[0], pen.damping[0]) == (1.0, 0.5)
    for scenario, rest in (("ShadowHandDoorOpenInward", 0.0), ("ShadowHandDoorCloseInward", 1.57)):
        door = compile_model(scenario)
        for side in ("right", "left"):
            hinge = door.joint(f"door_{side}_hinge")
            assert (hinge.stiffness[0], hinge.damping[0]) == (5.0, 1.0)
            assert door.qpos_spring[hinge.qposadr[0]] == rest
            geoms = np.flatnonzero(door.geom_bodyid == door.body(f"door_{side}").id)
            assert (door.geom_friction[geoms, 0] == 0.55).all()
            assert (door.geom_priority[geoms] == 1).all(), "else MuJoCo takes the hand's 1"
    fingers = [g for g in range(pot.ngeom) if "_C_" in pot.geom(g).name]
    assert len(fingers) == 40
    assert (pot.geom_friction[fingers, 0] == 1.0).all() and not pot.geom_priority[fingers].any()


@pytest.mark.parametrize(
    "scenario, towards_the_hands", [(SCENARIOS[-3], True), (SCENARIOS[-2], True), (SCENARIOS[-1], False)]
)
def test_inward_doors_open_towards_the_hands(scenario: str, towards_the_hands: bool) -> None:
    env, _ = start(scenario)
    model, data = env.model, data_of(env)[0]
    for side in ("right", "left"):
        data.joint(f"door_{side}_hinge").qpos[0] = 1.0
    mujoco.mj_step1(model, data)
    handles = tasks.handle_points(env.task, env._read([0]))[0]
    assert (data.body("hand0_palm").xpos[0] > 0.2) and ((handles[:, 0] > 0.2) == towards_the_hands).all()


# ---- behaviour


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_saturated_actions_leave_the_physics_sound(scenario: str) -> None:
    """3000 steps in all, extreme actions held for 12; no warning of MuJoCo (they include NaN), joints in range."""
    env = BiDexHandsVecEnv(scenario, 3, isaac_done_semantics=True)  # warnings are read before a reset clears them
    env.reset(0)
    rng, worst = np.random.default_rng(0), 0.0
    for step in range(1000):
        if step % 12 == 0:
            actions = [np.sign(rng.uniform(-1, 1, (3, dim))) for dim in env.action_dims]
        result = env.step(actions)
        for data in data_of(env):
            assert not any(warning.number for warning in data.warning), scenario
        assert np.isfinite(result.state).all() and np.isfinite(result.reward).all()
        q = env._read([0, 1, 2]).joint_pos
        worst = max(worst, np.maximum(tasks.JOINT_LOW - q, q - tasks.JOINT_HIGH)[env._steps > 20].max(initial=0.0))
    assert worst < 0.35  # rad beyond a limit, once the start's own excess is over


def first_episodes(scenario: str, num_envs: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return and length of the first episode of each environment under Gaussian actions."""
    env, rng = BiDexHandsVecEnv(scenario, num_envs), np.random.default_rng(0)
    env.reset(3)
    total, length, over = np.zeros(num_envs), np.zeros(num_envs), np.zeros(num_envs, dtype=bool)
    for _ in range(env.max_episode_steps):
        result = env.step([rng.normal(0, sigma, (num_envs, dim)) for dim in env.action_dims])
        total += np.where(over, 0, result.reward)
        length += ~over
        over |= result.terminated | result.truncated
    assert over.all()
    return total, length


def test_untrained_over() -> None:
    """Original: 3.13 to 3.19 over full episodes, nearly untrained."""
    total, length = first_episodes("ShadowHandOver", 60, 0.8)
    assert 2.9 < total[length == 75].mean() < 3.4


def test_still_hands_in_two_catch_underarm() -> None:
    total, length = first_episodes("ShadowHandTwoCatchUnderarm", 20, 0.0)
    assert 1.4 < total.mean() < 1.8
    assert (length == 75).all()


def finished_episodes(scenario: str, scale: float) -> tuple[list[float], float]:
    """The statistic of DexterousHands' own logs after 32 steps under actions of deviation 0.8: returns of the last 100
    finished episodes; and the number of episodes over within 8 steps, per environment."""
    env, rng = BiDexHandsVecEnv(scenario, 150, base_force_scale=scale), np.random.default_rng(0)
    env.reset(1)
    running, returns, early = np.zeros(150), [], 0
    for step in range(32):
        result = env.step([rng.normal(0, 0.8, (150, dim)) for dim in env.action_dims])
        running += result.reward
        done = result.terminated | result.truncated
        returns += running[done].tolist()
        running[done] = 0.0
        early += int(done.sum()) if step < 8 else 0
    return returns[-100:], early / 150


def test_untrained_over_2_underarm_tells_the_force_scale() -> None:
    """Original: 3.39, no end within 8 steps. Forces of full scale would end nearly all by then."""
    returns, early = finished_episodes("ShadowHandCatchOver2Underarm", 0.25)
    assert early < 0.01
    assert 2.9 < np.mean(returns) < 3.8
    returns, early = finished_episodes("ShadowHandCatchOver2Underarm", 1.0)
    assert early > 0.8
    assert np.mean(returns) < 0.5


def test_pot_stands_still() -> None:
    env, physics = start("ShadowHandLiftUnderarm")
    for _ in range(120):
        env.step(zero_actions(env))
    after = env._read([0])
    np.testing.assert_allclose(after.objects[0, 0, :7], physics.objects[0, 0, :7], atol=2e-3)


@pytest.mark.parametrize("scenario", SCENARIOS[-4:])
def test_untouched_objects_stay(scenario: str) -> None:
    env, physics = start(scenario)
    for _ in range(30):
        env.step(zero_actions(env))
    # The leaves that start open run into their stops at 1.57 rad/s.
    slack = 0.02 if env.task.closing else 5e-3
    np.testing.assert_allclose(env._read([0]).parts, physics.parts, atol=slack)


def test_hands_stay_where_no_force_acts() -> None:
    """Gravity does not act on them, and the damped base hardly recoils from the fingers."""
    for scenario in ("ShadowHandLiftUnderarm", "ShadowHandDoorOpenInward"):
        env, physics = start(scenario)
        for _ in range(60):
            env.step(zero_actions(env))
        moved = env._read([0]).mounts[..., :3] - physics.mounts[..., :3]
        assert np.abs(moved).max() < 0.01


def test_hands_collide_with_objects_and_tables_only() -> None:
    """Over saturated play, what touches a hand is an object, a table, or one of its own listed pairs."""
    seen = set()
    for scenario in SCENARIOS:
        env, rng = BiDexHandsVecEnv(scenario, 1), np.random.default_rng(0)
        env.reset(0)
        for step in range(60):
            if step % 12 == 0:
                actions = [np.sign(rng.uniform(-1, 1, (1, dim))) for dim in env.action_dims]
            env.step(actions)
            for contact in data_of(env)[0].contact:
                bodies = [env.model.body(env.model.geom_bodyid[g]).name for g in (contact.geom1, contact.geom2)]
                kinds = sorted(b.split("_")[0] if b.startswith("hand") else "other" for b in bodies)
                seen.add(tuple(kinds))
                if kinds in (["hand0", "hand0"], ["hand1", "hand1"]):
                    assert contact.exclude == 0
                assert "door_frame" not in bodies or kinds != ["other", "other"]
    assert ("hand0", "other") in seen and ("hand1", "other") in seen
    assert ("hand0", "hand1") not in seen


def test_goal_eggs_are_drawn_and_never_touched() -> None:
    for scenario in EGGS:
        env, _ = start(scenario)
        for k, goal in enumerate(TASKS[scenario].goals):
            body = data_of(env)[0].body(f"goal{k}")
            np.testing.assert_allclose(body.xpos, goal)
            np.testing.assert_allclose(np.roll(body.xquat, -1), env._goal_rot[0], atol=1e-12)
            geoms = np.flatnonzero(env.model.geom_bodyid == env.model.body(f"goal{k}").id)
            assert len(geoms) == 1
            assert not env.model.geom_contype[geoms].any() and not env.model.geom_conaffinity[geoms].any()


def test_time_steps() -> None:
    assert scenes.SUBSTEPS * compile_model("ShadowHandOver").opt.timestep == pytest.approx(1 / 60)
