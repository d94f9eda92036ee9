"""The command line: presets, one-line errors, resuming with the arguments of a run, stop signals, memory size."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro

ArgsT = TypeVar("ArgsT")

EVALUATION_FIELDS = ("evaluate", "eval_episodes", "eval_envs", "capture_video", "device", "seed")


class UsageError(Exception):
    """Something the user asked for that cannot be done; the message is one line that names the flag."""


def fail(prog: str, message: str) -> NoReturn:
    """Print `prog: error: message` as one line on stderr and exit with status 2."""
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def parse(
    args_type: type[ArgsT],
    presets: dict[str, dict[str, Any]],
    limits: dict[str, tuple[float | None, float | None]],
    argv: Sequence[str] | None = None,
    prog: str = "his_mamujoco.py",
    resumable: tuple[str, ...] = (),
) -> ArgsT:
    """Arguments from the command line; any mistake ends in one line on stderr and exit status 2.

    `args_type` is a dataclass with the fields `scenario`, `resume` and `evaluate`. `--scenario X` starts from
    `presets[X]`, changed as `args_type.PRESETS[--preset]` says where there is one (`common.harl.Preset`);
    `--resume FOLDER` and `--evaluate FOLDER` start from the arguments of that run, of which only the
    fields in `resumable` (and, to evaluate, EVALUATION_FIELDS) may change. `limits` maps fields to inclusive bounds,
    None for an open side; they hold for each element of a tuple. NaN and infinity are refused everywhere.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _list_last(args_type)
    try:
        ahead = _read_ahead(argv)
        for field in ("resume", "evaluate"):
            if getattr(ahead, field) == "":  # "$RUN" with RUN unset; it would start a new run
                raise UsageError(f"{_flag(field)}: must be given a run folder")
        if ahead.resume and ahead.evaluate:
            raise UsageError("--resume and --evaluate: only one of them at a time")
        if folder := ahead.resume or ahead.evaluate:
            changeable = (*resumable, "resume") if ahead.resume else (*resumable, *EVALUATION_FIELDS)
            base = _saved_args(args_type, presets, "--resume" if ahead.resume else "--evaluate", folder)
            args = _parse_flags(args_type, base, argv, prog)
            _check_unchanged(base, args, changeable, folder)
        else:
            base = _preset_args(args_type, presets, ahead.scenario, ahead.preset, prog)
            args = _parse_flags(args_type, base, argv, prog)
        check_limits(args, limits)
    except UsageError as error:
        fail(prog, str(error))
    return args


def _list_last(args_type: Any) -> None:
    """Put the fields of bases marked LISTED_LAST behind the class's own: `--help` begins with what matters most."""
    marked = [base for base in args_type.__mro__[1:] if vars(base).get("LISTED_LAST")]
    last = {field.name for base in marked for field in dataclasses.fields(base)}
    fields = args_type.__dataclass_fields__
    args_type.__dataclass_fields__ = {name: fields[name] for name in sorted(fields, key=lambda name: name in last)}


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _read_ahead(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that decide where all the others start from; None where they are not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for field in ("scenario", "preset", "resume", "evaluate"):
        parser.add_argument(_flag(field), nargs="?")  # a missing value is for the full parser to report
    return parser.parse_known_args(argv)[0]


def _preset_args(
    args_type: type[ArgsT], presets: dict[str, dict[str, Any]], scenario: str | None, preset: str | None, prog: str
) -> ArgsT:
    default: Any = args_type()
    scenario = default.scenario if scenario is None else scenario
    if scenario not in presets:
        raise UsageError(f"--scenario {scenario}: must be one of {', '.join(presets)}{_elsewhere(str(scenario), prog)}")
    values = presets[scenario] | {"scenario": scenario}
    if named := getattr(args_type, "PRESETS", {}):
        preset = preset if preset in named else default.preset  # a wrong one is for the full parser to report
        values |= named[preset].get(scenario, named[preset].get("", {}))
    return dataclasses.replace(default, **_from_json(args_type, values))


def _elsewhere(scenario: str, prog: str) -> str:
    """Which script has a scenario that `prog`, a script of one benchmark, has not."""
    from common.benchmarks import NUM_AGENTS  # which imports this module

    algorithm, _, mine = prog.removesuffix(".py").rpartition("_")
    found = [name for name, scenarios in NUM_AGENTS.items() if scenario in scenarios]
    return f"; it is a scenario of {algorithm}_{found[0]}.py" if found and mine in NUM_AGENTS else ""


def _saved_args(args_type: type[ArgsT], presets: Mapping[str, Any], flag: str, folder: str) -> ArgsT:
    """The arguments in the config.json of a run, with its own `--resume` and `--evaluate` taken back."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        saved = config["args"]
        unknown = saved.keys() - get_type_hints(args_type).keys()
        if unknown:
            made = " ".join(config["command"].split()[:2])
            raise UsageError(
                f"{flag} {folder}: its config.json does not fit this script: `{made}` made it, with {min(unknown)}"
            )
        if saved["scenario"] not in presets:
            raise ValueError(f"scenario {saved['scenario']}, must be one of {', '.join(presets)}")
        hints = get_type_hints(args_type)
        for name, value in saved.items():
            if not _fits(value, hints[name]):
                raise ValueError(f"{name} is {value!r}")
        return args_type(**{**_from_json(args_type, saved), "resume": "", "evaluate": ""})
    except OSError as error:
        raise UsageError(f"{flag} {folder}: no run there: cannot read config.json: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{flag} {folder}: its config.json does not fit this script: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file is of a field's type; types unknown here pass."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint not in (bool, str) or isinstance(value, hint)


def _from_json(args_type: type, values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: lists become tuples again."""
    hints = get_type_hints(args_type)
    return {name: tuple(value) if get_origin(hints.get(name)) is tuple else value for name, value in values.items()}


def _parse_flags(args_type: type[ArgsT], base: ArgsT, argv: Sequence[str], prog: str) -> ArgsT:
    """Run tyro, whose errors are boxes of several lines: they are caught and said in one."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(args_type, prog=prog, args=argv, default=base)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_first_mistake(args_type, argv) or _unboxed(box.getvalue())) from None


def _first_mistake(args_type: type, argv: Sequence[str]) -> str | None:
    """What is wrong with the first bad flag of `argv`, or None when nothing is found."""
    hints = get_type_hints(args_type)
    words = {_flag(prefix + name): () for name, hint in hints.items() if hint is bool for prefix in ("", "no_")}
    words |= {_flag(n): get_args(h) if get_origin(h) is tuple else (h,) for n, h in hints.items() if h is not bool}
    rest, before = list(argv), ""
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("-"):
            return f"unexpected argument {flag!r}{before}"
        flag = flag[:2] + flag[2:].replace("_", "-")
        if flag not in words:
            close = [word for word in words if flag[2:] in word[2:].split("-")]  # --lr: --actor-lr, --critic-lr
            close = close or difflib.get_close_matches(flag, words, n=1)
            return f"{flag}: no such flag" + (f", did you mean {' or '.join(close)}?" if close else ", see --help")
        values, expected = [value] if equals else [], words[flag]
        any_number = Ellipsis in expected  # tuple[int, ...]
        while (any_number or len(values) < len(expected)) and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if any_number:
            expected = expected[:1] * max(1, len(values))
        if len(values) != len(expected) or not all(map(_is_a, values, expected)):
            return f"{' '.join([flag, *values])}: must be {_kinds(expected)}{_written_out(values, expected)}"
        before = f" after {' '.join([flag, *values])}"
    return None


def _is_a(word: str, hint: Any) -> bool:
    """Whether tyro takes `word` for a field of this type; types unknown here pass, tyro's own message then stands."""
    if get_origin(hint) is Literal:
        return word in map(str, get_args(hint))
    try:
        return hint not in (int, float) or hint(word) is not None
    except ValueError:
        return False


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return {int: "a whole number", float: "a number"}.get(hint, "given a value")


def _kinds(hints: Sequence[Any]) -> str:
    kinds = [*map(_kind, hints)]
    if len(kinds) > 1 and len(set(kinds)) == 1:
        return f"{len(kinds)} values, each {kinds[0]}"
    return " and ".join(kinds) or "without a value"


def _written_out(values: Sequence[str], hints: Sequence[Any]) -> str:
    """A hint for whole numbers written like 1e6."""
    if len(values) == 1 and (*hints,) == (int,):
        with contextlib.suppress(ValueError, OverflowError):
            return f"; write {int(float(values[0]))}" if float(values[0]).is_integer() else ""
    return ""


def _unboxed(box: str) -> str:
    """The first paragraph of one of tyro's error boxes, without colours and frame."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    paragraphs = re.split(r"─{8,}", text)
    return " ".join(re.sub(r"[╭╮╰╯│─]", " ", paragraphs[1] if len(paragraphs) > 1 else text).split())


def _check_unchanged(base: Any, args: Any, changeable: Sequence[str], folder: str) -> None:
    for field in dataclasses.fields(args):
        old, new = getattr(base, field.name), getattr(args, field.name)
        if new != old and field.name not in changeable:
            raise UsageError(f"{_flag(field.name)} {_shown(new)}: the run in {folder} has {_shown(old)} and keeps it")


def check_limits(args: Any, limits: dict[str, tuple[float | None, float | None]]) -> None:
    """UsageError for the first number of a dataclass that is not finite or outside its inclusive bounds, or none."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value == ():
            raise UsageError(f"{_flag(field.name)}: must be given at least one value")
        low, high = limits.get(field.name, (None, None))
        if low is not None and high is not None:
            allowed = f"between {low} and {high}"
        else:
            allowed = "a finite number" if low is high else f"at most {high}" if low is None else f"at least {low}"
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, (int, float))]
        if not all(map(math.isfinite, numbers)):
            raise UsageError(f"{_flag(field.name)} {_shown(value)}: must be a finite number")
        if not all(low <= n <= high for n in numbers):
            raise UsageError(f"{_flag(field.name)} {_shown(value)}: must be {allowed}")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def memory_bytes(device: str = "cpu") -> int:
    """Memory of the machine in bytes: RAM within the container's limit, or all that a CUDA device has."""
    if device.startswith("cuda"):
        import torch  # here, so that `--help` does not wait for it

        return torch.cuda.get_device_properties(device).total_memory
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_cgroup_limits()])


def _cgroup_limits(table: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """The memory limits in bytes of this process's control group (version 1 or 2) and of those that contain it."""
    limits = []
    for line in table.read_text().splitlines() if table.exists() else []:
        _, controllers, group = line.split(":", 2)
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        root = mount / "memory" if controllers else mount
        if not controllers or "memory" in controllers.split(","):
            own = root / group.lstrip("/")
            for folder in {own, *own.parents} - {*root.parents}:
                with contextlib.suppress(OSError, ValueError):  # no such file here, or "max"
                    limits.append(int((folder / name).read_text()))
    return limits


class StopSignal:
    """Context manager: SIGTERM, SIGINT, SIGHUP are only noted, but a SIGINT after any of them ends the process at once.

    That is a person's second Ctrl-C; a second SIGTERM comes from programs that do not know of the first, and must not
    cost the checkpoint. SIGHUP, a closed terminal, stays ignored where `nohup` has it ignored.
    Poll `received`; leave with `exit_status` (143, 130 or 129). Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number; 0 before one has come."""
        return 0 if self.signum is None else 128 + self.signum

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            if signum == signal.SIGINT:
                os._exit(128 + signum)
            return
        self.signum = signum
        name = signal.Signals(signum).name
        # Not print: the signal may have come in the middle of a print, and buffered files are not re-entrant.
        text = f"\n{name} received: saving a checkpoint; Ctrl-C (SIGINT) from now on stops at once\n"
        with contextlib.suppress(OSError):  # there may be no terminal any more
            os.write(2, text.encode())
