"""What psycopg and psycopg_pool did in this process, one value each."""

from __future__ import annotations

import enum
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_pgleak.activity import Backend
from pytest_pgleak.frames import RawStack
from pytest_pgleak.libraries.library import Library
from pytest_pgleak.libraries.psycopg3 import PSYCOPG
from pytest_pgleak.owners import Owner
from pytest_pgleak.prepared.gids import GidUse
from pytest_pgleak.requests import Request

if TYPE_CHECKING:
    from pytest_pgleak.transactions import Transaction


class EventKind(enum.Enum):
    """The things that can happen to a connection or a pool."""

    CONNECTION_OPENED = "connection opened"
    CONNECTION_CLOSED = "connection closed"
    CONNECTION_FINALIZED = "connection finalized by the garbage collector"
    CONNECTION_GONE = "connection object gone"
    CHECKED_OUT = "checked out"
    TAKEN_FOR = "checked out by a session that was made before"
    RETURNED = "returned"
    CONNECTION_REVIVED = "connection object that was gone is given back to its pool by whoever held it"
    CHECKOUT_COLLECTED = "checked-out connection taken back when the garbage collector came"
    DETACHED = "taken out of its pool for good"
    TRANSACTION_BEGAN = "transaction began"
    TRANSACTION_ENDED = "transaction ended"
    TRANSACTION_FINISHED = "commit or rollback was called"
    PREPARED = "transaction prepared, or one that was prepared finished"
    POOL_OPENED = "pool opened"
    POOL_CLOSED = "pool closed"
    POOL_GONE = "pool object gone"


@dataclass(frozen=True, slots=True)
class Moment:
    """When, where and on whose account something happened.

    Attributes:
        at: ``Clock.monotonic()``, seconds.
        owner: Who answers for it.
        stack: The whole call stack, innermost frame first.
        request: The request that was being answered.
        thread: Name of the thread.
        task: The asyncio task, weakly.
    """

    at: float
    owner: Owner
    stack: RawStack = ()
    request: Request | None = None
    thread: str = "MainThread"
    task: weakref.ref[Any] | None = None


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of a connection from the moment it opens. No password.

    Attributes:
        reference: The connection, weakly.
        class_name: Name of its class, as ``AsyncConnection``.
        is_async: Whether it is used with ``await``.
        backend_pid: Process number of its backend; 0 where the server gave none.
        server: Which server, as ``(host, port)``.
        dbname: Database.
        user: Role.
        library: Whose connection it is.
        loop: The event loop that it was opened in, weakly; None where it needs none.
        written_with: Whose words to use for it, where it was taken out of a pool of another library for good.
    """

    reference: weakref.ref[Any]
    class_name: str
    is_async: bool
    backend_pid: int
    server: tuple[str, str]
    dbname: str
    user: str
    library: Library = PSYCOPG
    loop: weakref.ref[Any] | None = None
    written_with: Library | None = None


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What is known of a pool from the moment it opens.

    Attributes:
        reference: The pool, weakly.
        class_name: Name of its class, as ``AsyncConnectionPool``.
        is_async: Whether it is used with ``await``.
        name: The pool's own name.
        max_size: Its ``max_size`` when it opened; 0 where there is no limit.
        library: Whose pool it is.
        loop: As for a connection.
    """

    reference: weakref.ref[Any]
    class_name: str
    is_async: bool
    name: str
    max_size: int
    library: Library = PSYCOPG
    loop: weakref.ref[Any] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What happened.
        subject: Serial of the connection, or of the pool for events of pools.
        moment: When, where and on whose account; None where nobody stands behind it (garbage collection).
        pool: Serial of the pool that a connection belongs to; for a pool that opened, of the one whose place it takes.
        connection: Facts, when a connection opened, or a transaction was prepared on it.
        opened_pool: Facts, when a pool opened.
        transaction_status: Name of psycopg's ``TransactionStatus`` at that moment.
        backend: The server's row at that moment, where it was looked at.
        after_response: Whether the request's response had started; None outside a request.
        with_thread: Whether the thread that finalized it had come to its end.
        transaction: The transaction that ended.
        held: For a checkout, the connection of this pool that the same flow of control holds, and where it took it.
        gid: Which prepared transaction, and what becomes of it.
    """

    kind: EventKind
    subject: int
    moment: Moment | None = None
    pool: int | None = None
    connection: ConnectionFacts | None = None
    opened_pool: PoolFacts | None = None
    transaction_status: str | None = None
    backend: Backend | None = None
    after_response: bool | None = None
    with_thread: bool = False
    transaction: Transaction | None = None
    held: tuple[int, Moment] | None = None
    gid: GidUse | None = None
