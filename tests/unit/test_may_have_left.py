"""`Ledger.may_have_left` may only say no where `find()` would find nothing."""

from __future__ import annotations

import pytest
from builders import (
    CALL,
    FIXTURE,
    OTHER,
    Living,
    began,
    checked_out,
    closed,
    finalized,
    gone,
    opened,
    pool_closed,
    pool_gone,
    pool_opened,
    returned,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_pgleak.activity import NOTHING_KNOWN
from pytest_pgleak.find import Question, find
from pytest_pgleak.ledger import Ledger

OWNERS = (CALL, FIXTURE, OTHER)
SUBJECTS = (10, 11)
EVENTS = [
    *(opened(serial, owner, pool) for serial in SUBJECTS for owner in OWNERS for pool in (None, 20)),
    *(checked_out(serial, owner) for serial in SUBJECTS for owner in OWNERS),
    *(event(serial) for serial in SUBJECTS for event in (closed, finalized, gone, returned, began)),
    *(pool_opened(owner=owner) for owner in OWNERS),
    pool_closed(),
    pool_gone(),
]


def ledger(*events):
    made = Ledger()
    for event in events:
        made.record(event)
    return made


@given(
    st.lists(st.sampled_from(EVENTS), max_size=8),
    st.sets(st.sampled_from(OWNERS)),
    st.sets(st.sampled_from(OWNERS)),
    st.booleans(),
    st.sampled_from([None, "settle_connection", "settle_checkout"]),
)
@settings(max_examples=400, deadline=None)
def test_no_is_certain(events, ended, judged, transactions, settle):
    made = ledger(*events)
    if settle is not None:
        made.view()
        getattr(made, settle)(10)
    question = Question(
        CALL,
        frozenset(owner.serial for owner in ended),
        frozenset(owner.serial for owner in judged),
        transactions,
    )
    may = made.may_have_left(question.ended, question.judged)
    found = find(made.view(), NOTHING_KNOWN, question)
    assert may or not found


@pytest.mark.parametrize(
    ("events", "may"),
    [
        ((), False),
        ((opened(10, FIXTURE),), False),
        ((opened(10, CALL), closed(10)), False),
        ((pool_opened(), opened(10, FIXTURE, 20), checked_out(10, CALL), returned(10)), False),
        ((opened(10, FIXTURE, living=Living(status="INTRANS")),), True),
        ((opened(10, CALL),), True),
        ((opened(10, FIXTURE), gone(10)), True),
        ((pool_opened(), opened(10, FIXTURE, 20), checked_out(10, CALL)), True),
        ((pool_opened(), pool_gone()), True),
    ],
)
def test_what_most_tests_leave_is_not_looked_at(events, may):
    assert ledger(*events).may_have_left(frozenset({CALL.serial}), frozenset({CALL.serial, FIXTURE.serial})) is may
