"""Which write was lost and which return was careless: the table of the rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import CALL, FIXTURE, LIFESPAN, OTHER, code, connection, moment, pool, stack, transaction

from pytest_pgleak.lost_writes import kind_of, request_of
from pytest_pgleak.requests import Request
from pytest_pgleak.transactions import How
from pytest_pgleak.views import Ending, View

LOST, RETURNED, LATE = "write-lost", "returned-in-transaction", "commit-after-response"


def request(status=200, failed=False, answered=False, method="POST", overrides=frozenset()):
    return Request(1, method, "/", status=status, failed=failed, answered=answered, overrides=overrides)


OK = request()
REDIRECT = request(303)
CONFLICT = request(409)
CRASH = request(500, failed=True)
RAISED = request(None, failed=True)
UNANSWERED = request(None)
BROKEN_STREAM = request(200, failed=True)
AFTERWARDS = request(200, failed=True, answered=True)
SOCKET = request(None, method="WEBSOCKET")
BROKEN_SOCKET = request(None, failed=True, method="WEBSOCKET")


def judge(how, during=None, *, others=(), failed=False, view=None, **more):
    """Judge a transaction that began and ended in one request, or outside of any."""
    facts = {"began": moment(at=3.0, request=during), "ended": moment(at=5.0, request=during), **more}
    judged = transaction(how, **facts)
    view = view or View(transactions=(judged, *others))
    return kind_of(judged, view, failed)


CLOSED = {"how": How.CLOSE}
GIVEN_BACK = {"how": How.POOL}
ROLLED_BACK = {"how": How.ROLLBACK}
ANSWERED_ROLLBACK = {"how": How.COMMIT, "status": "INERROR", "failed_by": "UniqueViolation"}
REFUSED = {"how": How.COMMIT, "error": "UniqueViolation"}
COMMITTED = {"how": How.COMMIT}


@pytest.mark.parametrize(
    ("facts", "during", "expected"),
    [
        # Nobody asked for it.
        *((CLOSED, each, LOST) for each in (None, OK, REDIRECT, AFTERWARDS, SOCKET)),
        *((CLOSED, each, None) for each in (CONFLICT, CRASH, RAISED, UNANSWERED, BROKEN_STREAM, BROKEN_SOCKET)),
        *((GIVEN_BACK, each, LOST) for each in (None, OK, REDIRECT, AFTERWARDS, SOCKET)),
        *((GIVEN_BACK, each, RETURNED) for each in (CONFLICT, CRASH, RAISED, UNANSWERED, BROKEN_STREAM)),
        (GIVEN_BACK | {"wrote": None}, None, RETURNED),
        (GIVEN_BACK | {"wrote": None}, OK, RETURNED),
        (GIVEN_BACK | {"wrote": None, "status": "INERROR"}, None, RETURNED),
        (GIVEN_BACK | {"wrote": None, "status": "ACTIVE"}, None, RETURNED),
        (GIVEN_BACK | {"status": "INERROR"}, None, LOST),
        (CLOSED | {"status": "INERROR"}, None, LOST),
        # Whoever called has an exception.
        *((each | {"cause": "LookupError"}, None, None) for each in (CLOSED, ROLLED_BACK, ANSWERED_ROLLBACK)),
        (GIVEN_BACK | {"cause": "LookupError"}, None, RETURNED),
        (CLOSED | {"cause": "LookupError"}, OK, LOST),
        (CLOSED | {"cause": "GeneratorExit"}, None, LOST),
        # An explicit rollback.
        (ROLLED_BACK, None, None),
        *((ROLLED_BACK, each, LOST) for each in (OK, REDIRECT, AFTERWARDS)),
        *((ROLLED_BACK, each, None) for each in (CONFLICT, CRASH, RAISED, UNANSWERED, BROKEN_STREAM, SOCKET)),
        (ROLLED_BACK | {"cause": "LookupError"}, OK, LOST),
        (ROLLED_BACK | {"cause": "GeneratorExit"}, None, LOST),
        (ROLLED_BACK | {"cause": "GeneratorExit"}, OK, LOST),
        (ROLLED_BACK | {"cause": "GeneratorExit"}, CONFLICT, None),
        (ROLLED_BACK | {"forced": True}, OK, None),
        # COMMIT answered ROLLBACK.
        *((ANSWERED_ROLLBACK, each, LOST) for each in (None, OK, REDIRECT, AFTERWARDS, SOCKET)),
        *((ANSWERED_ROLLBACK, each, None) for each in (CONFLICT, CRASH, RAISED, UNANSWERED)),
        # COMMIT raised an exception.
        (REFUSED, None, None),
        (REFUSED, OK, LOST),
        (REFUSED, CONFLICT, None),
        (REFUSED, RAISED, None),
        (REFUSED, BROKEN_STREAM, None),
        (REFUSED | {"after_response": True}, BROKEN_STREAM, LOST),
        (REFUSED | {"after_response": True}, AFTERWARDS, LOST),
        (REFUSED | {"after_response": True}, CONFLICT, None),
        # All is well, or late.
        (COMMITTED, None, None),
        (COMMITTED, OK, None),
        (COMMITTED | {"after_response": False}, OK, None),
        (COMMITTED | {"after_response": True}, OK, LATE),
        (COMMITTED | {"after_response": True}, AFTERWARDS, LATE),
        (COMMITTED | {"after_response": True}, CONFLICT, None),
        (COMMITTED | {"after_response": True, "began_after_response": True}, OK, None),
        (COMMITTED | {"after_response": True, "wrote": None}, OK, None),
        # Neither one nor the other.
        ({"how": How.PREPARED}, OK, None),
        ({"how": How.UNKNOWN}, OK, None),
    ],
)
def test_the_rules(facts, during, expected):
    assert judge(during=during, **facts) == expected


@pytest.mark.parametrize("how", [How.CLOSE, How.POOL, How.ROLLBACK, How.COMMIT])
@pytest.mark.parametrize("status", ["INTRANS", "INERROR"])
@pytest.mark.parametrize("during", [None, OK])
def test_who_wrote_nothing_loses_nothing(how, status, during):
    assert judge(how, during, status=status, wrote=None) == (RETURNED if how is How.POOL else None)


# -- a later transaction of the same request --------------------------------------------------------------------------


def other(during=OK, at=9.0, how=How.COMMIT, **more):
    here = moment(at=at, request=during)
    return transaction(how, serial=31, began=here, ended=here, **more)


MAY_BE_MADE_GOOD = [
    ROLLED_BACK,
    ANSWERED_ROLLBACK,
    REFUSED,
    CLOSED | {"cause": "LookupError"},
    CLOSED | {"status": "INERROR"},
]


@pytest.mark.parametrize("facts", MAY_BE_MADE_GOOD)
@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (other(), None),
        (other(connection=12), None),
        (other(at=4.0), LOST),
        (other(wrote=None), LOST),
        (other(request()), LOST),
        (other(None), LOST),
        (other(how=How.ROLLBACK), LOST),
        (other(error="UniqueViolation"), LOST),
        (other(status="INERROR"), LOST),
    ],
)
def test_what_is_made_good(facts, later, expected):
    assert judge(during=OK, others=(later,), **facts) == expected


@pytest.mark.parametrize("facts", [{"cause": "LookupError"}, {"status": "INERROR"}])
def test_an_attempt_that_was_given_back_is_made_good_and_still_careless(facts):
    assert judge(during=OK, others=(other(),), **GIVEN_BACK, **facts) == RETURNED


@pytest.mark.parametrize("facts", [CLOSED, GIVEN_BACK, CLOSED | {"cause": "GeneratorExit"}])
def test_what_nobody_asked_for_is_not_made_good(facts):
    """A transaction that was forgotten is not the first attempt of another one."""
    assert judge(during=OK, others=(other(),), **facts) == LOST


def test_outside_of_a_request_nothing_is_made_good():
    assert judge(How.COMMIT, None, status="INERROR", others=(other(None),)) == LOST


# -- isolation --------------------------------------------------------------------------------------------------------

HOWS = [How.CLOSE, How.POOL, How.ROLLBACK]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("during", [None, OK])
def test_a_fixtures_connection_is_the_fixtures_to_roll_back(how, during):
    assert judge(how, during, holder=moment(FIXTURE)) is None


@pytest.mark.parametrize("how", HOWS)
def test_what_a_fixture_ends_it_ends_on_purpose(how):
    assert judge(how, OK, ended=moment(FIXTURE, at=5.0)) is None


@pytest.mark.parametrize("during", [None, OK])
def test_a_fixture_commits_as_it_likes(during):
    assert judge(How.COMMIT, during, status="INERROR", holder=moment(FIXTURE)) is None


def test_a_request_that_a_fixture_makes_is_the_applications():
    at = {"began": moment(FIXTURE, at=3.0, request=OK), "ended": moment(FIXTURE, at=5.0, request=OK)}
    assert judge(How.CLOSE, **at) == LOST


@pytest.mark.parametrize("owner", [LIFESPAN, CALL])
def test_the_applications_own_connections_are_not_isolated(owner):
    assert judge(How.CLOSE, OK, holder=moment(owner, request=OK)) == LOST
    assert judge(How.CLOSE, holder=moment(owner)) == LOST


@pytest.mark.parametrize("how", HOWS)
def test_a_test_that_lends_its_connection_to_a_request_ends_it_itself(how):
    at = {"began": moment(at=3.0, request=OK), "ended": moment(at=5.0)}
    assert judge(how, holder=moment(CALL, at=1.0), **at) is None
    assert judge(How.CLOSE, holder=moment(LIFESPAN, at=1.0), **at) == LOST


def test_an_override_rolls_back_on_purpose():
    override = code("override", "/project/tests/test_visits.py")
    here = moment(at=5.0, where=((override, 3), *stack(("f", "/project/app/db.py", 1))))
    during = request(overrides=frozenset({override}))
    ended = replace(here, request=during)
    assert judge(How.ROLLBACK, during, ended=ended) is None
    assert judge(How.ROLLBACK, during, ended=ended, cause="LookupError") == LOST
    assert judge(How.CLOSE, during, ended=ended) == LOST
    assert judge(How.ROLLBACK, OK, ended=replace(here, request=OK)) == LOST


# -- tests that fail --------------------------------------------------------------------------------------------------


def test_what_was_lost_before_a_test_failed_is_told():
    assert judge(How.CLOSE, failed=True) == LOST
    assert judge(How.COMMIT, status="INERROR", failed=True) == LOST
    assert judge(How.CLOSE, OK, failed=True) == LOST


def test_what_the_failure_interrupted_is_not():
    assert judge(How.CLOSE, failed=True, cause="AssertionError") is None
    assert judge(How.CLOSE, failed=True, ended=moment(OTHER, at=5.0)) is None
    assert judge(How.ROLLBACK, failed=True, ended=moment(OTHER, at=5.0), cause="GeneratorExit") is None
    assert judge(How.COLLECTED, failed=True, pool=20) is None


# -- garbage collection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "pools", "expected"),
    [
        (None, {}, None),  # `connection-dropped` says so
        (20, {20: pool()}, None),  # `connection-not-returned` says so
        (20, {20: pool(ending=Ending.CLOSED)}, None),
        (20, {20: pool(ending=Ending.DROPPED)}, LOST),
        (20, {}, LOST),
    ],
)
def test_a_dropped_connection_carries_its_write_where_it_is_found(number, pools, expected):
    judged = transaction(How.COLLECTED, pool=number)
    assert kind_of(judged, View((connection(),), pools, (judged,)), False) == expected


# -- whose request ----------------------------------------------------------------------------------------------------


def test_the_request_that_wrote_answers_for_it():
    assert request_of(transaction(began=moment(request=OK), ended=moment(request=CONFLICT))) is OK
    assert request_of(transaction(began=moment(), ended=moment(request=CONFLICT))) is CONFLICT
    assert request_of(transaction()) is None
