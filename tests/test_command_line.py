"""The command line of the tools in experiments/."""

import argparse
import importlib
import sys

import pytest

from experiments.command_line import Parser, positive, whole

TOOLS = "bidex_speed bidex_untrained credit_view curves env_speed gif mpe_bounds plot report run update_speed".split()
TOOLS += ["untrained", "variant_speed", "branch", "critic_truth", "posture", "harl_train", "harl_compare"]
POSITIONALS = {
    "run": ["mpe"],
    "plot": ["mpe"],
    "branch": ["run", "name"],
    "critic_truth": ["run"],
    "posture": ["run"],
    "harl_train": ["checkout", "happo", "simple_spread", "--out", "file"],
    "harl_compare": ["checkout", "happo", "simple_spread"],
}


def refusal(parser: Parser, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_refuses_an_unknown_flag_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(sys, "argv", [name, *POSITIONALS.get(name, []), "--no-such-flag"])
    try:
        status = tool.main()
    except SystemExit as stop:
        status = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith(f"experiments.{name}: error: ")


@pytest.mark.parametrize("name", TOOLS)
def test_every_flag_of_a_tool_says_what_it_is_and_its_default(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parsers: list[Parser] = []
    monkeypatch.setattr(Parser, "format_help", lambda self: parsers.append(self) or "")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"experiments.{name}").main()
    capsys.readouterr()
    monkeypatch.undo()
    (parser,) = parsers
    page = parser.format_help().replace("\n" + " " * 24, " ")
    for action in parser._actions:
        if action.option_strings:
            assert action.help, action.option_strings
            if action.default not in (None, "", [], argparse.SUPPRESS) and action.default is not False:
                (entry,) = (part for part in page.split("\n  ") if part.startswith(action.option_strings[0] + " "))
                assert "(default: " in entry, entry
    assert "(default: None)" not in page and "(default: False)" not in page and "(default: )" not in page


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("tool", None)
    parser.add_argument("--seeds", type=int)
    assert parser.parse_args(["--seeds", "3"]).seeds == 3
    assert refusal(parser, capsys, "--seed", "3") == "tool: error: unrecognized arguments: --seed 3"


def test_mistakes_can_be_raised() -> None:
    with pytest.raises(ValueError, match="unrecognized arguments: --seed"):
        Parser("tool", None, ValueError).parse_args(["--seed"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser("tool", None, ValueError)
    parser.needs("json")
    with pytest.raises(ValueError, match=r"needs no_such_package: pip install -r requirements-dev\.txt"):
        parser.needs("no_such_package")


def test_numbers() -> None:
    assert whole("3", low=3) == 3 and positive("0.5") == 0.5
    for word in ("2", "x", "3.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{word}: must be a whole number, at least 3"):
            whole(word, low=3)
    for word in ("0", "-1", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a number above 0"):
            positive(word)
