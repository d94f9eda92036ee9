"""Record mpe_old_rules.npz from PettingZoo 1.22.2, the release that HARL pins: its episodes are the old rules.

That release asks for Python < 3.11, so it cannot be a dependency of the tests; its particle environments still run:

    pip download pettingzoo==1.22.2 --no-deps --ignore-requires-python --dest OLD
    python -m zipfile -e OLD/*.whl OLD
    pip install pygame-ce
    python tests/data/make_mpe_old_rules.py OLD

Recorded per task (T steps, S size of all observations side by side, A of all actions side by side):
    initial   float32 (streams, episodes, S)         observations after each reset
    actions   int8 (streams, episodes, T, A)         in 1/64, from -80 to 80: the environment clips to [0, 1] itself
    obs       float32 (streams, episodes, T, S)      observations after each action
    reward    float32 (streams, episodes, T)         sum over the agents
    agents    float64 (streams, episodes, agents, 2) initial positions
    landmarks float64 (streams, episodes, 3, 2)      positions
    goals     int64 (streams, episodes, speakers)    landmark that a speaker knows
Stream s begins with reset(seed=s), its further episodes with reset().
"""

import logging
import os
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import numpy as np

TASKS = {
    "simple_spread": "simple_spread_v2",
    "simple_reference": "simple_reference_v2",
    "simple_speaker_listener": "simple_speaker_listener_v3",
}
STREAMS, EPISODES, STEPS = 3, 4, 25


def record(old_name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Play all episodes of one task with random actions."""
    module = import_module(f"pettingzoo.mpe.{old_name}")
    recorded = defaultdict(list)
    for stream in range(STREAMS):
        env = module.parallel_env(continuous_actions=True, max_cycles=STEPS)
        names = env.possible_agents
        sizes = [env.action_space(name).shape[0] for name in names]
        for episode in range(EPISODES):
            first = env.reset(seed=stream) if episode == 0 else env.reset()
            world = env.unwrapped.world
            recorded["initial"].append(np.concatenate([first[name] for name in names]))
            recorded["agents"].append([agent.state.p_pos.copy() for agent in world.agents])
            recorded["landmarks"].append([landmark.state.p_pos.copy() for landmark in world.landmarks])
            goals = [getattr(agent, "goal_b", None) for agent in world.agents]
            recorded["goals"].append([world.landmarks.index(goal) for goal in goals if goal is not None])
            for _ in range(STEPS):
                action = rng.integers(-80, 81, sum(sizes)).astype(np.int8)
                pieces = np.split(action.astype(np.float32) / 64, np.cumsum(sizes)[:-1])
                obs, reward, _, truncated, _ = env.step(dict(zip(names, pieces)))
                recorded["actions"].append(action)
                recorded["obs"].append(np.concatenate([obs[name] for name in names]))
                recorded["reward"].append(np.float32(sum(reward.values())))
            assert all(truncated.values()) and not env.agents

    def in_shape(key: str) -> np.ndarray:
        array = np.array(recorded[key], dtype=np.int64 if key == "goals" else None)
        per_step = (STEPS,) if key in ("actions", "obs", "reward") else ()
        return array.reshape(STREAMS, EPISODES, *per_step, *array.shape[1:])

    return {key: in_shape(key) for key in recorded}


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    logging.disable()  # a warning for each action that is clipped
    rng = np.random.default_rng(0)
    fixture = {f"{task}/{key}": value for task, old in TASKS.items() for key, value in record(old, rng).items()}
    path = Path(__file__).with_name("mpe_old_rules.npz")
    np.savez_compressed(path, **fixture)  # pyright: ignore[reportArgumentType]
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
