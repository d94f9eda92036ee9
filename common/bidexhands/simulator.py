"""What `env.py` needs of a simulator, and its implementation by MuJoCo itself: E `MjData` stepped by threads."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from common.bidexhands.scenes import DISTALS, SUBSTEPS
from common.mamujoco_robots import mujoco

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION.value  # includes the solver's warm start


class Reading(NamedTuple):
    """What a simulator reports of some environments (B of them), float64."""

    sensors: np.ndarray
    """(B, number of sensor values), in the order of `scenes.sensor_layout`"""
    wrenches: np.ndarray
    """(B, 2, 5, 6): contact torque and force on the distal links, world axes, about the hand's centre of mass"""
    centres: np.ndarray
    """(B, 2, 5, 3): that centre of mass"""


class Simulator(ABC):
    """E copies of a scene. `read` reports what `start` or `step` led to, not what `set_state` did."""

    def __init__(self, model: Any, num_envs: int):
        self.model, self.num_envs = model, num_envs
        self.distals = np.array([model.body(f"hand{h}_{distal}").id for h in range(2) for distal in DISTALS])
        self.roots = model.body_rootid[self.distals]
        self.forearms = [model.body(f"hand{h}_forearm").id for h in range(2)]

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Numbers in the saved state of one environment."""

    @abstractmethod
    def start(
        self, envs: Sequence[int], qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, quat: np.ndarray
    ) -> None:
        """Put environments (B) there at rest: (B, nq), (B, nv), joint targets (B, nu), goals' rotation (B, 4; wxyz)."""

    @abstractmethod
    def step(self, ctrl: np.ndarray, wrench: np.ndarray | None) -> None:
        """One control step of all environments with joint targets (E, nu) and, where the bases move, force and torque
        on the forearms' centres of mass in world axes (E, 2, 6)."""

    @abstractmethod
    def read(self, envs: Sequence[int]) -> Reading: ...

    @abstractmethod
    def get_state(self) -> np.ndarray:
        """float64 (E, state_size): all that a bit-exact continuation needs."""

    @abstractmethod
    def set_state(self, rows: np.ndarray) -> None: ...

    @abstractmethod
    def picture_data(self) -> Any:
        """An `MjData` that shows environment 0."""

    def close(self) -> None:
        """Free threads and the like. Safe to call twice; the simulator still works afterwards."""
        return


class ThreadedMuJoCo(Simulator):
    """MuJoCo gives Python's lock back while it computes, and no environment sees another: results are bit-equal for
    any number of threads."""

    def __init__(self, model: Any, num_envs: int, threads: int):
        super().__init__(model, num_envs)
        self.threads = threads
        self.data = [mujoco.MjData(model) for _ in range(num_envs)]
        self._pool = ThreadPoolExecutor(threads - 1, "bidexhands") if threads > 1 else None  # the caller's is one too
        # Views into MuJoCo's memory, made once: asking MuJoCo for one takes nearly as long as copying its values.
        self._ctrl = [d.ctrl for d in self.data]
        apart = self.forearms[1] - self.forearms[0]
        self._wrench = [d.xfrc_applied[self.forearms[0] :: apart][:2] for d in self.data]
        self._sensordata = [d.sensordata for d in self.data]
        self._cfrc_ext = [d.cfrc_ext.ravel() for d in self.data]
        self._subtree_com = [d.subtree_com.ravel() for d in self.data]
        self._cfrc_columns = (6 * self.distals[:, None] + np.arange(6)).ravel()
        self._com_columns = (3 * self.roots[:, None] + np.arange(3)).ravel()

    @property
    def state_size(self) -> int:
        return mujoco.mj_stateSize(self.model, _INTEGRATION)

    def start(
        self, envs: Sequence[int], qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, quat: np.ndarray
    ) -> None:
        for i, *row in zip(envs, qpos, qvel, ctrl, quat):
            data = self.data[i]
            mujoco.mj_resetData(self.model, data)
            data.qpos[:], data.qvel[:], data.ctrl[:], data.mocap_quat[:] = row
            mujoco.mj_forward(self.model, data)
            mujoco.mj_rnePostConstraint(self.model, data)

    def step(self, ctrl: np.ndarray, wrench: np.ndarray | None) -> None:
        for view, row in zip(self._ctrl, ctrl):
            view[:] = row
        if wrench is not None:
            for view, row in zip(self._wrench, wrench):
                view[:] = row
        queue = iter(range(self.num_envs))  # whichever thread is free takes the next environment
        workers = [self._pool.submit(self._step_from, queue) for _ in range(self.threads - 1)] if self._pool else []
        self._step_from(queue)
        for worker in workers:
            worker.result()

    def _step_from(self, queue: Iterator[int]) -> None:
        """Substeps by halves, the second half first: afterwards positions, velocities and sensors are current at no
        further cost, where `mj_step` would leave them one substep behind."""
        model, step1, step2 = self.model, mujoco.mj_step1, mujoco.mj_step2
        for i in queue:
            data = self.data[i]
            for substep in range(SUBSTEPS):
                step2(model, data)
                if substep == SUBSTEPS - 1:  # contact forces of the last substep, while its contacts are in memory
                    mujoco.mj_rnePostConstraint(model, data)
                step1(model, data)

    def read(self, envs: Sequence[int]) -> Reading:
        def gather(views: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([views[i] for i in envs]).reshape(len(envs), -1)

        shape = (len(envs), 2, len(DISTALS), -1)
        wrenches = gather(self._cfrc_ext).take(self._cfrc_columns, axis=1).reshape(shape)
        centres = gather(self._subtree_com).take(self._com_columns, axis=1).reshape(shape)
        return Reading(gather(self._sensordata), wrenches, centres)

    def get_state(self) -> np.ndarray:
        rows = np.empty((self.num_envs, self.state_size))
        for data, row in zip(self.data, rows):
            mujoco.mj_getState(self.model, data, row, _INTEGRATION)
        return rows

    def set_state(self, rows: np.ndarray) -> None:
        for data, row in zip(self.data, rows):
            mujoco.mj_setState(self.model, data, row, _INTEGRATION)
            mujoco.mj_step1(self.model, data)

    def picture_data(self) -> Any:
        return self.data[0]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
