"""A second connection out of a pool while one is held: under load the pool runs dry and everybody waits. Pure."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.frames import RawStack

_WEB_FRAMEWORKS: Final = frozenset(("starlette", "fastapi"))
_EVENT_LOOP: Final = (("asyncio", "events.py"), ("asyncio", "base_events.py"), ("asyncio", "runners.py"))


@dataclass(frozen=True, slots=True)
class NestedCheckout:
    """Two checkouts of one flow of control.

    Attributes:
        serial: Serial of the connection that was taken second.
        facts: What is known of it.
        pool: Serial of the pool.
        held: Serial of the connection that was taken first.
        first: Where the connection was taken that was held.
        second: Where the other one was taken meanwhile.
    """

    serial: int
    facts: ConnectionFacts
    pool: int
    held: int
    first: Moment
    second: Moment

    def is_like(self, other: NestedCheckout) -> bool:
        """Tell whether it is the same mistake as another one: the same lines in the same request, as in a loop."""
        return (
            self.pool == other.pool
            and self.second.owner == other.second.owner
            and self.second.request is other.second.request
            and self.second.stack == other.second.stack
            and self.first.stack == other.first.stack
        )


def is_same_flow(first: Moment, second: Moment) -> bool:
    """Tell whether two things happen one after the other, so that the first has to wait for the second.

    A request goes through its main task and through threads of the thread pool, which that task waits for; what it
    starts with ``gather`` are tasks of their own, which wait for nobody. The tasks of a framework it does wait for.
    """
    if first.request is not second.request:
        return False
    if first.request is not None:
        return _lane(first) == _lane(second)
    # What somebody holds whose time is over is not waited for: a leak, or a connection for the whole session.
    return first.owner == second.owner and first.thread == second.thread and first.task == second.task


def is_for_a_test(first: Moment) -> bool:
    """Tell whether a fixture holds the first connection for a test: the application has no part in that."""
    return first.owner.what == "fixture" and first.request is None


def _lane(moment: Moment) -> weakref.ref[Any] | None:
    assert moment.request is not None
    return None if moment.task == moment.request.task or _is_frameworks(moment.stack) else moment.task


def _is_frameworks(stack: RawStack) -> bool:
    """Tell whether a task runs code of the web framework: an endpoint below a middleware, the body of a stream."""
    outermost = ""
    for code, _ in stack:
        parts = Path(code.co_filename).parts
        if parts[-2:] in _EVENT_LOOP:
            break
        if "anyio" not in parts:  # its task groups wrap what they run
            outermost = code.co_filename
    return not _WEB_FRAMEWORKS.isdisjoint(Path(outermost).parts)
