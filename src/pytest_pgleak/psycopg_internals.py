"""The only module that patches psycopg and psycopg_pool.

Public methods are wrapped where there are any: ``close``, ``getconn``, ``putconn``, ``open``. What is not public, and
why it is needed all the same:

- ``BaseConnection.__init__`` and ``__del__``: every connection passes through them, also those of subclasses and of a
  ``connect`` that somebody imported by name before the patch. ``connect`` itself is bound into the ``psycopg``
  namespace at import and cannot be replaced for everybody.
- ``ConnectionPool._connect``: the only place that knows for which pool a worker opens a connection.
- ``BaseConnection._connect_gen``: runs while a connection is being opened. A task that outlives its test may be in
  the middle of it when the test ends. Where it is missing, a fixed moment is waited instead.
- ``BaseConnection._get_tx_start_command``: where each transaction begins, implicit or not. Where it is missing, the
  findings about transactions say where the connection was opened instead.
- ``Connection._pool``: set while a connection is checked out, None while it idles in its pool, absent otherwise;
  psycopg's own ``close`` and ``__del__`` read it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from pytest_pgleak.events import ConnectionFacts, PoolFacts
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.tracking import Tracker

_opening_pool: ContextVar[Any] = ContextVar("pgleak_opening_pool", default=None)

Method = Callable[..., Any]


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
    optional = (
        Patch(base, "_get_tx_start_command", functools.partial(_wrap_begin, tracker)),
        Patch(base, "_connect_gen", functools.partial(_wrap_connect_gen, tracker)),
    )
    return Patches(
        *(patch for patch in optional if hasattr(base, patch.name)),
        Patch(base, "__init__", functools.partial(_wrap_connection_init, tracker)),
        Patch(base, "__del__", functools.partial(_wrap_connection_del, tracker)),
        Patch(psycopg.Connection, "close", functools.partial(_wrap_close, tracker)),
        Patch(psycopg.AsyncConnection, "close", functools.partial(_wrap_async_close, tracker)),
    )


def pool_patches(psycopg_pool: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about pools. The null pools inherit all of them.

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
    )
    return Patches(
        *(Patch(pool, name, functools.partial(wrap, tracker)) for name, wrap, _ in wraps),
        *(Patch(async_pool, name, functools.partial(wrap, tracker)) for name, _, wrap in wraps),
    )


def finish(facts: ConnectionFacts) -> None:
    """Close a connection on the client's side, without asking its pool or its event loop."""
    if (connection := facts.reference()) is not None:
        connection.pgconn.finish()


def _connection_facts(connection: Any, reference: weakref.ref[Any]) -> ConnectionFacts:
    pgconn = connection.pgconn
    name = type(connection).__name__
    return ConnectionFacts(
        reference,
        name,
        hasattr(connection, "__aenter__"),
        pgconn.backend_pid,
        (pgconn.host.decode(errors="replace"), pgconn.port.decode(errors="replace")),
        pgconn.db.decode(errors="replace"),
        pgconn.user.decode(errors="replace"),
    )


def _pool_facts(pool: Any, reference: weakref.ref[Any]) -> PoolFacts:
    return PoolFacts(reference, type(pool).__name__, hasattr(pool, "__aenter__"), pool.name, pool.max_size)


def _wrap_connection_init(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not self.closed and isinstance(self.pgconn.backend_pid, int):  # neither finished already nor a mock
            tracker.connection_opened(self, functools.partial(_connection_facts, self), _opening_pool.get())

    return __init__


def _wrap_connection_del(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __del__(self: Any) -> None:
        try:
            if hasattr(self, "pgconn") and tracker.knows(self):
                idle_in_pool = hasattr(self, "_pool") and self._pool is None
                status = self.info.transaction_status.name
                tracker.connection_finalizing(self, status, self.closed, idle_in_pool)
        finally:
            original(self)

    return __del__


def _wrap_connect_gen(tracker: Tracker, original: Method) -> Any:
    function = original.__func__  # type: ignore[attr-defined]  # a bound class method

    @functools.wraps(function)
    def _connect_gen(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if _opening_pool.get() is not None:
            return (yield from function(cls, *args, **kwargs))  # a pool that grows is nothing to wait for
        with tracker.connecting():
            return (yield from function(cls, *args, **kwargs))

    return classmethod(_connect_gen)


def _wrap_begin(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def _get_tx_start_command(self: Any) -> Any:
        tracker.transaction_beginning(self)
        return original(self)

    return _get_tx_start_command


def _wrap_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def close(self: Any) -> None:
        __tracebackhide__ = True
        original(self)
        if self.closed:
            tracker.connection_closed(self)

    return close


def _wrap_async_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any) -> None:
        __tracebackhide__ = True
        await original(self)
        if self.closed:
            tracker.connection_closed(self)

    return close


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


def _wrap_pool_connect(tracker: Tracker, original: Method) -> Method:  # noqa: ARG001 - the wraps share a signature
    @functools.wraps(original)
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        token = _opening_pool.set(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _opening_pool.reset(token)

    return _connect


def _wrap_async_pool_connect(tracker: Tracker, original: Method) -> Method:  # noqa: ARG001 - as above
    @functools.wraps(original)
    async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        token = _opening_pool.set(self)
        try:
            return await original(self, *args, **kwargs)
        finally:
            _opening_pool.reset(token)

    return _connect


def _wrap_getconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        connection = original(self, *args, **kwargs)
        tracker.checked_out(self, connection)
        return connection

    return getconn


def _wrap_async_getconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        connection = await original(self, *args, **kwargs)
        tracker.checked_out(self, connection)
        return connection

    return getconn


def _wrap_putconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def putconn(self: Any, conn: Any) -> None:
        __tracebackhide__ = True
        # Before the call: once it is back, another thread may check it out before this one gets to say so.
        if _is_out(self, conn):
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
