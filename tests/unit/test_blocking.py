from __future__ import annotations

from pathlib import Path

import pytest
from builders import CALL, FIXTURE, OTHER, backend, connection_facts, moment, stack

from pytest_pgleak.hangs.blocking import Blocked, Blocker, message
from pytest_pgleak.hangs.holders import Holder, Phase
from pytest_pgleak.hangs.lock_waits import Lock, LockWait, PreparedTransaction
from pytest_pgleak.views import Ending

ROOT = Path("/project")
PHASE = Phase(CALL.nodeid, "call", 60.0, 50.0)
THERE = stack(("test_other", "/project/test_visits.py", 7))


def wait(lock=None, query="truncate visits -- 'x'", blocked_by=(4711,)):
    lock = lock or Lock("relation", "AccessExclusiveLock", 16390)
    return LockWait(4712, "app", query, "2026-10-18", 5.04, lock, blocked_by)


def holder(owner=OTHER, where=THERE, **more):
    return Holder(10, connection_facts(), moment(owner, where=where), Ending.OPEN, **more)


def leftover(**more):
    row = backend(
        state="idle in transaction",
        seconds_in_state=6.0,
        backend_xid="739",
        query="insert into visits values ('s3cr3t')",
        locks=("ShareLock",),
    )
    return Blocker(**({"pid": 4711, "backend": row, "holder": holder(), "is_over": True, "terminated": True} | more))


def lines(*blockers, **more):
    blocked = Blocked(**({"phase": PHASE, "wait": wait(), "relation": "visits", "blockers": blockers} | more))
    return message(blocked, ROOT).splitlines()


def labelled(shown, label):
    return [line[12:] for line in shown if line[2:12].strip() == label]


def test_the_whole_message():
    waiter = holder(CALL, stack(("test_visit", "/project/test_visits.py", 14)))
    assert lines(leftover(), waiter=waiter) == [
        "pgleak: test_visits.py::test_visit (call) has been waiting for a lock for 5.0 s",
        "  waiting   truncate visits",
        "            pid 4712, database app, opened test_visits.py:14 in test_visit",
        "  lock      AccessExclusiveLock on relation visits",
        "  held by   pid 4711, idle in transaction for 6.0 s, xid 739: an uncommitted write is held, locks ShareLock",
        "  last sql  insert into visits values ('…')",
        "  opened    test_visits.py:7 in test_other, by test_visits.py::test_other, which is over",
        "  done      pid 4711 was terminated, the run goes on",
    ]


def test_what_is_left_alone_can_be_ended_by_hand():
    shown = lines(leftover(terminated=False))
    assert labelled(shown, "by hand") == [
        "select pg_terminate_backend(4711); in a database that is not its own, pgleak needs pgleak_terminate = true"
    ]
    assert labelled(lines(leftover(terminated=False, is_over=False)), "by hand") == [
        "select pg_terminate_backend(4711)"
    ]
    refused = lines(leftover(terminated=False, trouble="must be a member of the role"))
    assert labelled(refused, "by hand") == [
        "select pg_terminate_backend(4711); pgleak could not: must be a member of the role"
    ]


def test_a_living_fixture_whose_transaction_a_test_began():
    shown = lines(leftover(holder=holder(FIXTURE, began=moment(CALL)), is_over=False, terminated=False))
    assert labelled(shown, "opened") == ["test_visits.py:7 in test_other, by fixture 'db' (module scope)"]
    assert labelled(shown, "began") == ["app/db.py:14 in get_conn, by this test"]


def test_a_checkout_is_taken_not_opened():
    assert labelled(lines(leftover(holder=holder(checkout=moment(OTHER, where=THERE)))), "taken")


def test_a_backend_of_somebody_else():
    row = backend(state="active", application_name="psql", query="lock table visits")
    shown = lines(Blocker(4711, row, waits=True))
    assert labelled(shown, "held by") == ["pid 4711, active, which waits for a lock itself"]
    assert labelled(shown, "opened") == [
        "not by psycopg in this process: application_name 'psql', role app, database app"
    ]


def test_a_worker_of_the_servers_own():
    shown = lines(Blocker(4711, backend(), "autovacuum worker"))
    assert labelled(shown, "held by") == ["pid 4711, autovacuum worker"]
    assert labelled(shown, "opened") == []


@pytest.mark.parametrize(
    ("lock", "relation", "words"),
    [
        (Lock("relation", "ShareLock", 16390), None, "ShareLock on relation with oid 16390"),
        (Lock("tuple", "ExclusiveLock", 16390), "visits", "ExclusiveLock on a row of relation visits"),
        (
            Lock("transactionid", "ShareLock", transactionid="742"),
            None,
            "ShareLock on transaction 742: on a row that it has written or locked",
        ),
        (Lock("advisory", "ExclusiveLock", key="42"), None, "ExclusiveLock on the advisory key 42"),
        (Lock("virtualxid", "ShareLock"), None, "ShareLock (locktype virtualxid)"),
        (Lock("extend", "ExclusiveLock", 16390), "visits", "ExclusiveLock (locktype extend) on relation visits"),
    ],
)
def test_the_lock_in_words(lock, relation, words):
    assert labelled(lines(wait=wait(lock), relation=relation), "lock") == [words]


def test_a_prepared_transaction_and_the_statement_that_ends_it():
    prepared = PreparedTransaction("it's one", "app", "bob", 6.0, "RowExclusiveLock")
    shown = lines(wait=wait(blocked_by=(0,)), prepared=(prepared,))
    assert labelled(shown, "held by") == [
        "prepared transaction 'it''s one', of role bob, prepared 6.0 s ago, RowExclusiveLock"
    ]
    assert labelled(shown, "by hand") == ["ROLLBACK PREPARED 'it''s one'  (in database app)"]


def test_a_prepared_transaction_that_cannot_be_found():
    assert "pg_prepared_xacts" in labelled(lines(wait=wait(blocked_by=(0,))), "by hand")[0]


def test_a_statement_that_may_not_be_seen():
    assert labelled(lines(wait=wait(query=None)), "waiting") == ["a statement that may not be seen"]


def test_a_crowd_is_cut():
    shown = lines(*(leftover(pid=number) for number in range(1, 9)))
    assert len(labelled(shown, "held by")) == 5
    assert "            … and 3 more backends" in shown
