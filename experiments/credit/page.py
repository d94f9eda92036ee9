"""credit.html: one page that needs no server and no network, with a slider over the steps of the episode."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.credit.episode import Credit, Recording
from experiments.credit.video import scale_of

EXPLAINED = {
    "credit.png": "Credit over time. The coloured areas are the agents' Shapley values, stacked; together they must"
    " reach the black line, what the critic expects of the whole team's action beyond that of the zero action. Dashed:"
    " return so far. Below: the gap between the two, rounding only if all is well.",
    "trust.png": "Is the estimate good? Sampled against exact values; the error against the number of draws; how far"
    " the game of the masked critic is convex; whether the paper's hybrid split is in the core.",
    "check.png": "Does credit mean anything? The return that is really lost when one agent's actions are taken away for"
    " whole episodes, against its mean credit.",
    "training.png": "What training logged about credit.",
}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@title@</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img, video { max-width: 100%; } pre { background: #f4f4f6; padding: .7rem; overflow-x: auto; font-size: .85rem; }
canvas { width: 100%; height: auto; image-rendering: pixelated; border: 1px solid #ccc; display: block; }
#slider { width: 100%; margin: .4rem 0; } table { border-collapse: collapse; }
td, th { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #e3e3e8; }
.bar { position: relative; width: 300px; height: 14px; background: #f4f4f6; }
.bar i { position: absolute; top: 0; bottom: 0; } .bar b { position: absolute; left: 50%; width: 1px; height: 14px;
background: #888; }
</style>
</head>
<body>
<h1>@title@</h1>
<p>@about@</p>
<h2>The episode</h2>
@video@
<label for="slider">step <span id="step"></span></label>
<input id="slider" type="range" min="0" value="0">
<canvas id="map" height="120" width="1000" aria-label="credit of each agent at each step"></canvas>
<p id="words"></p>
<table id="bars"></table>
<h2>Findings</h2>
<pre id="findings">@findings@</pre>
@pictures@
<script id="data" type="application/json">@data@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("slider"), canvas = document.getElementById("map");
const video = document.getElementById("video"), steps = data.step.length, agents = data.phi.length;
slider.max = steps - 1;

// White at 0, red above, blue below.
function color(value) {
  const c = Math.max(-1, Math.min(1, value / data.scale));
  const fade = Math.round(235 * (1 - Math.abs(c)) + 20 * Math.abs(c));
  return c > 0 ? `rgb(205,${fade},${fade})` : `rgb(${fade},${fade},220)`;
}

function drawMap(at) {
  const pen = canvas.getContext("2d"), w = canvas.width / steps, h = canvas.height / agents;
  for (let i = 0; i < agents; i++)
    for (let t = 0; t < steps; t++) {
      pen.fillStyle = color(data.phi[i][t]);
      pen.fillRect(t * w, i * h, w + 1, h);
    }
  pen.fillStyle = "#000";
  pen.fillRect((at + 0.5) * w - 1, 0, 2, canvas.height);
}

const rows = data.phi.map((_, i) => {
  const row = document.createElement("tr");
  row.innerHTML = `<th>agent ${i}</th><td></td><td><div class="bar"><i></i><b></b></div></td>`;
  document.getElementById("bars").appendChild(row);
  return row;
});

function show(t) {
  document.getElementById("step").textContent = `${data.step[t]} of episode ${data.episode[t]}`;
  const gain = data.v_everybody[t] - data.v_nobody[t];
  document.getElementById("words").textContent = `reward ${data.reward[t].toFixed(3)}, return so far ` +
    `${data.return_so_far[t].toFixed(2)}; v(N) - v(empty) = ${gain.toFixed(4)}, gap ${data.gap[t].toExponential(1)}`;
  rows.forEach((row, i) => {
    const value = data.phi[i][t], part = Math.min(1, Math.abs(value) / data.scale) * 50;
    row.children[1].textContent = value.toFixed(4);
    const bar = row.querySelector("i");
    bar.style.background = color(value);
    bar.style.left = `${value < 0 ? 50 - part : 50}%`;
    bar.style.width = `${part}%`;
  });
  drawMap(t);
}

// The video shows every data.frame_steps[k]; whichever of the two moves, the other follows.
slider.addEventListener("input", () => {
  const t = Number(slider.value);
  show(t);
  if (video) {
    video.pause();
    let k = 0;
    while (k + 1 < data.frame_steps.length && data.frame_steps[k + 1] <= t) k++;
    video.currentTime = (k + 0.5) / data.fps;
  }
});
if (video) video.addEventListener("timeupdate", () => {
  if (video.paused) return;
  const k = Math.min(Math.floor(video.currentTime * data.fps), data.frame_steps.length - 1);
  slider.value = data.frame_steps[k];
  show(data.frame_steps[k]);
});
show(0);
</script>
</body>
</html>
"""


def data_of(recording: Recording, credit: Credit, frame_steps: list[int], fps: int) -> dict[str, Any]:
    """What the page's script works on: the arrays of credit.npz as lists, unrounded."""
    arrays = {
        "episode": recording.episode,
        "step": recording.step,
        "reward": recording.reward,
        "return_so_far": recording.return_so_far,
        "v_everybody": credit.everybody,
        "v_nobody": credit.nobody,
        "gap": credit.gap,
        "phi": credit.phi,
    }
    data: dict[str, Any] = {key: np.asarray(value).tolist() for key, value in arrays.items()}
    return data | {"scale": scale_of(credit.phi), "frame_steps": frame_steps, "fps": fps}


def embedded(path: Path, kind: str) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def write(out: Path, title: str, about: str, findings: str, data: dict[str, Any]) -> None:
    """Write credit.html from what is in `out`: whichever of the video and the pictures exist."""
    video = '<p id="novideo">No video: this machine has no renderer, or it was left out.</p>'
    if (out / "credit.mp4").exists():
        source = embedded(out / "credit.mp4", "video/mp4")
        video = f'<video id="video" controls muted playsinline src="{source}"></video>'
    pictures = []
    for name, words in EXPLAINED.items():
        source = embedded(out / name, "image/png")
        pictures.append(f'<h2>{name}</h2>\n<p>{html.escape(words)}</p>\n<img alt="{name}" src="{source}">')
    text = PAGE
    for key, value in {
        "title": html.escape(title),
        "about": html.escape(about),
        "findings": html.escape(findings),
        "video": video,
        "pictures": "\n".join(pictures),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }.items():
        text = text.replace(f"@{key}@", value)
    (out / "credit.html").write_text(text)
