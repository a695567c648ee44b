"""The ``pgleak`` fixture: the ledger in the hands of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_pgleak.checkpoints import Checkpoint
from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.owners import Owner
from pytest_pgleak.reporting import LeaksFound
from pytest_pgleak.settling import settle, settle_async
from pytest_pgleak.views import ConnectionView, Ending, View

if TYPE_CHECKING:
    from pytest_pgleak.state import State


class LeakTracker:
    """What a test can ask of the plugin.

    Args:
        state: The session's state.
        call_owner: Returns the owner of the running test's call phase; None outside of it.
        grace: How long `no_leaks` waits for a late release, seconds.
    """

    def __init__(self, state: State, call_owner: Callable[[], Owner | None], grace: float) -> None:
        self._state = state
        self._call_owner = call_owner
        self._grace = grace

    @property
    def connections(self) -> tuple[ConnectionView, ...]:
        """The connections that this process has open now, pools' idle ones included."""
        return tuple(c for c in self._state.ledger.view().connections if c.ending is Ending.OPEN)

    def findings(self) -> tuple[Finding, ...]:
        """Return what would be found if the test ended now. Nothing is waited for, nothing fails."""
        owner = self._call_owner()
        if owner is None:
            return ()
        ended = frozenset({owner.serial})
        checkpoint = Checkpoint(Question(owner, ended, ended), grace=0.0, keep=_keep(self._state))
        return settle(self._state.judge.settling(checkpoint))

    def no_leaks(self) -> NoLeaks:
        """Make a block, ``with`` or ``async with``, that fails at its end if what ran inside left something.

        Raises:
            LeaksFound: From the end of the block.
        """
        return NoLeaks(self._state, self._grace)


class NoLeaks:
    """A block that must not leave anything. Inside an event loop ``async with`` lets tasks finish meanwhile."""

    def __init__(self, state: State, grace: float) -> None:
        self._state = state
        self._grace = grace
        self._owner: Owner | None = None

    def __enter__(self) -> NoLeaks:
        self._owner = self._state.ownership.begin("block", self._state.ownership.active.nodeid)
        self._state.ownership.push(self._owner)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        checkpoint = self._end(0.0 if _in_event_loop() else self._grace, exc is not None)
        self._judge(settle(self._state.judge.settling(checkpoint)), exc)

    async def __aenter__(self) -> NoLeaks:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        checkpoint = self._end(self._grace, exc is not None)
        self._judge(await settle_async(self._state.judge.settling(checkpoint)), exc)

    def _end(self, grace: float, failed: bool) -> Checkpoint:
        assert self._owner is not None
        self._state.ownership.pop(self._owner)
        lifespans = (own.serial for own in self._state.ownership.lifespans if own.started_by == self._owner.serial)
        ended = frozenset({self._owner.serial, *lifespans})
        question = Question(self._owner, ended, ended, failed=failed)
        return Checkpoint(question, grace, keep=_keep(self._state))

    def _judge(self, findings: tuple[Finding, ...], exc: BaseException | None) -> None:
        __tracebackhide__ = True
        assert self._owner is not None
        self._state.judge.settled(findings)
        self._state.ledger.forget_owner(self._owner.serial)
        failing = tuple(each for each in findings if self._state.settings.level(each.kind) == "fail")
        if failing and exc is None:
            raise LeaksFound(failing, self._state.config.rootpath)


def _keep(state: State) -> Callable[[Finding, View], bool]:
    check = state.current_check
    return lambda finding, view: check is None or not check.is_process_lifetime(finding, view)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
