from __future__ import annotations

import pytest
from builders import FIXTURE, moment

from pytest_pgleak.session_state.hints import Hint, cause_of
from pytest_pgleak.session_state.state import Leftover
from pytest_pgleak.session_state.statements import names_in, read

MAY_LEAVE = [
    "set search_path to tenant",
    "SET SESSION search_path = tenant",
    "set role tenant",
    "set session authorization tenant",
    "set time zone 'UTC'",
    "reset search_path",
    "discard all",
    "listen visits",
    "create temp table scratch (id int)",
    "create local temporary view scratch as select 1",
    "create table pg_temp.scratch (id int)",
    "create table copy as select log_in(1)",
    "select 1 into temp scratch",
    "select * into temporary table scratch from item",
    "declare c cursor with hold for select 1",
    "declare c scrollable cursor for select log_in(1)",
    "select pg_advisory_lock(42)",
    "select pg_try_advisory_lock_shared(42)",
    "select set_config('app.user', '7', false)",
    "select set_config(%s, %s, %s)",
    "select log_in('7')",
    "select app.lower('X')",
    'select "Log In"(1)',
    "insert into item values (log_in(1))",
    "with x as (select log_in(1)) select * from x",
    "do $$ begin end $$",
    "call log_in()",
    "execute prepared",
    "load 'auto_explain'",
    "select 1; set role tenant",
    "-- a comment\nset role tenant",
    "/* a comment */ listen visits",
    "(select log_in(1))",
]
MAY_NOT = [
    "",
    ";",
    "select 1",
    "select 'set role tenant; listen visits'",
    "select $$ pg_advisory_lock(1) $$",
    "-- set role tenant\nselect 1",
    "select * from item where id in (%s, %s) and name = any(%(names)s)",
    "select count(*), max(id), coalesce(name, lower('X')) from item group by rollup (name)",
    "select x.a, sum(b) over (partition by c) from (values (1, 2, 3)) as x(a, b, c)",
    "select cast(a as numeric(10, 2)), extract(epoch from now()), pg_catalog.lower('x') from item",
    "select st_distance(a, b), jsonb_agg(c) from item",
    "insert into item (name) values (%s) on conflict (id) do update set name = excluded.name returning id",
    "insert into public.item (name) select lower(name) from item",
    "update item set name = upper(name), (a, b) = (1, 2) where exists (select 1)",
    "delete from item using other where item.id = other.id",
    "with recursive x (n) as (select 1 union all select n + 1 from x) select n from x",
    "copy item (name) from stdin",
    "create table if not exists item (id int primary key, name varchar(20) default lower('X'), check (id > 0))",
    "create index on item (lower(name))",
    "create function log_in() returns void language sql as $$ set role tenant $$",
    "alter role tenant set search_path to x",
    "set local search_path to tenant",
    "set transaction isolation level serializable",
    "set constraints all deferred",
    "select set_config('app.user', %s, true)",
    "select set_config('app.user', '7', TRUE), now()",
    "select pg_advisory_xact_lock(42), pg_try_advisory_xact_lock(1)",
    "select pg_advisory_unlock(42)",
    "declare c cursor for select 1",
    "begin",
    "commit",
    "unlisten *",
    "notify visits, 'x'",
    "lock table item",
    "truncate item",
    "explain analyze select 1",
]


@pytest.mark.parametrize("statement", MAY_LEAVE)
def test_may_leave_something(statement):
    assert read(statement).may_leave


@pytest.mark.parametrize("statement", MAY_NOT)
def test_may_not(statement):
    assert not read(statement).may_leave


@pytest.mark.parametrize("end", ["", "; set role tenant"])
def test_a_long_statement(end):
    statement = "insert into item (name) values " + ", ".join(["('x')"] * 5000) + end
    assert read(statement).may_leave is bool(end)


@pytest.mark.parametrize(
    ("statement", "parameters", "names"),
    [
        ("set search_path to x", None, {"search_path"}),
        ("set session App.User = 1", None, {"app.user"}),
        ('set "app"."user_id" = 1', None, {"app.user_id"}),
        ("set local app.user to 1", None, {"app.user"}),
        ("reset app.user", None, {"app.user"}),
        ("select set_config('app.user', %s, false)", ("7",), {"app.user"}),
        ("select set_config(%s, %s, false)", ("app.user", "7"), {"app.user"}),
        ("select %s, '100%%s', set_config(%s, %s, false)", (1, "app.user", "7"), {"app.user"}),
        ("select set_config(%(name)s, %(value)s, false)", {"name": "app.user", "value": "7"}, {"app.user"}),
        ("select set_config($2, $1, false)", ["7", "app.user"], {"app.user"}),
        ("select set_config(%s, %s, false)", None, set()),
        ("select set_config(%s, %s, false)", (), set()),
        ("select set_config(%s, %s, false)", ("not a name'; drop", "7"), set()),
        ("select set_config(%s, %s, false)", (7, "7"), set()),
        ("select set_config('a.b', '1', false), set_config('c.d', '2', false)", None, {"a.b", "c.d"}),
        ("do $$ begin perform set_config('a.b', '1', false); end $$", None, {"a.b"}),
        ("select secret(%s)", ("looks.like.a.name",), set()),
    ],
)
def test_names_of_settings(statement, parameters, names):
    assert names_in(statement, parameters) == names


def test_no_value_is_kept():
    reading = read("select set_config('app.user', 's3cr3t', false), log_in('s3cr3t', 4711)")
    assert "s3cr3t" not in repr(reading)
    assert "4711" not in repr(reading)


HOLDER = moment(FIXTURE)


def hint(statement, at=1.0, parameters=None):
    reading = read(statement)
    return Hint(reading.text, names_in(statement, parameters), reading.hides, moment(at=at), HOLDER)


@pytest.mark.parametrize(
    ("left", "statement"),
    [
        (Leftover("setting", "search_path", "x"), "set search_path to x"),
        (Leftover("setting", "search_path", "x"), "set schema 'x'"),
        (Leftover("setting", "TimeZone", "UTC"), "set time zone 'UTC'"),
        (Leftover("setting", "default_transaction_read_only", "on"), "set session characteristics as read only"),
        (Leftover("setting", "search_path"), "reset all"),
        (Leftover("setting", "app.user"), "set app.user = 1"),
        (Leftover("role", "tenant"), "set role tenant"),
        (Leftover("role", "tenant"), "select set_config('role', 'tenant', false)"),
        (Leftover("session authorization", "tenant"), "set session authorization tenant"),
        (Leftover("advisory lock", "42"), "select pg_advisory_lock(42)"),
        (Leftover("channel", "visits"), "listen visits"),
        (Leftover("channel", "Visits"), 'listen "Visits"'),
        (Leftover("temporary table", "scratch"), "create temp table scratch (id int)"),
        (Leftover("cursor", "c"), "declare c cursor with hold for select 1"),
    ],
)
def test_the_last_statement_that_mentions_it(left, statement):
    hints = [
        hint("select pg_advisory_lock(1)" if left.what != "advisory lock" else "listen x", 1),
        hint(statement, 2),
        hint(statement, 3),
        hint("select log_in(1), c, visits, scratch", 4),
        hint("set lock_timeout = 1", 5),
    ]
    assert cause_of(left, hints) is hints[2]


def test_else_the_last_that_does_not_say_what_it_does():
    hints = [hint("do $$ begin end $$", 1), hint("select log_in(1)", 2), hint("set lock_timeout = 1", 3)]
    assert cause_of(Leftover("role", "tenant"), hints) is hints[1]
    assert cause_of(Leftover("role", "tenant"), hints[2:]) is None
