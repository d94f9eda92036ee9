"""The benchmark of the ablations: what is timed is the variant, with the paper's values and actor updates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import variant_speed
from experiments.update_speed import gigaflop


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    path = tmp_path / "new" / "speed.json"
    words = "--scenarios simple_spread HalfCheetah-2x3 --variants none local --rounds 3 --rows 1000 --batch-size 16"
    variant_speed.main([*words.split(), "--json", str(path)])
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["git_commit"] and written["command"].startswith("python -m experiments.variant_speed --scenarios")
    printed = capsys.readouterr().out
    assert list(written["scenarios"]) == ["simple_spread", "HalfCheetah-2x3"]
    for rows in written["scenarios"].values():
        assert list(rows) == ["his", "none", "local"]
        for name, row in rows.items():
            ratios = sorted(a / b for a, b in zip(row["samples_ms"], rows["his"]["samples_ms"]))
            assert len(ratios) == 3 and row["ms"] == pytest.approx(sorted(row["samples_ms"])[1], abs=1e-3)
            assert row["to_his"] == pytest.approx(ratios[1], rel=1e-2)
            assert f"{name:10}{row['ms']:8.1f}" in printed


def test_counted_work() -> None:
    """FLOP of `policy_frequency` updates of simple_spread at batch size 10, of which one has a step of the actors."""
    options: Any = variant_speed.parse("--batch-size 10 --rows 1000 --scenarios simple_spread".split())
    work = {name: gigaflop(step) for name, step in variant_speed.updates_of("simple_spread", options).items()}
    critic = 2 * 2 * 10 * (69 * 256 + 256 * 256 + 256) / 1e9  # one forward pass of the twins
    for m in (1, 2, 3, 5):  # coalitions of 0 and of 3 agents once, two others for each order
        assert work[f"M{m}"] - work["none"] == pytest.approx((2 + 2 * m) * critic)
    assert work["his"] == work["M3"] == pytest.approx(work["no-bc"])


def test_one_line_for_a_wrong_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ("--variants hasac", "--variants hasac: must be among his, none"),
        ("--scenarios Cheetah", "--scenarios Cheetah: must be among simple_spread"),
        ("--rounds 0", "--rounds and --threads must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            variant_speed.parse(words.split())
        assert stopped.value.code == 2 and said in capsys.readouterr().err
