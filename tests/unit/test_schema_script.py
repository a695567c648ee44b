from __future__ import annotations

import pytest

from pytest_pgleak.database_schema.script import ScriptError, Statement, statements

FUNCTION = "create function f() returns int language sql begin atomic; select case when true then 1 end; end"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", []),
        (" \n -- nothing\n /* at /* all */ */ ;;", []),
        ("select 1", ["select 1"]),
        ("select 1; select 2;", ["select 1", "select 2"]),
        ("select ';'; select 2", ["select ';'", "select 2"]),
        ("select 'it''s;'; select 2", ["select 'it''s;'", "select 2"]),
        (r"select 'a\'; select 2", [r"select 'a\'", "select 2"]),
        (r"select e'a\';'; select 2", [r"select e'a\';'", "select 2"]),
        ('create table "a;""b" (id int); select 2', ['create table "a;""b" (id int)', "select 2"]),
        ("do $$ begin; end $$; select 2", ["do $$ begin; end $$", "select 2"]),
        ("do $x$ $$;$$ $x$; select 2", ["do $x$ $$;$$ $x$", "select 2"]),
        ("select $1; select a$1$b; select 2", ["select $1", "select a$1$b", "select 2"]),
        ("-- ;\nselect 1 -- ;\n; select 2", ["select 1 -- ;", "select 2"]),
        ("/* ; /* ; */ ; */ select /* ; */ 1; select 2", ["select /* ; */ 1", "select 2"]),
        (f"{FUNCTION}; select 2", [FUNCTION, "select 2"]),
        (
            FUNCTION.replace("create", "CREATE OR REPLACE") + "; select 2",
            [FUNCTION.replace("create", "CREATE OR REPLACE"), "select 2"],
        ),
        ("begin; create table t (id int); end; select 2", ["begin", "create table t (id int)", "end", "select 2"]),
        ("\\restrict abc\nselect 1;\n\\unrestrict abc\n", ["select 1"]),
        ("select 'open", ["select 'open"]),
        ("select '\\connect x';", ["select '\\connect x'"]),
        ("copy t from '/a/file'; select 2", ["copy t from '/a/file'", "select 2"]),
    ],
)
def test_statements(script, expected):
    assert [statement.text for statement in statements(script)] == expected


def test_lines():
    assert list(statements("-- one\n\nselect 1;\nselect\n 2; select 3")) == [
        Statement("select 1", 3),
        Statement("select\n 2", 4),
        Statement("select 3", 5),
    ]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("select 1;\n\\connect other\n", r"line 2: \\connect is a command of psql's"),
        ("\\i other.sql", r"line 1: \\i is a command"),
        ("\nCOPY public.t (id) FROM stdin;\n1\n\\.\n", r"line 2: the data of COPY … FROM stdin .* pg_dump --inserts"),
    ],
)
def test_what_only_psql_understands(script, message):
    with pytest.raises(ScriptError, match=message):
        list(statements(script))
