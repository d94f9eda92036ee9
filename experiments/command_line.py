"""The command line of the tools in this folder: no abbreviated flags, a mistake is one line and exit status 2."""

import argparse
import csv
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common import cli


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it stands; defaults behind what says nothing about them, where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default in ("", []) or "(default:" in (action.help or ""):
            return action.help
        if isinstance(default, list):
            return f"{action.help} (default: {' '.join(map(str, default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An error is one line: raised as `failure` where that is given, else printed before exit with status 2."""

    def __init__(
        self, prog: str, description: str | None, failure: type[Exception] | None = None, epilog: str | None = None
    ) -> None:
        # No abbreviations: --seed would be taken for --seeds.
        super().__init__(prog, description=description, epilog=epilog, formatter_class=Help, allow_abbrev=False)
        self.failure = failure

    def error(self, message: str) -> NoReturn:
        if self.failure:
            raise self.failure(message)
        cli.fail(self.prog, message)

    def needs(self, package: str) -> None:
        """An error unless a package of requirements-dev.txt is installed."""
        if importlib.util.find_spec(package) is None:
            self.error(f"needs {package}: pip install -r requirements-dev.txt")

    def needs_writable(self, flag: str, path: Path | None) -> None:
        """An error unless the file of `flag`, where one is given, can be written; to be called before the work."""
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            self.error(f"{flag} {path}: {error.strerror}")


def whole(word: str, low: int) -> int:
    """A whole number of at least `low`, for `type=` of an argument."""
    try:
        number = int(word)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number, at least {low}")
    return number


def positive(word: str) -> float:
    """A finite number above 0, for `type=` of an argument."""
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word}: must be a number above 0")
    return number


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """What `--csv` of a tool writes: the keys of the first row, and a line for each row."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
