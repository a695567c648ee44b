"""A worker's end of the conversation: a thread that does what pytest asks, beside the application."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pytest_pgleak.clock import Clock
from pytest_pgleak.libraries.registry import LibraryTracker
from pytest_pgleak.live.journal import Journal
from pytest_pgleak.live.last_words import Goodbye
from pytest_pgleak.live.trackers import OwnTracker
from pytest_pgleak.live.wire import (
    RULES,
    Begin,
    Done,
    Fault,
    Forget,
    Hello,
    Judge,
    Judged,
    Kept,
    Pids,
    Rules,
    Serving,
    Stopping,
    Told,
    Unwatched,
    dumps,
    loads,
)
from pytest_pgleak.live.worker_asgi import WorkerAsgi
from pytest_pgleak.live.worker_checks import WorkerChecks
from pytest_pgleak.live.worker_state import WorkerState
from pytest_pgleak.own_thread import OwnThread
from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.tasks import EventLoops

SOCKET: Final = "socket"
_IDLE: Final = 0.05
"""Seconds without a question after which is written down what stands: the longest late release is shorter."""
_FORK: Final = 2.0
"""Seconds that a fork waits at most for an answer that is being thought of."""
_PATIENCE: Final = 15.0
"""Seconds that a process goes on when pytest has gone: the supervisor ends it sooner, in good order."""


class Agent:
    """Connects a process with pytest.

    Args:
        directory: The server's.
    """

    def __init__(self, directory: str) -> None:
        self._journal = Journal(directory)
        self._connection: Connection[Any, Any] = Client(f"{directory}/{SOCKET}", family="AF_UNIX")
        # Read when it has connected: which test counts is either in the file, or will be told.
        rules: Rules = loads((Path(directory) / RULES).read_bytes())
        self._state = WorkerState(rules, self._fault, self._asgi, self._journal)
        self._state.counting.switch(rules.counts)
        self._checks = WorkerChecks(self._state, self._journal)
        self._one_at_a_time = threading.Lock()
        self._woken, self._wake = os.pipe()
        self._thread: OwnThread | None = None

    def start(self) -> None:
        """Say hello, and begin to listen."""
        self._send(Hello(os.getpid()))
        self.resume()

    def pause(self) -> None:
        """End the thread, for the process is about to fork: a lock that it holds then, the child could never take."""
        if self._thread is not None and not self._thread.is_current:
            os.write(self._wake, b".")
            self._thread.join(_FORK)
            self._thread = None

    def resume(self) -> None:
        """Listen again."""
        if self._thread is None:
            self._thread = OwnThread(self._listen)
            self._thread.start()

    def watch(self, library: LibraryTracker, module: ModuleType) -> None:
        """Start to watch a library that has been imported."""
        self._state.watch(library, module)

    def cannot_watch(self, tracker: OwnTracker) -> None:
        """A library has been imported whose tracker is pytest's alone."""
        self._journal.write(Unwatched(tracker))

    def starlette_imported(self, applications: ModuleType) -> None:
        """Start to follow requests."""
        self._state.patch(lambda: self._state.asgi.starlette_patch(applications), applications)

    def abandon(self) -> None:
        """Let go of everything in a child of ``fork()``: the connections are the parent's, the thread is not here."""
        self._state.close()
        self._connection.close()
        self._journal.close()
        os.close(self._woken)
        os.close(self._wake)

    def _listen(self) -> None:
        while True:
            ready = wait([self._connection, self._woken], _IDLE)
            if self._woken in ready:
                os.read(self._woken, 1)
                return
            try:
                message = loads(self._connection.recv_bytes()) if ready else None
            except (EOFError, OSError):
                break
            if not self._send_answer(message):
                break
        Clock.sleep(_PATIENCE)
        os.kill(os.getpid(), signal.SIGKILL)

    def _send_answer(self, message: object) -> bool:
        try:
            answer = self._answer(message)
        except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one
            self._state.fault(f"the answer to {type(message).__name__}")
            answer = Done()
        return message is None or self._send(answer)

    def _answer(self, message: object) -> object:
        if message is None:
            self._checks.write_what_stands()
        elif isinstance(message, Begin):
            self._checks.begin(message)
        elif isinstance(message, Judge):
            findings = self._checks.judge(message)
            if message.ends_call:
                self._state.counting.switch(None)
            return Judged(findings)
        elif isinstance(message, Told):
            self._checks.told(message)
        elif isinstance(message, Forget):
            self._checks.forget(message)
        elif isinstance(message, Stopping):
            return Kept(self._checks.held_by_websockets(message.ended))
        elif isinstance(message, Pids):
            return Pids(self._state.ledger.known_pids())
        return Done()

    def _send(self, message: object) -> bool:
        try:
            with self._one_at_a_time:
                self._connection.send_bytes(dumps(message))
        except OSError:
            return False
        return True

    def _asgi(self, ownership: Ownership, loops: EventLoops) -> WorkerAsgi:
        return WorkerAsgi(ownership, loops, self._lifespan_ended, self._starting, self._serving, self._answered)

    def _answered(self) -> None:
        try:
            self._checks.answered()
        except Exception:  # noqa: BLE001 - a fault of the plugin must not fail the application's request
            self._state.fault("the end of a request")

    def _starting(self) -> None:
        self._checks.starts_up()

    def _serving(self) -> None:
        self._checks.has_started()
        self._send(Serving())

    def _fault(self, text: str) -> None:
        self._journal.write(Fault(text))

    async def _lifespan_ended(self, lifespan: Owner) -> None:
        try:
            if findings := await self._checks.judge_lifespan(lifespan):
                self._journal.write(Judged(findings))
            if kept := await self._checks.judge_process():
                self._journal.write(Kept(kept))
        except Exception:  # noqa: BLE001 - a fault of the plugin must not fail the application's shutdown
            self._state.fault("the check of a lifespan")
        self._journal.write(Goodbye(Clock.monotonic()))
