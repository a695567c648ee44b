"""Async sessions and connections in the test itself, on psycopg and on asyncpg."""

import asyncio
from contextlib import suppress

import anyio
import pytest
import pytest_asyncio
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session
from tables import Item

pytestmark = [pytest.mark.pgleak, pytest.mark.asyncio, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")
SLEEP = text("select pg_sleep(20)")


@pytest_asyncio.fixture
async def session(async_engine):
    async with AsyncSession(async_engine) as session:
        yield session


# -- clean ------------------------------------------------------------------------------------------------------------


async def test_session_in_with(async_engine):
    async with AsyncSession(async_engine) as session:
        session.add(Item(name="x"))
        await session.commit()


async def test_session_closed_in_finally(async_engine):
    session = AsyncSession(async_engine)
    try:
        session.add(Item(name="x"))
        await session.commit()
    finally:
        await session.close()


async def test_session_and_begin(async_engine):
    async with AsyncSession(async_engine) as session, session.begin():
        session.add(Item(name="x"))


async def test_sessionmaker_begin(async_engine):
    async with async_sessionmaker(async_engine, expire_on_commit=False).begin() as session:
        session.add(Item(name="x"))


async def test_engine_begin(async_engine):
    async with async_engine.begin() as conn:
        await conn.execute(INSERT)


async def test_connect_and_commit(async_engine):
    async with async_engine.connect() as conn:
        await conn.execute(INSERT)
        await conn.commit()


async def test_connect_and_roll_back(async_engine):
    async with async_engine.connect() as conn:
        await conn.execute(INSERT)
        await conn.rollback()


async def test_raw_connection(async_engine):
    async with async_engine.connect() as conn:
        raw = await conn.get_raw_connection()
        await raw.driver_connection.execute("select 1")


async def test_only_read_and_closed(async_engine):
    async with AsyncSession(async_engine) as session:
        (await session.scalars(select(Item))).all()
    async with async_engine.connect() as conn:
        await conn.execute(text("select 1"))


async def test_committed_and_not_closed(async_engine):
    session = AsyncSession(async_engine)
    session.add(Item(name="x"))
    await session.commit()
    KEPT.append(session)


async def test_rolled_back(async_engine):
    async with AsyncSession(async_engine) as session:
        await session.execute(INSERT)
        await session.rollback()


async def test_refused_by_a_constraint(async_engine):
    async with AsyncSession(async_engine) as session:
        session.add(Item(name=None))
        with pytest.raises(IntegrityError):
            await session.commit()


async def test_refused_then_done_right(async_engine):
    async with AsyncSession(async_engine) as session:
        session.add(Item(name=None))
        with suppress(IntegrityError):
            await session.flush()
        await session.rollback()
        session.add(Item(name="x"))
        await session.commit()


async def test_savepoints(async_engine):
    async with AsyncSession(async_engine) as session, session.begin():
        async with session.begin_nested():
            session.add(Item(name="x"))
        with suppress(IntegrityError):
            async with session.begin_nested():
                session.add(Item(name=None))
        session.add(Item(name="x"))


async def test_an_error_leaves_the_session(async_engine):
    with pytest.raises(ZeroDivisionError):
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)
            raise ZeroDivisionError


async def test_an_error_and_closed_in_finally(async_engine):
    session = AsyncSession(async_engine)
    with pytest.raises(ZeroDivisionError):
        try:
            await session.execute(INSERT)
            raise ZeroDivisionError
        finally:
            await session.close()


async def test_an_error_leaves_a_sync_session(async_engine):
    def work(conn):
        with Session(conn) as session:
            session.execute(INSERT)
            raise ZeroDivisionError

    async with async_engine.connect() as conn:
        with pytest.raises(ZeroDivisionError):
            await conn.run_sync(work)


async def test_an_error_leaves_the_block(async_engine):
    with pytest.raises(ZeroDivisionError):
        async with AsyncSession(async_engine) as session, session.begin():
            await session.execute(INSERT)
            raise ZeroDivisionError


async def test_an_error_leaves_sessionmaker_begin(async_engine):
    with pytest.raises(ZeroDivisionError):
        async with async_sessionmaker(async_engine).begin() as session:
            await session.execute(INSERT)
            raise ZeroDivisionError


async def test_an_error_leaves_engine_connect(async_engine):
    with pytest.raises(ZeroDivisionError):
        async with async_engine.connect() as conn:
            await conn.execute(INSERT)
            raise ZeroDivisionError


async def test_an_error_leaves_engine_begin(async_engine):
    with pytest.raises(ZeroDivisionError):
        async with async_engine.begin() as conn:
            await conn.execute(INSERT)
            raise ZeroDivisionError


async def test_run_sync(async_engine):
    def work(session):
        session.add(Item(name="x"))
        session.commit()

    async with AsyncSession(async_engine) as session:
        await session.run_sync(work)
    async with async_engine.connect() as conn:
        await conn.run_sync(lambda conn: conn.execute(INSERT))
        await conn.commit()


async def test_create_all(async_engine):
    async with async_engine.begin() as conn:
        await conn.run_sync(Item.metadata.create_all)


async def test_bulk(async_engine):
    async with AsyncSession(async_engine) as session:
        await session.execute(insert(Item), [{"name": "a"}, {"name": "b"}])
        await session.commit()


async def test_stream_read_to_its_end(async_engine):
    async with async_engine.connect() as conn:
        async for _ in await conn.stream(text("select generate_series(1, 100)")):
            pass
    async with AsyncSession(async_engine) as session:
        async for _ in await session.stream_scalars(select(Item).execution_options(yield_per=2)):
            pass


async def test_stream_left_early(async_engine):
    async with async_engine.connect() as conn:
        async for _ in await conn.stream(text("select generate_series(1, 100)")):
            break


async def test_autocommit(async_engine):
    async with async_engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        await conn.execute(INSERT)


async def test_async_scoped_session(async_engine):
    session = async_scoped_session(async_sessionmaker(async_engine), scopefunc=asyncio.current_task)
    session.add(Item(name="x"))
    await session.commit()
    await session.scalars(select(Item))
    await session.remove()


async def test_gathered(async_engine):
    async def work(number):
        async with AsyncSession(async_engine) as session, session.begin():
            session.add(Item(name=f"number {number}"))

    await asyncio.gather(*(work(number) for number in range(4)))


async def test_timeout(async_engine):
    async def work():
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)
            await session.execute(SLEEP)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work(), 0.1)


async def test_timeout_around_a_block(async_engine):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), AsyncSession(async_engine) as session, session.begin():
            await session.execute(INSERT)
            await session.execute(SLEEP)


async def test_cancel_scope(async_engine):
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.1):
            async with AsyncSession(async_engine) as session:
                await session.execute(INSERT)
                await session.execute(SLEEP)


async def test_cancel_scope_between_statements(async_engine):
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.1):
            async with AsyncSession(async_engine) as session:
                await session.execute(INSERT)
                await anyio.sleep(20)


async def test_cancelled_task(async_engine):
    async def work():
        async with async_engine.begin() as conn:
            await conn.execute(INSERT)
            await conn.execute(SLEEP)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_group_that_fails(async_engine):
    async def fails():
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    async def writes():
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)
            await asyncio.sleep(20)

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(writes())
            group.create_task(fails())


async def test_session_of_a_fixture(session):
    await session.scalars(select(Item))


async def test_session_of_a_fixture_with_a_write(session):
    await session.execute(INSERT)


# -- not returned -----------------------------------------------------------------------------------------------------


@not_returned
async def test_session_kept(async_engine):
    session = AsyncSession(async_engine)
    await session.scalars(select(Item))
    KEPT.append(session)


@not_returned
async def test_session_dropped(async_engine):
    session = AsyncSession(async_engine)
    await session.scalars(select(Item))


@not_returned
async def test_session_dropped_with_a_write(async_engine):
    session = AsyncSession(async_engine)
    await session.execute(INSERT)


@not_returned
async def test_connection_kept(async_engine):
    KEPT.append(await async_engine.connect())


@not_returned
async def test_connection_dropped(async_engine):
    await (await async_engine.connect()).execute(text("select 1"))


@not_returned
async def test_raw_connection_kept(async_engine):
    KEPT.append(await async_engine.raw_connection())


@not_returned
async def test_scoped_session_not_removed(async_engine):
    session = async_scoped_session(async_sessionmaker(async_engine), scopefunc=asyncio.current_task)
    await session.scalars(select(Item))
    KEPT.append(session)


@not_returned
async def test_stream_left_open(async_engine):
    conn = await async_engine.connect()
    rows = await conn.stream(text("select generate_series(1, 1000)"))
    await anext(aiter(rows))
    KEPT.append((conn, rows))


@not_returned
async def test_taken_in_run_sync(async_engine):
    session = AsyncSession(async_engine)
    await session.run_sync(lambda session: session.scalars(select(Item)).all())
    KEPT.append(session)


@not_returned
async def test_held_by_a_task(async_engine):
    async def work():
        async with AsyncSession(async_engine) as session:
            await session.scalars(select(Item))
            await asyncio.sleep(30)

    KEPT.append(asyncio.create_task(work()))
    await asyncio.sleep(0.2)


@not_returned
async def test_timeout_without_with(async_engine):
    session = AsyncSession(async_engine)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await session.scalars(select(Item))
            await asyncio.sleep(20)
            await session.close()
    KEPT.append(session)


# -- writes -----------------------------------------------------------------------------------------------------------


@lost
async def test_flushed_and_closed(async_engine):
    session = AsyncSession(async_engine)
    session.add(Item(name="x"))
    await session.flush()
    await session.close()


@lost
async def test_flushed_in_with(async_engine):
    async with AsyncSession(async_engine) as session:
        session.add(Item(name="x"))
        await session.flush()


@lost
async def test_executed_in_connect(async_engine):
    async with async_engine.connect() as conn:
        await conn.execute(INSERT)


@lost
async def test_begun_and_closed(async_engine):
    conn = await async_engine.connect()
    await conn.begin()
    await conn.execute(INSERT)
    await conn.close()


@lost
async def test_only_the_savepoint_is_released(async_engine):
    async with AsyncSession(async_engine) as session, session.begin_nested():
        session.add(Item(name="x"))


@lost
async def test_in_run_sync(async_engine):
    async with AsyncSession(async_engine) as session:
        await session.run_sync(lambda session: session.execute(INSERT))


@lost
async def test_in_a_task(async_engine):
    async def work():
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)

    await asyncio.create_task(work())


@lost
async def test_removed_with_a_write(async_engine):
    session = async_scoped_session(async_sessionmaker(async_engine), scopefunc=asyncio.current_task)
    await session.execute(INSERT)
    await session.remove()


@lost
async def test_error_swallowed_inside(async_engine):
    async with AsyncSession(async_engine) as session:
        await session.execute(INSERT)
        with suppress(ZeroDivisionError):
            _ = 1 / 0
            await session.commit()


# -- two at once ------------------------------------------------------------------------------------------------------


@expect("nested-checkout")
async def test_two_sessions(async_engine):
    async with AsyncSession(async_engine) as one, AsyncSession(async_engine) as two:
        await one.scalars(select(Item))
        await two.scalars(select(Item))


async def test_two_sessions_of_two_tasks(async_engine):
    async def work():
        async with AsyncSession(async_engine) as session:
            await session.execute(text("select pg_sleep(0.05)"))

    await asyncio.gather(work(), work())
