"""asyncpg: transactions and what becomes of writes."""

import asyncio
import contextlib

import asyncpg
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []
INSERT = "insert into item(name) values ('a')"
REFUSED = "insert into item(name) values ('refused')"


@pytest.fixture
async def pool(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        yield pool


@pytest.fixture
async def conn(dsn):
    conn = await asyncpg.connect(dsn)
    yield conn
    await conn.close()


@contextlib.asynccontextmanager
async def opened(dsn):
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        await conn.close()


# Without a pool.


async def test_committed(dsn):
    async with opened(dsn) as conn, conn.transaction():
        await conn.execute(INSERT)


async def test_committed_by_hand(dsn):
    async with opened(dsn) as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(INSERT)
        await transaction.commit()


async def test_committed_by_sql(dsn):
    async with opened(dsn) as conn:
        await conn.execute("begin")
        await conn.execute(INSERT)
        await conn.execute("commit")


async def test_everything_in_one_text(dsn):
    async with opened(dsn) as conn:
        await conn.execute(f"begin; {INSERT}; commit")


async def test_by_itself(dsn):
    async with opened(dsn) as conn:
        await conn.execute(INSERT)
        await conn.fetch("insert into item(name) values ($1) returning id", "a")


@expect("write-lost")
async def test_started_and_closed(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        await conn.execute(INSERT)


@expect("write-lost")
async def test_begun_by_sql_and_closed(dsn):
    async with opened(dsn) as conn:
        await conn.execute("BEGIN")
        await conn.execute(INSERT)


@expect("write-lost")
async def test_begun_and_written_in_one_text(dsn):
    async with opened(dsn) as conn:
        await conn.execute(f"begin; {INSERT}")


@expect("write-lost")
async def test_written_by_fetch(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        assert await conn.fetchval("insert into item(name) values ($1) returning id", "a")


@expect("write-lost")
async def test_written_by_fetchrow(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        assert await conn.fetchrow("insert into item(name) values ($1) returning id", "a")


@expect("write-lost")
async def test_written_with_arguments(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        await conn.execute("insert into item(name) values ($1)", "a")


@expect("write-lost")
async def test_written_by_executemany(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        await conn.executemany("insert into item(name) values ($1)", [("a",), ("b",)])


@expect("write-lost")
async def test_written_by_fetchmany(dsn):
    async with opened(dsn) as conn:
        if not hasattr(conn, "fetchmany"):
            pytest.skip("fetchmany() came with asyncpg 0.30")
        await conn.transaction().start()
        await conn.fetchmany("insert into item(name) values ($1) returning id", [("a",), ("b",)])


@expect("write-lost")
async def test_written_by_copy(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        await conn.copy_records_to_table("item", records=[("a",), ("b",)], columns=["name"])


@expect("write-lost")
async def test_written_by_copy_of_a_file(dsn, tmp_path):
    file = tmp_path / "items"
    file.write_text("a\nb\n")
    async with opened(dsn) as conn:
        await conn.transaction().start()
        await conn.copy_to_table("item", source=file, columns=["name"])


async def test_copied_without_a_transaction(dsn, tmp_path):
    async with opened(dsn) as conn:
        await conn.copy_records_to_table("item", records=[("a",)], columns=["name"])
        await conn.copy_from_table("item", output=tmp_path / "out")
        await conn.copy_from_query("select 1", output=tmp_path / "out")


@expect("write-lost")
async def test_written_by_a_prepared_statement(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        statement = await conn.prepare("insert into item(name) values ($1) returning id")
        assert await statement.fetchval("a")


@expect("write-lost")
async def test_written_by_a_prepared_statement_many_times(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        statement = await conn.prepare("insert into item(name) values ($1)")
        await statement.executemany([("a",), ("b",)])


async def test_prepared_and_by_itself(dsn):
    async with opened(dsn) as conn:
        statement = await conn.prepare("insert into item(name) values ($1)")
        await statement.fetch("a")


@expect("write-lost")
async def test_written_by_a_cursor(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        cursor = await conn.cursor("insert into item(name) values ('a') returning id")
        assert await cursor.fetch(1)


async def test_read_by_a_cursor(dsn):
    async with opened(dsn) as conn, conn.transaction():
        assert [row[0] async for row in conn.cursor("select * from generate_series(1, 100)", prefetch=7)]
        cursor = await conn.cursor("select * from generate_series(1, 100)")
        await cursor.forward(10)
        assert (await cursor.fetchrow())[0] == 11


async def test_only_read_and_closed(dsn):
    async with opened(dsn) as conn:
        await conn.transaction(readonly=True).start()
        await conn.fetch("select * from item")


async def test_rolled_back_by_hand(dsn):
    async with opened(dsn) as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(INSERT)
        await transaction.rollback()


async def test_rolled_back_by_an_exception(dsn):
    async with opened(dsn) as conn:
        with pytest.raises(ValueError):
            async with conn.transaction():
                await conn.execute(INSERT)
                raise ValueError


async def test_closed_by_an_exception(dsn):
    with pytest.raises(ValueError):
        async with opened(dsn) as conn:
            await conn.transaction().start()
            await conn.execute(INSERT)
            raise ValueError


async def test_refused_and_told(dsn):
    async with opened(dsn) as conn:
        with pytest.raises(asyncpg.CheckViolationError):
            async with conn.transaction():
                await conn.execute(INSERT)
                await conn.execute(REFUSED)


async def test_refused_alone_and_swallowed(dsn):
    async with opened(dsn) as conn:
        await conn.execute("begin")
        with contextlib.suppress(asyncpg.CheckViolationError):
            await conn.execute(REFUSED)
        await conn.execute("rollback")


@expect("write-lost")
async def test_failed_swallowed_and_committed(dsn):
    async with opened(dsn) as conn, conn.transaction():
        await conn.execute(INSERT)
        with contextlib.suppress(asyncpg.CheckViolationError):
            await conn.execute(REFUSED)


@expect("write-lost")
async def test_failed_while_preparing_swallowed_and_committed(dsn):
    async with opened(dsn) as conn, conn.transaction():
        await conn.execute(INSERT)
        with contextlib.suppress(asyncpg.UndefinedTableError):
            await conn.prepare("select * from there_is_none")


async def test_failed_inside_a_savepoint(dsn):
    async with opened(dsn) as conn, conn.transaction():
        await conn.execute(INSERT)
        with contextlib.suppress(asyncpg.CheckViolationError):
            async with conn.transaction():
                await conn.execute(REFUSED)
        await conn.execute(INSERT)


async def test_a_savepoint_is_rolled_back_and_nothing_else_was_written(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        with contextlib.suppress(ValueError):
            async with conn.transaction():
                await conn.execute(INSERT)
                raise ValueError


@expect("write-lost")
async def test_a_savepoint_is_released_and_the_rest_forgotten(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        async with conn.transaction():
            await conn.execute(INSERT)


async def test_one_after_the_other_after_a_failure(dsn):
    async with opened(dsn) as conn:
        with contextlib.suppress(asyncpg.CheckViolationError):
            async with conn.transaction():
                await conn.execute(REFUSED)
        async with conn.transaction():
            await conn.execute(INSERT)


async def test_a_commit_of_what_failed_alone(dsn):
    async with opened(dsn) as conn, conn.transaction():
        with contextlib.suppress(asyncpg.CheckViolationError):
            await conn.execute(REFUSED)


async def test_a_deferred_constraint_fails_the_commit_and_is_told(dsn):
    async with opened(dsn) as conn:
        await conn.execute("create table if not exists once (a int unique deferrable initially deferred)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with conn.transaction():
                await conn.execute("insert into once values (1), (1)")


async def test_isolation_levels(dsn):
    async with opened(dsn) as conn:
        for level in ("serializable", "repeatable_read", "read_committed"):
            async with conn.transaction(isolation=level):
                await conn.execute(INSERT)


async def test_cancelled_inside_a_block(dsn):
    async def work():
        async with opened(dsn) as conn, conn.transaction():
            await conn.execute(INSERT)
            await conn.execute("select pg_sleep(10)")

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(work(), 0.5)


async def test_a_statement_times_out_inside_a_block(dsn):
    async with opened(dsn) as conn:
        with pytest.raises(asyncio.TimeoutError):
            async with conn.transaction():
                await conn.execute(INSERT)
                await conn.execute("select pg_sleep(10)", timeout=0.1)


async def test_a_temporary_table_only(dsn):
    async with opened(dsn) as conn:
        await conn.transaction().start()
        await conn.execute("create temporary table t (a int)")
        await conn.execute("insert into t values (1)")


# On a connection of a fixture.


@expect("transaction-left-open")
async def test_left_open(conn):
    await conn.transaction().start()
    await conn.execute(INSERT)


# Nothing was written, and the fixture closes the connection right after the test.
async def test_left_open_by_sql(conn):
    await conn.execute("begin")


async def test_left_failed(conn):
    await conn.execute("begin")
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        await conn.execute("select 1/0")


async def test_left_clean(conn):
    async with conn.transaction():
        await conn.execute(INSERT)


@pytest.fixture
async def isolated(conn):
    transaction = conn.transaction()
    await transaction.start()
    yield conn
    await transaction.rollback()


async def test_isolated(isolated):
    await isolated.execute(INSERT)


async def test_isolated_with_a_savepoint(isolated):
    async with isolated.transaction():
        await isolated.execute(INSERT)


async def test_isolated_with_a_failure_inside(isolated):
    with contextlib.suppress(asyncpg.CheckViolationError):
        async with isolated.transaction():
            await isolated.execute(REFUSED)
    await isolated.execute(INSERT)


# Of a pool.


async def test_pool_committed(pool):
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(INSERT)


@expect("write-lost")
async def test_pool_started_and_released(pool):
    async with pool.acquire() as conn:
        await conn.transaction().start()
        await conn.execute(INSERT)


@expect("write-lost")
async def test_pool_begun_by_sql_and_released(pool):
    async with pool.acquire() as conn:
        await conn.execute("begin")
        await conn.execute(INSERT)


@expect("returned-in-transaction")
async def test_pool_only_read_and_released(pool):
    async with pool.acquire() as conn:
        await conn.transaction().start()
        await conn.fetch("select 1")


@expect("returned-in-transaction")
async def test_pool_failed_and_released(pool):
    async with pool.acquire() as conn:
        await conn.execute("begin")
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await conn.execute("select 1/0")


async def test_pool_the_next_one_is_not_failed(pool):
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(INSERT)


@expect("write-lost")
async def test_pool_closed_while_out(pool):
    conn = await pool.acquire()
    await conn.transaction().start()
    await conn.execute(INSERT)
    await conn.close()


@expect("write-lost")
async def test_pool_terminated_while_out(dsn):
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    conn = await pool.acquire()
    await conn.transaction().start()
    await conn.execute(INSERT)
    pool.terminate()


@expect("returned-in-transaction")
async def test_pool_released_by_an_exception(pool):
    # The caller knows that nothing was written; asyncpg's pool complains nevertheless.
    with pytest.raises(ValueError):
        async with pool.acquire() as conn:
            await conn.execute("begin")
            await conn.execute(INSERT)
            raise ValueError


async def test_pool_cancelled_inside_a_block(pool):
    async def work():
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute(INSERT)
            await conn.execute("select pg_sleep(10)")

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(work(), 0.5)


async def test_pool_a_reset_of_ones_own(dsn):
    class Connection(asyncpg.Connection):
        async def reset(self, *, timeout=None):
            await self.execute("discard all")

    async with asyncpg.create_pool(dsn, connection_class=Connection, min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn:
            await conn.execute(INSERT)


@expect("prepared-transaction")
async def test_prepared_and_left(dsn):
    async with opened(dsn) as conn:
        if await conn.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server prepares no transactions")
        await conn.execute("begin")
        await conn.execute(INSERT)
        await conn.execute("prepare transaction 'left'")


async def test_prepared_and_finished(dsn):
    async with opened(dsn) as conn:
        if await conn.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server prepares no transactions")
        await conn.execute("begin")
        await conn.execute(INSERT)
        await conn.execute("prepare transaction 'finished'")
        await conn.execute("commit prepared 'finished'")


async def generated(dsn):
    async with opened(dsn) as conn, conn.transaction():
        await conn.execute(INSERT)
        yield conn
        await conn.execute(INSERT)


@expect("write-lost")
async def test_a_generator_that_its_caller_leaves(dsn):
    generator = generated(dsn)
    async for _ in generator:
        break
    await generator.aclose()


async def test_a_generator_that_is_finished(dsn):
    async for _ in generated(dsn):
        pass
