"""The update benchmark: what it writes, and that its plain transcription of the paper is the script's mathematics."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import his_mamujoco as his
from common import shapley
from common.streams import Streams
from experiments import update_speed

UPDATES = {"HASAC", "HIS M=1", "HIS M=3", "HIS M=1 naive"}


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    path = tmp_path / "results" / "speed.json"
    command = "--scenarios HalfCheetah-2x3 --rounds 1 --rows 500 --batch-size 32 --naive --json".split()
    update_speed.main([*command, str(path)])
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before

    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert report["command"].startswith("python -m experiments.update_speed --scenarios HalfCheetah-2x3")
    assert report["git_commit"] and report["packages"]["torch"] and report["host"]["torch_threads"] == 1
    result = report["scenarios"]["HalfCheetah-2x3"]
    assert result["batch_size"] == 32 and result["buffer_rows"] == 500
    assert result["gemm_gflops"].keys() == {"highest", "medium"}
    rows = {(row["update"], row["matmul_precision"]): row for row in result["updates"]}
    assert rows.keys() == {(name, precision) for name in UPDATES for precision in ("highest", "medium")}
    printed = capsys.readouterr().out
    for (name, precision), row in rows.items():
        assert len(row["samples_ms"]) == 1 and row["ms"] > 0 and row["cpu_ms"] > 0
        assert row["to_hasac"] == pytest.approx(row["ms"] / rows["HASAC", precision]["ms"])
        assert row["to_naive"] == pytest.approx(row["ms"] / rows["HIS M=1 naive", precision]["ms"])
        assert row["to_harl_same_precision"] is None and row["to_harl_as_shipped"] is None
        assert row["floor_ms"] == pytest.approx(1000 * row["gflop"] / result["gemm_gflops"][precision])
        assert f"{name:14} {precision}" in printed


def test_counted_work() -> None:
    """FLOP of the products of HASAC and HIS, counted by hand for HalfCheetah-6x1 at batch size 10."""
    options = update_speed.parse("--rows 500 --batch-size 10 --naive".split())
    work = {k: update_speed.gigaflop(f) for k, f in update_speed.updates_of("HalfCheetah-6x1", options).items()}
    critic = 2 * 2 * 10 * (23 * 256 + 256 * 256 + 256)  # one forward pass of the twins
    assert work["HIS M=1"] - work["HASAC"] == pytest.approx(7 * critic / 1e9)  # coalitions of 0..6 agents
    assert work["HIS M=3"] - work["HIS M=1"] == pytest.approx(2 * 5 * critic / 1e9)  # those of 0 and 6 agents once
    assert work["HIS M=1 naive"] > 1.3 * work["HIS M=1"]


def test_naive_is_the_same_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same batch, samples and permutations: losses, actor gradients and all that is updated agree."""
    sample_action, draw_ranks = his.sample_action, shapley.draw_ranks

    def fixed(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    # The two draw in another order and another number of times: every draw now gives the same numbers.
    monkeypatch.setattr(his, "sample_action", lambda mean, log_std, generator: sample_action(mean, log_std, fixed(1)))
    monkeypatch.setattr(shapley, "draw_ranks", lambda m, b, n, how, generator: draw_ranks(m, b, n, how, fixed(2)))

    args = update_speed.make_args("HalfCheetah-3x2", batch_size=256, num_coalitions=3)
    env = his.make_env(args, update_speed.NUM_ENVS)
    buffer = update_speed.filled_buffer(args, env, 3000)
    buffer.data["actions"].mul_(1.2).clamp_(-1, 1)  # some at the bounds, as a saturated policy leaves them

    def learner() -> his.Learner:
        made = his.Learner(env, Streams(5, update_speed.CPU), args, update_speed.CPU)
        for parameter in made.critic.parameters():
            parameter.data.mul_(4)  # far from additive: a new critic hardly tells one coalition from another
        return made

    ours, naive = learner(), learner()
    metrics = ours.update(buffer)
    losses = update_speed.naive_update(naive, buffer)

    assert all(metrics[f"credit/floor_hits_{i}"] > 0 for i in range(3))  # no branch of the term is left out
    assert any(0 < float(metrics[f"credit/boxcox_lambda_{i}"]) < 2 for i in range(3))
    close: dict[str, Any] = dict(rtol=1e-3, atol=1e-5)
    for agent, loss in enumerate(losses):
        assert math.isclose(float(loss), float(metrics[f"losses/actor_{agent}"]), rel_tol=1e-4)
        for a, b in zip(ours.actors[agent].parameters(), naive.actors[agent].parameters()):
            assert a.grad is not None and b.grad is not None
            torch.testing.assert_close(a.grad, b.grad, **close)
        torch.testing.assert_close(ours.actors[agent].state_dict(), naive.actors[agent].state_dict(), **close)
    for module in ("critic", "target_critic"):
        torch.testing.assert_close(getattr(ours, module).state_dict(), getattr(naive, module).state_dict(), **close)
    torch.testing.assert_close(ours.log_alpha, naive.log_alpha)

    # and the comparison notices another credit: the term of Eq. (10) with the opposite permutations
    monkeypatch.setattr(
        shapley, "draw_ranks", lambda m, b, n, how, generator: n - 1 - draw_ranks(m, b, n, how, fixed(2))
    )
    changed = update_speed.naive_update(learner(), buffer)
    assert not math.isclose(float(changed[0]), float(losses[0]), rel_tol=1e-2)


@pytest.mark.parametrize("words", ["--scenarios Hopper-3x1", "--harl nowhere", "--rounds 0", "--rows 3"])
def test_wrong_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        update_speed.parse(words.split())
    assert stop.value.code == 2 and words.split()[0] in capsys.readouterr().err
