"""A picture of one particle environment, drawn with Pillow: neither a display nor a graphics library is needed."""

import functools
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VIEW = 1.3
"""World units that are always visible in every direction from the centre."""
AGENT_COLORS = ((240, 150, 30), (130, 90, 210), (20, 165, 175))
LANDMARK_COLORS = ((214, 66, 66), (62, 160, 78), (66, 106, 214))
PLAIN_COLOR = (70, 76, 88)
_BACKGROUND, _PANEL, _LINE, _INK, _TOUCH = (
    (255, 255, 255),
    (243, 244, 247),
    (222, 225, 231),
    (40, 44, 52),
    (220, 20, 20),
)
_SUPERSAMPLING = 2  # drawn so much larger, then averaged


def draw(
    width: int,
    height: int,
    *,
    agents: np.ndarray,
    agent_radius: float,
    landmarks: np.ndarray,
    landmark_radius: float,
    goals: Mapping[int, int],
    messages: Mapping[int, np.ndarray],
    solid: bool,
    colors: Sequence[tuple[int, ...]] = AGENT_COLORS,
) -> np.ndarray:
    """uint8 (height, width, 3): agents as numbered discs, landmarks as squares, y upwards.

    `agents` (N, 2) and `landmarks` (3, 2) are positions, the radii theirs, all in world units. `goals` says which
    landmark an agent has to reach: the two are joined by a line and the landmark gets a ring in the agent's colour.
    `messages` are the last words of the agents that speak, values in [0, 1], shown as bars in a strip at the bottom; a
    speaker that is nobody's follower is drawn as a diamond. With `solid`, agents that touch get a red rim. `colors`
    fill the agents; lines, rings and bars keep AGENT_COLORS.
    """
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    image = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(image)
    strip = size[1] // 8 if messages else 0
    place, scale = camera(*size, strip, agents, agent_radius)
    thin = max(1, round(min(size) / 240))

    corners = [*place(np.array([-1.0, 1.0])), *place(np.array([1.0, -1.0]))]  # where everything starts
    pen.rectangle(corners, outline=_LINE, width=thin)
    for agent, landmark in goals.items():
        pen.line([*place(agents[agent]), *place(landmarks[landmark])], fill=AGENT_COLORS[agent], width=thin)
    rings = [0] * len(landmarks)
    for i, position in enumerate(landmarks):
        x, y = place(position)
        radius = max(2.0 * thin, landmark_radius * scale)
        for agent in (a for a, goal in goals.items() if goal == i):
            rings[i] += 1
            far = radius * 1.5 + (2 * rings[i]) * 2 * thin
            pen.ellipse([x - far, y - far, x + far, y + far], outline=AGENT_COLORS[agent], width=2 * thin)
        color = LANDMARK_COLORS[i] if goals else PLAIN_COLOR
        pen.rectangle([x - radius, y - radius, x + radius, y + radius], fill=color)

    near = [pair for pair in combinations(range(len(agents)), 2) if _distance(agents, *pair) < 2 * agent_radius]
    touching = {agent for pair in near for agent in pair} if solid else set()
    for i, position in enumerate(agents):
        x, y = place(position)
        radius = max(4.0 * thin, agent_radius * scale)
        rim, rim_width = (_TOUCH, 3 * thin) if i in touching else (_INK, thin)
        box = [x - radius, y - radius, x + radius, y + radius]
        if goals and i not in goals:
            pen.regular_polygon((x, y, radius * 1.3), 4, 45, fill=colors[i], outline=rim, width=rim_width)
        else:
            pen.ellipse(box, fill=colors[i], outline=rim, width=rim_width)
        if radius > 12 * thin:
            ink = _INK if min(colors[i]) > 128 else _BACKGROUND
            pen.text((x, y), str(i), fill=ink, font=_font(round(1.3 * radius)), anchor="mm")
        else:  # too small to write on
            pen.text((x, y - radius - thin), str(i), fill=_INK, font=_font(9 * thin), anchor="mb")
    if solid:  # large agents would hide the landmarks they cover
        for position in landmarks:
            x, y = place(position)
            radius = landmark_radius * scale + thin
            pen.rectangle([x - radius, y - radius, x + radius, y + radius], outline=PLAIN_COLOR, width=2 * thin)
    if messages:
        _draw_messages(pen, size, strip, messages)
    return np.asarray(image.reduce(_SUPERSAMPLING))


def camera(width: int, height: int, strip: int, agents: np.ndarray, agent_radius: float):
    """Where a world position (2,) lies in pixels, as a function, and the pixels of a world unit.

    The view is centred on the origin, above a strip of `strip` pixels; it widens as far as an agent leaves it.
    """
    view = max(VIEW, float(np.abs(agents).max()) + 1.5 * agent_radius)
    scale = min(width, height - strip) / (2 * view)

    def place(position: np.ndarray) -> tuple[float, float]:
        return width / 2 + scale * float(position[0]), (height - strip) / 2 - scale * float(position[1])

    return place, scale


def _distance(points: np.ndarray, i: int, j: int) -> float:
    return float(np.linalg.norm(points[i] - points[j]))


def _draw_messages(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], strip: int, messages: Mapping[int, np.ndarray]
) -> None:
    """One group of bars a speaker, full height for a channel at 1."""
    width, height = size
    top, margin = height - strip, strip // 6
    pen.rectangle([0, top, width, height], fill=_PANEL)
    for slot, (agent, message) in enumerate(messages.items()):
        left, right = (width * (slot + edge) / len(messages) for edge in (0.0, 1.0))
        label = _font(strip // 3)
        pen.text((left + margin, height - strip / 2), f"{agent} says", fill=_INK, font=label, anchor="lm")
        left += 2 * margin + pen.textlength("0 says", font=label)
        pitch = min((right - margin - left) / len(message), strip / 2)
        for channel, value in enumerate(message):
            x, floor = left + channel * pitch, height - margin
            full = [x, top + margin, x + 0.75 * pitch, floor]
            pen.rectangle(full, fill=_LINE)
            if value > 0:
                full[1] = floor - (floor - full[1]) * float(value)
                pen.rectangle(full, fill=AGENT_COLORS[agent])


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(6, size))
