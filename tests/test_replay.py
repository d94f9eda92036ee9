"""The replay buffer against a list-based oracle: n-step windows, episode ends, wrap-around, growth, aliasing."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, ToyEnv, filled_buffer, noisy_env, small_args
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import his_mamujoco as hm

GAMMA = 0.9


class QuickBuffer(hm.ReplayBuffer):
    """Grows from two vector steps on, so that small tests see growth."""

    FIRST_STEPS = 2


def shape_env(num_envs: int) -> ToyEnv:
    """Only its sizes matter: two agents, observations of 2 and 1, actions of 1 and 2, a state of 3."""
    return ToyEnv(num_envs, [1, 2], lambda joint: joint[:, 0], obs_dims=[2, 1], state_dim=3)


def make_buffer(num_envs: int, max_steps: int, n_step: int, gamma: float = GAMMA, kind: Any = QuickBuffer) -> Any:
    return kind(shape_env(num_envs), max_steps, n_step, gamma, CPU)


def transition(step: int, num_envs: int, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> tuple:
    """One vector step in which every number tells its step, environment and place."""
    mark = 100.0 * step + np.arange(num_envs, dtype=np.float32)[:, None]  # (E, 1)
    obs = [np.concatenate([mark, -mark], axis=1), mark + 0.25]
    next_obs = [np.concatenate([mark + 0.5, -mark - 0.5], axis=1), mark + 0.75]
    state, next_state = mark + [[0, 10_000, 20_000]], mark + [[0.5, 10_000, 20_000]]
    actions = [mark + 0.1, np.concatenate([mark + 0.2, mark + 0.3], axis=1)]
    return obs, state, actions, reward, next_obs, next_state, terminated, truncated


def expected_window(
    log: list[tuple], step: int, env: int, n_step: int, gamma: float = GAMMA
) -> tuple[float, float, int]:
    """Return, discount and last step of the window that starts at `step`, walked one step at a time."""
    total, factor = 0.0, 1.0
    for length in range(1, n_step + 1):
        _, _, _, reward, _, _, terminated, truncated = log[step + length - 1]
        total += factor * reward[env]
        factor *= gamma
        if terminated[env] or truncated[env] or step + length == len(log) or length == n_step:
            return total, 0.0 if terminated[env] else factor, step + length - 1
    raise AssertionError


def check_batch(batch: hm.Batch, log: list[tuple], max_steps: int, n_step: int) -> set[tuple[int, int]]:
    """Every row of the batch is what the oracle says of the start that the row itself names; returns the starts."""
    starts = set()
    for b in range(len(batch.state)):
        step, env = divmod(int(batch.obs[0][b, 0]), 100)
        assert max(0, len(log) - max_steps) <= step < len(log), "the oldest steps are overwritten"
        starts.add((step, env))
        obs, state, actions, *_ = log[step]
        total, discount, last = expected_window(log, step, env, n_step)
        next_obs, next_state = log[last][4], log[last][5]
        for got, wanted in zip(batch.obs + batch.next_obs, obs + next_obs, strict=True):
            np.testing.assert_array_equal(got[b], wanted[env].astype(np.float32))
        np.testing.assert_array_equal(batch.state[b], state[env].astype(np.float32))
        np.testing.assert_array_equal(batch.next_state[b], next_state[env].astype(np.float32))
        np.testing.assert_array_equal(batch.actions[b], np.concatenate([a[env] for a in actions]).astype(np.float32))
        assert float(batch.reward[b]) == pytest.approx(total, rel=1e-5, abs=1e-5)
        assert float(batch.discount[b]) == pytest.approx(discount, rel=1e-5)
    return starts


# ---- T14: n-step windows ---------------------------------------------------------------------------------------------
@settings(max_examples=120)
@given(st.data())
def test_windows_equal_the_oracle_at_any_time(data: st.DataObject) -> None:
    num_envs = data.draw(st.integers(1, 3), "environments")
    max_steps = data.draw(st.integers(1, 9), "capacity")
    n_step = data.draw(st.integers(1, 6), "n_step")
    ends = data.draw(st.lists(st.lists(st.sampled_from("...tx"), min_size=3, max_size=3), max_size=30), "ends")
    looks = data.draw(st.sets(st.integers(0, 30), max_size=4), "sampled after")
    rng = np.random.default_rng(len(ends))
    buffer, log, generator = make_buffer(num_envs, max_steps, n_step), [], torch.Generator().manual_seed(0)
    for step, kinds in enumerate(ends):
        terminated, truncated = (np.array([kind == letter for kind in kinds[:num_envs]]) for letter in "tx")
        reward = rng.normal(size=num_envs).astype(np.float32)
        log.append(transition(step, num_envs, reward, terminated, truncated))
        buffer.add(*log[-1])
        if step in looks or step == len(ends) - 1:
            check_batch(buffer.sample(40, generator), log, max_steps, n_step)


@pytest.mark.parametrize("steps", [1, 5, 7, 8, 30])
def test_every_stored_step_is_sampled_equally_often(steps: int) -> None:
    buffer, log, none = make_buffer(3, 7, 4), [], np.zeros(3, bool)
    for step in range(steps):
        log.append(transition(step, 3, np.ones(3, np.float32), none, none))
        buffer.add(*log[-1])
    batch = buffer.sample(6000, torch.Generator().manual_seed(0))
    marks, counts = np.unique(batch.obs[0][:, 0].numpy(), return_counts=True)
    assert len(marks) == 3 * min(steps, 7)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(check_batch(buffer.sample(400, torch.Generator().manual_seed(1)), log, 7, 4)) == len(marks)


def test_sampling_repeats_with_the_generator() -> None:
    buffer = filled_buffer(noisy_env(), 50, small_args())
    first, again, other = (buffer.sample(16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.state, again.state) and not torch.equal(first.state, other.state)


def test_one_step_windows_are_plain_transitions() -> None:
    buffer, log = make_buffer(2, 20, 1), []
    for step in range(12):
        terminated, truncated = np.array([step % 3 == 2, False]), np.array([False, step % 4 == 3])
        log.append(transition(step, 2, np.full(2, step, np.float32), terminated, truncated))
        buffer.add(*log[-1])
    batch = buffer.sample(200, torch.Generator().manual_seed(0))
    for b in range(200):
        step, env = divmod(int(batch.obs[0][b, 0]), 100)
        assert batch.reward[b] == step
        assert batch.discount[b] == (0 if log[step][6][env] else torch.tensor(GAMMA))
        assert batch.next_obs[0][b, 0] == 100 * step + env + 0.5


def test_a_window_never_enters_the_next_episode_or_another_environment() -> None:
    # environment e pays 10^e; a window that leaked would mix powers or count more than the steps left
    buffer, log = make_buffer(3, 40, 10, gamma=1.0), []
    for step in range(40):
        terminated = np.array([step % 4 == 3, step % 5 == 4, False])
        reward = np.array([1, 100, 10_000], np.float32)
        log.append(transition(step, 3, reward, terminated, np.zeros(3, bool)))
        buffer.add(*log[-1])
    batch = buffer.sample(500, torch.Generator().manual_seed(0))
    for b in range(500):
        step, env = divmod(int(batch.obs[0][b, 0]), 100)
        left = [4 - step % 4, 5 - step % 5, 10][env]
        assert float(batch.reward[b]) == [1, 100, 10_000][env] * min(left, 40 - step)


# ---- T13: aliasing ---------------------------------------------------------------------------------------------------
def test_rows_do_not_change_with_the_arrays_they_came_from() -> None:
    buffer, log, none = make_buffer(2, 6, 2), [], np.zeros(2, bool)
    shared = transition(0, 2, np.zeros(2, np.float32), none.copy(), none.copy())
    shared = tuple([p.astype(np.float32) for p in x] if isinstance(x, list) else np.array(x) for x in shared)
    for step in range(9):  # an environment that fills the same arrays again at every step
        rng = np.random.default_rng(step)
        ends = rng.random(2) < 0.3
        fresh = transition(step, 2, rng.normal(size=2).astype(np.float32), ends, none)
        for old, new in zip(shared, fresh):
            for target, source in zip(old, new) if isinstance(old, list) else [(old, new)]:
                target[...] = source
        log.append(fresh)
        buffer.add(*shared)
    check_batch(buffer.sample(200, torch.Generator().manual_seed(0)), log, 6, 2)


def test_a_batch_does_not_change_with_the_buffer() -> None:
    buffer, none = make_buffer(2, 4, 2), np.zeros(2, bool)
    for step in range(4):
        buffer.add(*transition(step, 2, np.ones(2, np.float32), none, none))
    batch = buffer.sample(20, torch.Generator().manual_seed(0))
    before = [x.clone() for x in (batch.state, batch.reward, batch.actions, *batch.obs, *batch.next_obs)]
    for step in range(4, 12):
        buffer.add(*transition(step, 2, np.zeros(2, np.float32), none, none))
    after = [batch.state, batch.reward, batch.actions, *batch.obs, *batch.next_obs]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


# ---- T11: bootstrapping ----------------------------------------------------------------------------------------------
def reward_one_buffer(length: int, n_step: int, terminates: bool, steps: int = 120) -> hm.ReplayBuffer:
    """Reward 1 for ever in episodes of `length` steps; the observation is the time within the episode."""
    env = shape_env(2)
    buffer = QuickBuffer(env, steps, n_step, GAMMA, CPU)
    for step in range(steps):
        time = np.array([step, step + length // 2]) % length
        ends, never = time == length - 1, np.zeros(2, bool)
        now, after = (np.tile(t[:, None], (1, 3)).astype(np.float32) for t in (time, time + 1))
        obs, next_obs = [now[:, :2], now[:, :1]], [after[:, :2], after[:, :1]]
        actions = [np.zeros((2, dim), np.float32) for dim in (1, 2)]
        kinds = (ends, never) if terminates else (never, ends)
        buffer.add(obs, now, actions, np.ones(2, np.float32), next_obs, after, *kinds)
    return buffer


@pytest.mark.parametrize("n_step", [1, 3, 10])
@pytest.mark.parametrize("terminates", [True, False])
def test_truncation_bootstraps_and_termination_does_not(n_step: int, terminates: bool) -> None:
    batch = reward_one_buffer(6, n_step, terminates).sample(500, torch.Generator().manual_seed(0))
    length = batch.next_state[:, 0] - batch.state[:, 0]
    ended = batch.next_state[:, 0] == 6
    assert ended.any() and (length <= n_step).all()
    torch.testing.assert_close(batch.reward, (1 - GAMMA**length) / (1 - GAMMA))
    expected = torch.where(ended & terminates, 0.0, GAMMA**length)
    torch.testing.assert_close(batch.discount, expected)


@pytest.mark.parametrize("n_step", [1, 3, 10])
def test_value_of_reward_one_for_ever_under_truncation(n_step: int) -> None:
    # a time limit that the agent does not see: one state, whose value knows nothing of the limit
    buffer, value, generator = reward_one_buffer(6, n_step, terminates=False), 0.0, torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = buffer.sample(64, generator)
        value = float((batch.reward + batch.discount * value).mean())
    assert value == pytest.approx(1 / (1 - GAMMA), rel=1e-4)


@pytest.mark.parametrize("n_step", [1, 3, 10])
def test_value_of_reward_one_until_termination(n_step: int) -> None:
    length = 6
    buffer, values = reward_one_buffer(length, n_step, terminates=True), torch.zeros(length + 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = buffer.sample(600, generator)
        now, after = batch.state[:, 0].long(), batch.next_state[:, 0].long()
        target = batch.reward + batch.discount * values[after]
        values = torch.stack([target[now == t].mean() if t < length else values[t] for t in range(length + 1)])
    left = length - torch.arange(length)
    torch.testing.assert_close(values[:length], (1 - GAMMA**left) / (1 - GAMMA), rtol=1e-4, atol=0)


# ---- storage ---------------------------------------------------------------------------------------------------------
def stored_bytes(buffer: hm.ReplayBuffer) -> int:
    return sum(rows.untyped_storage().nbytes() for rows in buffer.data.values())


def test_memory_grows_with_use_up_to_the_maximum() -> None:
    buffer, none = make_buffer(2, 1_000_000, 3, kind=hm.ReplayBuffer), np.zeros(2, bool)
    assert stored_bytes(buffer) == 0
    row = 4 * 2 * sum(hm.ReplayBuffer.row_widths(shape_env(2)).values())
    sizes = []
    for step in range(2100):
        buffer.add(*transition(step, 2, np.ones(2, np.float32), none, none))
        assert stored_bytes(buffer) <= row * max(2 * (step + 1), hm.ReplayBuffer.FIRST_STEPS)
        sizes.append(stored_bytes(buffer))
    assert len(set(sizes)) == 3
    full = make_buffer(2, 11, 3)
    for step in range(40):
        full.add(*transition(step, 2, np.ones(2, np.float32), none, none))
    assert stored_bytes(full) == row * 11


def test_row_widths_are_those_of_the_stored_parts() -> None:
    assert hm.ReplayBuffer.row_widths(shape_env(5)) == dict(
        obs=3, state=3, actions=3, reward=1, next_obs=3, next_state=3, terminated=1, ended=1
    )


@pytest.mark.parametrize("steps", [0, 3, 5, 13])
def test_a_restored_buffer_goes_on_as_the_saved_one(steps: int) -> None:
    rng = np.random.default_rng(0)
    saved, restored = make_buffer(3, 5, 3), make_buffer(3, 5, 3)

    def step_of(step: int) -> tuple:
        kinds = rng.integers(0, 5, 3)
        return transition(step, 3, rng.normal(size=3).astype(np.float32), kinds == 0, kinds == 1)

    for step in range(steps):
        saved.add(*step_of(step))
    state = saved.state_dict()
    restored.load_state_dict({**state, "data": {key: rows.clone() for key, rows in state["data"].items()}})
    for step in range(steps, steps + 9):
        added = step_of(step)
        for buffer in (saved, restored):
            buffer.add(*added)
        batches = [buffer.sample(20, torch.Generator().manual_seed(step)) for buffer in (saved, restored)]
        for a, b in zip(*batches, strict=True):
            for x, y in zip(a, b) if isinstance(a, list) else [(a, b)]:
                assert torch.equal(x, y)
