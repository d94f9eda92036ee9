"""credit.mp4: the episode with its agents tinted by their credit, above a heat map of the credit with a cursor."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from common.bidexhands import BiDexHandsVecEnv
from common.mamujoco import MAMuJoCoVecEnv
from common.mpe_base import ParticleVecEnv
from common.vecenv import VecEnv
from common.video import write_mp4
from experiments.credit.episode import Credit, Recording
from experiments.credit.load import Progress, Trained

SIZE = 480  # pixels of the picture's sides
COLORMAP = "coolwarm"  # blue: negative credit, grey: none, red: positive
SLOWEST = 8  # frames/s


def scale_of(phi: np.ndarray) -> float:
    """The credit at which the colours end: what 1 % of all |credits| exceed."""
    return max(float(np.quantile(np.abs(phi), 0.99)), 1e-12)


def colors_of(phi: np.ndarray, scale: float) -> np.ndarray:
    """RGB in [0, 1], (N, 3), of credits (N,)."""
    return colormaps[COLORMAP]((phi / scale + 1) / 2)[:, :3]


def agent_geoms(env: MAMuJoCoVecEnv | BiDexHandsVecEnv) -> list[np.ndarray]:
    """The geoms of the bodies that each agent moves: those its joints turn, or its hand; N arrays of ids."""
    model = env.model
    if isinstance(env, BiDexHandsVecEnv):
        names = [model.body(int(body)).name for body in model.geom_bodyid]
        return [np.flatnonzero([name.startswith(f"hand{hand}_") for name in names]) for hand in range(2)]
    joints = model.actuator_trnid[:, 0].reshape(env.num_agents, -1)
    return [np.flatnonzero(np.isin(model.geom_bodyid, model.jnt_bodyid[own])) for own in joints]


def tinter(env: VecEnv) -> Callable[[np.ndarray], None]:
    """A function that gives the agents of `env` the colours (N, 3) in all pictures to come."""
    if isinstance(env, ParticleVecEnv):

        def tint(colors: np.ndarray) -> None:
            env.agent_colors = [tuple(int(c) for c in row) for row in (255 * colors).round()]

        return tint
    if isinstance(env, (MAMuJoCoVecEnv, BiDexHandsVecEnv)):
        geoms, model = agent_geoms(env), env.model
        model.geom_matid[np.concatenate(geoms)] = -1  # a material would hide the colour

        def tint(colors: np.ndarray) -> None:
            for own, color in zip(geoms, colors):
                model.geom_rgba[own, :3] = color

        return tint
    return lambda colors: None  # another simulator: its pictures stay as they are


class Panel:
    """The heat map, agents x time, as an image (H, W, 3) with a cursor."""

    def __init__(self, phi: np.ndarray, scale: float, width: int = SIZE):
        num_agents, steps = phi.shape
        height = 74 + 16 * max(num_agents, 3)
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.13, 42 / height, 0.72, 1 - 64 / height))
        columns = np.linspace(0, steps, min(steps, width // 2), endpoint=False).astype(int)
        means = np.add.reduceat(phi, columns, axis=1) / np.diff(columns, append=steps)  # no more than can be seen
        box = (-0.5, steps - 0.5, num_agents - 0.5, -0.5)
        look: dict[str, Any] = dict(cmap=COLORMAP, vmin=-scale, vmax=scale, interpolation="nearest")
        picture = axes.imshow(means, aspect="auto", extent=box, **look)
        axes.set_yticks(range(num_agents), [f"agent {i}" for i in range(num_agents)], fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        bar = figure.add_axes((0.88, 42 / height, 0.02, 1 - 64 / height))
        figure.colorbar(picture, cax=bar).ax.tick_params(labelsize=7)
        canvas.draw()
        self.image = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
        box = axes.get_window_extent()
        self.left, self.right = box.x0, box.x1
        self.top, self.bottom = round(self.image.shape[0] - box.y1), round(self.image.shape[0] - box.y0)
        self.steps = steps

    def at(self, step: int) -> np.ndarray:
        """The image with the cursor on a step."""
        image = self.image.copy()
        x = round(self.left + (step + 0.5) / self.steps * (self.right - self.left))
        image[self.top - 4 : self.bottom + 4, x - 1 : x + 1] = 0
        return image


def frames(
    run: Trained, recording: Recording, credit: Credit, most: int, progress: Progress
) -> tuple[list[np.ndarray], list[int], int]:
    """At most `most` evenly spaced frames, the steps they show, frames/s. Raises `RenderError` without a renderer.

    The frames/s are those of real time where that is not slower than SLOWEST.
    """
    total, phi = len(recording.step), credit.phi
    stride = -(-total // most)
    steps, scale = list(range(0, total, stride)), scale_of(phi)
    env, pictures = run.make_env(1), []
    env.reset(run.seed)
    tint, panel, font = tinter(env), Panel(phi, scale), ImageFont.load_default(13)
    earned = recording.return_so_far
    try:
        for t in progress(steps, desc="drawing"):
            env.set_state(recording.snapshots[t])
            tint(colors_of(phi[:, t], scale))
            picture = np.concatenate([env.render(SIZE, SIZE), panel.at(t)])
            image = Image.fromarray(picture)
            words = f"step {recording.step[t]}   return so far {earned[t]:.1f}   credit "
            words += " ".join(f"{value:.2f}" for value in phi[:, t])
            place = (6, SIZE + 3)
            ImageDraw.Draw(image).text(place, words, fill=(30, 30, 30), font=font)
            pictures.append(np.asarray(image))
    finally:
        env.close()
    return pictures, steps, max(SLOWEST, round(env.render_fps / stride))


def write(path: Path, pictures: list[np.ndarray], fps: int) -> None:
    """Write credit.mp4."""
    write_mp4(path, pictures, fps)
