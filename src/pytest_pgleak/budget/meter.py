"""Counts the connections that are open at once, from the events, in the order in which they happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.events import Event, EventKind, Moment, PoolFacts
from pytest_pgleak.owners import Owner

Pools = dict[int, tuple[PoolFacts, Moment]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter says.

    Attributes:
        most: The most connections that were open at once since it was read last, in the order of their opening.
        now: Those that are open now.
    """

    most: tuple[OpenConnection, ...]
    now: tuple[OpenConnection, ...]


class ConnectionMeter:
    """Knows how many there are, and how many there have been. The ledger shows it each event, under its own lock.

    Args:
        limit: How many there may be.
        is_counted: Tells of an owner whether its connections count.
    """

    def __init__(self, limit: int, is_counted: Callable[[Owner], bool]) -> None:
        self.limit = limit
        self.went_over: OpenConnection | None = None
        self.pools: Pools = {}
        self._is_counted = is_counted
        self._open: dict[int, OpenConnection] = {}
        self._uncounted: dict[int, OpenConnection] = {}
        self._most: tuple[OpenConnection, ...] = ()

    def start(self, connections: Iterable[OpenConnection], pools: Mapping[int, tuple[PoolFacts, Moment]]) -> None:
        """Take over what is open already.

        Args:
            connections: In the order in which they were opened.
            pools: Where they came from.
        """
        self.pools = dict(pools)
        for connection in connections:
            self._opened(connection)

    def see(self, event: Event) -> None:
        """Take note of an event."""
        if event.kind is EventKind.CONNECTION_OPENED and event.connection is not None and event.moment is not None:
            self._opened(OpenConnection(event.subject, event.connection, event.moment, event.pool))
        elif event.kind in (EventKind.CONNECTION_CLOSED, EventKind.CONNECTION_GONE):
            self._open.pop(event.subject, None)
            self._uncounted.pop(event.subject, None)
        elif event.kind is EventKind.POOL_OPENED and event.opened_pool is not None and event.moment is not None:
            self._pool_opened(event.subject, event.opened_pool, event.moment)

    def take(self) -> Reading:
        """Read it."""
        self._count_again()
        for serial in [serial for serial, connection in self._open.items() if _is_broken(connection)]:
            del self._open[serial]
        now = tuple(self._open.values())
        most = self._most if len(self._most) > len(now) else now
        self._most = now
        return Reading(most, now)

    def _opened(self, connection: OpenConnection) -> None:
        self._uncounted[connection.serial] = connection
        self._count_again()

    def _count_again(self) -> None:
        """Count what counts by now: a test may begin to use a fixture at any time."""
        for connection in list(self._uncounted.values()):
            # A pool is heard of after its first workers have connected: until then it is whose turn it is.
            opened = self.pools.get(connection.pool) if connection.pool is not None else None
            if self._is_counted((opened[1] if opened is not None else connection.opened).owner):
                self._count(connection)

    def _count(self, connection: OpenConnection) -> None:
        self._open[connection.serial] = self._uncounted.pop(connection.serial)
        if len(self._open) > len(self._most):
            self._most = tuple(self._open.values())
        if len(self._open) > self.limit and self.went_over is None:
            self.went_over = connection

    def _pool_opened(self, pool: int, facts: PoolFacts, moment: Moment) -> None:
        self.pools[pool] = (facts, moment)
        if not self._is_counted(moment.owner):
            self._uncounted |= {serial: each for serial, each in self._open.items() if each.pool == pool}
            self._open = {serial: each for serial, each in self._open.items() if each.pool != pool}
            self._most = tuple(each for each in self._most if each.pool != pool)
            if self.went_over is not None and self.went_over.pool == pool:
                self.went_over = None


def _is_broken(connection: OpenConnection) -> bool:
    """Tell whether the server has ended it, which only its next use would notice."""
    living = connection.facts.reference()
    return living is not None and connection.facts.library.is_closed(living)
