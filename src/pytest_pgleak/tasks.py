"""Which asyncio task holds a connection, and where that task waits."""

from __future__ import annotations

import contextlib
import sys
import weakref
from typing import Any

from pytest_pgleak.frames import is_user_code
from pytest_pgleak.requests import Request
from pytest_pgleak.views import TaskInfo


def current_task() -> weakref.ref[Any] | None:
    """Return the running asyncio task, weakly; None outside an event loop."""
    if (asyncio := sys.modules.get("asyncio")) is None:
        return None
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no running event loop in this thread
        return None
    return None if task is None else weakref.ref(task)


class EventLoops:
    """The event loops in which the application runs, to see which of its tasks outlive a test."""

    def __init__(self) -> None:
        self._loops: weakref.WeakSet[Any] = weakref.WeakSet()
        self._before: weakref.WeakSet[Any] = weakref.WeakSet()
        self.requests: set[Request] = set()
        """Those that are being answered, their background tasks and the exits of their dependencies included."""
        self._requests_before: frozenset[Request] = frozenset()

    def seen(self) -> None:
        """Take note of the running event loop."""
        import asyncio

        with contextlib.suppress(RuntimeError):  # trio: it keeps its own tasks from outliving anything
            self._loops.add(asyncio.get_running_loop())

    @property
    def running(self) -> Any:
        """An event loop that runs now; None where there is none. May be asked from any thread."""
        return next((loop for loop in list(self._loops) if loop.is_running()), None)

    def begin(self) -> None:
        """Remember the tasks that run before a test: they are nothing to wait for at its end."""
        if self._loops or self._before:
            self._before = weakref.WeakSet(self._tasks())
        self._requests_before = frozenset(self.requests)

    def have_new_tasks(self) -> bool:
        """Tell whether a task of the user's own, or a request, begun since `begin`, is still at work."""
        return not self.requests <= self._requests_before or any(task not in self._before for task in self.user_tasks())

    def user_tasks(self) -> list[Any]:
        """Return the tasks that run the user's own coroutines, the running one left out."""
        return [task for task in self._tasks() if _works_for_user(task)]

    def _tasks(self) -> list[Any]:
        if not self._loops:
            return []
        import asyncio

        return [task for loop in list(self._loops) if not loop.is_closed() for task in asyncio.all_tasks(loop)]


def _works_for_user(task: Any) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    running = current_task()
    return (
        not task.done()
        and frame is not None
        and is_user_code(frame.f_code.co_filename)
        and (running is None or running() is not task)
    )


def held_by_task(reference: weakref.ref[Any] | None) -> TaskInfo | None:
    """Describe a task that still runs; None where it is over or is the one that asks."""
    task = None if reference is None else reference()
    if task is None or task.done():
        return None
    running = current_task()
    if running is not None and running() is task:
        return None
    return describe(task)


def describe(task: Any) -> TaskInfo | None:
    """Say what a task runs and where it waits; None for a task of the framework, which would explain nothing."""
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", "") or type(coroutine).__name__
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None or not is_user_code(frame.f_code.co_filename):
        return None
    return TaskInfo(task.get_name(), name.rpartition("<locals>.")[2], frame.f_code.co_filename, frame.f_lineno)
