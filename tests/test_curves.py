"""`experiments.curves` on run folders written by hand."""

import csv
import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from experiments import curves, scores


def make_run(folder: Path, credit: str, seed: int, returns: dict[int, list[float]]) -> Path:
    folder.mkdir(parents=True)
    args = {"credit": credit, "seed": seed, "scenario": "HalfCheetah-6x1", "total_timesteps": 1000}
    config = {"args": args, "command": "python x"}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [f"{step},{i},{value},1000" for step, values in returns.items() for i, value in enumerate(values)]
    (folder / "eval.csv").write_text("\n".join(["global_step,episode,return,length", *rows, ""]))
    return folder


def run_curves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *argv: object) -> str:
    monkeypatch.setattr("sys.argv", ["curves", *map(str, argv)])
    assert curves.main() == 0
    return capsys.readouterr().out


def test_table_csv_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folders = [
        make_run(tmp_path / "a", "his", 1, {100: [1.0, 3.0], 200: [10.0, 20.0]}),
        make_run(tmp_path / "b", "his", 2, {100: [4.0, 4.0]}),  # not yet at step 200
        make_run(tmp_path / "c", "none", 1, {100: [700.0, 900.0], 200: [3000.0, 5000.0]}),
    ]
    out = tmp_path / "out"
    printed = run_curves(monkeypatch, capsys, *folders, "--out", out, "--steps", 100, 200, 300)
    assert "| HIS | **3.00** (2.00, 4.00) | **15.0** (15.0) | not run |" in printed
    assert "| HASAC (`--credit none`) | **800** (800) | **4000** (4000) | not run |" in printed
    assert "HIS - HASAC" not in printed  # one run of HASAC: no interval
    with open(out / "HalfCheetah-6x1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["algorithm"], row["seed"], row["global_step"], row["returns"]) for row in rows] == [
        ("HIS", "1", "100", "1.0 3.0"),
        ("HIS", "1", "200", "10.0 20.0"),
        ("HIS", "2", "100", "4.0 4.0"),
        ("HASAC (`--credit none`)", "1", "100", "700.0 900.0"),
        ("HASAC (`--credit none`)", "1", "200", "3000.0 5000.0"),
    ]
    assert {row["lengths"] for row in rows} == {"1000"}
    assert [run["seed"] for run in json.loads((out / "runs.json").read_text())] == [1, 2, 1]
    assert (out / "curves.png").stat().st_size > 10_000


def test_a_folder_of_runs_stands_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Baselines lie a level deeper, and the hands one more."""
    make_run(tmp_path / "suite/his_mamujoco/HalfCheetah-6x1/seed1", "his", 1, {100: [1.0]})
    make_run(tmp_path / "suite/hasac/mamujoco/HalfCheetah-6x1/seed1", "none", 1, {100: [2.0]})
    branched = make_run(tmp_path / "suite/his_mamujoco/HalfCheetah-6x1/seed1-b", "none", 1, {100: [9.0]})
    config = json.loads((branched / "config.json").read_text())
    (branched / "config.json").write_text(json.dumps(config | {"branched": {"checkpoint": "x"}}))
    (tmp_path / "suite/logs").mkdir()
    printed = run_curves(monkeypatch, capsys, tmp_path / "suite", "--out", tmp_path / "out", "--steps", 100)
    assert "| HIS | **1.00**" in printed and "| HASAC (`--credit none`) | **2.00**" in printed


def test_lengths_that_differ_are_all_kept() -> None:
    """... beside the return of their episode; rows of an evaluation need not stand together."""
    rows = [(20, 1.23456, 9), (10, -5.0, 7), (20, 2.0, 8), (10, 3.0, 7)]
    episodes = [{"global_step": f"{step}", "return": f"{end}", "length": f"{length}"} for step, end, length in rows]
    assert curves.by_evaluation(episodes) == [
        {"global_step": 10, "returns": "-5.0 3.0", "lengths": "7"},
        {"global_step": 20, "returns": "1.2346 2.0", "lengths": "9 8"},
    ]


@pytest.mark.parametrize(("shift", "verdict"), [(20.0, "ahead"), (0.0, "level"), (-20.0, "behind")])
def test_comparison(
    shift: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Five runs each; the IQM leaves out the best and the worst; the bounds say how far from random to oracle."""
    noise = [-9.0, -1.0, 0.0, 1.0, 9.0]
    for seed, value in enumerate(noise):
        make_run(tmp_path / f"his{seed}", "his", seed, {100: [0.0], 200: [-50 + shift + value]})
        make_run(tmp_path / f"none{seed}", "none", seed, {100: [0.0], 200: [-50 + value]})
    bounds = tmp_path / "bounds.json"
    bounds.write_text(json.dumps({"tasks": {"HalfCheetah-6x1": {"random": {"mean": -90}, "oracle": {"mean": -10}}}}))
    folders = [path for path in sorted(tmp_path.iterdir()) if path.is_dir()]
    printed = run_curves(monkeypatch, capsys, *folders, "--out", tmp_path / "out", "--bounds", bounds)
    (line,) = [line for line in printed.splitlines() if line.startswith("| HIS - HASAC")]
    at_the_end, second_half = line.split("|")[3:5]
    assert f"**{verdict}**: {curves.shown(shift)} [" in at_the_end and f"**{verdict}**" in second_half
    share = f"{100 * (40 + shift) / 80:.0f} %"
    assert f"| HIS: share of random to oracle | | {share} | {share} |" in printed
    assert "| HIS, to step 200 | 5 | " + curves.shown(-50 + shift) in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("| the same, seed by seed | 5 |")]
    count = 5 if shift > 0 else 0
    assert f"**{verdict}**: {curves.shown(shift)} [" in line and f"higher on {count} of 5" in line


def test_runs_of_several_days_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A second collection adds seed 2, replaces seed 1, and leaves the other algorithm alone."""
    first = [
        make_run(tmp_path / "a", "his", 1, {100: [1.0]}),
        make_run(tmp_path / "b", "none", 1, {100: [5.0]}),
    ]
    second = [
        make_run(tmp_path / "c", "his", 1, {100: [2.0]}),
        make_run(tmp_path / "d", "his", 2, {100: [4.0]}),
    ]
    out = tmp_path / "out"
    run_curves(monkeypatch, capsys, *first, "--out", out, "--steps", 100)
    printed = run_curves(monkeypatch, capsys, *second, "--out", out, "--steps", 100)
    assert "| HIS | **3.00** (2.00, 4.00) |" in printed and "| HASAC (`--credit none`) | **5.00** (5.00) |" in printed
    with open(out / "HalfCheetah-6x1.csv", newline="") as file:
        assert [(row["algorithm"][:5], row["seed"], row["returns"]) for row in csv.DictReader(file)] == [
            ("HASAC", "1", "5.0"),
            ("HIS", "1", "2.0"),
            ("HIS", "2", "4.0"),
        ]
    assert len(json.loads((out / "runs.json").read_text())) == 3
    printed = run_curves(monkeypatch, capsys, *second, "--out", out, "--anew", "--steps", 100)
    assert "HASAC" not in printed  # the folder starts anew


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file):
        assert "no config.json" in refusal(monkeypatch, capsys, path, "--out", tmp_path / "out")
    run = make_run(tmp_path / "a", "his", 1, {100: [1.0]})
    for bounds in (tmp_path / "no.json", run / "config.json"):
        assert f"--bounds {bounds}" in refusal(monkeypatch, capsys, run, "--out", tmp_path / "out", "--bounds", bounds)
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_just_begun_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Collected, it would leave a folder that nothing can read."""
    begun, out = make_run(tmp_path / "begun", "his", 2, {}), tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["curves", str(begun), "--out", str(out)])
    with pytest.raises(SystemExit):
        curves.main()
    assert "none of these runs has an evaluation yet" in capsys.readouterr().err and not out.exists()
    run = make_run(tmp_path / "run", "his", 1, {100: [1.0]})
    with open(run / "eval.csv", "a") as file:
        file.write("200,0,-9")  # torn by a kill
    monkeypatch.setattr("sys.argv", ["curves", str(begun), str(run), "--out", str(out)])
    assert curves.main() == 0
    assert f"left out, no evaluation yet: {begun}" in capsys.readouterr().err
    (curve,) = scores.from_results(out)
    assert curve.steps.tolist() == [100]


def test_damaged_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, out = make_run(tmp_path / "run", "his", 1, {100: [1.0]}), tmp_path / "out"
    bad = make_run(tmp_path / "bad", "his", 2, {100: [1.0]})
    for text in ("{", "{}", "[]"):
        (bad / "config.json").write_text(text)
        assert f"{bad}: its files are damaged" in refusal(monkeypatch, capsys, bad, "--out", out)
    out.mkdir()
    (out / "runs.json").write_text("[{")
    assert f"{out / 'runs.json'} is damaged" in refusal(monkeypatch, capsys, run, "--out", out)
    (out / "runs.json").unlink()
    run_curves(monkeypatch, capsys, run, "--out", out)
    (out / "HalfCheetah-6x1.csv").unlink()
    other = make_run(tmp_path / "other", "none", 1, {100: [1.0]})
    assert f"{out} has no HalfCheetah-6x1.csv" in refusal(monkeypatch, capsys, other, "--out", out)
    run_curves(monkeypatch, capsys, other, "--out", out, "--anew")
    assert str(bad / "eval.csv") in refusal(monkeypatch, capsys, run, "--out", bad / "eval.csv")


def test_runs_that_have_no_step_in_common_are_collected_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = [make_run(tmp_path / str(s), "his", s, {100 + s: [1.0]}) for s in (1, 2)]
    assert "| HIS | 2 | no evaluation step in common" in run_curves(monkeypatch, capsys, *runs, "--out", tmp_path / "o")
    sparse = [make_run(tmp_path / f"n{s}", "none", s, {1000: [1.0]}) for s in (1, 2, 3)]
    early = [make_run(tmp_path / f"h{s}", "his", s, {100: [1.0]}) for s in (1, 2, 3)]
    printed = run_curves(monkeypatch, capsys, *sparse, *early, "--out", tmp_path / "p")
    assert "one of them has no evaluation in the second half of 100 steps" in printed


def test_only_what_a_benchmark_has_tells_its_runs_apart() -> None:
    every = {"rules": "harl", "sim": "isaacgym"}  # flags that each script in baselines/ has
    tasks = {"simple_spread": "harl", "ShadowHandOver": "isaacgym", "HalfCheetah-2x3": ""}
    assert {task: curves.rules_of(every | {"scenario": task}) for task in tasks} == tasks


def test_one_run_does_not_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folders = [make_run(tmp_path / name, "his", 1, {100: [1.0]}) for name in ("seed1", "seed1-cuda")]
    line = refusal(monkeypatch, capsys, *folders, "--out", tmp_path / "out")
    assert f"{folders[0]} and {folders[1]} are the same task, algorithm and seed" in line


def test_a_shorter_run_does_not_replace_a_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    long = make_run(tmp_path / "long", "his", 1, {100: [1.0], 200: [2.0]})
    short, out = make_run(tmp_path / "short", "his", 1, {100: [7.0]}), tmp_path / "out"
    run_curves(monkeypatch, capsys, long, "--out", out)
    assert "has 2 evaluations of HIS, seed 1, the new run has 1" in refusal(monkeypatch, capsys, short, "--out", out)
    assert "2.0" in (out / "HalfCheetah-6x1.csv").read_text()
    run_curves(monkeypatch, capsys, short, "--out", out, "--replace")
    assert "7.0" in (out / "HalfCheetah-6x1.csv").read_text()


def test_values_that_are_not_the_papers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain, changed = (make_run(tmp_path / name, "his", 1, {100: [1.0]}) for name in "ab")
    config = json.loads((changed / "config.json").read_text())
    config["args"] |= {"batch_size": 500, "hidden_sizes": [256, 256], "floor": "none", "total_timesteps": 20_000}
    config["args"] |= {"warmup_steps": 2000}  # as a suite gives it to so short a run
    (changed / "config.json").write_text(json.dumps(config))
    direct = make_run(tmp_path / "c", "his", 2, {100: [1.0]})  # the paper's warm-up, in a run as short as that
    config = json.loads((direct / "config.json").read_text())
    config["args"] |= {"warmup_steps": 10_000, "total_timesteps": 20_000}
    (direct / "config.json").write_text(json.dumps(config))
    printed = run_curves(monkeypatch, capsys, plain, changed, direct, "--out", tmp_path / "out", "--steps", 100)
    assert (
        "| HIS | **1.00** (1.00, 1.00) |" in printed
        and "| HIS, floor=none, warmup_steps=2000, batch_size=500 |" in printed
    )
    runs = scores.from_results(tmp_path / "out")
    assert [curve.variant for curve in runs] == ["his", "his floor=none warmup_steps=2000 batch_size=500", "his"]


def test_a_named_run_of_a_baseline_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its values are not known here: it must not be counted with the runs that have the script's."""
    folders = []
    for name, end in (("", 1.0), ("mappo", 1.0), ("noshare", 5.0)):
        folders.append(make_run(tmp_path / f"run-{name}", "his", 1 + len(folders), {100: [end]}))
        config = json.loads((folders[-1] / "config.json").read_text())
        del config["args"]["credit"]
        config["args"] |= {"benchmark": "mamujoco", "run_name": name}
        (folders[-1] / "config.json").write_text(json.dumps(config | {"command": "python baselines/mappo.py"}))
    printed = run_curves(monkeypatch, capsys, *folders, "--out", tmp_path / "out", "--steps", 100)
    assert "| MAPPO | **1.00** (1.00, 1.00) |" in printed and "| MAPPO, run_name=noshare | **5.00** (5.00) |" in printed


def test_values_that_all_runs_share_stand_in_the_title(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """... and HIS is compared with HASAC of the same values only."""
    small = {"batch_size": 256, "hidden_sizes": [128, 128], "total_timesteps": 200_000}
    folders = []
    for credit, seed, end in ((c, s, e) for c, e in (("his", 5.0), ("none", 3.0)) for s in (1, 2, 3)):
        folders.append(make_run(tmp_path / f"{credit}{seed}", credit, seed, {100: [1.0], 200: [end + 0.1 * seed]}))
        config = json.loads((folders[-1] / "config.json").read_text())
        config["args"] |= small
        (folders[-1] / "config.json").write_text(json.dumps(config))
    printed = run_curves(monkeypatch, capsys, *folders, "--out", tmp_path / "a", "--steps", 200)
    assert "HalfCheetah-6x1, hidden_sizes=[128, 128], batch_size=256\n" in printed
    assert "| HIS | **5.20** (5.10, 5.20, 5.30) |" in printed and "| HIS - HASAC, to step 200 | | **ahead**" in printed
    other = make_run(tmp_path / "x", "his", 1, {100: [1.0], 200: [9.0]})
    printed = run_curves(monkeypatch, capsys, *folders, other, "--out", tmp_path / "b", "--steps", 200)
    assert "HalfCheetah-6x1\n" in printed and "| HIS | **9.00** (9.00) |" in printed
    assert "| HIS - HASAC, hidden_sizes=[128, 128], batch_size=256, to step 200 | | **ahead**" in printed


def test_many_algorithms_have_one_legend_and_lines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from matplotlib.figure import Figure

    shown: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    nested = {f"idea-{i}": {1: {100: 1.0 * i, 200: 2.0 * i}} for i in range(45)} | {"HIS": {1: {100: 0.0, 200: 1.0}}}
    curves.plot({"a": nested, "b": dict(reversed(list(nested.items())[-6:]))}, {}, {}, tmp_path / "x.png")
    (figure,) = shown
    assert len(figure.legends[0].texts) == 46 and all(axes.get_legend() is None for axes in figure.axes)
    looks = [
        {line.get_label(): (line.get_color(), line._dash_pattern) for line in axes.lines}  # type: ignore[attr-defined]
        for axes in figure.axes
    ]
    assert len(set(map(str, looks[0].values()))) == 46
    assert len(looks[1]) == 6 and looks[1].items() <= looks[0].items(), "the same in each panel: the legend is for all"


def test_many_tasks_stand_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tasks in three rows of three, five in two of three; each panel has its own task, with its success below."""
    from matplotlib.figure import Figure

    shown: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    tasks = {name: {"HIS": {1: {100: 1.0 * i, 200: 2.0 * i}}} for i, name in enumerate("abcdefghi")}
    five = dict(list(tasks.items())[:5])
    curves.plot(tasks, {}, {}, tmp_path / "x.png")
    curves.plot(five, {"a": tasks["a"], "e": tasks["e"]}, {}, tmp_path / "y.png")
    curves.plot({name: tasks[name] for name in "abcd"}, {}, {}, tmp_path / "z.png")
    seen = [
        [
            [axes.get_title() if axes.get_visible() else "" for axes in figure.axes[start : start + columns]]
            for start in range(0, len(figure.axes), columns)
        ]
        for figure, columns in zip(shown, (3, 3, 4), strict=True)
    ]
    assert seen[0] == [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]
    assert seen[1] == [["a", "b", "c"], ["d", "e", ""], ["a", "", ""], ["", "e", ""]]
    assert seen[2] == [["a", "b", "c", "d"]]
    for figure in shown:
        drawn = [axes for axes in figure.axes if axes.get_visible()]
        assert all(np.asarray(axes.lines[0].get_ydata())[0] == ord(axes.get_title()) - ord("a") for axes in drawn)
    names = [axes.get_ylabel() for axes in shown[1].axes[::3]]
    assert names == ["return of deterministic evaluation episodes"] * 2 + ["success rate"] * 2


def test_a_curve_far_below_random_does_not_press_the_others_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    shown: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: shown.append(figure))
    good, bad = {"HIS": {1: {100: -70.0, 200: -40.0}}}, {"no-bc": {1: {100: -70.0, 200: -1000.0}}}
    bounds = {"a": {"random": -76.0, "oracle": -16.0}, "b": {"random": -76.0, "oracle": -16.0}}
    curves.plot({"a": good | bad, "b": good, "c": good | bad}, {}, bounds, tmp_path / "x.png")
    with_bad, without, unknown = (axes.get_ylim()[0] for axes in shown[0].axes)
    assert with_bad == -136.0 and -90 < without < -76 and unknown < -1000


def test_diagnostics_are_medians_over_agents_and_tenths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Total 1000: steps 150 and 200 are the second tenth; a torn last line is left out."""
    run = make_run(tmp_path / "a", "his", 1, {1000: [1.0]})
    lines = [
        {"global_step": 150, "wall_s": 1.0, "losses/critic": 4.0, "diag/grad_norm_main_0": 1.0}
        | {"diag/grad_norm_main_1": 2.0, "diag/grad_norm_history_0": 3.0, "diag/grad_norm_history_1": 8.0},
        {"global_step": 200, "losses/critic": 8.0},
        {"global_step": 201, "losses/critic": 1.0},
        {"global_step": 250, "diag/grad_norm_main_0": 1.0, "diag/grad_norm_history_0": None},  # not finite
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"global_st')
    printed = run_curves(monkeypatch, capsys, run, "--out", tmp_path / "out", "--steps", 100, 200)
    assert "| HIS | `diag/grad_ratio` |  | 3.5 |" in printed
    with open(tmp_path / "out/HalfCheetah-6x1_diagnostics.csv", newline="") as file:
        found = {(int(row["global_step"]), row["key"]): float(row["median"]) for row in csv.DictReader(file)}
    assert found == {
        (200, "losses/critic"): 6.0,
        (200, "diag/grad_norm_main"): 1.5,
        (200, "diag/grad_norm_history"): 5.5,
        (200, "diag/grad_ratio"): 3.5,
        (300, "losses/critic"): 1.0,
        (300, "diag/grad_norm_main"): 1.0,
    }


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *argv: object) -> str:
    """The one line of an error."""
    monkeypatch.setattr("sys.argv", ["curves", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        curves.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


def make_hands_run(folder: Path, sim: str, rates: dict[int, float]) -> Path:
    make_run(folder, "his", 1, {step: [step / 100] for step in rates})
    config = json.loads((folder / "config.json").read_text())
    config["args"] |= {"scenario": "ShadowHandOver", "sim": sim}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"global_step": 50, "charts/SPS": 1.0}]
    lines += [{"global_step": step, "eval/success_rate": rate} for step, rate in rates.items()]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_success_rates_and_the_name_of_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A task with success has a file, a table and a second row of panels; the port never bears the original's name."""
    port = make_hands_run(tmp_path / "port", "mujoco", {100: 0.25, 200: 0.75})
    out = tmp_path / "out"
    printed = run_curves(monkeypatch, capsys, port, "--out", out, "--steps", 100, 200)
    head, _, success = printed.partition("BiDexMJ/ShadowHandOver: success rate")
    assert head.startswith("\nBiDexMJ/ShadowHandOver\n") and "| HIS | **0.25** (0.25) | **0.75** (0.75) |" in success
    with open(out / "ShadowHandOver_success.csv", newline="") as file:
        rows = [(row["seed"], row["global_step"], row["success_rate"]) for row in csv.DictReader(file)]
    assert rows == [("1", "100", "0.25"), ("1", "200", "0.75")]
    height, width = imageio.imread(out / "curves.png").shape[:2]
    assert height > width  # returns above, success rates below
    again = run_curves(monkeypatch, capsys, make_run(tmp_path / "b", "none", 2, {100: [1.0]}), "--out", out)
    assert "BiDexMJ/ShadowHandOver: success rate" in again  # kept

    original = make_hands_run(tmp_path / "original", "isaacgym", {100: 1.0})
    printed = run_curves(monkeypatch, capsys, original, "--out", tmp_path / "isaac")
    assert "\nBiDexHands/ShadowHandOver\n" in printed and "BiDexMJ" not in printed
    before = (out / "ShadowHandOver.csv").read_text()
    line = refusal(monkeypatch, capsys, original, "--out", out)
    assert "BiDexMJ/ShadowHandOver and BiDexHands/ShadowHandOver are not one task" in line
    assert (out / "ShadowHandOver.csv").read_text() == before
