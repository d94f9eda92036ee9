"""experiments/posture.py against robots that are put down by hand."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import csv
from pathlib import Path

import mujoco
import numpy as np
import pytest
from script_helpers import flags
from test_ideas import TINY

import his_mamujoco
from common.mamujoco import MAMuJoCoVecEnv
from experiments import posture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs_dir = tmp_path_factory.mktemp("posture")
    assert his_mamujoco.main(flags(TINY | {"runs_dir": runs_dir, "scenario": "HalfCheetah-2x3"})) == 0
    return runs_dir / "his_mamujoco/HalfCheetah-2x3/seed3"


@pytest.mark.parametrize(
    "degrees, expected, upside_down",
    [
        ([10, 20, 30], 20, 0.0),
        ([170, 180, 190], 180, 1.0),
        ([-170, -180, 170], 180, 1.0),
        ([370, 380, 390], 20, 0.0),
        ([80, 85, 100], 85, 1 / 3),
        ([-30, -20, -10], -20, 0.0),
    ],
)
def test_the_median_of_angles(degrees: list[float], expected: float, upside_down: float) -> None:
    median, share = posture.describe(np.radians(degrees))
    assert -180 <= median <= 180 and share == pytest.approx(upside_down)
    assert (median - expected + 180) % 360 == pytest.approx(180), "the same angle, with its sign"


def test_the_angle_is_the_torsos() -> None:
    """MuJoCo's own orientation of the body: turned half about y its z axis points down."""
    env = MAMuJoCoVecEnv("HalfCheetah-2x3", 1)
    env.reset(0)
    for angle in (0.3, np.pi):
        env._data[0].qpos[2] = angle
        mujoco.mj_forward(env.model, env._data[0])
        env._read_physics()
        assert env.raw_state[0, posture.PITCH] == angle
        up = env._data[0].body("torso").xmat.reshape(3, 3)
        assert up[2, 2] == pytest.approx(np.cos(angle))
        assert up[2, 0] == pytest.approx(-np.sin(angle)), "the front goes down where the angle is positive"


def test_a_robot_that_is_put_on_its_back_is_found_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, before = posture.measure(folder, 2)
    reset = MAMuJoCoVecEnv._reset_env

    def on_its_back(env: MAMuJoCoVecEnv, i: int) -> None:
        reset(env, i)
        env._data[i].qpos[1:3] = 0.3, np.pi
        mujoco.mj_forward(env.model, env._data[i])

    monkeypatch.setattr(MAMuJoCoVecEnv, "_reset_env", on_its_back)
    _, after = posture.measure(folder, 2)  # an untrained policy hardly moves: it stays where it was put
    assert before.upside_down == 0 and abs(before.pitch_deg) < 60
    assert after.upside_down == 1 and abs(after.pitch_deg) > 120


def test_the_return_is_that_of_the_run_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--evaluate` of the same policy on the same episodes, its seed given to both."""
    _, mine = posture.measure(folder, 2)
    capsys.readouterr()
    streams = his_mamujoco.Streams
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(his_mamujoco, "Streams", lambda seed, device: with_evaluation(streams(seed, device)))
        values = ["--evaluate", str(folder), "--eval-episodes", "2", "--eval-envs", "2"]
        assert his_mamujoco.main(values) == 0
    assert f"mean return {mine.return_mean:.2f}" in capsys.readouterr().out


def with_evaluation(streams: his_mamujoco.Streams) -> his_mamujoco.Streams:
    streams.evaluation = posture.SEED
    return streams


def test_it_writes_a_row_for_each_run(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "posture.csv"
    assert posture.main([str(folder), str(folder), "--episodes", "1", "--csv", str(place)]) == 0
    rows = list(csv.DictReader(place.open()))
    assert [row["run"] for row in rows] == ["seed3", "seed3"] and rows[0] == rows[1]
    assert rows[0]["task"].startswith("HalfCheetah")
    assert list(rows[0]) == ["task", "run", "global_step", "return_mean", "pitch_deg", "upside_down"]


def test_what_is_no_halfcheetah_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((folder / "config.json").read_text().replace("HalfCheetah-2x3", "Ant-2x4"))
    for path, said in ((other, "scenario Ant-2x4"), (tmp_path / "none", "No such file")):
        with pytest.raises(SystemExit) as stopped:
            posture.main([str(path)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and "Traceback" not in error
