"""Which asyncio task holds a connection, and where that task waits."""

from __future__ import annotations

import sys
import weakref
from typing import Any

from pytest_pgleak.frames import is_user_code
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


def held_by_task(reference: weakref.ref[Any] | None) -> TaskInfo | None:
    """Describe a task that still runs; None where it is over or is the one that asks."""
    task = None if reference is None else reference()
    if task is None or task.done():
        return None
    running = current_task()
    if running is not None and running() is task:
        return None
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", "") or type(coroutine).__name__
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None or not is_user_code(frame.f_code.co_filename):
        # A task of the framework (a test runner, a portal): naming it would explain nothing.
        return None
    return TaskInfo(task.get_name(), name.rpartition("<locals>.")[2], frame.f_code.co_filename, frame.f_lineno)
