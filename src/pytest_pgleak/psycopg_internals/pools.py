"""Patches of psycopg_pool's pools."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pytest_pgleak.events import PoolFacts
from pytest_pgleak.libraries.opening import opening_for
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.psycopg_internals.operations import status_of
from pytest_pgleak.session_state.home_loop import running_loop
from pytest_pgleak.tracking import Tracker
from pytest_pgleak.transactions import How

Method = Callable[..., Any]


def pool_patches(psycopg_pool: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about pools. The null pools inherit all of them but ``wait``.

    Args:
        psycopg_pool: The imported ``psycopg_pool``.
        tracker: Is told.
    """
    pool, async_pool = psycopg_pool.ConnectionPool, psycopg_pool.AsyncConnectionPool
    wraps: tuple[tuple[str, Callable[[Tracker, Method], Method], Callable[[Tracker, Method], Method]], ...] = (
        ("__init__", _wrap_pool_init, _wrap_pool_init),
        ("open", _wrap_pool_open, _wrap_async_pool_open),
        ("close", _wrap_pool_close, _wrap_async_pool_close),
        ("_connect", _wrap_pool_connect, _wrap_async_pool_connect),
        ("getconn", _wrap_getconn, _wrap_async_getconn),
        ("putconn", _wrap_putconn, _wrap_async_putconn),
        ("wait", _wrap_pool_wait, _wrap_async_pool_wait),
    )
    null_pool, async_null_pool = psycopg_pool.NullConnectionPool, psycopg_pool.AsyncNullConnectionPool
    return Patches(
        Patch(null_pool, "wait", functools.partial(_wrap_pool_wait, tracker)),
        Patch(async_null_pool, "wait", functools.partial(_wrap_async_pool_wait, tracker)),
        *(Patch(pool, name, functools.partial(wrap, tracker)) for name, wrap, _ in wraps),
        *(Patch(async_pool, name, functools.partial(wrap, tracker)) for name, _, wrap in wraps),
    )


def _pool_facts(pool: Any, reference: weakref.ref[Any]) -> PoolFacts:
    is_async = hasattr(pool, "__aenter__")
    loop = running_loop() if is_async else None
    return PoolFacts(reference, type(pool).__name__, is_async, pool.name, pool.max_size, loop=loop)


def _wrap_pool_init(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        if not self.closed:
            tracker.pool_opened(self, functools.partial(_pool_facts, self))

    return __init__


def _wrap_pool_open(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def open(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: A001 - psycopg_pool's name
        __tracebackhide__ = True
        was_closed = self.closed
        try:
            original(self, *args, **kwargs)
        finally:
            if was_closed and not self.closed:
                tracker.pool_opened(self, functools.partial(_pool_facts, self))

    return open


def _wrap_async_pool_open(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def open(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: A001 - psycopg_pool's name
        __tracebackhide__ = True
        was_closed = self.closed
        try:
            await original(self, *args, **kwargs)
        finally:
            if was_closed and not self.closed:
                tracker.pool_opened(self, functools.partial(_pool_facts, self))

    return open


def _wrap_pool_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def close(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        try:
            original(self, *args, **kwargs)
        finally:
            tracker.pool_closed(self)

    return close


def _wrap_async_pool_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        try:
            await original(self, *args, **kwargs)
        finally:
            if self.closed:
                tracker.pool_closed(self)

    return close


def _wrap_pool_connect(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            with opening_for(self):
                connection = original(self, *args, **kwargs)
        except Exception as error:
            tracker.pool_has_tried(self, error)
            raise
        tracker.pool_has_tried(self, None)
        tracker.configured(connection)
        return connection

    return _connect


def _wrap_async_pool_connect(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            with opening_for(self):
                connection = await original(self, *args, **kwargs)
        except Exception as error:
            tracker.pool_has_tried(self, error)
            raise
        tracker.pool_has_tried(self, None)
        tracker.configured(connection)
        return connection

    return _connect


def _wrap_getconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            connection = original(self, *args, **kwargs)
        except Exception as error:
            tracker.starved(self, error)
            raise
        tracker.checked_out(self, connection)
        return connection

    return getconn


def _wrap_async_getconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            connection = await original(self, *args, **kwargs)
        except Exception as error:
            tracker.starved(self, error)
            raise
        tracker.checked_out(self, connection)
        return connection

    return getconn


def _wrap_pool_wait(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def wait(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        try:
            original(self, *args, **kwargs)
        except Exception as error:
            tracker.starved(self, error)
            raise

    return wait


def _wrap_async_pool_wait(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def wait(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        try:
            await original(self, *args, **kwargs)
        except Exception as error:
            tracker.starved(self, error)
            raise

    return wait


def _wrap_putconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def putconn(self: Any, conn: Any) -> None:
        __tracebackhide__ = True
        # Before the call: once it is back, another thread may check it out before this one gets to say so.
        if _is_out(self, conn):
            tracker.transaction_ending(conn, status_of(conn), How.POOL)
            tracker.returned(conn)
        try:
            original(self, conn)
        except BaseException:
            if _is_out(self, conn):
                tracker.checked_out(self, conn)
            raise

    return putconn


def _wrap_async_putconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def putconn(self: Any, conn: Any) -> None:
        __tracebackhide__ = True
        if _is_out(self, conn):
            tracker.transaction_ending(conn, status_of(conn), How.POOL)
            tracker.returned(conn)
        try:
            await original(self, conn)
        except BaseException:
            if _is_out(self, conn):
                tracker.checked_out(self, conn)
            raise

    return putconn


def _is_out(pool: Any, connection: Any) -> bool:
    return getattr(connection, "_pool", None) is pool
