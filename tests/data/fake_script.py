"""Stands in for a training script in the tests of the runner: keeps the contract of the run folder, trains nothing.

`--behave` makes it crash (crash: always; crash-once), refuse (usage), find a NaN (nonfinite) or take its time to heed
SIGTERM (stubborn). It notes every start and signal in `starts` and every other process in its folder in `double`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from common.provenance import cpu_model, git_commit

STUBBORN_S = 2.0


def parse(argv):
    args = {"resume": "", "behave": "", "pace": "0.02", "ms_per_step": "1", "eval_ms": "50"}
    for flag, value in zip(argv[::2], argv[1::2]):
        args[flag.removeprefix("--").replace("-", "_")] = int(value) if value.isdigit() else value
    return args


args = parse(sys.argv[1:])
if args["behave"] == "usage":
    print("fake.py: error: --behave usage: no such thing")
    sys.exit(2)
if args["resume"]:
    folder = Path(args["resume"])
    args = json.loads((folder / "config.json").read_text())["args"]
else:
    folder = Path(args["runs_dir"]) / "fake" / args["scenario"] / f"seed{args['seed']}-{args['run_name']}"
    (folder / "checkpoints").mkdir(parents=True)
    config = {"args": args, "command": "python " + " ".join(sys.argv), "git_commit": git_commit()}
    (folder / "config.json").write_text(json.dumps(config | {"host": {"cpu": cpu_model()}}))


def note(words):
    with open(folder / "starts", "a") as file:
        file.write(f"{time.monotonic()} {words}\n")


state = json.loads((folder / "state.json").read_text()) if (folder / "state.json").exists() else {"step": 0, "size": 0}
alive = folder / "alive"
if alive.exists() and Path(f"/proc/{alive.read_text()}").exists():
    (folder / "double").touch()
alive.write_text(str(os.getpid()))
note(f"start {os.getpid()} {state['step']}")
received = []
signal.signal(signal.SIGTERM, lambda signum, frame: received.append(time.monotonic()))
signal.signal(signal.SIGINT, lambda signum, frame: note("SIGINT"))
metrics = open(folder / "metrics.jsonl", "a")  # noqa: SIM115
metrics.truncate(state["size"])
metrics.seek(state["size"])
step, every = state["step"], args["log_every"]


def write(**values):
    metrics.write(json.dumps({"global_step": step, "update_step": step, **values}) + "\n")
    metrics.flush()


def save():
    (folder / "state.json.tmp").write_text(json.dumps({"step": step, "size": metrics.tell()}))
    os.replace(folder / "state.json.tmp", folder / "state.json")
    (folder / "checkpoints" / f"step_{step}.pt").touch()


def leave(status, saving):
    if saving:
        save()
    note(f"end {status}")
    alive.unlink()
    os._exit(status)


ms = float(args["ms_per_step"])
while step < args["total_timesteps"]:
    time.sleep(float(args["pace"]))
    if received and (args["behave"] != "stubborn" or time.monotonic() > received[0] + STUBBORN_S):
        leave(143, saving=True)
    step = min(step + every, args["total_timesteps"])
    write(wall_s=step * ms / 1000, **{"charts/SPS": 1000 / ms})
    crash_once = args["behave"] == "crash-once" and not (folder / "crashed").exists()
    if step >= args["total_timesteps"] / 2:
        if args["behave"] == "nonfinite":
            print("fake.py: stopped at global_step 500: NaN in the critic", flush=True)
            leave(3, saving=False)
        if args["behave"] == "crash" or crash_once:
            (folder / "crashed").touch()
            print("RuntimeError: out of luck", flush=True)
            leave(1, saving=False)
    if step % args["save_every"] == 0:
        save()
write(wall_s=step * ms / 1000 + float(args["eval_ms"]) / 1000, **{"eval/return_mean": -float(step)})
save()
(folder / "finished.json").write_text(json.dumps({"global_step": step, "wall_s": 1.0}))
leave(0, saving=False)
