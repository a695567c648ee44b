"""Looks after prepared transactions at each checkpoint: which were left, what they block, and away with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace

from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observer import Observer, ObserverError
from pytest_pgleak.observers import Observers
from pytest_pgleak.prepared.left import PreparedRow, Server
from pytest_pgleak.prepared.queries import blocked_by, prepared_rows, roll_back
from pytest_pgleak.prepared.rules import find_prepared, strangers_among
from pytest_pgleak.views import View


class PreparedWatch:
    """Joins the two witnesses of prepared transactions.

    Args:
        ledger: What the client did.
        observers: What the servers see.
        own_databases: Server and name of the databases that nobody else uses.
        may_change: Whether something may be rolled back in a database.
        note: Keeps what the user must be told at the end of the session.
    """

    def __init__(
        self,
        ledger: Ledger,
        observers: Observers,
        own_databases: Callable[[], Iterable[tuple[Server, str]]],
        may_change: Callable[[str], bool],
        note: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._observers = observers
        self._own_databases = own_databases
        self._may_change = may_change
        self._note = note
        self._before: frozenset[tuple[Server, tuple[str, str]]] = frozenset()

    def begin(self) -> None:
        """Remember what is there before a test. Follows the observers' own quick look, which costs nothing more."""
        self._before = frozenset(
            (server, row.identity) for server in self._suspects() for row in self._rows(server) or ()
        )

    def look(self, view: View, question: Question, also_strangers: bool) -> tuple[Finding, ...]:
        """Judge once.

        Args:
            view: The ledger.
            question: Whose end is being judged.
            also_strangers: Whether also what nothing in this process has prepared. Follows the observers' quick look.
        """
        left = [entry for entry in view.prepared if entry.moment.owner.serial in question.ended]
        suspects = self._suspects() if also_strangers else frozenset()
        if not left and not suspects:
            return ()
        self._observers.seeing(entry.facts for entry in left)
        servers = {entry.facts.server for entry in left} | suspects
        rows = {server: listed for server in servers if (listed := self._rows(server)) is not None}
        strangers = strangers_among(rows, self._own_databases(), self._before, view.prepared) if also_strangers else ()
        return find_prepared(left, rows, question, strangers)

    def complete(self, finding: Finding) -> Finding:
        """Add what it keeps others from, and whether it will be left where it is."""
        assert finding.prepared is not None
        left = replace(finding.prepared, stays=not self._may_change(finding.prepared.database))
        observer = self._observer(left.server)
        if observer is not None and left.row is not None:
            with contextlib.suppress(ObserverError):  # the database is closed to this role, or going away
                locks, waiters = blocked_by(observer, left.row)
                left = replace(left, locks=locks, waiters=waiters)
        return replace(finding, prepared=left)

    def settled(self, finding: Finding) -> None:
        """Note that a finding was reported."""
        if finding.prepared is not None:
            self._ledger.prepared.settle(finding.prepared.server, finding.prepared.gid)

    def heal(self, finding: Finding) -> None:
        """Roll back what a finding is about, where that is allowed."""
        left = finding.prepared
        observer = None if left is None else self._observer(left.server)
        if left is None or observer is None or not self._may_change(left.database):
            return
        try:
            roll_back(observer, left.gid, left.database)
        except ObserverError as error:
            if any(row.gid == left.gid for row in self._rows(left.server) or ()):
                self._note(f"could not roll back a prepared transaction in database {left.database}: {error}")

    def _suspects(self) -> frozenset[Server]:
        """Return the servers on which there may be a prepared transaction that nobody here knows of."""
        servers = {server for server, _ in self._own_databases()}
        return frozenset(server for server in servers if self._observers.may_have_prepared(server))

    def _rows(self, server: Server) -> tuple[PreparedRow, ...] | None:
        observer = self._observer(server)
        if observer is None:
            return None
        try:
            return prepared_rows(observer)
        except ObserverError:
            return None

    def _observer(self, server: Server) -> Observer | None:
        return self._observers.seeing(()).get(server)
