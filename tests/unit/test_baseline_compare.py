from __future__ import annotations

import pytest

from pytest_pgleak.baseline import sentences
from pytest_pgleak.baseline.compare import Comparison, Evidence, compare, updated
from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.keys import Key
from pytest_pgleak.baseline.known import Baseline

ALL = Extent(("tests",), "all")
A, B, C = "tests/test_x.py::test_a", "tests/test_x.py::test_b", "tests/test_x.py::test_c"
OLD = Key("connection-dropped", "app/db.py", "get_conn")
STALE = Key("pool-not-closed", "app/db.py", "get_pool")
STALE_LINE = "\n          [pool-not-closed] app/db.py in get_pool"
OF_SESSION = Key("connection-not-closed", "app/globals.py", "<module>")
NEW = Key("connection-not-closed", "app/new.py", "f")


def evidence(*found, finished=(A, B, C), **more):
    return Evidence(
        {key: frozenset({A}) for key in found}, more.pop("extent", ALL), finished=frozenset(finished), **more
    )


@pytest.mark.parametrize(
    ("known", "seen", "no_longer"),
    [
        ({STALE: (A,)}, evidence(), True),
        ({STALE: (A, B)}, evidence(), True),
        ({STALE: ()}, evidence(finished=()), True),
        ({STALE: (A,)}, evidence(STALE), False),
        ({STALE: (A,)}, evidence(incomplete="-k was given"), False),
        ({STALE: ()}, evidence(incomplete="it was stopped"), False),
        ({STALE: (A,)}, evidence(finished=(B, C)), False),
        ({STALE: (A, B)}, evidence(finished=(A,)), False),
        ({STALE: (A,)}, evidence(finished=(), gone=frozenset({A})), True),
        ({STALE: (A, B)}, evidence(finished=(B,), gone=frozenset({A})), True),
        ({STALE: (A, B)}, evidence(finished=(), gone=frozenset({A})), False),
        ({STALE: (A,)}, evidence(off=frozenset({STALE.kind})), False),
        ({STALE: (A,)}, evidence(off=frozenset({OLD.kind})), True),
        ({STALE: (A,)}, evidence(Key(STALE.kind, STALE.file, "other")), True),
    ],
)
def test_what_is_no_longer_found(known, seen, no_longer):
    comparison = compare(known, seen)
    assert comparison.no_longer == ((STALE,) if no_longer else ())
    assert len(comparison.no_longer + comparison.found + comparison.undecided) == 1


def test_the_four_cases():
    known = {OLD: (A,), STALE: (A,), OF_SESSION: (C,)}
    assert compare(known, evidence(OLD, NEW, finished=(A,))) == Comparison(
        found=(OLD,), new=(NEW,), no_longer=(STALE,), undecided=(OF_SESSION,)
    )


def test_still_open_in_one_run_and_collected_in_the_next_is_one_mistake():
    """With ``--pgleak-mode=warn`` nobody runs the garbage collector."""
    dropped, left = OLD, Key("connection-not-closed", OLD.file, OLD.function)
    assert Baseline("compare", "b.json", {left: (A,)}).accepts(dropped)
    assert Baseline("compare", "b.json", {dropped: (A,)}).accepts(left)
    assert not Baseline("compare", "b.json", {NEW: (A,)}).accepts(dropped)
    assert compare({left: (A,)}, evidence(dropped)) == Comparison(found=(left,))
    assert compare({left: (A,)}, evidence(left, dropped)).new == ()
    assert update({left: (A,)}, evidence(dropped)) == ({left: (A,)}, ALL)
    of_a_pool = Key("connection-not-returned", OLD.file, OLD.function)
    assert compare({of_a_pool: (A,)}, evidence(dropped)).new == (dropped,)


def update(known, seen, made_from=ALL):
    return updated(Baseline("update", "b.json", known, made_from), seen)


def test_an_update_after_a_complete_run():
    known, made_from = update({OLD: (A,), STALE: (B,)}, evidence(OLD, NEW))
    assert known == {OLD: (A,), NEW: (A,)}
    assert made_from == ALL


def test_an_update_after_a_partial_run_only_adds():
    seen = evidence(NEW, incomplete="-k was given", extent=Extent(("tests",), "all", {"-k": ("a",)}))
    known, made_from = update({OLD: (A,), STALE: (B,)}, seen)
    assert known == {OLD: (A,), STALE: (B,), NEW: (A,)}
    assert made_from == ALL


def test_the_first_one():
    known, made_from = update({}, evidence(NEW), made_from=None)
    assert (known, made_from) == ({NEW: (A,)}, ALL)


def test_what_was_found_elsewhere_has_to_be_run_again_to_be_called_fixed():
    elsewhere = Evidence({NEW: frozenset({"docs/test_y.py::test_d"})}, Extent(("docs",)), incomplete="…")
    assert update({OLD: (A,)}, elsewhere)[1] == Extent(("docs", "tests"), "all")


def test_nothing_new_leaves_the_extent_alone():
    assert update({OLD: (A,), STALE: (B,)}, evidence(OLD, extent=Extent((".",), "all")))[1] == ALL


def on_record(before, found_by, **more):
    seen = Evidence({OLD: frozenset(found_by)}, ALL, **more)
    return update({OLD: tuple(before)}, seen)[0][OLD]


def test_the_tests_on_record_change_only_where_they_must():
    many = [f"tests/test_x.py::test_{number}" for number in range(9)]
    assert on_record([], many) == tuple(many[:3])
    assert on_record([], []) == ()
    assert on_record([many[5]], many, finished=frozenset(many)) == (many[5],)
    assert on_record([A, B], [B, C], finished=frozenset({A, B, C})) == (B,)
    assert on_record([A, B], [B, C], finished=frozenset({B, C}), gone=frozenset({A})) == (B,)
    # It was not run: it may find it still.
    assert on_record([A, B], [B, C], finished=frozenset({B, C})) == (A, B)
    assert on_record([A], [C], finished=frozenset({A, C})) == (C,)


def test_only_a_comparison_refuses_what_is_new():
    for use, expected in (("compare", False), ("create", True), ("update", True)):
        assert Baseline(use, "b.json", {OLD: (A,)}).accepts(NEW) is expected
        assert Baseline(use, "b.json", {OLD: (A,)}).accepts(OLD)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            sentences.created("b.json", 12, 3),
            "baseline written to b.json: 12 known findings from 3 lines of code. They fail no test; what is new will.",
        ),
        (
            sentences.created("b.json", 0, 0),
            "baseline written to b.json: nothing was found, so whatever is found from now on fails",
        ),
        (sentences.compared("b.json", 0, Comparison()), []),
        (
            sentences.compared("b.json", 12, Comparison(found=(OLD, STALE), new=(NEW,), undecided=(OF_SESSION,))),
            ["12 known findings from 2 lines of code are in b.json"],
        ),
        (
            sentences.compared("b.json", 1, Comparison(found=(OLD,), no_longer=(STALE,))),
            [
                "1 known finding from 1 line of code is in b.json",
                "no longer found, remove from b.json with --pgleak-baseline-update:" + STALE_LINE,
            ],
        ),
        (sentences.updated("b.json", Comparison(found=(OLD,)), ""), ["baseline b.json is up to date: 1 kept"]),
        (
            sentences.updated("b.json", Comparison((OLD,), (NEW,), (STALE,), (OF_SESSION,)), ""),
            [
                "baseline b.json updated: 1 added, 1 removed, 2 kept",
                "added to b.json:\n          [connection-not-closed] app/new.py in f",
                "removed from b.json:" + STALE_LINE,
                (
                    "not found, and kept in b.json because a test that had found it did not run to its end, or because"
                    " its kind is off:\n          [connection-not-closed] app/globals.py in <module>"
                ),
            ],
        ),
        (
            sentences.updated("b.json", Comparison(undecided=(OLD,)), "-k was given"),
            [
                "baseline b.json is up to date: 1 kept",
                "nothing was removed from b.json, for this was no complete run: -k was given",
            ],
        ),
    ],
)
def test_what_is_said(said, expected):
    assert said == expected


def test_a_long_list_is_cut():
    many = tuple(Key("pool-not-closed", f"app/{number}.py", "f") for number in range(50))
    lines = sentences.compared("b.json", 0, Comparison(no_longer=many))[0].splitlines()
    assert len(lines) == 22
    assert lines[-1].strip() == "… and 30 more"
