from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path

import pytest
from _pytest._io import TerminalWriter
from builders import CALL, FIXTURE, LIFESPAN, SESSION, backend, finding, frame, lost

from pytest_pgleak.rendering import failure
from pytest_pgleak.reporting import LeaksFound, Reported, plain, reported, summary, write
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.sentences import fix

ROOT = Path("/project")


def entry(place="app/db.py:14 in get_conn", nodeid="test_a.py::test_it", fails=True, **more):
    return Reported(more.pop("kind", "connection-dropped"), place, nodeid, fails, **more)


def lines(*entries, notes=()):
    return [line.text for line in summary(entries, notes)[1]]


def title(*entries):
    return summary(entries, ())[0]


def test_a_finding_as_it_travels():
    found = finding(request=RequestInfo(1, "GET", "/visit/7", "/visit/{visit}", "visit", 200))
    one = reported(found, "test_a.py::test_it", True, ROOT)
    assert one == entry(
        detail=tuple(line.text for line in failure([found], ROOT)),
        file="app/db.py",
        lineno=14,
        function="get_conn",
        method="GET",
        route="/visit/{visit}",
        status=200,
        fix=fix(found),
        key=("connection-dropped", "app/db.py", "get_conn", "", ""),
    )


def test_a_path_stands_in_for_a_route():
    unrouted = finding(request=RequestInfo(1, "GET", "/visit/7"))
    one = reported(unrouted, "n", True, ROOT)
    assert (one.method, one.route, one.status) == ("GET", "/visit/7", None)


def test_where_it_ended_travels_if_that_is_another_line():
    one = reported(lost(), "n", True, ROOT)
    assert (one.file, one.lineno, one.function) == ("app/db.py", 14, "get_conn")
    assert (one.ended_file, one.ended_lineno, one.ended_function) == ("app/db.py", 26, "get_conn")
    same = reported(lost(ended_at=frame()), "n", True, ROOT)
    assert (same.ended_file, same.ended_lineno, same.ended_function) == ("", 0, "")


def test_what_travels_names_no_directory_of_this_machine():
    elsewhere = "/project-of-another/secret/app/db.py"
    found = finding(origin=frame(filename=elsewhere), stack=(frame(filename=elsewhere), frame(9, "f", elsewhere)))
    assert elsewhere in "\n".join(line.text for line in failure([found], ROOT))
    one = reported(found, "n", True, ROOT)
    assert one.file == "db.py"
    assert not [line for line in one.detail if "secret" in line]


def test_owners_and_what_has_no_line():
    assert reported(finding(owner=FIXTURE), "n", False, ROOT).owner == "fixture 'db' (module scope)"
    unknown = finding("untracked-backend", "backend", origin=None, serial=815, backend=backend(815))
    assert reported(unknown, "n", False, ROOT).place == "pid 815"


def test_it_travels_between_processes():
    one = reported(finding(owner=LIFESPAN), "test_a.py::test_it", True, ROOT)
    assert Reported.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_one_bug_is_one_entry():
    assert lines(entry(nodeid="test_a.py::test_1"), entry(nodeid="test_a.py::test_2")) == [
        "   2 × [connection-dropped] app/db.py:14 in get_conn",
        "         test_a.py::test_1",
        "         test_a.py::test_2",
    ]


def test_kind_line_and_owner_make_a_group():
    different = (
        entry(),
        entry(kind="connection-not-closed"),
        entry(place="app/db.py:15 in get_conn"),
        entry(owner="fixture 'db' (module scope)"),
    )
    assert len([line for line in lines(*different) if " × " in line]) == 4


def test_the_most_frequent_comes_first():
    entries = [
        *(entry("app/rare.py:1 in a") for _ in range(1)),
        *(entry("app/often.py:1 in a") for _ in range(12)),
        *(entry("app/sometimes.py:1 in a") for _ in range(3)),
    ]
    random.Random(7).shuffle(entries)
    assert [line.split()[0] for line in lines(*entries) if " × " in line] == ["12", "3", "1"]


def test_what_is_equally_frequent_keeps_its_order():
    shown = lines(*(entry(f"app/{name}.py:1 in a") for name in "cab"))
    assert [re.search(r"app/(\w)", line).group(1) for line in shown if " × " in line] == ["c", "a", "b"]


def test_warnings_come_after_leaks_and_say_so():
    shown = lines(*(entry("app/warned.py:1 in a", fails=False) for _ in range(5)), entry("app/failed.py:1 in a"))
    grouped = [line for line in shown if " × " in line]
    assert grouped == [
        "   1 × [connection-dropped] app/failed.py:1 in a",
        "   5 × [connection-dropped] app/warned.py:1 in a  (warning)",
    ]


def test_the_owner_is_named_where_it_is_not_the_test():
    shown = lines(entry(owner="fixture 'db' (module scope)"))
    assert shown[0] == "   1 × [connection-dropped] app/db.py:14 in get_conn  by fixture 'db' (module scope)"


def test_three_tests_stand_for_all():
    shown = lines(*(entry(nodeid=f"test_a.py::test_{number}") for number in range(100)))
    assert shown[0].startswith(" 100 × ")
    assert shown[1:] == [
        "         test_a.py::test_0",
        "         test_a.py::test_1",
        "         test_a.py::test_2",
        "         … and 97 more tests",
    ]


def test_a_test_is_named_once_however_often_it_leaks():
    assert lines(entry(), entry(), entry())[1:] == ["         test_a.py::test_it"]


def test_what_the_session_left_has_no_test():
    assert len(lines(entry(nodeid="", owner=SESSION.describe()))) == 1


def test_the_text_is_shown_of_what_failed_no_test():
    text = ("[connection-dropped] …", "  fix …")
    assert text[1] in lines(entry(fails=False, detail=text))
    assert text[1] not in lines(entry(detail=text))


def test_the_number_of_places_is_bounded_and_the_rest_is_counted():
    shown = lines(*(entry(f"app/db.py:{number} in a", nodeid=f"t::{number}") for number in range(500)))
    places = [line for line in shown if " × " in line]
    assert 10 <= len(places) <= 20
    assert shown[-1] == f"… and {500 - len(places)} more lines of code"


def test_notes_come_last_and_are_never_cut_off():
    entries = [entry(f"app/db.py:{number} in a") for number in range(500)]
    assert lines(*entries, notes=["first", "second"])[-2:] == ["pgleak: first", "pgleak: second"]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], "pgleak"),
        ([entry()], "pgleak: 1 leak from 1 line of code"),
        ([entry(), entry()], "pgleak: 2 leaks from 1 line of code"),
        ([entry(), entry("app/x.py:1 in a")], "pgleak: 2 leaks from 2 lines of code"),
        ([entry(fails=False)], "pgleak: 1 warning from 1 line of code"),
        (
            [entry(), entry("b", fails=False), entry("b", fails=False)],
            "pgleak: 1 leak, 2 warnings from 2 lines of code",
        ),
    ],
)
def test_the_title_counts(entries, expected):
    assert title(*entries) == expected


def printed(lines, colours):
    out = io.StringIO()
    writer = TerminalWriter(out)
    writer.hasmarkup = colours
    write(lines, writer)
    return out.getvalue()


def test_the_failure_has_colours_where_the_terminal_has_them():
    found = LeaksFound([finding()], ROOT)
    coloured, bare = printed(found.lines, True), printed(found.lines, False)
    assert "\x1b[" in coloured
    assert "\x1b" not in bare
    assert re.sub(r"\x1b\[\d+m", "", coloured) == bare == plain(found.lines) + "\n"


def test_the_text_of_the_failure_is_plain():
    found = LeaksFound([finding()], ROOT)
    for text in (str(found), found.msg, str(found.representation()), found.headline):
        assert "\x1b" not in text
    assert str(found.representation()) == found.msg == plain(found.lines)
    assert found.pytrace is False


def test_the_failure_is_at_the_line_that_did_it():
    found = LeaksFound([finding(), finding(origin=frame(99, "other"))], ROOT)
    crash = found.representation().reprcrash
    assert (crash.path, crash.lineno) == ("app/db.py", 14)
    assert crash.message == found.headline == "pgleak: connection-dropped at app/db.py:14 in get_conn (and 1 more)"


def test_a_failure_from_nowhere():
    nowhere = finding("untracked-backend", "backend", owner=CALL, origin=None, serial=815, backend=backend(815))
    found = LeaksFound([nowhere], ROOT)
    assert found.location == ("", 0)
    assert found.headline == "pgleak: untracked-backend"


def test_a_preface_stands_above():
    found = LeaksFound([finding()], ROOT, preface="In the block:")
    assert str(found).startswith("In the block:\n\n[connection-dropped]")


def test_what_is_known_is_neither_shown_nor_counted():
    known = reported(finding(), "test_a.py::test_it", False, ROOT, known=True)
    assert known.detail == ()
    assert summary([known], ()) == ("pgleak", [])
    assert summary([known, entry()], ()) == summary([entry()], ())
