"""The methods of psycopg2's connections and cursors that are watched, each as a wrapper of the original."""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_pgleak.libraries.opening import opening_pool
from pytest_pgleak.libraries.psycopg2_words import PSYCOPG2
from pytest_pgleak.prepared.gids import GidUse, gids_in
from pytest_pgleak.transaction_tracking import Operation
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]
Wrap = Callable[[Method], Method]


class WatchedMethods:
    """Makes the wrappers.

    Args:
        tracker: Is told.
        stand_in: Returns the class that has to stand in for a cursor factory; None where none has to.
        watch: Called with each new cursor.
    """

    def __init__(
        self, tracker: Tracker, stand_in: Callable[[Any], type | None], watch: Callable[[Any], object]
    ) -> None:
        self._tracker = tracker
        self._stand_in = stand_in
        self._watch = watch
        # A method of a class may call its base's, that is watched as well: the outermost one tells.
        self._busy: set[tuple[int, int]] = set()
        self._branches: dict[int, tuple[str, bool]] = {}
        by_itself = Operation(How.ROLLBACK)  # they roll back whatever is open, without a word
        self.of_connection: dict[str, Wrap] = {
            "close": self._close,
            "commit": functools.partial(self._does, Operation(How.COMMIT)),
            "rollback": functools.partial(self._does, Operation(How.ROLLBACK)),
            "reset": functools.partial(self._does, by_itself),
            "set_isolation_level": functools.partial(self._does, by_itself),
            "set_client_encoding": functools.partial(self._does, by_itself),
            "lobject": functools.partial(self._does, Operation()),
            "tpc_begin": self._tpc_begin,
            "tpc_prepare": self._tpc_prepare,
            "tpc_commit": functools.partial(self._tpc_finish, How.COMMIT),
            "tpc_rollback": functools.partial(self._tpc_finish, How.ROLLBACK),
            "cursor": self._cursor,
            "__del__": self._finalizer,
        }
        self.of_cursor: dict[str, Wrap] = {
            "execute": functools.partial(self._executes, _first),
            "executemany": functools.partial(self._executes, _first),
            "copy_expert": functools.partial(self._executes, _first),
            "callproc": functools.partial(self._executes, _call),
            "copy_from": functools.partial(self._executes, _copy_from),
            "copy_to": functools.partial(self._executes, _copy_to),
        }

    def _follows(self, connection: Any) -> bool:
        return (
            self._tracker.is_checking()
            and opening_pool.get() is None
            and (id(connection), threading.get_ident()) not in self._busy
            and self._tracker.knows(connection)
        )

    def _run(self, connection: Any, operation: Operation, call: Callable[[], Any]) -> Any:
        __tracebackhide__ = True
        tracker, busy = self._tracker, (id(connection), threading.get_ident())
        before = PSYCOPG2.transaction_status(connection)
        self._busy.add(busy)
        try:
            tracker.operation_begins(connection, before, operation)
            result = call()
        except BaseException as error:
            tracker.operation_ended(connection, (before, PSYCOPG2.transaction_status(connection)), operation, error)
            raise
        finally:
            self._busy.discard(busy)
        tracker.operation_ended(connection, (before, PSYCOPG2.transaction_status(connection)), operation, None)
        return result

    def _does(self, operation: Operation, original: Method) -> Method:
        @functools.wraps(original)
        def does(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not self._follows(connection):
                return original(connection, *args, **kwargs)
            return self._run(connection, operation, functools.partial(original, connection, *args, **kwargs))

        return does

    def _executes(self, text: Callable[[tuple[Any, ...], dict[str, Any]], str], original: Method) -> Method:
        @functools.wraps(original)
        def executes(cursor: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            connection = cursor.connection
            if not self._follows(connection):
                return original(cursor, *args, **kwargs)
            statement = text(args, kwargs)
            gids = gids_in(statement, args[1] if len(args) > 1 else kwargs.get("vars"))
            operation = Operation(statement=statement, gids=gids, cursor=weakref.ref(cursor))
            return self._run(connection, operation, functools.partial(original, cursor, *args, **kwargs))

        return executes

    def _close(self, original: Method) -> Method:
        tracker = self._tracker

        @functools.wraps(original)
        def close(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            tracker.transaction_ending(connection, PSYCOPG2.transaction_status(connection), How.CLOSE)
            result = original(connection, *args, **kwargs)
            if connection.closed:
                tracker.connection_closed(connection)
            return result

        return close

    def _finalizer(self, original: Method) -> Method:
        tracker = self._tracker

        @functools.wraps(original)
        def __del__(connection: Any) -> None:
            if tracker.knows(connection):
                status, is_closed = PSYCOPG2.transaction_status(connection), bool(connection.closed)
                tracker.connection_finalizing(connection, status, is_closed, is_idle_in_pool=False)
            original(connection)

        return __del__

    def _cursor(self, original: Method) -> Method:
        # A class with a cursor() of its own chooses the class of its cursors itself, as RealDictConnection does.
        chooses = not isinstance(original, types.MethodDescriptorType)

        @functools.wraps(original)
        def cursor(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not chooses:
                factory = args[1] if len(args) > 1 else kwargs.get("cursor_factory")
                stand_in = self._stand_in(connection.cursor_factory if factory is None else factory)
                if stand_in is not None and len(args) > 1:
                    args = (args[0], stand_in, *args[2:])
                elif stand_in is not None:
                    kwargs["cursor_factory"] = stand_in
            made = original(connection, *args, **kwargs)
            self._watch(made)
            return made

        return cursor

    def _tpc_begin(self, original: Method) -> Method:
        begin = self._does(Operation(), original)

        @functools.wraps(original)
        def tpc_begin(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = begin(connection, *args, **kwargs)
            self._branches[id(connection)] = (str(_xid(args, kwargs)), False)
            return result

        return tpc_begin

    def _tpc_prepare(self, original: Method) -> Method:
        @functools.wraps(original)
        def tpc_prepare(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            gid, _ = self._branches.get(id(connection), ("", False))
            uses = (GidUse(gid),) if gid else ()
            result = self._does(Operation(How.PREPARED, gids=uses), original)(connection, *args, **kwargs)
            self._branches[id(connection)] = (gid, True)
            return result

        return tpc_prepare

    def _tpc_finish(self, how: How, original: Method) -> Method:
        @functools.wraps(original)
        def tpc_finish(connection: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            # Without an argument it is this connection's own, and that may end in one phase.
            gid, is_prepared = self._branches.get(id(connection), ("", False))
            xid = _xid(args, kwargs)
            finished = str(xid) if xid is not None else gid if is_prepared else ""
            uses = (GidUse(finished, finishes=True),) if finished else ()
            result = self._does(Operation(how, gids=uses), original)(connection, *args, **kwargs)
            if xid is None:
                self._branches.pop(id(connection), None)
            return result

        return tpc_finish


def _xid(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("xid")


def _text(query: Any) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query if isinstance(query, str) else ""  # what psycopg2.sql has composed says it by its command tag


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return _text(args[0] if args else kwargs.get("query", kwargs.get("sql")))


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"call {_text(args[0] if args else kwargs.get('procname'))}()"  # a SELECT, to be exact


def _copy_from(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"copy {_text(args[1] if len(args) > 1 else kwargs.get('table'))} from stdin"


def _copy_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"copy {_text(args[1] if len(args) > 1 else kwargs.get('table'))} to stdout"
