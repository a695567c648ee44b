"""One screen, be it one finding, ten thousand from one line, or one each from five hundred."""

from __future__ import annotations

import pytest

from pytest_pgleak.rendering import Line
from pytest_pgleak.summary_layout import Entry, lay_out

TEXT = ("[pool-not-closed] pool opened and never closed", *(f"  line {number}" for number in range(9)))


def entries(number, tests=1, text=()):
    return [
        Entry(Line(f"line {each}"), [f"test_{each}.py::{test}" for test in range(tests)], text)
        for each in range(number)
    ]


def shown(*args, **more):
    return [line.text for line in lay_out(entries(*args, **more))]


@pytest.mark.parametrize("text", [(), TEXT, (*TEXT, *TEXT[:6])], ids=["failed", "warned", "warned at length"])
@pytest.mark.parametrize("tests", [0, 1, 4, 10_000])
@pytest.mark.parametrize("number", [0, 1, 2, 5, 6, 10, 19, 20, 21, 500])
def test_it_fits_on_one_screen(number, tests, text):
    assert len(shown(number, tests, text)) <= 41


def test_of_a_few_lines_of_code_three_tests_are_named():
    assert shown(2, 5) == [
        "line 0",
        "         test_0.py::0",
        "         test_0.py::1",
        "         test_0.py::2",
        "         … and 2 more tests",
        "line 1",
        "         test_1.py::0",
        "         test_1.py::1",
        "         test_1.py::2",
        "         … and 2 more tests",
    ]


def test_of_several_one_is():
    assert shown(10, 5)[:3] == ["line 0", "         test_0.py::0", "         … and 4 more tests"]


def test_of_many_none_is():
    assert shown(20, 5) == [f"line {number}" for number in range(20)]


def test_the_rest_is_counted():
    assert shown(500)[-1] == "… and 480 more lines of code"


def test_as_many_texts_as_fit_and_the_first_in_any_case():
    assert shown(1, text=TEXT) == ["line 0", "         test_0.py::0", "", *TEXT, ""]
    several = shown(20, text=TEXT)
    assert several.count(TEXT[0]) == 1
    assert several[-1] == "… and 19 more texts like this one"
    assert shown(1, text=TEXT * 9).count(TEXT[0]) == 9
