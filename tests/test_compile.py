"""`--compile`: what the scripts compile where there is CUDA, with a backend that needs neither a GPU nor a compiler."""

import functools
import inspect
import textwrap
from typing import Any

import onpolicy_helpers
import pytest
import torch
from helpers import filled_buffer, noisy_env
from torch import nn

import his_mamujoco
from baselines import facmac, happo, hatrpo, ppo, sqddpg
from common.device import keep_graphs
from common.streams import Streams

CPU = torch.device("cpu")
CONDITION = 'if args.compile and device.type == "cuda":\n'
OFF_POLICY = {
    "his": (his_mamujoco, {}),
    "his-local": (his_mamujoco, {"credit": "local"}),
    "his-action": (his_mamujoco, {"credit_actions": "policy"}),
    "facmac": (facmac, {}),
    "sqddpg": (sqddpg, {}),
}
ON_POLICY = {"happo": happo, "hatrpo": hatrpo, "ppo": ppo}


def learners(monkeypatch: pytest.MonkeyPatch, module: Any, env: Any, args: Any) -> list[Any]:
    """Two equal learners, of which the second has compiled what the script compiles, by the script's own lines."""
    eager, compiled = (module.Learner(env, Streams(0, CPU), args, CPU) for _ in range(2))
    keep_graphs()
    # AOTAutograd makes the forward and backward graphs that any backend has, and runs them without compiling.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    lines = inspect.getsource(module.Learner.__init__).partition(CONDITION)[2]
    block = [line for line in lines.splitlines() if line.startswith(" " * 12)]
    assert any("compile()" in line for line in block)
    exec(textwrap.dedent("\n".join(block)), {"self": compiled})
    return [eager, compiled]


def networks(learner: Any) -> list[nn.Module]:
    return [*learner.actors, *(learner.critics if hasattr(learner, "critics") else [learner.critic])]


def assert_same_weights(eager: Any, compiled: Any) -> None:
    """A compiled module keeps the names of its parameters."""
    for one, other in zip(networks(eager), networks(compiled), strict=True):
        torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_a_compiled_update_of_a_replay_buffer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, values = OFF_POLICY[name]
    env = noisy_env(action_dims=(2, 2))
    args = module.Args(**(dict(num_envs=3, hidden_sizes=(8, 8), batch_size=16, n_step=1) | values))
    both = learners(monkeypatch, module, env, args)
    more = {"diagnose": True} if "diagnose" in inspect.signature(module.Learner.update).parameters else {}
    for learner in both:
        buffer = filled_buffer(env, 40, args, kind=module.ReplayBuffer)
        learner.update(buffer)
        metrics = learner.update(buffer, **more)  # the second one updates the actors
        assert all(torch.isfinite(value).all() for value in metrics.values())
    assert_same_weights(*both)


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_compiled_round_of_a_rollout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ON_POLICY[name]
    env = onpolicy_helpers.Errand(6)
    env = ppo.JointAgent(env) if name == "ppo" else env
    args = onpolicy_helpers.small_args(module)
    both = learners(monkeypatch, module, env, args)
    for learner in both:
        metrics = learner.update(onpolicy_helpers.random_rollout(module, env, args))
        assert all(torch.isfinite(value).all() for value in metrics.values())
    assert_same_weights(*both)
