"""The three checkpoints: end of the call phase, end of the teardown, end of the session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace

from pytest_pgleak.activity import NOTHING_KNOWN, Backend
from pytest_pgleak.find import Question, find
from pytest_pgleak.findings import Finding
from pytest_pgleak.guardians import is_held
from pytest_pgleak.kinds import TRANSACTION_LEFT_OPEN
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observers import Observers, Watched
from pytest_pgleak.settling import Findings, settling
from pytest_pgleak.tasks import EventLoops, describe
from pytest_pgleak.views import View


@dataclass(slots=True)
class Checkpoint:
    """One judgement as it goes on.

    Attributes:
        question: What it asks.
        grace: Longest time to wait for a late release, seconds.
        new_backends: Whether backends that nobody opened are its business.
        keep: Which findings are meant; the others are left for a later checkpoint.
        view: The ledger as it was judged last.
    """

    question: Question
    grace: float
    new_backends: bool = False
    keep: Callable[[Finding, View], bool] = field(default=lambda _finding, _view: True)
    view: View = field(default_factory=View)


class Judge:
    """Joins the two witnesses.

    Args:
        ledger: What the client did.
        observers: What the servers see.
        loops: Tell whether tasks of the application are still at work.
        is_connecting: Tells whether a connection is being opened at this moment.
        watched_databases: Server and name of databases to look at even when nothing of them is open here.
    """

    def __init__(
        self,
        ledger: Ledger,
        observers: Observers,
        loops: EventLoops,
        is_connecting: Callable[[], bool],
        watched_databases: Callable[[], Iterable[tuple[tuple[str, str], str]]],
    ) -> None:
        self._ledger = ledger
        self._observers = observers
        self._loops = loops
        self._is_connecting = is_connecting
        self._watched_databases = watched_databases

    def begin(self) -> frozenset[int]:
        """Take the snapshot before a test; return which connections are in a transaction already."""
        self._loops.begin()
        view = self._ledger.view()
        for connection in view.connections:
            if (living := connection.facts.reference()) is not None:
                self._observers.learn(connection.facts, living)
        self._observers.begin(self._watched(), self._ledger.known_pids)
        return frozenset(connection.serial for connection in view.connections if connection.in_transaction)

    def settling(self, checkpoint: Checkpoint) -> Generator[float, None, Findings]:
        """Judge, with the pauses to make; see `pytest_pgleak.settling.settling`."""
        new: tuple[Backend, ...] = ()

        def look() -> Findings:
            nonlocal new
            checkpoint.view = self._ledger.view()
            self._observers.check_roles(self._ledger.roles)
            found = tuple(
                finding
                for finding in find(checkpoint.view, NOTHING_KNOWN, checkpoint.question)
                if checkpoint.keep(finding, checkpoint.view)
            )
            if checkpoint.new_backends:
                new = self._observers.new_backends(self._watched(), self._ledger.known_pids)
                activity = self._observers.look((), new)
                found += find(View(), activity, checkpoint.question)
            return found

        found = yield from settling(look, checkpoint.grace, self._loops.have_new_tasks, self._is_connecting)
        if not found:
            return ()
        return self._with_server(found, checkpoint, new)

    def settled(self, findings: Iterable[Finding]) -> None:
        """Note that findings were reported: they are not found again."""
        for finding in findings:
            if finding.subject == "pool":
                self._ledger.settle_pool(finding.serial)
            elif finding.subject == "checkout":
                self._ledger.settle_checkout(finding.serial)
            elif finding.subject == "connection" and finding.kind != TRANSACTION_LEFT_OPEN:
                # An open transaction is charged to the test, but its connection is somebody else's and lives on.
                self._ledger.settle_connection(finding.serial)

    def _with_server(self, found: Findings, checkpoint: Checkpoint, new: tuple[Backend, ...]) -> Findings:
        facts = [finding.connection for finding in found if finding.connection is not None]
        activity = self._observers.look(facts, new)
        wanted = {(finding.kind, finding.serial) for finding in found}
        return tuple(
            self._with_holder(finding)
            for finding in find(checkpoint.view, activity, checkpoint.question)
            if (finding.kind, finding.serial) in wanted
        )

    def _with_holder(self, finding: Finding) -> Finding:
        """Name the task that holds an open connection now, where that is not the one which opened it."""
        connection = finding.connection.reference() if finding.connection is not None else None
        if connection is None or finding.task is not None or not finding.can_heal:
            return finding
        holder = next((task for task in self._loops.user_tasks() if is_held(connection, [task.get_coro()])), None)
        return finding if holder is None else replace(finding, task=describe(holder))

    def _watched(self) -> Watched:
        watched = self._ledger.open_connections()
        for server, database in self._watched_databases():
            watched.setdefault(server, {}).setdefault(database, 0)
        return watched
