"""A server of the user's application, and clients on it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.clients import httpx_module
from pytest_pgleak.clock import Clock
from pytest_pgleak.live.command import HOST, Command, LiveServerError, PortTakenError, read_command
from pytest_pgleak.live.process import ServerProcess
from pytest_pgleak.live.wire import HEADER, PROBE, VARIABLE, Rules
from pytest_pgleak.live.workers import Workers
from pytest_pgleak.rendering import without_passwords

if TYPE_CHECKING:
    import httpx

_BOOTSTRAP: Final = str(Path(__file__).with_name("bootstrap"))
TAG: Final = "pgleak live server"
"""``application_name`` of the connections to which the application gives none of its own."""
_POLL: Final = 0.02
_LOG_TAIL: Final = 3000
_TAKEN: Final = re.compile(r"address already in use|connection in use", re.IGNORECASE)
"""What uvicorn and gunicorn write when they cannot listen."""
_LONGEST_PARENT: Final = 70
"""Characters: the path of a socket has 103 at most (``sun_path`` of BSD and macOS; Linux has 107)."""
_STRAGGLERS: Final = 5.0
"""Seconds that the other workers may take when one answers."""
_NO_STARLETTE: Final = 0.5
"""Seconds after an answer in which a worker would have said that it serves."""


class LiveServer:
    """A running server.

    Args:
        text: The command, as the user has written it.
        values: What stands for its placeholders; the port is added.
        environment: Variables for it, beside those of pytest.
        cwd: Where it runs.
        rules: The settings.
        tag: Returns the header of a request that is sent now.
        told: Takes that header, and the status of the answer that the client has got.
        is_watched: Whether the ledger is to run in it.
    """

    def __init__(
        self,
        text: str,
        values: Mapping[str, str],
        environment: Mapping[str, str],
        cwd: Path,
        rules: Rules,
        tag: Callable[[], str],
        told: Callable[[str, int], None],
        is_watched: bool = True,
    ) -> None:
        self._is_watched = is_watched
        self._tag = tag
        self._told = told
        self.port = _free_port()
        filled = {**values, "host": HOST, "port": str(self.port)}
        self.command: Command = read_command(
            text, filled, sys.executable, has_control_socket=_is_importable("gunicorn.ctl")
        )
        self.url = f"http://{HOST}:{self.port}"
        self._clients: list[httpx.Client] = []
        self._directory = _directory()
        self.workers = Workers(self._directory, rules)
        self._final_log = ""
        given = {**self.command.environment, **environment}
        whole = _environment(given, self._directory if is_watched else None)
        self._process = ServerProcess(self._directory, self.command.arguments, whole, cwd)

    def wait(self, timeout: float) -> None:
        """Wait until the server answers.

        Args:
            timeout: Longest time, seconds.

        Raises:
            LiveServerError: It does not, or nothing in it can be watched.
        """
        give_up_at = Clock.monotonic() + timeout
        while not self._answers():
            self._check_runs()
            if Clock.monotonic() > give_up_at:
                raise LiveServerError(self._failure(f"it did not answer within {timeout:g} s"))
            Clock.sleep(_POLL)
        if not self._is_watched:
            return
        answered_at = Clock.monotonic()
        while (serving := self.workers.serving) < self.command.workers:
            # Who answers has completed its start-up. If nobody has said so, it is none of Starlette's applications.
            patience = _STRAGGLERS if serving else _NO_STARLETTE
            self._check_runs()  # or somebody else has answered, who has this port
            if Clock.monotonic() > min(give_up_at, answered_at + patience):
                break
            Clock.sleep(_POLL)
        if not self.workers.links:
            raise LiveServerError(self._failure(_BLIND if not self.workers.has_processes else _NOTHING_TO_SEE))

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it, and not one of which this is a child."""
        return self._process.is_ours

    @property
    def pid(self) -> int | None:
        """Process number of the server: the first process, which has started the others."""
        return self._process.pid

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process numbers of the workers whose application serves now."""
        return tuple(link.pid for link in self.workers.links if link.is_serving)

    @property
    def log(self) -> str:
        """What the server has written, standard output and standard error together."""
        return self._final_log or self._process.log()

    @property
    def was_killed(self) -> bool:
        """Whether it did not stop when it was told to."""
        return self._process.was_killed

    def client(self, **options: Any) -> httpx.Client:
        """Make a client whose requests are charged to the test, or the fixture, that sends them.

        Args:
            options: As of ``httpx.Client``.
        """
        module = httpx_module()

        def tag(request: httpx.Request) -> None:
            request.headers[HEADER] = self._tag()

        def told(response: httpx.Response) -> None:
            self._told(response.request.headers[HEADER], response.status_code)

        client: httpx.Client = module.Client(**self._options(options, tag, told))
        self._clients.append(client)
        return client

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        """Make an async client whose requests are charged to the test, or the fixture, that sends them.

        Args:
            options: As of ``httpx.AsyncClient``.
        """
        module = httpx_module()

        async def tag(request: httpx.Request) -> None:
            request.headers[HEADER] = self._tag()

        async def told(response: httpx.Response) -> None:
            self._told(response.request.headers[HEADER], response.status_code)

        client: httpx.AsyncClient = module.AsyncClient(**self._options(options, tag, told))
        return client

    def reload(self, timeout: float = 30.0) -> None:
        """Have all workers replaced, gracefully (SIGHUP), and wait until that is done.

        Args:
            timeout: Longest time, seconds.

        Raises:
            LiveServerError: The server cannot do that, or does not.
        """
        if "uvicorn" in self.command.arguments and self.command.workers < 2:
            raise LiveServerError(
                "uvicorn with one worker ends when it is told to reload (SIGHUP): start it with workers=2 or more"
            )
        before, pid = set(self.worker_pids), self.pid
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
        give_up_at = Clock.monotonic() + timeout
        while before & {link.pid for link in self.workers.links} or len(self.worker_pids) < self.command.workers:
            if (code := self._process.exit_code) is not None:
                raise LiveServerError(self._failure(f"it has ended with {_code(code)} when it was told to reload"))
            if Clock.monotonic() > give_up_at:
                raise LiveServerError(self._failure(f"it did not replace its workers within {timeout:g} s"))
            Clock.sleep(_POLL)

    def stop(self) -> None:
        """Stop it, with everything that it has started."""
        for client in self._clients:
            client.close()
        self._process.stop()

    def clean_up(self) -> None:
        """Remove its files, when what the workers have written was read."""
        self._final_log = self.log
        self.workers.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _options(
        self, given: dict[str, Any], tag: Callable[[Any], object], told: Callable[[Any], object]
    ) -> dict[str, Any]:
        hooks = dict(given.get("event_hooks") or {})
        if self._is_watched:
            hooks["request"] = [*hooks.get("request", ()), tag]
            hooks["response"] = [told, *hooks.get("response", ())]
        # A proxy of the machine's would not reach a server on its loopback interface.
        return {"base_url": self.url, "trust_env": False, **given, "event_hooks": hooks}

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                # An application that is not watched, or not Starlette's, has no such page, and says so.
                first = f"GET /.pytest-pgleak HTTP/1.1\r\nHost: {HOST}\r\n{HEADER}: {PROBE}\r\n"
                request = f"{first}Connection: close\r\n\r\n"
                connection.sendall(request.encode())
                answer = b""
                while chunk := connection.recv(4096):  # to its end, or the server's log would speak of it
                    answer += chunk
                return answer.startswith(b"HTTP/")
        except OSError:
            return False

    def _check_runs(self) -> None:
        if (code := self._process.exit_code) is not None:
            error = PortTakenError if _TAKEN.search(self.log) else LiveServerError
            raise error(self._failure(f"it has ended with {_code(code)}"))

    def _failure(self, what: str) -> str:
        command = without_passwords(shlex.join(self.command.arguments))
        lines = _tail(without_passwords(self.log.strip()))
        shown = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
        return f"the live server was started, but {what}.\n  command: {command}\n  its log:\n{shown}"


_BLIND: Final = (
    "no Python process of it has reported itself, so nothing could be checked in it. It must run with the Python of"
    f" pytest ({sys.executable}), or one that has pytest-pgleak installed, and without -I, -E or -S"
)
_NOTHING_TO_SEE: Final = (
    "none of its processes has imported Starlette or a PostgreSQL driver that pgleak knows: there is nothing to check."
)


def _environment(given: Mapping[str, str], watched: Path | None) -> dict[str, str]:
    environment = {**os.environ, **given}
    # What is imported in the tests can be imported there: pytest has put directories into sys.path.
    own = [entry for entry in sys.path if entry and not _is_installed(entry)]
    bootstrap = [_BOOTSTRAP] if watched is not None else []
    paths = [*bootstrap, *environment.get("PYTHONPATH", "").split(os.pathsep), *own]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    if watched is not None:
        environment[VARIABLE] = str(watched)
    # Where the application gives no name of its own, pg_stat_activity shows this one.
    environment.setdefault("PGAPPNAME", TAG)
    # What pytest-cov and others have put there would follow pytest, and not the server.
    environment.pop("PYTEST_CURRENT_TEST", None)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _directory() -> Path:
    # There is a socket in it, and TMPDIR may be too long for that.
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="pgleak-live-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"))  # noqa: S108 - mkdtemp makes a directory of our own in it


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # nor is what it is in
        return False


def _is_installed(entry: str) -> bool:
    paths = sysconfig.get_paths()
    return any(entry.startswith(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")) or (
        entry.endswith(".zip")
    )


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: str) -> list[str]:
    """Return the last lines of a log, whole ones, unless the last one is too long by itself."""
    if len(log) <= _LOG_TAIL:
        return log.splitlines()
    first, _, others = log[-_LOG_TAIL:].partition("\n")
    return ["…", *(others or first).splitlines()]


def _code(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
