"""The only module that patches psycopg and psycopg_pool.

Public methods are wrapped where there are any: ``close``, ``wait`` (whatever a connection is asked for goes through
it), ``getconn``, ``putconn``, ``open``, and ``wait`` of pools. What is not public, and
why it is needed all the same:

- ``BaseConnection.__init__`` and ``__del__``: every connection passes through them, also those of subclasses and of a
  ``connect`` that somebody imported by name before the patch. ``connect`` itself is bound into the ``psycopg``
  namespace at import and cannot be replaced for everybody.
- ``ConnectionPool._connect``: the only place that knows for which pool a worker opens a connection.
- ``BaseConnection._connect_gen``: runs while a connection is being opened. A task that outlives its test may be in
  the middle of it when the test ends. Where it is missing, a fixed moment is waited instead. It is also where a server
  that is full refuses.
- The names of the generators that ``Connection.wait`` is given (``_commit_gen``, ``_rollback_gen``, ``_exit_gen``), and
  of their arguments: what a connection is asked for. By an unknown name it is a statement.
- ``Connection._pipeline``: what a connection was asked for in pipeline mode and has not sent yet.
- ``Connection._pool``: set while a connection is checked out, None while it idles in its pool, absent otherwise;
  psycopg's own ``close`` and ``__del__`` read it.
- A pool's ``_pool``, ``_lock``, ``_waiting`` and ``_add_to_pool``: an idle connection is taken out and put back where
  it was, so that nobody else has it while we look into its session.
- ``Connection._notify_handlers``: whether notifications wait for handlers or for ``notifies()``.
- ``Connection._tpc``: the identifier of its two-phase transaction, and whether it is prepared. Where it is missing,
  only statements tell of prepared transactions.
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
from pytest_pgleak.prepared.gids import GidUse, gids_in
from pytest_pgleak.tracking import Tracker
from pytest_pgleak.transaction_tracking import Operation
from pytest_pgleak.transactions import How

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


def finish(facts: ConnectionFacts) -> None:
    """Close a connection on the client's side, without asking its pool or its event loop."""
    if (connection := facts.reference()) is not None:
        connection.pgconn.finish()


def keeps_connections(pool: Any) -> bool:
    """Tell whether a pool keeps what it gets back; a null pool closes it."""
    return not any(base.__name__.endswith("NullConnectionPool") for base in type(pool).__mro__)


def is_in_a_pool(connection: Any) -> bool:
    """Tell whether a pool has a connection back, its ``reset`` included."""
    return hasattr(connection, "_pool") and connection._pool is None  # noqa: SLF001


def in_hand(connection: Any, action: Callable[[], object]) -> None:
    """Run something on a connection that nobody else can reach, if it is idle.

    Args:
        connection: The connection; an async one in the thread of its event loop.
        action: What to run. It speaks to ``connection.pgconn`` only.
    """
    if hasattr(connection, "__aenter__"):
        if connection.lock.locked():
            return
    elif not connection.lock.acquire(blocking=False):
        return
    try:
        if not connection.closed and _status(connection) == "IDLE" and not connection.pgconn.pipeline_status:
            action()
            _hand_over_notifications(connection)
    finally:
        if not hasattr(connection, "__aenter__"):
            connection.lock.release()


def while_idle(pool: Any, connection: Any, action: Callable[[], object]) -> None:
    """Run something on a connection that idles in its pool, and that nobody can take meanwhile.

    Args:
        pool: The pool; an async one in the thread of its event loop, where nothing else runs meanwhile.
        connection: The connection.
        action: As for `in_hand`.
    """
    if hasattr(pool, "__aenter__"):
        if connection in pool._pool:  # noqa: SLF001
            in_hand(connection, action)
        return
    # Its users may be in other threads: it is out for that moment, as for any other client. Whoever comes meanwhile
    # waits for it, or gets another.
    with pool._lock:  # noqa: SLF001
        if connection not in pool._pool:  # noqa: SLF001
            return
        place = pool._pool.index(connection)  # noqa: SLF001
        del pool._pool[place]  # noqa: SLF001
    try:
        in_hand(connection, action)
    finally:
        with pool._lock:  # noqa: SLF001
            nobody_waits = not pool.closed and not pool._waiting  # noqa: SLF001
            if nobody_waits:
                pool._pool.insert(place, connection)  # noqa: SLF001
        if not nobody_waits:
            pool._add_to_pool(connection)  # noqa: SLF001


def _hand_over_notifications(connection: Any) -> None:
    # What has come in while we looked lies in libpq's queue. With handlers it waits there for the next statement, as it
    # would have; without them `notifies()` would not look there, but into this backlog.
    if not connection._notify_handlers:  # noqa: SLF001
        while (notification := connection.pgconn.notifies()) is not None:
            if connection.pgconn.notify_handler is not None:
                connection.pgconn.notify_handler(notification)


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
            tracker.configuring(self, _operation(gen))
            return original(self, gen, *args, **kwargs)
        before, operation = _status(self), _operation(gen)
        tracker.operation_begins(self, before, operation)
        try:
            result = original(self, gen, *args, **kwargs)
        except BaseException as error:
            tracker.operation_ended(self, (before, _status(self)), operation, error)
            raise
        tracker.operation_ended(self, (before, _status(self)), operation, None)
        return result

    return wait


def _wrap_async_wait(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def wait(self: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not tracker.is_checking():
            return await original(self, gen, *args, **kwargs)
        if _is_pools_business(self):
            tracker.configuring(self, _operation(gen))
            return await original(self, gen, *args, **kwargs)
        before, operation = _status(self), _operation(gen)
        tracker.operation_begins(self, before, operation)
        try:
            result = await original(self, gen, *args, **kwargs)
        except BaseException as error:
            tracker.operation_ended(self, (before, _status(self)), operation, error)
            raise
        tracker.operation_ended(self, (before, _status(self)), operation, None)
        return result

    return wait


def _status(connection: Any) -> str:
    try:
        if connection._pipeline is not None and connection._pipeline.command_queue:  # noqa: SLF001
            return "ACTIVE"  # asked for, but not sent yet
        return str(connection.info.transaction_status.name)
    except Exception:  # noqa: BLE001 - a mock, or what somebody has made of a connection; its user must not notice
        return "UNKNOWN"


def _is_pools_business(connection: Any) -> bool:
    # What a pool does to a connection of its own: configure, reset, check of idle ones.
    return _opening_pool.get() is not None or (hasattr(connection, "_pool") and connection._pool is None)  # noqa: SLF001


def _operation(generator: Any) -> Operation:
    name = getattr(generator, "__name__", "")
    given = getattr(getattr(generator, "gi_frame", None), "f_locals", {})
    if name == "_commit_gen":
        return Operation(How.COMMIT)
    if name == "_rollback_gen":
        return Operation(How.ROLLBACK)
    if name == "_exit_gen" and "exc_type" in given:  # the end of a pipeline goes by the same name
        forced = bool(getattr(given.get("self"), "force_rollback", False))
        return Operation(is_block=True, fails=given.get("exc_val") is not None, forced=forced)
    if name == "_tpc_prepare_gen":
        return Operation(How.PREPARED, gids=_gid(given, finishes=False))
    if name == "_tpc_finish_gen":
        how = How.ROLLBACK if given.get("action") == "ROLLBACK" else How.COMMIT
        return Operation(how, gids=_gid(given, finishes=True))
    query, parameters = given.get("query", given.get("statement")), given.get("params")
    if query is None:
        return Operation()
    statement = _text(query)
    if name == "_declare_gen" and getattr(given.get("self"), "withhold", False):
        statement = f'declare "{given["self"].name}" cursor with hold for {statement}'
    cursor = given.get("self")
    tag = None if cursor is None or not hasattr(cursor, "statusmessage") else weakref.ref(cursor)
    return Operation(statement=statement, gids=gids_in(statement, parameters), parameters=parameters, cursor=tag)


def _gid(given: dict[str, Any], *, finishes: bool) -> tuple[GidUse, ...]:
    xid, prepared = getattr(given.get("self"), "_tpc", None) or (None, False)
    if finishes:
        # Without an argument it is this connection's own, and that may end in one phase.
        xid = given.get("xid") or (xid if prepared else None)
    return () if xid is None else (GidUse(str(xid), finishes),)


def _text(query: Any) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, str):
        return query
    if hasattr(query, "interpolations"):  # a template string, Python 3.14
        return "%s".join(query.strings)
    try:
        return str(query.as_string())
    except Exception:  # noqa: BLE001 - the text is a help only; psycopg itself will say what is wrong with it
        return ""


def _wrap_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def close(self: Any) -> None:
        __tracebackhide__ = True
        if not self.closed and not _returns_on_close(self):
            tracker.transaction_ending(self, _status(self), How.CLOSE)
            if is_in_a_pool(self):
                tracker.connection_leaves_pool(self)
        original(self)
        if self.closed:
            tracker.connection_closed(self)

    return close


def _wrap_async_close(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def close(self: Any) -> None:
        __tracebackhide__ = True
        if not self.closed and not _returns_on_close(self):
            tracker.transaction_ending(self, _status(self), How.CLOSE)
            if is_in_a_pool(self):
                tracker.connection_leaves_pool(self)
        await original(self)
        if self.closed:
            tracker.connection_closed(self)

    return close


def _returns_on_close(connection: Any) -> bool:
    return bool(getattr(getattr(connection, "_pool", None), "close_returns", False))


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
        token = _opening_pool.set(self)
        try:
            connection = original(self, *args, **kwargs)
        except Exception as error:
            tracker.pool_has_tried(self, error)
            raise
        finally:
            _opening_pool.reset(token)
        tracker.pool_has_tried(self, None)
        tracker.configured(connection)
        return connection

    return _connect


def _wrap_async_pool_connect(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        token = _opening_pool.set(self)
        try:
            connection = await original(self, *args, **kwargs)
        except Exception as error:
            tracker.pool_has_tried(self, error)
            raise
        finally:
            _opening_pool.reset(token)
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
            tracker.transaction_ending(conn, _status(conn), How.POOL)
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
            tracker.transaction_ending(conn, _status(conn), How.POOL)
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
