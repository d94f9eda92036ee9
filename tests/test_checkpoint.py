"""Checkpoints under real faults: SIGKILL inside the save, damage of every kind, a full disk."""

import errno
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import checkpoint
from common.video import write_mp4

ROOT = Path(__file__).resolve().parent.parent


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run `code` in a fresh interpreter that can import `common`."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2, of a few KiB each."""
    for step in (1, 2):
        checkpoint.save(tmp_path, f"step_{step}.pt", {"step": step, "weights": torch.full((1000,), float(step))})
    return tmp_path


def assert_falls_back(folder: Path, reason: str) -> None:
    """step_2.pt is refused by name and for `reason`; step_1.pt is what loads."""
    with pytest.raises(checkpoint.CheckpointError, match=rf"step_2\.pt: .*{reason}"):
        checkpoint.load(folder / "step_2.pt")
    lines: list[str] = []
    path, payload = checkpoint.load_newest(folder, warn=lines.append)
    assert path.name == "step_1.pt" and payload["step"] == 1
    assert len(lines) == 1 and "step_2.pt" in lines[0]


# ---- content


def test_round_trip_without_pickled_code(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    payload = {
        "array": np.arange(6, dtype=np.int64).reshape(2, 3).T,  # not contiguous
        "scalar": np.float64(0.1),
        "zero_dim": np.array(3.5),
        "words": np.arange(3, dtype=np.uint32),  # as in the state of a Mersenne twister
        "generator": generator.bit_generator.state,  # integers of 128 bits
        "nested": [({"mask": np.array([True, False])}, None, "text"), 7],
        "adam": torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    path = checkpoint.save(tmp_path, "step_3.pt", payload)
    for loaded in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert loaded["array"].tolist() == payload["array"].tolist()
        assert loaded["scalar"] == 0.1 and type(loaded["scalar"]) is float
        assert loaded["zero_dim"].shape == () and loaded["zero_dim"].item() == 3.5
        assert loaded["words"].numpy().dtype == np.uint32
        assert loaded["nested"][0][0]["mask"].tolist() == [True, False] and loaded["nested"][1] == 7
        assert loaded["adam"] == payload["adam"]
        assert torch.equal(loaded["torch_rng"], payload["torch_rng"])
        assert loaded["format_version"] == checkpoint.FORMAT_VERSION
        restored = np.random.default_rng()
        restored.bit_generator.state = loaded["generator"]
        assert restored.random() == np.random.Generator(type(generator.bit_generator)(5)).random()


def test_slice_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    buffer = torch.zeros(1_000_000)
    path = checkpoint.save(tmp_path, "step_1.pt", {"filled": buffer[:10], "same": np.zeros(1_000_000)[:10]})
    assert path.stat().st_size < 10_000
    assert checkpoint.load(path)["filled"].shape == (10,)


def test_payload_that_weights_only_cannot_load_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, "step_1.pt", {"path": Path("x")})
    with pytest.raises(checkpoint.CheckpointError, match=r"step_1\.pt: unreadable"):
        checkpoint.load(path)


# ---- killed in the save

# One interpreter imports torch and forks a process per kill: starting fifty would take minutes.
FORKING_LOOP = """
import os, sys, torch
from pathlib import Path
from common import checkpoint

def save_for_ever(folder, report):
    step = 0
    while True:
        step += 1
        payload = {"step": step, "weights": torch.full((1_000_000,), float(step))}
        checkpoint.save(folder, f"step_{step}.pt", payload)
        os.write(report, f"{step} ".encode())
        checkpoint.save(folder, "best.pt", payload)
        checkpoint.prune(folder)

torch.set_num_threads(1)
for kill in range(int(sys.argv[2])):
    reader, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        save_for_ever(Path(sys.argv[1]) / str(kill), report)
    os.close(report)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print(os.read(reader, 1 << 16).split()[-1].decode(), flush=True)
    os.close(reader)
"""
KILLS = 50


def test_sigkill_at_random_points_never_loses_the_last_good_checkpoint(tmp_path: Path) -> None:
    generator = random.Random(0)
    torn = 0
    launcher = start(FORKING_LOOP, tmp_path, KILLS)
    assert launcher.stdout is not None
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        pid = int(launcher.stdout.readline())
        while not (folder / "best.pt").exists():
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        returned = int(launcher.stdout.readline())
        torn += bool(list(folder.glob(".*.tmp")))
        path, payload = checkpoint.load_newest(folder, warn=pytest.fail)
        step = payload["step"]
        assert path.name == f"step_{step}.pt"
        assert step - returned in (0, 1), "a save that had returned is lost"
        assert torch.equal(payload["weights"], torch.full((1_000_000,), float(step)))
        assert step - checkpoint.load(folder / "best.pt")["step"] in (0, 1)
        assert len(list(folder.glob("step_*.pt"))) <= 3
        assert not list(folder.glob(".*")), "a temporary file stayed"
        shutil.rmtree(folder)
    launcher.communicate(timeout=60)
    assert torn >= KILLS // 5, f"only {torn} of {KILLS} kills hit a write: the test proves little"


def test_temporary_of_a_living_save_stays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "step_1.pt", {"step": 1})
    with checkpoint.atomic_write(tmp_path / "step_2.pt") as file:
        file.write(b"half")
        checkpoint.load_newest(tmp_path)  # what `--evaluate` does to the folder of a run in progress
        assert list(tmp_path.glob(".*.tmp"))
    assert (tmp_path / "step_2.pt").read_bytes() == b"half" and not list(tmp_path.glob(".*"))


# ---- damage


def test_truncation_at_every_kib(folder: Path) -> None:
    whole = (folder / "step_2.pt").read_bytes()
    for size in [*range(0, len(whole), 1024), len(whole) - 1]:
        (folder / "step_2.pt").write_bytes(whole[:size])
        assert_falls_back(folder, "truncated")


def test_every_bit_flip_is_found(folder: Path) -> None:
    whole = (folder / "step_2.pt").read_bytes()
    generator = random.Random(0)
    # Each bit of the last 120 bytes (end of the archive, label, digest), and a sample of all the others.
    bits = [*range(8 * (len(whole) - 120), 8 * len(whole)), *generator.sample(range(8 * len(whole)), 300)]
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / "step_2.pt").write_bytes(flipped)
        with pytest.raises(checkpoint.CheckpointError, match=r"step_2\.pt"):
            checkpoint.load(folder / "step_2.pt")
    assert_falls_back(folder, "")


def test_missing_digest(folder: Path) -> None:
    torch.save({"step": 2, "format_version": checkpoint.FORMAT_VERSION}, folder / "step_2.pt")
    assert_falls_back(folder, "no digest")


def test_appended_bytes(folder: Path) -> None:
    with open(folder / "step_2.pt", "ab") as file:
        file.write(b"\n")
    assert_falls_back(folder, "")


def test_wrong_format_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    checkpoint.save(folder, "step_2.pt", {"step": 2})
    monkeypatch.undo()
    assert_falls_back(folder, f"format version 99, this code reads {checkpoint.FORMAT_VERSION}")


def test_unreadable_file(folder: Path) -> None:
    (folder / "step_2.pt").unlink()
    (folder / "step_2.pt").mkdir()
    assert_falls_back(folder, "unreadable: Is a directory")


def test_nothing_left_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("step_*.pt"):
        path.write_bytes(b"")
    lines: list[str] = []
    with pytest.raises(checkpoint.CheckpointError, match="none of the 2 checkpoints is usable") as caught:
        checkpoint.load_newest(folder, warn=lines.append)
    assert "\n" not in str(caught.value) and [re.findall(r"step_\d", line) for line in lines] == [
        ["step_2"],
        ["step_1"],
    ]
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load_newest(tmp_path / "absent")


# ---- disk full

FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from common import checkpoint
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
big = torch.zeros(1_000_000)
for attempt in (
    lambda: checkpoint.save(folder, "step_3.pt", {"weights": big}),
    lambda: checkpoint.save(folder, "step_2.pt", {"weights": big}),
    lambda: checkpoint.save(folder, "step_3.pt", {str(i): torch.zeros(1000) for i in range(600)}),
    lambda: checkpoint.save_policy(folder / "policy.safetensors", {"weights": big}, {}),
):
    try:
        attempt()
    except OSError as error:
        print("OSError", error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save(folder, "step_3.pt", {"step": 3})  # the disk has room again
"""


def test_full_disk_keeps_what_was_there(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = start(FULL_DISK, folder)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.splitlines() == ["OSError 27"] * 4  # EFBIG, what this limit gives in place of ENOSPC
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop("step_3.pt") and after == before
    assert checkpoint.load_newest(folder)[1]["step"] == 3


def test_disk_that_is_full_for_a_moment_publishes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullOnce(io.FileIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoint, "open", FullOnce, raising=False)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(folder, "step_2.pt", {"step": 2, "weights": torch.zeros(1000)})
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["step_1.pt", "step_2.pt"]
    assert checkpoint.load_newest(folder, warn=pytest.fail)[1]["weights"][0] == 2


# ---- prune


def test_prune_keeps_the_newest_by_number_and_everything_else(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):  # as text, 8 and 9 would sort last
        checkpoint.save(tmp_path, f"step_{step}.pt", {"step": step})
    for name in ("best.pt", "step_final.pt", "policy.safetensors"):
        (tmp_path / name).touch()
    checkpoint.prune(tmp_path, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("step_10.pt", "step_11.pt", "best.pt", "step_final.pt", "policy.safetensors")
    }


def test_prune_after_a_fallback_keeps_the_save_just_made(folder: Path) -> None:
    for step in (8, 9):
        (folder / f"step_{step}.pt").write_bytes(b"damaged")
    time.sleep(0.02)
    checkpoint.save(folder, "step_3.pt", {"step": 3})
    checkpoint.prune(folder, keep=2)
    assert checkpoint.load_newest(folder, warn=lambda line: None)[1]["step"] == 3


# ---- policy and video


def test_policy_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    tensors = {"actor_0.weight": torch.arange(6.0).reshape(2, 3).T.requires_grad_(), "bias": torch.zeros(0)}
    checkpoint.save_policy(path, tensors, {"scenario": "HalfCheetah-6x1"})
    loaded, metadata = checkpoint.load_policy(path)
    assert metadata == {"scenario": "HalfCheetah-6x1"} and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], b"\xff" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError, match=r"policy\.safetensors: unreadable"):
            checkpoint.load_policy(path)
    with pytest.raises(checkpoint.CheckpointError, match="absent: no policy there yet: the first evaluation writes it"):
        checkpoint.load_policy(tmp_path / "absent")


def test_mp4_has_the_frames(tmp_path: Path) -> None:
    import imageio.v2 as imageio

    ramp = [np.full((47, 65, 3), 10 * i, np.uint8) for i in range(20)]  # odd sizes, which H.264 refuses
    write_mp4(tmp_path / "episode.mp4", ramp, fps=25)
    assert [path.name for path in tmp_path.iterdir()] == ["episode.mp4"]
    with imageio.get_reader(tmp_path / "episode.mp4") as reader:
        frames = [np.asarray(frame) for frame in reader]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
        assert reader.get_meta_data()["fps"] == 25  # pyright: ignore[reportAttributeAccessIssue]
    assert len(frames) == 20 and frames[0].shape == (46, 64, 3)
    assert all(abs(float(frame.mean()) - 10 * i) < 4 for i, frame in enumerate(frames))
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "bad.mp4", [np.zeros((4, 4, 3))], fps=25)
    write_mp4(tmp_path / "absent" / "episode.mp4", ramp, fps=25)  # an empty folder is lost where a run is copied
    assert (tmp_path / "absent" / "episode.mp4").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        write_mp4(tmp_path / "file" / "episode.mp4", ramp, fps=25)
