from __future__ import annotations

import pytest

from pytest_pgleak.reporting import Reported
from pytest_pgleak.reports.bugs import bugs_of
from pytest_pgleak.reports.github import MOST, annotate
from pytest_pgleak.reports.report import SourceTree


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "db, or: 100%.py").write_text("")
    (tmp_path / "app" / "db.py").write_text("")
    return SourceTree(tmp_path / "app", tmp_path)


def entry(lineno=14, file="db.py", fails=True, **more):
    at = {"file": file, "lineno": lineno, "function": "get_conn"} if file else {}
    return Reported("connection-dropped", f"{file}:{lineno}", "test_a.py::test_it", fails, **at, **more)


def lines(tree, *entries):
    return annotate(bugs_of(entries), tree)


def test_an_annotation(tree):
    detail = ("[connection-dropped] opened", "  fix       do 100% of it: now, please")
    message = "[connection-dropped] opened%0A  fix       do 100%25 of it: now, please%0A%0AFound 2 times"
    assert lines(tree, entry(detail=detail), entry()) == [
        f"::error file=app/db.py,line=14,title=pgleak%3A connection-dropped::{message}, in test_a.py::test_it."
    ]


def test_a_warning(tree):
    assert lines(tree, entry(fails=False))[0].startswith("::warning file=app/db.py,line=14,title=")


def test_a_path_is_escaped(tree):
    assert "file=app/db%2C or%3A 100%25.py,line=14," in lines(tree, entry(file="db, or: 100%.py"))[0]


@pytest.mark.parametrize("file", ["", "site-packages/app.py", "../../outside.py"])
def test_no_place_in_the_repository(tree, file):
    assert lines(tree, entry(file=file))[0].startswith("::error title=pgleak%3A connection-dropped::[connection")


def test_carriage_returns(tree):
    assert "a%0D%0Ab" in lines(tree, entry(detail=("a\r", "b")))[0]


def test_one_line_each(tree):
    assert all("\n" not in line for line in lines(tree, entry(detail=("a\nb",)), entry(2)))


def test_as_many_as_github_keeps(tree):
    shown = lines(
        tree,
        *(entry(number) for number in range(MOST + 3)),
        *(entry(number, fails=False) for number in range(100, 100 + MOST + 4)),
    )
    assert [line.split()[0] for line in shown] == ["::error"] * MOST + ["::warning"] * MOST + ["pgleak:"]
    assert shown[-1].startswith("pgleak: 7 more bugs have no annotation")
    assert lines(tree, *(entry(number) for number in range(MOST + 1)))[-1].startswith("pgleak: 1 more bug has no")


def test_nothing_found(tree):
    assert lines(tree) == []
