"""The transactions that a wider fixture's set-up begins, and nobody ends for as long as it lives.

All its tests run inside of one, and see it open: it is the fixture's, once. Looked at when its teardown begins, for
afterwards its connection is closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_pgleak.fixture_owners import FixtureOwners
from pytest_pgleak.isolation import is_installed, keeps_transaction, rolls_back
from pytest_pgleak.owners import Owner
from pytest_pgleak.views import ConnectionView, Ending

if TYPE_CHECKING:
    from pytest_pgleak.state import State


class FixtureTransactions:
    """Remembers them until the teardown is judged.

    Args:
        state: The session's state.
        fixtures: The owners of fixtures.
    """

    def __init__(self, state: State, fixtures: FixtureOwners) -> None:
        self._state = state
        self._fixtures = fixtures
        self._left: list[ConnectionView] = []
        fixtures.teardown_begins = self.look

    def look(self, owner: Owner) -> None:
        """The teardown of a fixture is about to begin."""
        if owner.scope == "function" or not self._fixtures.is_watched(owner):
            return
        try:
            left = [each for each in self._state.ledger.view().connections if _was_begun_by(owner, each)]
            if left and not self._is_on_purpose(owner):
                self._left += [self._with_server(each) for each in left]
        except Exception:  # noqa: BLE001 - a fault of the plugin must not keep a fixture from its teardown
            self._state.fault(f"the look at {owner.describe()}")

    def take(self, ended: Iterable[Owner]) -> tuple[ConnectionView, ...]:
        """Return, once, what fixtures that have ended have left open."""
        serials = {owner.serial for owner in ended}
        taken = [each for each in self._left if each.began is not None and each.began.owner.serial in serials]
        self._left = [each for each in self._left if each not in taken]
        return tuple(taken)

    def _is_on_purpose(self, owner: Owner) -> bool:
        # An outer transaction: somebody rolls it back, or has said in so many words that there is one.
        said_so = (is_installed, keeps_transaction, rolls_back)
        is_own = any(self._fixtures.test_function(owner, said) for said in said_so)
        return is_own or self._fixtures.any_used_with(owner, rolls_back)

    def _with_server(self, connection: ConnectionView) -> ConnectionView:
        activity = self._state.observers.look([connection.facts])
        # It is over when it is told: nothing to wait for, nothing to undo.
        return replace(connection, ending=Ending.CLOSED, backend=activity.backends.get(connection.facts.backend_pid))


def _was_begun_by(owner: Owner, connection: ConnectionView) -> bool:
    began = connection.began
    return (
        connection.ending is Ending.OPEN
        and connection.in_transaction
        and began is not None
        and began.owner == owner
        and began.request is None
    )
