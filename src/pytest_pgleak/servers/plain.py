"""A server of our own where flock and Unix sockets are not to be had (Windows): made anew, on a port of loopback.

It takes what `pytest_pgleak.servers.owned` saves: initdb runs each time, on the disk, and with xdist each worker has a
server of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

from pytest_pgleak.servers import binaries, cluster, failures, libpq, tcp
from pytest_pgleak.servers.values import Plan, RunningServer, ServerError

_SCRIPT = Path(__file__).with_name("plain_main.py")
_PREFIX = "plain-pgleak-"
_LOGS = ("main.log", "server.log")
_STOP_TIMEOUT = 20.0  # seconds
# The terminal's Ctrl-C must not reach the server: fixtures that are torn down afterwards still need it.
_APART: Final[dict[str, Any]] = (
    {"start_new_session": True}
    if os.name == "posix"
    else {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}  # a console of its own
)


def start_plain(plan: Plan) -> RunningServer:
    """Create a cluster and start it.

    Raises:
        ServerError: If it does not start; the message has the end of its log.
    """
    libpq.pq()
    try:
        return _start(plan)
    except ServerError as error:
        # Somebody has taken the port in the moment between our choice and the server's start.
        if "Address already in use" not in str(error) and "10048" not in str(error):
            raise
    return _start(plan)


def _start(plan: Plan) -> RunningServer:
    door = tcp.choose_door()
    try:
        keeper = _Keeper(plan, door)
        try:
            keeper.await_start()
            with libpq.connected(door.dsn) as conn:
                version = libpq.version(conn)
        except BaseException:
            keeper.stop()
            raise
    finally:
        door.release_port()
    description = f"PostgreSQL {version} {plan.origin}"
    return RunningServer(door.dsn, version, plan.source, description, owned=True, _stop=keeper.stop)


class _Keeper:
    """The process that runs the server, and ends it when we end.

    Args:
        plan: The server that was chosen.
        door: Its port and its password.

    Raises:
        ServerError: If not even this process can be started.
    """

    def __init__(self, plan: Plan, door: tcp.Door) -> None:
        self._plan = plan
        self._pid = os.getpid()
        self._stopping = threading.Lock()
        python = failures.python()
        assert plan.bindir is not None
        version = plan.version or binaries.version_of(plan.bindir) or ""
        settings = cluster.settings(version, {**door.settings(version), "unix_socket_directories": ""})
        try:
            self._run_dir = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise failures.not_started(plan, str(error), "") from error
        try:
            password = self._write("password", door.password)
            self._write("settings.conf", "".join(f"{name} = '{value}'\n" for name, value in settings.items()))
            initdb = cluster.initdb_command(plan.bindir, version, password)
            pg_ctl = str(binaries.program(plan.bindir, "pg_ctl"))
            with (self._run_dir / _LOGS[0]).open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own script
                    [python, "-I", "-S", str(_SCRIPT), str(self._run_dir), ";", *initdb, ";", pg_ctl],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=binaries.environment(),
                    **_APART,
                )
        except OSError as error:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            raise failures.not_started(plan, str(error), "") from error

    def _write(self, name: str, text: str) -> Path:
        path = self._run_dir / name
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="ascii") as writing:
            writing.write(text)
        return path

    def await_start(self) -> None:
        """Wait for the server: pg_ctl gives up by itself.

        Raises:
            ServerError: It does not come.
        """
        assert self._process.stdout is not None
        report = self._process.stdout.readline().decode().strip()
        if report != "started":
            log = "\n".join(text for name in _LOGS if (text := self._log_tail(name)))
            raise failures.not_started(self._plan, report or "its keeper has ended", log)

    def stop(self) -> None:
        """Have it stop the server and remove its directory; idempotent, nothing in a child of fork().

        Raises:
            ServerError: If it takes too long.
        """
        with self._stopping:
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            if self._pid != os.getpid() or process.stdin.closed:
                return
            try:
                # A line, and not just the end of the file: a child of fork() may have the pipe, too.
                process.stdin.write(b"\n")
                process.stdin.close()
            except OSError:
                pass  # it has ended by itself
            process.stdout.close()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                raise ServerError(
                    f"The test server in {self._run_dir} did not stop within {_STOP_TIMEOUT:.0f} s."
                ) from None

    def _log_tail(self, name: str) -> str:
        try:
            with (self._run_dir / name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - failures.LOG_TAIL))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""
