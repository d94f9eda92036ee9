"""What the tests of `common.bidexhands` share."""

import io

import numpy as np
import torch

from common.bidexhands import BiDexHandsVecEnv
from common.bidexhands.simulator import ThreadedMuJoCo
from common.vecenv import StepResult

EGGS = ("ShadowHandOver", "ShadowHandCatchAbreast", "ShadowHandTwoCatchUnderarm", "ShadowHandCatchOver2Underarm")
KINDS = (
    "ShadowHandOver",
    "ShadowHandCatchAbreast",
    "ShadowHandLiftUnderarm",
    "ShadowHandPen",
    "ShadowHandDoorCloseInward",
)


def data_of(env: BiDexHandsVecEnv) -> list:
    """MuJoCo's own data of each environment."""
    assert isinstance(env._simulator, ThreadedMuJoCo)
    return env._simulator.data


def random_actions(env: BiDexHandsVecEnv, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.uniform(-1, 1, (env.num_envs, dim)).astype(np.float32) for dim in env.action_dims]


def zero_actions(env: BiDexHandsVecEnv) -> list[np.ndarray]:
    return [np.zeros((env.num_envs, dim), dtype=np.float32) for dim in env.action_dims]


def arrays_of(result: StepResult) -> list[np.ndarray]:
    return [*result.obs, *result.final_obs, *(x for x in result if isinstance(x, np.ndarray))]


def assert_same(a: StepResult, b: StepResult) -> None:
    for x, y in zip(arrays_of(a), arrays_of(b), strict=True):
        np.testing.assert_array_equal(x, y)


def raw(env: BiDexHandsVecEnv) -> np.ndarray:
    """Positions and velocities of every environment, unrounded."""
    return np.stack([np.concatenate([d.qpos, d.qvel]) for d in data_of(env)])


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
