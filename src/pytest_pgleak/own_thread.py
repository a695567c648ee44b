"""A thread of the plugin's own, which the ``threading`` module does not count.

Suites assert that ``threading.active_count()`` is what it was, or that nobody but the main thread is there.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pytest_pgleak.clock import Clock

_POLL: Final = 0.0005
_TASKS: Final = Path("/proc/self/task")


class OwnThread:
    """Runs a function once, beside everything else. It does not keep the process from ending.

    Nothing in the function may ask for ``threading.current_thread()``: that would make the thread known.

    Args:
        target: The function. It must not raise.
    """

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._at_work = _thread.allocate_lock()
        self._native_id: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the function has begun and not returned."""
        return self._at_work.locked()

    @property
    def is_current(self) -> bool:
        """Whether this very thread asks."""
        return self._native_id == threading.get_native_id()

    def start(self) -> None:
        """Begin."""
        self._at_work.acquire()
        _thread.start_new_thread(self._run, ())

    def join(self, timeout: float) -> None:
        """Wait until the thread is gone.

        Args:
            timeout: Longest time to wait, seconds.
        """
        give_up_at = Clock.monotonic() + timeout
        if not self._at_work.acquire(timeout=timeout):
            return
        self._at_work.release()
        # The function has returned, the thread takes some microseconds more. Python counts the system's threads when a
        # process forks (3.12 and later), and warns if there are two.
        while self._native_id is not None and (_TASKS / str(self._native_id)).exists():
            if Clock.monotonic() > give_up_at:
                break
            Clock.sleep(_POLL)

    def _run(self) -> None:
        self._native_id = threading.get_native_id()
        try:
            self._target()
        finally:
            self._at_work.release()
