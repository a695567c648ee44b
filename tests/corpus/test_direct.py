"""Connections without a pool, in the test body: sync and async."""

import gc
import threading

import psycopg
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []


@expect("connection-dropped")
def test_dropped_sync(dsn):
    psycopg.connect(dsn)


@expect("connection-dropped")
async def test_dropped_async(dsn):
    await psycopg.AsyncConnection.connect(dsn)


def test_closed_sync(dsn):
    conn = psycopg.connect(dsn)
    conn.execute("select 1")
    conn.close()


async def test_closed_async(dsn):
    conn = await psycopg.AsyncConnection.connect(dsn)
    await conn.execute("select 1")
    await conn.close()


def test_context_manager_sync(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute("insert into item(name) values ('a')")


async def test_context_manager_async(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute("insert into item(name) values ('a')")


@expect("connection-not-closed")
def test_kept_sync(dsn):
    conn = psycopg.connect(dsn)
    conn.execute("insert into item(name) values ('a')")
    KEPT.append(conn)


@expect("connection-not-closed")
async def test_kept_async(dsn):
    conn = await psycopg.AsyncConnection.connect(dsn)
    await conn.execute("select 1")
    KEPT.append(conn)


@expect("connection-dropped")
def test_held_by_a_cycle_only(dsn):
    class Holder:
        pass

    gc.disable()
    try:
        holder = Holder()
        holder.me, holder.conn = holder, psycopg.connect(dsn)
    finally:
        gc.enable()


@expect("connection-dropped", "connection-dropped")
def test_two_of_three(dsn):
    psycopg.connect(dsn)
    psycopg.connect(dsn)
    psycopg.connect(dsn).close()


class MyConnection(psycopg.Connection):
    """As SQLAlchemy and others do it."""


@expect("connection-dropped")
def test_subclass(dsn):
    conn = MyConnection.connect(dsn)
    assert type(conn) is MyConnection


def test_subclass_closed(dsn):
    with MyConnection.connect(dsn) as conn:
        assert type(conn) is MyConnection


@expect("connection-dropped")
def test_thread(dsn):
    thread = threading.Thread(target=lambda: psycopg.connect(dsn).execute("select 1"))
    thread.start()
    thread.join()


def test_terminated_by_the_server_and_noticed(dsn):
    with psycopg.connect(dsn, autocommit=True) as admin:
        conn = psycopg.connect(dsn)
        admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")


def test_fifty_temporary_tables_linger(dsn):
    with psycopg.connect(dsn) as conn:
        for number in range(50):
            conn.execute(f"create temporary table t{number} (a int)")
        conn.rollback()


def test_many_opened_and_closed(dsn):
    for _ in range(30):
        psycopg.connect(dsn).close()


@expect("connection-not-closed")
@pytest.mark.pgleak(grace=0.1)
def test_late_release_too_late(dsn):
    conn = psycopg.connect(dsn)
    timer = threading.Timer(1.0, conn.close)
    timer.start()


def test_late_release_in_time(dsn):
    conn = psycopg.connect(dsn)
    threading.Timer(0.1, conn.close).start()


async def test_task_finishes_during_settling(dsn):
    import asyncio

    async def work():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute("select pg_sleep(0.1)")

    KEPT.append(asyncio.create_task(work()))
    await asyncio.sleep(0.02)


@expect("connection-not-closed")
async def test_task_does_not_finish(dsn):
    import asyncio

    async def work():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute("select 1")
            await asyncio.Event().wait()

    KEPT.append(asyncio.create_task(work()))
    await asyncio.sleep(0.05)


@pytest.mark.pgleak(allow=["connection-dropped"])
def test_allowed(dsn):
    psycopg.connect(dsn)


def test_failed_connect(dsn):
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn, user="nobody_knows_this_role")


class TestInAClass:
    def test_clean(self, dsn):
        psycopg.connect(dsn).close()

    @expect("connection-dropped")
    async def test_async_method(self, dsn):
        await psycopg.AsyncConnection.connect(dsn)
