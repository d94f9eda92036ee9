"""The start of a video as a small GIF, or as a strip of frames.

python -m experiments.gif RUN_FOLDER/videos/evaluate_300000.mp4 gait.gif
python -m experiments.gif RUN_FOLDER/videos/evaluate_300000.mp4 gait.png --strip 8 --seconds 3
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw

from experiments.command_line import Parser, positive, whole


def pictures(video: Path, seconds: float, size: int) -> Iterator[Image.Image]:
    """The frames of the first `seconds` of a video, scaled to `size` pixels wide."""
    rate = imageio.immeta(video, plugin="FFMPEG")["fps"]
    for i, frame in enumerate(imageio.imiter(video, plugin="FFMPEG")):
        if i >= seconds * rate:
            return
        picture = Image.fromarray(frame)
        yield picture.resize((size, round(size * picture.height / picture.width)), Image.Resampling.LANCZOS)


def write_gif(video: Path, gif: Path, seconds: float, fps: float, size: int, colors: int) -> int:
    """Write `gif` with `fps` frames/s; returns the number of frames."""
    rate = imageio.immeta(video, plugin="FFMPEG")["fps"]
    stride = max(1, round(rate / fps))
    chosen = [*pictures(video, seconds, size)][::stride]
    frames = [picture.quantize(colors, dither=Image.Dither.NONE) for picture in chosen]
    frames[0].save(gif, save_all=True, append_images=frames[1:], duration=1000 * stride / rate, loop=0, optimize=True)
    return len(frames)


def write_strip(video: Path, path: Path, seconds: float, count: int, size: int, columns: int) -> int:
    """Write `count` frames at equal distances in rows of `columns`, the time below each; returns their number."""
    rate = imageio.immeta(video, plugin="FFMPEG")["fps"]
    frames = [*pictures(video, seconds, size)]
    chosen = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    height, gap, caption = frames[0].height, 4, 14
    rows = -(-len(chosen) // columns)
    columns = min(columns, len(chosen))
    sheet = Image.new("RGB", (columns * (size + gap) - gap, rows * (height + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        left, top = place % columns * (size + gap), place // columns * (height + caption)
        sheet.paste(frames[index], (left, top))
        draw.text((left + 2, top + height + 1), f"{index / rate:.2f} s", fill="black")
    sheet.save(path)
    return len(chosen)


def main() -> int:
    parser = Parser("experiments.gif", __doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("picture", type=Path, help="GIF; with --strip PNG or JPEG")
    parser.add_argument("--seconds", type=positive, default=20.0, help="of the episode, from its start")
    parser.add_argument("--size", type=partial(whole, low=1), default=240, help="width of a frame in pixels")
    parser.add_argument("--fps", type=positive, default=10, help="of the GIF")
    parser.add_argument("--colors", type=partial(whole, low=2), default=32, help="of the GIF")
    parser.add_argument(
        "--strip", type=partial(whole, low=0), default=0, metavar="FRAMES", help="so many frames side by side, no GIF"
    )
    parser.add_argument("--columns", type=partial(whole, low=1), default=8, help="frames in a row of the strip")
    args = parser.parse_args()
    if not args.video.is_file():
        parser.error(f"there is no video {args.video}; --capture-video makes one")
    kinds = (".png", ".jpg", ".jpeg") if args.strip else (".gif",)
    if args.picture.suffix.lower() not in kinds:
        parser.error(f"{args.picture}: its name must end in {' or '.join(kinds)}")
    try:
        imageio.immeta(args.video, plugin="FFMPEG")
    except OSError:
        parser.error(f"{args.video} cannot be read as a video")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    if args.strip:
        frames = write_strip(args.video, args.picture, args.seconds, args.strip, args.size, args.columns)
    else:
        frames = write_gif(args.video, args.picture, args.seconds, args.fps, args.size, args.colors)
    print(f"{args.picture}: {frames} frames, {args.picture.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
