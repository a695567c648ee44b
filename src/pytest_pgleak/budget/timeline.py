"""What several worker processes had open, by the time at which it was opened, taken, given back and closed. Pure.

Each process notes the times by ``CLOCK_MONOTONIC``, which is one for the whole machine: so the moment can be found in
which they had the most together, and nobody is accused of a sum that never was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.events import EventKind, Moment, PoolFacts

What = Literal["opened", "closed", "taken", "returned"]

WHAT: Final[dict[EventKind, What]] = {
    EventKind.CONNECTION_OPENED: "opened",
    EventKind.CONNECTION_CLOSED: "closed",
    EventKind.CONNECTION_FINALIZED: "closed",
    EventKind.CONNECTION_GONE: "closed",
    EventKind.CHECKED_OUT: "taken",
    EventKind.RETURNED: "returned",
    EventKind.CHECKOUT_COLLECTED: "returned",
}
"""What an event changes, of those that change anything."""


@dataclass(frozen=True, slots=True)
class Change:
    """One connection is opened, closed, taken from its pool or given back.

    Attributes:
        at: When, seconds.
        connection: Its serial in its process.
        what: Which of these.
    """

    at: float
    connection: int
    what: What


@dataclass(frozen=True, slots=True)
class Timeline:
    """What one process had open while a test ran.

    Attributes:
        connections: All connections that were open at some time, by their serials.
        pools: What is known of the pools, and where they were opened, by serial.
        open: Serials of those that were open at the beginning.
        taken: Serials of those that were out of their pools then.
        changes: What has happened since, in this order.
    """

    connections: Mapping[int, OpenConnection] = field(default_factory=dict)
    pools: Mapping[int, tuple[PoolFacts, Moment]] = field(default_factory=dict)
    open: frozenset[int] = frozenset()
    taken: frozenset[int] = frozenset()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class AtOnce:
    """A connection that was open at the worst moment.

    Attributes:
        process: Place of its process among the timelines.
        connection: The connection.
        pool: Its pool, and where that was opened.
        in_use: Whether somebody had it: a pool's own idle connections are in nobody's hands.
    """

    process: int
    connection: OpenConnection
    pool: tuple[PoolFacts, Moment] | None
    in_use: bool


def most_at_once(timelines: Iterable[Timeline]) -> tuple[AtOnce, ...]:
    """Find the moment with the most connections; of several such moments, the one with the most in use.

    Returns:
        The connections of that moment, those that were opened last in the end.
    """
    timelines = tuple(timelines)
    is_open = {(place, serial) for place, line in enumerate(timelines) for serial in line.open}
    taken = {(place, serial) for place, line in enumerate(timelines) for serial in line.taken}
    best, most = (frozenset(is_open), frozenset(taken)), (len(is_open), len(taken))
    changes = ((change.at, place, change) for place, line in enumerate(timelines) for change in line.changes)
    for _, place, change in sorted(changes, key=lambda each: each[0]):
        changed = taken if change.what in ("taken", "returned") else is_open
        (changed.add if change.what in ("opened", "taken") else changed.discard)((place, change.connection))
        if change.what == "closed":
            taken.discard((place, change.connection))
        if (len(is_open), len(taken)) > most:
            best, most = (frozenset(is_open), frozenset(taken)), (len(is_open), len(taken))
    found = [_at_once(timelines, place, serial, (place, serial) in best[1]) for place, serial in best[0]]
    return tuple(sorted((each for each in found if each is not None), key=lambda each: each.connection.opened.at))


def _at_once(timelines: tuple[Timeline, ...], place: int, serial: int, is_taken: bool) -> AtOnce | None:
    connection = timelines[place].connections.get(serial)
    if connection is None:
        return None
    pool = None if connection.pool is None else timelines[place].pools.get(connection.pool)
    return AtOnce(place, connection, pool, is_taken or connection.pool is None)
