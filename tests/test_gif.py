"""`experiments.gif` on a video whose frames tell their number by their brightness."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from common.video import write_mp4
from experiments import gif


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """40 frames at 20 frames/s, frame i of brightness 6 i."""
    write_mp4(tmp_path / "video.mp4", [np.full((32, 64, 3), 6 * i, np.uint8) for i in range(40)], fps=20)
    return tmp_path / "video.mp4"


def run(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    monkeypatch.setattr("sys.argv", ["gif", *map(str, argv)])
    return gif.main()


def test_strip_shows_the_frames_it_says(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five frames of the first second: 0, 5, 10, 14, 19 of 20, in two rows."""
    assert run(monkeypatch, video, tmp_path / "a.png", "--strip", 5, "--seconds", 1, "--size", 64, "--columns", 3) == 0
    sheet = imageio.imread(tmp_path / "a.png")
    assert sheet.shape == (2 * (32 + 14), 3 * 64 + 2 * 4, 3)
    centres = [sheet[row * 46 + 16, column * 68 + 32].mean() for row in (0, 1) for column in (0, 1, 2)]
    assert centres == pytest.approx([0, 30, 60, 84, 114, 255], abs=4)  # an empty place is white
    assert sheet[33:45, :64].min() < 100  # the time below the frame


def test_gif_keeps_the_pace(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, video, tmp_path / "a.gif", "--seconds", 1.5, "--size", 32) == 0
    frames = imageio.imread(tmp_path / "a.gif", index=None)
    assert len(frames) == 15 and frames.shape[1:3] == (16, 32)  # every second frame of 30
    assert imageio.immeta(tmp_path / "a.gif")["duration"] == 100  # ms
    assert frames[14].mean() == pytest.approx(6 * 28, abs=8)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no.mp4", "a.gif"], "there is no video"),
        (["text.mp4", "a.gif"], "text.mp4 cannot be read as a video"),
        (["video.mp4", "a.png"], "a.png: its name must end in .gif"),
        (["video.mp4", "a.gif", "--strip", "3"], "a.gif: its name must end in .png"),
        (["video.mp4", "a.gif", "--fps", "0"], "--fps: 0: must be a number above 0"),
        (["video.mp4", "a.gif", "--seconds", "0"], "--seconds: 0: must be a number above 0"),
        (["video.mp4", "a.gif", "--col", "8"], "unrecognized arguments: --col 8"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str],
    words: str,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *argv)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and words in lines[0], lines
    assert not (tmp_path / argv[1]).exists()
