"""`common.device`: memory that is freed stays with the process, so that an update causes no page faults."""

import mmap
import os
import platform
import resource
import subprocess
import sys

import pytest
from script_helpers import ROOT

FAULTS = """
import resource, sys, torch
from common.device import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def work():
    kept = [torch.ones(1000, 256) for _ in range(20)]
for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*argv: str) -> int:
    # Both thresholds held at 128 KiB: left alone they move, and what goes back depends on the layout of the heap.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", FAULTS, *argv]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def faults_are_counted() -> bool:
    """Whether touching new pages shows in `ru_minflt`; sandboxed kernels such as gVisor leave it at zero."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with mmap.mmap(-1, 1000 * mmap.PAGESIZE) as pages:
        for page in range(0, len(pages), mmap.PAGESIZE):
            pages[page] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt > before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
@pytest.mark.skipif(not faults_are_counted(), reason="this kernel counts no page faults")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < 100 < 1000 < page_faults()
