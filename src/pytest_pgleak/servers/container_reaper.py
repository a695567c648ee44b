"""The owner's side of the reaper, the process that removes our container however pytest ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pgleak.servers import failures, leftovers
from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from pytest_pgleak.servers.rundir import Lease

_SCRIPT = Path(__file__).with_name("container_reaper_main.py")


class Reaper:
    """A running reaper.

    Args:
        lease: The directory whose lock it waits for; None where there are no such locks (Windows): then it waits for
            the end of this process.
        label: What the container is marked with.
        environment: Where the daemon is.
        shared: Whether other processes may join.
    """

    def __init__(self, lease: Lease | None, label: str, environment: dict[str, str], *, shared: bool = False) -> None:
        python = failures.python()
        self._lease = lease
        self._label = label
        self._shared = shared
        self._pid = os.getpid()
        self._stopping = threading.Lock()
        self._stopped = False
        arguments = {
            # An empty entry is the current directory, which is not the reaper's.
            "sys_path": [str(Path(entry or ".").absolute()) for entry in sys.path],
            "label": label,
            "directory": str(lease.path) if lease else "",
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [python, "-I", "-S", str(_SCRIPT), json.dumps(arguments)],
            stdin=subprocess.DEVNULL if lease else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(python).anchor,
            env=environment,
            start_new_session=True,
        )

    def check(self) -> None:
        """Make sure that it is watching.

        Raises:
            ServerError: It has ended.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"watching\n":
            raise ServerError(
                "The process that is to remove the test server's container has ended by itself (exit code "
                f"{self._process.wait()}).\n{sys.executable} -c 'import docker; docker.from_env()' may say why."
            )

    def stop(self) -> bool:
        """Release the lease and wait until the container is removed; idempotent, nothing in a child of fork().

        Where other processes use the container as well, it lives on, and nobody waits.

        Returns:
            Whether somebody has taken or will take care of the container; not so if the reaper was killed.

        Raises:
            ServerError: It could not remove the container.
        """
        with self._stopping:
            if self._stopped or self._pid != os.getpid():
                return True
            self._stopped = True
            was_last = self._lease.release() if self._lease else True
            return self._await_end() if was_last or not self._shared else self._leave()

    def _leave(self) -> bool:
        assert self._process.stdout is not None
        self._process.stdout.close()
        # It runs on with a purpose: Popen's finalizer would warn.
        self._process.returncode = 0
        return True

    def _await_end(self) -> bool:
        assert self._process.stdout is not None
        if self._process.stdin is not None:
            with suppress(OSError):  # it has ended by itself
                # A line, and not just the end of the file: a child of fork() may have the pipe, too.
                self._process.stdin.write(b"\n")
                self._process.stdin.close()
        # Its end of the pipe closes when it ends; it gives up by itself after 20 s.
        reports = self._process.stdout.read().decode().splitlines()
        self._process.stdout.close()
        self._process.wait()
        if reports and (reason := reports[-1].partition("failed ")[2]):
            raise ServerError(
                f"The container of the test server was not removed: {reason}\n"
                f"Remove it with: docker rm -fv $(docker ps -aq --filter label={self._label})"
            )
        if self._lease is not None:
            leftovers.remove(self._lease.path)  # it is still there if somebody killed the reaper
        return reports[-1:] == ["removed"]
