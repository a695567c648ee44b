"""asyncpg: pools and what is acquired of them."""

import asyncio
import gc
import warnings

import asyncpg
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []


async def test_with(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=3) as pool, pool.acquire() as conn:
        await conn.execute("insert into item(name) values ('a')")


async def test_awaited_and_closed(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=2, max_size=3)
    assert await pool.fetchval("select 1") == 1
    await pool.close()


async def test_terminated(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=2, max_size=3)
    pool.terminate()


@expect("pool-not-closed")
async def test_kept(dsn):
    KEPT.append(await asyncpg.create_pool(dsn, min_size=2, max_size=3))


@expect("pool-not-closed")
async def test_kept_and_used(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=3)
    async with pool.acquire() as conn:
        await conn.fetch("select 1")
    KEPT.append(pool)


@expect("pool-not-closed")
async def test_kept_without_a_connection_in_it(dsn):
    KEPT.append(await asyncpg.create_pool(dsn, min_size=0, max_size=3))


@expect("pool-not-closed")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dropped(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=3)
    await pool.fetch("select 1")
    del pool
    gc.collect()


async def test_never_opened(dsn):
    asyncpg.create_pool(dsn, min_size=1)


async def test_could_not_be_opened(dsn):
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.create_pool(dsn, user="nobody_knows_this_role", min_size=1)


async def test_could_not_be_opened_by_init(dsn):
    async def init(conn):
        await conn.execute("select 1/0")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await asyncpg.create_pool(dsn, init=init, min_size=1)


async def test_lazy(dsn):
    async with asyncpg.create_pool(dsn, min_size=0, max_size=2) as pool:
        assert await pool.fetchval("select 1") == 1


@pytest.fixture
async def pool(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        yield pool


@pytest.fixture
async def forgiving_pool(dsn):
    """For tests that do not give back: `close()` would wait for ever."""
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
    yield pool
    pool.terminate()


@expect("connection-not-returned")
async def test_acquired_by_await_and_kept(forgiving_pool):
    KEPT.append(await forgiving_pool.acquire())


@expect("connection-not-returned")
async def test_acquired_by_await_and_dropped(forgiving_pool):
    conn = await forgiving_pool.acquire()
    await conn.fetch("select 1")


@expect("connection-not-returned")
async def test_entered_and_never_left(forgiving_pool):
    context = forgiving_pool.acquire()
    KEPT.append(await context.__aenter__())


@expect("connection-not-returned", "connection-not-returned")
async def test_two_of_three(forgiving_pool):
    first = await forgiving_pool.acquire()
    await forgiving_pool.release(first)
    asyncio.create_task(hold(forgiving_pool)), asyncio.create_task(hold(forgiving_pool))
    await asyncio.sleep(0.1)


async def hold(pool):
    KEPT.append(await pool.acquire())


async def test_released_in_finally(pool):
    conn = await pool.acquire()
    try:
        await conn.execute("insert into item(name) values ('a')")
    finally:
        await pool.release(conn)


async def test_released_with_a_timeout(pool):
    conn = await pool.acquire(timeout=5)
    await pool.release(conn, timeout=5)


async def test_released_twice(pool):
    conn = await pool.acquire()
    await pool.release(conn)
    await pool.release(conn)


async def test_entered(pool):
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("insert into item(name) values ('a')")


async def test_the_pool_itself(pool):
    await pool.execute("insert into item(name) values ('a')")
    await pool.executemany("insert into item(name) values ($1)", [("a",), ("b",)])
    assert await pool.fetch("select 1")
    assert await pool.fetchrow("select 1")
    await pool.copy_records_to_table("item", records=[("a",)], columns=["name"])


async def test_as_many_as_fit(pool):
    async def work():
        async with pool.acquire() as conn:
            await conn.execute("select pg_sleep(0.01)")

    await asyncio.gather(*(work() for _ in range(12)))


async def test_exhausted(pool):
    async def take():
        async with pool.acquire(timeout=0.1) as conn:
            await conn.execute("select pg_sleep(0.3)")

    results = await asyncio.gather(*(take() for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(each, asyncio.TimeoutError) for each in results) == 1


@expect("nested-checkout")
async def test_nested(pool):
    async with pool.acquire(), pool.acquire() as second:
        await second.execute("select 1")


@expect("nested-checkout")
async def test_nested_through_the_pool(pool):
    async with pool.acquire() as conn:
        await conn.execute("select 1")
        await pool.execute("select 1")


async def test_one_after_the_other(pool):
    async with pool.acquire() as conn:
        await conn.execute("select 1")
    async with pool.acquire() as conn:
        await conn.execute("select 1")


async def test_closed_while_acquired(pool):
    # asyncpg frees the slot by itself.
    conn = await pool.acquire()
    await conn.close()


async def test_closed_while_acquired_and_released(pool):
    async with pool.acquire() as conn:
        await conn.close()
    assert await pool.fetchval("select 1") == 1


async def test_terminated_while_acquired(pool):
    async with pool.acquire() as conn:
        conn.terminate()


async def test_released_to_the_wrong_pool_and_then_to_the_right_one(dsn, pool):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as other:
        conn = await pool.acquire()
        with pytest.raises(asyncpg.InterfaceError):
            await other.release(conn)
        await pool.release(conn)


@expect("connection-not-returned")
async def test_released_to_the_wrong_pool_only(dsn, forgiving_pool):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as other:
        conn = await forgiving_pool.acquire()
        with pytest.raises(asyncpg.InterfaceError):
            await other.release(conn)


async def test_pool_closed_with_a_connection_out(dsn):
    # It waits; whoever sets a limit gets a pool that is terminated.
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    conn = await pool.acquire()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(pool.close(), 0.2)
    assert conn is not None


async def test_pool_terminated_with_a_connection_out(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    conn = await pool.acquire()
    await conn.execute("select 1")
    pool.terminate()


async def test_pool_closed_while_a_task_gives_back(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)

    async def work():
        async with pool.acquire() as conn:
            await conn.execute("select pg_sleep(0.1)")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    await pool.close()
    await task


async def test_expire(pool):
    async with pool.acquire() as conn:
        await conn.execute("select 1")
    await pool.expire_connections()
    async with pool.acquire() as conn:
        await conn.execute("select 1")


async def test_expired_while_out(pool):
    async with pool.acquire() as conn:
        await pool.expire_connections()
        await conn.execute("select 1")


async def test_callbacks(dsn):
    async def init(conn):
        await conn.execute("set application_name to 'corpus'")

    async def setup(conn):
        await conn.execute("select 1")

    async with asyncpg.create_pool(dsn, init=init, setup=setup, min_size=1, max_size=2) as pool:
        async with pool.acquire() as conn:
            await conn.execute("insert into item(name) values ('a')")
        await pool.fetch("select 1")


async def test_setup_that_fails(dsn):
    calls = []

    async def setup(conn):
        calls.append(conn)
        if len(calls) == 1:
            await conn.execute("select 1/0")

    async with asyncpg.create_pool(dsn, setup=setup, min_size=1, max_size=1) as pool:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await pool.acquire()
        async with pool.acquire() as conn:
            await conn.execute("select 1")


async def test_lifetime(dsn):
    async with asyncpg.create_pool(dsn, min_size=0, max_size=2, max_inactive_connection_lifetime=0.05) as pool:
        await pool.fetch("select 1")
        await asyncio.sleep(0.15)
        await pool.fetch("select 1")


async def test_max_queries(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1, max_queries=2) as pool:
        for _ in range(5):
            async with pool.acquire() as conn:
                await conn.execute("select 1")
                await conn.execute("select 1")


class MyConnection(asyncpg.Connection):
    def get_reset_query(self):
        return "discard all"


class MyRecord(asyncpg.Record):
    def __getattr__(self, name):
        return self[name]


async def test_classes_of_ones_own(dsn):
    async with asyncpg.create_pool(dsn, connection_class=MyConnection, record_class=MyRecord, min_size=1) as pool:
        async with pool.acquire() as conn:
            row = await conn.fetchrow("select 1 as a")
            assert type(row) is MyRecord
            assert row.a == 1


async def test_proxy_methods(pool):
    async with pool.acquire() as conn:
        assert conn.get_server_pid()
        assert conn.is_in_transaction() is False
        assert conn.get_settings().server_encoding
        assert await conn.fetchval("select 1") == 1
        assert [tuple(row) async for row in cursor_of(conn)] == [(1,), (2,)]
        statement = await conn.prepare("select $1::int")
        assert await statement.fetchval(3) == 3
        await conn.reset()


async def cursor_of(conn):
    async with conn.transaction():
        async for row in conn.cursor("select * from generate_series(1, 2)"):
            yield row


async def test_a_listener_left_gives_asyncpgs_own_warning(pool):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        async with pool.acquire() as conn:
            await conn.add_listener("news", print)
    assert [each.category for each in seen] == [asyncpg.InterfaceWarning]


@expect("connection-not-closed")
async def test_what_a_listener_of_a_pools_connection_opens_is_not_the_pools(dsn, pool):
    opened = []

    async def heard(*_):
        opened.append(await asyncpg.connect(dsn))

    async with pool.acquire() as conn:
        await conn.add_listener("news", heard)
        await conn.execute("notify news, 'a'")
        while not opened:
            await asyncio.sleep(0.01)
        await conn.remove_listener("news", heard)
    KEPT.append(opened)


@expect("connection-not-closed")
async def test_what_a_task_of_setup_opens_later_is_not_the_pools(dsn):
    async def later():
        await asyncio.sleep(0.1)
        KEPT.append(await asyncpg.connect(dsn))

    tasks = []

    async def setup(conn):
        tasks.append(asyncio.create_task(later()))

    async with asyncpg.create_pool(dsn, setup=setup, min_size=1, max_size=1) as pool:
        await pool.fetch("select 1")
        await asyncio.gather(*tasks)


@expect("connection-not-returned")
async def test_a_cancellation_skips_the_release(forgiving_pool):
    async def work():
        conn = await forgiving_pool.acquire()
        await conn.execute("select pg_sleep(10)")
        await forgiving_pool.release(conn)

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(work(), 0.5)


async def test_a_cancellation_inside_a_block(pool):
    async def work():
        async with pool.acquire() as conn:
            await conn.execute("select pg_sleep(10)")

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(work(), 0.5)
    assert await pool.fetchval("select 1") == 1


async def test_a_cancellation_while_it_waits_for_a_connection(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire():
        task = asyncio.create_task(hold(pool))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_pool_on_a_loop_of_its_own(dsn):
    async def work():
        async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
            await pool.fetch("select 1")

    asyncio.run(work())


@expect("pool-not-closed")
def test_a_pool_whose_loop_is_closed(dsn):
    async def work():
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
        await pool.fetch("select 1")
        KEPT.append(pool)

    asyncio.run(work())


def test_after_those_the_server_has_room(dsn):
    async def work():
        for _ in range(3):
            conn = await asyncpg.connect(dsn)
            await conn.close()

    asyncio.run(work())


@pytest.fixture
async def leaking_pool(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    KEPT.append(pool)
    yield pool


@expect("pool-not-closed")
async def test_a_fixtures_pool_not_closed(leaking_pool):
    await leaking_pool.fetch("select 1")


class MyPool(asyncpg.Pool):
    """As people make it."""

    async def ping(self):
        return await self.fetchval("select 1")


async def test_a_pool_class_of_ones_own(dsn):
    pool = MyPool(
        dsn,
        min_size=1,
        max_size=2,
        max_queries=100,
        max_inactive_connection_lifetime=10,
        loop=asyncio.get_running_loop(),
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        setup=None,
        init=None,
    )
    async with pool:
        assert await pool.ping() == 1


class Database:
    """A pool that the first use opens."""

    def __init__(self, dsn):
        self.dsn, self.pool = dsn, None

    async def get(self):
        if self.pool is None:
            self.pool = await asyncpg.create_pool(self.dsn, min_size=1, max_size=2)
        return self.pool

    async def close(self):
        if self.pool is not None:
            await self.pool.close()


@pytest.fixture
async def database(dsn):
    database = Database(dsn)
    yield database
    await database.close()


async def test_a_lazy_database_of_a_fixture(database):
    assert await (await database.get()).fetchval("select 1") == 1


@expect("pool-not-closed")
async def test_a_lazy_database_of_the_test(dsn):
    database = Database(dsn)
    assert await (await database.get()).fetchval("select 1") == 1
    KEPT.append(database)


@expect("too-many-connections")
@pytest.mark.pgleak(max_connections=2)
async def test_more_than_two(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:

        async def work():
            async with pool.acquire() as conn:
                await conn.execute("select pg_sleep(0.1)")

        await asyncio.gather(work(), work(), work())


@pytest.mark.pgleak(max_connections=2)
async def test_two(dsn):
    async with asyncpg.create_pool(dsn, min_size=2, max_size=2) as pool:
        await asyncio.gather(*(pool.fetch("select 1") for _ in range(5)))
