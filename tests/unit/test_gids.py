from __future__ import annotations

import pytest

from pytest_pgleak.prepared.gids import GidUse, gids_in, literal


@pytest.mark.parametrize(
    ("statement", "gid"),
    [
        ("prepare transaction 'x'", "x"),
        ("PREPARE TRANSACTION 'Order-7'", "Order-7"),
        ("  prepare\n  transaction\n 'x' ;", "x"),
        ("prepare transaction 'it''s'", "it's"),
        ("prepare transaction ''", ""),
        (r"prepare transaction 'a\b'", r"a\b"),
        (r"prepare transaction E'a\\b\'c\nd'", "a\\b'c\nd"),
        ("prepare transaction e'it''s'", "it's"),
        ("prepare transaction  E'x'", "x"),
        ("prepare transaction $$it's$$", "it's"),
        ("prepare transaction $tag$a$$b$tag$", "a$$b"),
        ("begin; insert into t values (1); prepare transaction 'x'", "x"),
    ],
)
def test_the_gid_of_a_statement_that_prepares(statement, gid):
    assert gids_in(statement) == (GidUse(gid, finishes=False, by_sql=True),)


@pytest.mark.parametrize("statement", ["commit prepared 'x'", "ROLLBACK PREPARED 'x'", "rollback  prepared E'x'"])
def test_the_gid_of_a_statement_that_finishes(statement):
    assert gids_in(statement) == (GidUse("x", finishes=True, by_sql=True),)


def test_several_in_one_text():
    used = gids_in("commit prepared 'a'; rollback prepared 'b'")
    assert [(use.gid, use.finishes) for use in used] == [("a", True), ("b", True)]


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "select 1",
        "prepare plan as select 1",
        "prepare transaction",
        "prepare transaction x",
        "select * from prepared where name = 'x'",
        "prepare transaction 'without an end",
        "commit",
    ],
)
def test_others(statement):
    assert gids_in(statement) == ()


@pytest.mark.parametrize(
    ("statement", "parameters", "gids"),
    [
        ("prepare transaction %s", ["x"], ["x"]),
        ("prepare transaction %s", ("x", 1), ["x"]),
        ("prepare transaction %t", ["x"], ["x"]),
        ("prepare transaction %(gid)s", {"gid": "x"}, ["x"]),
        ("prepare transaction %(gid)s", {}, []),
        ("prepare transaction %(gid)s", ["x"], []),
        ("prepare transaction %s", [], []),
        ("prepare transaction %s", [7], []),
        ("prepare transaction %s", "x", []),
        ("prepare transaction %s", None, []),
    ],
)
def test_a_placeholder_that_the_client_fills_in(statement, parameters, gids):
    assert [use.gid for use in gids_in(statement, parameters)] == gids


@pytest.mark.parametrize(
    ("gid", "written"),
    [
        ("x", "'x'"),
        ("", "''"),
        ("it's", "'it''s'"),
        ("a\\b", r"E'a\\b'"),
        ("it's\\x", r"E'it''s\\x'"),
        ("two\nlines", r"E'two\nlines'"),
        ("'); drop table t; --", "'''); drop table t; --'"),
    ],
)
def test_a_gid_as_a_literal(gid, written):
    assert literal(gid) == written
    assert [use.gid for use in gids_in(f"rollback prepared {written}")] == [gid]
