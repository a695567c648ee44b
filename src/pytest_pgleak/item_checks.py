"""One test from its set-up to its teardown: the owner of its call phase, its two checkpoints, what they found."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_pgleak.belonging import Belonging
from pytest_pgleak.budget.rules import find_over_limit, find_over_limit_of_workers
from pytest_pgleak.checkpoints import Checkpoint
from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.guardians import pending_finalizers
from pytest_pgleak.kinds import COMMIT_AFTER_RESPONSE
from pytest_pgleak.owners import Owner
from pytest_pgleak.reporting import LeaksFound, entries_of_verdicts, plain
from pytest_pgleak.settings import MarkerSettings
from pytest_pgleak.settling import Findings, settle, settle_async
from pytest_pgleak.timeouts import beside_the_timeout
from pytest_pgleak.verdicts import Verdicts
from pytest_pgleak.views import ConnectionView, Ending, View

if TYPE_CHECKING:
    from pytest_pgleak.fixture_owners import FixtureOwners
    from pytest_pgleak.state import State

Heal = Callable[[], Awaitable[object]]

CHECK: Final = pytest.StashKey["ItemCheck"]()
CALL_OWNER: Final = pytest.StashKey[Owner]()
"""The owner of the call phase."""
ENTRIES: Final = pytest.StashKey[list[dict[str, Any]]]()
"""What goes with the next report of a test into the summary."""


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
        self.grace = state.settings.grace if marker.grace is None else marker.grace
        self._in_transaction_before: frozenset[int] = frozenset()
        self._judged_in_loop = False
        self._failed = False
        self.belonging = Belonging(state, fixtures, item)
        self._call_verdicts = Verdicts()
        self._teardown_verdicts = Verdicts()
        self._wrapped: tuple[Any, Any] | None = None
        self.owner: Owner | None = None

    def begin_call(self) -> None:
        """Start the call phase: take the snapshot before, make the test the active owner."""
        state = self._state
        state.requests = itertools.count(1)
        state.checking = True
        self._fixtures.watch(self._item)
        state.ownership.background.adopt(state.ownership.session)
        self.owner = self._item.stash[CALL_OWNER] = state.ownership.begin("call", self._item.nodeid)
        self._in_transaction_before = state.judge.begin(self._fixtures.changes == self._fixtures.judged_at)
        state.ownership.push(self.owner)
        if self._marker.max_connections is not None:
            counts = functools.partial(self._fixtures.is_part_of, self._item, self.owner)
            state.budget.begin(self._marker.max_connections, counts)
        if state.live is not None:
            state.live.begin(self.owner, self._marker.max_connections is not None)
        self._wrap_coroutine_function()

    def end_call(self, failed: bool) -> Verdicts:
        """Finish the call phase and judge it, unless that was done inside the event loop.

        Args:
            failed: Whether the test function has raised.
        """
        assert self.owner is not None
        self._failed = failed
        try:
            if not self._judged_in_loop:
                checkpoint = self._after_call()
                findings = settle(self._settling(checkpoint))
                in_workers = settle(self._settling_in_workers(checkpoint.question, ends_call=True))
                self._call_verdicts += self._tell((*findings, *in_workers, *self._over_limit()), checkpoint.view)[0]
        finally:
            # Also after a timeout or Ctrl-C in the middle of it: what comes next is not this test's.
            self._unwrap_coroutine_function()
            self._state.budget.end()
            self._state.ownership.pop(self.owner)
            self._state.ownership.end(self.owner)
            self._state.ownership.background.adopt(self.owner)
        # What the test has registered with `request.addfinalizer` is still to be run.
        self._fixtures.judged_at = -1 if pending_finalizers(self._item) else self._fixtures.changes
        return self._call_verdicts

    def end_teardown(self, ended: Sequence[Owner], left_open: tuple[ConnectionView, ...] = ()) -> Verdicts:
        """Judge what the fixtures left that have been torn down.

        Args:
            ended: The owners that have ended since the call phase, fixtures of wider scopes included.
            left_open: Connections that were in a transaction of a fixture's set-up when its teardown began.
        """
        state = self._state
        if self.belonging.finalizers_owner is not None:
            ended = [*ended, self.belonging.finalizers_owner]
        watched = {owner.serial for owner in ended if self._fixtures.is_watched(owner)}
        question = Question(
            asker=self.owner or state.ownership.session,
            ended=frozenset(watched),
            judged=self._fixtures.watched_serials(),
            transactions=bool(self.belonging.deferred),
            in_transaction_before=self._in_transaction_before,
            failed=self._failed,
            late_commits=self._finds_late_commits,
            left_open=left_open,
        )
        checkpoint = Checkpoint(question, self.grace, keep=self.belonging.belongs_to_teardown)
        findings = settle(self._settling(checkpoint))
        if self.owner is not None:
            # What its requests still held at the end of the call phase is judged now.
            question = replace(question, ended=question.ended | {self.owner.serial})
        in_workers = settle(self._settling_in_workers(question, ends_call=False))
        self._teardown_verdicts += self._tell((*findings, *in_workers), checkpoint.view)[0]
        return self._teardown_verdicts

    async def judge_lifespan(self, lifespan: Owner) -> None:
        """Judge a lifespan that has just ended, in its own event loop: there, and only now, it can be healed.

        A pool that nobody closed may hang the shutdown of that loop for ever: its worker absorbs the cancellation
        (psycopg #1401; 4 of 40 runs, measured).
        """
        in_call = self.owner is not None and lifespan.started_by == self.owner.serial
        if not in_call and not self._fixtures.is_watched(lifespan):
            return
        ended = frozenset({lifespan.serial})
        checkpoint = Checkpoint(Question(lifespan, ended, ended), self.grace)
        findings = await settle_async(self._settling(checkpoint))
        verdicts, later = self._tell(findings, checkpoint.view)
        if in_call:
            self._call_verdicts += verdicts
        else:
            self._teardown_verdicts += verdicts
        for heal in later:
            await heal()

    def failure(self, verdicts: Verdicts, preface: str) -> LeaksFound:
        """Make the exception that fails the phase."""
        return LeaksFound(verdicts.failing, self._item.config.rootpath, preface)

    def section(self, verdicts: Verdicts) -> str:
        """Make the text to show beside an error of the user's own."""
        preface = "The test failed before this; what its frames still held then could not be released."
        if all(finding.ending is Ending.DROPPED for finding in verdicts.told):
            preface = "The test failed by itself; this was left besides."
        if all(finding.subject == "transaction" for finding in verdicts.told):
            preface = "This happened before the test failed; it may be the reason."
        return plain(LeaksFound(verdicts.told, self._item.config.rootpath, preface).lines)

    def _wrap_coroutine_function(self) -> None:
        function = getattr(self._item, "obj", None)
        if not inspect.iscoroutinefunction(function) or hasattr(function, "hypothesis"):
            return

        @functools.wraps(function)
        async def checked(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            # Only now the loop is known: what runs in it already is a fixture's, or an earlier test's.
            self._state.loops.seen()
            self._state.ownership.background.adopt(self._state.ownership.session)
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                self._failed = not isinstance(error, pytest.skip.Exception)
                raise
            finally:
                # Inside the test's own loop, where background tasks and a pool's return worker can still finish.
                await self._judge_in_loop()

        # The item is about to run this one function once; pytest-asyncio and AnyIO both read `obj` when they do.
        self._item.obj = checked  # type: ignore[attr-defined]
        self._wrapped = (function, checked)

    def _unwrap_coroutine_function(self) -> None:
        if self._wrapped is not None and getattr(self._item, "obj", None) is self._wrapped[1]:
            self._item.obj = self._wrapped[0]  # type: ignore[attr-defined]
        self._wrapped = None

    def _settling(self, checkpoint: Checkpoint) -> Generator[float, None, Findings]:
        return beside_the_timeout(self._state.judge.settling(checkpoint), self._item, checkpoint.grace)

    def _settling_in_workers(self, question: Question, *, ends_call: bool) -> Generator[float, None, Findings]:
        """Judge what the requests have left in the workers of live servers."""
        if (live := self._state.live) is None:
            return ()
        try:
            judging = live.judging(question, self.grace, ends_call)
            return (yield from beside_the_timeout(judging, self._item, self.grace))
        except Exception:  # noqa: BLE001 - what was found in this process is told all the same
            self._state.fault(f"the check of {self._item.nodeid} in a live server")
            return ()

    async def _judge_in_loop(self) -> None:
        self._judged_in_loop = True
        try:
            checkpoint = self._after_call()
            findings = await settle_async(self._settling(checkpoint))
            in_workers = await settle_async(self._settling_in_workers(checkpoint.question, ends_call=True))
            verdicts, later = self._tell((*findings, *in_workers, *self._over_limit()), checkpoint.view)
            self._call_verdicts += verdicts
            for heal in later:
                await heal()
        except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one, it is no failure of the test
            self._state.fault(f"the check of {self._item.nodeid}")
        while self._state.late_apps:
            # No fixture could hold on to this event loop, so the lifespan must be shut down while it runs.
            await self._state.late_apps.pop().stop_here()

    @property
    def _demanded(self) -> frozenset[str]:
        """The kinds that are off by themselves and that the marker asks for."""
        return frozenset({COMMIT_AFTER_RESPONSE} if self._marker.commit is not None else ())

    @property
    def _finds_late_commits(self) -> bool:
        return self._marker.commit is not None or self._state.settings.level(COMMIT_AFTER_RESPONSE) != "off"

    def _after_call(self) -> Checkpoint:
        assert self.owner is not None
        ended = self._fixtures.ended_with(self.owner)
        question = Question(
            asker=self.owner,
            ended=ended,
            judged=ended,
            transactions=True,
            in_transaction_before=self._in_transaction_before,
            failed=self._failed,
            late_commits=self._finds_late_commits,
        )
        return Checkpoint(
            question,
            self.grace,
            new_backends=True,
            keep=self.belonging.belongs_to_call,
            has_new_owners=self.belonging.take_handed_over,
        )

    def _over_limit(self) -> tuple[Finding, ...]:
        peak = self._state.budget.end()
        if peak is None or self.owner is None:
            return ()
        timelines = self._state.live.timelines if self._state.live is not None else []
        servers = {each.facts.server for line in timelines for each in line.connections.values()}
        known = (self._state.observers.servers.observer(server) for server in servers)
        takes = [each.identity.max_connections for each in known if each is not None and each.identity is not None]
        together = find_over_limit_of_workers(timelines, peak, self.owner, min(takes, default=0))
        return together or find_over_limit(peak, self.owner)

    def _tell(self, findings: Iterable[Finding], view: View) -> tuple[Verdicts, list[Heal]]:
        """Sort, remember, heal. Returns also what has to be awaited for healing."""
        state = self._state
        findings = tuple(findings)
        if not findings:
            return Verdicts(), []
        repeated = tuple(finding for finding in findings if finding.is_repeated)
        verdicts = self.sort(finding for finding in findings if not finding.is_repeated)
        here = tuple(finding for finding in findings if finding.process is None)
        state.judge.settled(here)
        if verdicts.told:
            self._item.ihook.pytest_pgleak_findings(item=self._item, findings=verdicts.told)
        if state.live is not None and len(here) < len(findings):
            state.live.told(replace(verdicts, warning=(*verdicts.warning, *repeated)))
        return verdicts, state.healer.heal(
            replace(verdicts, warning=(*verdicts.warning, *repeated)).of_process(None), view
        )

    def sort(self, findings: Iterable[Finding]) -> Verdicts:
        """Sort findings by what the marker and the settings say."""
        return self._state.verdict.sort(findings, self._item, self._marker.allow, demanded=self._demanded)

    def entries(self, verdicts: Verdicts) -> list[dict[str, Any]]:
        """Return the summary's form of findings."""
        return entries_of_verdicts(verdicts, self._item.nodeid, self._item.config.rootpath)
