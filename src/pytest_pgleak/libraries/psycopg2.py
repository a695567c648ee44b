"""psycopg2: its connections, and what is executed on them.

``connect`` is imported by name everywhere, so ``psycopg2._connect`` is replaced, through which it goes. The classes of
connections and cursors are written in C and cannot be changed; subclasses of them are, as ``connection_factory`` and
``cursor_factory`` allow. They go by the same name.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.libraries.opening import opening_pool
from pytest_pgleak.libraries.psycopg2_words import PSYCOPG2
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.transaction_tracking import Operation
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_EXECUTING: Final = ("execute", "executemany", "callproc", "copy_from", "copy_to", "copy_expert")


def connection_patches(psycopg2: ModuleType, tracker: Tracker) -> Patches:
    """Make the patch that tells a tracker about psycopg2's connections.

    Args:
        psycopg2: The imported ``psycopg2``.
        tracker: Is told.

    Raises:
        AttributeError: This psycopg2 looks different from those that are known.
    """
    classes = _Classes(psycopg2.extensions, tracker)

    def wrap(original: Method) -> Method:
        @functools.wraps(original)
        def _connect(dsn: Any, connection_factory: Any = None, **more: Any) -> Any:
            __tracebackhide__ = True
            base = connection_factory or psycopg2.extensions.connection
            if any(more.values()) or not isinstance(base, type):
                # Asynchronous, so not connected yet; or made by a function of the user's own.
                return original(dsn, connection_factory=connection_factory, **more)
            connection = original(dsn, connection_factory=classes.connection(base), **more)
            tracker.connection_opened(connection, functools.partial(_facts, connection), opening_pool.get())
            return connection

        return _connect

    return Patches(Patch(psycopg2, "_connect", wrap))


def _facts(connection: Any, reference: weakref.ref[Any]) -> ConnectionFacts:
    info = connection.info
    server = info.host or "", str(info.port)
    name = type(connection).__name__
    return ConnectionFacts(reference, name, False, info.backend_pid, server, info.dbname, info.user, PSYCOPG2)


class _Classes:
    """Makes the subclasses, once each.

    Args:
        extensions: ``psycopg2.extensions``.
        tracker: Is told.
    """

    def __init__(self, extensions: Any, tracker: Tracker) -> None:
        self._extensions = extensions
        self._tracker = tracker
        self._made: dict[type, type] = {}

    def connection(self, base: type) -> type:
        """Return the subclass of a connection class."""
        if base not in self._made:
            self._made[base] = _subclass(base, self._methods_of_connection(base))
        return self._made[base]

    def cursor(self, base: type) -> type:
        """Return the subclass of a cursor class."""
        if base not in self._made:
            methods = {name: self._executing(getattr(base, name)) for name in _EXECUTING if hasattr(base, name)}
            self._made[base] = _subclass(base, methods)
        return self._made[base]

    def _methods_of_connection(self, base: Any) -> dict[str, Method]:
        tracker = self._tracker

        def close(self: Any) -> None:
            __tracebackhide__ = True
            tracker.transaction_ending(self, PSYCOPG2.transaction_status(self), How.CLOSE)
            base.close(self)
            if self.closed:
                tracker.connection_closed(self)

        def commit(self: Any) -> None:
            __tracebackhide__ = True
            _run(tracker, self, Operation(How.COMMIT), functools.partial(base.commit, self))

        def rollback(self: Any) -> None:
            __tracebackhide__ = True
            _run(tracker, self, Operation(How.ROLLBACK), functools.partial(base.rollback, self))

        def __del__(self: Any) -> None:
            if tracker.knows(self):
                status, is_closed = PSYCOPG2.transaction_status(self), bool(self.closed)
                tracker.connection_finalizing(self, status, is_closed, is_idle_in_pool=False)
            if (finalizer := getattr(base, "__del__", None)) is not None:
                finalizer(self)

        cursor = functools.partialmethod(_cursor, self, base)
        return {"close": close, "commit": commit, "rollback": rollback, "cursor": cursor, "__del__": __del__}  # type: ignore[dict-item]  # a method that is bound

    def _executing(self, original: Method) -> Method:
        tracker = self._tracker

        @functools.wraps(original)
        def execute(cursor: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            operation = Operation(statement=_text(args, kwargs), cursor=weakref.ref(cursor))
            call = functools.partial(original, cursor, *args, **kwargs)
            return _run(tracker, cursor.connection, operation, call)

        return execute


def _subclass(base: type, methods: dict[str, Method]) -> type:
    return type(
        base.__name__,
        (base,),
        {**methods, "__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__},
    )


def _cursor(connection: Any, classes: _Classes, base: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a cursor of the subclass of the class that it would have had."""
    extensions = classes._extensions  # noqa: SLF001 - part of it
    chosen = kwargs.get("cursor_factory") or connection.cursor_factory
    if chosen is None and base.cursor is extensions.connection.cursor:
        chosen = extensions.cursor
    if isinstance(chosen, type) and len(args) < 2:
        return base.cursor(connection, *args, **(kwargs | {"cursor_factory": classes.cursor(chosen)}))
    # A connection class that chooses the class of its cursors itself, as RealDictConnection does.
    cursor = base.cursor(connection, *args, **kwargs)
    if type(cursor).__flags__ & _IS_HEAP_TYPE and type(cursor) not in classes._made.values():  # noqa: SLF001 - as above
        cursor.__class__ = classes.cursor(type(cursor))
    return cursor


_IS_HEAP_TYPE: Final = 1 << 9
"""``Py_TPFLAGS_HEAPTYPE``: only the instances of such classes can be given another class."""


def _run(tracker: Tracker, connection: Any, operation: Operation, call: Callable[[], Any]) -> Any:
    __tracebackhide__ = True
    if not tracker.is_checking() or opening_pool.get() is not None:
        return call()
    before = PSYCOPG2.transaction_status(connection)
    tracker.operation_begins(connection, before, operation)
    try:
        result = call()
    except BaseException as error:
        tracker.operation_ended(connection, (before, PSYCOPG2.transaction_status(connection)), operation, error)
        raise
    tracker.operation_ended(connection, (before, PSYCOPG2.transaction_status(connection)), operation, None)
    return result


def _text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    query = args[0] if args else next(iter(kwargs.values()), "")
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query if isinstance(query, str) else ""
