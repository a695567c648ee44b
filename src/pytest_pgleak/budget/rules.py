"""The rule for ``max_connections``: whether there were too many, and from which lines they came. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pytest_pgleak.budget.peaks import Held, OpenConnection, OverLimit, Peak
from pytest_pgleak.budget.timeline import AtOnce, Timeline, most_at_once
from pytest_pgleak.events import Moment, PoolFacts
from pytest_pgleak.find import finding_at
from pytest_pgleak.findings import Finding
from pytest_pgleak.frames import origin
from pytest_pgleak.kinds import TOO_MANY_CONNECTIONS
from pytest_pgleak.owners import Owner
from pytest_pgleak.views import Ending


def find_over_limit(peak: Peak, owner: Owner) -> tuple[Finding, ...]:
    """Judge a peak.

    Args:
        peak: The most that there was.
        owner: The test: whoever opened the connections, their sum is its business.
    """
    if peak.number <= peak.limit:
        return ()
    state = OverLimit(peak.limit, peak.number, held_by(peak))
    if peak.went_over is None:  # others did it: no line of this process
        return (Finding(TOO_MANY_CONNECTIONS, owner, None, Ending.CLOSED, "connections", peak.number, over=state),)
    moment = replace(_taken(peak.went_over, peak), owner=owner)
    return (finding_at(TOO_MANY_CONNECTIONS, "connections", peak.number, owner, moment, Ending.CLOSED, over=state),)


def find_over_limit_of_workers(
    timelines: Sequence[Timeline], peak: Peak, owner: Owner, server: int
) -> tuple[Finding, ...]:
    """Judge what all worker processes of live servers had open at once, and this process beside them.

    Of this process only what is open to the end counts, for the two moments need not be the same.

    Args:
        timelines: Those of the workers.
        peak: What this process had.
        owner: The test.
        server: How many connections the server takes.
    """
    together = most_at_once(timelines)
    number = len(together) + len(peak.now)
    if not together or number <= peak.limit:
        return ()
    held = (*_held_by_workers(together), *held_by(replace(peak, connections=peak.now, others=())))
    last = together[-1]
    opened = last.connection.opened
    if last.pool is not None and origin(opened.stack) is None:
        opened = last.pool[1]  # a pool opens most of its own in its workers
    moment = replace(opened, owner=owner)
    state = OverLimit(peak.limit, number, held, server)
    return (finding_at(TOO_MANY_CONNECTIONS, "connections", number, owner, moment, Ending.CLOSED, over=state),)


def _held_by_workers(together: Sequence[AtOnce]) -> list[Held]:
    groups: dict[object, list[AtOnce]] = {}
    for each in together:
        moment = each.connection.opened if each.pool is None else each.pool[1]
        line = origin(moment.stack)
        groups.setdefault((each.pool is None, line or (each.process, each.connection.serial)), []).append(each)
    held = [_held_by_each(group) for group in groups.values()]
    return sorted(held, key=lambda each: -each.number)


def _held_by_each(group: Sequence[AtOnce]) -> Held:
    first = group[0]
    pool = first.pool[0] if first.pool is not None else None
    line = origin((first.connection.opened if first.pool is None else first.pool[1]).stack)
    workers = tuple(sorted(Counter(each.process for each in group).values(), reverse=True))
    return Held(len(group), line, pool, workers=workers, in_use=sum(each.in_use for each in group))


def held_by(peak: Peak) -> tuple[Held, ...]:
    """Group what was open by where it comes from: the most first, what this process did not open last."""
    groups: dict[object, list[OpenConnection]] = {}
    for connection in peak.connections:
        line = origin(connection.opened.stack)
        # What has no line of its own is told apart by nothing.
        groups.setdefault(line if connection.pool is None else connection.pool, []).append(connection)
    held = [_held(group, peak) for group in groups.values()]
    held.sort(key=lambda each: -each.number)
    others = sorted(peak.others, key=lambda backend: (backend.backend_start or "", backend.pid))
    return (*held, *(Held(1, backend=backend) for backend in others))


def _held(group: list[OpenConnection], peak: Peak) -> Held:
    pool = _pool(group[0], peak)
    return Held(len(group), origin((group[0].opened if pool is None else pool[1]).stack), pool and pool[0])


def _taken(connection: OpenConnection, peak: Peak) -> Moment:
    """Return where a connection was opened in the user's own code: a pool opens most of its own in its workers."""
    if origin(connection.opened.stack) is not None:
        return connection.opened
    pool = _pool(connection, peak)
    return connection.opened if pool is None else pool[1]


def _pool(connection: OpenConnection, peak: Peak) -> tuple[PoolFacts, Moment] | None:
    return None if connection.pool is None else peak.pools.get(connection.pool)
