"""`--sim mujoco_warp` against MuJoCo, on whatever device there is. Skipped where mujoco-warp is not installed.

The first step compiles some fifty kernels: one to two minutes on a CPU, once a machine.
"""

import sys

import numpy as np
import pytest
from bidex_helpers import EGGS, assert_same, random_actions

from common.bidexhands import BiDexHandsVecEnv


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(ImportError, match="pip install 'mujoco-warp>=3.12,<4'") as error:
        BiDexHandsVecEnv("ShadowHandOver", 1, sim="mujoco_warp")
    assert "\n" not in str(error.value)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "scenario", ["ShadowHandOver", "ShadowHandCatchAbreast", "ShadowHandLiftUnderarm", "ShadowHandDoorOpenInward"]
)
def test_equals_mujoco_over_a_few_steps(scenario: str) -> None:
    """10 substeps; an episode end in between starts the same episode in both."""
    pytest.importorskip("mujoco_warp")
    ours, warp = BiDexHandsVecEnv(scenario, 2), BiDexHandsVecEnv(scenario, 2, sim="mujoco_warp")
    ours.max_episode_steps = warp.max_episode_steps = 3
    rng = np.random.default_rng(0)
    (_, state_a), (_, state_b) = ours.reset(3), warp.reset(3)
    np.testing.assert_allclose(state_a, state_b, atol=1e-6)
    for _ in range(5):
        actions = random_actions(ours, rng)
        a, b = ours.step(actions), warp.step(actions)
        poses = np.s_[:, 72:137]  # the force entries follow contacts, which tip over sooner
        np.testing.assert_allclose(a.final_state[poses], b.final_state[poses], atol=5e-3)
        np.testing.assert_allclose(a.final_state[:, -19:], b.final_state[:, -19:], atol=5e-3)
        np.testing.assert_allclose(a.reward, b.reward, atol=1e-3)
        assert np.median(np.abs(a.final_state - b.final_state)) < 1e-4
        np.testing.assert_array_equal(a.truncated, b.truncated)
        np.testing.assert_array_equal(a.terminated, b.terminated)
    assert a.obs[0].shape == b.obs[0].shape


@pytest.mark.timeout(900)
def test_saved_state_continues_bit_exactly_on_the_cpu() -> None:
    warp = pytest.importorskip("warp")
    pytest.importorskip("mujoco_warp")
    warp.init()
    if warp.get_device().is_cuda:
        pytest.skip("sums over contacts run in any order on a GPU")
    env = BiDexHandsVecEnv(EGGS[0], 2, sim="mujoco_warp")
    env.max_episode_steps = 4
    env.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        env.step(random_actions(env, rng))
    saved = env.get_state()
    steps = [random_actions(env, rng) for _ in range(4)]
    expected = [env.step(actions) for actions in steps]
    fresh = BiDexHandsVecEnv(EGGS[0], 2, sim="mujoco_warp")
    fresh.max_episode_steps = 4
    for copy in (fresh, env):
        copy.set_state(saved)
        for actions, result in zip(steps, expected, strict=True):
            assert_same(copy.step(actions), result)
