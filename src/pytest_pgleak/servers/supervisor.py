"""The owner's side of the supervisor process: start it, read its reports, let it end."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_pgleak.servers import failures, leftovers
from pytest_pgleak.servers.binaries import environment
from pytest_pgleak.servers.values import ServerError

if TYPE_CHECKING:
    from pytest_pgleak.servers.privilege import OsUser
    from pytest_pgleak.servers.rundir import Lease
    from pytest_pgleak.servers.template import Template

_SCRIPT = Path(__file__).with_name("supervisor_main.py")
# Imported, for Python keeps no bytecode of a script: 2 ms. Last in the path, for nothing here must hide the library's.
_CODE = (
    "import sys; sys.path.append(sys.argv[1].rpartition('/')[0]); import supervisor_main as it; it.run(sys.argv[2:])"
)
_LOG = "server.log"
_STATUS_LINE = 7
_STOP_TIMEOUT = 10.0  # seconds; an ordinary stop takes 0.02


class Supervisor:
    """A running supervisor, and through it a server.

    Args:
        leases: The run directory's, and any further that goes with it.
        user: Whom it becomes; None to stay.
        template: The template that saves initdb, if there is a place for one.
        initdb: The command that creates the cluster.
        postgres: The command that runs it.
        shared: Whether other processes may join.
    """

    def __init__(
        self,
        leases: list[Lease],
        user: OsUser | None,
        template: Template | None,
        initdb: list[str],
        postgres: list[str],
        *,
        shared: bool = False,
    ) -> None:
        self._shared = shared
        self._leases = leases
        self._pid = os.getpid()
        self._stopping = threading.Lock()
        self._stopped = False
        self._reports = b""
        self._ended = False
        # Opened before the directory's new owner can have put anything in its place, and read through this descriptor.
        python = failures.python()
        self._log = os.open(leases[0].path / _LOG, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        head = [*([str(user.uid), str(user.gid)] if user else ["-", "-"]), str(template.path) if template else "-"]
        self._pid_file = leases[0].path / leftovers.DATA / "postmaster.pid"
        directories = [str(lease.path) for lease in leases]
        # Started as ourselves, not as `user`: this Python may be out of their reach.
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [python, "-I", "-S", "-c", _CODE, str(_SCRIPT), *head, *directories, ";", *initdb, ";", *postgres],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd="/",
            env=environment(),
            start_new_session=True,
        )

    @property
    def started(self) -> bool:
        """Whether initdb has finished and postgres has been started."""
        return b"started\n" in self._reports

    def reports(self, timeout: float) -> list[str]:
        """All that it has reported, after waiting up to `timeout` seconds for more; ``gone`` is last when it ended."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        # Not select(): it refuses descriptors from 1024 on, which a session that leaks may have reached.
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not self._ended and poll.poll(timeout * 1000):
            chunk = os.read(fd, 4096)
            self._ended = not chunk
            self._reports += chunk or b"gone\n"
        return self._reports.decode().splitlines()

    @property
    def is_ready(self) -> bool:
        """Whether postgres says that it is, in the eighth line of its pid file: so pg_ctl knows it, too.

        A connection that comes too early is refused by a process that has to be forked for it, and takes from the time
        that postgres needs.
        """
        try:
            # Whatever lies there: the directory is the server's user's.
            fd = os.open(self._pid_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            lines = os.read(fd, 4096).splitlines()
        except OSError:
            return False
        finally:
            os.close(fd)
        return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == b"ready"

    def log_tail(self) -> str:
        """The end of what initdb and postgres wrote."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, failures.LOG_TAIL, max(0, size - failures.LOG_TAIL)).decode(errors="replace").strip()

    def stop(self) -> None:
        """Release the leases and wait until the supervisor has cleaned up; idempotent, nothing in a child of fork().

        Where other processes use the server as well, it lives on, and nobody waits.

        Raises:
            ServerError: If it takes more than ten seconds.
        """
        with self._stopping:
            if self._stopped or self._pid != os.getpid():
                return
            self._stopped = True
            # The first is the directory that the supervisor watches; the others go with it.
            was_last, *_ = [lease.release() for lease in self._leases]
            if was_last or not self._shared:
                self._await_end()
            else:
                self._leave()

    def _leave(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self._log)
        # It runs on with a purpose: Popen's finalizer would warn.
        self._process.returncode = 0

    def _await_end(self) -> None:
        deadline = time.monotonic() + _STOP_TIMEOUT
        # Its end of the pipe closes when it ends: sooner noticed than by Popen.wait(timeout), which polls.
        while not self._ended:
            self.reports(max(0.0, deadline - time.monotonic()))
            if not self._ended and time.monotonic() > deadline:
                raise ServerError(
                    f"The test server in {self._leases[0].path} did not stop within {_STOP_TIMEOUT:.0f} s."
                )
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._log)
        for lease in self._leases:
            # It is still there if somebody killed the supervisor, or if only root may remove it from its parent.
            leftovers.remove(lease.path)
