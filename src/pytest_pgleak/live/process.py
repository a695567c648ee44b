"""pytest's side of a server process: start it below its supervisor, read its log, stop it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pytest_pgleak.clock import Clock

_SCRIPT: Final = Path(__file__).with_name("supervisor_main.py")
_STOP_TIMEOUT: Final = 20.0
"""Seconds: longer than the supervisor's own patience with the server."""
LOG: Final = "server.log"


class ServerProcess:
    """A server below its supervisor.

    Args:
        directory: Its directory, mode 0700; the log goes there.
        arguments: The command.
        environment: Its whole environment.
        cwd: Where it runs.
    """

    def __init__(self, directory: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.directory = directory
        self._pid = os.getpid()
        self._reports = b""
        self._is_over = False
        log = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                [sys.executable, "-I", "-S", str(_SCRIPT), str(directory), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(log)

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it, and not one of which this is a child."""
        return self._pid == os.getpid()

    @property
    def pid(self) -> int | None:
        """Process number of the server itself; None before it was started."""
        started = self._value("started")
        return None if started is None else int(started)

    @property
    def exit_code(self) -> int | None:
        """What the server has ended with; negative for a signal; None while it runs."""
        code = self._value("exited")
        if code is not None:
            return int(code)
        return self._process.returncode if self._is_over else None

    @property
    def was_killed(self) -> bool:
        """Whether it had to be killed, because it did not stop in time."""
        return any(line == "killed" for line in self._lines())

    def log(self, since: int = 0) -> str:
        """Return what the server has written.

        Args:
            since: How many bytes to leave out.
        """
        with (self.directory / LOG).open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace")

    def stop(self) -> None:
        """Stop the server and all that it has started; idempotent, and nothing in a child of ``fork()``."""
        if self._is_over or not self.is_ours:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(b"stop\n")
            self._process.stdin.close()
        except OSError:
            pass  # somebody has killed the supervisor; the server went with it
        deadline = Clock.monotonic() + _STOP_TIMEOUT
        while not self._is_over and Clock.monotonic() < deadline:
            self._read(deadline - Clock.monotonic())
        if not self._is_over:
            self._process.kill()
        self._is_over = True
        self._process.wait()
        self._process.stdout.close()

    def _value(self, name: str) -> str | None:
        self._read(0)
        return next((line.partition(" ")[2] for line in self._lines() if line.startswith(f"{name} ")), None)

    def _lines(self) -> list[str]:
        return self._reports.decode().splitlines()

    def _read(self, timeout: float) -> None:
        if self._is_over or self._process.stdout is None:
            return
        # Not select(): it refuses descriptors from 1024 on, which a session that leaks may have reached.
        poll = select.poll()
        poll.register(self._process.stdout.fileno(), select.POLLIN)
        if not poll.poll(max(timeout, 0) * 1000):
            return
        chunk = os.read(self._process.stdout.fileno(), 4096)
        self._reports += chunk
        if not chunk:
            self._is_over = True
            self._process.wait()
