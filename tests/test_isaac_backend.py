"""`--sim isaacgym` from end to end, against a fake Isaac Gym and fake clones of HARL and DexterousHands in
tests/data/fake_isaacgym. The worker runs as a process, under this interpreter and under those that the environment
variable ISAAC_TEST_PYTHONS lists (paths with numpy, joined by ":"; 3.6 to 3.8 are of interest)."""

import ast
import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.bidexhands import isaac_process, isaac_worker
from common.bidexhands.isaac import SCENARIOS, IsaacBiDexHandsVecEnv
from common.bidexhands.isaac_process import Interpreter, IsaacGymError
from common.cli import UsageError
from common.vecenv import NonFiniteError, RenderError, StepResult

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Isaac Gym is for Linux only")

FAKE = Path(__file__).resolve().parent / "data/fake_isaacgym"
ROOT = Path(__file__).resolve().parent.parent
WORKER = isaac_process.WORKER
PYTHONS = [sys.executable, *filter(None, os.environ.get("ISAAC_TEST_PYTHONS", "").split(os.pathsep))]
MakeEnv = Callable[..., IsaacBiDexHandsVecEnv]
HANDS = {398: 187, 422: 199, 446: 199, 417: 199}  # state size: entries of it that belong to one hand


def set_up_fake(monkeypatch: pytest.MonkeyPatch, faults: dict[str, Any], real_torch: bool = False) -> None:
    folders = [FAKE / "site"] if real_torch else [FAKE / "site", FAKE / "torch"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("FAKE_ISAAC_FAULTS", json.dumps(faults))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEnv]:
    """Makes environments on the fake; `faults` are those of fake_bidex.py. Closes them at the end."""
    made: list[IsaacBiDexHandsVecEnv] = []

    def make_env(
        scenario: str = "ShadowHandOver",
        num_envs: int = 3,
        faults: dict[str, Any] | None = None,
        root: str = "HARL",
        real_torch: bool = False,
        python: str = sys.executable,
        **rest: Any,
    ) -> IsaacBiDexHandsVecEnv:
        set_up_fake(monkeypatch, faults or {}, real_torch)
        made.append(IsaacBiDexHandsVecEnv(scenario, num_envs, python, FAKE / root, **rest))
        return made[-1]

    yield make_env
    for env in made:
        env.close()


def random_actions(env: IsaacBiDexHandsVecEnv, rng: np.random.Generator, ends: float = 0.0) -> list[np.ndarray]:
    """Actions beyond the limits too; `ends` is the probability of ending an episode with them."""
    actions = [rng.uniform(-1.2, 0.85, (env.num_envs, dim)).astype(np.float32) for dim in env.action_dims]
    actions[0][rng.random(env.num_envs) < ends, 0] = 1.1
    actions[1][rng.random(env.num_envs) < 0.05, 0] = 1.0  # success
    return actions


def no_actions(env: IsaacBiDexHandsVecEnv) -> list[np.ndarray]:
    return [np.zeros((env.num_envs, dim), np.float32) for dim in env.action_dims]


def process_of(env: IsaacBiDexHandsVecEnv) -> subprocess.Popen[bytes]:
    assert env._worker is not None
    return env._worker.process


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether that process, of whoever's, ends within so many seconds (a zombie counts as ended)."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


class Expected:
    """What the fake task must yield: the same arithmetic, written down once more, without any of its timing.

    `rand` gives the numbers of the worker's generator.
    """

    def __init__(self, env: IsaacBiDexHandsVecEnv, rand: Callable[..., np.ndarray]):
        self.env, self.rand = env, rand
        self.joint, self.object, self.link, self.episodes = np.zeros((4, env.num_envs), np.float32)
        self.progress = np.zeros(env.num_envs, int)
        self.success, self.to_reset = np.zeros(env.num_envs, bool), np.ones(env.num_envs, bool)

    def start(self, ended: np.ndarray) -> None:
        """New episodes where `ended`: the joint is set at once, the link follows with the next move."""
        self.episodes[ended] += 1
        self.joint[ended] = self.episodes[ended] / 10
        if ended.any():
            self.object[ended] = self.rand(int(ended.sum()))
        self.progress[ended], self.success[ended], self.to_reset[ended] = 0, False, False

    def move(self, actions: np.ndarray) -> None:
        self.start(self.to_reset)
        self.joint += 0.01 * actions[0].mean(1)
        self.object += 0.001
        self.link = 2 * self.joint
        self.progress += 1

    def observe(self, actions: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        hand, count = HANDS[self.env.state_dim], self.env.action_dims[0]
        state = np.zeros((self.env.num_envs, self.env.state_dim), np.float32)
        for agent in range(2):
            start = agent * hand
            state[:, start], state[:, start + 1] = self.joint + agent / 4, self.link
            state[:, start + hand - count : start + hand] = actions[agent]
        state[:, 2 * hand], state[:, 2 * hand + 1], state[:, 2 * hand + 2] = self.object, self.progress / 100, 5.0
        shared = state[:, 2 * hand :]
        return [np.concatenate([state[:, i * hand : (i + 1) * hand], shared], axis=1) for i in range(2)], state

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        self.to_reset[:] = True
        joint = 0.01 * (1 - 2 * self.rand(self.env.num_envs, sum(self.env.action_dims)))
        actions = np.stack(np.split(joint, 2, axis=1))
        self.move(actions)
        return self.observe(actions)

    def step(self, actions: list[np.ndarray], isaac_done_semantics: bool) -> StepResult:
        action = np.clip(np.stack(actions), -1, 1)
        self.move(action)
        final_obs, final_state = self.observe(action)
        reward = self.object + action[1].mean(1)
        self.success |= action[1][:, 0] > 0.9
        self.reported_success = self.success.copy()
        time_out = self.progress >= self.env.max_episode_steps
        done = (action[0][:, 0] > 0.9) | time_out
        obs, state = final_obs, final_state
        if isaac_done_semantics:
            self.to_reset, time_out = done, np.zeros_like(done)
        else:
            self.start(done)
            after_reset = action.copy()
            after_reset[:, done] = 0.0
            obs, state = self.observe(after_reset)
        return StepResult(obs, state, reward, done & ~time_out, done & time_out, final_obs, final_state)


def stub_rand(seed: int) -> Callable[..., np.ndarray]:
    """The random numbers of the stand-in for torch."""
    stream = np.random.RandomState(seed)
    return lambda *shape: stream.uniform(0, 1, shape).astype(np.float32)


def torch_rand(seed: int) -> Callable[..., np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.rand(*shape, generator=generator).numpy()


def assert_close(result: StepResult, expected: StepResult) -> None:
    for name, x, y in zip(StepResult._fields, result, expected):
        for a, b in zip(x, y, strict=True) if isinstance(x, list) else [(x, y)]:
            assert a.dtype == (bool if name in ("terminated", "truncated") else np.float32)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=name)


# ---- what it yields


@pytest.mark.parametrize("isaac_done_semantics", [False, True])
@pytest.mark.parametrize("root", ["HARL", "DexterousHands"])
def test_yields_what_the_task_does(make: MakeEnv, root: str, isaac_done_semantics: bool) -> None:
    env = make(root=root, isaac_done_semantics=isaac_done_semantics)
    expected = Expected(env, stub_rand(5))
    obs, state = env.reset(5)
    want_obs, want_state = expected.reset()
    np.testing.assert_allclose(np.stack(obs), np.stack(want_obs), atol=1e-6)
    np.testing.assert_allclose(state, want_state, atol=1e-6)

    rng, terminations, time_outs, successes = np.random.default_rng(0), 0, 0, 0
    for step in range(240):
        actions = random_actions(env, rng, ends=0.004)
        result, want = env.step(actions), expected.step(actions, isaac_done_semantics)
        assert_close(result, want)
        np.testing.assert_array_equal(env.last_success, expected.reported_success)
        terminations += int(result.terminated.sum())
        time_outs += int(result.truncated.sum())
        successes += int(env.last_success.sum())
        for new, final in zip(result.obs, result.final_obs):
            moved = (new != final).any(axis=1)
            ended = result.terminated | result.truncated
            np.testing.assert_array_equal(moved, ended & (not isaac_done_semantics), err_msg=f"step {step}")
    assert terminations > 0 and successes > 0
    assert (time_outs > 0) == (not isaac_done_semantics)


def test_first_observation_of_an_episode_is_new_where_the_simulator_has_it(make: MakeEnv) -> None:
    """Joint, object, time and last action are those of the new episode; the link is known only one step later."""
    env = make(num_envs=2)
    env.reset(0)
    actions = no_actions(env)
    actions[0][0, 0] = 1.0
    result = env.step(actions)
    assert result.terminated.tolist() == [True, False]
    hand = HANDS[env.state_dim]
    np.testing.assert_allclose(result.final_state[0, 0], 0.1, atol=1e-3)
    np.testing.assert_allclose(result.state[0, [0, hand]], [0.2, 0.45], atol=1e-6)  # set to the second episode's
    assert result.state[0, 1] == result.final_state[0, 1]  # stale, as documented
    assert result.state[0, 2 * hand + 1] == 0.0 and result.final_state[0, 2 * hand + 1] > 0.0
    assert result.final_obs[0][0, hand - 20] == 1.0 and not result.obs[0][0, hand - 20 : hand].any()
    after = env.step(no_actions(env))
    np.testing.assert_allclose(after.state[0, 1], 0.4, atol=1e-6)
    np.testing.assert_array_equal(after.obs[0], after.final_obs[0])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sizes(make: MakeEnv, scenario: str) -> None:
    sizes = {  # observation, state, actions, time limit
        "ShadowHandOver": (211, 398, 20, 75),
        "ShadowHandCatchAbreast": (223, 422, 26, 150),
        "ShadowHandTwoCatchUnderarm": (247, 446, 26, 75),
        "ShadowHandCatchOver2Underarm": (223, 422, 26, 75),
        "ShadowHandLiftUnderarm": (218, 417, 26, 500),
        "ShadowHandPen": (218, 417, 26, 125),
        "ShadowHandDoorCloseInward": (218, 417, 26, 250),
        "ShadowHandDoorOpenInward": (218, 417, 26, 250),
        "ShadowHandDoorOpenOutward": (218, 417, 26, 250),
    }
    obs_dim, state_dim, action_dim, limit = sizes[scenario]
    env = make(scenario, 2)
    assert (env.num_envs, env.num_agents, env.state_dim, env.max_episode_steps) == (2, 2, state_dim, limit)
    assert env.obs_dims == [obs_dim] * 2 and env.action_dims == [action_dim] * 2 and env.render_fps == 60
    for low, high in zip(env.action_low, env.action_high, strict=True):
        np.testing.assert_array_equal([low, high], [[-1.0] * action_dim, [1.0] * action_dim])
        assert low.dtype == high.dtype == np.float32
    env.reset(0)
    result = env.step(no_actions(env))
    for obs, state in [(result.obs, result.state), (result.final_obs, result.final_state)]:
        assert [o.shape for o in obs] == [(2, obs_dim)] * 2 and state.shape == (2, state_dim)
    assert result.reward.shape == result.terminated.shape == result.truncated.shape == (2,)


def test_with_the_real_torch(make: MakeEnv) -> None:
    env = make(real_torch=True)
    expected = Expected(env, torch_rand(3))
    np.testing.assert_allclose(env.reset(3)[1], expected.reset()[1], atol=1e-6)
    rng, ends = np.random.default_rng(1), 0
    for _ in range(100):
        actions = random_actions(env, rng, ends=0.05)
        result = env.step(actions)
        assert_close(result, expected.step(actions, isaac_done_semantics=False))
        ends += int((result.terminated | result.truncated).sum())
    assert ends > 3


@pytest.mark.parametrize("python", PYTHONS[1:])
def test_under_another_interpreter(make: MakeEnv, python: str) -> None:
    env = make(python=python)
    expected = Expected(env, stub_rand(3))
    np.testing.assert_allclose(env.reset(3)[1], expected.reset()[1], atol=1e-6)
    rng = np.random.default_rng(1)
    for _ in range(100):
        actions = random_actions(env, rng, ends=0.05)
        assert_close(env.step(actions), expected.step(actions, isaac_done_semantics=False))


def test_seeds(make: MakeEnv) -> None:
    env = make()
    first, again, other = env.reset(1)[1], env.reset(1)[1], env.reset(2)[1]
    column = 2 * HANDS[env.state_dim]  # the object, drawn at random
    np.testing.assert_array_equal(first[:, column], again[:, column])
    assert (first[:, column] != other[:, column]).all()
    assert (again[:, 0] > first[:, 0]).all(), "each reset must start the next episode"


def test_results_belong_to_the_caller(make: MakeEnv) -> None:
    env, rng = make(), np.random.default_rng(0)
    obs, state = env.reset(0)
    kept = [(x, x.copy()) for x in (*obs, state)]
    for _ in range(30):
        result = env.step(random_actions(env, rng, ends=0.1))
        arrays = [*result.obs, *result.final_obs, *(x for x in result if isinstance(x, np.ndarray)), env.last_success]
        assert not any(np.shares_memory(x, y) for i, x in enumerate(arrays) for y in arrays[:i])
        kept += [(x, x.copy()) for x in arrays]
    for x, copy in kept:
        np.testing.assert_array_equal(x, copy)
    before = env.get_state()["obs_0"].copy()
    for x, _ in kept:
        x.fill(1)
    np.testing.assert_array_equal(env.get_state()["obs_0"], before)


def test_noise_does_not_reach_the_protocol(make: MakeEnv) -> None:
    env = make(faults={"noise": True})
    expected = Expected(env, stub_rand(0))
    env.reset(0)
    expected.reset()
    for _ in range(20):
        assert_close(env.step(no_actions(env)), expected.step(no_actions(env), isaac_done_semantics=False))


# ---- misuse


def test_wrong_actions_are_refused_and_cost_nothing(make: MakeEnv) -> None:
    env = make()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(no_actions(env))
    env.reset(0)
    with pytest.raises(ValueError, match="actions of 2 agents"):
        env.step(no_actions(env)[:1])
    with pytest.raises(ValueError, match=r"agent 1: expected shape \(3, 20\)"):
        env.step([np.zeros((3, 20)), np.zeros((3, 19))])
    bad = no_actions(env)
    bad[1][2, 0] = np.nan
    with pytest.raises(NonFiniteError, match="agent 1 in environment 2"):
        env.step(bad)
    assert not env.step(no_actions(env)).terminated.any()


def test_wrong_settings_are_refused(make: MakeEnv) -> None:
    with pytest.raises(ValueError, match="unknown scenario 'Over'; allowed: ShadowHandOver,"):
        make("Over")
    for wrong in (dict(num_envs=0), dict(step_timeout_s=0), dict(start_timeout_s=-1)):
        with pytest.raises(ValueError, match="must be >= 1"):
            make(**wrong)


def test_gives_no_picture(make: MakeEnv) -> None:
    with pytest.raises(RenderError, match="--sim mujoco"):
        make().render()


def test_a_nan_from_the_simulator_is_named(make: MakeEnv) -> None:
    env = make(faults={"nan": 2})
    env.reset(0)
    env.step(no_actions(env))
    with pytest.raises(NonFiniteError, match="observation of agent 0 in environment 1 is not finite"):
        env.step(no_actions(env))
    env.step(no_actions(env))


# ---- what is missing or wrong on the other side


def failure(act: Callable[[], object]) -> str:
    """The message of the `IsaacGymError` that this raises: one line, which the script can show as a usage error."""
    with pytest.raises(IsaacGymError) as caught:
        act()
    message = str(caught.value)
    assert isinstance(caught.value, UsageError) and "\n" not in message
    return message


@pytest.mark.parametrize(
    "faults, module, text, remedy",
    [
        ({"bindings": 1}, "isaacgym.gymapi", "RuntimeError: No gym module found", "Isaac Gym Preview 4"),
        ({"numpy_names": 1}, "isaacgym", "has no attribute 'float'", "numpy<1.24"),
        ({"task_import": 1}, "harl.envs.dexhands.dexhands_env", "No module named 'gym'", "README"),
    ],
)
def test_failed_import(make: MakeEnv, faults: dict, module: str, text: str, remedy: str) -> None:
    message = failure(lambda: make(faults=faults).reset(0))
    version = ".".join(map(str, sys.version_info[:3]))
    assert f'"import {module}" failed in {sys.executable} (Python {version}): ' in message
    assert text in message and remedy in message and "--sim mujoco, the default" in message


def test_python_too_new(make: MakeEnv) -> None:
    message = failure(lambda: make(faults={"bindings": 1}).reset(0))
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"its bindings are for Python 3.6, 3.7 and 3.8, this is {version};" in message


def test_missing_isaacgym(make: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make()
    monkeypatch.delenv("PYTHONPATH")
    env = IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, FAKE / "HARL")
    message = failure(lambda: env.reset(0))
    assert '"import isaacgym" failed' in message and "No module named 'isaacgym'" in message
    assert "https://developer.nvidia.com/isaac-gym" in message and "--sim mujoco" in message


def test_numpy_is_missed_only_after_isaac_gym(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python that has neither is told about Isaac Gym, for which its version may be the wrong one."""
    set_up_fake(monkeypatch, {})
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bare = IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, FAKE / "HARL")
    assert '"import isaacgym" failed' in failure(lambda: bare.reset(0))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, FAKE / "site", FAKE / "torch"))))
    lacking = IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, FAKE / "HARL")
    message = failure(lambda: lacking.reset(0))
    assert "No module named 'numpy'" in message and "install numpy there" in message


def test_missing_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_up_fake(monkeypatch, {}, real_torch=True)
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)]))
    env = IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, FAKE / "HARL")
    message = failure(lambda: env.reset(0))
    assert '"import torch" failed' in message and "install torch there" in message


def fake_program(path: Path, output: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def test_wrong_interpreter(tmp_path: Path) -> None:
    def start(python: object) -> str:
        message = failure(lambda: IsaacBiDexHandsVecEnv("ShadowHandOver", 2, str(python), FAKE / "HARL"))
        assert "--isaac-python" in message and "3.6, 3.7 or 3.8" in message
        return message

    assert "needs --isaac-python PATH" in start("")
    assert "no program there" in start(tmp_path / "python")
    assert "no program there" in start(tmp_path)
    assert "no program there" in start(Path(__file__))
    for output in ("hello", "[]", "[3, 8]", ""):
        message = start(fake_program(tmp_path / "echo", output))
        assert "not a Python interpreter" in message and "--sim mujoco, the default" in message
    old = start(fake_program(tmp_path / "python2", "[[2, 7, 18], null]"))
    assert "is Python 2.7.18" in old and "--sim mujoco, the default" in old
    assert "is Python 3.5.10" in start(fake_program(tmp_path / "python35", "[[3, 5, 10], null]"))


def test_wrong_task_root(tmp_path: Path) -> None:
    def start(root: object) -> str:
        message = failure(lambda: IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, str(root)))
        assert "--isaac-task-root" in message and "github.com/PKU-MARL/HARL" in message and "--sim mujoco" in message
        return message

    assert "needs --isaac-task-root PATH" in start("")
    assert "no such folder" in start(tmp_path / "none")
    assert "has neither harl/envs/dexhands/dexhands_env.py nor bidexhands/" in start(tmp_path)


@pytest.mark.parametrize(
    "fault, text",
    [
        ("sizes", "ShadowHandOver is not the published task: obs_dim is 210, not 211"),
        ("task_without_goals", "the task class FakeTask has no reset_goal_buf"),
        ("obs_shape", "the task returned final_obs of shape (3, 2, 210), expected (3, 2, 211)"),
        ("obs_float64", "the task returned final_obs as float64, expected float32"),
        ("reward_shape", "the task returned reward of shape (3, 2), expected (3, 2, 1)"),
        ("build_exit", "building the task: SystemExit"),
    ],
)
def test_a_task_that_is_not_the_published_one(make: MakeEnv, fault: str, text: str) -> None:
    env = make(faults={fault: 1})

    def run() -> None:
        env.reset(0)
        env.step(no_actions(env))

    message = failure(run)
    assert text in message
    assert ("it printed last: " in message) == (fault != "sizes")
    assert ("*** Failed to create sim" in message) == (fault == "build_exit")


def test_another_version_of_the_protocol(make: MakeEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = WORKER.read_text()
    for old, new, text in [
        ("PROTOCOL_VERSION = 1", "PROTOCOL_VERSION = 2", "protocol version 2, expected 1"),
        ('_MAGIC = b"HISI"', '_MAGIC = b"JUNK"', "not a message, it begins with b'JUNK"),
    ]:
        assert source.count(old) == 1
        worker = tmp_path / "worker.py"
        worker.write_text(source.replace(old, new))
        monkeypatch.setattr(isaac_process, "WORKER", worker)
        message = failure(lambda: make().reset(0))
        assert "does not speak this version's protocol: " + text in message


def test_headers_of_messages() -> None:
    packed = isaac_worker.pack({"op": "step"})
    header = packed[: isaac_worker.HEADER_BYTES]
    assert isaac_worker.body_length(header) == len(packed) - len(header)
    for wrong in (b"X" + header[1:], header[:4] + b"\7\0" + header[6:], header[:6] + b"\xff\xff\xff\x7f"):
        with pytest.raises(isaac_worker.ProtocolError):
            isaac_worker.body_length(wrong)


def test_layout_of_the_memory() -> None:
    arrays, size = isaac_worker.layout(5, 211, 398, 20)
    views = isaac_worker.views(np, bytearray(size), arrays)
    for number, array in enumerate(views.values(), 1):
        array[...] = number
    for number, array in enumerate(views.values(), 1):
        assert (array == number).all(), "two arrays overlap"
    assert views["actions"].shape == (2, 5, 20) and views["final_obs"].shape == (5, 2, 211)
    assert all(offset % 64 == 0 for *_, offset in arrays)


# ---- crashes, hangs, ends


@pytest.mark.parametrize(
    "fault, text",
    [
        ("segfault", "was killed by SIGSEGV (in a step)"),
        ("exit", "ended with status 7 (in a step)"),
        ("raise", "failed while in a step: ValueError: the task is unhappy"),
    ],
)
def test_a_worker_that_dies_in_a_step(make: MakeEnv, fault: str, text: str) -> None:
    env = make(faults={fault: 3})
    env.reset(0)
    for _ in range(2):
        env.step(no_actions(env))
    process = process_of(env)
    message = failure(lambda: env.step(no_actions(env)))
    assert text in message and sys.executable in message
    assert ("about to crash" in message) == (fault == "segfault")
    assert "CUDA_VISIBLE_DEVICES" not in message
    assert process.returncode is not None
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(no_actions(env))
    env.reset(0)  # a new worker
    env.step(no_actions(env))


def test_a_death_is_seen_although_a_child_of_the_worker_lives_on(make: MakeEnv) -> None:
    """PyTorch starts compilers; whatever is still running must not keep the pipes open."""
    env = make(faults={"exit_with_child": 1})
    env.reset(0)
    start = time.monotonic()
    assert "ended with status 7" in failure(lambda: env.step(no_actions(env)))
    assert time.monotonic() - start < 5


def test_the_error_keeps_what_the_worker_printed(make: MakeEnv) -> None:
    env = make(faults={"raise": 1})
    env.reset(0)
    with pytest.raises(IsaacGymError) as caught:
        env.step(no_actions(env))
    output = caught.value.output
    assert "Importing module 'gym_38'" in output and "noise on file descriptor 1, as from C++" in output
    assert "a child process writes to stdout" in output
    assert output[-2:] == ["ValueError: the task", "is unhappy"]


def test_a_crash_with_another_gpu_chosen_says_so(make: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    env = make(faults={"segfault": 1})
    env.reset(0)
    assert "known to crash with CUDA_VISIBLE_DEVICES other than 0, here it is '1'" in failure(
        lambda: env.step(no_actions(env))
    )


@pytest.mark.parametrize("fault", ["hang", "hang_in_c"])
def test_a_hang_in_a_step_is_found_and_ended(make: MakeEnv, fault: str) -> None:
    env = make(faults={fault: 2}, step_timeout_s=0.7)
    env.reset(0)
    env.step(no_actions(env))
    process, start = process_of(env), time.monotonic()
    message = failure(lambda: env.step(no_actions(env)))
    assert "did not answer within 0.7 s (in a step), so it hangs and was ended" in message
    assert 0.6 < time.monotonic() - start < 10
    assert process.returncode is not None


def test_a_hang_at_the_start_is_found(make: MakeEnv) -> None:
    env = make(faults={"build_hang": 1}, start_timeout_s=3)
    assert "did not answer within 3 s (building the task)" in failure(lambda: env.reset(0))


def test_ctrl_c_in_a_step_ends_the_worker(make: MakeEnv) -> None:
    """It would otherwise answer the interrupted step when the next one is asked for."""
    env = make(faults={"hang": 1})
    env.reset(0)
    process = process_of(env)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGUSR1, interrupt)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main_thread, signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            env.step(no_actions(env))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)
    assert process.returncode is not None
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(no_actions(env))


def test_the_worker_does_not_get_the_terminals_ctrl_c(make: MakeEnv) -> None:
    env = make()
    env.reset(0)
    assert os.getpgid(process_of(env).pid) != os.getpgid(0)


def shared_memory(pid: int) -> list[str]:
    """The files that a process maps for reading and writing, shared with others; those without a name are "deleted"."""
    maps = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [fields[5] for fields in maps if fields[1] == "rw-s" and len(fields) == 6]


def test_close_ends_the_worker_and_leaves_nothing(make: MakeEnv) -> None:
    env = make()
    env.close()  # nothing runs yet
    gc.collect()  # of what earlier tests left open
    open_before = set(os.listdir("/proc/self/fd"))
    for _ in range(2):  # a closed environment can start again
        env.reset(0)
        process = process_of(env)
        assert process.poll() is None
        files = shared_memory(process.pid)
        assert files and all(file.endswith(" (deleted)") for file in files), "the shared memory has a name"
        env.close()
        assert process.returncode == 0, "not ended, or not taken up"
    env.close()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(no_actions(env))
    assert set(os.listdir("/proc/self/fd")) <= open_before


def test_an_environment_that_is_dropped_ends_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_fake(monkeypatch, {})
    env = IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, FAKE / "HARL")
    env.reset(0)
    process = process_of(env)
    del env
    gc.collect()
    assert process.returncode == 0


PARENT = """
import os, sys, time
from common.bidexhands.isaac import IsaacBiDexHandsVecEnv
env = IsaacBiDexHandsVecEnv("ShadowHandOver", 2, sys.executable, sys.argv[1])
{act}
"""


def run_parent(monkeypatch: pytest.MonkeyPatch, act: str, faults: dict[str, Any]) -> subprocess.Popen[str]:
    set_up_fake(monkeypatch, faults)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]))
    words = [sys.executable, "-c", PARENT.format(act=act), str(FAKE / "HARL")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_the_end_of_the_interpreter_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = run_parent(monkeypatch, "env.reset(0)\nprint(env._worker.process.pid)", {})
    pid, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    assert gone(int(pid), within=1)


@pytest.mark.parametrize("stage", ["waiting", "building the task"])
def test_a_killed_parent_takes_the_worker_along(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    act = f"""
import threading
from common.bidexhands import isaac
workers = []
class Watched(isaac.Worker):
    def __init__(self, *rest):
        super().__init__(*rest)
        workers.append(self)
isaac.Worker = Watched
threading.Thread(target=env.reset, args=(0,), daemon=True).start()
while not workers or workers[0].stage != {stage!r}:
    time.sleep(0.01)
print(workers[0].process.pid, flush=True)
time.sleep(100)
"""
    parent = run_parent(monkeypatch, act, {"build_hang": 1} if stage == "building the task" else {})
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid, within=0.2)
    finally:
        parent.kill()
        parent.communicate()
    assert gone(pid)


# ---- resume


def through_torch(state: dict[str, Any]) -> dict[str, Any]:
    """Save and load as a checkpoint does: arrays become tensors."""
    buffer = io.BytesIO()
    torch.save({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_resumed_run_closes_the_interrupted_episodes(make: MakeEnv, capfd: pytest.CaptureFixture[str]) -> None:
    env = make()
    with pytest.raises(RuntimeError, match="call reset"):
        env.get_state()
    env.reset(4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        last = env.step(random_actions(env, rng))
    saved = through_torch(env.get_state())
    assert "not part of this" in saved["note"]

    resumed = make()
    resumed.reset(4)
    resumed.set_state(saved)
    assert capfd.readouterr().out.count("\n") == 1
    closing = resumed.step(random_actions(resumed, rng))
    assert closing.truncated.all() and not closing.terminated.any() and not closing.reward.any()
    for x, y in zip([*closing.final_obs, closing.final_state], [*last.obs, last.state], strict=True):
        np.testing.assert_array_equal(x, y)
    hand = HANDS[env.state_dim]
    np.testing.assert_allclose(closing.state[:, 2 * hand + 1], 0.01)  # the new episodes have made one step
    after = resumed.step(no_actions(resumed))
    np.testing.assert_allclose(after.state[:, 2 * hand + 1], 0.02)
    assert not after.truncated.any()
    resumed.set_state(saved)
    resumed.reset(4)
    assert not resumed.step(no_actions(resumed)).truncated.any(), "a reset must forget the interruption"

    resumed.set_state(saved)
    resumed.step(no_actions(resumed))
    resumed.step(no_actions(resumed))
    second = resumed.get_state()
    assert second["steps"] == 21 and second["seed"] != saved["seed"]


def test_a_state_of_something_else_is_refused(make: MakeEnv) -> None:
    env = make()
    env.reset(0)
    saved = env.get_state()
    for wrong, text in [
        (dict(backend="mujoco"), "of backend 'mujoco', not 'isaacgym'"),
        (dict(scenario="ShadowHandPen"), "of scenario 'ShadowHandPen', not 'ShadowHandOver'"),
        (dict(obs_1=saved["obs_1"][:2]), r"'obs_1': expected shape \(3, 211\)"),
        (dict(state=saved["state"][:, 1:]), r"'state': expected shape \(3, 398\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            env.set_state(saved | wrong)
    del saved["seed"]
    with pytest.raises(ValueError, match="no entry 'seed'"):
        env.set_state(saved)
    assert not env.step(no_actions(env)).truncated.any(), "a refused state must change nothing"


# ---- the worker's file and its surroundings


def test_the_worker_is_written_for_old_pythons_and_imports_nothing_of_ours() -> None:
    files = [WORKER, *(FAKE / "site").rglob("*.py"), *(FAKE / "torch").rglob("*.py")]
    for path in files:
        ast.parse(path.read_text(), feature_version=(3, 6))
    with pytest.raises(SyntaxError):
        ast.parse("(a := 1)", feature_version=(3, 6))
    names: set[str] = set()
    for node in ast.walk(ast.parse(WORKER.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
    assert names and names <= set(sys.stdlib_module_names)


OLD_PYTHONS = [p for p in map(shutil.which, ("python3.6", "python3.7", "python3.8")) if p] + PYTHONS[1:]


@pytest.mark.parametrize("python", OLD_PYTHONS)
def test_old_pythons_can_read_the_worker(python: str) -> None:
    result = subprocess.run([python, str(WORKER), "--help"], capture_output=True, text=True, timeout=60)
    if "command not found" in result.stderr:  # a shim of a version manager, without the version
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0 and "--task-root" in result.stdout, result.stderr


def test_the_folder_of_the_worker_hides_no_module(
    make: MakeEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """common/bidexhands has modules with such names as "env" and "tasks", which the clones' libraries may have too."""
    worker = Path(shutil.copy(WORKER, tmp_path))
    (tmp_path / "fake_bidex.py").write_text("raise ImportError('the wrong module')")
    monkeypatch.setattr(isaac_process, "WORKER", worker)
    make().reset(0)


def test_the_environment_is_that_of_an_activated_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A conda environment's Python finds ninja and libpython only so."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libpython3.8.so.1.0").touch()
    program = fake_program(tmp_path / "python", json.dumps([[3, 8, 18], str(tmp_path / "lib")]))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/ours")
    environ = Interpreter(program).environ
    assert environ["PATH"] == f"{tmp_path}:/usr/bin:/bin"
    assert environ["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:/elsewhere"
    assert "PYTHONHOME" not in environ and os.environ["PYTHONHOME"] == "/ours"


def test_check_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_fake(monkeypatch, {"any_length": 1})
    words = [sys.executable, str(WORKER), "--check", "ShadowHandPen", "--task-root", str(FAKE / "HARL")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "importing isaacgym.gymtorch" in result.stdout and "'state_dim': 417" in result.stdout
    assert re.search(r"\n100 steps, \d+ environment steps/s, [1-9]\d* episode ends\n", result.stdout)
    assert "all finite: True" in result.stdout


# ---- the script


def test_a_run_goes_through_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trains, is resumed from another folder with the clone's path given anew, and fails in a step in one line."""
    set_up_fake(monkeypatch, {}, real_torch=True)  # the script needs it
    small = "--num-envs 4 --warmup-steps 40 --train-interval 5 --batch-size 16 --hidden-sizes 8 8 --buffer-size 2000"
    small += " --eval-every 60 --eval-episodes 2 --eval-envs 2 --log-every 60 --save-every 60"
    start = [sys.executable, str(ROOT / "his_bidexhands.py"), "--scenario", "ShadowHandOver", "--sim", "isaacgym"]
    start += ["--isaac-python", sys.executable, *small.split(), "--runs-dir", str(tmp_path / "runs")]

    def script(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=120)

    relative = os.path.relpath(FAKE / "HARL", tmp_path)
    done = script(*start, "--isaac-task-root", relative, "--total-timesteps", "120", where=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/his_bidexhands/BiDexHands/ShadowHandOver/seed1"
    assert (folder / "finished.json").exists()
    resume = [sys.executable, str(ROOT / "his_bidexhands.py"), "--resume", str(folder), "--total-timesteps", "240"]
    other = script(*resume, where=tmp_path / "runs")
    assert other.returncode == 2 and "--isaac-task-root" in other.stderr and len(other.stderr.splitlines()) == 1
    monkeypatch.setenv("FAKE_ISAAC_FAULTS", json.dumps({"raise": 20}))
    failed = script(*resume, "--isaac-task-root", str(FAKE / "HARL"), where=tmp_path / "runs")
    assert failed.returncode == 2 and "--resume goes on from the run's last checkpoint" in failed.stderr
    assert "Traceback" not in failed.stderr
    monkeypatch.setenv("FAKE_ISAAC_FAULTS", "{}")
    done = script(*resume, "--isaac-task-root", str(FAKE / "HARL"), where=tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "finished.json").read_text())["global_step"] == 240
