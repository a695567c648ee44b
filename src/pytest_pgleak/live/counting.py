"""Notes in a worker, while a test with ``max_connections`` runs, when what is opened, taken, given back and closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_pgleak.budget.meter import ConnectionMeter
from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.budget.timeline import WHAT, Change, Timeline
from pytest_pgleak.clock import Clock
from pytest_pgleak.events import Event, Moment, PoolFacts
from pytest_pgleak.ledger import Ledger


class Counting:
    """Makes the timeline of this process.

    Args:
        ledger: Knows what is open already, and the pools.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_on = False
        self._open: dict[int, OpenConnection] = {}
        self._later: dict[int, OpenConnection] = {}
        self._taken: frozenset[int] = frozenset()
        self._changes: list[Change] = []

    def begin(self) -> None:
        """Begin to note."""
        self._open, self._later = self._read()[0], {}
        self._taken = frozenset(each.serial for each in self._ledger.view().connections if each.checkout is not None)
        self._changes = []
        self._is_on = True

    def see(self, event: Event) -> None:
        """Something has happened. Called as it happens, from any thread."""
        if not self._is_on or (what := WHAT.get(event.kind)) is None:
            return
        if event.connection is not None and event.moment is not None:
            self._later[event.subject] = OpenConnection(event.subject, event.connection, event.moment, event.pool)
        self._changes.append(Change(Clock.monotonic(), event.subject, what))

    def end(self) -> Timeline | None:
        """Return what was noted, and note no more; None where nothing was."""
        if not self._is_on:
            return None
        self._is_on = False
        pools = self._read()[1]
        connections = self._open | self._later
        return Timeline(connections, pools, frozenset(self._open), self._taken, tuple(self._changes))

    def _read(self) -> tuple[dict[int, OpenConnection], Mapping[int, tuple[PoolFacts, Moment]]]:
        reader = _Reader()
        self._ledger.start_meter(reader)
        self._ledger.stop_meter()
        return reader.found, reader.pools


class _Reader(ConnectionMeter):
    """Reads once what is open, as a meter is told of it."""

    def __init__(self) -> None:
        super().__init__(0, lambda _owner: False)
        self.found: dict[int, OpenConnection] = {}

    def start(self, connections: Iterable[OpenConnection], pools: Mapping[int, tuple[PoolFacts, Moment]]) -> None:
        """Take over what is open already."""
        self.pools = dict(pools)
        self.found = {each.serial: each for each in connections}
