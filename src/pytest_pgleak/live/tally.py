"""pytest's side of the counting: from a worker's journal to the timeline of what it had open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.budget.timeline import Change, Timeline
from pytest_pgleak.events import Moment, PoolFacts
from pytest_pgleak.live.counting import CountingBegan, CountingEnded, FoundOpen, PoolOpened
from pytest_pgleak.live.last_words import Closed, Goodbye, Opened, Wrote


class Tally:
    """Reads what one journal says about the last test that has counted."""

    def __init__(self) -> None:
        self._test: int | None = None
        self._began = Timeline()
        self._connections: dict[int, OpenConnection] = {}
        self._pools: dict[int, tuple[PoolFacts, Moment]] = {}
        self._changes: list[Change] = []
        self._alive_at = 0.0
        self._statuses: dict[tuple[int, int], int] = {}

    def take(self, record: object) -> None:
        """Take one more record."""
        if isinstance(record, CountingBegan):
            self._test = record.test
            self._connections, self._pools = {}, {}
            self._changes, self._statuses = [], {}
            self._began = Timeline()
            self._alive_at = record.at
        elif self._test is None:
            return
        elif isinstance(record, FoundOpen):
            # Beside what was opened and closed while the worker looked.
            self._connections = {**record.connections, **self._connections}
            self._pools = {**record.pools, **self._pools}
            self._began = Timeline(open=frozenset(record.connections), taken=record.taken)
        elif isinstance(record, CountingEnded):
            self._statuses = dict(record.statuses)
        else:
            self._take_what_happened(record)

    def timeline(self, test: int, is_gone: bool, statuses: Mapping[tuple[int, int], int]) -> Timeline | None:
        """Return what the process had open while a test ran, and forget it; None where it did not count for it.

        Args:
            test: Serial of the test.
            is_gone: Whether the process is there no more. When it has ended nobody has seen, so what it still had open
                is closed when it was last heard of: of two processes, one after the other, nobody shall make a sum.
            statuses: What our clients were answered, by owners and ordinals of their requests.
        """
        if self._test != test:
            return None
        self._test = None
        for each in self._connections.values():
            if (request := each.opened.request) is not None and request.status is None:
                key = (request.owner, request.ordinal)
                request.status = self._statuses.get(key, statuses.get(key))  # it was none when it was written down
        changes = list(self._changes)
        if is_gone:
            still = set(self._began.open)
            for change in sorted(changes, key=lambda each: each.at):
                if change.what in ("opened", "closed"):
                    (still.add if change.what == "opened" else still.discard)(change.connection)
            changes += [Change(self._alive_at, serial, "closed") for serial in sorted(still)]
        return replace(self._began, connections=self._connections, pools=self._pools, changes=tuple(changes))

    def _take_what_happened(self, record: object) -> None:
        if isinstance(record, Opened):
            opened = OpenConnection(record.connection, record.facts, record.moment, record.pool)
            self._connections[record.connection] = opened
            self._change(Change(record.moment.at, record.connection, "opened"))
        elif isinstance(record, Closed):
            self._change(Change(record.at, record.connection, "closed"))
        elif isinstance(record, Change):
            self._change(record)
        elif isinstance(record, PoolOpened):
            self._pools[record.pool] = (record.facts, record.moment)
        elif isinstance(record, Wrote):
            self._alive_at = max(self._alive_at, record.moment.at)
        elif isinstance(record, Goodbye):
            self._alive_at = max(self._alive_at, record.at)

    def _change(self, change: Change) -> None:
        self._changes.append(change)
        self._alive_at = max(self._alive_at, change.at)
