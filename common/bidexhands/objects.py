"""The objects of Bi-DexHands, made of primitives with the dimensions of the originals.

The originals are meshes of PartNet-Mobility models (pot, pen, door) that cannot be passed on. Frames, joints, masses
and sizes below are theirs, measured; rewards depend on the frames only, so what is approximate is the shape of
contacts. Every function adds one object to a `MjsBody`.

Friction: PhysX takes the mean of two surfaces' coefficients, MuJoCo the larger one unless a geom has priority. So the
values here are the means with a hand's 1, with priority where that is less than 1.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.bidexhands.hand import GROUND, HAND, OBJECT
from common.bidexhands.rotations import about_axis, from_euler_zyx, to_wxyz
from common.mamujoco_robots import mujoco

Geom = mujoco.mjtGeom
_ALL = {"contype": OBJECT, "conaffinity": HAND | GROUND | OBJECT}
_DENSITY = 500.0  # kg/m^3, of eggs, pen and door
_TWIST = 0.005  # m, coefficient of torsional friction
_URDF = from_euler_zyx((np.pi / 2, 0.0, -np.pi / 2))  # from an object's z-up frame to the y-up frame of its links


def _friction(slide: float) -> list[float]:
    return [slide, _TWIST, 1e-4]


def _capsule(body: Any, start: Sequence[float], end: Sequence[float], radius: float, **settings: Any) -> None:
    body.add_geom(type=Geom.mjGEOM_CAPSULE, fromto=[*start, *end], size=[radius, 0, 0], **settings)


def add_egg(world: Any, name: str, position: Sequence[float] | np.ndarray, rgba: Sequence[float]) -> None:
    """A free ellipsoid of 75 g."""
    egg = world.add_body(name=name, pos=position)
    egg.add_freejoint(name=f"{name}_free")
    surface = {"density": _DENSITY, "friction": _friction(1.0), "condim": 4, "rgba": rgba, **_ALL}
    egg.add_geom(type=Geom.mjGEOM_ELLIPSOID, size=[0.03, 0.03, 0.04], **surface)


def add_egg_goal(world: Any, name: str, position: Sequence[float] | np.ndarray, rgba: Sequence[float]) -> None:
    """What the egg's goal looks like: drawn, never touched; its rotation is set per episode."""
    goal = world.add_body(name=name, pos=position, mocap=True)
    nothing = {"contype": 0, "conaffinity": 0, "rgba": rgba}
    goal.add_geom(type=Geom.mjGEOM_ELLIPSOID, size=[0.03, 0.03, 0.04], **nothing)


def add_table(world: Any, position: Sequence[float] | np.ndarray, size: Sequence[float], slide: float) -> None:
    """A fixed box; `size` are full lengths."""
    half = [s / 2 for s in size]
    surface = {"friction": _friction(slide), "rgba": [0.45, 0.36, 0.28, 1.0], "contype": GROUND, "conaffinity": HAND}
    world.add_geom(name="table", type=Geom.mjGEOM_BOX, pos=position, size=half, **surface)


def add_pot(world: Any, position: Sequence[float] | np.ndarray) -> None:
    """A pot of 3 kg with two bar handles at y = +-0.175, and its lid of 1 kg that slides 60 mm up."""
    pot = world.add_body(name="object", pos=position)
    pot.add_freejoint(name="object_free")
    lid = pot.add_body(name="lid")
    lid.add_joint(name="lid_slide", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, 0, 1], range=[0, 0.06], limited=True)
    for body, mass in ((pot, 3.0), (lid, 1.0)):
        # The file's own inertia, far above that of a pot this size: it makes the pot slow to tip.
        body.explicitinertial, body.mass, body.inertia, body.ipos = True, mass, [0.2, 0.4, 0.4], [0, 0, 0]
    metal = {"friction": _friction(1.0), "condim": 4, "rgba": [0.75, 0.76, 0.8, 1.0], **_ALL}
    dark = {**metal, "rgba": [0.25, 0.25, 0.28, 1.0]}
    x0 = -0.005  # the pot's axis is off its frame

    pot.add_geom(type=Geom.mjGEOM_CYLINDER, pos=[x0, 0, -0.0618], size=[0.1182, 0.0034, 0], **metal)
    sides, inner, outer = 16, 0.1140, 0.1182
    middle, thick = (inner + outer) / 2, (outer - inner) / 2
    for side in range(sides):
        angle = 2 * np.pi * side / sides
        place = [x0 + middle * np.cos(angle), middle * np.sin(angle), 0.0]
        size = [thick, outer * np.tan(np.pi / sides), 0.0584]
        turn = to_wxyz(about_axis(2, angle))
        pot.add_geom(type=Geom.mjGEOM_BOX, pos=place, quat=turn, size=size, **metal)
    for side in (1, -1):
        y = 0.1747 * side
        _capsule(pot, [x0 - 0.046, y, 0.063], [x0 + 0.046, y, 0.063], 0.0055, **dark)
        for x in (x0 - 0.029, x0 + 0.029):
            _capsule(pot, [x, 0.115 * side, 0.018], [x, y, 0.063], 0.0037, **dark)

    lid.add_geom(type=Geom.mjGEOM_CYLINDER, pos=[x0, 0, 0.0562], size=[0.1171, 0.0048, 0], **metal)
    _capsule(lid, [x0, -0.046, 0.096], [x0, 0.046, 0.096], 0.0055, **dark)
    for y in (-0.034, 0.034):
        _capsule(lid, [x0, y, 0.0605], [x0, y, 0.096], 0.0037, **dark)


def add_pen(world: Any, position: Sequence[float] | np.ndarray, rotation: np.ndarray) -> None:
    """A free pen; its cap slides 0.492 m along -y of the pen's body, against a weak spring and damper."""
    pen = world.add_body(name="object", pos=position, quat=to_wxyz(rotation))
    pen.add_freejoint(name="object_free")
    body = pen.add_body(name="pen_body", quat=to_wxyz(_URDF))
    surface = {"friction": _friction(1.0), "condim": 4, "density": _DENSITY, **_ALL}
    _capsule(body, [0, -0.03, 0], [0, 0.1895, 0], 0.0105, rgba=[0.2, 0.3, 0.7, 1.0], **surface)
    inside = {**surface, "contype": 0, "conaffinity": 0}  # the tip under the cap
    _capsule(body, [0, -0.149, 0], [0, -0.05, 0], 0.0095, rgba=[0.2, 0.3, 0.7, 1.0], **inside)
    cap = body.add_body(name="pen_cap")
    slide = cap.add_joint(name="cap_slide", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, -1, 0], range=[0, 0.492])
    slide.limited, slide.stiffness, slide.damping = True, _first(slide.stiffness, 1.0), _first(slide.damping, 0.5)
    _capsule(cap, [0, -0.1603, 0], [0, -0.052, 0], 0.0115, rgba=[0.85, 0.2, 0.2, 1.0], **surface)


def add_door(world: Any, position: Sequence[float] | np.ndarray, rotation: np.ndarray, rest_angle: float) -> None:
    """A double door on upright hinges in a fixed frame, a C-shaped handle on both faces of each leaf.

    The leaves (`door_right`, `door_left`: 0.44 x 0.925 x 0.018 m, 3.6 kg) open by 0 to pi/2 against a damper and a
    spring that rests at `rest_angle` (rad). Whether that spring acts in the original cannot be seen from its code.
    """
    frame = world.add_body(name="object", pos=position, quat=to_wxyz(rotation)).add_body(
        name="door_frame", quat=to_wxyz(_URDF)
    )
    surface = {"friction": _friction(0.55), "priority": 1, "condim": 3, "density": _DENSITY, **_ALL}
    for y in (-0.4439, 0.4811):
        frame.add_geom(type=Geom.mjGEOM_BOX, pos=[-0.002, y, -0.0117], size=[0.881, 0.0022, 0.0242], **surface)
    for name, side, hinge, leaf_x, leaf_z, bar_x, bars in (
        ("door_right", 1, [-0.42653, 0.48329, 0.00846], 0.1993, -0.0069, 0.3745, (0.0651, -0.0755)),
        ("door_left", -1, [0.42041, 0.48329, 0.0056], -0.1971, -0.0041, -0.3728, (0.0679, -0.0727)),
    ):
        leaf = frame.add_body(name=name, pos=hinge)
        turn = leaf.add_joint(name=f"{name}_hinge", axis=[0, -side, 0], range=[0, np.pi / 2], limited=True)
        turn.stiffness, turn.damping = _first(turn.stiffness, 5.0), _first(turn.damping, 1.0)
        turn.springref = rest_angle
        glass = {**surface, "rgba": [0.6, 0.8, 0.9, 0.6]}
        leaf.add_geom(type=Geom.mjGEOM_BOX, pos=[leaf_x, -0.4647, leaf_z], size=[0.2202, 0.4625, 0.0088], **glass)
        brass = {**surface, "rgba": [0.8, 0.68, 0.2, 1.0]}
        for z in bars:
            _capsule(leaf, [bar_x, -0.658, z], [bar_x, -0.394, z], 0.0176, **brass)
            for y in (-0.658, -0.394):
                _capsule(leaf, [bar_x, y, leaf_z], [bar_x, y, z], 0.0176, **brass)


def _first(current: Any, value: float) -> Any:
    """`value` in the form that this MuJoCo version wants: a number, or a vector whose first entry counts."""
    shape = np.shape(current)
    if not shape:
        return value
    vector = np.zeros(shape)
    vector[0] = value
    return vector
