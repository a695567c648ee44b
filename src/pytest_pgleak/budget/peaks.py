"""How many connections were open at once, and who held them. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import ConnectionFacts, Moment, PoolFacts
from pytest_pgleak.frames import Frame


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection that counts.

    Attributes:
        serial: Its number in the ledger.
        facts: What was known when it opened.
        opened: When, where and on whose account.
        pool: Serial of the pool that opened it; None for a direct connection.
    """

    serial: int
    facts: ConnectionFacts
    opened: Moment
    pool: int | None = None


@dataclass(frozen=True, slots=True)
class Peak:
    """The moment in which a test had the most connections open.

    Attributes:
        limit: How many it may have.
        connections: Those of this process, in the order in which they were opened.
        others: Backends that this process did not open.
        went_over: The first connection of this process that was one too many.
        now: Those of this process that were open when the counting ended.
        pools: What is known of the pools, and where they were opened, by serial.
    """

    limit: int
    connections: tuple[OpenConnection, ...] = ()
    others: tuple[Backend, ...] = ()
    went_over: OpenConnection | None = None
    pools: Mapping[int, tuple[PoolFacts, Moment]] = field(default_factory=dict)
    now: tuple[OpenConnection, ...] = ()

    @property
    def number(self) -> int:
        """How many there were."""
        return len(self.connections) + len(self.others)


@dataclass(frozen=True, slots=True)
class Held:
    """Connections from one place.

    Attributes:
        number: How many.
        workers: How many of them each worker process of a live server had, the most first; empty for this process.
        in_use: How many of these were in use, and not idle in their pools.
        origin: The line that opened them, or their pool.
        pool: Their pool.
        backend: The backend, for one that this process did not open.
    """

    number: int
    origin: Frame | None = None
    pool: PoolFacts | None = None
    backend: Backend | None = None
    workers: tuple[int, ...] = ()
    in_use: int = 0


@dataclass(frozen=True, slots=True)
class OverLimit:
    """A peak as a finding shows it.

    Attributes:
        limit: How many may be open.
        number: How many were.
        held: Who held them, the most first.
        server: How many connections the server takes; 0 where that is not known, or does not matter.
    """

    limit: int
    number: int
    held: tuple[Held, ...] = ()
    server: int = 0
