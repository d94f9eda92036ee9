"""The runner of suites on a small Ray cluster, one node of which is killed, and on a Slurm that is a few scripts."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_runner import (
    LONG,
    ROOT,
    all_folders,
    assert_complete,
    command,
    history,
    is_alive,
    starts,
    under_way,
    wait_for,
)

from experiments import folders, ray_pool, slurm
from experiments.run import main


def run_with(tmp_path: Path, *argv: object, steps: int = LONG, **environment: str) -> subprocess.Popen[str]:
    words = command("ok", "--runs-dir", tmp_path / "suite", "--calibration", tmp_path / "cal", *argv, steps=steps)
    env = os.environ | {"RAY_DEDUP_LOGS": "0"} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env=env, text=True, stdout=pipe, stderr=subprocess.STDOUT)


# ---- wrong usage, with and without the extras


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["mpe", "--backend", "pbs"], "argument --backend: invalid choice: 'pbs'"),
        (["mpe", "--slurm", "time=5"], "--slurm time=5: only with --backend slurm"),
        (["mpe", "--ray-address", "a:1"], "--ray-address a:1: only with --backend ray"),
        (["mpe", "--backend", "slurm"], "--slurm time=: minutes that a task may run are needed"),
        (["mpe", "--backend", "slurm", "--slurm", "time=1:00"], "--slurm time=1:00: minutes"),
        (["mpe", "--backend", "slurm", "--slurm", "time=10", "partition"], "--slurm partition: must be KEY=VALUE"),
    ],
)
def test_wrong_usage_is_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main(argv) == 2
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error, error


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_and_nothing_is_created(
    backend: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('hidden by the test')")
    argv = ["--backend", backend, *(["--slurm", "time=10"] if backend == "slurm" else [])]
    process = run_with(tmp_path, *argv, PYTHONPATH=str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and f"pip install -e '.[{backend}]'" in output, output
    assert not (tmp_path / "suite/fake").exists()


# ---- Ray


@pytest.fixture
def only_ray_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`--ray-address auto` finds any cluster of this machine, that of a test beside it, too."""
    with open(tmp_path_factory.getbasetemp().parent / "ray.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("only_ray_test")
def test_a_suite_survives_the_death_of_a_ray_node(tmp_path: Path) -> None:
    """Two nodes with a CPU each; one dies with a run on it. Nothing is lost, nothing runs twice."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine is slow to start its nodes
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    process = None
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        process = run_with(tmp_path, "--backend", "ray", "--ray-address", cluster.address)
        wait_for(under_way(tmp_path, 2), "two checkpoints", 120)
        cluster.remove_node(nodes[0], allow_graceful=False)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert "signal SIGKILL" in output and "restart 1 of 3" in output and "4 finished" in output, output
        assert_complete(tmp_path, LONG)
        counts = sorted(len(starts(path)) for path in all_folders(tmp_path))
        assert counts == [1, 1, 1, 2]
        (twice,) = (starts(path) for path in all_folders(tmp_path) if len(starts(path)) == 2)
        assert twice[1] > 0, "it should have gone on from its checkpoint"

        process = run_with(
            tmp_path, "--backend", "ray", "--ray-address", cluster.address, "--seeds", 3, "--tasks", "toy"
        )
        third = tmp_path / "suite/fake/toy/seed3-ok"
        wait_for(lambda: (third / "state.json").exists(), "a checkpoint", 60)
        process.terminate()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 143 and "1 stopped" in output, output
        assert "runs: 3; 2 finished, 0 begun, 1 not begun" in output
        assert [words[1] for words in history(third)] == ["start", "end"] and history(third)[-1][2] == "143"
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        cluster.shutdown()


@pytest.mark.usefixtures("only_ray_test")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_no_ray_cluster_is_one_line(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    process = run_with(tmp_path, "--backend", "ray", "--ray-address", address, RAY_TMPDIR=str(tmp_path), RAY_ADDRESS="")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2 and output.startswith(f"experiments.run: error: --ray-address {address}: "), output
    assert output.count("\n") == 1 and not (tmp_path / "suite").exists(), output


def test_a_worker_starts_its_script_with_the_lock_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a node, here without Ray."""
    monkeypatch.setattr(ray_pool, "LOCK_WAIT_S", 0.3)
    log, lock = tmp_path / "log", tmp_path / "lock"
    held = folders.take_lock(lock)
    assert held is not None
    assert ray_pool.Worker().run(["-c", "pass"], str(log), str(lock)) == ray_pool.LOCKED and not log.exists()
    os.close(held)
    assert ray_pool.Worker().run(["-c", "raise SystemExit(3)"], str(log), str(lock)) == 3
    for kill, status in ((False, -signal.SIGTERM), (True, -signal.SIGKILL)):
        worker = ray_pool.Worker()
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(worker.run, ["-c", "import time; time.sleep(60)"], str(log), str(lock))
            process = wait_for(lambda worker=worker: worker.process, "process")
            wait_for(lambda process=process: folders.holder(lock) == process.pid, "note of the holder")
            assert folders.take_lock(lock) is None
            worker.end(kill)
            assert result.result(timeout=20) == status
    stopped = ray_pool.Worker()
    stopped.end(kill=False)
    assert stopped.run(["-c", "pass"], str(log), str(lock)) == 143 and stopped.process is None


# ---- Slurm

# A cluster of one machine: sbatch starts the tasks of an array at once, each as `python fake_slurm task JOB INDEX`.
CLUSTER = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
here, name, argv = Path(__file__).resolve().parent, Path(sys.argv[0]).name, sys.argv[1:]
def launch(job, index):
    env = dict(os.environ, SLURM_JOB_ID=job, SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID=index, SLURM_NTASKS="1")
    if index == "": [env.pop(key) for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    out = open(here / f"{{job}}_{{index}}.out", "ab")
    task = subprocess.Popen(["bash", here / f"{{job}}.sh"], env=env, stdout=out, stderr=out, start_new_session=True)
    (here / "queue" / (f"{{job}}_{{index}}" if index else job)).write_text(str(task.pid))
if name == "sbatch":
    job = str(len(list(here.glob("*.sh"))) + 7)
    text = Path(argv[0]).read_text()
    (here / f"{{job}}.sh").write_text(text)
    count = re.search(r"--array=0-(\\d+)", text)
    for index in (map(str, range(int(count[1]) + 1)) if count else [""]):
        launch(job, index)
    print(f"Submitted batch job {{job}}")
elif name == "squeue":
    assert "--array" in argv and "--me" in argv
    print("\\n".join(path.name for path in (here / "queue").iterdir() if Path("/proc", path.read_text()).exists()))
elif name == "scontrol":
    assert argv[0] == "requeue"
    launch(*argv[1].partition("_")[::2])
elif name == "srun":
    while argv[0].startswith("-"):
        argv = argv[1 if "=" in argv[0] or argv[0] == "--unbuffered" else 2 :]
    os.execvp(argv[0], argv)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder for PATH."""
    pytest.importorskip("submitit")
    place = tmp_path / "bin"
    (place / "queue").mkdir(parents=True)
    for name in ("sbatch", "squeue", "scontrol", "srun"):
        (place / name).write_text(CLUSTER.format(python=sys.executable))
        (place / name).chmod(0o755 | stat.S_IXUSR)
    return place


def submit(tmp_path: Path, cluster: Path, *argv: object, **options: Any) -> str:
    path = f"{cluster}{os.pathsep}{os.environ['PATH']}"
    words = ["--backend", "slurm", "--slurm", "time=60", "partition=cpu", *argv]
    process = run_with(tmp_path, *words, PATH=path, **options)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    return output


def in_queue(cluster: Path) -> list[int]:
    """Tasks that are alive."""
    return [pid for path in (cluster / "queue").iterdir() if is_alive(pid := int(path.read_text()))]


def test_an_array_is_submitted_once_and_works_off_the_suite(tmp_path: Path, cluster: Path) -> None:
    output = submit(tmp_path, cluster, "--workers", 3)
    assert "submitted: 4 runs as Slurm job 7" in output, output
    (script,) = cluster.glob("*.sh")
    text = script.read_text()
    for line in ("--array=0-3%3", "--time=60", "--partition=cpu", "--signal=USR2@300", "--job-name=suite"):
        assert f"#SBATCH {line}\n" in text, text
    again = submit(tmp_path, cluster)
    assert "4 runs are in the queue already" in again and "nothing to submit" in again
    wait_for(lambda: len(list((tmp_path / "suite").rglob("finished.json"))) == 4, "end", 100)
    assert_complete(tmp_path, LONG)
    wait_for(lambda: not in_queue(cluster), "empty queue", 60)
    over = submit(tmp_path, cluster)
    assert "runs: 4; 4 finished" in over and "nothing to submit" in over
    assert len(list(cluster.glob("*.sh"))) == 1


def test_a_task_whose_time_is_over_saves_and_is_queued_again(tmp_path: Path, cluster: Path) -> None:
    submit(tmp_path, cluster, "--seeds", 1, "--tasks", "toy")
    wait_for(under_way(tmp_path, 1), "a checkpoint", 60)
    (path,) = all_folders(tmp_path)
    (bash,) = in_queue(cluster)
    (task,) = map(int, Path(f"/proc/{bash}/task/{bash}/children").read_text().split())  # what srun became
    os.kill(task, signal.SIGUSR2)
    wait_for(lambda: (path / "finished.json").exists(), "end", 100)
    wait_for(lambda: not in_queue(cluster), "empty queue", 60)  # only then has the run noted that it ended
    assert_complete(tmp_path, LONG, 1)
    assert [words[1] for words in history(path)] == ["start", "end", "start", "end"]
    first, second = starts(path)
    assert first == 0 and second > 0 and history(path)[1][2] == "143"


def test_what_is_queued_is_seen_by_its_id(tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "submitted.json"
    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{os.environ['PATH']}")
    assert slurm.queued(record) == {}
    record.write_text(json.dumps({"a": "7_0", "b": "7_10", "c": "8"}))
    (cluster / "queue/7_10").write_text(str(os.getpid()))
    (cluster / "queue/7_1").write_text(str(os.getpid()))
    assert slurm.queued(record) == {"b": "7_10"}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(folders.SuiteError, match="cannot see what is queued already: squeue"):
        slurm.queued(record)


def test_parameters_of_the_array() -> None:
    assert slurm.parameters(["time=90", "partition=a", "mem=8GB"]) == {"time": 90, "partition": "a", "mem": "8GB"}
