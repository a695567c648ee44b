"""The ``pgleak`` fixture: the ledger in the hands of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_pgleak.checkpoints import Checkpoint
from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.item_checks import CALL_OWNER, CHECK, ENTRIES
from pytest_pgleak.owners import Owner
from pytest_pgleak.reporting import LeaksFound, entries_of_verdicts
from pytest_pgleak.settling import Findings, settle, settle_async
from pytest_pgleak.verdicts import Verdicts
from pytest_pgleak.views import ConnectionView, Ending, View

if TYPE_CHECKING:
    import pytest

    from pytest_pgleak.state import State


class LeakTracker:
    """What a test can ask of the plugin, whether it is checked or not.

    Args:
        state: The session's state.
        item: The test.
    """

    def __init__(self, state: State, item: pytest.Item) -> None:
        self._state = state
        self._item = item
        if CHECK not in item.stash and state.settings.mode != "off":
            # Nobody else looks at this test. Until its teardown what it does is followed all the same.
            state.checking = True
            state.judge.begin()

    @property
    def connections(self) -> tuple[ConnectionView, ...]:
        """The connections that this process has open now, pools' idle ones included."""
        return tuple(c for c in self._state.ledger.view().connections if c.ending is Ending.OPEN)

    def findings(self) -> tuple[Finding, ...]:
        """Return what would be found if the test ended now. Nothing is waited for, nothing fails.

        This is what is there. Levels, ``allow``, ignore rules and the baseline only decide what becomes of it.
        """
        owner = self._item.stash.get(CALL_OWNER, None)
        if owner is None:
            return ()
        ended = frozenset({owner.serial})
        checkpoint = Checkpoint(Question(owner, ended, ended), grace=0.0, keep=_keep(self._state))
        findings = settle(self._state.judge.settling(checkpoint))
        if (live := self._state.live) is not None:
            findings += settle(live.judging(checkpoint.question, 0.0, ends_call=False, is_last=False))
        return findings

    def no_leaks(self) -> NoLeaks:
        """Make a block, ``with`` or ``async with``, that fails at its end if what ran inside left something.

        What is allowed, ignored, off or known does not fail it, nor does a warning: these are told at the end of the
        run, as those of the test are.

        Raises:
            LeaksFound: From the end of the block.
        """
        check = self._item.stash.get(CHECK, None)
        return NoLeaks(self._state, self._item, check.grace if check is not None else self._state.settings.grace)


class NoLeaks:
    """A block that must not leave anything. Inside an event loop ``async with`` lets tasks finish meanwhile.

    Args:
        state: The session's state.
        item: The test.
        grace: Longest time to wait for a late release, seconds.
    """

    def __init__(self, state: State, item: pytest.Item, grace: float) -> None:
        self._state = state
        self._item = item
        self._grace = grace
        self._owner: Owner | None = None

    def __enter__(self) -> NoLeaks:
        state = self._state
        if CHECK not in self._item.stash:
            # Nobody has looked yet at what there was before the test: it is not the block's.
            if _in_event_loop():
                state.loops.seen()
            state.loops.begin()
            state.ownership.background.adopt(state.ownership.session)
        self._owner = state.ownership.begin("block", self._item.nodeid)
        state.ownership.push(self._owner)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        with self._ending():
            checkpoint = self._checkpoint(0.0 if _in_event_loop() else self._grace, exc is not None)
            findings = settle(self._state.judge.settling(checkpoint))
            findings += settle(self._judging_workers(checkpoint.question))
        self._judge(findings, exc)

    async def __aenter__(self) -> NoLeaks:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        with self._ending():
            checkpoint = self._checkpoint(self._grace, exc is not None)
            findings = await settle_async(self._state.judge.settling(checkpoint))
            findings += await settle_async(self._judging_workers(checkpoint.question))
        self._judge(findings, exc)

    def _judging_workers(self, question: Question) -> Generator[float, None, Findings]:
        # A server answers in another process, so that it can finish whether this block is in an event loop or not.
        live = self._state.live
        return () if live is None else (yield from live.judging(question, self._grace, ends_call=False))

    @contextmanager
    def _ending(self) -> Iterator[None]:
        assert self._owner is not None
        try:
            # What a task of the block opens while one waits for it is still the block's.
            yield
        finally:
            self._state.ownership.pop(self._owner)

    def _checkpoint(self, grace: float, failed: bool) -> Checkpoint:
        assert self._owner is not None
        lifespans = (own.serial for own in self._state.ownership.lifespans if own.started_by == self._owner.serial)
        ended = frozenset({self._owner.serial, *lifespans})
        question = Question(self._owner, ended, ended, failed=failed)
        return Checkpoint(question, grace, keep=_keep(self._state))

    def _judge(self, findings: tuple[Finding, ...], exc: BaseException | None) -> None:
        __tracebackhide__ = True
        assert self._owner is not None
        self._state.judge.settled(finding for finding in findings if finding.process is None)
        self._state.ledger.forget_owner(self._owner.serial)
        if self._state.live is not None:
            self._state.live.forget([self._owner])
        if exc is not None:
            return
        verdicts, root = _sorted(findings, self._item, self._state), self._state.config.rootpath
        quiet = entries_of_verdicts(replace(verdicts, failing=()), self._item.nodeid, root)
        self._item.stash[ENTRIES] = self._item.stash.get(ENTRIES, []) + quiet
        if verdicts.failing:
            raise LeaksFound(verdicts.failing, root, is_of_a_block=True)


def _sorted(findings: tuple[Finding, ...], item: pytest.Item, state: State) -> Verdicts:
    check = item.stash.get(CHECK, None)
    return state.verdict.sort(findings, item) if check is None else check.sort(findings)


def _keep(state: State) -> Callable[[Finding, View], bool]:
    check = state.current_check
    return lambda finding, view: check is None or not check.belonging.is_process_lifetime(finding, view)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
