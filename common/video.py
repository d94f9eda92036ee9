"""Videos of episodes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

from common.checkpoint import atomic_write
from common.vecenv import RenderError, VecEnv


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Write frames, each uint8 (H, W, 3), as an H.264 mp4 at `fps` frames/s; atomic.

    Raises ValueError for frames of another kind, OSError when the disk fails, RuntimeError when the encoder does.
    """
    if not frames or any(f.dtype != np.uint8 or f.ndim != 3 or f.shape != (*frames[0].shape[:2], 3) for f in frames):
        raise ValueError(f"{path}: frames must be one or more uint8 arrays of one shape (H, W, 3)")
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # H.264 with 4:2:0 colours needs even sizes
    even: list[Any] = [np.ascontiguousarray(frame[:height, :width]) for frame in frames]
    try:
        video = imageio.mimwrite("<bytes>", even, format="mp4", fps=fps, macro_block_size=1)  # pyright: ignore
    except Exception as error:
        message = f"{path}: encoding failed: {str(error).strip().partition(chr(10))[0]}"
        raise (OSError(error.errno, message) if isinstance(error, OSError) else RuntimeError(message)) from error
    path.parent.mkdir(parents=True, exist_ok=True)  # copying a run may lose an empty folder
    with atomic_write(path) as file:
        file.write(video)


class EpisodeRecorder:
    """Renders the first episode of environment 0 in an evaluation, in real time at 25 frames/s or a little more.

    A machine that cannot draw, or a video that cannot be written, costs one line through `message` and the videos.
    """

    def __init__(self, env: VecEnv, enabled: bool, message: Callable[[str], object]):
        self.env, self.enabled, self.message = env, enabled, message
        self.stride = max(1, env.render_fps // 25)
        self.frames: list[np.ndarray] = []

    def observe(self, episode: int, step: int) -> None:
        """To be called before each step with the episode and step that environment 0 is at."""
        if not self.enabled or episode > 0 or step % self.stride:
            return
        if step == 0:
            self.frames = []
        try:
            self.frames.append(self.env.render())
        except RenderError as error:
            self.enabled = False
            self.message(f"--capture-video: {error}; going on without videos")

    def write(self, path: Path) -> None:
        """Write what was recorded as an mp4."""
        if not self.enabled or not self.frames:
            return
        try:
            write_mp4(path, self.frames, round(self.env.render_fps / self.stride))
        except (OSError, RuntimeError) as error:
            self.message(f"--capture-video: {error}; going on without this video")
        self.frames = []
