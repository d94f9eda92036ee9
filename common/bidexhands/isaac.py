"""The original Bi-DexHands tasks, stepped by a user's own Isaac Gym in a process of its own.

Isaac Gym (closed, GPU only) needs Python 3.6 to 3.8, so `isaac_worker.py` runs under `--isaac-python` and drives the
tasks of a clone of HARL or DexterousHands. What is exact, what the original does not give, and the protocol:
docs/isaacgym.md. It was never run against the real Isaac Gym.

Shape letters: E environments, O_i observation size, S state size, A_i action size; there are always 2 agents.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.bidexhands import isaac_worker as protocol
from common.bidexhands.isaac_process import DEFAULT_SIM, Interpreter, IsaacGymError, Worker
from common.bidexhands.tasks import SCENARIOS, TASKS
from common.vecenv import RenderError, StepResult, VecEnv, check_finite, saved_array


class IsaacBiDexHandsVecEnv(VecEnv):
    """E copies of one of the nine `SCENARIOS` in Isaac Gym.

    The worker starts at the first `reset`; until then an instance costs nothing but a look at the interpreter and the
    clone. Each instance has a worker, a simulator and GPU memory of its own.

    `isaac_done_semantics=False`: time-outs truncate, and an environment that ends is reset in the same step, so no
    transition joins two episodes. In that first observation of a new episode the joint forces, fingertip states, force
    sensors and all else that follows from link poses are still those of the last one: Isaac Gym moves the links along
    only in its next step. `isaac_done_semantics=True`: HARL's bookkeeping; every end is a termination, the reset is
    left to the next step, and `obs` after an end is the terminal observation, as `final_obs`. The transition after it
    then joins the two episodes.

    `final_obs` and `final_state` are exact in both. Environment i has no stream of its own: one seed serves all, and
    PhysX on a GPU does not repeat itself. `last_success`, bool (E,), says where the episode of the last step has met
    the task's success condition.

    A hang of more than `step_timeout_s` in a step or `start_timeout_s` at the start (compiling, loading, building), a
    crash, and whatever else goes wrong in the worker raise `IsaacGymError` and end the worker.
    """

    num_agents = 2
    render_fps = 60
    last_success: np.ndarray

    def __init__(
        self,
        scenario: str,
        num_envs: int,
        isaac_python: str | Path,
        isaac_task_root: str | Path,
        isaac_done_semantics: bool = False,
        step_timeout_s: float = 60.0,
        start_timeout_s: float = 900.0,
    ):
        if scenario not in SCENARIOS:
            raise ValueError(f"unknown scenario {scenario!r}; allowed: {', '.join(SCENARIOS)}")
        if num_envs < 1 or step_timeout_s <= 0 or start_timeout_s <= 0:
            raise ValueError(f"num_envs must be >= 1 and timeouts > 0: {num_envs}, {step_timeout_s}, {start_timeout_s}")
        self.scenario, self.num_envs, self.isaac_done_semantics = scenario, num_envs, isaac_done_semantics
        sizes = TASKS[scenario]
        self.obs_dims, self.action_dims, self.state_dim = [sizes.obs_dim] * 2, [sizes.action_dim] * 2, sizes.state_dim
        self.action_low = [-np.ones(sizes.action_dim, np.float32) for _ in range(2)]
        self.action_high = [np.ones(sizes.action_dim, np.float32) for _ in range(2)]
        self.max_episode_steps = sizes.max_episode_steps
        self.last_success = np.zeros(num_envs, dtype=bool)
        self._timeouts = (start_timeout_s, step_timeout_s)
        self._task_root = find_task_root(isaac_task_root)
        self._python = Interpreter(isaac_python)
        self._worker: Worker | None = None
        self._seed = self._steps = 0
        self._obs: tuple[list[np.ndarray], np.ndarray] = [], np.zeros(0)  # what `reset` or `step` returned last
        self._interrupted: tuple[list[np.ndarray], np.ndarray] | None = None

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """See `VecEnv.reset`; starts the worker if none runs. `seed` goes to torch, numpy and random over there."""
        if self._worker is None or not self._worker.alive:
            self._worker = self._start()
        self._worker.request(self._timeouts[1], op="reset", seed=seed)
        self._interrupted, self._seed, self._steps = None, seed, 0
        self._obs = self._observation("obs", "state")
        self.last_success[:] = False
        return self._copy_of_obs()

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        """See `VecEnv.step`. The original clips actions to [-1, 1].

        Raises `NonFiniteError` for a NaN from the simulator, `IsaacGymError` for a worker that fails.
        """
        action = self._join_actions(actions)  # (E, 2 A)
        worker = self._running()
        if self._interrupted is not None:
            return self._close_interrupted()
        worker.arrays["actions"][:] = np.moveaxis(action.reshape(self.num_envs, 2, -1), 1, 0)
        worker.request(self._timeouts[1], op="step")
        self._steps += 1
        final_obs, final_state = self._observation("final_obs", "final_state")
        self._obs = self._observation("obs", "state")
        reward = worker.arrays["reward"].copy()
        check_finite("reward", [reward])
        done, time_out = worker.arrays["done"] != 0, worker.arrays["time_out"] != 0
        self.last_success = worker.arrays["success"] != 0
        truncated = np.zeros_like(done) if self.isaac_done_semantics else done & time_out
        return StepResult(*self._copy_of_obs(), reward, done & ~truncated, truncated, final_obs, final_state)

    def get_state(self) -> dict[str, Any]:
        """Where training stood, *not* the simulation: Isaac Gym cannot save and restore one exactly.

        It holds what the agents saw last, so that `set_state` can close the episodes in progress.
        """
        self._running()
        obs, state = self._copy_of_obs()
        return {
            "backend": "isaacgym",
            "scenario": self.scenario,
            "seed": self._seed,
            "steps": self._steps,
            "obs_0": obs[0],
            "obs_1": obs[1],
            "state": state,
            "note": "Isaac Gym's simulation is not part of this: a continued run starts new episodes",
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Start new episodes after a resume, and say so in one line; ValueError if the state is of another task.

        The first `step` afterwards moves nothing. It closes the interrupted episodes: truncated, reward 0, with the
        observation before the interruption as `final_obs`; `obs` is then that of the new episodes. So no return and no
        n-step window spans the interruption.
        """
        for key, expected in (("backend", "isaacgym"), ("scenario", self.scenario)):
            if state.get(key) != expected:
                raise ValueError(f"environment state is of {key} {state.get(key)!r}, not {expected!r}")
        obs = [saved_array(state, f"obs_{i}", (self.num_envs, self.obs_dims[i]), np.float32) for i in range(2)]
        global_state = saved_array(state, "state", (self.num_envs, self.state_dim), np.float32)
        seed, steps = (int(saved_array(state, key, (), np.int64)) for key in ("seed", "steps"))
        self.reset((seed + steps + 1) % 2**31)  # not the same draws again
        self._steps, self._interrupted = steps, (obs, global_state)
        print(
            "--sim isaacgym: its simulation cannot be restored; new episodes start, the interrupted ones are truncated"
        )

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        """Always raises `RenderError`."""
        raise RenderError("Isaac Gym runs without graphics here and gives no picture; --sim mujoco draws the same task")

    def close(self) -> None:
        """End the worker. Safe to call twice; also done at the end of the interpreter. `reset` starts a new one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _start(self) -> "Worker":
        sizes = (self.obs_dims[0], self.state_dim, self.action_dims[0])
        arrays, memory_bytes = protocol.layout(self.num_envs, *sizes)
        worker = Worker(self._python, arrays, memory_bytes)
        spec = dict(scenario=self.scenario, num_envs=self.num_envs, episode_length=self.max_episode_steps)
        spec |= dict(task_root=str(self._task_root), early_reset=not self.isaac_done_semantics)
        found = worker.start(self._timeouts[0], spec)
        expected = dict(num_envs=self.num_envs, num_agents=2, max_episode_steps=self.max_episode_steps)
        expected |= dict(zip(("obs_dim", "state_dim", "action_dim"), sizes))
        if found != expected:
            worker.close()
            wrong = [f"{k} is {found.get(k)}, not {value}" for k, value in expected.items() if found.get(k) != value]
            raise IsaacGymError(
                f"--isaac-task-root {self._task_root}: {self.scenario} is not the published task: {', '.join(wrong)}"
            )
        return worker

    def _running(self) -> "Worker":
        if self._worker is None or not self._worker.alive:
            raise RuntimeError("no Isaac Gym worker is running: call reset(seed) first")
        return self._worker

    def _observation(self, obs_key: str, state_key: str) -> tuple[list[np.ndarray], np.ndarray]:
        """Fresh copies out of the shared memory, checked: 2 arrays float32 (E, O_i) and float32 (E, S)."""
        arrays = self._running().arrays
        obs, state = [arrays[obs_key][:, agent].copy() for agent in range(2)], arrays[state_key].copy()
        check_finite("observation", obs)
        check_finite("state", [state])
        return obs, state

    def _copy_of_obs(self) -> tuple[list[np.ndarray], np.ndarray]:
        return [o.copy() for o in self._obs[0]], self._obs[1].copy()

    def _close_interrupted(self) -> StepResult:
        assert self._interrupted is not None
        (final_obs, final_state), self._interrupted = self._interrupted, None
        zeros = np.zeros(self.num_envs)
        reward, terminated, truncated = zeros.astype(np.float32), zeros != 0, zeros == 0
        return StepResult(*self._copy_of_obs(), reward, terminated, truncated, final_obs, final_state)


def find_task_root(path: str | Path) -> Path:
    """The absolute path of a clone of HARL or DexterousHands; `IsaacGymError` if it is neither."""
    clones = "a clone of https://github.com/PKU-MARL/HARL (or of .../DexterousHands)"
    if not str(path):
        raise IsaacGymError(f"--sim isaacgym needs --isaac-task-root PATH: {clones}; {DEFAULT_SIM}")
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise IsaacGymError(f"--isaac-task-root {path}: no such folder; give {clones}; {DEFAULT_SIM}")
    if not any((root / file).is_file() for file in (protocol.HARL_FILE, protocol.DEXTEROUSHANDS_FILE)):
        raise IsaacGymError(
            f"--isaac-task-root {path}: has neither {protocol.HARL_FILE} nor {protocol.DEXTEROUSHANDS_FILE}; "
            f"give the root of {clones}; {DEFAULT_SIM}"
        )
    return root
