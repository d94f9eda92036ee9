"""The fake of HARL's wrapper, with the demands of the original on command line and working directory."""

import argparse
import os

import torch  # noqa: F401
from fake_bidex import FAULTS, TASKS, FakeVec  # pyright: ignore[reportMissingImports]

if "task_import" in FAULTS:
    raise ModuleNotFoundError("No module named 'gym'")


class DexHandsEnv:
    def __init__(self, settings):
        parser = argparse.ArgumentParser()
        parser.add_argument("--headless", action="store_true")
        if not parser.parse_args().headless:
            raise RuntimeError("would open a window")
        os.stat(os.path.join(os.getcwd(), "../harl/envs/dexhands/DexterousHands/assets/texture.txt"))
        if settings["hands_episode_length"] != TASKS[settings["task"]][3] and "any_length" not in FAULTS:
            raise RuntimeError("wrong hands_episode_length")
        self.env = FakeVec(settings["task"], settings["n_threads"], settings["hands_episode_length"])
