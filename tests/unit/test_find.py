from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from builders import CALL, FIXTURE, LIFESPAN, OTHER, SESSION, backend, code, connection, frame, moment, pool, stack

from pytest_pgleak.activity import NOTHING_KNOWN, Activity
from pytest_pgleak.find import Question, find
from pytest_pgleak.findings import PoolState
from pytest_pgleak.owners import Owner
from pytest_pgleak.requests import Request, RequestInfo
from pytest_pgleak.views import Ending, View

OPEN, CLOSED, DROPPED = Ending.OPEN, Ending.CLOSED, Ending.DROPPED

NOT_CLOSED = "connection-not-closed"
LOST = "connection-dropped"
NOT_RETURNED = "connection-not-returned"
POOL = "pool-not-closed"
IN_TRANSACTION = "transaction-left-open"
UNTRACKED = "untracked-backend"

ENDED = Owner(101, "call", "test_a.py::test_it")
JUDGED = Owner(102, "fixture", "test_a.py::test_it", "db", "module")
LIVING = Owner(103, "fixture", "test_a.py::test_it", "unwatched", "session")
ASK = Question(
    ENDED, ended=frozenset({ENDED.serial}), judged=frozenset({ENDED.serial, JUDGED.serial}), transactions=True
)


def ask(**changes):
    facts = {"ended": ASK.ended, "judged": ASK.judged, "transactions": True, **changes}
    return Question(ENDED, **facts)


def kinds(view, question=ASK, activity=NOTHING_KNOWN):
    return [found.kind for found in find(view, activity, question)]


# owner | how it stands | transaction status | not idle before | transactions asked for | found
DIRECT = [
    (ENDED, OPEN, "IDLE", False, True, [NOT_CLOSED]),
    (ENDED, OPEN, "ACTIVE", False, True, [NOT_CLOSED]),
    (ENDED, OPEN, "INTRANS", False, True, [NOT_CLOSED]),
    (ENDED, OPEN, "INERROR", False, True, [NOT_CLOSED]),
    (ENDED, OPEN, "INTRANS", True, True, [NOT_CLOSED]),
    (ENDED, OPEN, "IDLE", False, False, [NOT_CLOSED]),
    (ENDED, CLOSED, "UNKNOWN", False, True, []),
    (ENDED, CLOSED, "INTRANS", False, True, []),
    (ENDED, DROPPED, "IDLE", False, True, [LOST]),
    (ENDED, DROPPED, "INTRANS", False, True, [LOST]),
    (ENDED, DROPPED, "INTRANS", True, False, [LOST]),
    (JUDGED, OPEN, "IDLE", False, True, []),
    (JUDGED, OPEN, "ACTIVE", False, True, []),
    (JUDGED, OPEN, "UNKNOWN", False, True, []),
    (JUDGED, OPEN, "INTRANS", False, True, [IN_TRANSACTION]),
    (JUDGED, OPEN, "INERROR", False, True, [IN_TRANSACTION]),
    (JUDGED, OPEN, "INTRANS", True, True, []),
    (JUDGED, OPEN, "INERROR", True, True, []),
    (JUDGED, OPEN, "INTRANS", False, False, []),
    (JUDGED, CLOSED, "UNKNOWN", False, True, []),
    (JUDGED, DROPPED, "IDLE", False, True, [LOST]),
    (JUDGED, DROPPED, "INTRANS", False, False, [LOST]),
    (LIVING, OPEN, "IDLE", False, True, []),
    (LIVING, OPEN, "INTRANS", False, True, [IN_TRANSACTION]),
    (LIVING, OPEN, "INTRANS", True, True, []),
    (LIVING, OPEN, "INTRANS", False, False, []),
    (LIVING, CLOSED, "UNKNOWN", False, True, []),
    (LIVING, DROPPED, "IDLE", False, True, []),
    (LIVING, DROPPED, "INTRANS", False, True, []),
]


@pytest.mark.parametrize(("owner", "ending", "status", "before", "transactions", "expected"), DIRECT)
def test_a_direct_connection(owner, ending, status, before, transactions, expected):
    view = View((connection(10, ending, moment(owner), transaction_status=status),))
    question = ask(transactions=transactions, in_transaction_before=frozenset({10} if before else ()))
    assert kinds(view, question) == expected


# checked out by | pool of | pool | connection | transaction status | not idle before | found
CHECKOUT = [
    (ENDED, LIVING, OPEN, OPEN, "IDLE", False, [NOT_RETURNED]),
    (ENDED, LIVING, OPEN, OPEN, "INTRANS", False, [NOT_RETURNED]),
    (ENDED, LIVING, OPEN, OPEN, "INTRANS", True, [NOT_RETURNED]),
    (ENDED, LIVING, OPEN, DROPPED, "IDLE", False, [NOT_RETURNED]),
    (ENDED, LIVING, OPEN, CLOSED, "UNKNOWN", False, [NOT_RETURNED]),
    (ENDED, LIVING, CLOSED, OPEN, "IDLE", False, [NOT_RETURNED]),
    (ENDED, LIVING, CLOSED, DROPPED, "IDLE", False, [NOT_RETURNED]),
    (ENDED, LIVING, CLOSED, CLOSED, "UNKNOWN", False, []),
    (ENDED, LIVING, DROPPED, CLOSED, "UNKNOWN", False, []),
    (ENDED, LIVING, None, OPEN, "IDLE", False, [NOT_RETURNED]),
    (ENDED, LIVING, None, DROPPED, "IDLE", False, [NOT_RETURNED]),
    (ENDED, LIVING, None, CLOSED, "UNKNOWN", False, []),
    (JUDGED, LIVING, OPEN, OPEN, "IDLE", False, []),
    (JUDGED, LIVING, OPEN, OPEN, "INTRANS", False, [IN_TRANSACTION]),
    (JUDGED, LIVING, OPEN, OPEN, "INTRANS", True, []),
    (JUDGED, LIVING, OPEN, DROPPED, "INTRANS", False, [NOT_RETURNED]),
    (JUDGED, LIVING, CLOSED, DROPPED, "IDLE", False, [NOT_RETURNED]),
    (JUDGED, LIVING, OPEN, CLOSED, "UNKNOWN", False, []),
    (LIVING, LIVING, OPEN, OPEN, "IDLE", False, []),
    (LIVING, LIVING, OPEN, OPEN, "INERROR", False, [IN_TRANSACTION]),
    (LIVING, LIVING, OPEN, OPEN, "INERROR", True, []),
    (LIVING, LIVING, OPEN, DROPPED, "INTRANS", False, []),
    (LIVING, LIVING, OPEN, CLOSED, "UNKNOWN", False, []),
    # The pool is a mistake of its own; what went down with it is not a second one.
    (ENDED, ENDED, OPEN, OPEN, "IDLE", False, [POOL, NOT_RETURNED]),
    (ENDED, ENDED, CLOSED, OPEN, "IDLE", False, [NOT_RETURNED]),
    (ENDED, ENDED, DROPPED, DROPPED, "IDLE", False, [POOL]),
    (ENDED, JUDGED, DROPPED, DROPPED, "INTRANS", False, [POOL]),
    (LIVING, ENDED, OPEN, OPEN, "IDLE", False, [POOL]),
    (LIVING, ENDED, DROPPED, DROPPED, "IDLE", False, [POOL]),
]


@pytest.mark.parametrize(("taker", "pool_owner", "pool_ending", "ending", "status", "before", "expected"), CHECKOUT)
def test_a_checkout(taker, pool_owner, pool_ending, ending, status, before, expected):
    # The pool's owner has opened the connection too: only the checkout's owner answers for the checkout.
    taken = moment(taker, at=2.0)
    member = connection(10, ending, moment(pool_owner), pool=20, checkout=taken, transaction_status=status)
    pools = {} if pool_ending is None else {20: pool(20, pool_ending, moment(pool_owner, at=0.5))}
    question = ask(in_transaction_before=frozenset({10} if before else ()))
    assert kinds(View((member,), pools), question) == expected


@pytest.mark.parametrize(
    ("owner", "ending", "expected"),
    [
        (ENDED, OPEN, [POOL]),
        (ENDED, DROPPED, [POOL]),
        (ENDED, CLOSED, []),
        (JUDGED, OPEN, []),
        (JUDGED, DROPPED, [POOL]),
        (JUDGED, CLOSED, []),
        (LIVING, OPEN, []),
        (LIVING, DROPPED, []),
        (LIVING, CLOSED, []),
    ],
)
@pytest.mark.parametrize("members", list(itertools.product((OPEN, CLOSED, DROPPED), ("IDLE", "INTRANS"))))
def test_a_pool_absorbs_its_idle_members(owner, ending, expected, members):
    """An idle member of a living pool is capacity, one of a leaked pool is part of that leak."""
    idle = tuple(
        connection(serial, members[0], moment(owner), pool=20, transaction_status=members[1]) for serial in (10, 11)
    )
    assert kinds(View(idle, {20: pool(20, ending, moment(owner))})) == expected


def test_a_pool_that_was_never_seen_to_open_is_nobodys():
    unseen = replace(pool(20, opened=moment(ENDED)), opened=None)
    assert kinds(View((), {20: unseen})) == []


def test_the_ended_are_judged_without_being_named_twice():
    question = Question(ENDED, ended=frozenset({ENDED.serial}))
    view = View((connection(10, DROPPED, moment(ENDED)),), {20: pool(20, DROPPED, moment(ENDED))})
    assert sorted(kinds(view, question)) == [LOST, POOL]


def test_one_mistake_is_one_finding_whatever_is_combined():
    owners, endings = (ENDED, JUDGED, LIVING), tuple(Ending)
    seen = set()
    for owner, taker, ending, pool_ending, status, before in itertools.product(
        owners, (None, *owners), endings, (None, *endings), ("IDLE", "INTRANS", "INERROR"), (False, True)
    ):
        checkout = None if taker is None else moment(taker, at=2.0)
        member = connection(
            10,
            ending,
            moment(owner),
            pool=None if pool_ending is None else 20,
            checkout=checkout,
            transaction_status=status,
        )
        pools = {} if pool_ending is None else {20: pool(20, pool_ending, moment(owner))}
        question = ask(in_transaction_before=frozenset({10} if before else ()))
        found = find(View((member,), pools), NOTHING_KNOWN, question)
        subjects = [(one.subject == "pool", one.serial) for one in found]
        assert len(subjects) == len(set(subjects))
        if ending is CLOSED and pool_ending is not OPEN:
            assert all(one.subject == "pool" for one in found)
        seen.update(one.kind for one in found)
    assert seen == {LOST, NOT_CLOSED, NOT_RETURNED, POOL, IN_TRANSACTION}


def test_findings_come_in_the_order_of_what_happened_and_new_backends_last():
    view = View(
        (
            connection(10, OPEN, moment(ENDED, at=5.0)),
            connection(11, OPEN, moment(LIVING, at=1.0), pool=20, checkout=moment(ENDED, at=4.0)),
            connection(12, DROPPED, moment(ENDED, at=3.0)),
        ),
        {20: pool(20, OPEN, moment(ENDED, at=6.0))},
    )
    new = (backend(77, backend_start="2026-10-18 12:00:02+00"), backend(99, backend_start="2026-10-18 12:00:01+00"))
    found = find(view, Activity.of((), new), ASK)
    assert [(one.kind, one.serial) for one in found] == [
        (LOST, 12),
        (NOT_RETURNED, 11),
        (NOT_CLOSED, 10),
        (POOL, 20),
        (UNTRACKED, 99),
        (UNTRACKED, 77),
    ]


def test_what_happened_at_one_instant_keeps_its_order():
    view = View(tuple(connection(serial, OPEN, moment(ENDED, at=1.0)) for serial in (13, 11, 12)))
    assert [one.serial for one in find(view, NOTHING_KNOWN, ASK)] == [13, 11, 12]


def test_it_is_pure():
    view = View(
        (connection(10, OPEN, moment(ENDED)), connection(11, DROPPED, moment(ENDED))),
        {20: pool(20, OPEN, moment(ENDED))},
    )
    activity = Activity.of([backend(4711)], [backend(9)])
    before = repr(view)
    assert find(view, activity, ASK) == find(view, activity, ASK)
    assert repr(view) == before


def test_the_servers_row_is_joined_by_pid():
    rows = [backend(1, state="idle"), backend(2, state="active")]
    view = View((connection(10, OPEN, moment(ENDED), pid=2), connection(11, OPEN, moment(ENDED), pid=3)))
    joined, without = find(view, Activity.of(rows), ASK)
    assert joined.backend == rows[1]
    assert without.backend is None
    assert joined.server_known
    assert without.server_known


def test_what_was_seen_while_it_died_stands_in_for_a_row_that_is_gone():
    witnessed = backend(4711, state="idle in transaction", backend_xid="739")
    view = View((connection(10, DROPPED, moment(ENDED), backend=witnessed),))
    (found,) = find(view, Activity.of(()), ASK)
    assert found.backend == witnessed
    (found,) = find(view, NOTHING_KNOWN, ASK)
    assert found.backend == witnessed
    assert not found.server_known


def test_a_new_backend_is_the_askers():
    (found,) = find(View(), Activity.of((), [backend(815, application_name="psql")]), ASK)
    assert (found.owner, found.serial, found.subject, found.origin) == (ENDED, 815, "backend", None)
    assert found.backend is not None
    assert found.backend.application_name == "psql"


def test_a_checkout_is_charged_to_whoever_took_it_and_where():
    taken = moment(FIXTURE, at=2.0, where=stack(("take", "/project/app/take.py", 7)))
    view = View(
        (connection(10, OPEN, moment(CALL), pool=20, checkout=taken),),
        {20: pool(20, opened=moment(OTHER), checked_out=1)},
    )
    (found,) = find(view, NOTHING_KNOWN, Question(CALL, ended=frozenset({FIXTURE.serial})))
    assert (found.owner, found.subject) == (FIXTURE, "checkout")
    assert found.origin == frame(7, "take", "/project/app/take.py")
    assert isinstance(found.pool, PoolState)
    assert found.pool.checked_out == 1


WRITE = stack(("write", "/project/app/write.py", 30))
WROTE_AT = frame(30, "write", "/project/app/write.py")
FUNCTION_FIXTURE = Owner(4, "fixture", "test_visits.py::test_visit", "db", "function")
PROCESS = Owner(0, "process", variable="app.db.conn")


def left_open(holder, **more):
    more.setdefault("began", moment(CALL, at=3.0, where=WRITE))
    view = View((connection(10, OPEN, moment(holder), transaction_status="INTRANS", **more),))
    (found,) = find(view, NOTHING_KNOWN, Question(CALL, transactions=True))
    return found


@pytest.mark.parametrize(
    ("holder", "facts"),
    [
        (LIFESPAN, {}),
        (FUNCTION_FIXTURE, {}),
        (FIXTURE, {"was_finished": True}),
        (FIXTURE, {"began": moment(CALL, at=3.0, where=WRITE, request=Request(1, "GET", "/"))}),
        (PROCESS, {"was_finished": True}),
    ],
)
def test_an_open_transaction_is_the_askers_where_it_began(holder, facts):
    found = left_open(holder, **facts)
    assert (found.owner, found.origin, found.opened, found.began) == (CALL, WROTE_AT, frame(), None)


@pytest.mark.parametrize("holder", [FIXTURE, SESSION, PROCESS])
def test_it_is_the_fixtures_where_nobody_has_ever_ended_one(holder):
    found = left_open(holder)
    assert (found.owner, found.origin, found.opened, found.began) == (holder, frame(), None, WROTE_AT)


@pytest.mark.parametrize("holder", [FIXTURE, LIFESPAN])
def test_what_was_told_and_undone_is_repeated_until_somebody_ends_one(holder):
    assert not left_open(holder).is_repeated
    again = left_open(holder, is_undone=True)
    assert again.is_repeated
    assert not again.can_heal
    in_request = moment(CALL, at=3.0, where=WRITE, request=Request(1, "GET", "/"))
    assert not left_open(holder, is_undone=True, began=in_request).is_repeated


def test_a_transaction_that_a_fixture_left_open_for_its_tests():
    seen = connection(10, CLOSED, moment(FIXTURE), transaction_status="INTRANS", began=moment(FIXTURE, where=WRITE))
    ended = frozenset({FIXTURE.serial})
    (found,) = find(View(), NOTHING_KNOWN, Question(CALL, ended=ended, left_open=(seen,)))
    assert (found.kind, found.owner, found.origin, found.opened) == (IN_TRANSACTION, FIXTURE, WROTE_AT, frame())
    assert not found.can_heal
    assert find(View(), NOTHING_KNOWN, Question(CALL, left_open=(seen,))) == ()


def test_one_that_is_not_closed_either_is_one_finding():
    seen = connection(10, CLOSED, moment(FIXTURE), transaction_status="INTRANS", began=moment(FIXTURE))
    view = View((connection(10, OPEN, moment(FIXTURE), transaction_status="INTRANS", began=moment(FIXTURE)),))
    assert kinds(view, Question(CALL, ended=frozenset({FIXTURE.serial}), left_open=(seen,))) == [NOT_CLOSED]


def test_an_open_transaction_that_another_one_began_is_not_the_askers():
    began = moment(OTHER, at=3.0, where=stack(("write", "/project/app/write.py", 30)))
    view = View((connection(10, OPEN, moment(FIXTURE), transaction_status="INTRANS", began=began),))
    assert find(view, NOTHING_KNOWN, Question(CALL, transactions=True)) == ()


def test_an_open_transaction_that_the_holder_began_is_not_the_askers():
    view = View((connection(10, OPEN, moment(FIXTURE), transaction_status="INTRANS", began=moment(FIXTURE)),))
    assert find(view, NOTHING_KNOWN, Question(CALL, transactions=True)) == ()


def test_the_request_is_frozen_as_it_is_known_by_then():
    request = Request(1, "GET", "/visit/7")
    request.learn = lambda: setattr(request, "route", "/visit/{number}")
    request.status = 200
    view = View((connection(10, DROPPED, moment(ENDED, request=request), after_response=True),))
    (found,) = find(view, NOTHING_KNOWN, ASK)
    request.status = 500
    assert found.request == RequestInfo(1, "GET", "/visit/7", "/visit/{number}", None, 200, False)
    assert found.after_response is True
    assert found.dependency is None


def test_the_dependency_is_the_innermost_one_on_the_stack():
    inner, outer, other = code("get_cursor"), code("get_conn"), code("get_user")
    request = Request(1, "GET", "/", dependencies={outer: "get_conn", inner: "get_cursor", other: "get_user"})
    where = ((code("helper"), 3), (inner, 5), (outer, 9))
    view = View((connection(10, OPEN, moment(ENDED, where=where, request=request)),))
    (found,) = find(view, NOTHING_KNOWN, ASK)
    assert found.dependency == "get_cursor"


def test_what_is_learned_late_resolves_the_dependency_too():
    get_conn = code("get_conn")
    request = Request(1, "GET", "/")
    request.learn = lambda: request.dependencies.update({get_conn: "get_conn"})
    view = View((connection(10, OPEN, moment(ENDED, where=((get_conn, 9),), request=request)),))
    (found,) = find(view, NOTHING_KNOWN, ASK)
    assert found.dependency == "get_conn"


@pytest.mark.parametrize(("thread", "shown"), [("MainThread", None), ("AnyIO worker thread", "AnyIO worker thread")])
def test_only_a_thread_that_is_not_the_main_one_is_told(thread, shown):
    view = View((connection(10, OPEN, moment(ENDED, thread=thread)),))
    (found,) = find(view, NOTHING_KNOWN, ASK)
    assert found.thread == shown


def test_a_lifespan_that_has_ended_answers_for_what_it_opened():
    view = View((connection(10, OPEN, moment(LIFESPAN)),))
    (found,) = find(view, NOTHING_KNOWN, Question(CALL, ended=frozenset({LIFESPAN.serial})))
    assert found.owner == LIFESPAN


@pytest.mark.parametrize(("ending", "can_heal"), [(OPEN, True), (DROPPED, False)])
def test_only_what_is_open_can_still_be_made_good(ending, can_heal):
    (found,) = find(View((connection(10, ending, moment(ENDED)),)), NOTHING_KNOWN, ASK)
    assert found.can_heal is can_heal
