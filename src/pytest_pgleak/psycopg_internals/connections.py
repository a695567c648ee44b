"""Patches of psycopg's connections."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.libraries.opening import opening_pool
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.psycopg_internals.idle import is_in_a_pool
from pytest_pgleak.psycopg_internals.operations import operation_of, status_of
from pytest_pgleak.session_state.home_loop import running_loop
from pytest_pgleak.tracking import Tracker
from pytest_pgleak.transactions import How

Method = Callable[..., Any]

_WITHIN = 6
"""Frames between ``wait`` and the ``__exit__`` that commits, those of subclasses included."""


def connection_patches(psycopg: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about connections.

    Args:
        psycopg: The imported ``psycopg``.
        tracker: Is told.

    Raises:
        AttributeError: This psycopg looks different from those that are known.
    """
    base = psycopg.BaseConnection
    if not all(hasattr(base, name) for name in ("__del__", "closed", "info")):
        raise AttributeError(f"{base!r} has no __del__, closed or info")
    optional = (Patch(base, "_connect_gen", functools.partial(_wrap_connect_gen, tracker)),)
    return Patches(
        *(patch for patch in optional if hasattr(base, patch.name)),
        Patch(base, "__init__", functools.partial(_wrap_connection_init, tracker)),
        Patch(base, "__del__", functools.partial(_wrap_connection_del, tracker)),
        Patch(psycopg.Connection, "close", functools.partial(_wrap_close, tracker)),
        Patch(psycopg.AsyncConnection, "close", functools.partial(_wrap_async_close, tracker)),
        Patch(psycopg.Connection, "wait", functools.partial(_wrap_wait, tracker)),
        Patch(psycopg.AsyncConnection, "wait", functools.partial(_wrap_async_wait, tracker)),
    )


def _connection_facts(connection: Any, reference: weakref.ref[Any]) -> ConnectionFacts:
    pgconn = connection.pgconn
    name, is_async = type(connection).__name__, hasattr(connection, "__aenter__")
    return ConnectionFacts(
        reference,
        name,
        is_async,
        pgconn.backend_pid,
        (pgconn.host.decode(errors="replace"), pgconn.port.decode(errors="replace")),
        pgconn.db.decode(errors="replace"),
        pgconn.user.decode(errors="replace"),
        loop=running_loop() if is_async else None,
    )


def _wrap_connection_init(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if _is_open(self):
            tracker.connection_opened(self, functools.partial(_connection_facts, self), opening_pool.get())

    return __init__


def _is_open(connection: Any) -> bool:
    """Tell whether a connection is there: not finished already, no mock, and nobody's fake of a ``PGconn``."""
    try:
        return not connection.closed and isinstance(connection.pgconn.backend_pid, int)
    except Exception:  # noqa: BLE001 - what a fake lacks is no business of ours
        return False


def _wrap_connection_del(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __del__(self: Any) -> None:
        __tracebackhide__ = True
        try:
            if hasattr(self, "pgconn") and tracker.knows(self):
                idle_in_pool = hasattr(self, "_pool") and self._pool is None
                status = self.info.transaction_status.name
                tracker.connection_finalizing(self, status, self.closed, idle_in_pool)
        except Exception:  # noqa: BLE001 - an exception inside `__del__` would be printed as the user's
            tracker.fault("tracking (__del__)")
        finally:
            original(self)

    return __del__


def _wrap_connect_gen(tracker: Tracker, original: Method) -> Any:
    function = original.__func__  # type: ignore[attr-defined]  # a bound class method

    @functools.wraps(function)
    def _connect_gen(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if opening_pool.get() is not None:
            with tracker.half_open.connecting(by_pool=True):
                return (yield from function(cls, *args, **kwargs))
        with tracker.half_open.connecting(by_pool=False):
            try:
                return (yield from function(cls, *args, **kwargs))
            except Exception as error:
                tracker.refused(error)
                raise

    return classmethod(_connect_gen)


def _wrap_wait(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def wait(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not tracker.is_checking():
            return original(self, gen, *args, **kwargs)
        if _is_pools_business(self):
            tracker.configuring(self, operation_of(gen))
            return original(self, gen, *args, **kwargs)
        before, operation = status_of(self), operation_of(gen)
        tracker.operation_begins(self, before, operation)
        try:
            result = original(self, gen, *args, **kwargs)
        except BaseException as error:
            tracker.operation_ended(self, (before, status_of(self)), operation, error)
            if operation.how is How.COMMIT and _is_given_up(self):
                tracker.connection_closed(self)
            raise
        tracker.operation_ended(self, (before, status_of(self)), operation, None)
        return result

    return wait


def _wrap_async_wait(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def wait(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not tracker.is_checking():
            return await original(self, gen, *args, **kwargs)
        if _is_pools_business(self):
            tracker.configuring(self, operation_of(gen))
            return await original(self, gen, *args, **kwargs)
        before, operation = status_of(self), operation_of(gen)
        tracker.operation_begins(self, before, operation)
        try:
            result = await original(self, gen, *args, **kwargs)
        except BaseException as error:
            tracker.operation_ended(self, (before, status_of(self)), operation, error)
            if operation.how is How.COMMIT and _is_given_up(self):
                tracker.connection_closed(self)
            raise
        tracker.operation_ended(self, (before, status_of(self)), operation, None)
        return result

    return wait


def _is_given_up(connection: Any) -> bool:
    """Tell whether psycopg is about to forget a connection: ``with`` does not close it where its own COMMIT fails."""
    frame = sys._getframe(1)  # noqa: SLF001 - the documented CPython way
    for _ in range(_WITHIN):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        is_exit = frame.f_code.co_name in ("__exit__", "__aexit__") and frame.f_globals.get("__package__") == "psycopg"
        if is_exit and frame.f_locals.get("self") is connection:
            return not hasattr(connection, "_pool")
    return False


def _is_pools_business(connection: Any) -> bool:
    # What a pool does to a connection of its own: configure, reset, check of idle ones.
    return opening_pool.get() is not None or (hasattr(connection, "_pool") and connection._pool is None)  # noqa: SLF001


def _wrap_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def close(self: Any) -> None:
        __tracebackhide__ = True
        if tracker.knows(self) and not self.closed and not _returns_on_close(self):
            tracker.transaction_ending(self, status_of(self), How.CLOSE)
            if is_in_a_pool(self):
                tracker.connection_leaves_pool(self)
        original(self)
        if tracker.knows(self) and self.closed:
            tracker.connection_closed(self)

    return close


def _wrap_async_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any) -> None:
        __tracebackhide__ = True
        if tracker.knows(self) and not self.closed and not _returns_on_close(self):
            tracker.transaction_ending(self, status_of(self), How.CLOSE)
            if is_in_a_pool(self):
                tracker.connection_leaves_pool(self)
        await original(self)
        if tracker.knows(self) and self.closed:
            tracker.connection_closed(self)

    return close


def _returns_on_close(connection: Any) -> bool:
    return bool(getattr(getattr(connection, "_pool", None), "close_returns", False))
