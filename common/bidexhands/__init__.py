"""Bi-DexHands: nine tasks for two Shadow Hands.

`tasks` has the formulas, `env` the vector environment on MuJoCo, `isaac` the one on a user's own Isaac Gym.
"""

from common.bidexhands.env import BiDexHandsVecEnv
from common.bidexhands.isaac import IsaacBiDexHandsVecEnv
from common.bidexhands.tasks import NUM_AGENTS, SCENARIOS

__all__ = ["NUM_AGENTS", "SCENARIOS", "BiDexHandsVecEnv", "IsaacBiDexHandsVecEnv"]
