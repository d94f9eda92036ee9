"""Bi-DexHands: nine tasks for two Shadow Hands. `tasks` has the formulas, `env` the vector environment on MuJoCo."""

from common.bidexhands.env import BiDexHandsVecEnv
from common.bidexhands.tasks import SCENARIOS

__all__ = ["SCENARIOS", "BiDexHandsVecEnv"]
