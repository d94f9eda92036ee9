"""Steps Bi-DexHands tasks in Isaac Gym, under the interpreter that Isaac Gym is installed in.

`common.bidexhands.isaac` starts this file as a process, because Isaac Gym needs Python 3.6 to 3.8 and we need a newer
one. So the syntax here is that of Python 3.6, and nothing of this project is imported. Commands and answers are short
JSON messages over two pipes, the numbers lie in memory that both processes map; docs/isaacgym.md has the tables.

By hand, to see whether Isaac Gym and a clone of HARL or DexterousHands work, with everything that they print:

    PYTHON common/bidexhands/isaac_worker.py --check ShadowHandOver --task-root CLONE

Shape letters: E environments, O observation size, S state size, A action size; there are always 2 agents.
"""

import argparse
import faulthandler
import importlib
import json
import mmap
import os
import queue
import random
import struct
import sys
import threading
import time
import traceback

PROTOCOL_VERSION = 1
_MAGIC = b"HISI"
_HEADER = struct.Struct("<4sHI")  # magic, protocol version, length of the JSON text that follows
HEADER_BYTES = _HEADER.size
_MAX_MESSAGE_BYTES = 1 << 20

# What each of the two known clones has, below its root, and no other folder.
HARL_FILE = os.path.join("harl", "envs", "dexhands", "dexhands_env.py")
DEXTEROUSHANDS_FILE = os.path.join("bidexhands", "tasks", "hand_base", "multi_vec_task.py")

# The parts of a task that the worker touches, besides step and reset of its wrapper.
_TASK_NEEDS = "reset reset_target_pose compute_observations gym obs_buf reset_buf reset_goal_buf progress_buf successes"


# ---- protocol: the only part that the other side imports


class ProtocolError(Exception):
    """The other side does not speak this protocol, or another version of it."""


def pack(message):
    """The bytes of one message, a dict of plain values."""
    body = json.dumps(message).encode("utf-8")
    return _HEADER.pack(_MAGIC, PROTOCOL_VERSION, len(body)) + body


def body_length(header):
    """Bytes of JSON text after these HEADER_BYTES; `ProtocolError` if they are not the header of a message."""
    magic, version, length = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise ProtocolError(f"not a message, it begins with {header!r}")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"protocol version {version}, expected {PROTOCOL_VERSION}")
    if length > _MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {length} bytes, at most {_MAX_MESSAGE_BYTES} are allowed")
    return length


def layout(num_envs, obs_dim, state_dim, action_dim):
    """The shared arrays, a list of [name, numpy dtype, shape, offset in bytes], and the bytes of all together."""
    arrays, offset = [], 0
    for name, dtype, shape in [
        ("actions", "float32", (2, num_envs, action_dim)),
        ("obs", "float32", (num_envs, 2, obs_dim)),
        ("state", "float32", (num_envs, state_dim)),
        ("final_obs", "float32", (num_envs, 2, obs_dim)),
        ("final_state", "float32", (num_envs, state_dim)),
        ("reward", "float32", (num_envs,)),
        ("done", "uint8", (num_envs,)),
        ("time_out", "uint8", (num_envs,)),
        ("success", "uint8", (num_envs,)),
    ]:
        size = 4 if dtype == "float32" else 1
        for length in shape:
            size *= length
        arrays.append([name, dtype, list(shape), offset])
        offset += -(-size // 64) * 64  # each array on a cache line of its own
    return arrays, offset


def views(np, memory, arrays):
    """Numpy arrays by name that lie in `memory`, as `layout` lists them."""
    return {name: np.ndarray(tuple(shape), dtype, memory, offset) for name, dtype, shape, offset in arrays}


# ---- the task


class Failure(Exception):
    """What went wrong, in the worker's own words; `module` is the import that failed, if it was one."""

    def __init__(self, text, module=None):
        Exception.__init__(self, text)
        self.module = module


def import_module(name, report):
    """Import and return a module; `Failure` naming it, whatever it raises (Isaac Gym's bindings raise RuntimeError)."""
    report("importing " + name)
    try:
        return importlib.import_module(name)
    except BaseException as error:
        traceback.print_exc()
        raise Failure(f"{type(error).__name__}: {error}", module=name) from error


def build(spec, report):
    """The task's vector environment (`MultiVecTaskPython`) from the user's clone; spec as in the message `start`.

    Isaac Gym refuses to be imported after torch. Both clones read `sys.argv` (the default opens a window) and find
    files relative to the working directory, so both are set to what they expect.
    """
    for name in ("isaacgym", "isaacgym.gymapi", "numpy", "torch", "isaacgym.gymtorch"):
        import_module(name, report)
    root, scenario, num_envs, length = (spec[key] for key in ("task_root", "scenario", "num_envs", "episode_length"))
    sys.path.insert(0, root)
    if os.path.isfile(os.path.join(root, HARL_FILE)):
        os.chdir(os.path.join(root, "harl"))  # Lift, Pen and doors read a texture at ../harl/envs/...
        sys.argv = ["isaac_worker", "--headless"]
        module = import_module("harl.envs.dexhands.dexhands_env", report)
        report("building the task")
        settings = {"n_threads": num_envs, "task": scenario, "hands_episode_length": length}
        return module.DexHandsEnv(settings).env
    os.chdir(os.path.join(root, "bidexhands"))  # cfg/... and ../assets are read from here
    sys.argv = ["isaac_worker", "--headless", "--num_envs", str(num_envs), "--episode_length", str(length)]
    module = import_module("bidexhands", report)
    report("building the task")
    return module.make(scenario, "happo")


class NoRefresh:
    """Isaac's `gym` object without its refresh functions.

    They copy the simulator's state over the tensors that the task has just set for a new episode. The simulator takes
    those over, and moves the links along, only in its next step; until then it may report the old state.
    """

    def __init__(self, gym):
        self._gym = gym

    def __getattr__(self, name):
        if name.startswith("refresh_"):
            return lambda *args: True
        return getattr(self._gym, name)


class Backend:
    """Steps and resets a built task, and copies what it returns into the shared arrays.

    In Isaac Gym's order an ended environment is reset at the beginning of the *next* step. With `early_reset` it is
    reset at once instead, by the same functions, and the rows of `obs` and `state` are computed from the new start.
    """

    def __init__(self, vec, early_reset):
        self.np, self.torch = importlib.import_module("numpy"), importlib.import_module("torch")
        self.vec, self.task, self.early_reset = vec, vec.task, early_reset
        self.arrays = {}
        missing = [name for name in _TASK_NEEDS.split() if not hasattr(self.task, name)]
        if missing:
            raise Failure("the task class {} has no {}".format(type(self.task).__name__, ", ".join(missing)))

    def sizes(self):
        """What the task says of itself."""
        vec, task = self.vec, self.task
        return {
            "num_envs": int(task.num_envs),
            "num_agents": int(vec.num_agents),
            "obs_dim": int(vec.num_observations),
            "state_dim": int(vec.nums_share_observations),
            "action_dim": int(vec.num_actions),
            "max_episode_steps": int(task.max_episode_length),
        }

    def reset(self, seed):
        """Start new episodes everywhere. As in the original, the first observation is that after one step of hardly any
        action (uniform in [-0.01, 0.01]), so an episode that begins here has one step less."""
        random.seed(seed)
        self.np.random.seed(seed % 2**32)
        self.torch.manual_seed(seed)  # of the CPU and all GPUs
        self.task.reset_buf[:] = 1
        obs, state = self.vec.reset()[:2]
        self._put_final(obs, state)
        self._put("done", self.task.reset_buf, "i")
        self._next()

    def step(self):
        """Apply the shared `actions`; fills all other shared arrays."""
        actions = [self.torch.from_numpy(a.copy()).to(self.vec.rl_device) for a in self.arrays["actions"]]
        obs, state, reward, done = self.vec.step(actions)[:4]
        self._put_final(obs, state)
        num_envs = len(self.arrays["done"])
        self._put("reward", self._checked("reward", reward, "f", (num_envs, 2, 1))[:, 0, 0], "f")
        self._put("done", self._checked("done", done, "i", (num_envs, 2))[:, 0], "i")
        self._put("success", self.task.successes != 0, "i")
        self._put("time_out", self.task.progress_buf >= self.task.max_episode_length, "i")
        self._next()

    def _put_final(self, obs, state):
        """`final_obs`, `final_state`: what the task returned, before any reset."""
        num_envs, state_dim = self.arrays["state"].shape
        self._put("final_obs", obs, "f")
        self._put("final_state", self._checked("state", state, "f", (num_envs, 2, state_dim))[:, 0], "f")

    def _next(self):
        """`obs`, `state`: what the agents act on next."""
        arrays = self.arrays
        arrays["obs"][:], arrays["state"][:] = arrays["final_obs"], arrays["final_state"]
        if not self.early_reset or not arrays["done"].any():
            return
        task = self.task
        ended = task.reset_buf.nonzero(as_tuple=False).squeeze(-1)
        goals = task.reset_goal_buf.nonzero(as_tuple=False).squeeze(-1)
        if len(goals) > 0:
            task.reset_target_pose(goals)
        task.reset(ended, goals)
        task.actions[ended] = 0  # the "last action" in the observation
        gym, task.gym = task.gym, NoRefresh(task.gym)
        try:
            task.compute_observations()
        finally:
            task.gym = gym
        rows, hand, limit = self._numpy(ended), self.vec.num_hand_obs, self.vec.clip_obs
        full = self.np.clip(self._numpy(task.obs_buf)[rows], -limit, limit)
        arrays["state"][rows] = full
        for agent in range(2):  # its own hand, and what comes after both hands
            own = full[:, agent * hand : (agent + 1) * hand]
            arrays["obs"][rows, agent] = self.np.concatenate([own, full[:, 2 * hand :]], axis=1)

    def _put(self, name, values, kind):
        array = self.arrays[name]
        array[:] = self._checked(name, values, kind, array.shape)

    def _checked(self, name, values, kind, shape):
        """`values` as a numpy array of that shape; kind "f" is float32, "i" any whole numbers or bools."""
        values = self._numpy(values)
        if values.shape != tuple(shape):
            raise Failure(f"the task returned {name} of shape {values.shape}, expected {tuple(shape)}")
        if (values.dtype != "float32") if kind == "f" else (values.dtype.kind not in "biu"):
            expected = "float32" if kind == "f" else "whole numbers"
            raise Failure(f"the task returned {name} as {values.dtype}, expected {expected}")
        return values

    def _numpy(self, values):
        return values.detach().cpu().numpy() if hasattr(values, "detach") else self.np.asarray(values)


# ---- the process


def serve(requests_fd, replies_fd, memory_fd):
    """Answer messages until `close`, until the other side is gone, or until something fails; then end the process.

    The process ends without running destructors: Isaac Gym's are known to crash.
    """
    for fd in (requests_fd, replies_fd, memory_fd):
        os.set_inheritable(fd, False)  # the compiler that torch may start must not keep them open

    def send(**message):
        rest = pack(message)
        while rest:
            rest = rest[os.write(replies_fd, rest) :]

    def report(stage):
        send(event="stage", stage=stage)

    status = 0
    try:
        # First of all, so that the other side sees our version even if this one ends over the other's.
        send(event="hello", python="{}.{}.{}".format(*sys.version_info), pid=os.getpid())
        requests = queue.Queue()
        threading.Thread(target=read_requests, args=(requests_fd, requests), daemon=True).start()
        spec = requests.get()
        backend = Backend(build(spec, report), spec["early_reset"])
        memory = mmap.mmap(memory_fd, spec["memory_bytes"])
        backend.arrays = views(backend.np, memory, spec["arrays"])
        send(event="ready", sizes=backend.sizes())
        while True:
            request = requests.get()
            if request["op"] == "close":
                break
            if request["op"] == "reset":
                backend.reset(request["seed"])
            else:
                backend.step()
            send(event="done", id=request["id"])
    except BaseException as error:  # SystemExit too: the tasks call quit() when there is no simulator
        traceback.print_exc()
        text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        send(event="error", text=text[:2000], module=getattr(error, "module", None))
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def read_requests(fd, requests):
    """Put the messages that arrive into a queue; end the process at once when the other side has closed its end.

    In a thread of its own, so that a worker whose parent was killed ends even in the middle of a long start.
    """

    def read(count):
        data = b""
        while len(data) < count:
            chunk = os.read(fd, count - len(data))
            if not chunk:
                os._exit(0)
            data += chunk
        return data

    try:
        while True:
            requests.put(json.loads(read(body_length(read(HEADER_BYTES))).decode("utf-8")))
    except ProtocolError as error:
        sys.stderr.write(f"the worker received {error}\n")
        sys.stderr.flush()
        os._exit(1)


def check(scenario, task_root, num_envs, steps=100):
    """Build a task and step it with random actions, for a human to watch; a failure ends in its traceback.

    Episodes last 75 steps in all tasks here, so that 100 steps go through a reset.
    """
    faulthandler.enable()
    spec = {"task_root": os.path.abspath(task_root), "scenario": scenario, "num_envs": num_envs, "episode_length": 75}
    backend = Backend(build(spec, print), early_reset=True)
    np = backend.np
    sizes = backend.sizes()
    print("sizes:", sizes)
    arrays, size = layout(num_envs, sizes["obs_dim"], sizes["state_dim"], sizes["action_dim"])
    backend.arrays = views(np, bytearray(size), arrays)
    backend.reset(1)
    ends, returns, start = 0, np.zeros(num_envs), time.time()
    for _ in range(steps):
        backend.arrays["actions"][:] = np.random.uniform(-1, 1, backend.arrays["actions"].shape)
        backend.step()
        ends += int(backend.arrays["done"].sum())
        returns += backend.arrays["reward"]
    finite = all(np.isfinite(array).all() for array in backend.arrays.values())
    rate = steps * num_envs / (time.time() - start)
    print(f"{steps} steps, {rate:.0f} environment steps/s, {ends} episode ends")
    print(f"mean reward {returns.mean() / steps:.4f}, all finite: {finite}")
    sys.stdout.flush()
    os._exit(0 if finite else 1)


def main():
    # This folder would otherwise come first, and its modules hide others of the same names ("env", "tasks").
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    parser = argparse.ArgumentParser(description="Isaac Gym worker of his_bidexhands.py --sim isaacgym")
    parser.add_argument("--fds", type=int, nargs=3, help="requests, replies, memory; used by the script")
    parser.add_argument("--check", metavar="SCENARIO", help="build this task and step it, showing what is printed")
    parser.add_argument("--task-root", help="clone of HARL or DexterousHands")
    parser.add_argument("--num-envs", type=int, default=4)
    args = parser.parse_args()
    if args.fds:
        serve(*args.fds)
    if not args.check or not args.task_root:
        parser.error("give --check SCENARIO --task-root CLONE")
    check(args.check, args.task_root, args.num_envs)


if __name__ == "__main__":
    main()
