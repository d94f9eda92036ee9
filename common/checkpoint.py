"""Checkpoints that survive kill -9, a full disk and a damaged file (POSIX).

A checkpoint is what `torch.save` writes, with its SHA-256 added as the comment of the zip archive. The digest travels
inside the file, so one rename publishes both: whatever `step_<n>.pt` or `best.pt` exists is whole. A plain `torch.load`
still opens it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch

FORMAT_VERSION = 1

_EMPTY_COMMENT = b"\0\0"  # the length of the archive comment, the last two bytes of what torch writes
_DIGEST_LABEL = b"sha256:"
_COMMENT_SIZE = len(_DIGEST_LABEL) + 2 * hashlib.sha256().digest_size
_TRAILER_SIZE = len(_EMPTY_COMMENT) + _COMMENT_SIZE
_STEP_NAME = re.compile(r"step_(\d+)\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint or policy file that cannot be used; the message names the file and what is wrong with it."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` when the block ends; an error or a kill leaves `path` as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            # The lock dies with its process, so that `remove_stale_temporaries` can tell a killed save from a live one.
            # Some network file systems have no locks; a save must work there all the same.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk, too
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what killed saves left in `folder`; temporary files that a living process writes stay."""
    for temporary in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError), open(temporary, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:
                pass  # no locks on this file system
            temporary.unlink()


class AppendFile:
    """A text file that grows by whole pieces: a failed write, as on a full disk, leaves no torn piece behind.

    Opening cuts it to `size` bytes where that is given: what a run wrote after its last checkpoint goes.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        end = self._file.seek(0, os.SEEK_END)
        self.size = end if size is None else min(size, end)
        self._file.truncate(self.size)

    def write(self, text: str) -> None:
        """Append `text` whole, or raise OSError."""
        data = text.encode()
        written = 0
        try:
            while written < len(data):  # a write may be short; the next one then says why
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += written

    def sync(self) -> None:
        """Force what was written onto the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()


def save(folder: Path, name: str, payload: dict[str, Any]) -> Path:
    """Write `payload` to `folder / name` atomically and return that path.

    The payload is nested dicts, lists and tuples of tensors, NumPy arrays (stored as tensors), numbers, strings, None.
    Raises OSError when the disk is full or fails; files that were there before are then untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with atomic_write(path) as file:
        writer = _HashingWriter(file)
        torch.save(_portable({**payload, "format_version": FORMAT_VERSION}), writer)  # pyright: ignore[reportArgumentType]
        if writer.error is not None:
            raise writer.error
        file.seek(-len(_EMPTY_COMMENT), os.SEEK_END)
        file.write(_trailer(writer.sha256))
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU after checking its digest; CheckpointError says what is wrong with it."""
    _verify(path)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: unreadable: {str(error).partition(chr(10))[0]}") from error
    version = payload.get("format_version") if isinstance(payload, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version}, this code reads {FORMAT_VERSION}")
    return payload


def load_newest(folder: Path, warn: Callable[[str], object] = print) -> tuple[Path, dict[str, Any]]:
    """Load the newest step_<n>.pt that verifies; each damaged one is named through `warn` and skipped.

    Also deletes the temporary files of killed saves. Raises CheckpointError when no checkpoint is usable.
    """
    remove_stale_temporaries(folder)
    paths = _step_files(folder)
    for path in paths:
        try:
            return path, load(path)
        except CheckpointError as error:
            warn(f"checkpoint skipped: {error}")
    reason = f"none of the {len(paths)} checkpoints is usable" if paths else "no checkpoint"
    raise CheckpointError(f"{folder}: {reason}")


def prune(folder: Path, keep: int = 2) -> None:
    """Delete all but the newest `keep` step_<n>.pt; all else stays. Call it after a successful save."""
    by_step = _step_files(folder)
    # After a fallback past damaged files, the file just saved has a lower number than they have: age counts as well,
    # or the only good checkpoint would go.
    by_age = sorted(by_step, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    kept = {*by_step[:keep], *by_age[:keep]}
    for path in by_step:
        if path not in kept:
            path.unlink(missing_ok=True)


def save_policy(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` and `metadata` as safetensors, atomically. Raises OSError, like `save`."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(safetensors_torch.save(plain, metadata))


def load_policy(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what `save_policy` wrote: (tensors on the CPU, metadata). Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no policy there yet: the first evaluation writes it (--eval-every)") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: unreadable policy: {str(error).partition(chr(10))[0]}") from error


def fill(target: Any, saved: Any, path: Path) -> None:
    """target.load_state_dict(saved), of a module or a run; CheckpointError where what `path` held does not fit it."""
    try:
        target.load_state_dict(saved)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split("\n\t")[-1].split())
        raise CheckpointError(
            f"{path}: does not fit the run's config.json and this version of the script"
            f" ({type(error).__name__}: {reason})"
        ) from error


class _HashingWriter:
    """The file `torch.save` writes to: passes bytes on, hashes them, and keeps the first OSError for later.

    An exception inside a write would surface in torch's C++ writer, which ends the process from its destructor.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write a bytes-like object; returns the number of bytes taken."""
        if self.error is None:
            try:
                self.file.write(data)
                self.sha256.update(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing to do: `atomic_write` flushes once, at the end."""


def _trailer(sha256: Any) -> bytes:
    """The last bytes of a checkpoint: the length of the archive comment (in place of torch's zero) and the comment."""
    return _COMMENT_SIZE.to_bytes(2, "little") + _DIGEST_LABEL + sha256.hexdigest().encode()


def _verify(path: Path) -> None:
    """Check the digest: it covers the file as torch wrote it, that is, with an empty comment."""
    sha256 = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            remaining = os.fstat(file.fileno()).st_size - _TRAILER_SIZE
            while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
                sha256.update(block)
                remaining -= len(block)
            trailer = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: unreadable: {error.strerror}") from error
    sha256.update(_EMPTY_COMMENT)
    if remaining != 0 or trailer[2 : 2 + len(_DIGEST_LABEL)] != _DIGEST_LABEL:
        raise CheckpointError(f"{path}: truncated or no checkpoint: no digest at its end")
    if trailer != _trailer(sha256):
        raise CheckpointError(f"{path}: damaged: the content does not match its digest")


def _portable(value: Any) -> Any:
    """Nested containers with every NumPy value as a tensor or number, so that `weights_only` can load them."""
    if isinstance(value, dict):
        return {_portable(key): _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_portable, value)) if type(value) in (list, tuple) else tuple(map(_portable, value))
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()  # torch would write the whole storage that a slice looks into
    return value


def _step_files(folder: Path) -> list[Path]:
    """The step_<n>.pt of a folder, highest n first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := _STEP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
