"""Bi-DexHands' scenes on MuJoCo Warp (https://github.com/google-deepmind/mujoco_warp): all environments at once, on a
GPU where there is one. Optional: `pip install 'mujoco-warp>=3.12,<4'`.

The same models in float32. From equal states it drifts from MuJoCo by 1e-7 in a control step and 1e-4 in five; contacts
make the difference grow from there. Sums over contacts run in any order on a GPU, so runs there are not bit-equal; on
the CPU, where it is far slower than MuJoCo and only good for tests, they are.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.bidexhands.scenes import DISTALS, SUBSTEPS
from common.bidexhands.simulator import Reading, Simulator
from common.mamujoco_robots import mujoco

# Per environment; saturated random play of all tasks stays below a third of both.
MAX_CONTACTS, MAX_ROWS = 128, 640


class WarpMuJoCo(Simulator):
    """E worlds of MuJoCo Warp on its default device. ImportError (one line) where the package is missing."""

    def __init__(self, model: Any, num_envs: int):
        super().__init__(model, num_envs)
        try:
            import mujoco_warp  # pyright: ignore[reportMissingImports]
            import warp  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(f"sim 'mujoco_warp' needs pip install 'mujoco-warp>=3.12,<4' ({error})") from error
        self._wp, self._mjw = warp, mujoco_warp
        warp.config.quiet = True
        warp.init()
        self.device = warp.get_device()
        self._host = mujoco.MjData(model)
        mujoco.mj_forward(model, self._host)
        self._model = mujoco_warp.put_model(model)
        sizes = {"nworld": num_envs, "nconmax": MAX_CONTACTS, "njmax": MAX_ROWS}
        self._data = mujoco_warp.put_data(model, self._host, **sizes)
        self._graph: Any = None
        self._xfrc = np.zeros((num_envs, model.nbody, 6), dtype=np.float32)
        self._sensors = np.zeros((num_envs, model.nsensordata))
        self._wrenches = np.zeros((num_envs, 2, len(DISTALS), 6))
        self._centres = np.zeros((num_envs, 2, len(DISTALS), 3))
        self._goal_quat = np.zeros((num_envs, 4))

    @property
    def state_size(self) -> int:
        return self.model.nq + 2 * self.model.nv + 4

    def start(
        self, envs: Sequence[int], qpos: np.ndarray, qvel: np.ndarray, ctrl: np.ndarray, goal_quat: np.ndarray
    ) -> None:
        """See `Simulator.start`; what there is to read at a start, MuJoCo computes."""
        warmstart = np.empty_like(qvel)
        for row, i in enumerate(envs):
            data = self._host
            mujoco.mj_resetData(self.model, data)
            data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[row], qvel[row], ctrl[row]
            mujoco.mj_forward(self.model, data)
            mujoco.mj_rnePostConstraint(self.model, data)
            warmstart[row], self._sensors[i] = data.qacc_warmstart, data.sensordata
            self._keep([i], data.cfrc_ext[None], data.subtree_com[None])
        self._goal_quat[list(envs)] = goal_quat
        for name, rows in (("qpos", qpos), ("qvel", qvel), ("qacc_warmstart", warmstart)):
            values = getattr(self._data, name).numpy()
            values[list(envs)] = rows
            getattr(self._data, name).assign(values)

    def step(self, ctrl: np.ndarray, wrench: np.ndarray | None) -> None:
        self._data.ctrl.assign(ctrl.astype(np.float32))
        if wrench is not None:
            self._xfrc[:, self.forearms] = wrench
            self._data.xfrc_applied.assign(self._xfrc)
        if self._graph is not None:
            self._wp.capture_launch(self._graph)
        else:
            self._control_step()
            if self.device.is_cuda:  # kernels are loaded now; from the next step on one launch does it all
                with self._wp.ScopedCapture() as capture:
                    self._control_step()
                self._graph = capture.graph
        self._sensors = self._data.sensordata.numpy().astype(np.float64)
        self._keep(slice(None), self._data.cfrc_ext.numpy(), self._data.subtree_com.numpy())

    def _control_step(self) -> None:
        mjw, model, data = self._mjw, self._model, self._data
        for _ in range(SUBSTEPS):
            mjw.step(model, data)
        mjw.rne_postconstraint(model, data)  # contact forces of the last substep
        # Positions and velocities have moved on since: bring what depends on them up to date.
        mjw.fwd_kinematics(model, data)
        mjw.com_vel(model, data)
        mjw.sensor_pos(model, data)
        mjw.sensor_vel(model, data)

    def _keep(self, envs: Any, cfrc_ext: np.ndarray, subtree_com: np.ndarray) -> None:
        """Store wrenches and centres of these environments, given all bodies' (B, nbody, 6) and (B, nbody, 3)."""
        self._wrenches[envs] = cfrc_ext[:, self.distals].reshape(-1, 2, len(DISTALS), 6)
        self._centres[envs] = subtree_com[:, self.roots].reshape(-1, 2, len(DISTALS), 3)

    def read(self, envs: Sequence[int]) -> Reading:
        index = list(envs)
        return Reading(self._sensors[index], self._wrenches[index], self._centres[index])

    def get_state(self) -> np.ndarray:
        parts = [getattr(self._data, name).numpy() for name in ("qpos", "qvel", "qacc_warmstart")]
        return np.concatenate([*parts, self._goal_quat], axis=1, dtype=np.float64)

    def set_state(self, rows: np.ndarray) -> None:
        nq, nv = self.model.nq, self.model.nv
        qpos, qvel, warmstart, self._goal_quat = np.split(rows.copy(), [nq, nq + nv, nq + 2 * nv], axis=1)
        for name, values in (("qpos", qpos), ("qvel", qvel), ("qacc_warmstart", warmstart)):
            getattr(self._data, name).assign(values.astype(np.float32))

    def picture_data(self) -> Any:
        mujoco.mj_resetData(self.model, self._host)
        self._host.qpos[:], self._host.mocap_quat[:] = self._data.qpos.numpy()[0], self._goal_quat[0]
        mujoco.mj_forward(self.model, self._host)
        return self._host
