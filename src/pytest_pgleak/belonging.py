"""Whose a finding is: the test's own, that of a fixture or lifespan that will close it, or the process's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_pgleak.findings import Finding
from pytest_pgleak.guardians import is_held, pending_finalizers
from pytest_pgleak.isolation import finishes_prepared, is_installed, is_own, rolls_back
from pytest_pgleak.kinds import TRANSACTION_LEFT_OPEN
from pytest_pgleak.owners import Owner
from pytest_pgleak.prepared.left import LeftPrepared
from pytest_pgleak.process_lifetime import ProcessLifetime, opening_stack, pool_around, target_of
from pytest_pgleak.views import Ending, View
from pytest_pgleak.xunit_style import teardown_of_each

if TYPE_CHECKING:
    from pytest_pgleak.fixture_owners import FixtureOwners
    from pytest_pgleak.state import State


class Belonging:
    """Decides for the findings of one test which checkpoint judges them, and hands over what is somebody else's.

    Args:
        state: The session's state.
        fixtures: The owners of fixtures.
        item: The test.
    """

    def __init__(self, state: State, fixtures: FixtureOwners, item: pytest.Item) -> None:
        self._state = state
        self._fixtures = fixtures
        self._item = item
        self.deferred: frozenset[int] = frozenset()
        """Serials of connections whose open transaction is judged when the fixtures have been torn down."""
        self.finalizers_owner: Owner | None = None
        """The owner that ends when the finalizers of this test have run, if there is one."""
        self._guarded: dict[tuple[str, int], Owner | None] = {}
        self._of_process: dict[tuple[str, int, bool], Owner | None] = {}
        self._process_lifetime = ProcessLifetime(state.ownership, fixtures)
        self._has_handed_over = False

    def belongs_to_call(self, finding: Finding, view: View) -> bool:
        """Tell whether a finding is to be judged at the end of the call phase."""
        if finding.prepared is not None:
            return not self._is_finished_by_teardown(finding.prepared)
        if finding.kind == TRANSACTION_LEFT_OPEN:
            return self._transaction_belongs_to_call(finding, view)
        if finding.with_thread:
            return not self.is_process_lifetime(finding, view)
        return not (finding.can_heal and self._is_somebody_elses_to_close(finding, view))

    def _transaction_belongs_to_call(self, finding: Finding, view: View) -> bool:
        connection = next(c for c in view.connections if c.serial == finding.serial)
        opener = (connection.checkout or connection.opened).owner
        if any(self._guarded.get((subject, finding.serial)) is not None for subject in ("connection", "checkout")):
            return False  # the test has opened it, and its transaction ends when whoever holds it closes it
        if opener.scope == "function" and self._fixtures.test_function(opener, is_installed):
            return False
        if finding.library.ends_transactions:
            if opener.scope == "function" or connection.taken is not None:
                return False  # it is given back right after the test; or a session has begun it, as they do, by itself
            if self._fixtures.any_wider(self._item, rolls_back):
                return False  # a transaction that is begun there begins only with the first statement
        if opener.what == "fixture" and opener.scope == "function" and not self._has_written(finding):
            # psycopg begins a transaction with the first SELECT, and this one ends with its connection, right after the
            # test. A session's fixture would hand it on to the next test.
            self.deferred |= {finding.serial}
            return False
        if opener.scope != "function" and self._fixtures.rolls_back_for(opener, self._item):
            return False
        isolates = self._fixtures.any_function_scoped(self._item, rolls_back) or (
            # A session on this connection ends its transaction when it is closed.
            finding.library.ends_transactions and self._fixtures.any_function_scoped(self._item, is_own)
        )
        if isolates or self._fixtures.rolls_back_for(opener, self._item):
            # Its rollback comes after the call phase: judged when the fixtures have been torn down.
            self.deferred |= {finding.serial}
            return False
        return True

    def _has_written(self, finding: Finding) -> bool:
        """Tell whether the open transaction of a finding has written anything, as far as the server is known."""
        if finding.connection is None:
            return False
        backend = self._state.observers.look([finding.connection]).backends.get(finding.connection.backend_pid)
        return backend is not None and backend.backend_xid is not None

    def _is_finished_by_teardown(self, left: LeftPrepared) -> bool:
        """Hand a prepared transaction over to the teardown of this test, where that finishes some."""
        teardown = teardown_of_each(self._item)
        in_teardown = teardown is not None and finishes_prepared(teardown)
        if not in_teardown and not self._fixtures.any_function_scoped(self._item, finishes_prepared):
            return False
        owner = self._until_teardown()
        self._fixtures.watch_owner(owner)
        self._state.ledger.prepared.reassign(left.server, left.gid, owner)
        return True

    def _is_somebody_elses_to_close(self, finding: Finding, view: View) -> bool:
        """Hand a thing that the test has opened over to the fixture or lifespan that holds it to close it."""
        if (target := target_of(finding)) is None:
            return False
        key = (finding.subject, finding.serial)
        if key not in self._guarded:
            around, is_lent = pool_around(finding), finding.subject == "checkout"
            stack = opening_stack(finding, view)
            guardian = self._fixtures.guardian_of(target, stack, self._item, around, is_lent=is_lent)
            if guardian is None and is_held(target, pending_finalizers(self._item), around):
                guardian = self._until_teardown()
            self._guarded[key] = guardian
        if (guardian := self._guarded[key]) is None:
            return self.is_process_lifetime(finding, view)
        self._fixtures.watch_owner(guardian)
        self._state.ledger.reassign(finding.subject, finding.serial, guardian)
        return True

    def is_process_lifetime(self, finding: Finding, view: View) -> bool:
        """Hand a thing over to the process, where a global variable keeps what was opened on first use."""
        # Looked at while its thread is ending, nothing holds it any more, and it is not dropped yet.
        key = (finding.subject, finding.serial, finding.with_thread)
        if key not in self._of_process:
            self._of_process[key] = self._process_lifetime.owner_of(finding, view, self._item)
        if (process := self._of_process[key]) is None:
            return False
        self._state.ledger.reassign(finding.subject, finding.serial, process)
        self._has_handed_over = True
        return True

    def take_handed_over(self) -> bool:
        """Tell, once, whether something was handed over to an owner who lives on."""
        handed_over, self._has_handed_over = self._has_handed_over, False
        return handed_over

    @property
    def living(self) -> frozenset[int]:
        """Serial of the owner that ends with the finalizers of this test, if there is one."""
        return frozenset() if self.finalizers_owner is None else frozenset({self.finalizers_owner.serial})

    def _until_teardown(self) -> Owner:
        """Return an owner that ends when the finalizers of this test have run."""
        if self.finalizers_owner is None:
            self.finalizers_owner = self._state.ownership.begin("call", self._item.nodeid)
        return self.finalizers_owner

    def belongs_to_teardown(self, finding: Finding, view: View) -> bool:
        """Tell whether a finding is to be judged when the fixtures have been torn down."""
        if finding.kind == TRANSACTION_LEFT_OPEN:
            return finding.serial in self.deferred or finding.ending is Ending.CLOSED
        return not self.is_process_lifetime(finding, view)
