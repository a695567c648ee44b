"""What the server says: rows of ``pg_stat_activity`` as values, named after its columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


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

    @property
    def identity(self) -> tuple[int, str | None]:
        """The pair that no other backend of this server will ever have."""
        return (self.pid, self.backend_start)

    @property
    def in_transaction(self) -> bool:
        """Whether the row shows an open transaction that nothing is running in."""
        return self.state is not None and self.state.startswith("idle in transaction")


@dataclass(frozen=True, slots=True)
class Activity:
    """One read of the server: the backends that somebody asked about.

    Attributes:
        backends: By pid.
        new: Backends of the watched databases that no ledger entry explains and that were not there before.
        known: Whether a server could be asked at all. Where not, an absent pid means nothing.
    """

    backends: dict[int, Backend] = field(default_factory=dict)
    new: tuple[Backend, ...] = ()
    known: bool = False

    @classmethod
    def of(cls, backends: Iterable[Backend], new: Iterable[Backend] = ()) -> Activity:
        """Build an activity from rows that were read."""
        return cls({backend.pid: backend for backend in backends}, tuple(new), known=True)


NOTHING_KNOWN = Activity()
"""The activity where no server can be asked: the ledger judges alone."""
