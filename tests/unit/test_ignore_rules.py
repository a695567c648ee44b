from __future__ import annotations

from pathlib import Path

import pytest
from builders import finding, frame

from pytest_pgleak.ignore_rules import parse_rule

ROOT = Path("/project")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("connection-dropped app/db.py::get_conn", ("connection-dropped", "app/db.py", "get_conn")),
        ("  connection-dropped   app/db.py::get_conn  ", ("connection-dropped", "app/db.py", "get_conn")),
        ("connection-dropped\tapp/db.py::get_conn", ("connection-dropped", "app/db.py", "get_conn")),
        ("* app/*.py", ("*", "app/*.py", "*")),
        ("* app/db.py::Repository.save", ("*", "app/db.py", "Repository.save")),
        ("* my app/db.py::get", ("*", "my app/db.py", "get")),
        ("* *::*", ("*", "*", "*")),
    ],
)
def test_a_line_is_read(line, expected):
    rule = parse_rule(line)
    assert (rule.kind, rule.glob, rule.function) == expected
    assert rule.text == line.strip()


@pytest.mark.parametrize("line", ["", "   ", "connection-dropped", "* ::get", "* app.py::", "app.py::get"])
def test_a_line_that_is_none(line):
    assert parse_rule(line) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("connection-dropped app/db.py::get_conn", True),
        ("* app/db.py::get_conn", True),
        ("connection-dropped app/*::get_*", True),
        ("connection-dropped *.py::*", True),
        ("connection-dropped app/db.py", True),
        ("connection-dropped app/d?.py::get_conn", True),
        ("connection-not-closed app/db.py::get_conn", False),
        ("connection-dropped db.py::get_conn", False),
        ("connection-dropped /project/app/db.py::get_conn", False),
        ("connection-dropped app/db.py::conn", False),
        ("connection-dropped tests/*::get_conn", False),
        ("connection-dropped app/db.py::GET_CONN", False),
    ],
)
def test_what_it_matches(line, expected):
    assert parse_rule(line).matches(finding(), ROOT) is expected


@pytest.mark.parametrize("name", ["Repository.save", "save", "Repository.*", "*.save", "s*"])
def test_a_method_is_named_with_its_class_or_without(name):
    method = finding(origin=frame(function="Repository.save"))
    assert parse_rule(f"* app/db.py::{name}").matches(method, ROOT)


def test_a_method_of_another_class_is_not_meant():
    method = finding(origin=frame(function="Repository.save"))
    assert not parse_rule("* app/db.py::Store.save").matches(method, ROOT)


def test_code_outside_of_the_root_is_named_by_its_whole_path():
    outside = finding(origin=frame(filename="/opt/shared/db.py"))
    assert parse_rule("* /opt/shared/*.py").matches(outside, ROOT)
    assert not parse_rule("* shared/*.py").matches(outside, ROOT)


def test_what_comes_from_nowhere_is_never_meant():
    nowhere = finding("untracked-backend", "backend", origin=None)
    assert not parse_rule("* *").matches(nowhere, ROOT)
