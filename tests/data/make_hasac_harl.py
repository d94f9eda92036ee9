"""Records what HARL's own HASAC makes of two batches: `hasac_harl.npz`.

HARL (https://github.com/PKU-MARL/HARL, commit d539bad) is imported from a clone, none of it is kept here:

    git clone https://github.com/PKU-MARL/HARL && git -C HARL checkout d539bad
    python tests/data/make_hasac_harl.py HARL

What runs is its `OffPolicyHARunner.train`, twice, on a stand-in for the runner that holds its own actors and critic.
The noise of every sample is handed out from arrays: `next` for the critic's target, `before` for an agent's sample
before its step (HARL draws it twice, we once), `after` for the one that the agents still to come see.

The file holds, under the names that our networks give their parameters: the batches, the noise, the weights before, and
after each update the weights and log temperatures; of each update also the critic's target, all losses and the
log-probabilities of the samples before the steps.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments import harl_driver

B, N, O, A, S, UPDATES = 16, 3, 4, 2, 5, 2
ORDERS = [[2, 0, 1], [1, 2, 0]]
SETTINGS: dict[str, Any] = dict(
    hidden_sizes=[16, 16],
    activation_func="relu",
    final_activation_func="tanh",
    lr=5e-4,
    critic_lr=1e-3,
    polyak=0.005,
    gamma=0.99,
    auto_alpha=True,
    alpha=0.2,
    alpha_lr=3e-4,
    use_policy_active_masks=True,
    use_huber_loss=False,
    huber_delta=10.0,
    use_proper_time_limits=True,
)


def ours(parameters: dict[str, torch.Tensor], prefix: str, names: dict[str, str]) -> dict[str, np.ndarray]:
    """HARL's parameters under our names: `names` maps beginnings of theirs to ours."""
    out = {}
    for name, value in parameters.items():
        theirs = next(start for start in names if name.startswith(start))
        out[f"{prefix}/{names[theirs]}{name.removeprefix(theirs)}"] = value.detach().numpy().copy()
    return out


def weights(runner: Any) -> dict[str, np.ndarray]:
    record: dict[str, np.ndarray] = {}
    for i, actor in enumerate(runner.actor):
        state = dict(actor.actor.state_dict())
        for kind in ("weight", "bias"):  # our head holds both of theirs, the means first
            heads = [state.pop(f"{layer}.{kind}") for layer in ("mu_layer", "log_std_layer")]
            record[f"actor_{i}/head.{kind}"] = torch.cat(heads).numpy().copy()
        record |= ours(state, f"actor_{i}", {"net.mlp.": "body.", "net.": "body."})
    for prefix, twins in (("critic", ("critic", "critic2")), ("target", ("target_critic", "target_critic2"))):
        for name, twin in zip(("q1.", "q2."), twins):
            state = getattr(runner.critic, twin).state_dict()
            record |= ours(state, prefix, {"mlp.mlp.": name, "mlp.": name})
    log_alpha = [*runner.log_alpha, runner.critic.log_alpha]
    record["log_alpha"] = torch.cat([x.detach().reshape(1) for x in log_alpha]).numpy()
    return record


def main() -> None:
    harl_driver.import_base_runner(sys.argv[1], "off_policy_base_runner")
    from harl.algorithms.actors.hasac import HASAC  # pyright: ignore[reportMissingImports]
    from harl.algorithms.critics.soft_twin_continuous_q_critic import (  # pyright: ignore[reportMissingImports]
        SoftTwinContinuousQCritic,
    )
    from harl.runners.off_policy_ha_runner import OffPolicyHARunner  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    spaces = [Box(-np.inf, np.inf, (dim,), np.float32) for dim in (O, S)]
    action_space = [Box(-1.0, 1.0, (A,), np.float32)] * N
    actors = [HASAC(SETTINGS, spaces[0], action_space[i]) for i in range(N)]
    log_alpha = [torch.zeros(1, requires_grad=True) for _ in range(N)]
    runner = SimpleNamespace(
        actor=actors,
        critic=SoftTwinContinuousQCritic(SETTINGS, spaces[1], action_space, N, "EP"),
        log_alpha=log_alpha,
        alpha=[x.detach().exp() for x in log_alpha],
        alpha_optimizer=[torch.optim.Adam([x], lr=SETTINGS["alpha_lr"]) for x in log_alpha],
        target_entropy=[-float(A)] * N,
        args={"algo": "hasac"},
        algo_args={"algo": SETTINGS},
        **dict(num_agents=N, total_it=0, policy_freq=1, fixed_order=False, state_type="EP"),
        **dict(value_normalizer=None, device=torch.device("cpu")),
    )
    parts = dict(obs=normal(UPDATES, N, B, O), next_obs=normal(UPDATES, N, B, O), state=normal(UPDATES, B, S))
    parts |= dict(next_state=normal(UPDATES, B, S), actions=np.tanh(normal(UPDATES, N, B, A)))
    parts |= dict(reward=normal(UPDATES, B, 1), gamma=0.99 ** rng.integers(1, 11, (UPDATES, B, 1)).astype(np.float32))
    parts |= dict(terminated=(rng.random((UPDATES, B, 1)) < 0.3).astype(np.float32))
    noise = {phase: normal(UPDATES, N, B, A) for phase in ("next", "before", "after")}
    record: dict[str, np.ndarray] = {f"batch/{k}": v for k, v in parts.items()} | {"orders": np.array(ORDERS)}
    record |= {f"noise/{k}": v for k, v in noise.items()} | {f"start/{k}": v for k, v in weights(runner).items()}

    backward, mse_loss = torch.Tensor.backward, torch.nn.functional.mse_loss
    for update, order in enumerate(ORDERS):
        part = {key: value[update] for key, value in parts.items()}
        valid = np.ones((N, B, 1), np.float32)
        batch = (part["state"], part["obs"], part["actions"], None, part["reward"], part["terminated"], valid)
        batch += (part["terminated"], part["next_state"], part["next_obs"], None, part["gamma"].astype(np.float32))
        runner.buffer = SimpleNamespace(sample=lambda batch=batch: batch)
        draws = [noise["next"][update, i] for i in range(N)] + [noise["before"][update, i] for i in range(N)]
        for i in order:
            draws += [noise["before"][update, i], noise["after"][update, i]]
        handed_out, losses, targets, log_probs = iter(draws), [], [], []

        def rsample(self: Any, shape: Any = (), handed_out: Any = handed_out) -> torch.Tensor:
            return self.loc + self.scale * torch.as_tensor(next(handed_out))

        def noted_backward(self: torch.Tensor, *args: Any, losses: Any = losses, **named: Any) -> None:
            losses.append(float(self.detach()))
            backward(self, *args, **named)

        def noted_mse(value: torch.Tensor, target: torch.Tensor, targets: Any = targets) -> torch.Tensor:
            targets.append(target.detach().numpy().copy())
            return mse_loss(value, target)

        def noted(function: Any, log_probs: Any = log_probs) -> Any:
            def call(*args: Any) -> Any:
                result = function(*args)
                log_probs.append(result[1].detach().numpy()[:, 0].copy())
                return result

            return call

        torch.distributions.Normal.rsample = rsample  # pyright: ignore[reportAttributeAccessIssue]
        torch.Tensor.backward, torch.nn.functional.mse_loss = noted_backward, noted_mse
        np.random.permutation = lambda n, order=order: np.array(order)
        originals = [actor.get_actions_with_logprobs for actor in actors]
        for actor in actors:
            actor.get_actions_with_logprobs = noted(actor.get_actions_with_logprobs)
        OffPolicyHARunner.train(runner)
        for actor, original in zip(actors, originals):
            actor.get_actions_with_logprobs = original
        assert next(handed_out, None) is None and len(losses) == 2 * N + 2
        record |= {f"update_{update}/{key}": value for key, value in weights(runner).items()}
        actor_losses = dict(zip(order, losses[1 : 2 * N : 2]))
        record[f"update_{update}/target"] = targets[0][:, 0]
        record[f"update_{update}/critic_loss"] = np.array(losses[0])
        record[f"update_{update}/actor_losses"] = np.array([actor_losses[i] for i in range(N)])
        record[f"update_{update}/log_probs"] = np.stack(log_probs[N : 2 * N])
    np.savez_compressed(Path(__file__).with_name("hasac_harl.npz"), **record)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
