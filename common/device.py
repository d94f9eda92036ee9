"""Which device to train on, how it multiplies matrices, and whether the replay buffer fits its memory."""

import ctypes
import sys

import torch
import torch._functorch.config as functorch_config

from common.cli import UsageError, memory_bytes


def pick_device(name: str, threads: int, matmul_precision: str, compile_requested: bool = False) -> torch.device:
    """Set up torch and return the device for `auto`, `cpu` or `cuda`; UsageError where CUDA is asked for and missing.

    `matmul_precision` is that of `torch.set_float32_matmul_precision`; `threads` counts CPU threads.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul_precision)
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if compile_requested and device.type == "cpu":
        print("--compile: ignored on a CPU; it compiles the networks on CUDA only")
    elif compile_requested:
        keep_graphs()
    return device


def keep_graphs() -> None:
    """Let a compiled network be passed backward more than once, as `gradients.gradient_norms` does, a term at a time.

    By default its backward pass uses up memory that the next one needs, and torch refuses that one.
    """
    functorch_config.donated_buffer = False


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation; returns whether it does (False without glibc).

    By default it hands the activations of a batch back to the system after use, and an update then spends 3 to 5 % of
    its time on a thousand page faults. Bigger blocks, such as a replay buffer, still go back.
    """
    if not sys.platform.startswith("linux"):
        return False
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, 1 << 30))


def check_replay_memory(transitions: int, bytes_each: int, device: torch.device) -> None:
    """State what the full replay buffer takes; UsageError when the device has less memory than that."""
    needed, available = transitions * bytes_each / 2**30, memory_bytes(device.type) / 2**30
    if needed > available:
        raise UsageError(
            f"--buffer-size {transitions}: the full replay buffer takes {needed:.1f} GiB and this machine's "
            f"{device.type} memory is {available:.1f} GiB; {int(0.8 * transitions * available / needed)} would fit"
        )
    print(
        f"replay buffer: {needed:.2f} GiB when full ({transitions} transitions) of {available:.1f} GiB; grows with use"
    )
