from __future__ import annotations

import pytest
from builders import CALL, FIXTURE, LIFESPAN, OTHER, SESSION, connection_facts, moment, pool_facts

from pytest_pgleak.hangs.holders import Holder, Phase, Present, whose
from pytest_pgleak.owners import Owner
from pytest_pgleak.views import Ending

NOW = 100.0


def present(when="call", living=()):
    """The running test began at 50."""
    return Present(Phase(CALL.nodeid, when, 60.0, 50.0), frozenset(living))


def holder(opened, **more):
    return Holder(10, connection_facts(), opened, Ending.OPEN, **more)


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_a_test_is_over_when_the_next_one_begins(when):
    assert present(when).is_over(moment(OTHER, at=49.0))


@pytest.mark.parametrize(("when", "over"), [("setup", False), ("call", False), ("teardown", True)])
def test_the_running_test_is_over_in_its_teardown(when, over):
    assert present(when).is_over(moment(CALL, at=61.0)) is over


def test_what_a_finalizer_is_going_to_close_is_not_over():
    assert not present("teardown", living={CALL.serial}).is_over(moment(CALL, at=61.0))


@pytest.mark.parametrize(("living", "over"), [({FIXTURE.serial}, False), ((), True)])
def test_a_fixture_is_over_when_it_has_ended(living, over):
    assert present(living=living).is_over(moment(FIXTURE, at=1.0)) is over


@pytest.mark.parametrize(
    ("living", "at", "over"),
    [
        ({LIFESPAN.serial}, 1.0, False),
        ({LIFESPAN.started_by}, 1.0, False),
        ((), 61.0, False),
        ((), 1.0, True),
    ],
)
def test_a_lifespan_is_over_when_it_has_ended_and_whoever_ran_it(living, at, over):
    assert present(living=living).is_over(moment(LIFESPAN, at=at)) is over


def test_the_session_is_never_over():
    assert not present("teardown").is_over(moment(SESSION, at=1.0))


def test_a_checkout_counts_before_the_pool_and_the_pool_before_the_opening():
    opened, pool, checkout = moment(OTHER), moment(FIXTURE), moment(CALL)
    assert holder(opened).held is opened
    assert holder(opened, pool=20, pool_facts=pool_facts(), pool_opened=pool).held is pool
    assert holder(opened, pool=20, pool_opened=pool, checkout=checkout).held is checkout


@pytest.mark.parametrize(("age", "leftover"), [(None, True), (60.0, True), (40.0, False)])
def test_a_connection_of_an_earlier_test_may_be_in_use_again(age, leftover):
    assert present().is_leftover(holder(moment(OTHER, at=1.0)), age, NOW) is leftover


@pytest.mark.parametrize(("owner", "at", "leftover"), [(OTHER, 2.0, True), (CALL, 70.0, False)])
def test_who_began_the_transaction_knows_better_than_its_age(owner, at, leftover):
    held = holder(moment(OTHER, at=1.0), began=moment(owner, at=at))
    assert present().is_leftover(held, 40.0, NOW) is leftover


def test_nothing_is_left_over_by_somebody_who_is_at_work():
    assert not present().is_leftover(holder(moment(CALL, at=61.0)), None, NOW)


def test_a_fixture_that_has_just_ended_has_left_it_over():
    assert present("teardown").is_leftover(holder(moment(FIXTURE, at=55.0)), 30.0, NOW)


@pytest.mark.parametrize(
    ("owner", "nodeid", "words"),
    [
        (CALL, CALL.nodeid, "this test"),
        (CALL, OTHER.nodeid, "test_visits.py::test_visit"),
        (SESSION, CALL.nodeid, "the process (opened at import or collection)"),
        (FIXTURE, CALL.nodeid, "fixture 'db' (module scope)"),
        (Owner(5, "fixture", OTHER.nodeid, "db", "function"), OTHER.nodeid, "fixture 'db' (function scope)"),
        (
            Owner(5, "fixture", OTHER.nodeid, "db", "function"),
            CALL.nodeid,
            "fixture 'db' (function scope) of test_visits.py::test_other",
        ),
    ],
)
def test_an_owner_in_words(owner, nodeid, words):
    assert whose(owner, nodeid) == words
