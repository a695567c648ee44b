"""What a worker would have had to tell when it is killed: kept in its journal as it goes on.

What was found final at the end of a request (dropped, lost) is written at once; what is still open, a little later, for
it may be released late. A transaction in which rows have changed is written down until it ends: when the process is
killed, its backend goes and so does the write, and nobody could be asked any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.clock import Clock
from pytest_pgleak.events import ConnectionFacts, Event, EventKind, Moment
from pytest_pgleak.find import finding_at, of_transactions
from pytest_pgleak.findings import Finding
from pytest_pgleak.frames import is_user_code, origin
from pytest_pgleak.kinds import CONNECTION_NOT_CLOSED, WRITE_LOST
from pytest_pgleak.live.journal import Journal
from pytest_pgleak.rendering import place
from pytest_pgleak.transactions import How, Transaction
from pytest_pgleak.views import Ending, View

_CHANGED: Final = re.compile(r"(INSERT 0|UPDATE|DELETE|MERGE|COPY) [1-9]")
_ENDS: Final = frozenset(
    (
        EventKind.TRANSACTION_FINISHED,
        EventKind.TRANSACTION_ENDED,
        EventKind.CONNECTION_CLOSED,
        EventKind.CONNECTION_FINALIZED,
        EventKind.CONNECTION_GONE,
    )
)


_FINAL: Final = (EventKind.CONNECTION_FINALIZED, EventKind.CHECKOUT_COLLECTED)
_CLOSES: Final = _ENDS - {EventKind.TRANSACTION_FINISHED, EventKind.TRANSACTION_ENDED}


@dataclass(frozen=True, slots=True)
class Standing:
    """What would be found if the worker were judged now. The last one counts."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection was opened.

    Attributes:
        connection: Its serial.
        facts: What is known of it.
        moment: Where it was opened.
        pool: Serial of its pool.
    """

    connection: int
    facts: ConnectionFacts
    moment: Moment
    pool: int | None


@dataclass(frozen=True, slots=True)
class Closed:
    """That connection is closed.

    Attributes:
        connection: Its serial.
        at: When, seconds.
    """

    connection: int
    at: float


@dataclass(frozen=True, slots=True)
class Wrote:
    """A transaction has changed rows, and goes on.

    Attributes:
        connection: Serial of its connection.
        facts: What is known of that.
        moment: Where it wrote.
    """

    connection: int
    facts: ConnectionFacts
    moment: Moment


@dataclass(frozen=True, slots=True)
class Over:
    """That transaction is over."""

    connection: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The worker shuts down in good order: what it has not said yet, is no news.

    Attributes:
        at: When, seconds.
    """

    at: float


class Notes:
    """Keeps the journal up to date about connections, and about transactions that have changed rows.

    Args:
        journal: The journal.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: set[int] = set()
        self.is_suspicious = False
        """Whether something has happened since it was set to False that nothing will make good."""

    def executed(
        self, connection: int, facts: ConnectionFacts, status: str, answer: str, moment: Callable[[], Moment]
    ) -> None:
        """A statement was executed.

        Args:
            connection: Serial of its connection.
            facts: What is known of that.
            status: Name of the ``TransactionStatus`` now.
            answer: The server's, as ``INSERT 0 1``.
            moment: Returns where that was.
        """
        if status == "INTRANS" and connection not in self._open and _CHANGED.match(answer):
            self._open.add(connection)
            self._journal.write(Wrote(connection, facts, _short(moment())))

    def see(self, event: Event) -> None:
        """Something has happened to a connection."""
        if event.kind in _FINAL or (event.transaction is not None and not event.transaction.committed):
            self.is_suspicious = True
        if event.kind is EventKind.CONNECTION_OPENED and event.connection is not None and event.moment is not None:
            self._journal.write(Opened(event.subject, event.connection, _short(event.moment), event.pool))
        elif event.kind in _CLOSES:
            self._journal.write(Closed(event.subject, Clock.monotonic()))
        if event.kind in _ENDS and event.subject in self._open:
            self._open.discard(event.subject)
            self._journal.write(Over(event.subject))


def _short(moment: Moment) -> Moment:
    """Leave out of a stack what nobody will be shown: most of it is the server's and the framework's."""
    own = tuple(frame for frame in moment.stack if is_user_code(frame[0].co_filename))
    return replace(moment, stack=own or moment.stack)


@dataclass(slots=True)
class LastWords:
    """What the journal of a worker says that is not there any more.

    Attributes:
        standing: What would have been found.
        open_writes: Transactions that it was in the middle of, by their connections.
        open: Its connections, by their serials.
        has_shut_down: Whether it has ended in good order.
    """

    standing: tuple[Finding, ...]
    open_writes: dict[int, Wrote]
    open: dict[int, Opened]
    has_shut_down: bool = False

    @classmethod
    def none(cls) -> LastWords:
        """Begin to read a journal."""
        return cls((), {}, {})

    def take(self, record: object) -> None:
        """Take one more record."""
        if isinstance(record, Standing):
            self.standing = record.findings
        elif isinstance(record, Opened):
            self.open[record.connection] = record
        elif isinstance(record, Closed):
            self.open.pop(record.connection, None)
        elif isinstance(record, Wrote):
            self.open_writes[record.connection] = record
        elif isinstance(record, Over):
            self.open_writes.pop(record.connection, None)
        elif isinstance(record, Goodbye):
            self.has_shut_down = True


def lost_write(wrote: Wrote, status: int) -> Finding:
    """Make the finding about a write that went with its process, though the client holds a good answer.

    Args:
        wrote: The transaction.
        status: The status of that answer.
    """
    if wrote.moment.request is not None:
        wrote.moment.request.status = status
    moment = wrote.moment
    transaction = Transaction(0, wrote.connection, wrote.facts, moment, moment, How.KILLED, "INTRANS", moment)
    return of_transactions(WRITE_LOST, [transaction], View())


def outlived(opened: Opened, backend: Backend) -> Finding:
    """Make the finding about a backend that is still at work for a process that has shut down.

    Args:
        opened: The connection.
        backend: What the server shows.
    """
    moment = opened.moment
    return finding_at(
        CONNECTION_NOT_CLOSED,
        "connection",
        opened.connection,
        moment.owner,
        moment,
        Ending.OPEN,
        connection=opened.facts,
        backend=backend,
        server_known=True,
    )


def killed_in_transaction(wrote: Wrote, pid: int, status: int | None, root: Path) -> str:
    """Say that a write went with its process, where no client was told otherwise: an accusation would be too much.

    Args:
        wrote: The transaction.
        pid: The worker's.
        status: The status of the answer that the client has got, if any.
        root: pytest's root directory.
    """
    moment, at = wrote.moment, origin(wrote.moment.stack)
    where = f" at {place(at, root)}" if at is not None else ""
    request = moment.request
    told = "the client got no answer" if status is None else f"the client was answered {status}"
    of = f" of {request.method} {request.path} ({told})" if request is not None else ""
    return (
        f"worker process {pid} ended without a shutdown in a transaction that had written{where}{of}, in"
        f" {moment.owner.nodeid or 'no test'}: its backend {wrote.facts.backend_pid} is gone, and the write is lost"
    )
