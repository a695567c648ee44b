"""Settle, then judge: look at once, and where something is there look again with growing pauses.

A backend is still in ``pg_stat_activity`` for up to 22 ms after an honest ``close()``, a pool takes a connection back
in a worker when it has a ``reset``, and a background task may be about to finish. What heals while one waits is no
finding.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Generator
from typing import Final

from pytest_pgleak.clock import Clock, pause
from pytest_pgleak.findings import Finding

Findings = tuple[Finding, ...]

_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05
_MOST_LOOKS: Final = 60
_SLOWEST: Final = 2
"""Times the grace that the pauses and the looks may take together. On a busy machine the looks alone take that long."""
_BUSY_PAUSE: Final = 0.002
_BUSY_LOOKS: Final = 25
"""Pauses that a task gets to begin with a connection: turns, not seconds, for a busy machine gives few in many."""
_COLLECT_AFTER: Final = 3
"""Looks before the garbage collector runs: what only a reference cycle holds is dropped, not still open."""


def settling(
    look: Callable[[], Findings],
    grace: float,
    is_busy: Callable[[], bool] = lambda: False,
    is_connecting: Callable[[], bool] = lambda: False,
    may_collect: Callable[[], bool] = gc.isenabled,
) -> Generator[float, None, Findings]:
    """Yield the pauses to make between looks; return what was still there in the end.

    A generator, so that it can be driven with ``time.sleep`` and with ``await asyncio.sleep`` alike.

    Args:
        look: Judges once.
        grace: Longest time to wait in all, seconds. What the looks take, and what a pause takes longer than was asked
            for, is not counted, up to as much again.
        is_busy: Tells whether something that the test has begun is still at work. A task may be just about to open
            the connection that it will keep, so a clean first look is not the last one then.
        is_connecting: Tells whether a connection is being opened at this moment.
        may_collect: Tells whether the garbage collector may be run.

    Yields:
        Seconds to wait.

    Returns:
        The findings that did not go away.
    """
    start_at = Clock.monotonic()

    def may_open_more(looks: int) -> bool:
        return Clock.monotonic() - start_at < grace and (is_connecting() or (looks < _BUSY_LOOKS and is_busy()))

    # Asked before each look: what was opened by then, the look sees.
    more = may_open_more(0)
    findings = look()
    for looks in itertools.count(1):
        if findings or not more:
            break
        yield _BUSY_PAUSE
        more = may_open_more(looks)
        findings = look()
    seconds = _FIRST_PAUSE
    give_up_at, waited = Clock.monotonic() + _SLOWEST * grace, 0.0
    for number in range(_MOST_LOOKS):
        # The backend of a connection that is being opened comes and goes as one that nobody knows.
        if not any(finding.can_heal for finding in findings) and (findings or not more):
            break
        if number == _COLLECT_AFTER and may_collect():
            gc.collect()
        elif (left := min(grace - waited, give_up_at - Clock.monotonic())) <= 0:
            break
        else:
            yield min(seconds, left)
            waited += seconds
            seconds = min(seconds * 2, _LONGEST_PAUSE)
        more = may_open_more(number)
        findings = look()
    return findings


def settle(pauses: Generator[float, None, Findings]) -> Findings:
    """Drive `settling` outside of an event loop."""
    while True:
        try:
            seconds = next(pauses)
        except StopIteration as done:
            findings: Findings = done.value
            return findings
        Clock.sleep(seconds)


async def settle_async(pauses: Generator[float, None, Findings]) -> Findings:
    """Drive `settling` inside the event loop of the test, so that its tasks can finish meanwhile."""
    while True:
        try:
            seconds = next(pauses)
        except StopIteration as done:
            findings: Findings = done.value
            return findings
        await pause(seconds)
