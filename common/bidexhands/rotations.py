"""Quaternions in batches: arrays (..., 4) in the order (x, y, z, w), the order of Bi-DexHands' tensors.

Element-wise NumPy only, no matrix products: the result of one row never depends on how many rows are computed with it.
"""

from collections.abc import Sequence

import numpy as np


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Vector product of the last axes, (..., 3); a quarter of the time of `np.cross` for small arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    x = ay * bz - az * by
    out = np.empty((*x.shape, 3))
    out[..., 0] = x
    out[..., 1] = az * bx - ax * bz
    out[..., 2] = ax * by - ay * bx
    return out


def rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Vectors v (..., 3) turned by unit quaternions q (..., 4); leading axes broadcast."""
    axis = q[..., :3]
    t = cross(axis, v)
    t += t
    return v + q[..., 3:] * t + cross(axis, t)


def conjugate(q: np.ndarray) -> np.ndarray:
    """The inverse rotation of unit quaternions (..., 4)."""
    return q * np.array([-1.0, -1.0, -1.0, 1.0])


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation b followed by the rotation a, (..., 4)."""
    av, aw, bv, bw = a[..., :3], a[..., 3:], b[..., :3], b[..., 3:]
    vector = aw * bv + bw * av + cross(av, bv)
    scalar = aw * bw - (av * bv).sum(axis=-1, keepdims=True)
    return np.concatenate([vector, scalar], axis=-1)


def about_axis(axis: int, angle: float) -> np.ndarray:
    """The rotation by `angle` (radians) about x (0), y (1) or z (2), (4,)."""
    q = np.zeros(4)
    q[axis], q[3] = np.sin(angle / 2), np.cos(angle / 2)
    return q


def from_euler_zyx(euler: Sequence[float]) -> np.ndarray:
    """Isaac Gym's `Quat.from_euler_zyx(a, b, c)`, (4,): turn by a about x, then b about y, then c about z (radians)."""
    a, b, c = euler
    return multiply(about_axis(2, c), multiply(about_axis(1, b), about_axis(0, a)))


def to_euler_xyz(q: np.ndarray) -> np.ndarray:
    """Isaac Gym's `get_euler_xyz`: roll, pitch and yaw of (..., 4), each in [0, 2 pi), (..., 3)."""
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    out = np.empty((*x.shape, 3))
    out[..., 0] = np.arctan2(2 * (w * x + y * z), w * w - x * x - y * y + z * z)
    out[..., 1] = np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0))
    out[..., 2] = np.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    return out % (2 * np.pi)


def to_wxyz(q: np.ndarray) -> list[float]:
    """One quaternion (4,) in MuJoCo's order (w, x, y, z)."""
    return [float(q[3]), float(q[0]), float(q[1]), float(q[2])]
