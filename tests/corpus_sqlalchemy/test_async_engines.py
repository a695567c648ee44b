"""Async engines: disposed of or not, of every pool class, and event loops that are over."""

import asyncio
import gc

import psycopg
import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool
from tables import Item

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
not_closed = expect("pool-not-closed")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")


async def read(engine):
    async with AsyncSession(engine) as session:
        await session.scalars(select(Item))


# -- disposed of, or not ----------------------------------------------------------------------------------------------


@not_closed
async def test_never_disposed(async_url):
    engine = create_async_engine(async_url)
    await read(engine)
    KEPT.append(engine)


@not_closed
async def test_dropped(async_url):
    await read(create_async_engine(async_url))
    gc.collect()


async def test_never_used(async_url):
    KEPT.append(create_async_engine(async_url))


async def test_disposed(async_url):
    engine = create_async_engine(async_url)
    await read(engine)
    await engine.dispose()


@not_closed
async def test_used_again_after_dispose(async_url):
    engine = create_async_engine(async_url)
    await read(engine)
    await engine.dispose()
    await read(engine)
    KEPT.append(engine)


async def test_disposed_without_closing(async_url):
    engine = create_async_engine(async_url)
    await read(engine)
    await engine.dispose(close=False)
    gc.collect()


async def test_disposed_while_one_is_out(async_url):
    engine = create_async_engine(async_url)
    async with AsyncSession(engine) as session:
        await session.scalars(select(Item))
        await engine.dispose()


@not_returned
async def test_disposed_while_one_is_out_and_stays_out(async_url):
    engine = create_async_engine(async_url)
    session = AsyncSession(engine)
    await session.scalars(select(Item))
    await engine.dispose()
    KEPT.append(session)


@expect("pool-not-closed", "connection-not-returned")
async def test_neither_disposed_nor_closed(async_url):
    session = AsyncSession(create_async_engine(async_url))
    await session.scalars(select(Item))
    KEPT.append(session)


async def test_a_copy_disposes_of_the_one_pool(async_url):
    engine = create_async_engine(async_url)
    copy = engine.execution_options(isolation_level="SERIALIZABLE")
    await read(engine)
    await copy.dispose()


# -- pools of every class ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[AsyncAdaptedQueuePool, NullPool, StaticPool])
def poolclass(request):
    return request.param


async def test_any_pool(async_url, poolclass):
    engine = create_async_engine(async_url, poolclass=poolclass)
    for _ in range(3):
        async with AsyncSession(engine) as session, session.begin():
            session.add(Item(name="x"))
    await engine.dispose()


@not_returned
@pytest.mark.parametrize("poolclass", [AsyncAdaptedQueuePool, NullPool])  # StaticPool closes what is out, too
async def test_any_pool_and_kept(async_url, poolclass):
    engine = create_async_engine(async_url, poolclass=poolclass)
    session = AsyncSession(engine)
    await session.scalars(select(Item))
    KEPT.append(session)
    await engine.dispose()


@lost
async def test_any_pool_and_lost(async_url, poolclass):
    engine = create_async_engine(async_url, poolclass=poolclass)
    async with AsyncSession(engine) as session:
        await session.execute(INSERT)
    await engine.dispose()


async def test_null_pool_needs_no_dispose(async_url):
    engine = create_async_engine(async_url, poolclass=NullPool)
    await read(engine)
    KEPT.append(engine)


async def test_a_pool_of_one(async_url):
    engine = create_async_engine(async_url, pool_size=1, max_overflow=0)
    for _ in range(3):
        await read(engine)
    await asyncio.gather(read(engine), read(engine))
    await engine.dispose()


@not_returned
async def test_a_pool_of_one_runs_dry(async_url):
    engine = create_async_engine(async_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    session = AsyncSession(engine)
    await session.scalars(select(Item))
    with pytest.raises(PoolTimeoutError):
        await read(engine)
    KEPT.append(session)
    await engine.dispose()


async def test_pre_ping_and_recycle(async_url):
    engine = create_async_engine(async_url, pool_pre_ping=True, pool_recycle=0)
    for _ in range(3):
        await read(engine)
        await asyncio.sleep(0.01)
    await engine.dispose()


# -- connections that break or leave ----------------------------------------------------------------------------------


def kill(dsn, pid):
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 1000)", [pid])


async def test_killed_while_idle(async_url, dsn):
    engine = create_async_engine(async_url, pool_pre_ping=True)
    async with engine.connect() as conn:
        pid = await conn.scalar(text("select pg_backend_pid()"))
    kill(dsn, pid)
    await read(engine)
    await engine.dispose()


async def test_killed_while_out(async_url, dsn):
    engine = create_async_engine(async_url)
    async with AsyncSession(engine) as session:
        kill(dsn, await session.scalar(text("select pg_backend_pid()")))
        with pytest.raises(DBAPIError):
            await session.scalars(select(Item))
        await session.rollback()
        session.add(Item(name="x"))
        await session.commit()
    await engine.dispose()


async def test_invalidated(async_url):
    engine = create_async_engine(async_url)
    async with AsyncSession(engine) as session:
        await session.scalars(select(Item))
        await session.invalidate()
    async with engine.connect() as conn:
        await conn.invalidate()
    await engine.dispose()


@lost
async def test_invalidated_with_a_write(async_url):
    engine = create_async_engine(async_url)
    async with AsyncSession(engine) as session:
        await session.execute(INSERT)
        await session.invalidate()
    await engine.dispose()


# -- listeners --------------------------------------------------------------------------------------------------------


async def test_listeners_that_execute(async_url):
    engine = create_async_engine(async_url)

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(dbapi_connection, record):
        cursor = dbapi_connection.cursor()
        cursor.execute("set statement_timeout = '30s'")
        cursor.execute("insert into entry(name) values ('connected')")
        cursor.close()
        dbapi_connection.commit()

    await read(engine)
    await engine.dispose()


# -- event loops ------------------------------------------------------------------------------------------------------


def test_disposed_in_its_own_loop(async_url):
    async def work():
        engine = create_async_engine(async_url)
        await read(engine)
        await engine.dispose()

    asyncio.run(work())


@not_closed
def test_its_loop_is_over(async_url):
    engine = create_async_engine(async_url)
    asyncio.run(read(engine))
    KEPT.append(engine)


def test_null_pool_over_several_loops(async_url):
    engine = create_async_engine(async_url, poolclass=NullPool)
    for _ in range(2):
        asyncio.run(read(engine))
