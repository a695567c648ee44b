"""Session state and what pools do themselves: configure, reset, check; and what was there before."""

import asyncio
import threading

import psycopg
import psycopg_pool
import pytest

checked = pytest.mark.pgleak
expect = pytest.mark.expect
state_left = expect("session-state")


def pool_of(dsn, **more):
    return psycopg_pool.ConnectionPool(dsn, **{"min_size": 1, "max_size": 1, "open": False, **more})


def async_pool_of(dsn, **more):
    return psycopg_pool.AsyncConnectionPool(dsn, **{"min_size": 1, "max_size": 1, "open": False, **more})


def execute(pool, *statements):
    with pool.connection() as conn:
        for statement in statements:
            conn.execute(statement)


async def execute_async(pool, *statements):
    async with pool.connection() as conn:
        for statement in statements:
            await conn.execute(statement)


def wait_until_back(pool):
    # A pool that is closed does not reset what it has just got back: it forgets it.
    for _ in range(1000):
        if pool.get_stats()["pool_available"]:
            return
        threading.Event().wait(0.001)


async def wait_until_back_async(pool):
    for _ in range(1000):
        if pool.get_stats()["pool_available"]:
            return
        await asyncio.sleep(0.001)


DIRTY = (
    "select set_config('app.user_id', '7', false)",
    "set search_path to tenant_a",
    "select pg_advisory_lock(42)",
    "listen visits",
    "create temp table scratch (id int)",
    "declare c cursor with hold for select 1",
)


# --- reset


def discard_all(conn):
    conn.autocommit = True
    conn.execute("discard all")
    conn.autocommit = False


async def discard_all_async(conn):
    await conn.set_autocommit(True)
    await conn.execute("discard all")
    await conn.set_autocommit(False)


CLEAN = """
    close all; set session authorization default; reset all;
    unlisten *; select pg_advisory_unlock_all(); discard temp
"""


def clean_up(conn):
    conn.execute(CLEAN)
    conn.commit()


async def clean_up_async(conn):
    await conn.execute(CLEAN)
    await conn.commit()


def useless(conn):
    conn.execute("select 1")
    conn.commit()


async def useless_async(conn):
    await asyncio.sleep(0.01)
    await conn.execute("select 1")
    await conn.commit()


def anonymous(conn):
    conn.execute("select set_config('app.user_id', '0', false), set_config('search_path', 'public', false)")
    conn.commit()


async def anonymous_async(conn):
    await conn.execute("select set_config('app.user_id', '0', false), set_config('search_path', 'public', false)")
    await conn.commit()


@checked
def test_discard_all(dsn):
    with pool_of(dsn, reset=discard_all, kwargs={"prepare_threshold": None}) as pool:
        execute(pool, *DIRTY)
        wait_until_back(pool)


@checked
async def test_discard_all_async(dsn):
    async with async_pool_of(dsn, reset=discard_all_async, kwargs={"prepare_threshold": None}) as pool:
        await execute_async(pool, *DIRTY)
        await wait_until_back_async(pool)


@checked
@pytest.mark.parametrize("autocommit", [False, True])
def test_clean_up(dsn, autocommit):
    with pool_of(dsn, reset=clean_up, kwargs={"autocommit": autocommit}) as pool:
        for _ in range(3):
            execute(pool, *DIRTY, "set role pg_monitor", *["select 1"] * 10)
            wait_until_back(pool)


@checked
async def test_clean_up_async(dsn):
    async with async_pool_of(dsn, reset=clean_up_async) as pool:
        for _ in range(3):
            await execute_async(pool, *DIRTY, "set role pg_monitor", *["select 1"] * 10)
            await wait_until_back_async(pool)


@checked
@state_left
def test_useless_reset(dsn):
    with pool_of(dsn, reset=useless) as pool:
        execute(pool, *DIRTY)
        wait_until_back(pool)


@checked
@state_left
async def test_useless_reset_async(dsn):
    async with async_pool_of(dsn, reset=useless_async) as pool:
        await execute_async(pool, *DIRTY)
        await wait_until_back_async(pool)


@checked
def test_reset_has_a_value_of_its_own(dsn):
    with pool_of(dsn, reset=anonymous) as pool:
        execute(pool, "select set_config('app.user_id', '7', false)", "set search_path to tenant_a")
        wait_until_back(pool)


@checked
async def test_reset_has_a_value_of_its_own_async(dsn):
    async with async_pool_of(dsn, reset=anonymous_async) as pool:
        await execute_async(pool, "select set_config('app.user_id', '7', false)", "set search_path to tenant_a")
        await wait_until_back_async(pool)


@pytest.fixture(scope="module")
def slowly_resetting(dsn):
    def reset(conn):
        threading.Event().wait(0.1)
        conn.execute("reset all")
        conn.commit()

    with pool_of(dsn, reset=reset) as pool:
        yield pool


@checked
def test_reset_is_waited_for(slowly_resetting):
    execute(slowly_resetting, "set search_path to tenant_a")


@checked
@state_left
def test_reset_is_waited_for_and_has_not_done_it_all(slowly_resetting):
    execute(slowly_resetting, "set search_path to tenant_a", "listen visits")


# --- configure and check


def configure(conn):
    conn.execute("set search_path to app, public")
    conn.execute("select set_config('app.user_id', 'nobody', false)")
    conn.execute("listen configured")
    conn.commit()


async def configure_async(conn):
    await conn.execute("set search_path to app, public")
    await conn.execute("select set_config('app.user_id', 'nobody', false)")
    await conn.execute("listen configured")
    await conn.commit()


AS_CONFIGURED = {
    "nothing": ["select 1"],
    "the same": ["set search_path to app, public", "set app.user_id = 'nobody'", "listen configured"],
    "set back": ["set search_path to tenant_a", "set search_path to app, public"],
    "local": ["set local search_path to tenant_a", "set local app.user_id = '7'", "set local role postgres"],
    "other": ["set statement_timeout = '1s'", "reset statement_timeout"],
}
NOT_AS_CONFIGURED = {
    "changed": ["set search_path to tenant_a"],
    "custom": ["set app.user_id = '7'"],
    "custom, emptied": ["set app.user_id = ''"],
    "reset": ["reset search_path"],
    "to what the server has": ["set search_path to '$user', public"],
    "other": ["listen visits"],
}


@checked
@pytest.mark.parametrize("statements", AS_CONFIGURED.values(), ids=AS_CONFIGURED)
def test_as_configured(dsn, statements):
    with pool_of(dsn, configure=configure) as pool:
        execute(pool, *statements)


@checked
@pytest.mark.parametrize("statements", AS_CONFIGURED.values(), ids=AS_CONFIGURED)
async def test_as_configured_async(dsn, statements):
    async with async_pool_of(dsn, configure=configure_async) as pool:
        await execute_async(pool, *statements)


@checked
@state_left
@pytest.mark.parametrize("statements", NOT_AS_CONFIGURED.values(), ids=NOT_AS_CONFIGURED)
def test_not_as_configured(dsn, statements):
    with pool_of(dsn, configure=configure) as pool:
        execute(pool, *statements)


@checked
@state_left
@pytest.mark.parametrize("statements", NOT_AS_CONFIGURED.values(), ids=NOT_AS_CONFIGURED)
async def test_not_as_configured_async(dsn, statements):
    async with async_pool_of(dsn, configure=configure_async) as pool:
        await execute_async(pool, *statements)


@checked
def test_configured_and_discarded_by_its_own_pool(dsn):
    with pool_of(dsn, configure=configure, reset=discard_all, kwargs={"prepare_threshold": None}) as pool:
        execute(pool, "set statement_timeout = '1s'")
        wait_until_back(pool)


@checked
def test_check_sets_it_for_each_checkout(dsn):
    def check(conn):
        conn.execute("set search_path to app")
        conn.commit()

    with pool_of(dsn, check=check) as pool:
        execute(pool, "set search_path to tenant_a")
        execute(pool, "select 1")


@pytest.fixture(scope="module")
def configured_pool(dsn):
    with pool_of(dsn, configure=configure) as pool:
        yield pool


@checked
@state_left
def test_healed_to_what_configure_had_set(configured_pool):
    execute(configured_pool, "set search_path to tenant_a", "set app.user_id = '7'", "unlisten *")


@checked
@state_left
def test_healed_from_a_reset(configured_pool):
    execute(configured_pool, "discard temp", "reset search_path")


@checked
def test_is_as_configured_again(configured_pool):
    with configured_pool.connection() as conn:
        assert conn.execute("show search_path").fetchone() == ("app, public",)
        assert conn.execute("show app.user_id").fetchone() == ("nobody",)


# --- before the test


@pytest.fixture(scope="module")
def module_pool(dsn):
    with pool_of(dsn) as pool:
        pool.wait()
        yield pool


def test_unchecked_leaves_something(module_pool):
    execute(module_pool, *DIRTY)


@checked
def test_what_was_there_before(module_pool):
    execute(module_pool, "select 1", "set local app.user_id = '8'", "select pg_advisory_xact_lock(1)")


@checked
@state_left
def test_and_something_new(module_pool):
    execute(module_pool, "set statement_timeout = '5s'")


@checked
def test_the_one_before_was_healed_precisely(module_pool):
    with module_pool.connection() as conn:
        assert conn.execute("show statement_timeout").fetchone() == ("0",)
        assert conn.execute("show search_path").fetchone() == ("tenant_a",)
        assert conn.execute("select to_regclass('pg_temp.scratch') is not null").fetchone() == (True,)
        assert conn.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (1,)


@checked
def test_to_reset_what_another_has_left_is_no_leak(module_pool):
    execute(module_pool, "reset search_path", "select pg_advisory_unlock_all()", "unlisten *", "reset app.user_id")


def test_unchecked_again(module_pool):
    execute(module_pool, "set search_path to tenant_b")


@checked
def test_that_was_before_too(module_pool):
    execute(module_pool, "set local search_path to tenant_c")


@checked
@pytest.mark.pgleak(allow=["session-state"])
def test_allowed(module_pool):
    execute(module_pool, "set app.allowed = '1'", "set lock_timeout = '9s'")


@checked
def test_after_what_was_allowed(module_pool):
    execute(module_pool, "set local app.allowed = '2'", "set local lock_timeout = '8s'")


# --- sorts of pools


@checked
@state_left
def test_null_pool_hands_nothing_on_and_a_pool_does(dsn):
    with psycopg_pool.NullConnectionPool(dsn, open=False) as pool:
        execute(pool, *DIRTY)
        execute(pool, *DIRTY)
    with pool_of(dsn) as pool:
        execute(pool, "listen visits")


@checked
async def test_null_pool_async(dsn):
    async with psycopg_pool.AsyncNullConnectionPool(dsn, open=False) as pool:
        await execute_async(pool, *DIRTY)


@checked
@state_left
def test_close_returns(dsn):
    with pool_of(dsn, close_returns=True) as pool:
        conn = pool.getconn()
        conn.execute("set app.user_id = '7'")
        conn.commit()
        conn.close()


@checked
def test_close_returns_clean(dsn):
    with pool_of(dsn, close_returns=True) as pool:
        conn = pool.getconn()
        conn.execute("set local app.user_id = '7'")
        conn.commit()
        conn.close()


@checked
@state_left
async def test_close_returns_async(dsn):
    async with async_pool_of(dsn, close_returns=True) as pool:
        conn = await pool.getconn()
        await conn.execute("set app.user_id = '7'")
        await conn.commit()
        await conn.close()


@checked
@state_left
def test_autocommit(dsn):
    with pool_of(dsn, kwargs={"autocommit": True}) as pool:
        execute(pool, *DIRTY)


@checked
def test_autocommit_clean(dsn):
    with pool_of(dsn, kwargs={"autocommit": True}) as pool, pool.connection() as conn:
        with conn.transaction():
            conn.execute("set local app.user_id = '7'")
            conn.execute("create temp table scratch (id int) on commit drop")
        conn.execute("set local search_path to tenant_a")


@checked
@state_left
async def test_autocommit_async(dsn):
    async with async_pool_of(dsn, kwargs={"autocommit": True}) as pool:
        await execute_async(pool, *DIRTY)


@checked
def test_rolled_back(dsn):
    with pool_of(dsn) as pool, pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.execute("set search_path to tenant_a")
        conn.execute("create temp table scratch (id int)")
        raise ZeroDivisionError


@checked
@state_left
def test_locks_survive_a_rollback(dsn):
    with pool_of(dsn) as pool, pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.execute("select pg_advisory_lock(1)")
        raise ZeroDivisionError


@checked
def test_pool_closed_before_the_return(dsn):
    with pool_of(dsn) as pool:
        conn = pool.getconn()
        conn.execute("set app.user_id = '7'")
        conn.commit()
    pool.putconn(conn)


@checked
@expect("connection-not-returned")
def test_not_returned_is_the_mistake(module_pool):
    module_pool.getconn().execute("listen visits")


@checked
def test_the_server_has_ended_it(dsn):
    with pool_of(dsn) as pool:
        execute(pool, "set app.user_id = '7'", "select pg_sleep(0)")
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s, 1000)", (pid,))
        pool.check()
