"""Records what HARL's own HAPPO, HATRPO, MAPPO and V critic make of one rollout: `onpolicy_harl.npz`.

HARL (https://github.com/PKU-MARL/HARL, commit d539bad) is imported from a clone, none of it is kept here:

    git clone https://github.com/PKU-MARL/HARL && git -C HARL checkout d539bad
    python tests/data/make_onpolicy_harl.py HARL

Its update functions need of gym only the spaces, and of its environments only names; both are put in place below.

The file holds, under the names that our networks give their parameters: the rollout (T, E, .), the weights before, and
for each algorithm the returns (T, E) and the weights after one round of updates, agents in the order `order`; under
`<algorithm>_minibatches` the same in two minibatches, every shuffle of rows being `permutation`.
"""

import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # finds experiments

from experiments import harl_driver

T, E, N, O, A, S = 12, 6, 3, 4, 2, 5
ORDER = [2, 0, 1]
SETTINGS: dict[str, Any] = dict(
    hidden_sizes=[16, 16],
    activation_func="relu",
    use_feature_normalization=True,
    initialization_method="orthogonal_",
    gain=0.01,
    use_naive_recurrent_policy=False,
    use_recurrent_policy=False,
    recurrent_n=1,
    data_chunk_length=10,
    lr=5e-4,
    critic_lr=5e-4,
    opti_eps=1e-5,
    weight_decay=0,
    std_x_coef=1,
    std_y_coef=0.5,
    ppo_epoch=5,
    critic_epoch=5,
    use_clipped_value_loss=True,
    clip_param=0.05,
    actor_num_mini_batch=1,
    critic_num_mini_batch=1,
    entropy_coef=0.01,
    value_loss_coef=1,
    use_max_grad_norm=True,
    max_grad_norm=1.0,
    use_gae=True,
    gamma=0.99,
    gae_lambda=0.95,
    use_huber_loss=True,
    use_policy_active_masks=True,
    huber_delta=1.0,
    action_aggregation="prod",
    kl_threshold=0.01,
    ls_step=10,
    accept_ratio=0.5,
    backtrack_coeff=0.8,
    episode_length=T,
    n_rollout_threads=E,
    use_proper_time_limits=True,
)


def import_harl(folder: Path) -> None:
    """Make `import harl` work without its environments and with gymnasium's spaces."""
    sys.path.insert(0, str(folder))
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in ("gym", "harl.envs", "harl.envs.env_wrappers")}
    modules["gym"].spaces = gymnasium.spaces
    modules["harl.envs"].LOGGER_REGISTRY = {}
    modules["harl.envs.env_wrappers"].ShareSubprocVecEnv = modules["harl.envs.env_wrappers"].ShareDummyVecEnv = None
    sys.modules |= modules | {"gym.spaces": gymnasium.spaces}


def ours(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, np.ndarray]:
    """HARL's weights by our names, for the record."""
    named = harl_driver.named_as_ours(weights, "net.0" if "critic" in prefix else "body")
    return {f"{prefix}/{name}": value.detach().numpy().copy() for name, value in named.items()}


def main() -> None:
    import_harl(Path(sys.argv[1]))
    from harl.algorithms.actors.happo import HAPPO  # pyright: ignore[reportMissingImports]
    from harl.algorithms.actors.hatrpo import HATRPO  # pyright: ignore[reportMissingImports]
    from harl.algorithms.actors.mappo import MAPPO  # pyright: ignore[reportMissingImports]
    from harl.algorithms.critics.v_critic import VCritic  # pyright: ignore[reportMissingImports]
    from harl.common.buffers import on_policy_actor_buffer, on_policy_critic_buffer_ep  # pyright: ignore
    from harl.common.valuenorm import ValueNorm  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def space(dim: int) -> gymnasium.spaces.Box:
        return gymnasium.spaces.Box(-np.inf, np.inf, (dim,), np.float32)

    obs, actions, state, reward = normal(N, T, E, O), 0.4 * normal(N, T, E, A), normal(T + 1, E, S), 5 * normal(T, E)
    terminated, truncated = np.zeros((2, T, E), np.float32)
    terminated[[3, 11], [0, 3]] = 1
    truncated[[5, 11, 0], [1, 2, 4]] = 1
    warm_up = 4 * normal(3, 20, 1) + 2  # what the value statistics have seen before
    record: dict[str, np.ndarray] = dict(obs=obs, actions=actions, state=state, reward=reward, warm_up=warm_up)
    record |= dict(terminated=terminated, truncated=truncated, order=np.array(ORDER))
    unused, ones = np.zeros((T * E, 1, 16), np.float32), np.ones((T * E, 1), np.float32)

    def log_prob(actor: Any, agent: int) -> np.ndarray:
        flat = (obs[agent].reshape(-1, O), unused, actions[agent].reshape(-1, A), ones)
        return actor.evaluate_actions(*flat)[0].detach().numpy().reshape(T, E, A)

    start = [HAPPO(SETTINGS, space(O), space(A)).actor.state_dict() for _ in range(N)]
    for weights in start:
        weights["act.action_out.fc_mean.weight"] *= 30  # so that the policies differ and the ratios move
    critic_start = VCritic(SETTINGS, space(S)).critic.state_dict()
    for i, weights in enumerate(start):
        record |= ours(weights, f"before/actor_{i}")
    record |= ours(critic_start, "before/critic")

    permutation = torch.from_numpy(np.random.default_rng(1).permutation(T * E))
    record["permutation"] = permutation.numpy()
    torch.randperm = lambda n: permutation
    algorithms = {"happo": HAPPO, "hatrpo": HATRPO, "mappo": MAPPO}
    names = (*algorithms, "mappo_shared", *(f"{name}_minibatches" for name in algorithms))
    for name in names:
        shared, parts = name == "mappo_shared", 2 if name.endswith("minibatches") else 1
        algorithm = algorithms[name.partition("_")[0]]
        settings = SETTINGS | dict(actor_num_mini_batch=parts, critic_num_mini_batch=parts)
        actors = [algorithm(settings, space(O), space(A)) for _ in range(1 if shared else N)]
        for actor, weights in zip(actors, start):
            actor.actor.load_state_dict(weights)
        critic, norm = VCritic(settings, space(S)), ValueNorm(1)
        critic.critic.load_state_dict(critic_start)
        for targets in warm_up:
            norm.update(targets)

        buffer = on_policy_critic_buffer_ep.OnPolicyCriticBufferEP(SETTINGS, space(S))
        buffer.share_obs[:], buffer.rewards[:] = state, reward[..., None]
        buffer.masks[1:] = 1 - np.maximum(terminated, truncated)[..., None]
        buffer.bad_masks[1:] = 1 - truncated[..., None]
        every = ((T + 1) * E, 1)
        with torch.no_grad():
            flat = (state.reshape(-1, S), np.zeros((*every, 16), np.float32), np.ones(every, np.float32))
            values = critic.get_values(*flat)[0].numpy().reshape(T + 1, E, 1)
        buffer.value_preds[:-1] = values[:-1]
        buffer.compute_returns(values[-1], norm)
        record[f"{name}/returns"] = buffer.returns[:-1, :, 0].copy()
        advantages = buffer.returns[:-1] - norm.denormalize(buffer.value_preds[:-1])

        buffers = []
        for i in range(N):
            rollout = on_policy_actor_buffer.OnPolicyActorBuffer(SETTINGS, space(O), space(A))
            rollout.obs[:-1], rollout.actions[:] = obs[i], actions[i]
            rollout.action_log_probs[:] = log_prob(actors[0 if shared else i], i)
            buffers.append(rollout)
        if shared:
            actors[0].share_param_train(buffers, advantages.copy(), N, "EP")
        else:
            factor = np.ones((T, E, 1), np.float32)
            for i in range(N) if algorithm is MAPPO else ORDER:
                if algorithm is not MAPPO:
                    buffers[i].update_factor(factor)
                before = log_prob(actors[i], i)
                actors[i].train(buffers[i], advantages.copy(), "EP")
                factor = factor * np.exp(log_prob(actors[i], i) - before).prod(-1, keepdims=True)
        critic.train(buffer, norm)
        for i, actor in enumerate(actors):
            record |= ours(actor.actor.state_dict(), f"{name}/actor_{i}")
        record |= ours(critic.critic.state_dict(), f"{name}/critic")
    np.savez_compressed(Path(__file__).with_name("onpolicy_harl.npz"), **record)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
