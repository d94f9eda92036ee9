"""In the original this compiles C++ when it is imported."""

import os

import torch  # noqa: F401

from isaacgym import gymapi  # noqa: F401  # pyright: ignore[reportMissingImports]

os.system("echo a child process writes to stdout")
