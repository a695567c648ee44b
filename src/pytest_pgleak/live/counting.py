"""Notes in a worker, while a test with ``max_connections`` runs, what is there at its beginning, and what happens then.

The notes go into the journal, where they survive the process. That a connection is opened or closed is there anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_pgleak.budget.meter import ConnectionMeter
from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.budget.timeline import WHAT, Change
from pytest_pgleak.clock import Clock
from pytest_pgleak.events import Event, EventKind, Moment, PoolFacts
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.live.journal import Journal
from pytest_pgleak.requests import Request


@dataclass(frozen=True, slots=True)
class CountingBegan:
    """From here on all changes are in the journal.

    Attributes:
        test: Serial of the test.
        at: When, seconds.
    """

    test: int
    at: float


@dataclass(frozen=True, slots=True)
class FoundOpen:
    """What was there when the counting began. Some of it may have changed since: that is in the journal before this.

    Attributes:
        connections: What was open.
        pools: What is known of the pools, and where they were opened, by serial.
        taken: Serials of the connections that were out of their pools.
    """

    connections: Mapping[int, OpenConnection]
    pools: Mapping[int, tuple[PoolFacts, Moment]]
    taken: frozenset[int]


@dataclass(frozen=True, slots=True)
class PoolOpened:
    """A pool was opened since.

    Attributes:
        pool: Its serial.
        facts: What is known of it.
        moment: Where it was opened.
    """

    pool: int
    facts: PoolFacts
    moment: Moment


@dataclass(frozen=True, slots=True)
class CountingEnded:
    """No more changes are noted.

    Attributes:
        statuses: How requests that have opened connections were answered, by their owners and ordinals.
    """

    statuses: Mapping[tuple[int, int], int]


class Counting:
    """Notes what only a test that counts wants to know of this process.

    Args:
        ledger: Knows what is open already, and the pools.
        journal: Takes the notes.
    """

    def __init__(self, ledger: Ledger, journal: Journal) -> None:
        self._ledger = ledger
        self._journal = journal
        self._test: int | None = None
        self._requests: list[Request] = []

    def switch(self, test: int | None) -> None:
        """Begin to note, or note no more; nothing is done where it goes on for the same test.

        Args:
            test: Serial of the test that counts; None where none does.
        """
        if test is not None and test != self._test:
            # Before it reads: what happens meanwhile is rather noted twice than not at all.
            self._test = test
            self._journal.write(CountingBegan(test, Clock.monotonic()))
            reader = _Reader()
            self._ledger.start_meter(reader)
            self._ledger.stop_meter()
            view = self._ledger.view()
            taken = frozenset(each.serial for each in view.connections if each.checkout is not None)
            self._journal.write(FoundOpen(reader.found, reader.pools, taken))
        if test is None and self._test is not None:
            requests, self._requests = self._requests, []
            found = {(each.owner, each.ordinal): each.status for each in requests if each.status is not None}
            self._journal.write(CountingEnded(found))
        self._test = test

    def see(self, event: Event) -> None:
        """Something has happened. Called as it happens, from any thread."""
        if self._test is None:
            return
        if event.kind is EventKind.CONNECTION_OPENED and event.moment is not None:
            if event.moment.request is not None:
                self._requests.append(event.moment.request)
        elif event.kind is EventKind.POOL_OPENED and event.opened_pool is not None and event.moment is not None:
            self._journal.write(PoolOpened(event.subject, event.opened_pool, event.moment))
        elif (what := WHAT.get(event.kind)) in ("taken", "returned"):
            self._journal.write(Change(Clock.monotonic(), event.subject, what))


class _Reader(ConnectionMeter):
    """Reads once what is open, as a meter is told of it."""

    def __init__(self) -> None:
        super().__init__(0, lambda _owner: False)
        self.found: dict[int, OpenConnection] = {}

    def start(self, connections: Iterable[OpenConnection], pools: Mapping[int, tuple[PoolFacts, Moment]]) -> None:
        """Take over what is open already."""
        self.pools = dict(pools)
        self.found = {each.serial: each for each in connections}
