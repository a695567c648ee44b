"""``max_connections`` of one test after the other: counts what is open, by both witnesses, while the test runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.budget.meter import ConnectionMeter
from pytest_pgleak.budget.peaks import OpenConnection, Peak
from pytest_pgleak.budget.sampler import Sampler
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observers import OBSERVER_NAME, Observers, Watched
from pytest_pgleak.owners import Owner

_MOST_CANDIDATES: Final = 200

Identity = tuple[int, str | None]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A moment in which there may have been too many."""

    connections: tuple[OpenConnection, ...]
    others: tuple[Backend, ...]

    @property
    def number(self) -> int:
        return len(self.connections) + len(self.others)


class Budget:
    """Counts while a test with ``max_connections`` runs; costs nothing otherwise.

    What this process opens is counted event by event. What others open, the subprocesses of a test or another driver,
    is looked at every few milliseconds.

    Args:
        ledger: What the client does.
        observers: What the servers see.
        watched: Returns the databases that are looked at.
        is_countable: Whether a backend that this process did not open can be laid to the test's account.
        fault: Takes note, inside an ``except`` block, of a fault of the plugin.
        known_elsewhere: Returns the pids that are counted in other processes.
    """

    def __init__(
        self,
        ledger: Ledger,
        observers: Observers,
        watched: Callable[[], Watched],
        is_countable: Callable[[Backend], bool],
        fault: Callable[[str], None],
        known_elsewhere: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        self._known_elsewhere = known_elsewhere
        self._ledger = ledger
        self._observers = observers
        self._watched = watched
        self._is_countable = is_countable
        self._sampler = Sampler(self._sample, fault)
        self._fault = fault
        self._meter: ConnectionMeter | None = None
        self._now: tuple[OpenConnection, ...] = ()
        self._candidates: dict[frozenset[Identity], _Candidate] = {}
        self._others_before: frozenset[Identity] = frozenset()

    def begin(self, limit: int, is_counted: Callable[[Owner], bool]) -> None:
        """Begin to count. The observers have taken their snapshot before.

        Args:
            limit: How many connections there may be.
            is_counted: Tells of an owner whether its connections count.
        """
        self.end()
        self._candidates = {}
        self._others_before = frozenset()
        self._meter = ConnectionMeter(limit, is_counted)
        self._ledger.start_meter(self._meter)
        self._sampler.start()

    def end(self) -> Peak | None:
        """Return the most that there was, and count no longer; None where nothing was counted."""
        if (meter := self._meter) is None:
            return None
        self._sampler.stop()
        try:
            self._sample()
        except Exception:  # noqa: BLE001 - what was counted so far, and what else the test left, is told all the same
            self._fault("counting connections")
        self._meter = None
        self._ledger.stop_meter()
        known = self._ledger.known_pids() | self._known_elsewhere()
        candidates, self._candidates = self._candidates, {}
        best = Peak(meter.limit)
        for candidate in candidates.values():
            # A backend is there before psycopg has its connection: what turned out to be our own is counted already.
            others = tuple(row for row in candidate.others if row.pid not in known)
            if self._observers.servers.has_poolers:
                others = ()  # that one stands in between may have turned out only now
            if len(candidate.connections) + len(others) > best.number:
                best = replace(best, connections=candidate.connections, others=others)
        is_ours = len(best.connections) > meter.limit
        went_over = meter.went_over if is_ours else None
        return replace(best, went_over=went_over, pools=meter.pools, now=self._now)

    def _sample(self) -> None:
        assert self._meter is not None
        # First the ledger: what is opened a moment later is one of the others, once, until it is known.
        reading = self._ledger.read_meter()
        self._now = reading.now
        others = self._others()
        steady = tuple(row for row in others if row.identity in self._others_before)
        self._others_before = frozenset(row.identity for row in others)
        self._remember(_Candidate(reading.now, others))
        # Who was there at both ends has been there all the time between.
        self._remember(_Candidate(reading.most, steady))

    def _others(self) -> tuple[Backend, ...]:
        rows = self._observers.new_backends(self._watched(), self._ledger.known_among)
        return tuple(row for row in rows if row.application_name != OBSERVER_NAME and self._is_countable(row))

    def _remember(self, candidate: _Candidate) -> None:
        assert self._meter is not None
        if candidate.number <= self._meter.limit:
            return
        key = frozenset(row.identity for row in candidate.others)
        known = self._candidates.get(key)
        if known is None and len(self._candidates) >= _MOST_CANDIDATES:
            least = min(self._candidates, key=lambda each: self._candidates[each].number)
            if self._candidates[least].number >= candidate.number:
                return
            del self._candidates[least]
        if known is None or candidate.number > known.number:
            self._candidates[key] = candidate
