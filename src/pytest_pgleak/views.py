"""The ledger as `find` sees it: frozen pictures of connections and pools at one instant."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import ConnectionFacts, Moment, PoolFacts
from pytest_pgleak.nesting import NestedCheckout
from pytest_pgleak.prepared.left import Prepared
from pytest_pgleak.session_state.state import LeftState
from pytest_pgleak.transactions import Transaction


class Ending(enum.Enum):
    """How a connection or pool stands."""

    OPEN = "open"
    CLOSED = "closed"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The asyncio task that opened or checked out a connection and that is still running.

    Attributes:
        name: The task's name.
        coroutine: Qualified name of the coroutine it runs.
        filename: File where it waits.
        lineno: Line where it waits.
    """

    name: str
    coroutine: str
    filename: str | None = None
    lineno: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """One connection.

    Attributes:
        serial: Its number in the ledger.
        facts: What was known when it opened.
        opened: When, where and on whose account.
        ending: How it stands now.
        pool: Serial of the pool it belongs to; None for a direct connection.
        checkout: The checkout that has not been returned.
        transaction_status: Name of psycopg's ``TransactionStatus`` now, or when it was dropped.
        backend: The server's row, read while the garbage collector was closing it.
        after_response: For a dropped connection, whether the response had started.
        task: The task that holds it, where that is not the one which runs the test.
        began: Where the open transaction began, if anybody saw it.
        loop_is_closed: Whether the event loop that it was opened in is closed, or gone.
        was_finished: Whether anybody has ever committed or rolled back on it.
        is_undone: Whether pgleak was the last to roll back on it, after a finding.
        taken: Where a session took the connection; `checkout` is then where that session was made.
        with_thread: For a dropped connection, whether it went with its thread, as what is local to that does.
    """

    serial: int
    facts: ConnectionFacts
    opened: Moment
    ending: Ending
    pool: int | None = None
    checkout: Moment | None = None
    transaction_status: str | None = None
    backend: Backend | None = None
    after_response: bool | None = None
    task: TaskInfo | None = None
    began: Moment | None = None
    loop_is_closed: bool = False
    was_finished: bool = False
    is_undone: bool = False
    taken: Moment | None = None
    with_thread: bool = False

    @property
    def held(self) -> Moment:
        """Since when and on whose account it is held: the checkout, or else the opening."""
        return self.checkout or self.opened

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open in which nothing runs (INTRANS or INERROR)."""
        return self.transaction_status in ("INTRANS", "INERROR")


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. Attributes as in `ConnectionView`.

    Attributes:
        members: How many connections of it are open.
        checked_out: How many of them are checked out.
        dropped: How many idle ones the garbage collector has closed.
    """

    serial: int
    facts: PoolFacts
    opened: Moment | None
    ending: Ending
    members: int = 0
    checked_out: int = 0
    dropped: int = 0
    loop_is_closed: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Everything in the ledger that has not been judged yet.

    Attributes:
        connections: In the order in which they were opened.
        pools: By serial.
        transactions: Those that have ended, in this order: every one that wrote, and those that were open when their
            connection went back to its pool.
        nested: Connections that were taken while another one of the same pool was held.
        prepared: Transactions that were prepared here and not finished here.
        sessions: What was left in the sessions of pooled connections.
    """

    connections: tuple[ConnectionView, ...] = ()
    pools: dict[int, PoolView] = field(default_factory=dict)
    transactions: tuple[Transaction, ...] = ()
    nested: tuple[NestedCheckout, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    sessions: tuple[LeftState, ...] = ()
