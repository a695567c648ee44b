"""Runs something where an async connection is at home: in the thread of its event loop."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

_PATIENCE: Final = 1.0
"""Seconds for a loop in another thread to find the time."""


def running_loop() -> weakref.ref[Any] | None:
    """Return the event loop that runs in this thread, weakly."""
    if (asyncio := sys.modules.get("asyncio")) is None:
        return None
    try:
        return weakref.ref(asyncio.get_running_loop())
    except (RuntimeError, TypeError):  # none runs, or one that cannot be referred to weakly
        return None


def at_home(loop: Any, action: Callable[[], object]) -> bool:
    """Run something in the thread of an event loop, and wait until it is done.

    Where the loop runs here, or does not run at all, it is run at once.

    Args:
        loop: The event loop; None for what belongs to no loop.
        action: What to run. It must be quick.

    Returns:
        Whether it was run: a loop may have no time.
    """
    running = running_loop()
    if loop is None or not loop.is_running() or (running is not None and running() is loop):
        action()
        return True
    lock, done = threading.Lock(), threading.Event()
    given_up = False

    def run() -> None:
        try:
            with lock:
                if not given_up:
                    action()
        finally:
            done.set()

    try:
        loop.call_soon_threadsafe(run)
    except RuntimeError:  # closed this very moment
        return False
    if not done.wait(_PATIENCE):
        with lock:  # not in the middle of it
            given_up = True
    return done.is_set()
