"""A task with the interface of the nine Bi-DexHands tasks, a simulator of three numbers, and faults on demand.

Per environment there are a joint (set at a reset to the number of the episode / 10, then moved by the mean action of
agent 0 / 100), an object (set to a random number at a reset, then moved by 0.001 a step) and a link, which is twice the
joint. As in Isaac Gym, what a reset sets reaches the simulator, and the link follows, only in the next simulated step;
until then refreshing brings back the old state. Written for Python 3.6.
"""

import ctypes
import json
import os
import signal
import sys
import time

FAULTS = json.loads(os.environ.get("FAKE_ISAAC_FAULTS", "{}"))

# scenario: state, hand block, actions, time limit. The observation lacks the hand block of the other agent.
TASKS = {
    "ShadowHandOver": (398, 187, 20, 75),
    "ShadowHandCatchAbreast": (422, 199, 26, 150),
    "ShadowHandTwoCatchUnderarm": (446, 199, 26, 75),
    "ShadowHandCatchOver2Underarm": (422, 199, 26, 75),
    "ShadowHandLiftUnderarm": (417, 199, 26, 500),
    "ShadowHandPen": (417, 199, 26, 125),
    "ShadowHandDoorCloseInward": (417, 199, 26, 250),
    "ShadowHandDoorOpenInward": (417, 199, 26, 250),
    "ShadowHandDoorOpenOutward": (417, 199, 26, 250),
}


def fault(name, step=None):
    """Whether this fault is asked for (now)."""
    return name in FAULTS and (step is None or FAULTS[name] == step)


class FakeGym:
    """The simulator: its own state, what is set in between, and tensors that refreshing fills."""

    def __init__(self, task, torch):
        self.task = task
        self.joint, self.object, self.link = (torch.zeros(task.num_envs) for _ in range(3))
        self.pending = []

    def set_state_tensors_indexed(self, env_ids):
        self.pending.append(env_ids.clone())

    def simulate(self, moves):
        for env_ids in self.pending:
            self.joint[env_ids] = self.task.joint[env_ids]
            self.object[env_ids] = self.task.object[env_ids]
        self.pending = []
        self.joint += 0.01 * moves
        self.object += 0.001
        self.link[:] = 2 * self.joint

    def refresh_dof_state_tensor(self):
        self.task.joint[:] = self.joint
        self.task.object[:] = self.object

    def refresh_rigid_body_state_tensor(self):
        self.task.link[:] = self.link


class FakeTask:
    """Resets at the beginning of a step, as the originals do."""

    def __init__(self, scenario, num_envs, max_episode_length):
        import torch

        self.torch, self.num_envs, self.max_episode_length = torch, num_envs, max_episode_length
        self.num_obs, self.num_hand_obs, self.num_actions, _ = TASKS[scenario]
        self.joint, self.object, self.link, self.rew_buf, self.successes = (torch.zeros(num_envs) for _ in range(5))
        self.obs_buf = torch.zeros(num_envs, self.num_obs)
        self.reset_buf = torch.ones(num_envs).long()
        self.reset_goal_buf, self.progress_buf = self.reset_buf.clone(), self.reset_buf.clone()
        self.episodes = torch.zeros(num_envs)
        self.gym = FakeGym(self, torch)
        self.steps = 0

    def reset_target_pose(self, env_ids, apply_reset=False):
        self.reset_goal_buf[env_ids] = 0

    def reset(self, env_ids, goal_env_ids):
        self.reset_target_pose(env_ids)
        self.episodes[env_ids] += 1
        self.joint[env_ids] = self.episodes[env_ids] / 10
        self.object[env_ids] = self.torch.rand(len(env_ids))
        self.gym.set_state_tensors_indexed(env_ids)
        self.progress_buf[env_ids] = 0
        self.reset_buf[env_ids] = 0
        self.successes[env_ids] = 0

    def step(self, actions):
        env_ids = self.reset_buf.nonzero(as_tuple=False).squeeze(-1)
        goal_env_ids = self.reset_goal_buf.nonzero(as_tuple=False).squeeze(-1)
        if len(goal_env_ids) > 0:
            self.reset_target_pose(goal_env_ids)
        if len(env_ids) > 0:
            self.reset(env_ids, goal_env_ids)
        self.actions = actions.clone()
        self.gym.simulate(self.actions[:, : self.num_actions].mean(1))
        self.progress_buf += 1
        self.compute_observations()
        self.rew_buf[:] = self.object + self.actions[:, self.num_actions :].mean(1)
        self.successes[self.actions[:, self.num_actions] > 0.9] = 1
        self.reset_buf[self.actions[:, 0] > 0.9] = 1
        self.reset_buf[self.progress_buf >= self.max_episode_length] = 1

    def compute_observations(self):
        self.gym.refresh_dof_state_tensor()
        self.gym.refresh_rigid_body_state_tensor()
        hand = self.num_hand_obs
        for block in range(2):
            start = block * hand
            self.obs_buf[:, start] = self.joint + block / 4
            self.obs_buf[:, start + 1] = self.link
            own = self.actions[:, block * self.num_actions : (block + 1) * self.num_actions]
            self.obs_buf[:, start + hand - self.num_actions : start + hand] = own
        self.obs_buf[:, 2 * hand] = self.object
        self.obs_buf[:, 2 * hand + 1] = self.progress_buf / 100
        self.obs_buf[:, 2 * hand + 2] = 9


class FakeVec:
    """Stands in for MultiVecTaskPython."""

    num_agents, clip_obs, rl_device = 2, 5.0, "cpu"

    def __init__(self, scenario, num_envs, max_episode_length):
        if fault("build_exit"):
            print("*** Failed to create sim")
            sys.exit()
        if fault("build_hang"):
            time.sleep(1000)
        self.task = task = FakeTask(scenario, num_envs, max_episode_length)
        self.torch, self.num_hand_obs, self.num_actions = task.torch, task.num_hand_obs, task.num_actions
        self.num_observations, self.nums_share_observations = task.num_obs - task.num_hand_obs, task.num_obs
        if fault("sizes"):
            self.num_observations -= 1
        if fault("task_without_goals"):
            del task.reset_goal_buf

    def observe(self):
        torch, hand = self.torch, self.num_hand_obs
        full = torch.clamp(self.task.obs_buf, -self.clip_obs, self.clip_obs)
        agents = [torch.cat([full[:, i * hand : (i + 1) * hand], full[:, 2 * hand :]], 1) for i in range(2)]
        return torch.stack(agents, 1), torch.stack([full, full], 1)

    def reset(self):
        torch, task = self.torch, self.task
        task.step(0.01 * (1 - 2 * torch.rand(task.num_envs, 2 * self.num_actions)))
        return self.observe() + (None,)

    def step(self, actions):
        task, torch = self.task, self.torch
        task.steps += 1
        self.misbehave(task.steps)
        task.step(torch.clamp(torch.cat([actions[0], actions[1]], 1), -1, 1))
        obs, state = self.observe()
        if fault("nan", task.steps):
            obs[1, 0, 3] = float("nan")
        if fault("obs_shape"):
            obs = obs[:, :, 1:]
        if fault("obs_float64"):
            obs = obs.double()
        reward = torch.stack([task.rew_buf, task.rew_buf], 1)
        if not fault("reward_shape"):
            reward = reward.unsqueeze(-1)
        return obs, state, reward, torch.stack([task.reset_buf, task.reset_buf], 1), None, None

    def misbehave(self, step):
        if fault("segfault", step):
            print("about to crash")
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault("exit_with_child", step):
            os.system("sleep 7 &")
        if fault("exit", step) or fault("exit_with_child", step):
            os._exit(7)
        if fault("raise", step):
            raise ValueError("the task\nis unhappy")
        if fault("hang", step):
            time.sleep(1000)
        if fault("hang_in_c", step):  # like a library that never lets another Python thread run
            ctypes.PyDLL(None).sleep(1000)
        if fault("noise"):
            print("a line of noise\n" * 50)
            os.write(1, b"HISI" + bytes(range(256)) * 400)
            os.write(2, b"unended line")
