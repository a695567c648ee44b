"""Removing what a server left whose owner and supervisor are both dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

PREFIX = "pgleak-"
LOCK = "alive.lock"
DATA = "data"

_STOP_TIMEOUT = 5.0  # seconds
_POLL = 0.005


def remove(run_dir: Path) -> None:
    """Stop the server in `run_dir`, if one still runs there, and delete the directory.

    The caller has made sure that nobody uses it. A server that does not stop keeps its directory.
    """
    data = run_dir / DATA
    if (pid := _postmaster(data)) is not None:
        # Never SIGKILL: a postmaster that cannot clean up leaves its shared memory to nobody.
        os.kill(pid, signal.SIGQUIT)
        if not _gone(data, pid):
            return
    # The lock after the data: interrupted in between, the rest is still recognised as a leftover.
    shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(run_dir, ignore_errors=True)  # by descriptors: no link in it leads out of it


def _postmaster(data: Path) -> int | None:
    """The pid of the running server whose data directory is `data`.

    postmaster.pid alone proves nothing: after a crash its number may be anybody's.
    """
    try:
        fd = os.open(data / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(fd) as file:
            pid = int(file.readline())
    except (OSError, ValueError):
        return None
    return pid if pid > 1 and str(data) in _arguments(pid) else None


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return []
    # macOS. A path with spaces is not found this way, and its directory is then left to the server itself, which
    # quits within a minute of losing it.
    done = subprocess.run(["/bin/ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.split()


def _gone(data: Path, pid: int) -> bool:
    deadline = time.monotonic() + _STOP_TIMEOUT
    # The file, too: a dead process that its parent has not waited for still has its pid.
    while (data / "postmaster.pid").exists() and _postmaster(data) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
