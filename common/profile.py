"""Where the wall-clock time of a run goes: seconds by part, for `--profile`."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Profile:
    """Adds up the seconds spent in `with profile("part"):`; parts must not be nested in one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the body of the `with` statement under the name `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def report(self) -> str:
        """One line a part, largest first, in seconds and per cent of the time since this object was made."""
        total = max(time.perf_counter() - self._start, 1e-9)
        parts = {**self.seconds, "everything else": max(0.0, total - sum(self.seconds.values()))}
        rows = sorted(parts.items(), key=lambda item: -item[1])
        return "\n".join(f"{name:16} {seconds:10.1f} s {100 * seconds / total:6.1f} %" for name, seconds in rows)
