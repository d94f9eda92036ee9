"""The fake of DexterousHands, with the demands of the original on command line and working directory."""

import argparse

from fake_bidex import FakeVec  # pyright: ignore[reportMissingImports]


def make(task_name, algo):
    parser = argparse.ArgumentParser()
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--num_envs", type=int, default=0)
    parser.add_argument("--episode_length", type=int, default=0)
    args = parser.parse_args()
    if not args.headless:
        raise RuntimeError("would open a window")
    with open("cfg/{}.yaml".format(task_name)):  # noqa: UP032
        return FakeVec(task_name, args.num_envs, args.episode_length)
