"""asyncpg with pytest-asyncio, everything in the session's loop."""

import asyncpg
import pytest
import pytest_asyncio

pytestmark = [pytest.mark.pgleak, pytest.mark.asyncio(loop_scope="session")]
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('a')"
KEPT = []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pool(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        yield pool


@pytest_asyncio.fixture(loop_scope="session")
async def isolated(pool):
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        yield conn
        await transaction.rollback()


async def test_clean(pool):
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(INSERT)


async def test_isolated(isolated):
    await isolated.execute(INSERT)


async def test_isolated_again(isolated):
    async with isolated.transaction():
        await isolated.execute(INSERT)


@expect("connection-not-returned")
async def test_not_released(pool):
    KEPT.append(await pool.acquire())


@expect("connection-not-returned")
async def test_not_released_and_dropped(pool):
    conn = await pool.acquire()
    await conn.execute("select 1")


@expect("connection-not-returned")
async def test_not_released_in_a_transaction(pool):
    conn = await pool.acquire()
    await conn.transaction().start()
    await conn.execute(INSERT)


@expect("write-lost")
async def test_lost(pool):
    async with pool.acquire() as conn:
        await conn.transaction().start()
        await conn.execute(INSERT)


async def test_all_slots_are_there_again(pool):
    assert pool.get_idle_size() == pool.get_size()
    conns = [await pool.acquire(timeout=2) for _ in range(4)]
    for conn in conns:
        await pool.release(conn)


test_all_slots_are_there_again = expect("nested-checkout")(test_all_slots_are_there_again)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_pool(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
    KEPT.append(pool)
    yield pool


@expect("pool-not-closed")
async def test_a_module_pool_that_nobody_closes(module_pool):
    assert await module_pool.fetchval("select 1") == 1
