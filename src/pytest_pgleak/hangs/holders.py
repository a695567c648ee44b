"""Who holds a connection, and whether whoever took it is over. Pure.

A `View` shows what has not been judged yet. Here it does not matter whether anybody judges it: what an unmarked test
left, or a marked one was allowed to leave, holds its locks and its slot all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_pgleak.events import ConnectionFacts, Moment, PoolFacts
from pytest_pgleak.owners import Owner
from pytest_pgleak.views import Ending

When = Literal["setup", "call", "teardown"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A connection that is open, or the slot of a pool that was lost with one.

    Attributes:
        serial: The connection's number in the ledger.
        facts: What was known when it opened.
        opened: When, where and on whose account.
        ending: How it stands.
        pool: Serial of its pool.
        pool_facts: What is known of that pool, if it is known.
        pool_opened: When, where and on whose account the pool was opened.
        checkout: The checkout that was not returned.
        began: Where its open transaction began, if anybody saw it.
    """

    serial: int
    facts: ConnectionFacts
    opened: Moment
    ending: Ending
    pool: int | None = None
    pool_facts: PoolFacts | None = None
    pool_opened: Moment | None = None
    checkout: Moment | None = None
    began: Moment | None = None

    @property
    def held(self) -> Moment:
        """Since when and on whose account it is held: the checkout, or else the opening, of its pool if it has one."""
        return self.checkout or self.pool_opened or self.opened


@dataclass(frozen=True, slots=True)
class Phase:
    """What pytest is doing. Times are ``Clock.monotonic()``.

    Attributes:
        nodeid: pytest's ``nodeid`` of the test.
        when: pytest's name of the phase.
        began_at: When the phase began.
        test_began_at: When the test's set-up began.
    """

    nodeid: str
    when: When
    began_at: float
    test_began_at: float


@dataclass(frozen=True, slots=True)
class Present:
    """What goes on at this moment.

    Attributes:
        phase: The phase.
        living: Serials of the owners that are known to be alive: fixtures, lifespans, whoever is on the stack.
    """

    phase: Phase
    living: frozenset[int]

    def is_over(self, moment: Moment) -> bool:
        """Tell whether the one who answers for something has ended, so that nobody is using it any more.

        A test function is over when the next test begins, and in its own teardown: what its fixtures still need is
        charged to them by then, or to an owner that is alive.
        """
        owner = moment.owner
        if owner.serial in self.living or owner.outlives_tests:
            return False
        if owner.what == "fixture":
            return True
        if owner.what == "lifespan":
            return owner.started_by not in self.living and self._is_of_another_test(moment)
        return self._is_of_another_test(moment) or self.phase.when == "teardown"

    def is_leftover(self, holder: Holder, transaction_age: float | None, now: float) -> bool:
        """Tell whether a connection is held by nobody who is still at work, and used by nobody either.

        Args:
            holder: The connection.
            transaction_age: Seconds since its transaction began, by the server's clock; None where it has none.
            now: ``Clock.monotonic()``.
        """
        if not self.is_over(holder.held):
            return False
        if holder.began is not None:
            return self.is_over(holder.began)
        if transaction_age is None or not self._is_of_another_test(holder.held):
            return True
        # The connection of a test that is over may be in use again, as one in a global variable is.
        return now - transaction_age <= self.phase.test_began_at

    def _is_of_another_test(self, moment: Moment) -> bool:
        return moment.at < self.phase.test_began_at


def whose(owner: Owner, nodeid: str) -> str:
    """Name an owner for a reader who looks at some test.

    Args:
        owner: The owner.
        nodeid: The test that is looked at.
    """
    if owner.outlives_tests or owner.scope not in (None, "function"):
        return owner.describe()
    if owner.what == "call":
        return "this test" if owner.nodeid == nodeid else owner.nodeid
    return owner.describe() if owner.nodeid == nodeid else f"{owner.describe()} of {owner.nodeid}"
