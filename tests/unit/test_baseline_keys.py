from __future__ import annotations

from pathlib import Path

import pytest
from builders import CALL, FIXTURE, LIFESPAN, SESSION, backend, finding, frame, lost, moment, stack, transaction

from pytest_pgleak.baseline.keys import Key, function_of, key_of
from pytest_pgleak.owners import Owner
from pytest_pgleak.reports.portable import portable
from pytest_pgleak.transactions import How

ROOT = Path("/project")
PARAMETRIZED = Owner(5, "call", "tests/test_a.py::TestA::test_it[a::b-1]")


def of(*args, **more):
    return key_of(finding(*args, **more), ROOT)


def test_kind_file_and_function_make_the_key():
    assert of() == Key("connection-dropped", "app/db.py", "get_conn")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"origin": frame(99)}, True),
        ({"owner": FIXTURE}, True),
        ({"serial": 4}, True),
        ({"backend": backend(815)}, True),
        ({"kind": "connection-not-closed"}, False),
        ({"origin": frame(function="get_connection")}, False),
        ({"origin": frame(filename="/project/app/database.py")}, False),
    ],
)
def test_what_changes_it(change, same):
    assert (of(**change) == of()) is same


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("/project/app/db.py", "app/db.py"),
        ("/project/.venv/lib/python3.11/site-packages/app/db.py", "site-packages/app/db.py"),
        ("/usr/lib/python3/dist-packages/app/db.py", "dist-packages/app/db.py"),
        ("/opt/shared/db.py", "db.py"),
        ("/home/me/code/shared/db.py", "../shared/db.py"),
        ("/home/you/shared/db.py", "../../../you/shared/db.py"),
    ],
)
def test_a_file_is_named_alike_wherever_the_project_lies(filename, expected):
    root = Path("/home/me/code/project") if filename.startswith("/home") else ROOT
    assert portable(filename, root) == expected


def test_a_comprehension_is_part_of_its_function():
    # Before Python 3.12 it is a frame of its own.
    old = (frame(3, "<listcomp>"), frame(3, "Repository.connect"), frame(9, "test_it"))
    new = (frame(3, "Repository.connect"), frame(9, "test_it"))
    assert of(origin=old[0], stack=old) == of(origin=new[0], stack=new)
    assert of(origin=old[0], stack=old[:1]).function == "<listcomp>"


def test_where_it_was_ended_tells_lost_writes_apart():
    def at(*place, how=How.CLOSE):
        work = moment(where=stack(("save", "/project/app/repository.py", 3)), at=3.0)
        ended = transaction(how, began=work, ended=moment(at=5.0, where=stack(place)))
        return key_of(lost(ended, origin=frame(3, "save", "/project/app/repository.py")), ROOT)

    assert at("get_conn", "/project/app/db.py", 14) == Key(
        "write-lost", "app/repository.py", "save", ended_in="app/db.py::get_conn"
    )
    assert at("get_conn", "/project/app/db.py", 14) == at("get_conn", "/project/app/db.py", 41)
    assert at("get_conn", "/project/app/db.py", 14) != at("other", "/project/app/db.py", 14)
    assert at("save", "/project/app/repository.py", 9).ended_in == ""
    # The garbage collector comes when it likes.
    assert at("anything", "/project/app/else.py", 1, how=How.COLLECTED).ended_in == ""


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (CALL, "test test_visits.py::test_visit"),
        (PARAMETRIZED, "test tests/test_a.py::TestA::test_it"),
        (FIXTURE, "fixture 'db'"),
        (LIFESPAN, "the application's lifespan run by fixture 'client'"),
        (SESSION, "the process (opened at import or collection)"),
    ],
)
def test_the_owner_stands_in_for_an_origin(owner, expected):
    assert of(owner=owner, origin=None) == Key("connection-dropped", source=expected)


def test_an_untracked_backend_is_known_by_its_name():
    def named(name):
        return of("untracked-backend", "backend", origin=None, backend=backend(application_name=name)).source

    assert named("metrics") == "application_name 'metrics'"
    assert named("worker-4711") == named("worker-815") == "application_name 'worker-#'"
    assert named(None) == named("") == "application_name ''"


def test_too_many_connections_are_the_tests_own():
    # Which line came last is a matter of chance.
    one, two = of("too-many-connections", "connections"), of("too-many-connections", origin=frame(function="other"))
    assert one == two == Key("too-many-connections", source="test test_visits.py::test_visit")


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("test_a.py::test_it", "test_a.py::test_it"),
        ("test_a.py::test_it[1]", "test_a.py::test_it"),
        ("test_a.py::TestA::test_it[x::y[0]]", "test_a.py::TestA::test_it"),
        ("odd[dir]/test_a.py::test_it[1]", "odd[dir]/test_a.py::test_it"),
        ("", ""),
    ],
)
def test_parameters_do_not_belong_to_it(nodeid, expected):
    assert function_of(nodeid) == expected


def test_it_travels_and_is_named():
    key = Key("write-lost", "a.py", "save", "b.py::close")
    assert Key(*key.as_strings()) == key
    assert key.describe() == "[write-lost] a.py in save, ended in b.py::close"
    assert (
        Key("untracked-backend", source="application_name ''").describe() == "[untracked-backend] application_name ''"
    )
