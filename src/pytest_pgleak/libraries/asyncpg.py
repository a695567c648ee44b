"""asyncpg: its connections, and what is executed on them. Its pools are in `pytest_pgleak.libraries.asyncpg_pools`.

Public methods are wrapped where there are any. What is not public, and why it is needed all the same:

- ``Connection.__init__`` and ``__del__``: every connection passes through them.
- ``Connection._execute``, ``_executemany``, ``_copy_in`` and ``_copy_out``, and the methods of prepared statements and
  of cursors that execute: what a connection is asked for. ``_get_statement`` prepares, and may fail a transaction.
- ``Connection._addr`` and ``_params``: where a connection leads, for the observer.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.libraries.asyncpg_pools import pool_patches
from pytest_pgleak.libraries.asyncpg_words import ASYNCPG
from pytest_pgleak.libraries.opening import opening_pool
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.prepared.gids import gids_in
from pytest_pgleak.session_state.home_loop import running_loop
from pytest_pgleak.transaction_tracking import Operation
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_TAGS: Final = {"insert": "INSERT 0 1", "update": "UPDATE 1", "delete": "DELETE 1", "merge": "MERGE 1"}
_ASKED: Final = ("_addr", "_params", "is_closed", "is_in_transaction", "get_server_pid", "__weakref__")


def asyncpg_patches(asyncpg: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about asyncpg's connections and pools.

    Args:
        asyncpg: The imported ``asyncpg``.
        tracker: Is told.

    Raises:
        AttributeError: This asyncpg looks different from those that are known.
    """
    connection = asyncpg.connection.Connection
    if missing := [name for name in _ASKED if not hasattr(connection, name)]:
        raise AttributeError(f"{connection!r} has no {missing[0]}")
    statements = _Statements(tracker)
    finalizing: set[int] = set()
    return Patches(
        Patch(connection, "__init__", functools.partial(_wrap_init, tracker)),
        Patch(connection, "__del__", functools.partial(_wrap_del, tracker, finalizing)),
        Patch(connection, "close", functools.partial(_wrap_close, tracker)),
        Patch(connection, "terminate", functools.partial(_wrap_terminate, tracker, finalizing)),
        Patch(connection, "execute", statements.wrap_by_text),
        Patch(connection, "_execute", statements.wrap_by_text),
        Patch(connection, "_executemany", statements.wrap_by_text),
        Patch(connection, "_copy_in", statements.wrap_by_text),
        Patch(connection, "_copy_out", statements.wrap_by_text),
        Patch(connection, "copy_records_to_table", statements.wrap_copy_records),
        Patch(connection, "_get_statement", statements.wrap_preparing),
        Patch(asyncpg.prepared_stmt.PreparedStatement, "_PreparedStatement__do_execute", statements.wrap_prepared),
        Patch(asyncpg.cursor.BaseCursor, "_bind_exec", statements.wrap_cursor),
        Patch(asyncpg.cursor.BaseCursor, "_exec", statements.wrap_cursor),
        pool_patches(asyncpg, tracker),
    )


def _facts(connection: Any, reference: weakref.ref[Any]) -> ConnectionFacts:
    parameters = ASYNCPG.parameters(connection)
    server = parameters["host"], parameters["port"]
    name = type(connection).__name__
    database, user = parameters.get("dbname", ""), parameters.get("user", "")
    pid = connection.get_server_pid()
    return ConnectionFacts(reference, name, True, pid, server, database, user, ASYNCPG, running_loop())


def _wrap_init(tracker: Tracker, original: Method) -> Method:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        tracker.connection_opened(self, functools.partial(_facts, self), opening_pool.get())

    # In asyncio's debug mode asyncpg shows where a connection was made, without its own innermost frames; this is one.
    __init__.__code__ = __init__.__code__.replace(co_filename=original.__code__.co_filename)
    return functools.wraps(original)(__init__)


def _wrap_del(tracker: Tracker, finalizing: set[int], original: Method) -> Method:
    @functools.wraps(original)
    def __del__(self: Any) -> None:
        if not tracker.knows(self):
            original(self)
            return
        finalizing.add(id(self))
        try:
            tracker.connection_finalizing(
                self, ASYNCPG.transaction_status(self), ASYNCPG.is_closed(self), is_idle_in_pool=False
            )
            original(self)
        finally:
            finalizing.discard(id(self))

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


def _wrap_terminate(tracker: Tracker, finalizing: set[int], original: Method) -> Method:
    @functools.wraps(original)
    def terminate(self: Any) -> None:
        __tracebackhide__ = True
        if id(self) in finalizing:
            original(self)  # nobody has called it but the finalizer
            return
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
        # These methods call each other: the outermost one tells. By identity: a class of the user's may have no hash.
        self._busy: set[int] = set()

    def wrap_by_text(self, original: Method) -> Method:
        """Wrap a method of a connection whose first argument is the statement."""

        @functools.wraps(original)
        async def execute(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if self._is_nobodys_business(connection):
                return await original(connection, query, *args, **kwargs)
            return await self._run(connection, str(query), original(connection, query, *args, **kwargs))

        return execute

    def wrap_copy_records(self, original: Method) -> Method:
        """Wrap a method of a connection that fills a table."""

        @functools.wraps(original)
        async def copy_records_to_table(connection: Any, table_name: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            call = original(connection, table_name, *args, **kwargs)
            if self._is_nobodys_business(connection):
                return await call
            return await self._run(connection, f"copy {table_name} from stdin", call)

        return copy_records_to_table

    def wrap_preparing(self, original: Method) -> Method:
        """Wrap a method of a connection that has the server look at a statement, and no more."""

        @functools.wraps(original)
        async def get_statement(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if self._is_nobodys_business(connection):
                return await original(connection, *args, **kwargs)
            return await self._run(connection, "", original(connection, *args, **kwargs))

        return get_statement

    def wrap_prepared(self, original: Method) -> Method:
        """Wrap a method of a prepared statement."""

        @functools.wraps(original)
        async def do_execute(statement: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            connection, call = statement._connection, original(statement, *args, **kwargs)  # noqa: SLF001 - see above
            if self._is_nobodys_business(connection):
                return await call
            return await self._run(connection, statement.get_query(), call)

        return do_execute

    def wrap_cursor(self, original: Method) -> Method:
        """Wrap a method of a cursor."""

        @functools.wraps(original)
        async def execute(cursor: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            connection, call = cursor._connection, original(cursor, *args, **kwargs)  # noqa: SLF001 - see above
            if self._is_nobodys_business(connection):
                return await call
            return await self._run(connection, str(cursor._query), call)  # noqa: SLF001 - see above

        return execute

    def _is_nobodys_business(self, connection: Any) -> bool:
        """Tell whether nothing is to be told: no test is checked, an outer call tells, or a pool does it for itself."""
        return not self._tracker.is_checking() or id(connection) in self._busy or opening_pool.get() is not None

    async def _run(self, connection: Any, query: str, call: Awaitable[Any]) -> Any:
        __tracebackhide__ = True
        tracker = self._tracker
        operation = Operation(statement=query, gids=gids_in(query))
        before = ASYNCPG.begins(connection)
        self._busy.add(id(connection))
        try:
            tracker.operation_begins(connection, before, operation)
            result = await call
        except BaseException as error:
            tracker.operation_ended(connection, (before, ASYNCPG.failed(connection)), operation, error)
            raise
        finally:
            self._busy.discard(id(connection))
        now = ASYNCPG.succeeded(connection, query)
        answered = Operation(
            statement=query, gids=operation.gids, answered=_answer(query, result), prepared=_prepared(result)
        )
        tracker.operation_ended(connection, (before, now), answered, None)
        return result


def _prepared(result: Any) -> tuple[str, str] | None:
    """Return name and text of what ``prepare()`` has prepared; not where the user has made up the name."""
    name, text = getattr(result, "name", None), getattr(result, "query", None)
    is_named = isinstance(name, str) and isinstance(text, str) and name.startswith("__asyncpg_")
    return (str(name), str(text)) if is_named else None


def _answer(query: str, result: Any) -> str:
    """Return the command tag that the server has sent; where only rows came back, one that fits the statement."""
    return result if isinstance(result, str) else _TAGS.get(query.lstrip()[:6].lower(), "")
