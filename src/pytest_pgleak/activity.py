"""What the server says: rows of ``pg_stat_activity`` as values, named after its columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pytest_pgleak.pgbouncer.through import Through


@dataclass(frozen=True, slots=True)
class Backend:
    """One row of ``pg_stat_activity`` (PostgreSQL manual, section 27.2.3), with its locks.

    Attributes:
        pid: Process number of the backend.
        backend_start: Start time as the server's text; with ``pid`` the identity of the backend, for a pid alone
            can be used again.
        datname: Database.
        usename: Role, None where it may not be seen.
        application_name: As the client set it, at most 63 bytes.
        client_addr: Address of the client, None over a Unix socket.
        client_port: Port of the client, -1 over a Unix socket.
        state: ``active``, ``idle``, ``idle in transaction``, … or None where the role may not see it.
        backend_xid: Transaction id, assigned with the first write; None for a transaction that only read.
        query: Last statement, as the server keeps it.
        seconds_in_state: Seconds since ``state_change``, by the server's clock.
        locks: Names of the lock modes held on user tables, or on advisory keys.
        written: Oids of the relations that are locked for writing. A lock that a savepoint took goes with the
            savepoint's rollback, while ``backend_xid`` stays (PostgreSQL manual, section 13.3).
        schemas: Oids of the schemas in which its transaction has made a relation.
    """

    pid: int
    backend_start: str | None = None
    datname: str | None = None
    usename: str | None = None
    application_name: str | None = None
    client_addr: str | None = None
    client_port: int | None = None
    state: str | None = None
    backend_xid: str | None = None
    query: str | None = None
    seconds_in_state: float | None = None
    locks: tuple[str, ...] = ()
    written: tuple[int, ...] = ()
    schemas: tuple[int, ...] = ()

    @property
    def has_written(self) -> bool:
        """Whether its transaction has written something that a rollback would lose.

        A transaction id alone does not say so: ``SELECT … FOR UPDATE`` and a refused ``INSERT`` have one as well.
        """
        return self.backend_xid is not None and bool(self.written)

    @property
    def identity(self) -> tuple[int, str | None]:
        """The pair that no other backend of this server will ever have."""
        return (self.pid, self.backend_start)

    @property
    def in_transaction(self) -> bool:
        """Whether the row shows an open transaction that nothing is running in."""
        return self.state is not None and self.state.startswith("idle in transaction")


@dataclass(frozen=True, slots=True)
class Relations:
    """What the catalog says, after the transaction, of what it was that a transaction has written.

    Attributes:
        found: Name and ``relkind`` by oid; ``t`` for what is temporary, whatever else it is.
        schemas: Oids of those schemas, of the ones asked for, that outlive a session.
    """

    found: dict[int, tuple[str, str]] = field(default_factory=dict)
    schemas: frozenset[int] = frozenset()

    def may_lose(self, backend: Backend) -> bool:
        """Tell whether a rollback of what a row shows as written loses anything.

        A sequence keeps its lock when the savepoint is rolled back in which ``nextval`` was called, and a number that
        it has given out is not given back. A temporary table goes with its session; one that was made by this very
        transaction is not in the catalog any more, but the schema is in which it was made.
        """
        unknown = [oid for oid in backend.written if oid not in self.found]
        if unknown and (not backend.schemas or self.schemas.intersection(backend.schemas)):
            return True
        return any(self.found[oid][1] not in "St" for oid in backend.written if oid in self.found)

    def tables(self, backend: Backend) -> tuple[str, ...]:
        """Return the names of the tables that a row shows as written, as far as they are known."""
        known = (self.found[oid] for oid in backend.written if oid in self.found)
        return tuple(sorted(name for name, kind in known if kind not in "Sti"))


@dataclass(frozen=True, slots=True)
class Activity:
    """One read of the server: the backends that somebody asked about.

    Attributes:
        backends: By pid.
        new: Backends of the watched databases that no ledger entry explains and that were not there before.
        known: Whether a server could be asked at all. Where not, an absent pid means nothing.
        blind: The numbers of those backends whose server could not be asked: that they are absent means nothing.
        through: What PgBouncer says of the connections that lead through it, by their number for the backend.
    """

    backends: dict[int, Backend] = field(default_factory=dict)
    new: tuple[Backend, ...] = ()
    known: bool = False
    blind: frozenset[int] = frozenset()
    through: dict[int, Through] = field(default_factory=dict)

    def knows(self, pid: int) -> bool:
        """Tell whether the server of a backend was asked: where it was, no row means that the backend is gone."""
        return self.known and pid not in self.blind

    @classmethod
    def of(cls, backends: Iterable[Backend], new: Iterable[Backend] = ()) -> Activity:
        """Build an activity from rows that were read."""
        return cls({backend.pid: backend for backend in backends}, tuple(new), known=True)


NOTHING_KNOWN = Activity()
"""The activity where no server can be asked: the ledger judges alone."""
