"""What stays in a session when its connection goes back to the pool."""

import psycopg_pool
import pytest
from psycopg import sql

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
state_left = expect("session-state")


@pytest.fixture(scope="session")
def session_pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


def run(pool, *statements):
    with pool.connection() as conn:
        for statement in statements:
            conn.execute(*statement if isinstance(statement, tuple) else (statement,))


async def run_async(pool, *statements):
    async with pool.connection() as conn:
        for statement in statements:
            await conn.execute(*statement if isinstance(statement, tuple) else (statement,))


LEFT = {
    "search_path": ["set search_path to tenant_a, public"],
    "set schema": ["set schema 'tenant_a'"],
    "time zone": ["set time zone 'Europe/Lisbon'"],
    "timeout": ["set statement_timeout = '30s'"],
    "session characteristics": ["set session characteristics as transaction isolation level serializable"],
    "set_config": [("select set_config('search_path', %s, false)", ("tenant_a",))],
    "custom": [("select set_config('app.user_id', %s, false)", ("7",))],
    "custom, name as a parameter": [("select set_config(%s, %s, %s)", ("app.user_id", "7", False))],
    "custom, name in a mapping": [("select set_config(%(n)s, %(v)s, false)", {"n": "app.user_id", "v": "7"})],
    "custom, set": ["set app.user_id = '7'"],
    "custom, composed": [sql.SQL("set {} = {}").format(sql.Identifier("app", "user_id"), sql.Literal("7"))],
    "role": ["set role pg_monitor"],
    "role by set_config": ["select set_config('role', 'pg_monitor', false)"],
    "session authorization": ["set session authorization pg_monitor"],
    "advisory lock": ["select pg_advisory_lock(42)"],
    "advisory lock, two keys": ["select pg_advisory_lock(1, -2)"],
    "advisory lock, shared": ["select pg_advisory_lock_shared(-42)"],
    "advisory lock, tried": ["select pg_try_advisory_lock(42)"],
    "listen": ["listen visits"],
    "temporary table": ["create temp table scratch (id int)"],
    "temporary table of a query": ["create temporary table scratch as select 1 as id"],
    "temporary table by into": ["select 1 as id into temp scratch"],
    "temporary view": ["create temp view scratch as select 1 as id"],
    "temporary, by schema": ["create table pg_temp.scratch (id int)"],
    "cursor": ["declare c cursor with hold for select * from item"],
    "in a block": ["do $$ begin perform set_config('app.user_id', '7', false); end $$"],
    "several at once": ["set search_path to tenant_a; select 1"],
    "twice": ["listen visits", "set role pg_monitor", "reset role"],
}

CLEAN = {
    "nothing": ["select 1"],
    "queries": ["insert into item (name) values (lower('X'))", "select count(*) from item", "delete from item"],
    "local": ["set local search_path to tenant_a", "set local statement_timeout = '1s'"],
    "local config": [("select set_config('app.user_id', %s, true)", ("7",))],
    "local config, unknown": [("select set_config(%s, %s, %s)", ("app.user_id", "7", True))],
    "local role": ["set local role pg_monitor"],
    "custom, emptied": ["set app.user_id = '7'", "select 1", "set app.user_id = ''"],
    "custom, reset": ["set app.user_id = '7'", "reset app.user_id"],
    "set to what it was": ["set search_path to '$user', public"],
    "set back": ["set statement_timeout = '30s'", "set statement_timeout = 0"],
    "reset": ["set search_path to tenant_a", "reset search_path"],
    "role reset": ["set role pg_monitor", "select 1", "reset role"],
    "authorization reset": ["set session authorization pg_monitor", "reset session authorization"],
    "xact lock": ["select pg_advisory_xact_lock(42)"],
    "unlocked": ["select pg_advisory_lock(42)", "select pg_advisory_unlock(42)"],
    "unlisten": ["listen visits", "unlisten visits"],
    "on commit drop": ["create temp table scratch (id int) on commit drop"],
    "dropped": ["create temp table scratch (id serial)", "drop table scratch"],
    "cursor of the transaction": ["declare c cursor for select 1", "fetch all from c"],
    "cursor closed": ["declare c cursor with hold for select 1", "close c"],
    "transaction": ["set transaction isolation level serializable", "select 1"],
    "notify": ["notify visits, 'x'"],
    "create table": ["create table if not exists other (id int, name varchar(20) default lower('X'))"],
    "reset all": ["set search_path to tenant_a", "set app.user_id = '7'", "reset all"],
}


@state_left
@pytest.mark.parametrize("statements", LEFT.values(), ids=LEFT)
def test_left(session_pool, statements):
    run(session_pool, *statements)


@state_left
@pytest.mark.parametrize("statements", LEFT.values(), ids=LEFT)
async def test_left_async(dsn, statements):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
        await run_async(pool, *statements)


@pytest.mark.parametrize("statements", CLEAN.values(), ids=CLEAN)
def test_clean(session_pool, statements):
    run(session_pool, *statements)


@pytest.mark.parametrize("statements", CLEAN.values(), ids=CLEAN)
async def test_clean_async(dsn, statements):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
        await run_async(pool, *statements)


def test_after_all_those_the_pool_is_as_new(session_pool):
    with session_pool.connection() as conn:
        assert conn.execute("show search_path").fetchone() == ('"$user", public',)
        assert conn.execute("select current_user = session_user").fetchone() == (True,)
        assert conn.execute("select count(*) from pg_listening_channels()").fetchone() == (0,)
        assert conn.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)
        assert conn.execute("select to_regclass('pg_temp.scratch')").fetchone() == (None,)
