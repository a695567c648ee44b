"""What the plugin waits for is taken out of the time that pytest-timeout gives a test.

A test that leaves something behind is looked at for up to ``pgleak_grace`` seconds more. It must not time out for that.
The two hooks are pytest-timeout's own, made for others to take part.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from pytest_pgleak.clock import Clock
from pytest_pgleak.settling import Findings

_ALLOWANCE: Final = 10.0
"""Seconds beyond the grace after which the test times out all the same: the plugin itself must be stuck."""
_LEAST: Final = 0.05

_TIMER: Final = pytest.StashKey["_Timer"]()


@dataclass(frozen=True, slots=True)
class _Timer:
    settings: Any
    fires_at: float


def timer_set(item: pytest.Item, settings: Any) -> None:
    """pytest-timeout has set the timer of a test.

    Args:
        item: The test.
        settings: pytest-timeout's named tuple, with ``timeout`` in seconds.
    """
    item.stash[_TIMER] = _Timer(settings, Clock.monotonic() + settings.timeout)


def timer_cancelled(item: pytest.Item) -> None:
    """pytest-timeout has cancelled the timer of a test."""
    if _TIMER in item.stash:
        del item.stash[_TIMER]


def beside_the_timeout(
    pauses: Generator[float, None, Findings], item: pytest.Item, grace: float
) -> Generator[float, None, Findings]:
    """Yield the pauses as they are, and stop the test's timer for them.

    Args:
        pauses: As `pytest_pgleak.settling.settling` yields them.
        item: The test.
        grace: Longest time that they may take, seconds.
    """
    try:
        seconds = next(pauses)
    except StopIteration as done:
        findings: Findings = done.value  # the usual case: nothing to wait for
        return findings
    with _stopped(item, grace):
        yield seconds
        return (yield from pauses)


@contextmanager
def _stopped(item: pytest.Item, grace: float) -> Generator[None]:
    timer = item.stash.get(_TIMER, None)
    left = timer.fires_at - Clock.monotonic() if timer is not None else 0.0
    # It fires once. If it has, another one would fire outside of the test, and end pytest.
    if timer is None or left <= 0:
        yield
        return
    _set(item, timer.settings, left + grace + _ALLOWANCE)
    try:
        yield
    except Exception:
        _set(item, timer.settings, left)
        raise
    # Not after a timeout, which is no `Exception`: it would fire once more.
    _set(item, timer.settings, left)


def _set(item: pytest.Item, settings: Any, seconds: float) -> None:
    hook = item.config.hook
    hook.pytest_timeout_cancel_timer(item=item)
    hook.pytest_timeout_set_timer(item=item, settings=settings._replace(timeout=max(seconds, _LEAST)))
