"""Does one thing again and again beside a running test, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pytest_pgleak.clock import Clock
from pytest_pgleak.own_thread import OwnThread

_PAUSE: Final = 0.003
"""Seconds between two steps: what connects at all is there for longer."""
_SHARE: Final = 0.1
"""Of the time, at most: a slow server makes the steps rarer …"""
_LONGEST_PAUSE: Final = 0.05
"""Seconds: … but not so rare that nothing is seen."""
_PATIENCE: Final = 10.0
"""Seconds to wait for the last step: twice what a statement of the observer may take."""
_FORK_WARNING: Final = r"This process \(pid=\d+\) is multi-threaded, use of fork"


class Sampler:
    """A thread that comes and goes.

    A process that forks must not have it: a lock that it held would stay locked in the child, and Python warns of
    threads (since 3.12). So it is not there for the moment of a fork.

    Args:
        step: What to do.
        fault: Takes note, inside an ``except`` block, of a fault of the plugin.
    """

    def __init__(self, step: Callable[[], None], fault: Callable[[str], None]) -> None:
        self._step = step
        self._fault = fault
        self._thread: OwnThread | None = None
        self._over = threading.Event()
        self._knows_forks = False
        self._is_forking = False
        self._filters: list[Any] = []

    def start(self) -> None:
        """Begin."""
        if not self._knows_forks:
            self._knows_forks = True
            _register(weakref.ref(self))
        self._run()

    def stop(self) -> None:
        """Let the step that is being done end, and no other begin."""
        self._pause()
        while self._filters:
            with contextlib.suppress(ValueError):  # gone with somebody's `catch_warnings`
                warnings.filters.remove(self._filters.pop())  # type: ignore[attr-defined]  # a sequence to typeshed

    def before_fork(self) -> None:
        """This process is about to fork."""
        self._is_forking = self._thread is not None
        self._pause()

    def after_fork(self) -> None:
        """This process has forked."""
        if self._is_forking:
            self._is_forking = False
            if sys.version_info >= (3, 13) and threading.active_count() == 1:
                # There Python counts threads only now, and would warn of one that was not there when it forked.
                warnings.filterwarnings("ignore", _FORK_WARNING, DeprecationWarning)
                self._filters.append(warnings.filters[0])
            self._run()

    def _run(self) -> None:
        self._over = threading.Event()
        self._thread = OwnThread(partial(self._go_on, self._over))
        self._thread.start()

    def _pause(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._over.set()
            thread.join(_PATIENCE)

    def _go_on(self, over: threading.Event) -> None:
        pause = 0.0
        while not over.wait(pause):
            started_at = Clock.monotonic()
            try:
                self._step()
            except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one
                self._fault("counting connections")
                return
            pause = min(max(_PAUSE, (Clock.monotonic() - started_at) / _SHARE), _LONGEST_PAUSE)


def _register(sampler: weakref.ref[Sampler]) -> None:
    """Tell a sampler of forks. What is registered stays so for ever, so it must not hold it."""
    if not hasattr(os, "register_at_fork"):
        return

    def before() -> None:
        if (living := sampler()) is not None:
            living.before_fork()

    def after() -> None:
        if (living := sampler()) is not None:
            living.after_fork()

    os.register_at_fork(before=before, after_in_parent=after)
