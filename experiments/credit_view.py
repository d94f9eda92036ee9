"""See the credit: who contributed what, when. Pictures, a video and one page from any run folder with a critic.

    python -m experiments.credit_view runs/his_mpe/simple_spread/seed1
    python -m experiments.credit_view runs/his_mamujoco/HalfCheetah-6x1/seed3 --exact --check-episodes 10

Loads the best policy and critic, plays deterministic episodes and writes, to RUN_FOLDER/credit unless --out says
otherwise, credit.mp4, credit.png, trust.png, check.png, training.png, the page credit.html that holds all of them, and
the numbers: credit.npz, credit.csv, check.csv. docs/credit_view.md says how to read them.

Works for every script whose critic is one of joint actions: his_*.py with any --credit, and baselines/hasac_*.py. Where
the run was trained without Shapley credit it shows what its critic would have given.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import cli
from common.shapley import MAX_EXACT_AGENTS
from common.vecenv import NonFiniteError, RenderError
from experiments.command_line import Parser, whole
from experiments.suites import task_label

PROG = "experiments.credit_view"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `cli.UsageError` for a mistake."""
    parser = Parser(PROG, __doc__, cli.UsageError)
    positive, zero_or_more = partial(whole, low=1), partial(whole, low=0)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--episodes", type=positive, default=1, help="deterministic episodes to show")
    estimator = parser.add_mutually_exclusive_group()
    estimator.add_argument("--draws", type=positive, default=64, help="permutations a step to average over")
    estimator.add_argument(
        "--exact", action="store_true", help=f"all 2^N coalitions instead, for at most {MAX_EXACT_AGENTS} agents"
    )
    parser.add_argument("--out", type=Path, help="folder to write to; RUN_FOLDER/credit if not given")
    parser.add_argument("--check-episodes", type=positive, default=20, help="episodes with and without each agent")
    parser.add_argument(
        "--check-how",
        choices=("zero", "freeze"),
        default="zero",
        help="without an agent: zero actions (what the critic's mask means), or its first action all the time",
    )
    parser.add_argument("--frames", type=zero_or_more, default=300, help="most frames of the video; 0: no video")
    return parser.parse_args(argv)


def view(args: argparse.Namespace) -> None:
    """Make everything; `cli.UsageError` before anything is created if it cannot be made."""
    try:
        # Here, so that --help and mistakes in flags do not wait for torch and matplotlib.
        from experiments.credit import check, episode, load, page, pictures, trust, video
    except ImportError as error:
        raise cli.UsageError(f"needs what requirements-dev.txt lists: {error}") from error

    progress = partial(tqdm, file=sys.stderr, leave=False)
    run = load.load(args.run)
    if args.exact and run.num_agents > MAX_EXACT_AGENTS:
        raise cli.UsageError(f"--exact: takes 2^N critic calls; N is {run.num_agents}, at most {MAX_EXACT_AGENTS}")
    for note in run.notes:
        print(f"{args.run}: {note}")
    draws = None if args.exact else args.draws
    out: Path = args.out or args.run / "credit"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cli.UsageError(f"--out {out}: cannot be made: {error.strerror}") from error
    (out / "credit.mp4").unlink(missing_ok=True)  # of an earlier call: it must not stand beside new numbers

    recording = episode.play(run, args.episodes, progress)
    credit = episode.credit_of(run, recording.state, recording.actions, draws)
    episode.write_raw(out, recording, credit)
    pictures.plot_credit(recording, credit, out / "credit.png")
    trusted = trust.measure(run, recording, args.draws)
    trust.plot(trusted, out / "trust.png")
    checked = check.measure(run, args.check_episodes, args.check_how, draws, progress)
    check.write_table(checked, out / "check.csv")
    check.plot(checked, out / "check.png")
    absent = pictures.plot_training(pictures.read_metrics(run.folder), out / "training.png")

    shown: tuple[list[int], int] = ([], 1)
    if args.frames:
        try:
            images, steps, fps = video.frames(run, recording, credit, args.frames, progress)
            video.write(out / "credit.mp4", images, fps)
            shown = steps, fps
        except RenderError as error:
            print(f"{PROG}: no credit.mp4, the rest is made: {error}", file=sys.stderr)
        except (OSError, RuntimeError) as error:
            print(f"{PROG}: no credit.mp4, the rest is made: {' '.join(str(error).split())}", file=sys.stderr)

    returns = recording.return_so_far[np.append(np.flatnonzero(recording.step == 0)[1:], 0) - 1]
    trained = getattr(run.args, "credit", "none")
    task = task_label(run.args.scenario, getattr(run.args, "sim", "mujoco"))
    title = f"{run.script}: {task}, seed {run.args.seed}, credit of the policy of step {run.global_step:,}"
    about = (
        f"{len(recording.step)} steps, return {', '.join(f'{value:.1f}' for value in returns)}. Credit: Shapley values"
        f" of the joint action under the masked critic, {credit.how}. Trained with --credit {trained}"
        + (": these values had no part in training." if trained == "none" else ".")
        + f" Command of the run: {run.config['command']} (commit {run.config.get('git_commit', 'unknown')})."
    )
    findings = [f"largest gap between the sum of credits and v(N) - v(empty): {np.abs(credit.gap).max():.3g}"]
    findings += [*trusted.lines(), checked.verdict()]
    findings += [f"over all pairs (agent, episode): Spearman's rank correlation {checked.pooled:.2f}"]
    findings += [f"training logged no {', '.join(absent)}"] if absent else []
    text = "\n".join([*findings, "", checked.table()])
    page.write(out, title, about, text, page.data_of(recording, credit, *shown))
    print(f"{title}\n{about}\n\n{text}\n\nwritten: {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the view; returns the exit status (0; 2 wrong usage, 3 non-finite, 130 interrupted)."""
    try:
        view(parse(sys.argv[1:] if argv is None else argv))
        return 0
    except cli.UsageError as error:
        cli.fail(PROG, str(error))
    except NonFiniteError as error:
        print(f"{PROG}: stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
