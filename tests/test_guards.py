"""Guards: values that are not finite, fair and harmless evaluation, one seed one run, episodes kept apart."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_helpers import (
    command,
    differences,
    folder_of,
    make_args,
    metrics,
    on_update,
    step_files,
    train,
    training_state,
    tree_bytes,
)

import his_mamujoco as H
from common.vecenv import StepResult, VecEnv

NAN = float("nan")


# ---- values that are not finite


def spoil_steps(
    monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[StepResult], StepResult], num_envs: int = 4
) -> None:
    """Pass what step `at` (from 1) of the training environments, or those of that number, returns through `change`."""
    original, count = H.MAMuJoCoVecEnv.step, itertools.count(1)

    def step(self: Any, actions: Any) -> StepResult:
        result = original(self, actions)
        return change(result) if self.num_envs == num_envs and next(count) == at else result

    monkeypatch.setattr(H.MAMuJoCoVecEnv, "step", step)


def bad_observation(result: StepResult) -> StepResult:
    """The second agent's observation in environment 3 holds a NaN."""
    obs, final_obs = ([o.copy() for o in each] for each in (result.obs, result.final_obs))
    obs[1][3, 5] = final_obs[1][3, 5] = NAN
    return result._replace(obs=obs, final_obs=final_obs)


def bad_state(result: StepResult) -> StepResult:
    """The global state of environment 2 holds a NaN."""
    state, final_state = result.state.copy(), result.final_state.copy()
    state[2, 0] = final_state[2, 0] = NAN
    return result._replace(state=state, final_state=final_state)


def bad_reward(value: float) -> Callable[[StepResult], StepResult]:
    """The reward of the last environment but one is `value`."""

    def change(result: StepResult) -> StepResult:
        reward = result.reward.copy()
        reward[-2] = value
        return result._replace(reward=reward)

    return change


def expect_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Run with checkpoints at 200 and 400: it must end with status 3, one line with these words, both untouched."""
    checkpoints: dict[str, bytes] = {}
    original = H.Run.save

    def save(self: Any, *rest: Any) -> None:
        original(self, *rest)
        checkpoints.clear()
        checkpoints.update(tree_bytes(folder_of(tmp_path) / "checkpoints"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(H.Run, "save", save)
        status = H.main(command(tmp_path, save_every=200))
    error = capsys.readouterr().err
    assert status == 3
    assert error.count("\n") == 1 and [word for word in words if word not in error] == [], error
    assert {"checkpoints/step_400.pt"} <= {f"checkpoints/{name}" for name in checkpoints}
    assert tree_bytes(folder_of(tmp_path) / "checkpoints") == checkpoints
    assert not (folder_of(tmp_path) / "finished.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(bad_observation, ["observation", "agent 1", "environment 3"], id="observation"),
        pytest.param(bad_state, ["state", "environment 2"], id="state"),
        pytest.param(bad_reward(NAN), ["reward", "environment 2"], id="reward-nan"),
        pytest.param(bad_reward(-np.inf), ["reward", "environment 2"], id="reward-inf"),
    ],
)
def test_a_bad_value_from_the_environment_stops_the_run(
    change: Callable[[StepResult], StepResult],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil_steps(monkeypatch, 103, change)
    expect_stop(tmp_path, capsys, *words, "global_step 412", "update_step 50")


def nan_actor(learner: Any, buffer: Any) -> None:
    """Agent 1's next action is NaN."""
    with torch.no_grad():
        learner.actors[1].head.bias[0] = NAN


def nan_critic(learner: Any, buffer: Any) -> None:
    """One weight of the critic is NaN."""
    with torch.no_grad():
        next(learner.critic.q2.parameters())[0, 0] = NAN


def nan_stored_reward(learner: Any, buffer: Any) -> None:
    """The buffer was damaged after the check on the way in."""
    buffer.data["reward"].fill_(NAN)


def nan_temperature(learner: Any, buffer: Any) -> None:
    """Only the actor loss of agent 1 sees its temperature."""
    learner.log_alpha.data[1] = NAN


@pytest.mark.parametrize(
    ("at", "poison", "words"),
    [
        pytest.param(52, nan_stored_reward, ["losses/critic", "update_step 52"], id="stored-reward"),
        pytest.param(51, nan_critic, ["losses/critic", "update_step 51"], id="critic"),
        pytest.param(52, nan_temperature, ["losses/actor_1", "update_step 52"], id="actor-loss"),
    ],
)
def test_a_bad_loss_stops_the_run(
    at: int,
    poison: Callable[[Any, Any], None],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_update(monkeypatch, at, poison)
    expect_stop(tmp_path, capsys, *words, "global_step 420")
    # The transitions to look into lie beside the checkpoints.
    saved = torch.load(folder_of(tmp_path) / "nonfinite_batch.pt", weights_only=True)
    assert len(saved["reward"]) == 64


def test_a_bad_policy_stops_the_run_at_its_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, count = H.Learner.act, itertools.count(1)

    def act(self: Any, obs: Any, deterministic: bool = False) -> Any:
        if not deterministic and next(count) == 53:  # after the warm-up of 50 steps
            nan_actor(self, None)
        return original(self, obs, deterministic)

    monkeypatch.setattr(H.Learner, "act", act)
    expect_stop(tmp_path, capsys, "action of agent 1", "global_step 408")


def test_a_bad_reward_in_an_evaluation_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would otherwise pass for a mean return that is never the best."""
    spoil_steps(monkeypatch, 10, bad_reward(NAN), num_envs=2)
    assert H.main(command(tmp_path, total_timesteps=400)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "reward" in error and "global_step 200" in error


def test_evaluating_a_policy_that_is_not_finite_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path, total_timesteps=40)
    path = folder / "checkpoints/policy.safetensors"
    tensors, about = H.checkpoint.load_policy(path)
    tensors["1.head.bias"][:] = NAN
    H.checkpoint.save_policy(path, tensors, about)
    capsys.readouterr()
    assert H.main(["--evaluate", str(folder)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "action of agent 1" in error


# ---- evaluation


class ScriptedEnv(VecEnv):
    """Environment i has episodes of `lengths[i]` steps worth `rewards[i]` each, whatever the agents do."""

    def __init__(self, lengths: Sequence[int], rewards: Sequence[float]):
        self.lengths, self.rewards = np.array(lengths), np.array(rewards, dtype=np.float32)
        self.num_envs, self.num_agents = len(lengths), 2
        self.obs_dims, self.action_dims, self.state_dim = [1, 1], [1, 1], 1
        self.action_low, self.action_high = [-np.ones(1, np.float32)] * 2, [np.ones(1, np.float32)] * 2
        self.max_episode_steps, self.render_fps = 100, 25
        self.steps = np.zeros(len(lengths), dtype=int)

    def observe(self) -> list[np.ndarray]:
        """The step of the episode, for both agents."""
        return [self.steps[:, None].astype(np.float32) for _ in range(2)]

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        self.steps[:] = 0
        return self.observe(), self.observe()[0]

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        self.steps += 1
        final, ended = self.observe(), self.steps >= self.lengths
        truncated = ended & (self.lengths > 5)
        self.steps[ended] = 0
        obs = self.observe()
        return StepResult(obs, obs[0], self.rewards, ended & ~truncated, truncated, final, final[0])

    def get_state(self) -> dict[str, Any]:
        return {"steps": self.steps.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.steps = np.asarray(state["steps"]).copy()

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        raise NotImplementedError


class Idle:
    """Stands for a learner."""

    def act(self, obs: Sequence[torch.Tensor], deterministic: bool = False) -> list[np.ndarray]:
        """Zero actions; evaluation must ask for the deterministic ones."""
        assert deterministic
        return [np.zeros((len(o), 1), np.float32) for o in obs]


def test_evaluation_takes_as_many_episodes_from_each_environment() -> None:
    lengths, rewards, episodes = [2, 3, 20], [1.0, 10.0, 100.0], 6
    result = H.evaluate(Idle(), ScriptedEnv(lengths, rewards), 0, episodes, torch.device("cpu"))  # pyright: ignore
    assert result is not None
    returns, ns, successes = result
    assert len(successes) == 0
    assert returns.tolist() == [2.0, 2.0, 30.0, 30.0, 2000.0, 2000.0]
    assert ns.tolist() == [2, 2, 3, 3, 20, 20]
    true_mean = np.mean(np.multiply(lengths, rewards))
    finished = sorted((n * length, n * length, length * r) for length, r in zip(lengths, rewards) for n in range(1, 7))
    first_to_finish = np.mean([value for *_, value in finished[:episodes]])
    assert returns.mean() == true_mean
    assert abs(first_to_finish - true_mean) > 600  # the shortcut would have looked like this


def test_successes_are_those_of_the_episodes_that_count() -> None:
    """Environment 0 succeeds in its second episode, environment 1 always; further episodes do not count."""
    env = ScriptedEnv([2, 3], [1.0, 1.0])
    plain, episodes = env.step, [0, 0]

    def step(actions: Sequence[np.ndarray]) -> StepResult:
        result = plain(actions)
        for i in np.flatnonzero(result.terminated | result.truncated):
            episodes[i] += 1
        env.last_success = np.array([episodes[0] == 2, True])
        return result

    env.step = step
    result = H.evaluate(Idle(), env, 0, 4, torch.device("cpu"))  # pyright: ignore
    assert result is not None and result.successes.tolist() == [False, True, True, True]


def test_evaluation_leaves_training_bit_unchanged(tmp_path: Path) -> None:
    args = make_args(eval_episodes=4)
    run = H.Run(args, torch.device("cpu"))
    for _ in range(60):  # beyond the warm-up
        H.act_and_store(run)
    run.learner.update(run.buffer)
    before, global_torch, global_numpy = copy.deepcopy(run.state_dict()), torch.get_rng_state(), np.random.get_state()
    env = H.make_env(args, 2)
    first = H.evaluate(run.learner, env, run.streams.evaluation, 4, run.device)
    again = H.evaluate(run.learner, env, run.streams.evaluation, 4, run.device)
    assert first is not None and again is not None and differences(list(first), list(again)) == []
    assert differences(run.state_dict(), before) == []
    assert torch.equal(torch.get_rng_state(), global_torch)
    assert differences(list(np.random.get_state()), list(global_numpy)) == []


def test_a_stopped_evaluation_returns_nothing() -> None:
    polls = itertools.count(1)
    env = ScriptedEnv([2, 50], [1.0, 1.0])
    assert H.evaluate(Idle(), env, 0, 2, torch.device("cpu"), stopped=lambda: next(polls) == 10) is None  # pyright: ignore
    assert env.steps.tolist() == [9 % 2, 9]


# ---- one seed, one run


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    one, same, other = (train(tmp_path / str(i), seed=seed, total_timesteps=400) for i, seed in enumerate((3, 3, 4)))
    first, second, third = (training_state(step_files(folder)[-1]) for folder in (one, same, other))
    assert first["learner"]["update_step"] > 0
    assert differences(first, second) == []
    assert (one / "eval.csv").read_bytes() == (same / "eval.csv").read_bytes()
    apart = " ".join(line.split(":")[0] for line in differences(first, third))
    for part in ("/learner/actors/", "/learner/critic/", "/streams/minibatch", "/buffer/data/actions", "/env/physics"):
        assert part in apart
    evaluated = [[m["eval/return_mean"] for m in metrics(f) if "eval/return_mean" in m] for f in (one, other)]
    assert evaluated[0] != evaluated[1]


# ---- episodes stay apart


def test_no_stored_transition_connects_two_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walker2d falls every twenty steps or so: each stored successor is that of its action, never a new start."""
    steps: list[StepResult] = []
    original = H.MAMuJoCoVecEnv.step

    def step(self: Any, actions: Any) -> StepResult:
        result = original(self, actions)
        if self.num_envs == 4:
            steps.append(result)
        return result

    monkeypatch.setattr(H.MAMuJoCoVecEnv, "step", step)
    monkeypatch.setattr(H.MAMuJoCoVecEnv, "max_episode_steps", 25)
    folder = train(tmp_path, buffer_size=800)
    data = training_state(step_files(folder)[-1])["buffer"]["data"]
    stored = {key: np.asarray(rows).reshape(-1, 4, rows.shape[-1])[: len(steps)] for key, rows in data.items()}
    assert len(steps) == 200
    ended = np.stack([result.terminated | result.truncated for result in steps])
    truncated = np.stack([result.truncated for result in steps])
    assert ended[:-1].sum() > 10 and 0 < truncated.sum() < ended.sum()
    assert (stored["ended"][:, :, 0] == ended).all() and (stored["terminated"][:, :, 0] == (ended & ~truncated)).all()
    for what in ("obs", "state"):
        # In the next row the environment goes on where this row's successor lies, except where an episode ended.
        goes_on = (stored[f"next_{what}"][:-1] == stored[what][1:]).all(-1)
        assert (goes_on == ~ended[:-1]).all()
    final_obs = np.stack([np.concatenate(result.final_obs, 1) for result in steps])
    assert (stored["next_obs"] == final_obs).all()
    assert (stored["next_state"] == np.stack([result.final_state for result in steps])).all()

    # States are standardised, hence alike after every reset: no successor of an end may be one of the starts.
    starts = {row.tobytes() for row in [*stored["state"][0], *stored["state"][1:][ended[:-1]]]}
    assert not starts & {row.tobytes() for row in stored["next_state"][ended]}


def test_sampled_windows_end_where_their_episode_ends(tmp_path: Path) -> None:
    """Rewards that tell the episode: a window over two episodes would add up two kinds."""
    lengths = [3, 7]
    env = ScriptedEnv(lengths, [1.0, 1000.0])
    buffer = H.ReplayBuffer(env, 40, n_step=5, gamma=1.0, device=torch.device("cpu"))
    obs, state = env.reset(0)
    episode = np.zeros(2)
    for _ in range(37):
        step = env.step([])
        reward = (env.rewards * 100.0 ** (episode % 2)).astype(np.float32)
        actions = [np.zeros((2, 1), np.float32)] * 2
        ends = (step.terminated, step.truncated)
        buffer.add(obs, state, actions, reward, step.final_obs, step.final_state, *ends)
        episode += step.terminated | step.truncated
        obs, state = step.obs, step.state
    batch = buffer.sample(4000, torch.Generator().manual_seed(0))
    seen = set(zip(batch.state[:, 0].tolist(), batch.reward.tolist(), batch.next_state[:, 0].tolist()))
    assert len(seen) >= 2 * (3 + 7)
    for start, reward, end in seen:
        count = end - start
        assert 1 <= count <= 5
        assert reward in {count * 1.0, count * 100.0, count * 1e3, count * 1e5}
    full = {(0.0, 3.0 * kind, 3.0) for kind in (1.0, 100.0)} | {(3.0, 4.0 * kind, 7.0) for kind in (1e3, 1e5)}
    assert full <= seen
    # Termination cuts the bootstrap off, the time limit does not.
    at_end = {(end, discount) for end, discount in zip(batch.next_state[:, 0].tolist(), batch.discount.tolist())}
    assert (3.0, 0.0) in at_end and (7.0, 1.0) in at_end and (7.0, 0.0) not in at_end
