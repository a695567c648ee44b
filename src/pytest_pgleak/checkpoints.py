"""The three checkpoints: end of the call phase, end of the teardown, end of the session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from pytest_pgleak.activity import NOTHING_KNOWN, Backend
from pytest_pgleak.find import Question, find
from pytest_pgleak.findings import Finding
from pytest_pgleak.guardians import is_held
from pytest_pgleak.kinds import TRANSACTION_LEFT_OPEN
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observers import Observers, Watched
from pytest_pgleak.pgbouncer.sessions import SharedSessions
from pytest_pgleak.prepared.watch import PreparedWatch
from pytest_pgleak.session_state.tracking import SessionTracking
from pytest_pgleak.settling import Findings, settling
from pytest_pgleak.tasks import EventLoops, describe
from pytest_pgleak.views import View

_ENDED: Final = ("transaction", "nested checkout", "session")
"""What findings speak of that is over: there is nothing to look at any more."""


@dataclass(slots=True)
class Checkpoint:
    """One judgement as it goes on.

    Attributes:
        question: What it asks.
        grace: Longest time to wait for a late release, seconds.
        new_backends: Whether backends that nobody opened are its business.
        keep: Which findings are meant; the others are left for a later checkpoint.
        has_new_owners: Whether `keep` has given something an owner who lives on, since it was asked last: that may be
            in a transaction now on a connection that lives on.
        view: The ledger as it was judged last.
    """

    question: Question
    grace: float
    new_backends: bool = False
    keep: Callable[[Finding, View], bool] = field(default=lambda _finding, _view: True)
    has_new_owners: Callable[[], bool] = field(default=lambda: False)
    view: View = field(default_factory=View)


class Judge:
    """Joins the two witnesses.

    Args:
        ledger: What the client did.
        observers: What the servers see.
        loops: Tell whether tasks of the application are still at work.
        is_connecting: Tells whether a connection is being opened at this moment, or goes back to its pool.
        watched_databases: Server and name of databases to look at even when nothing of them is open here.
        may_collect: Tells whether the garbage collector may be run where something is still open.
        prepared: Looks after prepared transactions.
        sessions: Knows what was left in the sessions of pooled connections.
        may_be_ours: Tells whether a backend that nobody here has opened may be this process's doing at all.
        shared: Knows what was left on server connections of PgBouncer's.
        half_open: Tells how many connections this process is opening. Where their event loop stands still they stay so,
            and have a backend that nobody knows yet.
    """

    def __init__(
        self,
        ledger: Ledger,
        observers: Observers,
        loops: EventLoops,
        is_connecting: Callable[[], bool],
        watched_databases: Callable[[], Iterable[tuple[tuple[str, str], str]]],
        may_collect: Callable[[], bool],
        prepared: PreparedWatch,
        sessions: SessionTracking,
        may_be_ours: Callable[[Backend], bool] = lambda _backend: True,
        shared: SharedSessions | None = None,
        half_open: Callable[[], int] = lambda: 0,
    ) -> None:
        self._half_open = half_open
        self._may_be_ours = may_be_ours
        self._sessions = sessions
        self._shared = shared
        self._prepared = prepared
        self._ledger = ledger
        self._observers = observers
        self._loops = loops
        self._is_connecting = is_connecting
        self._watched_databases = watched_databases
        self._may_collect = may_collect
        self._closed_before = 0

    def begin(self, nothing_between: bool = False) -> frozenset[int]:
        """Take the snapshot before a test; return which connections are in a transaction already.

        Args:
            nothing_between: Whether nothing has happened since the call phase of the test before was judged: then what
                the server said at the end of that is the snapshot.
        """
        self._loops.begin()
        standing, in_transaction = self._ledger.standing()
        for facts in standing:
            if (living := facts.reference()) is not None:
                self._observers.opened(facts, living)
        self._observers.begin(self.watched(), self._ledger.known_among, nothing_between)
        self._closed_before = self._ledger.closed
        self._prepared.begin()
        return in_transaction

    def settling(self, checkpoint: Checkpoint) -> Generator[float, None, Findings]:
        """Judge, with the pauses to make; see `pytest_pgleak.settling.settling`."""
        new: tuple[Backend, ...] = ()

        def look() -> Findings:
            nonlocal new
            found = self._client_side(checkpoint)
            if checkpoint.has_new_owners():
                found = self._client_side(checkpoint)
            self._observers.servers.identify()
            self._observers.check_roles(self._ledger.roles)
            if checkpoint.new_backends:
                new = tuple(
                    backend
                    for backend in self._observers.new_backends(
                        self.watched(), self._ledger.known_among, self._ledger.closed != self._closed_before
                    )
                    if self._may_be_ours(backend)
                )
                if len(new) <= self._half_open():
                    new = ()
                if new:
                    found += find(View(), self._observers.look((), new), checkpoint.question)
            prepared = self._prepared.look(checkpoint.view, checkpoint.question, checkpoint.new_backends)
            return found + tuple(each for each in prepared if checkpoint.keep(each, checkpoint.view))

        found = yield from settling(
            look, checkpoint.grace, self._loops.have_new_tasks, self._is_connecting, self._may_collect
        )
        if not found:
            return ()
        return self._with_server(found, checkpoint, new)

    def _client_side(self, checkpoint: Checkpoint) -> Findings:
        question, left = checkpoint.question, self._sessions.left()
        if self._shared is not None:
            left += self._shared.left()
        if not left and not question.left_open and not self._ledger.may_have_left(question.ended, question.judged):
            checkpoint.view = View()  # what nearly every test has left, and it costs a third
            return ()
        checkpoint.view = replace(self._ledger.view(), sessions=left)
        found = find(checkpoint.view, NOTHING_KNOWN, question)
        return tuple(finding for finding in found if checkpoint.keep(finding, checkpoint.view))

    def settled(self, findings: Iterable[Finding]) -> None:
        """Note that findings were reported: they are not found again."""
        for finding in findings:
            if finding.subject == "pool":
                self._ledger.settle_pool(finding.serial)
            elif finding.subject == "checkout":
                self._ledger.settle_checkout(finding.serial)
            elif finding.prepared is not None:
                self._prepared.settled(finding)
            elif finding.subject == "session":
                sessions = self._sessions if finding.shared is None else self._shared
                if sessions is not None:
                    sessions.settle(finding.serial, finding.left)
            elif finding.subject == "nested checkout":
                self._ledger.settle_nested({finding.serial})
            elif finding.subject == "transaction":
                self._ledger.settle_transactions({transaction.serial for transaction in finding.transactions})
            elif finding.subject == "connection" and finding.kind != TRANSACTION_LEFT_OPEN:
                # An open transaction is charged to the test, but its connection is somebody else's and lives on.
                self._ledger.settle_connection(finding.serial)

    def _with_server(self, found: Findings, checkpoint: Checkpoint, new: tuple[Backend, ...]) -> Findings:
        facts = [each.connection for each in found if each.connection is not None and each.subject not in _ENDED]
        activity = self._observers.look(facts, new)
        tables, view = self._with_tables(found, checkpoint.view)
        wanted = {(finding.kind, finding.serial) for finding in found}
        named = tuple(
            replace(self._with_holder(finding), written=_names(finding, tables))
            for finding in find(view, activity, checkpoint.question)
            # Where a transaction turns out to have written nothing, its connection may still have gone back in it.
            if (finding.kind, finding.serial) in wanted or finding.subject == "transaction"
        )
        return named + tuple(self._prepared.complete(finding) for finding in found if finding.prepared is not None)

    def _with_tables(self, found: Findings, view: View) -> tuple[dict[int, tuple[str, ...]], View]:
        """Look up what the transactions of findings have written: tables, or nothing that a rollback loses.

        Returns:
            The names of tables by the serials of the transactions, and the ledger as it is to be judged now.
        """
        tables: dict[int, tuple[str, ...]] = {}
        harmless = set()
        for finding in found:
            written = {each.serial: each.evidence for each in finding.transactions if each.evidence is not None}
            if finding.connection is None or not written:
                continue
            relations = self._observers.relations(finding.connection, written.values())
            tables |= {serial: relations.tables(backend) for serial, backend in written.items()}
            harmless |= {serial for serial, backend in written.items() if not relations.may_lose(backend)}
        if not harmless:
            return tables, view
        transactions = (
            replace(each, wrote=None, evidence=None) if each.serial in harmless else each for each in view.transactions
        )
        return tables, replace(view, transactions=tuple(transactions))

    def _with_holder(self, finding: Finding) -> Finding:
        """Name the task that holds an open connection now, where that is not the one which opened it."""
        connection = finding.connection.reference() if finding.connection is not None else None
        if connection is None or finding.task is not None or not finding.can_heal:
            return finding
        holder = next((task for task in self._loops.user_tasks() if is_held(connection, [task.get_coro()])), None)
        return finding if holder is None else replace(finding, task=describe(holder))

    def watched(self) -> Watched:
        """Return the databases that are looked at, and how many connections of this process are open in each."""
        watched = self._ledger.open_connections()
        # A copy, for the sampler's thread comes here, too.
        for server, database in tuple(self._watched_databases()):
            watched.setdefault(server, {}).setdefault(database, 0)
        return watched


def _names(finding: Finding, tables: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({name for each in finding.transactions for name in tables.get(each.serial, ())}))
