"""How fast an update is: `python -m experiments.update_speed --naive --json results/update_speed.json`.

Times one full update (replay sample, critic, actors, temperatures, targets) of HASAC and of HIS with one and three
coalitions; with --naive also of HIS written down as the paper prints it, with --harl CHECKOUT also of HARL's HASAC as
shipped. All are measured in turns in one process, forwards and backwards in alternate rounds: on a shared machine
absolute times wander, and a ratio is the median over rounds of the ratio within a round. The floor is the time that
the matrix products alone would take: counted FLOP by the measured rate of a 1000 x 256 x 256 product.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common import runlog, shapley
from common.mamujoco import SCENARIOS
from common.streams import Streams
from common.vecenv import VecEnv
from experiments import harl_driver
from experiments.command_line import Parser

# Experiments start scripts as processes and import none, except here: variants can only be timed in turns within one
# process, so the functions below import his_mamujoco when they run.
if TYPE_CHECKING:
    from his_mamujoco import Args, Learner, ReplayBuffer

CPU = torch.device("cpu")
NUM_ENVS = 10
PRECISIONS = ("highest", "medium")
GEMM = (1000, 256, 256)  # rows, inner and outer size of the product that most of the arithmetic consists of
HASAC, NAIVE, HARL = "HASAC", "HIS M=1 naive", "HARL HASAC"


# ---- the paper, written down plainly ---------------------------------------------------------------------------------
def widths_of(learner: "Learner") -> Tensor:
    """Action dims of the agents, (N,)."""
    return torch.tensor([actor.head.out_features // 2 for actor in learner.actors])


def naive_shapley(learner: "Learner", state: Tensor, actions: Tensor, agent: int, ranks: Tensor) -> Tensor:
    """Eq. (6)-(8) for one agent, (B,): two evaluations of the critic for each coalition."""
    import his_mamujoco as his

    phi, agent_of_slot = torch.zeros(len(state)), torch.arange(ranks.shape[-1]).repeat_interleave(widths_of(learner))
    for rank in ranks:
        position = rank[:, agent : agent + 1]
        with_agent = torch.where((rank <= position)[:, agent_of_slot], actions, 0.0)
        without_agent = torch.where((rank < position)[:, agent_of_slot], actions, 0.0)
        phi += his.min_q(learner.critic, state, with_agent) - his.min_q(learner.critic, state, without_agent)
    return phi / len(ranks)


def naive_history(mean: Tensor, log_std: Tensor, actions: Tensor, args: "Args") -> Tensor:
    """BC(o_i, a_i^D) of one agent, (B,): Eq. (26)-(31), then Eq. (4), (5) with scipy's maximum-likelihood lambda."""
    u = torch.atanh(actions.clamp(-1 + 1e-6, 1 - 1e-6))
    log_density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u).sum(-1)
    floor = log_density.detach().max() - args.beta
    log_density = torch.where(log_density < floor, floor + F.elu(log_density - floor), log_density)
    x = log_density - (2 * (np.log(2) - u - F.softplus(-2 * u))).sum(-1)
    x_min = x.detach().min()
    y = x - x_min + args.xi
    lam = scipy.stats.boxcox_normmax(y.detach().double().numpy(), method="mle")
    lam = float(np.clip(lam, args.boxcox_low, args.boxcox_high))
    return (y.log() if lam == 0 else (y**lam - 1) / lam) + x_min


def naive_update(learner: "Learner", buffer: "ReplayBuffer") -> list[Tensor]:
    """One update by Algorithm 1 with nothing arranged for speed; returns the agents' losses.

    The mathematics is that of `Learner.update`. The credit is computed inside the agent loop, the critic's parameters
    collect gradients in the actors' steps, and an actor is evaluated anew for the action before its step, for the step
    and for the action after it.
    """
    import his_mamujoco as his

    args, streams, critic, actors = learner.args, learner.streams, learner.critic, list(learner.actors)
    alpha = learner.log_alpha.detach().exp()
    batch = buffer.sample(args.batch_size, streams.minibatch)
    target = his.critic_target(batch, learner.actors, learner.target_critic, alpha[-1], streams.policy)
    his.update_critic(critic, learner.critic_optimizer, batch, target)

    historical = batch.actions.split(widths_of(learner).tolist(), dim=1)
    losses, log_probs = [torch.empty(0)] * len(actors), [torch.empty(0)] * len(actors)
    with torch.no_grad():
        actions = [his.sample_action(*actor(obs), streams.policy).action for actor, obs in zip(actors, batch.obs)]
    for agent in torch.randperm(len(actors), generator=streams.agent_order).tolist():
        mean, log_std = actors[agent](batch.obs[agent])
        actions[agent], log_prob, _ = his.sample_action(mean, log_std, streams.policy)
        q = his.min_q(critic, batch.state, torch.cat(actions, dim=1))
        with torch.no_grad():
            size = args.num_coalitions, len(batch.state), len(actors)
            ranks = shapley.draw_ranks(*size, args.shapley, streams.coalitions)
            phi = naive_shapley(learner, batch.state, batch.actions, agent, ranks)
        history = naive_history(mean, log_std, historical[agent], args)
        loss = -(q - alpha[agent] * log_prob).mean() - (history * phi).mean()  # Eq. (10)
        learner.actor_optimizers[agent].zero_grad()
        loss.backward()
        learner.actor_optimizers[agent].step()
        losses[agent], log_probs[agent] = loss.detach(), log_prob.detach()
        with torch.no_grad():
            mean, log_std = actors[agent](batch.obs[agent])
            actions[agent] = his.sample_action(mean, log_std, streams.policy).action

    if args.auto_alpha:
        log_prob_rows = torch.stack(log_probs)
        his.update_temperature(learner.log_alpha, learner.alpha_optimizer, log_prob_rows, learner.target_entropy)
    his.update_target(critic, learner.target_critic, args.tau)
    return losses


# ---- what is timed ---------------------------------------------------------------------------------------------------
def make_args(scenario: str, batch_size: int = 0, **changes: Any) -> "Args":
    """The paper's values for `scenario`, with everything updated in every update; batch_size 0 is the paper's."""
    import his_mamujoco as his

    args = replace(his.Args(), scenario=scenario, policy_frequency=1, **his.PRESETS[scenario])
    return replace(args, batch_size=batch_size or args.batch_size, **changes)


def filled_buffer(args: "Args", env: VecEnv, rows: int) -> "ReplayBuffer":
    """A replay buffer with at least `rows` random transitions of 1000-step episodes."""
    import his_mamujoco as his

    rng, steps = np.random.default_rng(0), -(-rows // env.num_envs)
    buffer = his.ReplayBuffer(env, steps, args.n_step, args.gamma, CPU)
    buffer.grow(steps)
    for key, values in buffer.data.items():
        shape = tuple(values.shape)
        noise = rng.uniform(-1, 1, shape) if key == "actions" else rng.standard_normal(shape, dtype=np.float32)
        values.copy_(torch.from_numpy(noise))
    buffer.data["terminated"].zero_()
    step = torch.arange(steps).repeat_interleave(env.num_envs)
    buffer.data["ended"].copy_((step % 1000 == 999)[:, None])
    buffer.size = steps
    return buffer


def updates_of(scenario: str, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The updates to time by name, each with its own networks."""
    import his_mamujoco as his

    env = his.make_env(make_args(scenario), NUM_ENVS)
    buffer = filled_buffer(make_args(scenario), env, options.rows)

    def learner(**changes: Any) -> "Learner":
        return his.Learner(env, Streams(1, CPU), make_args(scenario, options.batch_size, **changes), CPU)

    hasac, one, three = learner(credit="none"), learner(num_coalitions=1), learner(num_coalitions=3)
    updates: dict[str, Callable[[], Any]] = {
        HASAC: lambda: hasac.update(buffer),
        "HIS M=1": lambda: one.update(buffer),
        "HIS M=3": lambda: three.update(buffer),
    }
    if options.naive:
        plain = learner(num_coalitions=1)
        updates[NAIVE] = lambda: naive_update(plain, buffer)
    if options.harl:
        sizes = dict(rows=options.rows, threads=options.threads, batch_size=options.batch_size)
        updates[HARL] = harl_driver.hasac_update(options.harl, scenario, env, **sizes)
    return updates


def gemm_step(products: int = 10) -> Callable[[], None]:
    """`products` matrix products of size GEMM."""
    rows, inner, outer = GEMM
    a, b, out = torch.randn(rows, inner), torch.randn(inner, outer), torch.empty(rows, outer)

    def step() -> None:
        for _ in range(products):
            torch.mm(a, b, out=out)

    return step


def milliseconds(step: Callable[[], Any], precision: str) -> tuple[float, float]:
    """Wall and CPU time of one call at a matmul precision."""
    torch.set_float32_matmul_precision(precision)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def gigaflop(step: Callable[[], Any]) -> float:
    """Floating point operations of the matrix products of one call, 2 a multiply-add, in units of 10^9."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


# ---- measurement -----------------------------------------------------------------------------------------------------
def measure(scenario: str, options: argparse.Namespace) -> dict[str, Any]:
    """All times of one scenario: {"gemm_gflops": {precision: rate}, "updates": [one row an update and precision]}."""
    products = 10
    updates = updates_of(scenario, options)
    work = {name: gigaflop(step) for name, step in updates.items()}  # the first, slow call of each too
    steps = updates | {"GEMM": gemm_step(products)}
    cases = [(name, precision) for name in steps for precision in options.matmul_precision]
    times: dict[tuple[str, str], list[tuple[float, float]]] = {case: [] for case in cases}
    for name, precision in cases:
        milliseconds(steps[name], precision)
    for turn in range(options.rounds):
        for name, precision in cases if turn % 2 == 0 else reversed(cases):
            times[name, precision].append(milliseconds(steps[name], precision))

    def median(case: tuple[str, str], clock: int) -> float:
        return statistics.median(sample[clock] for sample in times[case])

    def ratio(case: tuple[str, str], other: tuple[str, str]) -> float | None:
        if other not in times:
            return None
        return statistics.median(a[0] / b[0] for a, b in zip(times[case], times[other]))

    rows, inner, outer = GEMM
    gemm = {p: 2e-6 * rows * inner * outer * products / median(("GEMM", p), 0) for p in options.matmul_precision}
    results = []
    for name, precision in cases:
        if name == "GEMM":
            continue
        case = (name, precision)
        row = dict(update=name, matmul_precision=precision, ms=median(case, 0), cpu_ms=median(case, 1))
        row |= dict(
            to_hasac=ratio(case, (HASAC, precision)),
            to_naive=ratio(case, (NAIVE, precision)),
            to_harl_same_precision=ratio(case, (HARL, precision)),
            to_harl_as_shipped=ratio(case, (HARL, "highest")),
        )
        row |= dict(gflop=work[name], floor_ms=1000 * work[name] / gemm[precision])
        results.append(row | dict(samples_ms=[round(wall, 3) for wall, _ in times[case]]))
    batch_size = make_args(scenario, options.batch_size).batch_size
    return dict(batch_size=batch_size, buffer_rows=options.rows, gemm_gflops=gemm, updates=results)


def table(scenario: str, result: dict[str, Any]) -> str:
    """The rows of one scenario as text."""
    lines = [f"{scenario}, batch size {result['batch_size']}, {result['buffer_rows']} transitions"]
    rates = ", ".join(f"{precision} {rate:.0f}" for precision, rate in result["gemm_gflops"].items())
    lines.append(f"GEMM {'x'.join(map(str, GEMM))}, GFLOP/s: {rates}")
    columns = ("ms", "CPU ms", "/HASAC", "/naive", "/HARL same", "/HARL shipped", "GFLOP", "floor ms")
    lines.append(f"{'update':14} {'matmul':8}" + "".join(f"{column:>14}" for column in columns))
    keys = "ms cpu_ms to_hasac to_naive to_harl_same_precision to_harl_as_shipped gflop floor_ms".split()
    for row in result["updates"]:
        cells = ["-" if row[k] is None else f"{row[k]:.{1 if k.endswith('ms') else 2}f}" for k in keys]
        lines.append(f"{row['update']:14} {row['matmul_precision']:8}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("experiments.update_speed", "milliseconds of one update")
    parser.add_argument(
        "--scenarios", nargs="+", default=["HalfCheetah-2x3", "HalfCheetah-6x1", "Ant-8x1"], help="tasks to measure"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds; each measures every update once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--matmul-precision", nargs="+", default=list(PRECISIONS), choices=(*PRECISIONS, "high"), help="of torch"
    )
    parser.add_argument("--naive", action="store_true", help="also HIS as the paper prints it")
    parser.add_argument("--harl", default="", metavar="CHECKOUT", help="also the HASAC of this checkout of HARL")
    parser.add_argument("--rows", type=int, default=100_000, help="transitions in the replay buffer")
    parser.add_argument("--batch-size", type=int, default=0, help="0: the value of the scenario")
    parser.add_argument("--json", default="", metavar="FILE", help="write the results there too")
    options = parser.parse_args(argv)
    for scenario in options.scenarios:
        if scenario not in SCENARIOS:
            parser.error(f"--scenarios {scenario}: must be among {', '.join(SCENARIOS)}")
    if min(options.rounds, options.threads) < 1 or options.rows < NUM_ENVS:
        parser.error(f"--rounds and --threads must be at least 1, --rows at least {NUM_ENVS}")
    if options.harl and not (Path(options.harl) / "harl/runners").is_dir():
        parser.error(f"--harl {options.harl}: no checkout of HARL there")
    return options


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """`count` CPU threads; afterwards these and the matmul precision are what they were."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def write(path: str, report: dict[str, Any]) -> None:
    """The report as JSON; nothing where `path` is empty."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv)
    with torch_threads(options.threads):
        named = [word.replace(options.harl, "HARL") if options.harl else word for word in argv]  # where is no result
        known = vars(options) | dict(harl=harl_driver.commit_of(options.harl) if options.harl else None)
        report = runlog.describe(known, ["-m", "experiments.update_speed", *named]) | dict(scenarios={})
        report["host"].pop("matmul_precision", None)  # each row has its own
        for scenario in options.scenarios:
            report["scenarios"][scenario] = measure(scenario, options)
            print(table(scenario, report["scenarios"][scenario]), end="\n\n", flush=True)
    write(options.json, report)


if __name__ == "__main__":
    main()
