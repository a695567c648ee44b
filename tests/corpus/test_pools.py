"""Pools, in the test body: all four classes."""

import asyncio
import threading

import psycopg
import psycopg_pool
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []


def test_closed(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False) as pool, pool.connection() as conn:
        conn.execute("select 1")


async def test_closed_async(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool, pool.connection() as conn:
        await conn.execute("select 1")


@expect("pool-not-closed")
def test_kept(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=2, open=True)
    pool.wait()
    KEPT.append(pool)


@expect("pool-not-closed")
async def test_kept_async(dsn):
    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=2, open=False)
    await pool.open(wait=True)
    KEPT.append(pool)


@expect("pool-not-closed")
def test_dropped(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
    with pool.connection() as conn:
        conn.execute("select 1")


@expect("pool-not-closed")
async def test_dropped_async(dsn):
    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False)
    await pool.open()
    async with pool.connection() as conn:
        await conn.execute("select 1")


def test_never_opened(dsn):
    psycopg_pool.ConnectionPool(dsn, open=False)


def test_null_pool(dsn):
    with psycopg_pool.NullConnectionPool(dsn, open=False, max_size=2) as pool, pool.connection() as conn:
        conn.execute("select 1")


@expect("pool-not-closed")
async def test_null_pool_kept_async(dsn):
    pool = psycopg_pool.AsyncNullConnectionPool(dsn, open=False)
    await pool.open()
    async with pool.connection() as conn:
        await conn.execute("select 1")
    KEPT.append(pool)


@pytest.fixture(scope="session")
def session_pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=8, open=False) as pool:
        yield pool


@expect("nested-checkout")
def test_session_pool_grows(session_pool):
    conns = [session_pool.getconn() for _ in range(5)]
    for conn in conns:
        session_pool.putconn(conn)


def test_session_pool_drained_and_recycled(session_pool):
    if not hasattr(session_pool, "drain"):
        pytest.skip("drain() came with psycopg-pool 3.3")
    session_pool.drain()
    with session_pool.connection() as conn:
        conn.execute("select 1")


@expect("connection-not-returned")
def test_getconn_kept(session_pool):
    conn = session_pool.getconn()
    conn.execute("insert into item(name) values ('x')")
    KEPT.append(conn)


@expect("connection-not-returned")
def test_getconn_dropped(session_pool):
    session_pool.getconn()


@expect("connection-not-returned")
def test_with_getconn_does_not_return(session_pool):
    with session_pool.getconn() as conn:
        conn.execute("select 1")


@expect("connection-not-returned")
def test_closed_instead_of_returned(session_pool):
    session_pool.getconn().close()


def test_closed_by_hand_and_returned(session_pool):
    conn = session_pool.getconn()
    conn.close()
    session_pool.putconn(conn)


def test_after_those_the_pool_still_works(session_pool):
    with session_pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_putconn_to_the_wrong_pool_then_right(dsn, session_pool):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False) as other:
        conn = session_pool.getconn()
        with pytest.raises(ValueError, match="can't return"):
            other.putconn(conn)
        session_pool.putconn(conn)


@expect("connection-not-returned")
def test_putconn_to_the_wrong_pool_only(dsn, session_pool):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False) as other:
        conn = session_pool.getconn()
        with pytest.raises(ValueError, match="can't return"):
            other.putconn(conn)
        KEPT.append(conn)


def test_reset_runs_in_a_worker(dsn):
    def reset(conn):
        conn.execute("discard all") if conn.autocommit else None

    with (
        psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, reset=reset) as pool,
        pool.connection() as conn,
    ):
        conn.execute("select 1")


async def test_reset_runs_in_a_task(dsn):
    async def reset(conn):
        await asyncio.sleep(0.02)

    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False, reset=reset) as pool:
        async with pool.connection() as conn:
            await conn.execute("select 1")


def test_close_returns(dsn):
    if psycopg.__version__ < "3.3":
        pytest.skip("close_returns came with psycopg 3.3")
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, close_returns=True) as pool:
        pool.getconn().close()
        pool.getconn().close()


@expect("connection-not-returned")
def test_held_across_pool_close(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
    conn = pool.getconn()
    conn.execute("insert into item(name) values ('x')")
    pool.close()
    KEPT.append(conn)


def test_returned_after_pool_close(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
    conn = pool.getconn()
    pool.close()
    pool.putconn(conn)


def test_closed_by_hand_after_pool_close(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
    conn = pool.getconn()
    pool.close()
    conn.close()


def test_pool_timeout_leaks_nothing(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool, pool.connection():
        with pytest.raises(psycopg_pool.PoolTimeout):
            pool.getconn(timeout=0.05)


def test_returned_by_another_thread(session_pool):
    conn = session_pool.getconn()
    thread = threading.Thread(target=session_pool.putconn, args=(conn,))
    thread.start()
    thread.join()


@expect("returned-in-transaction")
def test_returned_in_transaction_is_repaired_by_the_pool(session_pool):
    conn = session_pool.getconn()
    conn.execute("select 1")
    session_pool.putconn(conn)


class MyPool(psycopg_pool.ConnectionPool):
    def getconn(self, timeout=None):
        return super().getconn(timeout)


def test_pool_subclass(dsn):
    with MyPool(dsn, min_size=1, open=False) as pool:
        pool.putconn(pool.getconn())


async def test_cancelled_getconn(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        async with pool.connection():
            task = asyncio.create_task(pool.getconn())
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
