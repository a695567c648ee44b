"""Connections that nobody uses: reached without asking their pool or their event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_pgleak.psycopg_internals.operations import status_of


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
        if not connection.closed and status_of(connection) == "IDLE" and not connection.pgconn.pipeline_status:
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
