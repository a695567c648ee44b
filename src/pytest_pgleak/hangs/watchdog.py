"""A thread that wakes when a phase of a test takes too long, and has somebody look.

It asks nobody anything as long as the phases are short: it sleeps until the current one could have become too long.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Final

from pytest_pgleak.clock import Clock
from pytest_pgleak.hangs.holders import Phase, When
from pytest_pgleak.own_thread import OwnThread

_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_JOIN: Final = 6.0
"""Seconds to wait for the thread: a look at a stuck server ends after 5 (the observer's ``statement_timeout``)."""
_JOIN_BEFORE_FORK: Final = 1.0


class Watchdog:
    """Calls back, in a thread of its own, while a phase goes on for too long.

    Args:
        patience: Seconds that a phase may take.
        look: Called then, again and again until the phase is over.
        fault: Takes note, inside an ``except`` block, of an error in `look`; the argument says where.
    """

    def __init__(self, patience: float, look: Callable[[Phase], None], fault: Callable[[str], None]) -> None:
        self._patience = patience
        self._look = look
        self._fault = fault
        self._phase: Phase | None = None
        self._stop = threading.Event()
        self._thread: OwnThread | None = None
        self._is_over = False

    @property
    def phase(self) -> Phase | None:
        """What pytest is doing."""
        return self._phase

    @property
    def is_running(self) -> bool:
        """Whether its thread exists."""
        return self._thread is not None and self._thread.is_alive

    def enter(self, nodeid: str, when: When) -> None:
        """A phase begins."""
        now = Clock.monotonic()
        before = self._phase
        same_test = before is not None and before.nodeid == nodeid and when != "setup"
        self._phase = Phase(nodeid, when, now, before.test_began_at if before is not None and same_test else now)
        if self._thread is None and not self._is_over:
            self._start()

    def leave(self) -> None:
        """The last phase of a test is over."""
        self._phase = None

    def stop(self) -> None:
        """End the thread, for good."""
        self._is_over = True
        self._phase = None
        self._end_thread(_JOIN)

    def before_fork(self) -> None:
        """End the thread for now; the next phase begins another one.

        From Python 3.12 on a process that forks beside a thread gets a DeprecationWarning, and this thread is none of
        the user's.
        """
        self._end_thread(_JOIN_BEFORE_FORK)

    def _start(self) -> None:
        self._stop = threading.Event()
        self._thread = OwnThread(partial(self._run, self._stop))
        self._thread.start()
        _running.add(self)

    def _end_thread(self, patience: float) -> None:
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None and not thread.is_current:
            thread.join(patience)

    def _run(self, stop: threading.Event) -> None:
        pause = self._patience
        while not stop.wait(pause):
            pause = self._step()

    def _step(self) -> float:
        """Look if it is time; return how long to sleep."""
        phase = self._phase
        if phase is None:
            return self._patience  # what has not begun yet cannot be too long before that
        if (left := phase.began_at + self._patience - Clock.monotonic()) > 0:
            return left
        try:
            self._look(phase)
        except Exception:  # noqa: BLE001 - it must go on: the next look may be the one that matters
            self._fault("the look for lock waits")
        return min(max(self._patience / 5, _SHORTEST_PAUSE), _LONGEST_PAUSE)


_running: Final[weakref.WeakSet[Watchdog]] = weakref.WeakSet()


def _end_threads() -> None:
    for watchdog in list(_running):
        watchdog.before_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_threads)
