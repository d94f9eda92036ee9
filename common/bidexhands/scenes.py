"""The scenes of the nine tasks as MuJoCo models: two hands, the objects, and sensors for what tasks.py needs."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

from typing import Any

import numpy as np

from common.bidexhands import objects
from common.bidexhands.hand import GROUND, hand_spec
from common.bidexhands.rotations import about_axis, from_euler_zyx, multiply, rotate, to_wxyz
from common.bidexhands.tasks import JOINTS, TASKS, Task
from common.mamujoco_robots import mujoco

SUBSTEPS = 2  # of 1/120 s per control step, as in the original
DAMPING = 100.0  # 1/s, of linear and angular velocity of a movable base, the original's `linear_damping`
OPEN_ANGLE = 1.57  # rad, at which DoorCloseInward starts
DISTALS = ("ffdistal", "mfdistal", "rfdistal", "lfdistal", "thdistal")

# Centre of mass of the hand seen from its mount, in the mount's own frame.
_HAND_COM = np.array([0.0017, 0.007, 0.30])
_MOUNT_TURN = multiply(about_axis(0, 1.5708), about_axis(2, 3.14159))  # of the mount in its base, from the asset
_COLOURS = ((0.93, 0.84, 0.74), (0.72, 0.82, 0.93))
_EGG_COLOURS = ((0.45, 0.6, 0.98), (0.98, 0.5, 0.65))

# How high above its original start an object starts here. The original puts pot and pen into their tables and lets the
# solver throw them out.
_START_LIFT = {"lift": 0.0155, "pen": 0.0116}

# Camera: what it looks at, distance, azimuth and elevation (degrees).
_CAMERAS = {
    "ShadowHandOver": ((0.0, -0.5, 0.48), 0.95, 0, -35),
    "ShadowHandCatchAbreast": ((-0.25, -0.85, 0.5), 1.0, 180, -45),
    "ShadowHandTwoCatchUnderarm": ((0.0, -0.57, 0.48), 1.05, 0, -35),
    "ShadowHandCatchOver2Underarm": ((0.0, -0.4, 0.7), 1.3, 0, -15),
    "ShadowHandLiftUnderarm": ((0.0, -0.6, 0.5), 1.3, 0, -30),
    "ShadowHandPen": ((0.2, 0.0, 0.65), 1.2, 15, -40),
    "ShadowHandDoorCloseInward": ((0.3, 0.0, 0.65), 2.2, 205, -30),
    "ShadowHandDoorOpenInward": ((0.1, 0.0, 0.65), 1.9, 215, -25),
    "ShadowHandDoorOpenOutward": ((0.1, 0.0, 0.65), 1.9, 215, -25),
}


def build_spec(scenario: str) -> Any:
    """The `MjSpec` of one of `tasks.SCENARIOS`; `compile_model` finishes what a spec cannot say."""
    task = TASKS[scenario]
    spec = mujoco.MjSpec()
    spec.modelname = scenario
    spec.compiler.degree = False
    spec.option.timestep = 1 / 120
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.iterations = spec.option.ls_iterations = 20
    world = spec.worldbody
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.35] * 3, [0.45] * 3
    light = {"type": mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, "dir": [-0.4, 0.2, -1], "castshadow": False}
    world.add_light(pos=[1, -0.5, 3], diffuse=[0.5] * 3, **light)
    sky = {"type": mujoco.mjtTexture.mjTEXTURE_SKYBOX, "builtin": mujoco.mjtBuiltin.mjBUILTIN_GRADIENT}
    spec.add_texture(name="sky", rgb1=[0.75, 0.82, 0.9], rgb2=[0.5, 0.56, 0.62], width=64, height=64, **sky)
    plane = {"contype": GROUND, "conaffinity": 0, "rgba": [0.4, 0.46, 0.52, 1.0]}
    world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.1], **plane)
    world.add_camera(name="view", **_camera(*_CAMERAS[scenario]))
    for hand in range(2):
        _add_hand(world, task, hand)
    _add_objects(spec, task)
    _add_sensors(spec, task)
    return spec


def compile_model(scenario: str) -> Any:
    """The `MjModel` of one of `tasks.SCENARIOS`.

    Raises ImportError (one line) if the hand's files are missing.
    """
    model = build_spec(scenario).compile()
    if not TASKS[scenario].fixed_base:
        # PhysX damps every link with force -100 * mass * velocity (torque likewise). With the base's origin at the
        # hand's centre of mass that is nearly diagonal: -100 * diag(M) on the base's six degrees of freedom.
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        inertia = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, inertia)
        for hand in range(2):
            first = model.joint(f"hand{hand}_base").dofadr[0]
            model.dof_damping[first : first + 6] = DAMPING * np.diag(inertia)[first : first + 6]
    return model


def start_qpos(model: Any, task: Task) -> np.ndarray:
    """Positions (nq,) at which every episode starts, before the noise of `tasks.draw_start`."""
    qpos = model.qpos0.copy()
    if task.closing:
        for name in ("door_right", "door_left"):
            qpos[model.joint(f"{name}_hinge").qposadr] = OPEN_ANGLE
    return qpos


def start_qvel(model: Any, task: Task) -> np.ndarray:
    """Velocities (nv,) at which every episode starts: zero, but DoorCloseInward's leaves at 1.57 rad/s (original)."""
    qvel = np.zeros(model.nv)
    if task.closing:
        for name in ("door_right", "door_left"):
            qvel[model.joint(f"{name}_hinge").dofadr] = OPEN_ANGLE
    return qvel


def _add_hand(world: Any, task: Task, hand: int) -> None:
    """Attach a hand as `hand0_...` or `hand1_...`, on a movable base if the task has one."""
    position, euler = task.hands[hand]
    rotation = from_euler_zyx(euler)
    mount = hand_spec(_COLOURS[hand]).body("mount")
    if task.fixed_base:
        world.add_frame(pos=position, quat=to_wxyz(rotation)).attach_body(mount, f"hand{hand}_", "")
        return
    com = rotate(_MOUNT_TURN, _HAND_COM)
    base = world.add_body(name=f"base{hand}", pos=position + rotate(rotation, com), quat=to_wxyz(rotation), gravcomp=1)
    base.explicitinertial, base.mass, base.inertia, base.ipos = True, 1e-3, [1e-6] * 3, [0, 0, 0]
    base.add_freejoint(name=f"hand{hand}_base")
    base.add_frame(pos=-com).attach_body(mount, f"hand{hand}_", "")


def _add_objects(spec: Any, task: Task) -> None:
    world, rotation = spec.worldbody, from_euler_zyx(task.object_euler)
    start = np.array(task.objects[0]) + [0.0, 0.0, _START_LIFT.get(task.kind, 0.0)]
    if task.kind == "egg":
        for k, (position, goal) in enumerate(zip(task.objects, task.goals)):
            name = "object" if k == 0 else f"object{k + 1}"
            objects.add_egg(world, name, position, [*_EGG_COLOURS[k], 1.0])
            objects.add_egg_goal(world, f"goal{k}", goal, [*_EGG_COLOURS[k], 0.35])
    elif task.kind == "lift":
        objects.add_table(world, [0.0, -0.6, 0.2], [0.3, 0.3, 0.4], slide=2.0)  # mean of the table's 3 and the pot's 1
        objects.add_pot(world, start)
    elif task.kind == "pen":
        objects.add_table(world, [0.0, 0.0, 0.3], [0.5, 1.0, 0.6], slide=1.0)
        objects.add_pen(world, start, rotation)
    else:
        objects.add_door(world, start, rotation, rest_angle=OPEN_ANGLE if task.closing else 0.0)
        # A frame fixed to the world is no "parent" to MuJoCo's contact filter.
        for a, b in (("door_frame", "door_right"), ("door_frame", "door_left"), ("door_right", "door_left")):
            spec.add_exclude(bodyname1=a, bodyname2=b)


def sensor_layout(task: Task) -> dict[str, tuple[int, ...]]:
    """Blocks of `sensordata` in their order, each with its shape."""
    layout: dict[str, tuple[int, ...]] = {
        "joint_pos": (2, len(JOINTS)),
        "joint_vel": (2, len(JOINTS)),
        "joint_force": (2, len(JOINTS)),
        "tips": (2, len(DISTALS), 13),
        "mounts": (2, 7),
        "palms": (2, 7),
        "objects": (len(task.objects), 13),
        "parts": (2 if task.kind in ("pen", "door") else 0, 7),
    }
    return layout


def _add_sensors(spec: Any, task: Task) -> None:
    """Let MuJoCo itself compute velocities at body origins and lay everything out as `sensor_layout` says.

    Quaternions come as (w, x, y, z).
    """
    sensor, kind = mujoco.mjtSensor, mujoco.mjtObj
    for measure in (sensor.mjSENS_JOINTPOS, sensor.mjSENS_JOINTVEL, sensor.mjSENS_JOINTACTFRC):
        for hand in range(2):
            for joint, *_ in JOINTS:
                spec.add_sensor(type=measure, objtype=kind.mjOBJ_JOINT, objname=f"hand{hand}_{joint}")
    pose = (sensor.mjSENS_FRAMEPOS, sensor.mjSENS_FRAMEQUAT)
    motion = (*pose, sensor.mjSENS_FRAMELINVEL, sensor.mjSENS_FRAMEANGVEL)
    eggs = ["object"] if len(task.objects) == 1 else ["object", "object2"]
    parts = {"pen": ["pen_cap", "pen_body"], "door": ["door_right", "door_left"]}.get(task.kind, [])
    for names, measures in (
        ([f"hand{hand}_{distal}" for hand in range(2) for distal in DISTALS], motion),
        (["hand0_mount", "hand1_mount"], pose),
        (["hand0_palm", "hand1_palm"], pose),
        (eggs, motion),
        (parts, pose),
    ):
        for name in names:
            for measure in measures:
                spec.add_sensor(type=measure, objtype=kind.mjOBJ_XBODY, objname=name)


def _camera(target: tuple[float, float, float], distance: float, azimuth: float, elevation: float) -> dict[str, Any]:
    """Position and quaternion of a fixed camera, from the parameters of MuJoCo's free camera (degrees)."""
    az, el = np.radians(azimuth), np.radians(elevation)
    forward = np.array([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)])
    right = np.array([np.sin(az), -np.cos(az), 0.0])
    axes = np.stack([right, np.cross(right, forward), -forward], axis=1)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, axes.ravel())
    return {"pos": np.array(target) - distance * forward, "quat": quat}
