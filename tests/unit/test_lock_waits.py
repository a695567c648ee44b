from __future__ import annotations

import pytest

from pytest_pgleak.hangs.lock_queries import STATEMENTS, lock_waits
from pytest_pgleak.hangs.lock_waits import Lock, PreparedTransaction, conflict, in_the_way

MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_goes_together_with_access_exclusive(mode):
    assert conflict(mode, "AccessExclusiveLock")
    assert conflict("AccessExclusiveLock", mode)


@pytest.mark.parametrize("mode", MODES[:-1])
def test_reading_goes_together_with_everything_else(mode):
    assert not conflict("AccessShareLock", mode)


def test_conflicts_go_both_ways():
    assert {(a, b) for a in MODES for b in MODES if conflict(a, b) != conflict(b, a)} == set()


def test_two_writers_of_a_table_do_not_exclude_each_other():
    assert not conflict("RowExclusiveLock", "RowExclusiveLock")
    assert conflict("ShareLock", "RowExclusiveLock")


def test_a_mode_that_is_not_known_excludes():
    assert conflict("SIReadLock", "AccessShareLock")


def prepared(gid, mode):
    return PreparedTransaction(gid, "app", "app", 1.0, mode)


def test_only_what_excludes_is_in_the_way():
    reader, writer = prepared("reader", "AccessShareLock"), prepared("writer", "RowExclusiveLock")
    assert in_the_way(Lock("relation", "ShareLock"), (reader, writer)) == (writer,)


class Observer:
    def __init__(self, *rows):
        self.rows = rows
        self.asked = []

    def ask(self, *question):
        self.asked.append(question)
        return list(self.rows)


def row(**more):
    columns = {
        "pid": "12",
        "datname": "app",
        "query": "truncate t",
        "query_start": "2026-10-18",
        "seconds": "1.5",
        "locktype": "relation",
        "mode": "AccessExclusiveLock",
        "relation": "16390",
        "transactionid": None,
        "classid": None,
        "objid": None,
        "objsubid": None,
        "blocking": "7 7 0",
    }
    return tuple((columns | more).values())


def test_a_row_as_a_value():
    observer = Observer(row())
    (wait,) = lock_waits(observer, [12], ["app"], 0.5)
    assert (wait.pid, wait.datname, wait.query, wait.seconds) == (12, "app", "truncate t", 1.5)
    assert wait.lock == Lock("relation", "AccessExclusiveLock", 16390)
    assert wait.blocked_by == (7, 0)
    assert observer.asked == [("pgleak_lock_waits", [12], ["app"], "0.5")]
    assert "pgleak_lock_waits" in STATEMENTS


@pytest.mark.parametrize(
    ("classid", "objid", "objsubid", "key"),
    [
        ("0", "42", "1", "42"),
        ("4294967295", "4294967295", "1", "-1"),
        ("1", "0", "1", "4294967296"),
        ("1", "2", "2", "1, 2"),
        ("4294967295", "2", "2", "-1, 2"),
    ],
)
def test_the_key_of_an_advisory_lock_is_the_one_that_was_given(classid, objid, objsubid, key):
    advisory = row(locktype="advisory", relation=None, classid=classid, objid=objid, objsubid=objsubid)
    (wait,) = lock_waits(Observer(advisory), [], [], 0.5)
    assert wait.lock.key == key
