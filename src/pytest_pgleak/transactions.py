"""A transaction that has ended: who wrote in it, who ended it and how. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import ConnectionFacts, Moment, PoolFacts


class How(enum.Enum):
    """What ended a transaction."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    CLOSE = "close"
    POOL = "return to the pool"
    COLLECTED = "garbage collection"
    PREPARED = "prepare"
    KILLED = "end of its process"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction, from its first statement to its end.

    Attributes:
        serial: Its number.
        connection: Serial of its connection.
        facts: Facts of its connection.
        began: Where its first statement was executed.
        ended: Where it was ended.
        how: What ended it.
        status: Name of psycopg's ``TransactionStatus`` right before the end.
        wrote: Where the statement was executed that wrote first; None where it wrote nothing, or nothing is known.
        evidence: The server's row after that write: ``backend_xid``, the tables that are locked for writing.
        error: Name of the exception that the end itself raised: a ``COMMIT`` that failed.
        cause: Name of the exception that was being handled when it was ended.
        failed_by: Name of the exception with which a statement in it failed.
        forced: Whether it was to be rolled back whatever happens (``force_rollback=True``).
        savepoint: Where a ``conn.transaction()`` block ended that was only a savepoint in it.
        began_after_response: Whether the response of the request had started when it began.
        after_response: Whether it had when the transaction ended; None outside a request.
        pool: Serial of the pool of its connection.
        pool_facts: What was known of that pool.
        holder: Where the connection was opened or checked out; the ledger knows.
        of_session: Whether that is where a session was made, which took the connection later.
    """

    serial: int
    connection: int
    facts: ConnectionFacts
    began: Moment
    ended: Moment
    how: How
    status: str
    wrote: Moment | None = None
    evidence: Backend | None = None
    error: str | None = None
    cause: str | None = None
    failed_by: str | None = None
    forced: bool = False
    savepoint: Moment | None = None
    began_after_response: bool = False
    after_response: bool | None = None
    pool: int | None = None
    pool_facts: PoolFacts | None = None
    holder: Moment | None = None
    of_session: bool = False

    @property
    def committed(self) -> bool:
        """Whether the server has made it last: a ``COMMIT`` of a failed transaction answers ``ROLLBACK``."""
        return self.how is How.COMMIT and self.error is None and self.status != "INERROR"

    @property
    def work(self) -> Moment:
        """Where it wrote, or else began."""
        return self.wrote or self.began
