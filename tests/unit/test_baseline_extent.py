from __future__ import annotations

import pytest

from pytest_pgleak.baseline.extent import Extent, not_covered, smallest


@pytest.mark.parametrize(
    ("run", "made_from", "expected"),
    [
        (Extent(), Extent(), ""),
        (Extent((".",)), Extent(("tests",)), ""),
        (Extent(("tests",)), Extent(("tests/unit", "tests/test_a.py::test_it")), ""),
        (Extent(("tests",)), Extent((".",)), "it did not run ."),
        (Extent(("tests/unit",)), Extent(("tests",)), "it did not run tests"),
        (Extent(("tests/unit", "tests/api")), Extent(("tests/api", "tests/unit")), ""),
        (Extent(("tests/unit",)), Extent(("tests/unit2",)), "it did not run tests/unit2"),
        (Extent(("test_a.py::TestA",)), Extent(("test_a.py::TestA::test_it",)), ""),
        (Extent(("test_a.py::test_it",)), Extent(("test_a.py::test_it[1]",)), ""),
        (Extent(("test_a.py::test_it",)), Extent(("test_a.py",)), "it did not run test_a.py"),
        (Extent((".",)), Extent(("../shared",)), "it did not run ../shared"),
        (Extent(("some.package",)), Extent(("some.package",)), ""),
        (Extent(select="all"), Extent(select="marked"), ""),
        (Extent(select="marked"), Extent(select="all"), "--pgleak-select=marked"),
        (Extent(options={"-k": ("fast",)}), Extent(), "-k was given"),
        (Extent(), Extent(options={"-k": ("fast",)}), ""),
        (Extent(options={"-m": ("not slow",)}), Extent(options={"-m": ("not slow",)}), ""),
        (Extent(options={"-m": ("not api",)}), Extent(options={"-m": ("not slow",)}), "-m was given"),
        (Extent(options={"-m": ("x",), "-k": ("y",)}), Extent(options={"-m": ("x",)}), "-k was given"),
    ],
)
def test_whether_a_run_goes_as_far(run, made_from, expected):
    assert run.falls_short_of(made_from) == expected


@pytest.mark.parametrize(
    "one",
    [
        Extent(),
        Extent(("tests/unit",), "all"),
        Extent(("a", "b"), options={"-m": ("x",)}),
        Extent(options={"-k": ("y",)}),
    ],
)
@pytest.mark.parametrize("two", [Extent(("tests",)), Extent(("b", "c"), "all"), Extent(options={"-m": ("x",)})])
def test_joined_goes_as_far_as_both(one, two):
    joined = one.joined(two)
    assert joined.falls_short_of(one) == joined.falls_short_of(two) == ""
    assert joined == two.joined(one)


def test_what_both_leave_out_is_left_out():
    one, two = Extent(options={"-m": ("x",)}), Extent(options={"-m": ("x",), "-k": ("y",)})
    assert one.joined(two).options == {"-m": ("x",)}


def test_paths_stay_where_they_hold_all_that_was_found():
    made_from, run = Extent(("tests",)), Extent((".",), "all")
    assert made_from.including(run, ["tests/test_a.py::test_it"]) == Extent(("tests",), "all")
    assert made_from.including(run, ["tests/test_a.py::test_it", "docs/test_b.py::test_it"]) == Extent((".",), "all")
    assert made_from.including(run, [""]) == Extent((".",), "all")
    # … and of a smaller run that has found something they need not be made smaller.
    assert made_from.including(Extent(("tests/unit",)), ["tests/unit/test_a.py::test_it"]) == made_from


def test_the_smallest_arguments():
    assert smallest(["tests/unit", "tests", "docs", "tests"]) == ("docs", "tests")
    assert smallest(["tests", ".", "../shared"]) == (".", "../shared")
    assert not_covered(["a/b"], ["a"]) is None
    assert not_covered(["/elsewhere/a"], ["."]) == "/elsewhere/a"
