"""The nine Bi-DexHands tasks without a simulator: poses in; observations, state, reward, end and success out.

Facts from DexterousHands (https://github.com/PKU-MARL/DexterousHands, `bidexhands/tasks/shadow_hand_*.py` and
`cfg/*.yaml`), whose tasks HARL vendors unchanged. Agent 0 is the hand that they call right, agent 1 the other one;
both are the same right hand. World frame with z up, metres, radians, newtons; quaternions (x, y, z, w).

Shape letters: E environments, N = 2 hands (= agents), F = 5 fingers (first, middle, ring, little, thumb), J = 24
joints, K objects (1; 2 in TwoCatchUnderarm), A action size, H size of one hand's block, S state size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.bidexhands import rotations as rot

Vec3 = tuple[float, float, float]

# Joints of the hand in the order of its model: name, lower and upper limit (rad). The four "J0" of the fingers follow
# their J1 by a tendon and have no actuator; the other 20 are driven, in this order.
JOINTS = (
    ("WRJ1", -0.489, 0.14), ("WRJ0", -0.698, 0.489),
    ("FFJ3", -0.349, 0.349), ("FFJ2", 0.0, 1.571), ("FFJ1", 0.0, 1.571), ("FFJ0", 0.0, 1.571),
    ("MFJ3", -0.349, 0.349), ("MFJ2", 0.0, 1.571), ("MFJ1", 0.0, 1.571), ("MFJ0", 0.0, 1.571),
    ("RFJ3", -0.349, 0.349), ("RFJ2", 0.0, 1.571), ("RFJ1", 0.0, 1.571), ("RFJ0", 0.0, 1.571),
    ("LFJ4", 0.0, 0.785), ("LFJ3", -0.349, 0.349), ("LFJ2", 0.0, 1.571), ("LFJ1", 0.0, 1.571), ("LFJ0", 0.0, 1.571),
    ("THJ4", -1.047, 1.047), ("THJ3", 0.0, 1.222), ("THJ2", -0.209, 0.209), ("THJ1", -0.524, 0.524),
    ("THJ0", -1.571, 0.0),
)  # fmt: skip
UNDRIVEN = ("FFJ0", "MFJ0", "RFJ0", "LFJ0")
JOINT_LOW, JOINT_HIGH = (np.array([joint[i] for joint in JOINTS]) for i in (1, 2))
DRIVEN = np.array([i for i, joint in enumerate(JOINTS) if joint[0] not in UNDRIVEN])

CONTROL_DT = 1 / 60  # seconds per environment step
OBS_LIMIT = 5.0  # observations and state are clipped to [-5, 5]
FORCE_UNIT, TORQUE_UNIT = 1e5 * CONTROL_DT, 1e3 * CONTROL_DT  # N and N m of a full action at scale 1

PALM_POINT = np.array([0.0, -0.02, 0.08])  # in the palm's frame: where the hand grasps
TIP_POINT = np.array([0.0, 0.0, 0.02])  # in the frame of a distal link


@dataclass(frozen=True)
class Task:
    """What distinguishes one task from another."""

    kind: str  # egg, lift, pen or door: which formulas apply
    hands: tuple[tuple[Vec3, Vec3], tuple[Vec3, Vec3]]  # position and angles (`from_euler_zyx`) of each hand's mount
    max_episode_steps: int
    objects: tuple[Vec3, ...]  # where the objects start
    object_euler: Vec3 = (0.0, 0.0, 0.0)
    force_scale: float = 0.0  # of the force on the base; 0: the base is fixed and actions have no force and torque
    torque_scale: float = 0.0
    goals: tuple[Vec3, ...] = ()  # where each object should go
    distance_weight: float = 50.0  # egg: of the distance to the goal in the reward's exponent, per metre
    min_height: float = -np.inf  # an object at or below this height ends the episode
    home: tuple[Vec3, Vec3] | None = None  # egg: a hand 0.1 m or farther from its place ends the episode
    home_is_palm: bool = False  # what is compared with `home`: the palm, else the mount
    position_noise: float = 0.0  # half width of the uniform noise on the objects' start
    joint_noise: float = 0.0  # part of the joint ranges by which the joints vary at the start
    closing: bool = False  # door: to be closed, starts open
    handle_side: float = 0.0  # door: +1 handles on the leaves' front (+z), -1 on their back

    @property
    def fixed_base(self) -> bool:
        return self.force_scale == 0.0

    @property
    def action_dim(self) -> int:
        """Per hand: force (3) and torque (3) on a movable base, 20 joint targets."""
        return len(DRIVEN) + (0 if self.fixed_base else 6)

    @property
    def hand_dim(self) -> int:
        """H: size of one hand's block of the state."""
        return 3 * len(JOINTS) + 5 * 13 + 5 * 6 + (0 if self.fixed_base else 6) + self.action_dim

    @property
    def state_dim(self) -> int:
        return 2 * self.hand_dim + (24 * len(self.objects) if self.kind == "egg" else 19)

    @property
    def obs_dim(self) -> int:
        """An agent sees everything but the other hand's block."""
        return self.state_dim - self.hand_dim


_PEN_EULER, _DOOR_R, _DOOR_L = (3.14159, 0.0, 1.57), (3.14159, 1.57, 1.57), (3.14159, -1.57, 1.57)
_FLAT, _TURNED = (0.0, 0.0, 0.0), (0.0, 0.0, 3.1415)
_AT_DOOR = (((0.55, 0.2, 0.6), _DOOR_R), ((0.55, -0.2, 0.6), _DOOR_L))

TASKS = {
    "ShadowHandOver": Task(
        "egg", (((0.0, 0.0, 0.5), _FLAT), ((0.0, -1.0, 0.5), _TURNED)), 75, ((0.0, -0.39, 0.54),),
        goals=((0.0, -0.64, 0.54),), min_height=0.2, position_noise=0.01, joint_noise=0.2,
    ),
    "ShadowHandCatchAbreast": Task(
        "egg", (((0.0, -0.55, 0.5), (0.0, 0.3925, -1.57)), ((0.0, -1.15, 0.5), (0.0, -0.3925, -1.57))), 150,
        ((-0.39, -0.55, 0.54),), force_scale=0.5, torque_scale=1.0, goals=((-0.39, -1.15, 0.54),), min_height=0.2,
        home=((-0.3, -0.55, 0.5), (-0.3, -1.15, 0.5)), home_is_palm=True,
    ),
    "ShadowHandTwoCatchUnderarm": Task(
        "egg", (((0.0, 0.0, 0.5), _FLAT), ((0.0, -1.15, 0.5), _TURNED)), 75, ((0.0, -0.39, 0.54), (0.0, -0.78, 0.54)),
        force_scale=0.05, torque_scale=0.5, goals=((0.0, -0.79, 0.54), (0.0, -0.38, 0.54)), min_height=0.2,
        position_noise=0.01, joint_noise=0.2,
    ),
    "ShadowHandCatchOver2Underarm": Task(
        "egg", (((0.0, 0.0, 0.5), (1.67, 3.14, 0.0)), ((0.0, -0.8, 0.5), _TURNED)), 75, ((0.0, 0.05, 1.0),),
        force_scale=0.1, torque_scale=2.0, goals=((0.0, -0.4, 0.55),), distance_weight=20.0, min_height=0.3,
        home=((0.0, 0.0, 0.5), (0.0, -0.8, 0.5)),
    ),
    "ShadowHandLiftUnderarm": Task(
        "lift", (((0.0, 0.05, 0.45), _FLAT), ((0.0, -1.25, 0.45), (0.0, 0.0, 3.14159))), 500, ((0.0, -0.6, 0.45),),
        force_scale=0.25, torque_scale=1.0, goals=((0.0, -0.6, 0.85),), min_height=0.3,
    ),
    "ShadowHandPen": Task(
        "pen", (((0.55, 0.2, 0.8), _PEN_EULER), ((0.55, -0.2, 0.8), _PEN_EULER)), 125, ((0.0, 0.0, 0.6),),
        (1.57, 1.57, 0.0), force_scale=0.5, torque_scale=0.1,
    ),
    "ShadowHandDoorCloseInward": Task(
        "door", (((0.9, 0.5, 0.6), _DOOR_R), ((0.9, -0.5, 0.6), _DOOR_L)), 250, ((0.0, 0.0, 0.7),),
        (0.0, 3.14159, 0.0), force_scale=0.5, torque_scale=0.5, closing=True, handle_side=1.0,
    ),
    "ShadowHandDoorOpenInward": Task(
        "door", _AT_DOOR, 250, ((0.0, 0.0, 0.7),), (0.0, 3.14159, 0.0), force_scale=0.5, torque_scale=0.5,
        handle_side=1.0,
    ),
    "ShadowHandDoorOpenOutward": Task(
        "door", _AT_DOOR, 250, ((0.0, 0.0, 0.7),), force_scale=0.5, torque_scale=0.5, handle_side=-1.0,
    ),
}  # fmt: skip
SCENARIOS = tuple(TASKS)
NUM_AGENTS = dict.fromkeys(SCENARIOS, 2)


class Physics(NamedTuple):
    """What the formulas need of a simulator, float64."""

    joint_pos: np.ndarray
    """(E, N, J)"""
    joint_vel: np.ndarray
    """(E, N, J), rad/s"""
    joint_force: np.ndarray
    """(E, N, J), N m that act at the joints"""
    tips: np.ndarray
    """(E, N, F, 13): position, quaternion, linear and angular velocity of the distal links, world frame"""
    tip_force: np.ndarray
    """(E, N, F, 6): contact force and torque on the distal links, in their own frames"""
    mounts: np.ndarray
    """(E, N, 7): position and quaternion of the hands' roots"""
    palms: np.ndarray
    """(E, N, 7)"""
    objects: np.ndarray
    """(E, K, 13): as `tips`, of the objects' roots"""
    parts: np.ndarray
    """(E, 2, 7): pen: cap, body; door: the leaves at +y and -y; other tasks: (E, 0, 7)"""


class Outcome(NamedTuple):
    """What a step brings, apart from observations."""

    reward: np.ndarray
    """float64 (E,)"""
    ended: np.ndarray
    """bool (E,): the task itself ends the episode; the time limit is not part of it"""
    success: np.ndarray
    """bool (E,): the task's condition of success holds now"""


class Start(NamedTuple):
    """What varies between the episodes of a task."""

    object_offset: np.ndarray
    """(3,): added to the start of every object"""
    object_rot: np.ndarray
    """(4,): rotation of every object"""
    goal_rot: np.ndarray
    """(4,): rotation that the reward of the egg tasks asks for"""
    joint_pos: np.ndarray
    """(J,): joint positions of both hands; may lie outside the joint ranges, as in the original"""


def draw_start(task: Task, rng: np.random.Generator) -> Start:
    """Draw the start of an episode, in the original's order: 53 numbers for objects and joints, 4 for the goal."""
    u, goal = rng.uniform(-1.0, 1.0, 2 * len(JOINTS) + 5), rng.uniform(-1.0, 1.0, 4)
    object_rot, goal_rot = rot.from_euler_zyx(task.object_euler), np.array([0.0, 0.0, 0.0, 1.0])
    if task.kind == "egg":
        object_rot, goal_rot = _tumble(u[3], u[4]), _tumble(goal[0], goal[1])
    joint_pos = task.joint_noise * (JOINT_LOW + (JOINT_HIGH - JOINT_LOW) * u[5 : 5 + len(JOINTS)])
    return Start(task.position_noise * u[:3], object_rot, goal_rot, joint_pos)


def _tumble(u: float, v: float) -> np.ndarray:
    return rot.multiply(rot.about_axis(0, np.pi * u), rot.about_axis(1, np.pi * v))


def hand_points(physics: Physics) -> np.ndarray:
    """Where the hands grasp, (E, N, 3)."""
    return physics.palms[..., :3] + rot.rotate(physics.palms[..., 3:], PALM_POINT)


def handle_points(task: Task, physics: Physics) -> np.ndarray:
    """Where each hand should grasp, (E, N, 3): the handles of pot and door, the cap and the body of the pen."""
    if task.kind == "lift":
        frames, points = physics.objects[..., :7], np.array([[0.0, 0.15, 0.06], [0.0, -0.15, 0.06]])
    elif task.kind == "pen":
        frames, points = physics.parts, np.array([[0.0, -0.1, 0.0], [0.0, 0.07, 0.0]])
    else:
        z = 0.04 * task.handle_side
        frames, points = physics.parts, np.array([[0.39, -0.5, z], [-0.39, -0.5, z]])
    return frames[..., :3] + rot.rotate(frames[..., 3:], points)


def evaluate(task: Task, physics: Physics, goal_rot: np.ndarray) -> Outcome:
    """Reward, end and success of the step that led to `physics`. `goal_rot`: (E, 4), used by the egg tasks only."""
    low = np.logical_or.reduce(physics.objects[..., 2] <= task.min_height, axis=1)
    if task.kind == "egg":
        return _evaluate_egg(task, physics, goal_rot, low)
    handles = handle_points(task, physics)
    if task.kind == "lift":
        reach = _norm(handles - hand_points(physics))
        distance = _norm(np.array(task.goals[0]) - physics.objects[:, 0, :3])
        lifting = (reach < 0.08).all(axis=1)
        reward = 0.2 - reach.sum(axis=1) + np.where(lifting, 3.0 * (0.385 - distance), 0.0)
        return Outcome(reward, low | (reach >= 0.2).any(axis=1), distance < 0.05)
    tips = physics.tips[..., :3] + rot.rotate(physics.tips[..., 3:7], TIP_POINT)
    reach = _norm(handles[:, :, None] - tips).sum(axis=2)  # (E, N): over the five fingers
    ended = (reach >= 1.5).any(axis=1)
    if task.kind == "pen":
        gap = 5.0 * _norm(handles[:, 0] - handles[:, 1])
        holding = (reach < 0.75).all(axis=1)
        reward = np.exp(-10.0 * reach).sum(axis=1) + np.where(holding, gap - 0.8, 0.0)
        return Outcome(reward, ended, gap > 1.5)
    gap = np.abs(handles[:, 0, 1] - handles[:, 1, 1])
    holding = (reach < 0.5).all(axis=1)
    reward = 2.0 - reach.sum(axis=1) + np.where(holding, 1.0 - 2.0 * gap if task.closing else 2.0 * gap, 0.0)
    return Outcome(reward, ended, gap < 0.5 if task.closing else gap > 0.5)


def _evaluate_egg(task: Task, physics: Physics, goal_rot: np.ndarray, low: np.ndarray) -> Outcome:
    distance = _norm(np.array(task.goals) - physics.objects[..., :3])  # (E, K)
    turn = rot.multiply(physics.objects[..., 3:7], rot.conjugate(goal_rot)[:, None])
    angle = 2.0 * np.arcsin(np.minimum(_norm(turn[..., :3]), 1.0))
    reward = np.exp(-0.2 * (task.distance_weight * distance + angle)).sum(axis=1)
    ended = low
    if task.home is not None:
        places = physics.palms if task.home_is_palm else physics.mounts
        ended = low | (_norm(places[..., :3] - np.array(task.home)) >= 0.1).any(axis=1)
    return Outcome(reward, ended, distance.sum(axis=1) < 0.03 * len(task.objects))


def observe(
    task: Task, physics: Physics, goal_rot: np.ndarray, actions: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Observations, N arrays float32 (E, H + S - 2H), and state, float32 (E, S), clipped to [-5, 5].

    `goal_rot`: (E, 4). `actions`: (E, N, A), the actions that led here, zeros at the start of an episode. The state is
    hand 0's block, hand 1's block, the objects' part; agent i sees block i and the objects' part.
    """
    num_envs, h = len(actions), task.hand_dim
    state = np.empty((num_envs, task.state_dim))
    hands = state[:, : 2 * h].reshape(num_envs, 2, h)
    hands[..., 0:24] = (2.0 * physics.joint_pos - JOINT_HIGH - JOINT_LOW) / (JOINT_HIGH - JOINT_LOW)
    hands[..., 24:48] = 0.2 * physics.joint_vel
    hands[..., 48:72] = 10.0 * physics.joint_force
    hands[..., 72:137] = physics.tips.reshape(num_envs, 2, 65)
    hands[..., 137:167] = 10.0 * physics.tip_force.reshape(num_envs, 2, 30)
    if not task.fixed_base:
        hands[..., 167:170] = physics.mounts[..., :3] if task.kind == "egg" else hand_points(physics)
        hands[..., 170:173] = rot.to_euler_xyz(physics.mounts[..., 3:])
    hands[..., h - task.action_dim :] = actions

    tail = state[:, 2 * h :]
    for k in range(len(task.objects)):
        part = tail[:, 24 * k :]
        part[:, :10] = physics.objects[:, k, :10]
        part[:, 10:13] = 0.2 * physics.objects[:, k, 10:]
        if task.kind == "egg":
            part[:, 13:16] = task.goals[k]
            part[:, 16:20] = goal_rot
            part[:, 20:24] = rot.multiply(physics.objects[:, k, 3:7], rot.conjugate(goal_rot))
    if task.kind != "egg":
        handles = handle_points(task, physics)
        if task.kind == "door":  # left before right, unlike pot and pen
            handles = handles[:, ::-1]
        tail[:, 13:] = handles.reshape(num_envs, 6)

    np.clip(state, -OBS_LIMIT, OBS_LIMIT, out=state)
    state = state.astype(np.float32)
    return [np.concatenate([state[:, i * h : (i + 1) * h], state[:, 2 * h :]], axis=1) for i in range(2)], state


def _norm(v: np.ndarray) -> np.ndarray:
    """Lengths of the vectors along the last axis."""
    return np.sqrt((v * v).sum(axis=-1))
