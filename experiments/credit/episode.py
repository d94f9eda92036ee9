"""Play the best policy and write down what the credit is computed from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.credit import game
from experiments.credit.load import Progress, Trained

CREDIT_SEED = 0  # of the permutations: two calls on one run draw the same


@dataclass
class Recording:
    """Deterministic episodes, one after another: T steps in all. What stands at t belongs to (s_t, a_t)."""

    episode: np.ndarray  # int (T,)
    step: np.ndarray  # int (T,), from 0 in each episode
    state: np.ndarray  # float32 (T, S)
    actions: np.ndarray  # float32 (T, sum A_i)
    reward: np.ndarray  # float64 (T,), received after a_t
    snapshots: list[Any]  # T states of the environment, from which to draw s_t

    @property
    def return_so_far(self) -> np.ndarray:
        """Undiscounted, within the episode, the reward of the step included; (T,)."""
        total = np.cumsum(self.reward)
        first = np.flatnonzero(self.step == 0)
        return total - (total[first] - self.reward[first])[self.episode]


@dataclass
class Credit:
    """The credit of a recording."""

    phi: np.ndarray  # float64 (N, T)
    everybody: np.ndarray  # v(N) = Q(s, a), float64 (T,)
    nobody: np.ndarray  # v(empty) = Q(s, 0), float64 (T,)
    how: str  # "exact", or "64 permutations"

    @property
    def gap(self) -> np.ndarray:
        """sum_i phi_i - (v(N) - v(empty)), (T,): 0 up to rounding."""
        return self.phi.sum(0) - (self.everybody - self.nobody)


def play(run: Trained, episodes: int, progress: Progress) -> Recording:
    """`episodes` deterministic episodes in one environment; the first is the first of the run's own evaluations."""
    env = run.make_env(1)
    obs, state = env.reset(run.seed)
    rows: list[tuple] = []
    episode = step = 0
    with progress(total=episodes * env.max_episode_steps, desc="playing") as bar:
        while episode < episodes:
            actions = run.act(obs)
            snapshot = env.get_state()
            result = env.step(actions)
            rows.append((episode, step, state[0], np.concatenate(actions, 1)[0], float(result.reward[0]), snapshot))
            obs, state, step = result.obs, result.state, step + 1
            bar.update()
            if result.terminated[0] or result.truncated[0]:
                episode, step = episode + 1, 0
    env.close()
    number, steps, states, joint, reward, snapshots = zip(*rows, strict=True)
    return Recording(*map(np.array, (number, steps, states, joint, reward)), snapshots=list(snapshots))


def value_of(run: Trained, state: np.ndarray, actions: np.ndarray) -> game.Value:
    """The game of the run's critic in states (T, S) under joint actions (T, sum A_i)."""
    return game.masked_value(run.critic, state, actions, run.action_dims)


def credit_of(run: Trained, state: np.ndarray, actions: np.ndarray, draws: int | None) -> Credit:
    """Shapley values of joint actions: from `draws` permutations, or exact where it is None."""
    value, everyone = value_of(run, state, actions), np.ones((1, run.num_agents), dtype=bool)
    if draws is None:
        phi, how = game.exact(game.all_values(value, run.num_agents)), "exact"
    else:
        contributions = game.draw(value, run.num_agents, len(state), draws, "permutation", CREDIT_SEED)
        phi, how = contributions.mean(0), f"{draws} permutation{'s' if draws > 1 else ''}"
    return Credit(phi, value(everyone), value(~everyone), how)


def write_raw(out: Path, recording: Recording, credit: Credit) -> None:
    """credit.npz and credit.csv: one row a step."""
    columns = {
        "episode": recording.episode,
        "step": recording.step,
        "reward": recording.reward,
        "return_so_far": recording.return_so_far,
        "v_everybody": credit.everybody,
        "v_nobody": credit.nobody,
        "gap": credit.gap,
    }
    arrays: dict[str, Any] = dict(phi=credit.phi, state=recording.state, actions=recording.actions, **columns)
    np.savez(out / "credit.npz", **arrays)
    columns |= {f"credit_{i}": phi for i, phi in enumerate(credit.phi)}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
    (out / "credit.csv").write_text("\n".join(lines) + "\n")
