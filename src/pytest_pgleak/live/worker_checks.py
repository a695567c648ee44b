"""The checkpoints of a test, in a worker process: what its requests have left here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from pytest_pgleak.activity import NOTHING_KNOWN
from pytest_pgleak.checkpoints import Checkpoint
from pytest_pgleak.clock import Clock
from pytest_pgleak.find import Question, find
from pytest_pgleak.findings import Finding
from pytest_pgleak.kinds import TRANSACTION_LEFT_OPEN
from pytest_pgleak.live.journal import Journal
from pytest_pgleak.live.last_words import Standing
from pytest_pgleak.live.wire import LONGEST_WORK, Begin, Forget, Judge, Told
from pytest_pgleak.live.worker_state import WorkerState
from pytest_pgleak.owners import Owner
from pytest_pgleak.process_lifetime import opening_stack, pool_around, target_of
from pytest_pgleak.requests import Request
from pytest_pgleak.settling import Findings, settle, settle_async
from pytest_pgleak.verdicts import Verdicts
from pytest_pgleak.views import View

_PAUSE: Final = 0.001
_HEALING: Final = 5.0
"""Seconds that the event loop of the application gets to undo what was found."""


class WorkerChecks:
    """Judges what is charged to the tests of another process.

    Args:
        state: The worker's state.
        journal: Takes what would be found, should the worker be killed.
    """

    def __init__(self, state: WorkerState, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        self._standing: tuple[tuple[str, int], ...] = ()
        self._is_looked_at = True
        self._active: Owner | None = None
        self._outlived: set[int] = set()
        """Owners that have ended before a request of theirs."""
        self._is_starting = False
        self._turns = threading.Lock()
        self._in_transaction_before: frozenset[int] = frozenset()
        self._judged: tuple[Findings, View] = ((), View())

    def begin(self, message: Begin) -> None:
        """A test's call phase begins: what does not say whose it is, is from now on the test's."""
        state = self._state
        state.rules = message.rules
        self._in_transaction_before = state.judge.begin()
        with self._turns:
            if self._active is not None:
                state.ownership.pop(self._active)
            state.ownership.background.adopt(state.ownership.session)
            if not self._is_starting:
                state.ownership.push(message.owner)
            self._active = message.owner
        state.counting.switch(message.rules.counts)

    def starts_up(self) -> None:
        """The application starts up, maybe in the middle of a test: what it starts is no doing of the test's."""
        with self._turns:
            self._is_starting = True
            if self._active is not None:
                self._state.ownership.pop(self._active)

    def has_started(self) -> None:
        """It has. Its threads are its own, and what is not charged to anybody is the test's from now on."""
        with self._turns:
            if not self._is_starting:
                return
            self._is_starting = False
            self._state.ownership.background.adopt(self._state.ownership.session)
            if self._active is not None:
                self._state.ownership.push(self._active)

    def judge(self, message: Judge) -> Findings:
        """Judge, after the requests of those who are judged have been answered to their very end."""
        began_at = Clock.monotonic()
        while Clock.monotonic() - began_at < self._patience(message):
            Clock.sleep(_PAUSE)
        question = replace(
            message.question, in_transaction_before=self._in_transaction_before, left_open=(), transactions=True
        )
        keep = _Keep(self._state)
        checkpoint = Checkpoint(question, message.grace, keep=keep, has_new_owners=keep.take_handed_over)
        findings = settle(self._state.judge.settling(checkpoint))
        with self._turns:
            if message.ends_call and self._active is not None:
                self._state.ownership.pop(self._active)
                if not self._is_starting:
                    self._state.ownership.background.adopt(self._active)
                self._active = None
        if not message.is_last:
            return findings
        self._state.judge.settled(findings)
        self._judged = (findings, checkpoint.view)
        if self._standing:
            self._standing = ()
            self._journal.write(Standing(()))
        return findings

    def answered(self) -> None:
        """A request is over: write down what is found of it and cannot heal, should the worker be killed."""
        self._is_looked_at = False
        if self._state.notes.is_suspicious:
            self._state.notes.is_suspicious = False
            self._stand(lambda finding, _view: not finding.can_heal)

    def write_what_stands(self) -> None:
        """Some time after that, write down also what is still open."""
        if not self._is_looked_at and not self._state.loops.requests:
            self._is_looked_at = True
            self._stand(_Keep(self._state))

    def _stand(self, keep: Callable[[Finding, View], bool]) -> None:
        state, owner = self._state, self._active
        if owner is None:
            return
        owners = frozenset({owner.serial})
        findings: Findings = ()
        if state.ledger.may_have_left(owners, owners):
            view = state.ledger.view()
            question = Question(owner, owners, owners)
            findings = tuple(each for each in find(view, NOTHING_KNOWN, question) if keep(each, view))
        standing = tuple((each.kind, each.serial) for each in findings)
        if standing != self._standing:
            self._standing = standing
            self._journal.write(Standing(findings))

    async def judge_lifespan(self, lifespan: Owner) -> Findings:
        """Judge a lifespan that has just ended, in its own event loop."""
        ended = frozenset({lifespan.serial})
        checkpoint = Checkpoint(Question(lifespan, ended, ended), self._state.rules.grace)
        findings = await settle_async(self._state.judge.settling(checkpoint))
        self._state.judge.settled(findings)
        # A pool that nobody closed may hang the shutdown of the event loop (psycopg #1401).
        for heal in self._state.healer.heal(Verdicts(findings), checkpoint.view):
            await heal()
        return findings

    async def judge_process(self) -> Findings:
        """Find what lives as long as this process, or longer than its test; asked when it shuts down."""
        session = self._state.ownership.session
        ended = frozenset({session.serial, *self._outlived})
        # What is still open will not go away by waiting for it.
        checkpoint = Checkpoint(Question(session, ended, ended), grace=0.0)
        findings = await settle_async(self._state.judge.settling(checkpoint))
        named = self._state.process_lifetime.at_the_end(findings, checkpoint.view, None)
        self._state.judge.settled(findings)
        return named

    def held_by_websockets(self, ended: frozenset[int]) -> Findings:
        """Find what websockets have that are open still, though their tests are over."""
        state = self._state
        outlived, session = ended | self._outlived, state.ownership.session
        if not any(each.owner in outlived and each.socket != "over" for each in list(state.loops.requests)):
            return ()
        view = state.ledger.view()
        found = find(view, NOTHING_KNOWN, Question(session, outlived, outlived))
        return tuple(each for each in found if each.request is not None and each.request.socket != "over")

    def told(self, message: Told) -> None:
        """Undo what was found, so that the next test neither hangs on it nor inherits it."""
        findings, view = self._judged
        self._judged = ((), View())
        verdicts = Verdicts(_chosen(findings, message.failing), _chosen(findings, message.warning))
        if not verdicts.told:
            return
        before = {each.serial for each in self._state.ledger.view().transactions}
        heal = self._heal(verdicts, view)
        if (loop := self._state.loops.running) is None:
            asyncio.run(heal)
        else:
            asyncio.run_coroutine_threadsafe(heal, loop).result(_HEALING)
        # That the transactions of these connections have ended now is no doing of the test's.
        healed = {finding.serial for finding in verdicts.told if finding.connection is not None}
        ended = (each for each in self._state.ledger.view().transactions if each.serial not in before)
        self._state.ledger.settle_transactions({each.serial for each in ended if each.connection in healed})

    def forget(self, message: Forget) -> None:
        """Let go of owners that have ended."""
        unfinished = {request.owner for request in list(self._state.loops.requests)}
        for owner in message.owners:
            if owner in unfinished and owner in message.judged:
                self._outlived.add(owner)  # what its request leaves from now on is told when the process ends
                continue
            self._state.ledger.forget_owner(owner)
            self._state.sessions.forget_owner(owner)
            self._state.shared.forget_owner(owner)

    def _keeps_for_nobody(self, request: Request) -> bool:
        """Tell whether the client of a websocket has gone, and its endpoint still has a connection."""
        return request.socket == "left" and any(
            each.held.request is request for each in self._state.ledger.view().connections
        )

    async def _heal(self, verdicts: Verdicts, view: View) -> None:
        for heal in self._state.healer.heal(verdicts, view):
            await heal()

    def _patience(self, message: Judge) -> float:
        """Return how long to wait in all for the requests that go on: one that is being sent may need its client."""
        if not message.is_last:
            return 0.0  # what is there now
        requests = [each for each in list(self._state.loops.requests) if each.owner in message.question.ended]
        if any(request.answered or self._keeps_for_nobody(request) for request in requests):
            return max(LONGEST_WORK, message.grace)
        return message.grace if requests else 0.0


class _Keep:
    """Says which findings are meant; the others belong to a lifespan, to the process, or to a later checkpoint.

    Args:
        state: The worker's state.
    """

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._seen: dict[tuple[str, int], bool] = {}
        self._has_handed_over = False

    def take_handed_over(self) -> bool:
        """Tell, once, whether something has got an owner who lives on."""
        handed_over, self._has_handed_over = self._has_handed_over, False
        return handed_over

    def __call__(self, finding: Finding, view: View) -> bool:
        if finding.prepared is not None or not finding.can_heal:
            return True
        if _is_being_answered(finding, view):
            return False
        if finding.kind == TRANSACTION_LEFT_OPEN:
            # A session has begun it, as they do, by itself.
            connection = next(c for c in view.connections if c.serial == finding.serial)
            return not (finding.library.ends_transactions and connection.taken is not None)
        key = (finding.subject, finding.serial)
        if key not in self._seen:
            self._seen[key] = not self._is_somebody_elses(finding, view)
        return self._seen[key]

    def _is_somebody_elses(self, finding: Finding, view: View) -> bool:
        """Hand a thing over to the lifespan that is going to close it, or to the process."""
        if (target := target_of(finding)) is None:
            return False
        around, is_lent = pool_around(finding), finding.subject == "checkout"
        stack = opening_stack(finding, view)
        owner = self._state.fixtures.guardian_of(target, stack, None, around, is_lent=is_lent)
        owner = owner or self._state.process_lifetime.owner_of(finding, view, None)
        if owner is None:
            return False
        self._state.ledger.reassign(finding.subject, finding.serial, owner)
        self._has_handed_over = True
        return True


def _is_being_answered(finding: Finding, view: View) -> bool:
    """Tell whether a request holds something that may still give it back in good order.

    The endpoint of a websocket whose client has gone had its time for that.
    """
    if finding.subject == "pool":
        pool = view.pools.get(finding.serial)
        moments = [pool.opened] if pool is not None else []
    else:
        connection = next((c for c in view.connections if c.serial == finding.serial), None)
        moments = [connection.held, connection.began] if connection is not None else []
    return any(moment and _goes_on(moment.request) for moment in moments)


def _goes_on(request: Request | None) -> bool:
    return request is not None and not request.finished and request.socket != "left"


def _chosen(findings: Findings, places: Iterable[int]) -> Findings:
    return tuple(findings[place] for place in places if place < len(findings))
