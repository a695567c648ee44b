"""One test from its set-up to its teardown: the owner of its call phase, its two checkpoints, what they found."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_pgleak.checkpoints import Checkpoint
from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.isolation import is_installed, rolls_back
from pytest_pgleak.kinds import TRANSACTION_LEFT_OPEN
from pytest_pgleak.owners import Owner
from pytest_pgleak.reporting import LeaksFound, plain, reported
from pytest_pgleak.settings import MarkerSettings
from pytest_pgleak.settling import settle, settle_async
from pytest_pgleak.verdicts import Verdicts
from pytest_pgleak.views import View

if TYPE_CHECKING:
    from pytest_pgleak.fixture_owners import FixtureOwners
    from pytest_pgleak.state import State

CHECK: Final = pytest.StashKey["ItemCheck"]()


class ItemCheck:
    """Checks one test.

    Args:
        state: The session's state.
        fixtures: The owners of fixtures.
        item: The test.
        marker: What its marker says.
    """

    def __init__(self, state: State, fixtures: FixtureOwners, item: pytest.Item, marker: MarkerSettings) -> None:
        self._state = state
        self._fixtures = fixtures
        self._item = item
        self._marker = marker
        self._grace = state.settings.grace if marker.grace is None else marker.grace
        self._in_transaction_before: frozenset[int] = frozenset()
        self._deferred: frozenset[int] = frozenset()
        self._judged_in_loop = False
        self.owner: Owner | None = None
        self.verdicts = Verdicts()

    def begin_call(self) -> None:
        """Start the call phase: take the snapshot before, make the test the active owner."""
        state = self._state
        state.requests = itertools.count(1)
        state.checking = True
        self._fixtures.watch(self._item)
        self.owner = state.ownership.begin("call", self._item.nodeid)
        self._in_transaction_before = state.judge.begin()
        state.ownership.push(self.owner)
        self._wrap_coroutine_function()

    def end_call(self) -> Verdicts:
        """Finish the call phase and judge it, unless that was done inside the event loop."""
        assert self.owner is not None
        if not self._judged_in_loop:
            checkpoint = self._after_call()
            findings = settle(self._state.judge.settling(checkpoint))
            self._tell(findings, checkpoint.view)
        self._state.ownership.pop(self.owner)
        self._state.ownership.end(self.owner)
        return self.verdicts

    def end_teardown(self, ended: Sequence[Owner]) -> Verdicts:
        """Judge what the fixtures left that have been torn down.

        Args:
            ended: The owners that have ended since the call phase, fixtures of wider scopes included.
        """
        state = self._state
        self.verdicts = Verdicts()
        watched = {owner.serial for owner in ended if self._fixtures.is_watched(owner)}
        question = Question(
            asker=self.owner or state.ownership.session,
            ended=frozenset(watched),
            judged=self._fixtures.watched_serials(),
            transactions=bool(self._deferred),
            in_transaction_before=self._in_transaction_before,
        )
        checkpoint = Checkpoint(question, self._grace, keep=self._belongs_to_teardown)
        findings = settle(state.judge.settling(checkpoint))
        self._tell(findings, checkpoint.view)
        return self.verdicts

    def failure(self, verdicts: Verdicts) -> LeaksFound:
        """Make the exception that fails the phase."""
        return LeaksFound(verdicts.failing, self._item.config.rootpath)

    def section(self, verdicts: Verdicts) -> str:
        """Make the text to show beside an error of the user's own."""
        return plain(LeaksFound(verdicts.all, self._item.config.rootpath).lines)

    def _wrap_coroutine_function(self) -> None:
        function = getattr(self._item, "obj", None)
        if not inspect.iscoroutinefunction(function) or hasattr(function, "hypothesis"):
            return

        @functools.wraps(function)
        async def checked(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            try:
                return await function(*args, **kwargs)
            finally:
                # Inside the test's own loop, where background tasks and a pool's return worker can still finish.
                await self._judge_in_loop()

        # The item is about to run this one function once; pytest-asyncio and AnyIO both read `obj` when they do.
        self._item.obj = checked  # type: ignore[attr-defined]
        self._item.addfinalizer(functools.partial(setattr, self._item, "obj", function))

    async def _judge_in_loop(self) -> None:
        self._judged_in_loop = True
        self._state.loops.seen()
        checkpoint = self._after_call()
        findings = await settle_async(self._state.judge.settling(checkpoint))
        for heal in self._tell(findings, checkpoint.view):
            await heal()
        while self._state.late_apps:
            # No fixture could hold on to this event loop, so the lifespan must be shut down while it runs.
            await self._state.late_apps.pop().stop_here()

    def _after_call(self) -> Checkpoint:
        assert self.owner is not None
        ended = self._fixtures.ended_with(self.owner)
        question = Question(
            asker=self.owner,
            ended=ended,
            judged=ended,
            transactions=True,
            in_transaction_before=self._in_transaction_before,
        )
        return Checkpoint(question, self._grace, new_backends=True, keep=self._belongs_to_call)

    def _belongs_to_call(self, finding: Finding, view: View) -> bool:
        if finding.kind != TRANSACTION_LEFT_OPEN:
            return True
        opener = next(c.opened.owner for c in view.connections if c.serial == finding.serial)
        if opener.scope == "function" and self._fixtures.test_function(opener, is_installed):
            return False
        if self._fixtures.any_function_scoped(self._item, rolls_back):
            # Its rollback comes after the call phase: judged when the fixtures have been torn down.
            self._deferred |= {finding.serial}
            return False
        return True

    def _belongs_to_teardown(self, finding: Finding, _view: View) -> bool:
        return finding.kind != TRANSACTION_LEFT_OPEN or finding.serial in self._deferred

    def _tell(self, findings: Iterable[Finding], view: View) -> list[Callable[[], Awaitable[object]]]:
        """Sort, remember, heal. Returns what has to be awaited for healing."""
        state = self._state
        findings = tuple(findings)
        self.verdicts = state.verdict.sort(findings, self._item, self._marker.allow)
        state.judge.settled(findings)
        if not self.verdicts.all:
            return []
        self._item.ihook.pytest_pgleak_findings(item=self._item, findings=self.verdicts.all)
        return state.healer.heal(self.verdicts.all, view)

    def entries(self, verdicts: Verdicts) -> list[dict[str, Any]]:
        """Return the summary's form of findings."""
        root, nodeid = self._item.config.rootpath, self._item.nodeid
        return [
            reported(finding, nodeid, fails, root).as_dict()
            for group, fails in ((verdicts.failing, True), (verdicts.warning, False))
            for finding in group
        ]
