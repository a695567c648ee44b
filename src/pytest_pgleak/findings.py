"""A judged leak, with everything that its failure text needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_pgleak.activity import Backend
from pytest_pgleak.budget.peaks import OverLimit
from pytest_pgleak.events import ConnectionFacts, PoolFacts
from pytest_pgleak.frames import Frame, RawStack
from pytest_pgleak.kinds import KINDS
from pytest_pgleak.libraries.library import Library, Words
from pytest_pgleak.libraries.psycopg3 import PSYCOPG
from pytest_pgleak.owners import Owner
from pytest_pgleak.pgbouncer.through import Through
from pytest_pgleak.prepared.left import LeftPrepared
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.session_state.state import Leftover, SharedServer
from pytest_pgleak.transactions import Transaction
from pytest_pgleak.views import Ending, TaskInfo

Subject = Literal[
    "connection",
    "checkout",
    "pool",
    "backend",
    "transaction",
    "nested checkout",
    "prepared transaction",
    "connections",
    "session",
]


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool as a finding shows it.

    Attributes:
        facts: Its name, class and size.
        ending: How it stands.
        members: How many of its connections are open.
        checked_out: How many are out, lost ones included.
    """

    facts: PoolFacts
    ending: Ending
    members: int
    checked_out: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake.

    Attributes:
        kind: Its stable code, one of `pytest_pgleak.kinds.KINDS`.
        owner: Who answers for it.
        origin: The first frame in the user's own code: where it was opened or checked out, or the transaction began.
        ending: How the connection or pool stands.
        subject: What sort of thing was left.
        serial: Number of that thing in the ledger; the pid for a backend.
        stack: The user's frames, innermost first.
        request: The request in which it happened.
        dependency: The FastAPI dependency in which it happened.
        connection: Facts of the connection.
        pool: The pool it belongs to, or that is the finding.
        transaction_status: psycopg's ``TransactionStatus`` when it was judged or dropped.
        backend: What the server saw.
        through: What PgBouncer says of the connection, where it leads through one.
        server_known: Whether the server was asked; where it was, no backend means that it is gone.
        after_response: For what was dropped, whether the response had started.
        task: The task that still holds it.
        thread: Name of the thread, where that is not the main one.
        with_thread: For what was dropped, whether it went with its thread, as what is local to that does.
        loop_is_closed: Whether the event loop that it was opened in is closed, or gone.
        began: For an open transaction that is not charged to whoever began it, where it began.
        is_repeated: Whether it was told before, and nothing has changed since.
        opened: For an open transaction, where its connection was opened or checked out; for a nested checkout, where
            the first one was taken.
        transactions: The transactions that ended so, of one request and one line.
        ended_at: Where the first of them was ended.
        written: Names of the tables that were written, as far as they are known.
        left: What was left in the session.
        shared: The server connections of PgBouncer's on which it was left.
        prepared: The prepared transaction.
        over: How many connections were open at once, and who held them.
        taken: Where a session took the connection, that was made at the origin.
        written_with: How one writes with the library what the fix asks for; None for that library's usual way.
        process: Process number of the worker of a live server in which it was found; None for this process.
    """

    kind: str
    owner: Owner
    origin: Frame | None
    ending: Ending
    subject: Subject
    serial: int
    stack: tuple[Frame, ...] = ()
    request: RequestInfo | None = None
    dependency: str | None = None
    connection: ConnectionFacts | None = None
    pool: PoolState | None = None
    transaction_status: str | None = None
    backend: Backend | None = None
    through: Through | None = None
    server_known: bool = False
    after_response: bool | None = None
    task: TaskInfo | None = None
    thread: str | None = None
    with_thread: bool = False
    loop_is_closed: bool = False
    began: Frame | None = None
    is_repeated: bool = False
    opened: Frame | None = None
    transactions: tuple[Transaction, ...] = ()
    ended_at: Frame | None = None
    written: tuple[str, ...] = ()
    left: tuple[Leftover, ...] = ()
    shared: SharedServer | None = None
    prepared: LeftPrepared | None = None
    over: OverLimit | None = None
    taken: Frame | None = None
    written_with: Words | None = None
    process: int | None = None

    @property
    def headline(self) -> str:
        """The sentence after the code."""
        return KINDS[self.kind].headline

    @property
    def library(self) -> Library:
        """The library of the pool, or else of the connection."""
        facts = self.pool.facts if self.pool is not None else self.connection
        return PSYCOPG if facts is None else facts.library

    @property
    def words(self) -> Words:
        """How one writes with that library what a fix asks for."""
        return self.written_with or words_of(self.connection, self.pool)

    @property
    def can_heal(self) -> bool:
        """Whether waiting may still make it good: what was dropped stays dropped."""
        return self.ending is Ending.OPEN and not self.is_repeated

    @property
    def lives_on(self) -> bool:
        """Whether only the checkout has ended with the garbage collector: its connection is back in the pool."""
        return self.subject == "checkout" and self.ending is Ending.DROPPED and self.serial < 0

    @property
    def place(self) -> str:
        """Where it comes from, as ``file:line``; what findings are grouped by."""
        return f"{self.origin.filename}:{self.origin.lineno}" if self.origin else "(unknown)"


def words_of(connection: ConnectionFacts | None, pool: PoolState | None, stack: RawStack = ()) -> Words:
    """Return how one writes things with the library of a pool, or else of a connection.

    Args:
        connection: The connection.
        pool: The pool it belongs to, or that is meant itself.
        stack: Where it was opened or taken.
    """
    is_async = connection.is_async if connection is not None else pool is not None and pool.facts.is_async
    facts = (
        connection
        if pool is None or (connection is not None and pool.facts.library is connection.library)
        else pool.facts
    )
    if facts is None:
        return PSYCOPG.words("", is_async, stack)
    library = facts.written_with if isinstance(facts, ConnectionFacts) else None
    return (library or facts.library).words(facts.class_name, is_async, stack)
