from __future__ import annotations

from pytest_pgleak.reporting import Reported
from pytest_pgleak.reports.bugs import bugs_of, drop_repeated_texts

TEXT = ("[connection-dropped] …", "  fix …")


def entry(place="app/db.py:14 in get_conn", nodeid="test_a.py::test_it", fails=True, **more):
    return Reported(more.pop("kind", "connection-dropped"), place, nodeid, fails, **more)


def test_a_bug_knows_all_its_tests_each_once():
    nodeids = [f"test_a.py::test_{number % 7}" for number in range(50)]
    (bug,) = bugs_of(entry(nodeid=nodeid) for nodeid in nodeids)
    assert (bug.count, bug.tests) == (50, tuple(nodeids[:7]))


def test_the_session_is_no_test():
    (bug,) = bugs_of([entry(nodeid="")])
    assert (bug.count, bug.tests, bug.times) == (1, (), "once, at the end of the session")


def test_how_often():
    assert bugs_of([entry()])[0].times == "once, in test_a.py::test_it"
    assert bugs_of([entry(), entry()])[0].times == "2 times, in test_a.py::test_it"
    assert bugs_of([entry(), entry(nodeid="test_b.py::test_it")])[0].times == "2 times, first in test_a.py::test_it"


def test_one_that_fails_makes_it_a_failing_bug():
    assert bugs_of([entry(fails=False), entry()])[0].fails
    assert not bugs_of([entry(fails=False)])[0].fails


def test_the_place_is_made_of_what_is_portable():
    at = {"file": "site-packages/a.py", "lineno": 3, "function": "f"}
    assert bugs_of([entry("/venv/site-packages/a.py:3 in f", **at)])[0].place == "site-packages/a.py:3 in f"
    end = {"ended_file": "b.py", "ended_lineno": 4, "ended_function": "g"}
    assert bugs_of([entry(**at, **end)])[0].place == "site-packages/a.py:3 in f, ended at b.py:4 in g"
    assert bugs_of([entry("pid 815")])[0].place == "pid 815"


def test_the_text_travels_once_for_each_bug():
    told = set()
    batches = [[entry(detail=TEXT).as_dict(), entry(detail=TEXT).as_dict()], [entry("b", detail=TEXT).as_dict()]]
    batches.append([entry(detail=TEXT).as_dict()])
    for batch in batches:
        drop_repeated_texts(batch, told)
    entries = [Reported.from_dict(each) for batch in batches for each in batch]
    assert [bool(each.detail) for each in entries] == [True, False, True, False]
    assert [bug.text for bug in bugs_of(reversed(entries))] == [TEXT, TEXT]
