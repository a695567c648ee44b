"""asyncpg: connections, pools, transactions.

Public methods are wrapped where there are any. What is not public, and why it is needed all the same:

- ``Connection.__init__`` and ``__del__``: every connection passes through them.
- ``Connection._execute``, ``_executemany``, ``_copy_in`` and ``_copy_out``, and the one method of prepared statements
  and of cursors that executes: what a connection is asked for. A method that is missing is left out.
- ``Pool._acquire`` and ``Pool._get_new_connection``: ``acquire()`` only makes an object that may be awaited or entered;
  and only the second knows for which pool a connection is opened.
- ``Pool._queue``: a pool has no weak references, so its queue stands for it. It lives exactly as long.
- ``PoolConnectionProxy._con``: which connection a proxy lends.
- ``Connection._addr`` and ``_params``: where a connection leads, for the observer.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.events import ConnectionFacts, PoolFacts
from pytest_pgleak.libraries.asyncpg_words import ASYNCPG, POOL
from pytest_pgleak.libraries.opening import opening_for, opening_pool
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.session_state.home_loop import running_loop
from pytest_pgleak.transaction_tracking import Operation
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_CHANGING: Final = ("insert", "update", "delete", "merge")


def asyncpg_patches(asyncpg: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about asyncpg's connections and pools.

    Args:
        asyncpg: The imported ``asyncpg``.
        tracker: Is told.

    Raises:
        AttributeError: This asyncpg looks different from those that are known.
    """
    connection, pool = asyncpg.connection.Connection, asyncpg.pool.Pool
    statements = _Statements(tracker)
    executing = (
        (connection, "execute", statements.wrap_by_text),
        (connection, "_execute", statements.wrap_by_text),
        (connection, "_executemany", statements.wrap_by_text),
        (connection, "_copy_in", statements.wrap_by_text),
        (connection, "_copy_out", statements.wrap_by_text),
        (asyncpg.prepared_stmt.PreparedStatement, "_PreparedStatement__do_execute", statements.wrap_prepared),
        (asyncpg.cursor.BaseCursor, "_bind_exec", statements.wrap_cursor),
        (asyncpg.cursor.BaseCursor, "_exec", statements.wrap_cursor),
    )
    return Patches(
        Patch(connection, "__init__", functools.partial(_wrap_init, tracker)),
        Patch(connection, "__del__", functools.partial(_wrap_del, tracker)),
        Patch(connection, "close", functools.partial(_wrap_close, tracker)),
        Patch(connection, "terminate", functools.partial(_wrap_terminate, tracker)),
        *(Patch(target, name, wrap) for target, name, wrap in executing if hasattr(target, name)),
        Patch(pool, "_async__init__", functools.partial(_wrap_pool_start, tracker)),
        Patch(pool, "_get_new_connection", functools.partial(_wrap_new_connection, tracker)),
        Patch(pool, "_acquire", functools.partial(_wrap_acquire, tracker)),
        Patch(pool, "release", functools.partial(_wrap_release, tracker)),
        Patch(pool, "close", functools.partial(_wrap_pool_close, tracker)),
        Patch(pool, "terminate", functools.partial(_wrap_pool_terminate, tracker)),
    )


def _facts(connection: Any, reference: weakref.ref[Any]) -> ConnectionFacts:
    parameters = ASYNCPG.parameters(connection)
    server = parameters["host"], parameters["port"]
    name = type(connection).__name__
    database, user = parameters.get("dbname", ""), parameters.get("user", "")
    pid = connection.get_server_pid()
    return ConnectionFacts(reference, name, True, pid, server, database, user, ASYNCPG, running_loop())


def _pool_facts(pool: Any, reference: weakref.ref[Any]) -> PoolFacts:
    return PoolFacts(reference, type(pool).__name__, True, "asyncpg", pool.get_max_size(), POOL, running_loop())


def _wrap_init(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        tracker.connection_opened(self, functools.partial(_facts, self), opening_pool.get())

    return __init__


def _wrap_del(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __del__(self: Any) -> None:
        try:
            if tracker.knows(self):
                status = ASYNCPG.transaction_status(self)
                tracker.connection_finalizing(self, status, ASYNCPG.is_closed(self), is_idle_in_pool=False)
        finally:
            original(self)

    return __del__


def _wrap_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        tracker.transaction_ending(self, ASYNCPG.transaction_status(self), How.CLOSE)
        try:
            await original(self, *args, **kwargs)
        finally:
            _closed(tracker, self)

    return close


def _wrap_terminate(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def terminate(self: Any) -> None:
        __tracebackhide__ = True
        tracker.transaction_ending(self, ASYNCPG.transaction_status(self), How.CLOSE)
        try:
            original(self)
        finally:
            _closed(tracker, self)

    return terminate


def _closed(tracker: Tracker, connection: Any) -> None:
    if ASYNCPG.is_closed(connection):
        tracker.returned(connection)  # a pool has its slot back as soon as the connection is closed
        tracker.connection_closed(connection)


class _Statements:
    """Wraps what executes something on a connection.

    Args:
        tracker: Is told.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        # These methods call each other: the outermost one tells.
        self._busy: weakref.WeakSet[Any] = weakref.WeakSet()

    def wrap_by_text(self, original: Method) -> Method:
        """Wrap a method of a connection whose first argument is the statement."""

        @functools.wraps(original)
        async def execute(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            call = functools.partial(original, connection, query, *args, **kwargs)
            return await self._run(connection, str(query), call)

        return execute

    def wrap_prepared(self, original: Method) -> Method:
        """Wrap a method of a prepared statement."""

        @functools.wraps(original)
        async def do_execute(statement: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            call = functools.partial(original, statement, *args, **kwargs)
            return await self._run(statement._connection, statement.get_query(), call)  # noqa: SLF001 - see above

        return do_execute

    def wrap_cursor(self, original: Method) -> Method:
        """Wrap a method of a cursor."""

        @functools.wraps(original)
        async def execute(cursor: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            call = functools.partial(original, cursor, *args, **kwargs)
            return await self._run(cursor._connection, str(cursor._query), call)  # noqa: SLF001 - see above

        return execute

    async def _run(self, connection: Any, query: str, call: Callable[[], Awaitable[Any]]) -> Any:
        __tracebackhide__ = True
        connection = getattr(connection, "_con", None) or connection
        tracker = self._tracker
        if not tracker.is_checking() or connection in self._busy or opening_pool.get() is not None:
            return await call()
        operation = Operation(statement=query)
        before = ASYNCPG.transaction_status(connection)
        self._busy.add(connection)
        try:
            tracker.operation_begins(connection, before, operation)
            result = await call()
        except BaseException as error:
            ASYNCPG.failed(connection)
            tracker.operation_ended(connection, (before, ASYNCPG.transaction_status(connection)), operation, error)
            raise
        finally:
            self._busy.discard(connection)
        now = ASYNCPG.succeeded(connection, query)
        tracker.operation_ended(
            connection, (before, now), Operation(statement=query, answered=_answer(query, result)), None
        )
        return result


def _answer(query: str, result: Any) -> str:
    """Return the command tag that the server has sent; where only rows came back, one that fits the statement."""
    if isinstance(result, str):
        return result
    keyword = query.lstrip()[:6].lower()
    return f"{keyword.upper()} 1" if keyword in _CHANGING else ""


def _anchor(pool: Any) -> Any:
    """Return what stands for a pool, and lives as long as it; None before the pool has begun to open."""
    queue = pool._queue  # noqa: SLF001 - see above
    if queue is not None:
        queue.pgleak_pool = pool
    return queue


def _note_opened(tracker: Tracker, pool: Any) -> Any:
    queue = pool._queue  # noqa: SLF001 - see above
    is_new = queue is not None and not hasattr(queue, "pgleak_pool")
    anchor = _anchor(pool)
    if is_new:
        tracker.pool_opened(anchor, functools.partial(_pool_facts, pool))
    return anchor


def _wrap_pool_start(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _async__init__(self: Any) -> Any:
        __tracebackhide__ = True
        try:
            return await original(self)
        finally:
            if not POOL.is_closed(self):
                _note_opened(tracker, self)

    return _async__init__


def _wrap_new_connection(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _get_new_connection(self: Any) -> Any:
        __tracebackhide__ = True
        with opening_for(_note_opened(tracker, self)):
            return await original(self)

    return _get_new_connection


def _wrap_acquire(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _acquire(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        anchor = _anchor(self)
        with opening_for(anchor):
            proxy = await original(self, *args, **kwargs)
        if anchor is not None:
            tracker.checked_out(anchor, proxy._con)  # noqa: SLF001 - see above
        return proxy

    return _acquire


def _wrap_release(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def release(self: Any, connection: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        lent = getattr(connection, "_con", None)
        if lent is not None:
            tracker.transaction_ending(lent, ASYNCPG.transaction_status(lent), How.POOL)
            tracker.returned(lent)
        with opening_for(_anchor(self)):  # what happens to it now is the pool's business
            await original(self, connection, *args, **kwargs)

    return release


def _wrap_pool_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any) -> None:
        __tracebackhide__ = True
        try:
            await original(self)
        finally:
            if POOL.is_closed(self) and (anchor := _anchor(self)) is not None:
                tracker.pool_closed(anchor)

    return close


def _wrap_pool_terminate(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def terminate(self: Any) -> None:
        __tracebackhide__ = True
        try:
            original(self)
        finally:
            if (anchor := _anchor(self)) is not None:
                tracker.pool_closed(anchor)

    return terminate
