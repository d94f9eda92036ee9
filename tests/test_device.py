"""`common.device`: memory that is freed stays with the process, so that an update causes no page faults."""

import ctypes.util
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
    done = subprocess.run([sys.executable, "-c", FAULTS, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux") or ctypes.util.find_library("c") is None, reason="no glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < 100 < 1000 < page_faults()
