"""A prepared transaction: as the client left it, as the server lists it, and as a finding shows it. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_pgleak.events import ConnectionFacts, Moment

Server = tuple[str, str]
"""Host and port, as libpq says them of an open connection."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction that this process has prepared and has not finished.

    Attributes:
        gid: Its global identifier.
        facts: What is known of the connection that it was prepared on.
        moment: Where, when and on whose account.
        by_sql: Whether it was a statement, and not ``tpc_prepare()``.
    """

    gid: str
    facts: ConnectionFacts
    moment: Moment
    by_sql: bool = False


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One row of ``pg_prepared_xacts`` (PostgreSQL manual, section 54.17), named after its columns.

    Attributes:
        gid: Global identifier; no two have the same at one time, whatever their databases.
        transaction: Transaction id, as text.
        seconds: Seconds since ``prepared``, by the server's clock.
        owner: Role that prepared it.
        database: Database that it belongs to.
    """

    gid: str
    transaction: str
    seconds: float
    owner: str
    database: str

    @property
    def identity(self) -> tuple[str, str]:
        """What no other row will have, though its gid may be used again."""
        return (self.gid, self.transaction)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A backend that waits for a prepared transaction.

    Attributes:
        pid: Its process number.
        query: What it was asked for.
    """

    pid: int
    query: str | None = None


@dataclass(frozen=True, slots=True)
class LeftPrepared:
    """A prepared transaction as a finding shows it.

    Attributes:
        gid: Its global identifier.
        server: The server it was left on.
        database: The database that it can be finished in.
        row: What the server lists; None where the server could not be asked.
        is_known: Whether this process prepared it.
        by_sql: Whether it was a statement that did.
        locks: Tables that it has locked, and the modes.
        waiters: Who waits for it.
        stays: Whether it is left where it is: in a database that is not the plugin's own.
    """

    gid: str
    server: Server
    database: str
    row: PreparedRow | None = None
    is_known: bool = True
    by_sql: bool = False
    locks: tuple[tuple[str, str], ...] = ()
    waiters: tuple[Waiter, ...] = ()
    stays: bool = False
