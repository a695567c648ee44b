from __future__ import annotations

import re

import pytest

from pytest_pgleak.sql import one_line

try:
    from hypothesis import example, given, settings
    from hypothesis import strategies as st
except ImportError:  # pragma: no cover
    st = None

LITERALS = [
    ("select 'secret'", "select '…'"),
    ("select ''", "select '…'"),
    ("select 'it''s secret'", "select '…'"),
    ("select 'a', 'b'", "select '…', '…'"),
    ("select E'sec\\'ret'", "select '…'"),
    ("select e'sec''ret\\\\', 'b'", "select '…', '…'"),
    ("select 'back\\', 'secret'", "select '…', '…'"),
    ("select U&'d\\0061t', 1", "select '…', …"),
    ("select B'101', x'ff', N'n'", "select '…', '…', '…'"),
    ("select 'one'\n  'two'", "select '…' '…'"),
    ("select $$secret$$", "select '…'"),
    ("select $tag$se$$cr$other$et$tag$", "select '…'"),
    ("select $a1$secret$a1$", "select '…'"),
    ("select $_x9$secret$_x9$, 'b'", "select '…', '…'"),
    ("select date'2026-10-18'", "select date'…'"),
    ("select x from t where a like'\\' and b = 'secret'", "select x from t where a like'…' and b = '…'"),
]

CUT_OFF = [
    "select a, 'secr",
    "select a, 'secret 12",
    "select a, 'it''",
    "select a, 'secret''",
    "select a, E'sec\\",
    "select a, E'sec\\'",
    "select a, $$secr",
    "select a, $tag$secret$ta",
    "select a, 'a', 'secr",
]

NUMBERS = [
    ("select 1", "select …"),
    ("select -1, +2", "select …, …"),
    ("select 12.50", "select …"),
    ("select .5, 5.", "select …, …"),
    ("select 1e10, 1.5E-3", "select …, …"),
    ("select (1+2)*3", "select (…)*…"),
    ("limit 10 offset 20", "limit … offset …"),
    ("values (4111111111111111)", "values (…)"),
    ("select 4_111_111", "select …"),
    ("select 0xC0FFEE", "select …"),
]

KEPT = [
    "select a1, t1.c2 from t1",
    "insert into t1 values ($1, $2)",
    'select "Col 1" from "table 2"',
    "select int4, float8 from s3cond",
    "select a$1",
    "begin",
    "",
]

# A quote that opens no literal: what follows it must not be taken for the outside of one.
MISLEADING = [
    "select 1 -- it's a comment\n, 'secret'",
    "select /* it's a comment */ 'secret'",
    "select /* a /* nested it's */ comment */ 'secret'",
    "select \"it's a column\", 'secret'",
    'select "a ""quoted"" it\'s", \'secret\'',
    "select 'no -- comment', 'secret'",
    "select 'no /* comment', 'secret', '*/'",
    "select $$no ' quote$$, 'secret'",
    "select '$$', 'secret', '$$'",
    "select \"$$\", 'secret'",
    "select E'\\\\', 'secret'",
]


@pytest.mark.parametrize(("statement", "shown"), LITERALS)
def test_a_literal_is_taken_out(statement, shown):
    assert one_line(statement) == shown


@pytest.mark.parametrize("statement", CUT_OFF)
def test_a_literal_that_the_server_has_cut_off_is_taken_out_too(statement):
    shown = one_line(statement)
    assert shown.startswith("select a, ")
    assert "…" in shown
    assert "sec" not in shown


@pytest.mark.parametrize(("statement", "shown"), NUMBERS)
def test_a_number_is_a_value_too(statement, shown):
    # The operators between numbers may go with them: what matters is that no digit is left.
    assert not re.search(r"\d", one_line(statement))
    if "+2)" not in statement:
        assert one_line(statement) == shown


@pytest.mark.parametrize("statement", KEPT)
def test_names_and_parameters_stay(statement):
    assert one_line(statement) == statement


@pytest.mark.parametrize("statement", MISLEADING)
def test_a_quote_that_opens_no_literal_does_not_turn_the_rest_inside_out(statement):
    assert "secret" not in one_line(statement)


def test_a_statement_of_many_lines_becomes_one():
    assert one_line("select a,\n\t  b\r\n  from t\n") == "select a, b from t"


@pytest.mark.parametrize("width", [1, 2, 10, 100])
def test_it_is_never_wider_than_asked_for(width):
    shown = one_line("select " + "column_name, " * 100, width)
    assert len(shown) == width
    assert shown.endswith("…")


def test_what_just_fits_is_not_cut():
    assert one_line("select abc", 10) == "select abc"
    assert one_line("select abcd", 10) == "select ab…"


def test_a_long_literal_does_not_push_the_rest_out_of_sight():
    assert one_line(f"insert into t values ('{'x' * 5000}') returning id") == "insert into t values ('…') returning id"


def test_it_is_quick_on_a_statement_as_long_as_the_server_can_be_told_to_keep():
    one_line("(" * 50_000)
    one_line("'" * 50_001)
    one_line("$" * 20_001)
    one_line("E'" + "\\" * 50_001)


if st is not None:
    # "ß" stands for the secret: it is put inside of literals only, and nothing else here contains it.
    _BODY = st.text("ßa0 '\\$\"-/*\n,;e", max_size=12).map(lambda body: f"ß{body}ß")
    _LITERAL = st.one_of(
        _BODY.map(lambda body: "'" + body.replace("'", "''") + "'"),
        _BODY.map(lambda body: "a like'" + body.replace("'", "''") + "'"),
        _BODY.map(lambda body: "E'" + body.replace("\\", "\\\\").replace("'", "\\'") + "'"),
        _BODY.map(lambda body: "$$" + body.replace("$", "") + "$$"),
        _BODY.map(lambda body: "$q2$" + body.replace("$", "") + "$q2$"),
    )
    _BETWEEN = st.sampled_from(
        [", ", " and a = ", "\n  ", " || ", ' as "it\'s", ', " -- it's\n, ", " /* it's */, ", " in ($1, ", "), ("]
    )
    _STATEMENT = st.lists(st.tuples(_BETWEEN, _LITERAL), min_size=1, max_size=6).map(
        lambda parts: "select a" + "".join(between + literal for between, literal in parts) + " from t1"
    )

    @settings(database=None, deadline=None, max_examples=400)
    @given(statement=_STATEMENT)
    @example(statement="select 'ß'")
    def test_no_quoted_literal_survives(statement):
        assert "ß" not in one_line(statement, 10_000)

    @settings(database=None, deadline=None, max_examples=400)
    @given(statement=_STATEMENT, size=st.integers(0, 200))
    def test_no_quoted_literal_survives_where_the_server_cuts_the_statement_off(statement, size):
        assert "ß" not in one_line(statement[:size], 10_000)

    @settings(database=None, deadline=None, max_examples=200)
    @given(statement=st.text("ab1 '\"$\\\n-/*.e", max_size=60), width=st.integers(1, 50))
    def test_any_text_becomes_one_short_line(statement, width):
        shown = one_line(statement, width)
        assert len(shown) <= width
        assert shown.split() == shown.strip().split(" ") or not shown.split()
