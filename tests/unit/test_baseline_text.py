from __future__ import annotations

import json
import random

import pytest

from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.keys import Key
from pytest_pgleak.baseline.text import BaselineError, from_text, to_text

KNOWN = {
    Key("connection-dropped", "app/db.py", "get_conn"): ("tests/test_a.py::test_1", "tests/test_a.py::test_2"),
    Key("connection-not-closed", "app/db.py", "get_conn"): ("tests/test_a.py::test_1",),
    Key("write-lost", "app/räpo.py", "Repository.save", "app/db.py::get_conn"): ("tests/test_b.py::test_1",),
    Key("pool-not-closed", "tests/conftest.py", "<module>"): (),
    Key("untracked-backend", source="application_name 'metrics'"): ("tests/test_a.py::test_1",),
}
MADE_FROM = Extent(("tests",), "all", {"-m": ("not slow",)})
TEXT = to_text(KNOWN, MADE_FROM)


def changed(text=TEXT, **top):
    return json.dumps(json.loads(text) | top)


def with_entry(**entry):
    return changed(known=[entry])


def test_what_is_written_is_read():
    assert from_text(TEXT) == (KNOWN, MADE_FROM)
    assert from_text(to_text({}, Extent())) == ({}, Extent())


def test_one_finding_is_one_line():
    lines = TEXT.splitlines()
    assert lines[-3] == ('    {"kind": "pool-not-closed", "file": "tests/conftest.py", "function": "<module>"}')
    assert lines[3] == '  "made_from": {"args": ["tests"], "select": "all", "-m": ["not slow"]},'
    assert "räpo" in TEXT
    assert len(lines) == len(KNOWN) + 7
    assert TEXT.endswith("}\n")
    assert to_text({}, Extent()).splitlines()[-2] == '  "known": []'


def test_it_says_how_to_change_it():
    about = json.loads(TEXT)["about"]
    assert "--pgleak-baseline-update" in about
    assert "remove its line" in about


def test_the_order_is_always_the_same():
    shuffled = list(KNOWN.items())
    random.Random(7).shuffle(shuffled)
    assert to_text(dict(shuffled), MADE_FROM) == TEXT
    # By file, so that what is fixed together is removed together.
    files = [entry.get("file", "") for entry in json.loads(TEXT)["known"]]
    assert files == sorted(files)


def test_one_more_is_one_more_line():
    more = to_text(KNOWN | {Key("connection-dropped", "app/a.py", "f"): ()}, MADE_FROM)
    assert len(set(more.splitlines()) - set(TEXT.splitlines())) == 1
    assert set(TEXT.splitlines()) <= set(more.splitlines())


def test_twins_of_a_merge_are_one():
    one, two = KNOWN | {}, KNOWN | {}
    key = Key("connection-dropped", "app/db.py", "get_conn")
    two[key] = ("tests/test_c.py::test_1",)
    merged = changed(
        known=[*json.loads(to_text(one, MADE_FROM))["known"], *json.loads(to_text(two, MADE_FROM))["known"]]
    )
    assert from_text(merged)[0][key] == (*KNOWN[key], "tests/test_c.py::test_1")
    assert len(from_text(merged)[0]) == len(KNOWN)


CONFLICT = TEXT.replace('    {"kind": "write-lost"', '<<<<<<< HEAD\n=======\n>>>>>>> other\n    {"kind": "write-lost"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it is no JSON: Expecting value: line 1 column 1"),
        (TEXT[:-20], "it is no JSON"),
        (TEXT.replace("},\n", "}\n"), "it is no JSON: Expecting ',' delimiter: line 5"),
        ("[" * 100_000, "it is no JSON"),
        (CONFLICT, "line 9: a merge conflict is not resolved"),
        ("[]", "it is no baseline of pytest-pgleak"),
        ("{}", "it is no baseline of pytest-pgleak"),
        ('"known"', "it is no baseline of pytest-pgleak"),
        (changed(version="1"), "it is no baseline of pytest-pgleak"),
        (changed(version=True), "it is no baseline of pytest-pgleak"),
        (changed(version=0), "it is no baseline of pytest-pgleak"),
        (changed(known={}), "it is no baseline of pytest-pgleak"),
        (changed(version=2), "it has version 2, and this pytest-pgleak reads version 1 only. Upgrade"),
        (changed(made_from=None), "made_from cannot be meant: null"),
        (changed(made_from={"args": ["."], "select": "some"}), "made_from cannot be meant"),
        (changed(made_from={"args": ".", "select": "all"}), 'made_from: args: expected a list of strings, got "."'),
        (changed(made_from={"args": [], "select": "all", "-k": "x"}), "made_from: -k: expected a list of strings"),
        (changed(known=["connection-dropped"]), 'finding 1 is no JSON object: "connection-dropped"'),
        (with_entry(kind="time-travel", file="a.py", function="f"), 'finding 1 has the kind "time-travel"'),
        (with_entry(file="a.py", function="f"), 'finding 1 has the kind ""'),
        (with_entry(kind="connection-dropped", file="a.py"), "must have a file and a function, or else a source"),
        (with_entry(kind="connection-dropped"), "must have a file and a function, or else a source"),
        (with_entry(kind="connection-dropped", file="a.py", function="f", source="x"), "or else a source"),
        (with_entry(kind="connection-dropped", file="a.py", function="f", lineno=7), '"lineno": 7 cannot be meant'),
        (with_entry(kind="connection-dropped", file="a.py", function=["f"]), '"function": ["f"] cannot be meant'),
        (
            with_entry(kind="connection-dropped", file="a.py", function="f", tests="x"),
            "finding 1: tests: expected a list",
        ),
    ],
)
def test_what_is_no_baseline(text, expected):
    with pytest.raises(BaselineError) as caught:
        from_text(text)
    assert expected in str(caught.value)
    # … and what to do about it.
    assert any(word in str(caught.value) for word in ("Repair", "Upgrade", "another file", "Keep the findings"))


def test_a_later_version_is_not_read_at_all():
    with pytest.raises(BaselineError, match="has version 2"):
        from_text(changed(version=2, made_from=7, known=[7]))
