"""Does learned credit mean anything? Take one agent's actions away for whole episodes and compare. check.png."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.credit.episode import credit_of
from experiments.credit.load import Progress, Trained

STATES_AN_EPISODE = 50  # evenly spaced, at which the credit is averaged
DRAWS = 10_000  # of the bootstrap
LOW = 0.5  # a rank correlation below it is called low


@dataclass
class Check:
    """N agents, E episodes, each episode with and without each agent from the same start."""

    how: str  # "zero" or "freeze"
    returns: np.ndarray  # (E,) of the whole team
    lost: np.ndarray  # (N, E): return of the whole team minus that without the agent
    credit: np.ndarray  # (N, E): mean credit of the agent in the whole team's episode
    rho: float  # Spearman's over the agents, of the means over episodes; NaN where one of the two is constant
    interval: tuple[float, float]  # 95 % bootstrap over episodes
    pooled: float  # Spearman's over all pairs (agent, episode)

    def verdict(self) -> str:
        """The finding in one sentence."""
        measured = f"Spearman's rank correlation {self.rho:.2f}, 95 % interval [{self.interval[0]:.2f}, "
        measured += f"{self.interval[1]:.2f}] over {len(self.returns)} episodes, {len(self.credit)} agents"
        if not np.isfinite(self.rho):
            return "UNDEFINED: all agents have the same credit or lose the same return, there is nothing to rank"
        if len(self.credit) == 2:
            order = "the same agent is" if self.rho > 0 else "different agents are"
            return f"TWO AGENTS: {order} first by credit and by return lost ({measured}); two points prove no relation"
        if self.rho < LOW:
            return f"LOW: credit does not say here which agent the return depends on ({measured})"
        if self.interval[0] < LOW:
            return f"UNCERTAIN: the estimate is not low, but its interval reaches below {LOW} ({measured})"
        return f"HIGH: credit ranks the agents as the return lost without them does ({measured})"

    def rows(self) -> list[dict[str, float]]:
        """One row an agent: means and 95 % bootstrap intervals over episodes."""
        rows = []
        for i, (credit, lost) in enumerate(zip(self.credit, self.lost)):
            (credit_low, credit_high), (lost_low, lost_high) = interval_of_mean(credit), interval_of_mean(lost)
            row = dict(agent=i, credit=credit.mean(), credit_low=credit_low, credit_high=credit_high)
            row |= dict(return_lost=lost.mean(), return_lost_low=lost_low, return_lost_high=lost_high)
            rows.append({key: float(value) for key, value in row.items()} | {"agent": i})
        return rows

    def table(self) -> str:
        """Markdown of `rows`."""
        lines = [f"| agent | mean credit | return lost ({self.how}) |", "|---|---|---|"]
        for row in self.rows():
            credit, lost = (
                f"{row[key]:.4g} [{row[f'{key}_low']:.4g}, {row[f'{key}_high']:.4g}]"
                for key in ("credit", "return_lost")
            )
            lines.append(f"| {row['agent']} | {credit} | {lost} |")
        return "\n".join(lines)


def measure(run: Trained, episodes: int, how: str, draws: int | None, progress: Progress) -> Check:
    """Play `episodes` episodes with the whole team and as many without each agent, from the same starts."""
    with progress(total=1 + run.num_agents, desc="check") as bar:
        returns, states, actions, owner = rollout(run, episodes, None, how)
        bar.update()
        lost = []
        for agent in range(run.num_agents):
            lost.append(returns - rollout(run, episodes, agent, how)[0])
            bar.update()
    phi = credit_of(run, states, actions, draws).phi
    credit = np.stack([phi[:, owner == e].mean(1) for e in range(episodes)], axis=1)
    return study(how, returns, np.array(lost), credit)


def rollout(
    run: Trained, episodes: int, agent: int | None, how: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One deterministic episode in each of `episodes` environments, without what `agent` does (None: the whole team).

    `how`: "zero", the zero action all the time, which is what the critic's mask means; "freeze", the agent's first
    action all the time. Returns the returns (E,) and, of some evenly spaced steps, states, joint actions and episodes.
    """
    env = run.make_env(episodes)
    obs, state = env.reset(run.seed)
    returns, running, step = np.zeros(episodes), np.ones(episodes, dtype=bool), 0
    frozen, every = None, max(1, env.max_episode_steps // STATES_AN_EPISODE)
    states, joints, owner = [], [], []
    while running.any():
        actions = run.act(obs)
        if agent is not None:
            if frozen is None:
                frozen = np.zeros_like(actions[agent]) if how == "zero" else actions[agent]
            actions[agent] = frozen
        if step % every == 0:
            states.append(state[running])
            joints.append(np.concatenate(actions, 1)[running])
            owner.append(np.flatnonzero(running))
        result = env.step(actions)
        returns += np.where(running, result.reward, 0.0)
        running &= ~(result.terminated | result.truncated)
        obs, state, step = result.obs, result.state, step + 1
    env.close()
    return returns, np.concatenate(states), np.concatenate(joints), np.concatenate(owner)


def study(how: str, returns: np.ndarray, lost: np.ndarray, credit: np.ndarray) -> Check:
    """Rank correlations of credit (N, E) and return lost (N, E), and the bootstrap interval over episodes."""
    rho = spearman(credit.mean(1), lost.mean(1))
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(returns), size=(DRAWS, len(returns)))
    means = [values[:, chosen].mean(2).T for values in (credit, lost)]  # (DRAWS, N)
    centred = [stats.rankdata(values, axis=1) - (len(credit) + 1) / 2 for values in means]
    with np.errstate(invalid="ignore"):  # 0 / 0: a constant has no ranks
        resampled = np.vecdot(*centred) / np.sqrt(np.vecdot(centred[0], centred[0]) * np.vecdot(centred[1], centred[1]))
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (np.nan, np.nan)
    return Check(how, returns, lost, credit, rho, (float(low), float(high)), spearman(credit.ravel(), lost.ravel()))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays (K,); NaN where one is constant. Ties share their mean rank."""
    a, b = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean."""
    chosen = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def write_table(check: Check, path: Path) -> None:
    """check.csv: the rows of the table."""
    with open(path, "w", newline="") as file:
        rows = check.rows()
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot(check: Check, path: Path) -> None:
    """Write check.png: credit against return lost, a point an agent with its intervals."""
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.subplots()
    for row in check.rows():
        bars = [[[row[key] - row[f"{key}_low"]], [row[f"{key}_high"] - row[key]]] for key in ("credit", "return_lost")]
        label = f"agent {row['agent']}"
        axes.errorbar(row["credit"], row["return_lost"], xerr=bars[0], yerr=bars[1], fmt="o", capsize=3, label=label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    verdict = check.verdict()
    title, _, numbers = verdict.partition(" (")
    axes.set_title(f"{title}\n({numbers}" if numbers else title, fontsize=9, wrap=True)
    done = {"zero": "acts with zeros", "freeze": "repeats its first action"}[check.how]
    axes.set(xlabel="mean credit (Shapley value)", ylabel=f"return lost when the agent {done}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
