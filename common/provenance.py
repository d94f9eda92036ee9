"""Where numbers come from: the commit of this source tree and the processor. Light: imports no torch."""

import platform
import re
import subprocess
from pathlib import Path


def git_commit() -> str:
    """The commit of this source tree, "+dirty" when tracked files differ from it, "unknown" outside a checkout.

    What lies in results/ and docs/ does not count: no run depends on it, and tools write there while suites run.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*command: str) -> str:
        return subprocess.check_output(["git", *command], cwd=root, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        # An installed copy may lie inside somebody else's repository, whose commit would mean nothing.
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results", ":(exclude)docs")
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def cpu_model() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)", info.read_text(), re.MULTILINE) if info.exists() else None
    return model[1] if model else platform.processor() or platform.machine()
