from __future__ import annotations

import pytest
from builders import FIXTURE, connection_facts, finding, moment, stack

from pytest_pgleak import sentences
from pytest_pgleak.pgbouncer.mapping import idle_in_pool_of
from pytest_pgleak.pgbouncer.rows import Client, Console, ServerConnection
from pytest_pgleak.pgbouncer.shared import SharedHint, is_same, is_text_of, left_on, may_leave, parts_of
from pytest_pgleak.session_state.state import Leftover, SessionState, Setting, SharedServer
from pytest_pgleak.views import Ending

SERVER = SharedServer("app", "web", "transaction")
WORK_MEM = SessionState(settings={"work_mem": Setting("77MB", "4MB")})
LOCKED = SessionState(locks=frozenset({"42"}))
LISTENING = SessionState(channels=frozenset({"visits"}))
TABLE = SessionState(relations=frozenset({("kept", "temporary table")}))
CURSOR = SessionState(cursors=frozenset({"kept"}))
PREPARED = SessionState(prepared={"kept": "prepare kept as select 1"})
TENANT = SessionState(custom={"app.tenant": "seven"})
ROLE = SessionState(role="monitor")


def hints(*statements, serial=10, parameters=None, at=1.0, server=4711):
    return [
        SharedHint(text, names, moment(at=at + number), serial, connection_facts(), None, values, server)
        for number, statement in enumerate(statements)
        for text, names, values in parts_of(statement, parameters)
    ]


def names(state, given, pid=4711):
    return [each.name for left in left_on({pid: state}, given, SERVER) for each in left.left]


LEAVES = [
    (WORK_MEM, ["set work_mem = '77MB'"]),
    (WORK_MEM, ["SET SESSION Work_Mem TO '77MB'"]),
    (WORK_MEM, ["reset work_mem", "set work_mem = '77MB'"]),
    (WORK_MEM, ["set work_mem = '77MB'; select 1"]),
    (WORK_MEM, ["set work_mem = '77MB'", "reset lock_timeout"]),
    (WORK_MEM, ["select set_config('work_mem', '77MB', false)"]),
    (TENANT, ["select set_config('app.tenant', 'seven', false)"]),
    (TENANT, ["set app.tenant = 'seven'"]),
    (TENANT, ["select set_config(\n  'app.tenant',\n  'seven',\n  false\n)"]),
    (ROLE, ["set role monitor"]),
    (LOCKED, ["select pg_advisory_lock(42)"]),
    (LOCKED, ["select pg_try_advisory_lock(42)"]),
    (LOCKED, ["select pg_advisory_lock(42)", "select pg_advisory_lock(43)", "select pg_advisory_unlock(43)"]),
    (LISTENING, ["listen visits"]),
    (LISTENING, ["unlisten *", "listen visits"]),
    (TABLE, ["create temp table kept (id int)"]),
    (TABLE, ["select 1 into temp kept"]),
    (CURSOR, ["declare kept cursor with hold for select 1"]),
    (PREPARED, ["prepare kept as select 1"]),
]


@pytest.mark.parametrize(("state", "statements"), LEAVES)
def test_what_is_seen_is_laid_to_the_statement_that_speaks_of_it(state, statements):
    assert all(may_leave(statement) for statement in statements)
    (left,) = left_on({4711: state}, hints(*statements), SERVER)
    assert (left.connection, left.pool, left.shared.pids) == (10, None, (4711,))
    assert len(left.left) == 1


@pytest.mark.parametrize(("state", "statements"), LEAVES)
def test_what_is_not_seen_was_not_left(state, statements):
    assert names(SessionState(), hints(*statements)) == []


@pytest.mark.parametrize(
    ("state", "statements"),
    [
        *((state, []) for state, _ in LEAVES),
        *((state, ["select 1", "insert into visits values (1)", "set statement_timeout = 1"]) for state, _ in LEAVES),
        *((state, [*statements, "discard all"]) for state, statements in LEAVES),
        (WORK_MEM, ["set local work_mem = '77MB'"]),
        (WORK_MEM, ["set work_mem = '77MB'", "reset work_mem"]),
        (WORK_MEM, ["set work_mem = '77MB'", "reset all"]),
        (WORK_MEM, ["set work_mem = '77MB'", "set work_mem to default"]),
        (WORK_MEM, ["set work_mem = '77MB'", "set work_mem = default"]),
        (WORK_MEM, ["set maintenance_work_mem = '77MB'"]),
        (WORK_MEM, ["show work_mem"]),
        (WORK_MEM, ["update visits set work_mem = 1"]),
        (ROLE, ["update visits set role = 'monitor'"]),
        (TABLE, ["create temp table kept (id int) on commit drop"]),
        (CURSOR, ["declare kept cursor for select 1"]),
        (WORK_MEM, ["select set_config('work_mem', '77MB', true)"]),
        (WORK_MEM, ["select set_config('work_mem', '77MB', %s)"]),
        (TENANT, ["select set_config('app.tenant', 'seven', true)"]),
        (TENANT, ["select current_setting('app.tenant')"]),
        (ROLE, ["set role monitor", "reset role"]),
        (ROLE, ["set role monitor", "set role none"]),
        (ROLE, ["set local role monitor"]),
        (LOCKED, ["select pg_advisory_xact_lock(42)"]),
        (LOCKED, ["select pg_advisory_lock(42)", "select pg_advisory_unlock(42)"]),
        (LOCKED, ["select pg_advisory_lock(42), pg_advisory_unlock(42)"]),
        (LOCKED, ["select pg_advisory_lock(42), pg_advisory_lock(43)", "select pg_advisory_unlock_all()"]),
        (LOCKED, ["select * from pg_locks where locktype = 'advisory'"]),
        (LISTENING, ["listen visits", "unlisten visits"]),
        (LISTENING, ["listen visits", "unlisten *"]),
        (LISTENING, ["listen others"]),
        (LISTENING, ["notify visits"]),
        (TABLE, ["create temp table kept (id int)", "drop table kept"]),
        (TABLE, ["create temp table kept (id int)", "discard temp"]),
        (TABLE, ["create table kept (id int)"]),
        (CURSOR, ["declare kept cursor with hold for select 1", "close kept"]),
        (CURSOR, ["declare kept cursor with hold for select 1", "close all"]),
        (PREPARED, ["prepare kept as select 1", "deallocate kept"]),
        (PREPARED, ["prepare kept as select 1", "deallocate all"]),
        (PREPARED, ["prepare other as select 1"]),
        (PREPARED, ["prepare transaction 'kept'"]),
    ],
)
def test_nobody_is_accused_where_no_statement_tells_whose_doing_it_was(state, statements):
    assert names(state, hints(*statements)) == []


@pytest.mark.parametrize(("state", "statements"), LEAVES)
@pytest.mark.parametrize("server", [4712, None])
def test_nobody_is_accused_of_what_is_on_a_server_connection_that_was_not_theirs(state, statements, server):
    assert names(state, hints(*statements, server=server)) == []


def test_where_it_was_taken_away_need_not_be_known():
    given = [*hints("set work_mem = '77MB'"), *hints("reset work_mem", server=None)]
    assert names(WORK_MEM, given) == []
    assert names(WORK_MEM, [*hints("set work_mem = '77MB'"), *hints("reset work_mem", server=4712)]) == ["work_mem"]


@pytest.mark.parametrize(
    ("state", "statement", "parameters", "is_theirs"),
    [
        (WORK_MEM, "set work_mem = '78848kB'", None, True),
        (WORK_MEM, "set work_mem = '4MB'", None, False),
        (WORK_MEM, "select set_config('work_mem', %s, false)", ["77MB"], True),
        (WORK_MEM, "select set_config('work_mem', %s, false)", ["4MB"], False),
        (TENANT, "set app.tenant = 'seven'", None, True),
        (TENANT, "set app.tenant = 'eight'", None, False),
        (TENANT, "select set_config('app.tenant', $1, false)", ["eight"], False),
        (TENANT, "select set_config(%(name)s, %(to)s, false)", {"name": "app.tenant", "to": "eight"}, False),
        (ROLE, "set role monitor", None, True),
        (ROLE, "set role other", None, False),
    ],
)
def test_another_value_is_somebody_elses(state, statement, parameters, is_theirs):
    assert bool(names(state, hints(statement, parameters=parameters))) is is_theirs


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("select set_config('app.tenant', %s, %s)", ["seven", False]),
        ("select set_config('app.tenant', %(tenant)s, %(is_local)s)", {"tenant": "seven", "is_local": False}),
        ("select set_config('app.tenant', $1, $2::boolean)", ("seven", False)),
        ("select set_config(%s, %s, %s)", ["app.tenant", "seven", False]),
        ("select set_config(\n  %s,\n  %s,\n  %s\n)", ["app.tenant", "seven", False]),
    ],
)
def test_whether_a_setting_is_local_may_be_a_parameter(statement, parameters):
    assert may_leave(statement, parameters)
    assert names(TENANT, hints(statement, parameters=parameters)) == ["app.tenant"]
    local = {**parameters, "is_local": True} if isinstance(parameters, dict) else [*parameters[:-1], True]
    assert not may_leave(statement, local)
    assert names(TENANT, hints(statement, parameters=local)) == []
    assert not may_leave(statement, None)


def test_what_one_client_takes_away_another_may_have_left():
    given = [*hints("set work_mem = '77MB'", serial=1), *hints("reset work_mem", serial=2, at=2.0)]
    (left,) = left_on({4711: WORK_MEM}, given, SERVER)
    assert left.connection == 1


def test_settings_that_pgbouncer_sets_for_each_client_are_not_left():
    state = SessionState(settings={"TimeZone": Setting("UTC", "GMT"), "application_name": Setting("a", "")})
    assert names(state, hints("set timezone = 'UTC'", "set application_name = 'a'")) == []


def test_a_setting_that_has_its_own_value_again_is_not_left():
    assert names(SessionState(settings={"work_mem": Setting("4MB", "4MB")}), hints("set work_mem = '4MB'")) == []


def test_one_line_is_one_finding_on_however_many_server_connections():
    given = hints("set work_mem = '77MB'", server=1) + hints("set work_mem = '77MB'", server=2)
    (left,) = left_on({1: WORK_MEM, 2: WORK_MEM}, given, SERVER)
    assert left.left == (Leftover("setting", "work_mem", "77MB", "4MB"),)
    assert left.shared == SharedServer("app", "web", "transaction", (1, 2))


def test_two_lines_are_two_findings():
    given = hints("set work_mem = '77MB'", server=1)
    where = moment(where=stack(("b", "/p/b.py", 2)))
    other = SharedHint("listen visits", frozenset(), where, 10, connection_facts(), server=1)
    state = SessionState(settings=WORK_MEM.settings, channels=LISTENING.channels)
    assert len(left_on({1: state}, [*given, other], SERVER)) == 2


def test_what_a_driver_has_prepared_is_known_by_its_name_and_its_text():
    state = SessionState(prepared={"_pg3_0": "select $1"})
    own = SharedHint("", frozenset(), moment(FIXTURE), 10, connection_facts(), ("_pg3_0", "select $1"), server=1)
    others = SharedHint("", frozenset(), moment(), 10, connection_facts(), ("_pg3_0", "select $2"), server=1)
    (left,) = left_on({1: state}, [own, others], SERVER)
    assert left.holder.owner == FIXTURE
    assert names(state, [others], pid=1) == []
    # PgBouncer from 1.21 on gives them names of its own.
    assert names(SessionState(prepared={"PGBOUNCER_1": "select $1"}), [own], pid=1) == []


@pytest.mark.parametrize(
    ("prepared", "statement", "is_it"),
    [
        ("select $1", "select %s", True),
        ("select $1, $2", "select %(a)s, %(b)s", True),
        ("select $1 % 2", "select %b %% 2", True),
        ("select $1", "select $1", True),
        ("select 1", "select 2", False),
    ],
)
def test_the_text_under_which_a_driver_prepares(prepared, statement, is_it):
    assert is_text_of(prepared, statement) == is_it


@pytest.mark.parametrize(
    ("statement", "outlives"),
    [
        ("select pg_advisory_lock(1)", True),
        ("prepare kept as select 1", True),
        ("set work_mem = '1MB'", False),
        ("listen visits", False),
        ("create temp table kept ()", False),
    ],
)
def test_what_a_rollback_does_not_take_away(statement, outlives):
    (hint,) = hints(statement)
    assert hint.outlives_rollback == outlives


def test_only_server_connections_that_nobody_has_are_looked_at():
    client = Client("0xc1", ("127.0.0.1", 1), "app", "web")
    idle = ServerConnection("0x1", 1, "app", "web", "idle")
    used = ServerConnection("0x2", 2, "app", "web", "used")
    others = (
        ServerConnection("0x3", 3, "app", "web", "active", "0xc1"),
        ServerConnection("0x4", 4, "app", "web", "tested"),
        ServerConnection("0x5", 5, "app", "other", "idle"),
        ServerConnection("0x6", 6, "other", "web", "idle"),
    )
    assert idle_in_pool_of(Console((client,), (idle, *others, used)), client) == (idle, used)


def of(*left, mode="transaction", pids=(4711,)):
    shared = SharedServer("app", "web", mode, pids)
    facts = {"left": left, "shared": shared, "connection": connection_facts()}
    return finding("session-state", "session", Ending.CLOSED, **facts)


@pytest.mark.parametrize(
    ("left", "mode", "said"),
    [
        (Leftover("setting", "work_mem", "1", "2"), "transaction", "`set local work_mem …` inside `async with conn."),
        (Leftover("setting", "app.tenant"), "transaction", "`set_config('app.tenant', …, true)` inside"),
        (Leftover("setting", "app.tenant"), "statement", "do without it: in statement mode there are no transactions"),
        (Leftover("advisory lock", "42"), "statement", "do without it: in statement mode there are no transactions"),
        (Leftover("cursor", "kept"), "statement", "a cursor WITH HOLD does not work in statement mode: fetch all"),
        (Leftover("channel", "visits"), "transaction", "LISTEN does not work in transaction mode"),
        (Leftover("cursor", "kept"), "transaction", "a cursor WITH HOLD does not work in transaction mode"),
        (Leftover("temporary view", "kept"), "transaction", "do without it in transaction mode"),
        (Leftover("prepared statement", "_pg3_0"), "transaction", "connect with `prepare_threshold=None`"),
        (Leftover("advisory lock", "42"), "transaction", "take it with `pg_advisory_xact_lock(…)`"),
        (Leftover("temporary table", "kept"), "transaction", "`create temp table … on commit drop`"),
        (Leftover("role", "monitor"), "transaction", "`set local role …`"),
        (Leftover("setting", "work_mem", "1", "2"), "session", "set `server_reset_query = DISCARD ALL` in PgBouncer"),
    ],
)
def test_what_is_to_be_changed(left, mode, said):
    assert sentences.fix(of(left, mode=mode)).startswith(said)


def test_where_it_was_left():
    left = Leftover("channel", "visits")
    assert sentences.ended(of(left)).startswith("left on a server connection of PgBouncer's (pid 4711) in transaction")
    assert "server connections of PgBouncer's (pids 1, 2) in" in sentences.ended(of(left, pids=(1, 2)))
    assert sentences.verb(of(left)) == "listened"


def test_what_the_same_line_leaves_again_is_the_same():
    (one,) = left_on({1: WORK_MEM}, hints("set work_mem = '77MB'", at=1.0, server=1), SERVER)
    (again,) = left_on({2: WORK_MEM}, hints("set work_mem = '77MB'", serial=11, at=9.0, server=2), SERVER)
    (other,) = left_on({1: LISTENING}, hints("listen visits", server=1), SERVER)
    assert is_same(one, again)
    assert not is_same(one, other)
