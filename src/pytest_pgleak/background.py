"""Threads and tasks that were there before: what they open is not the running test's doing.

A listener thread of a session fixture may well connect while some test runs. A request that it happens to answer is the
test's all the same, and a worker of an executor works for whoever has submitted something.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from pytest_pgleak.tasks import EventLoops, current_task

if TYPE_CHECKING:
    from pytest_pgleak.owners import Owner

_SERVES_OTHERS = ("concurrent.futures.thread", "anyio._backends._asyncio")


class Background:
    """Knows who has started which thread and which task.

    Args:
        loops: The event loops that are known.
    """

    def __init__(self, loops: EventLoops) -> None:
        self._loops = loops
        self._started_by: weakref.WeakKeyDictionary[Any, Owner] = weakref.WeakKeyDictionary()

    def adopt(self, owner: Owner) -> None:
        """Charge all threads and tasks that nobody has started so far to an owner."""
        if threading.active_count() > 1:
            for thread in threading.enumerate():
                if thread is not threading.main_thread() and not _serves_others(thread):
                    self._started_by.setdefault(thread, owner)
        for task in self._loops.user_tasks():
            self._started_by.setdefault(task, owner)

    def owner_here(self) -> Owner | None:
        """Return who has started the running thread or task, if that was before the present owner began."""
        if not self._started_by:
            return None
        task = current_task()
        if task is not None and (living := task()) is not None and (owner := self._started_by.get(living)) is not None:
            return owner
        return self._started_by.get(threading.current_thread())


def _serves_others(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    return type(thread).__module__ in _SERVES_OTHERS or getattr(target, "__module__", None) in _SERVES_OTHERS
