"""Stands in for NVIDIA's package in tests: refuses to come after torch, prints a lot, fails on demand."""

import os
import sys

from fake_bidex import FAULTS

if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules.  Please import torch after isaacgym modules.")
if "numpy_names" in FAULTS:
    raise AttributeError("module 'numpy' has no attribute 'float'")
print("Importing module 'gym_38'")
os.write(1, b"noise on file descriptor 1, as from C++\n")
