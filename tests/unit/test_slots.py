from __future__ import annotations

from pathlib import Path

import pytest
from builders import frame

from pytest_pgleak.hangs.slots import Client, Crowd, Limits, PoolFigures, Slot, crowd_note, pool_note
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.views import Ending

ROOT = Path("/project")
REQUEST = RequestInfo(3, "GET", "/visit/7", "/visit/{id}")


def slot(pid=4711, seconds=3.21, **more):
    return Slot(**({"pid": pid, "seconds": seconds, "origin": frame(), "whose": "this test"} | more))


def note(*slots, max_size=2, trouble=None):
    return pool_note(PoolFigures("app", max_size), slots, trouble, ROOT).splitlines()


def test_who_holds_the_connections_of_a_pool():
    dropped = slot(4712, 9.0, request=REQUEST, ending=Ending.DROPPED)
    where, how = "app/db.py:14 in get_conn", "garbage-collected without putconn()"
    assert note(slot(doing="idle in transaction", query="select 's3cr3t'"), dropped) == [
        "pgleak: pool 'app' (max_size 2): 1 checked out, 1 slot lost for ever",
        "  pid 4711 taken 3.2 s ago at app/db.py:14 in get_conn, by this test, idle in transaction",
        "    last sql  select '…'",
        f"  a slot that is lost: taken 9.0 s ago at {where}, GET /visit/{{id}} (#3), by this test, {how}",
    ]


@pytest.mark.parametrize(
    ("loop", "text"),
    [
        (
            "closed",
            "  its event loop is closed: it can open no connection any more. Open it in the loop that uses it: ",
        ),
        (
            "another",
            "  it was opened in another event loop, and can open a connection only there. Open it in the loop ",
        ),
    ],
)
def test_a_pool_of_another_event_loop(loop, text):
    shown = pool_note(PoolFigures("app", 2, loop), [], None, ROOT).splitlines()
    assert len(shown) == 2
    assert shown[1].startswith(text)


def test_a_connection_that_was_closed_is_lost_too():
    assert note(slot(ending=Ending.CLOSED))[1].endswith(", closed without putconn()")


def test_the_oldest_comes_first_and_a_crowd_is_cut():
    shown = note(*(slot(number, float(number)) for number in range(13)))
    assert shown[1].startswith("  pid 12 ")
    assert shown[-1] == "  … and 3 more"


def test_nothing_is_out_and_the_pool_could_not_connect():
    trouble = "connection failed:\n  FATAL:  sorry, too many clients already"
    assert note(max_size=None, trouble=trouble) == [
        "pgleak: pool 'app': 0 checked out",
        "  the pool could not open another one: connection failed: FATAL: sorry, too many clients already",
    ]
    assert len(note(trouble="x" * 1000)[-1]) < 300


def test_outside_of_any_code():
    assert "outside of any code" in note(slot(origin=None))[1]


def test_who_is_connected_to_a_server_that_is_full():
    other = frame(20, "other")
    own = [slot(1, 1.0), slot(2, 2.5), slot(3, 0.5, origin=other, whose="test_a.py::test_a")]
    others = [Client(7, "psql", "bob", "shop"), Client(8, "psql", "bob", "shop"), Client(9, "", "app", "app")]
    assert crowd_note(Crowd(own, others, Limits(100, 3, role=2, database=50)), ROOT).splitlines() == [
        "pgleak: this process has 3 connections open to that server",
        "  2 × app/db.py:14 in get_conn, the oldest 2.5 s ago, by this test (pid 1, 2)",
        "  1 × app/db.py:20 in other, 0.5 s ago, by test_a.py::test_a (pid 3)",
        "others have 3 connections",
        "  2 × application_name 'psql', role bob, database shop",
        "  1 × application_name '', role app, database app",
        "limits: max_connections 100, 3 of them for superusers; the role may have 2; the database may have 50",
    ]


def test_nobody_could_be_asked():
    assert crowd_note(Crowd(), ROOT) == "pgleak: this process has 0 connections open to that server"


def test_a_large_crowd_is_cut():
    own = [slot(number, origin=frame(number)) for number in range(12)]
    others = [Client(number, f"app {number}", "app", "app") for number in range(14)]
    shown = crowd_note(Crowd(own, others), ROOT)
    assert "  … and from 2 more lines of code" in shown
    assert "  … and 4 more application names" in shown
    many = crowd_note(Crowd([slot(number) for number in range(9)]), ROOT)
    assert "9 × app/db.py:14" in many
    assert "(pid 0, 1, 2, 3, 4, …)" in many
