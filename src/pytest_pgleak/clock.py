"""The time and the pauses of the plugin itself, whatever a test has done to the ``time`` module.

A test may freeze the time or replace ``sleep``, and a fixture that does so is still at work when the test is judged.
A clock that stands still would let a pause in its event loop last for ever, and a ``sleep`` that returns at once would
take an honest release that is a little late for a leak.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Generator
from typing import Final

_STEP: Final = 0.0005
"""Seconds between two turns of an event loop whose timers stand still."""


class Clock:
    """The real functions. Attributes of a class, for freezegun replaces names in modules."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


async def pause(seconds: float) -> None:
    """Wait in the running event loop, so that its tasks go on meanwhile.

    Args:
        seconds: How long.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import anyio

        await anyio.sleep(seconds)  # trio
        return
    if time.monotonic is not Clock.monotonic:
        await _pause_by_turns(seconds)
        return
    # Not `asyncio.sleep`: it is replaced in tests as often as `time.sleep`.
    over = loop.create_future()
    timer = loop.call_later(seconds, _wake, over)
    try:
        await over
    finally:
        timer.cancel()


async def _pause_by_turns(seconds: float) -> None:
    until = Clock.monotonic() + seconds
    while Clock.monotonic() < until:
        Clock.sleep(_STEP)
        await _turn()


@types.coroutine
def _turn() -> Generator[None]:
    yield


def _wake(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
