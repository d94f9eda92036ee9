"""The start of a video as a small GIF: `python -m experiments.gif RUN_FOLDER/videos/evaluate_300000.mp4 gait.gif`."""

import argparse
from pathlib import Path

import imageio.v3 as imageio
from PIL import Image


def convert(video: Path, gif: Path, seconds: float, fps: int, size: int, colors: int) -> int:
    """Write `gif` with `fps` frames/s, each scaled to `size` pixels wide; returns the number of frames."""
    rate = imageio.immeta(video, plugin="FFMPEG")["fps"]
    stride = max(1, round(rate / fps))
    frames = []
    for i, frame in enumerate(imageio.imiter(video, plugin="FFMPEG")):
        if i >= seconds * rate:
            break
        if i % stride == 0:
            picture = Image.fromarray(frame)
            picture = picture.resize((size, round(size * picture.height / picture.width)), Image.Resampling.LANCZOS)
            frames.append(picture.quantize(colors, dither=Image.Dither.NONE))
    gif.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(gif, save_all=True, append_images=frames[1:], duration=1000 * stride / rate, loop=0, optimize=True)
    return len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("gif", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the episode, from its start")
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--size", type=int, default=240, help="width in pixels")
    parser.add_argument("--colors", type=int, default=32)
    args = parser.parse_args()
    frames = convert(args.video, args.gif, args.seconds, args.fps, args.size, args.colors)
    print(f"{args.gif}: {frames} frames, {args.gif.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
