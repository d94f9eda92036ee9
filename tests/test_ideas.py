"""experiments/ideas.py: each idea does what its name says, and the script around it stays the script."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers import filled_buffer, noisy_env, random_batch, small_args
from script_helpers import ROOT, flags, step_files
from test_hasac import equal

import his_mamujoco as plain
from common.streams import Streams
from experiments import ideas, suites

CPU = torch.device("cpu")
TINY: dict[str, Any] = dict(
    scenario="simple_reference",
    seed=3,
    total_timesteps=600,
    num_envs=4,
    warmup_steps=200,
    train_interval=5,
    batch_size=32,
    hidden_sizes=(16, 16),
    eval_every=300,
    eval_episodes=1,
    eval_envs=1,
    log_every=100,
    save_every=300,
)


def fresh_script(name: str = "his_mamujoco") -> ModuleType:
    """The script's module anew: ideas change it in place, and the other tests want it as it is."""
    spec = importlib.util.spec_from_file_location(f"{name}_with_ideas", ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return ideas.with_ideas(module)


@pytest.fixture(scope="module")
def script() -> Any:
    return fresh_script()


def credit_of(args: Any, context: Any = None) -> Any:
    env = noisy_env()
    critic = plain.TwinCritic(env.state_dim, sum(env.action_dims), (8, 8)).requires_grad_(False)
    made = ideas.credit_class(plain, context or ideas.Context())
    return made(critic, random_batch(env, 40), env.action_dims, torch.Generator().manual_seed(1), args)


def args_of(script: Any, **values: Any) -> Any:
    return script.Args(**{**vars(small_args()), **values})


def test_scales_of_the_credit() -> None:
    phi, alpha = torch.tensor([1.0, -2.0, 4.0, 5.0]), torch.tensor(0.3)
    x = phi.numpy()
    z = (x - x.mean()) / x.std(ddof=1)
    expected = {"centred": x - x.mean(), "standardised": z, "alpha": 0.3 * x, "standardised-alpha": 0.3 * z}
    expected |= {name: np.maximum(x, 0) for name in ("positive", "relative-positive")}
    expected |= dict.fromkeys(("recent", "annealed", "relative"), x)
    for idea, value in expected.items():
        np.testing.assert_allclose(ideas.scaled(idea, phi, alpha), value, rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_shortened_or_made_to_agree(sign: float) -> None:
    w = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    main = (w[0] * torch.tensor([1.0, 0.0])).sum() + 0 * w[1].sum()
    history = sign * (w[0] * torch.tensor([3.0, 4.0])).sum() + 12 * w[1].sum()
    for idea, strength, expected in (
        ("capped", 0.5, np.array([3 * sign, 4 * sign, 12]) * 0.5 / 13),
        ("capped", 100.0, np.array([3 * sign, 4 * sign, 12])),  # shorter than allowed: as it is
        ("agreeing", 1.0, np.array([3.0 if sign > 0 else 0.0, 4 * sign, 12])),
    ):
        loss = ideas.pulled(idea, history, main, w, strength)
        assert float(loss.detach()) == float(history.detach())
        got = torch.cat([g.flatten() for g in torch.autograd.grad(loss, w, retain_graph=True)])
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_recent_rows_are_the_newest(script: Any) -> None:
    env, args = noisy_env(num_envs=3), small_args()
    buffer = filled_buffer(env, 50, args)
    for _ in range(2):  # before and after the ring has wrapped
        buffer.data["state"][:, 0] = torch.arange(150) // 3
        batch = ideas.recent(buffer, random_batch(env, 400), 0.1, torch.Generator().manual_seed(0))
        steps = set(batch.state[:, 0].int().tolist())
        assert steps == {(buffer.position - 1 - age) % 50 for age in range(5)}
        rows = buffer.data["actions"].tolist()
        assert all(row in rows for row in batch.actions.tolist())
        buffer.position = 2


@pytest.mark.parametrize("idea", ["relative", "relative-positive"])
def test_relative_credit_is_what_acting_adds_to_the_policies(script: Any, idea: str) -> None:
    env, args = noisy_env(), args_of(script, idea=idea)
    learner = script.Learner(env, Streams(1, CPU), args, CPU)
    credit = credit_of(args, ideas.Context(actors=learner.actors))
    state, actions = credit.batch.state, credit.batch.actions
    assert not torch.equal(credit.fill, torch.zeros_like(actions))
    gain = script.min_q(credit.critic, state, actions) - script.min_q(credit.critic, state, credit.fill)
    torch.testing.assert_close(credit.phi.sum(0), gain, rtol=0, atol=1e-5)
    assert credit.diagnostics()["credit/efficiency_gap"] < 1e-5


@pytest.mark.parametrize("idea, strength", [("half", 1.0), ("half-history", 1.0), ("half-buffer", 1.0), ("half", 2.0)])
def test_half_of_q_is_that_of_a_coalition(script: Any, idea: str, strength: float) -> None:
    credit = credit_of(args_of(script, idea=idea, idea_strength=strength))
    joint = torch.tanh(torch.randn(40, 4))
    history, info = credit.loss(1, None, None, joint)
    fill = credit.batch.actions if idea == "half-history" else torch.zeros_like(joint)
    rows = []
    for b in range(40):
        row = fill[b].clone()
        for slot, owner in enumerate((0, 1, 1, 2)):
            if owner == 1:
                row[slot] = joint[b, slot]
            elif credit.ranks[0, b, owner] < credit.ranks[0, b, 1]:
                row[slot] = (credit.batch.actions if idea == "half-buffer" else joint)[b, slot]
        whole, part = (script.min_q(credit.critic, credit.batch.state[b : b + 1], a[None]) for a in (joint[b], row))
        rows.append(0.5 * strength * (whole - part))
    torch.testing.assert_close(history, torch.cat(rows).mean())
    assert info == {}


def loss_of(script: Any, idea: str, agent: int = 1, updates: int = 0, sign: float = 1.0, **values: Any) -> Any:
    """An agent's historical loss with an idea, and what it was made of: (loss, credit, context, policy, sample, joint).

    Actors and critic are the same at each call, the temperatures of the agents differ.
    """
    env, args = noisy_env(), args_of(script, idea=idea, **values)
    learner = script.Learner(env, Streams(1, CPU), args, CPU)
    learner.update_step = updates
    buffer = filled_buffer(env, 50, args)
    context = ideas.Context(args, learner, buffer, learner.actors, torch.tensor([0.1, 0.7, 2.0]))
    torch.manual_seed(5)
    credit = credit_of(args, context)
    credit.phi = sign * credit.phi
    policies: list[Any] = [actor(obs) for actor, obs in zip(learner.actors, credit.batch.obs)]
    samples = [script.sample_action(*policy, torch.Generator().manual_seed(6)) for policy in policies]
    joint = torch.cat([s.action if i == agent else s.action.detach() for i, s in enumerate(samples)], dim=1)
    policy: Any = policies[agent]
    if idea == "recent":  # its own batch is not the one that the script evaluated the policy at
        policy = tuple(torch.full_like(each, 9.0) for each in policy)
    history, _ = credit.loss(agent, policy, samples[agent], joint)
    return history, credit, context, policies[agent], samples[agent], joint


def test_alpha_is_the_agents_own(script: Any) -> None:
    history, credit, context, policy, *_ = loss_of(script, "alpha")
    expected, _ = plain.historical_loss(policy[0], policy[1], credit.pre_tanh[1], credit.phi[1] * 0.7, context.args)
    torch.testing.assert_close(history, expected)


def test_recent_actions_are_judged_at_their_own_observations(script: Any) -> None:
    history, credit, context, policy, *_ = loss_of(script, "recent", idea_strength=0.2)
    torch.testing.assert_close(policy[0], context.actors[1](credit.batch.obs[1])[0])
    historical = credit.batch.actions.split([1, 2, 1], dim=1)[1]
    pre_tanh = torch.atanh(historical.double()).float()
    expected, _ = plain.historical_loss(policy[0], policy[1], pre_tanh, credit.phi[1], context.args)
    torch.testing.assert_close(history, expected, rtol=1e-4, atol=1e-5)


def test_annealed_is_gone_after_its_share_of_the_run(script: Any) -> None:
    """4 environments, 1 update a vector step: update 100 is at environment step 200 + 400 of 1000."""
    values = dict(num_envs=4, warmup_steps=200, total_timesteps=1000, train_interval=1, update_per_train=1)
    full, *_ = loss_of(script, "annealed", idea_strength=1e9, **values)
    for updates, strength, left in ((0, 1.0, 0.8), (100, 1.0, 0.4), (200, 1.0, 0.0), (100, 0.75, 0.2), (200, 0.5, 0.0)):
        part, *_ = loss_of(script, "annealed", updates=updates, idea_strength=strength, **values)
        torch.testing.assert_close(part, left * full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("idea, strength, sign", [("capped", 1e-3, 1.0), ("agreeing", 1.0, -1.0)])
def test_the_gradient_held_against_is_that_of_the_whole_first_term(
    script: Any, idea: str, strength: float, sign: float
) -> None:
    """Q and entropy of Eq. (10), with the agent's own temperature."""
    history, credit, context, policy, sample, joint = loss_of(script, idea, idea_strength=strength, sign=sign)
    parameters = list(context.actors[1].parameters())
    q = plain.min_q(credit.critic, credit.batch.state, joint)
    main = (0.7 * sample.log_prob - q).mean()
    plain_history, _ = plain.historical_loss(policy[0], policy[1], credit.pre_tanh[1], credit.phi[1], context.args)
    ours, reference, theirs = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in (history, main, plain_history)
    )
    if idea == "capped":
        expected = theirs * min(1.0, strength * float(reference.norm() / theirs.norm()))
    else:
        expected = theirs - min(0.0, float(theirs @ reference)) / float(reference @ reference) * reference
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(ours, theirs, rtol=1e-3), "the idea did nothing here: the test could not fail"


@pytest.mark.parametrize("credit", ["his", "none"])
@pytest.mark.parametrize("terminates", [True, False])
def test_terminal_expects_nothing_behind_a_time_out(script: Any, credit: str, terminates: bool) -> None:
    buffers, batches = [], []
    for module, more in ((plain, {}), (script, {"idea": "terminal"})):
        args, env = args_of(module, credit=credit, **more), noisy_env()
        env.terminates = terminates
        module.check_args(args)
        buffers.append(filled_buffer(env, 60, args, kind=module.ReplayBuffer))
        batches.append(buffers[-1].sample(500, torch.Generator().manual_seed(2)))
    for key, values in buffers[0].data.items():
        expected = buffers[0].data["ended"] if key == "terminated" else values
        assert torch.equal(buffers[1].data[key], expected), key
    (his, his_terminal), newest = batches, 0.1  # windows that end where the buffer does
    ends = (his_terminal.discount == 0).float().mean()
    assert ends == pytest.approx(3 / 5, abs=newest)  # windows of 3 steps in episodes of 5
    if terminates:
        assert torch.equal(his_terminal.discount, his.discount)
    else:
        assert (his.discount > 0).all()


def test_every_idea_changes_the_update_and_only_that(script: Any) -> None:
    def actors_after(module: Any, args: Any) -> torch.Tensor:
        env = noisy_env()
        env.terminates = False
        module.check_args(args)
        learner = module.Learner(env, Streams(1, CPU), args, CPU)
        buffer = filled_buffer(env, 60, args, kind=module.ReplayBuffer)
        for _ in range(4):
            learner.update(buffer)
        return torch.cat([p.detach().flatten() for actor in learner.actors for p in actor.parameters()])

    found = {"his": actors_after(plain, small_args())}
    for idea in ideas.IDEAS:
        strength = 1e-4 if idea in ("recent", "annealed", "capped") else 1.0
        found[idea] = actors_after(script, args_of(script, idea=idea, idea_strength=strength))
        assert torch.isfinite(found[idea]).all()
    names = list(found)
    same = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if torch.equal(found[a], found[b])]
    assert same == []
    whole = actors_after(script, args_of(script, idea="capped", idea_strength=1e6))
    torch.testing.assert_close(whole, found["his"], rtol=0, atol=1e-4)  # nothing to shorten: HIS, up to rounding


def command(runs_dir: Path, *words: str, **values: Any) -> list[str]:
    argv = [*flags(TINY | {"runs_dir": runs_dir} | values), *words]
    return [sys.executable, str(ROOT / "experiments/ideas.py"), *argv]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    half, whole = tmp_path / "half", tmp_path / "whole"
    assert run(command(whole, "--idea", "recent", "--idea-strength", "0.2")).returncode == 0
    assert run(command(half, "--idea", "recent", "--idea-strength", "0.2", total_timesteps=300)).returncode == 0
    folders = [path / "ideas/simple_reference/seed3-recent" for path in (half, whole)]
    done = run([sys.executable, "experiments/ideas.py", "--resume", str(folders[0]), "--total-timesteps", "600"])
    assert done.returncode == 0, done.stderr
    saved = [torch.load(step_files(folder)[-1], weights_only=True)["learner"] for folder in folders]
    assert equal(saved[0], saved[1]) and saved[0]["update_step"] > 20
    assert (folders[0] / "eval.csv").read_text() == (folders[1] / "eval.csv").read_text()
    config = json.loads((folders[1] / "config.json").read_text())
    assert config["command"].startswith("python experiments/ideas.py --scenario simple_reference")


CENTRED = ("--idea", "centred")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--scenario", "Hopper"], "--scenario Hopper: must be one of simple_spread"),
        (["--scenario", "simple_spread", "--idea", "better"], "--idea better: must be one of centred"),
        (["--scenario", "simple_spread", *CENTRED, "--idea-strength", "0"], "--idea-strength 0.0: must be at least"),
        (["--scenario", "simple_spread", *CENTRED, "--credit", "none"], "--credit none: --idea centred needs his"),
        (
            ["--scenario", "simple_spread", *CENTRED, "--credit-actions", "policy"],
            "--credit-actions policy: --idea centred needs",
        ),
        (["--scenario", "simple_spread"], "--idea (not given): must be one of centred"),
        ([], "--scenario (not given): must be one of"),
        (["--resume", "absent"], "--resume absent: no run there"),
        (["--evaluate="], "--evaluate: must be given a run folder"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    done = run([sys.executable, "experiments/ideas.py", *words])
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr


def test_annealed_keeps_its_length(tmp_path: Path) -> None:
    assert run(command(tmp_path, "--idea", "annealed", total_timesteps=300)).returncode == 0
    folder = tmp_path / "ideas/simple_reference/seed3-annealed"
    done = run([sys.executable, "experiments/ideas.py", "--resume", str(folder), "--total-timesteps", "600"])
    assert done.returncode == 2 and "--total-timesteps 600: --idea annealed keeps its 300" in done.stderr, done.stderr


def test_suites_know_every_idea() -> None:
    named = {v.settings["idea"] for v in suites.VARIANTS.values() if "idea" in v.settings}
    assert named == set(ideas.IDEAS)
