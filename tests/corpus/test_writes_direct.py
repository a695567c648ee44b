"""Writes that are lost without a request: every way to write, every way to lose it; each beside its correct twin."""

import asyncio
import threading

import psycopg
import psycopg_pool
import pytest
from psycopg import sql

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('x')"


@pytest.fixture(scope="session")
def db(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute(
            """
            create or replace function add_item(text) returns int language sql volatile as
                'insert into item(name) values ($1) returning id';
            create table if not exists booking (id int primary key deferrable initially deferred, name text);
            create table if not exists account (id int primary key, amount int);
            create table if not exists audit (note text);
            """
        )
        conn.execute("insert into account values (1, 0) on conflict do nothing")
    return dsn


@pytest.fixture(scope="module")
def pool(db):
    with psycopg_pool.ConnectionPool(db, min_size=1, max_size=4, open=False) as pool:
        pool.wait()
        yield pool


# -- every way to write -----------------------------------------------------------------------------------------------


def by_execute(conn):
    conn.execute(INSERT)


def by_cursor(conn):
    with conn.cursor() as cur:
        cur.execute("insert into item(name) values (%s)", ["x"])


def by_prepared(conn):
    for _ in range(3):
        conn.execute("insert into item(name) values (%s)", ["x"], prepare=True)


def by_executemany(conn):
    with conn.cursor() as cur:
        cur.executemany("insert into item(name) values (%s)", [["a"], ["b"]])


def by_executemany_returning(conn):
    with conn.cursor() as cur:
        cur.executemany("insert into item(name) values (%s) returning id", [["a"], ["b"]], returning=True)
        while cur.nextset():
            cur.fetchone()


def by_copy(conn):
    with conn.cursor() as cur, cur.copy("copy item(name) from stdin") as copy:
        copy.write_row(["a"])
        copy.write_row(["b"])


def by_pipeline(conn):
    with conn.pipeline():
        conn.execute(INSERT)
        conn.execute(INSERT)


def by_pipeline_synced(conn):
    with conn.pipeline() as pipeline:
        conn.execute(INSERT)
        pipeline.sync()
        conn.execute("select 1")


def by_function(conn):
    conn.execute("select add_item('x')").fetchall()


def by_common_table_expression(conn):
    conn.execute("with new as (insert into item(name) values ('x') returning id) select id from new").fetchall()


def by_stream(conn):
    with conn.cursor() as cur:
        assert len(list(cur.stream("insert into item(name) values ('x') returning id"))) == 1


def by_update(conn):
    assert conn.execute("update account set amount = amount + 1 where id = 1").rowcount == 1


def by_delete(conn):
    conn.execute("insert into audit values ('x')")
    assert conn.execute("delete from audit").rowcount >= 1


def by_composed_sql(conn):
    conn.execute(sql.SQL("insert into {} (name) values ({})").format(sql.Identifier("item"), "x"))


def by_several_statements(conn):
    conn.execute("select 1; insert into item(name) values ('x'); select 2")


def by_create_table(conn):
    conn.execute("create table written_by_a_test (a int)")


def by_a_savepoint(conn):
    conn.execute("select 1")
    with conn.transaction():
        conn.execute(INSERT)


def by_a_savepoint_in_sql(conn):
    conn.execute("savepoint a")
    conn.execute(INSERT)
    conn.execute("release savepoint a")


def before_a_savepoint_that_is_rolled_back(conn):
    conn.execute(INSERT)
    with conn.transaction() as block:
        conn.execute("insert into audit values ('x')")
        raise psycopg.Rollback(block)


def before_much_reading(conn):
    conn.execute(INSERT)
    for _ in range(5):
        conn.execute("select count(*) from account").fetchone()


def after_a_server_cursor(conn):
    with conn.cursor("rows") as cur:
        cur.execute("select generate_series(1, 3)")
        assert len(cur.fetchall()) == 3
    conn.execute(INSERT)


def while_a_with_hold_cursor_is_open(conn):
    cur = conn.cursor("held", withhold=True)
    cur.execute("select generate_series(1, 3)")
    conn.execute(INSERT)
    cur.close()


WAYS = [value for name, value in list(globals().items()) if name.startswith(("by_", "before_", "after_", "while_"))]


@expect("write-lost")
@pytest.mark.parametrize("write", WAYS)
def test_closed(db, write):
    conn = psycopg.connect(db)
    write(conn)
    conn.close()


@expect("write-lost")
@pytest.mark.parametrize("write", WAYS)
def test_given_back(pool, write):
    conn = pool.getconn()
    write(conn)
    pool.putconn(conn)


@pytest.mark.parametrize("write", WAYS)
def test_committed(db, write):
    conn = psycopg.connect(db)
    write(conn)
    conn.commit()
    conn.execute("drop table if exists written_by_a_test")
    conn.commit()
    conn.close()


@pytest.mark.parametrize("write", WAYS)
def test_committed_by_the_pool(pool, write):
    with pool.connection() as conn:
        write(conn)
        conn.execute("drop table if exists written_by_a_test")


@pytest.mark.parametrize("write", WAYS)
def test_rolled_back_by_the_test_itself(db, write):
    """Explicitly, and there is no request that anybody was told of."""
    conn = psycopg.connect(db)
    write(conn)
    conn.rollback()
    conn.close()


@pytest.mark.parametrize("write", WAYS)
def test_rolled_back_on_purpose(db, write):
    with psycopg.connect(db) as conn, conn.transaction(force_rollback=True):
        write(conn)


@pytest.mark.parametrize("write", [way for way in WAYS if way is not by_a_savepoint_in_sql])
def test_autocommit(db, write):
    with psycopg.connect(db, autocommit=True) as conn:
        if write is while_a_with_hold_cursor_is_open:
            conn.execute(INSERT)
        else:
            with conn.transaction():
                write(conn)
        conn.execute("drop table if exists written_by_a_test")


# -- the same, async --------------------------------------------------------------------------------------------------


async def async_execute(conn):
    await conn.execute(INSERT)


async def async_cursor(conn):
    async with conn.cursor() as cur:
        await cur.execute("insert into item(name) values (%s)", ["x"])


async def async_executemany(conn):
    async with conn.cursor() as cur:
        await cur.executemany("insert into item(name) values (%s)", [["a"], ["b"]])


async def async_copy(conn):
    async with conn.cursor() as cur, cur.copy("copy item(name) from stdin") as copy:
        await copy.write_row(["a"])


async def async_pipeline(conn):
    async with conn.pipeline():
        await conn.execute(INSERT)
        await conn.execute(INSERT)


async def async_function(conn):
    await (await conn.execute("select add_item('x')")).fetchall()


async def async_stream(conn):
    async with conn.cursor() as cur:
        assert len([row async for row in cur.stream("insert into item(name) values ('x') returning id")]) == 1


async def async_savepoint(conn):
    await conn.execute("select 1")
    async with conn.transaction():
        await conn.execute(INSERT)


async def async_server_cursor(conn):
    async with conn.cursor("rows") as cur:
        await cur.execute("select generate_series(1, 3)")
        assert len(await cur.fetchall()) == 3
    await conn.execute(INSERT)


ASYNC_WAYS = [value for name, value in list(globals().items()) if name.startswith("async_")]


@expect("write-lost")
@pytest.mark.parametrize("write", ASYNC_WAYS)
async def test_async_closed(db, write):
    conn = await psycopg.AsyncConnection.connect(db)
    await write(conn)
    await conn.close()


@expect("write-lost")
@pytest.mark.parametrize("write", ASYNC_WAYS)
async def test_async_given_back(db, write):
    async with psycopg_pool.AsyncConnectionPool(db, min_size=1, open=False) as pool:
        conn = await pool.getconn()
        await write(conn)
        await pool.putconn(conn)


@pytest.mark.parametrize("write", ASYNC_WAYS)
async def test_async_committed(db, write):
    conn = await psycopg.AsyncConnection.connect(db)
    await write(conn)
    await conn.commit()
    await conn.close()


@pytest.mark.parametrize("write", ASYNC_WAYS)
async def test_async_committed_by_the_pool(db, write):
    async with psycopg_pool.AsyncConnectionPool(db, min_size=1, open=False) as pool, pool.connection() as conn:
        await write(conn)


@pytest.mark.parametrize("write", ASYNC_WAYS)
async def test_async_rolled_back_by_the_test_itself(db, write):
    conn = await psycopg.AsyncConnection.connect(db)
    await write(conn)
    await conn.rollback()
    await conn.close()


@pytest.mark.parametrize("write", ASYNC_WAYS)
async def test_async_rolled_back_on_purpose(db, write):
    async with await psycopg.AsyncConnection.connect(db) as conn, conn.transaction(force_rollback=True):
        await write(conn)


# -- dropped: the finding about the connection carries the write ------------------------------------------------------


@expect("connection-dropped")
def test_dropped(db):
    psycopg.connect(db).execute(INSERT)


@expect("connection-dropped")
async def test_async_dropped(db):
    await (await psycopg.AsyncConnection.connect(db)).execute(INSERT)


@expect("connection-not-returned")
def test_dropped_while_checked_out(db):
    with psycopg_pool.ConnectionPool(db, min_size=1, open=False) as pool:
        conn = pool.getconn()
        conn.execute(INSERT)
        del conn


@expect("pool-not-closed", "write-lost")
def test_dropped_together_with_its_pool(db):
    """`pool-not-closed` says nothing of a write."""
    pool = psycopg_pool.ConnectionPool(db, min_size=1, open=True)
    conn = pool.getconn()
    conn.execute(INSERT)
    del conn, pool


@expect("connection-not-closed")
def test_still_open(db):
    """The transaction has not ended: what is open is shown with the write that it holds."""
    KEPT.append(psycopg.connect(db))
    KEPT[-1].execute(INSERT)


KEPT = []


# -- SQL transactions -------------------------------------------------------------------------------------------------


@expect("write-lost")
@pytest.mark.parametrize("begin", ["begin", "BEGIN", "start transaction", "begin isolation level serializable"])
def test_begun_in_sql_and_closed(db, begin):
    conn = psycopg.connect(db, autocommit=True)
    conn.execute(begin)
    conn.execute(INSERT)
    conn.close()


@pytest.mark.parametrize("end", ["commit", "COMMIT", "end", "commit work", "  \n commit", "rollback", "abort"])
def test_begun_and_ended_in_sql(db, end):
    conn = psycopg.connect(db, autocommit=True)
    conn.execute("begin")
    conn.execute(INSERT)
    conn.execute(end)
    conn.close()


@expect("write-lost")
def test_begun_again_after_a_commit_in_sql(db):
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    conn.execute("commit and chain")
    conn.execute(INSERT)
    conn.close()


def test_begun_again_and_nothing_written(db):
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    conn.execute("commit and chain")
    conn.execute("select 1")
    conn.close()


@expect("write-lost")
def test_autocommit_switched_off(db):
    conn = psycopg.connect(db, autocommit=True)
    conn.execute(INSERT)
    conn.autocommit = False
    conn.execute(INSERT)
    conn.close()


# -- COMMIT that answers ROLLBACK -------------------------------------------------------------------------------------


def swallow(conn, statement):
    try:
        conn.execute(statement)
    except psycopg.Error:
        pass


@expect("write-lost")
@pytest.mark.parametrize("end", ["method", "sql", "with"])
def test_commit_of_a_failed_transaction(db, end):
    conn = psycopg.connect(db)
    if end == "with":
        with conn:
            conn.execute(INSERT)
            swallow(conn, "insert into item(no_such_column) values (1)")
        return
    conn.execute(INSERT)
    swallow(conn, "insert into item(no_such_column) values (1)")
    conn.commit() if end == "method" else conn.execute("commit")
    conn.close()


@expect("write-lost")
def test_commit_of_a_failed_transaction_to_the_pool(pool):
    with pool.connection() as conn:
        conn.execute(INSERT)
        swallow(conn, "select 1 / 0")


@expect("write-lost")
async def test_async_commit_of_a_failed_transaction(db):
    async with await psycopg.AsyncConnection.connect(db) as conn:
        await conn.execute(INSERT)
        try:
            await conn.execute("select 1 / 0")
        except psycopg.errors.DivisionByZero:
            pass


@expect("write-lost")
@pytest.mark.parametrize("way", ["pipeline", "copy", "executemany"])
def test_commit_of_a_transaction_that_failed_in_some_other_way(db, way):
    with psycopg.connect(db) as conn:
        conn.execute(INSERT)
        try:
            if way == "pipeline":
                with conn.pipeline():
                    conn.execute("select 1 / 0")
                    conn.execute(INSERT)
            elif way == "copy":
                with conn.cursor() as cur, cur.copy("copy item(id) from stdin") as copy:
                    copy.write_row(["not a number"])
            else:
                conn.cursor().executemany("select 1 / %s", [[1], [0]])
        except psycopg.Error:
            pass


def test_failure_that_a_savepoint_confines(db):
    with psycopg.connect(db) as conn:
        conn.execute(INSERT)
        try:
            with conn.transaction():
                conn.execute("select 1 / 0")
        except psycopg.errors.DivisionByZero:
            pass


def test_only_reading_before_it_failed(db):
    with psycopg.connect(db) as conn:
        conn.execute("select 1")
        swallow(conn, "select 1 / 0")


@expect("write-lost")
def test_closed_after_it_failed(db):
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    swallow(conn, "select 1 / 0")
    conn.close()


@expect("write-lost")
def test_given_back_after_it_failed(pool):
    conn = pool.getconn()
    conn.execute(INSERT)
    swallow(conn, "select 1 / 0")
    pool.putconn(conn)


def test_rolled_back_after_it_failed(db):
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    swallow(conn, "select 1 / 0")
    conn.rollback()
    conn.close()


def test_commit_that_fails_and_says_so(db):
    """Whoever called it has the exception: no finding, whatever he makes of it."""
    conn = psycopg.connect(db)
    conn.execute("insert into booking values (1, 'a'), (1, 'b')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.commit()
    conn.close()


def test_commit_that_fails_at_the_end_of_a_block(db):
    """psycopg does not close the connection then: whoever writes `with` cannot know."""
    with pytest.raises(psycopg.errors.UniqueViolation):
        with psycopg.connect(db) as conn:
            conn.execute("insert into booking values (1, 'a'), (1, 'b')")


async def test_commit_that_fails_at_the_end_of_an_async_block(db):
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with await psycopg.AsyncConnection.connect(db) as conn:
            await conn.execute("insert into booking values (1, 'a'), (1, 'b')")


@expect("connection-dropped")
def test_commit_that_fails_without_a_block(db):
    def write():
        conn = psycopg.connect(db)
        conn.execute("insert into booking values (1, 'a'), (1, 'b')")
        conn.commit()
        conn.close()

    with pytest.raises(psycopg.errors.UniqueViolation):
        write()


@expect("connection-not-returned")
def test_commit_that_fails_in_a_block_on_a_checkout(pool):
    """Neither does it give it back."""

    def write():
        with pool.getconn() as conn:
            conn.execute("insert into booking values (1, 'a'), (1, 'b')")

    with pytest.raises(psycopg.errors.UniqueViolation):
        write()


# -- code after `yield` that never ran --------------------------------------------------------------------------------


def transaction(dsn):
    conn = psycopg.connect(dsn)
    try:
        with conn.transaction():
            yield conn
    finally:
        conn.close()


def commit_after_yield(dsn):
    conn = psycopg.connect(dsn)
    try:
        yield conn
        conn.commit()
    finally:
        conn.close()


def with_after_yield(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


async def async_with_after_yield(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn


GENERATORS = [transaction, commit_after_yield, with_after_yield]


@expect("write-lost")
@pytest.mark.parametrize("generator", GENERATORS)
def test_the_caller_leaves_the_generator(db, generator):
    def write():
        for conn in generator(db):
            conn.execute(INSERT)
            return

    write()


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_caller_exhausts_the_generator(db, generator):
    for conn in generator(db):
        conn.execute(INSERT)


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_caller_leaves_the_generator_and_only_read(db, generator):
    for conn in generator(db):
        conn.execute("select 1")
        break


@expect("write-lost")
async def test_the_caller_leaves_the_async_generator(db):
    async def write():
        async for conn in async_with_after_yield(db):
            await conn.execute(INSERT)
            return

    await write()
    await asyncio.sleep(0)


async def test_the_caller_exhausts_the_async_generator(db):
    async for conn in async_with_after_yield(db):
        await conn.execute(INSERT)


async def test_the_caller_leaves_the_async_generator_after_a_commit(db):
    async def write():
        async for conn in async_with_after_yield(db):
            await conn.execute(INSERT)
            await conn.commit()
            return

    await write()
    await asyncio.sleep(0)


# -- units of work ----------------------------------------------------------------------------------------------------


class UnitOfWork:
    """Commits where somebody has thought of it."""

    def __init__(self, dsn):
        self.dsn = dsn

    def __enter__(self):
        self.conn = psycopg.connect(self.dsn)
        return self

    def __exit__(self, *exc):
        self.conn.close()

    def add(self, name, notify):
        self.conn.execute("insert into item(name) values (%s)", [name])
        if notify:
            self.conn.commit()


@expect("write-lost")
def test_unit_of_work_forgets_one_path(db):
    with UnitOfWork(db) as work:
        work.add("x", notify=False)


def test_unit_of_work_commits_on_the_other(db):
    with UnitOfWork(db) as work:
        work.add("x", notify=True)


def test_unit_of_work_rolls_back_at_its_end(db):
    class Careful(UnitOfWork):
        def __exit__(self, *exc):
            self.conn.rollback()
            self.conn.close()

    with Careful(db) as work:
        work.add("x", notify=False)


@expect("write-lost")
def test_commit_in_a_finally_after_a_swallowed_error(db):
    conn = psycopg.connect(db)
    try:
        conn.execute(INSERT)
        conn.execute("select 1 / 0")
    except psycopg.Error:
        pass
    finally:
        conn.commit()
        conn.close()


def test_with_block_left_by_an_exception(db):
    """psycopg's documented way: the caller has the exception."""
    with pytest.raises(RuntimeError):
        with psycopg.connect(db) as conn:
            conn.execute(INSERT)
            raise RuntimeError


def test_transaction_block_left_by_psycopgs_rollback(db):
    with psycopg.connect(db) as conn:
        with conn.transaction():
            conn.execute(INSERT)
            raise psycopg.Rollback


def test_nested_blocks_rolled_back_together(db):
    with psycopg.connect(db) as conn:
        with conn.transaction() as outer:
            conn.execute(INSERT)
            with conn.transaction():
                conn.execute(INSERT)
                raise psycopg.Rollback(outer)


@expect("write-lost")
def test_nested_blocks_that_were_all_savepoints(db):
    conn = psycopg.connect(db)
    conn.execute("select 1")
    with conn.transaction():
        with conn.transaction():
            conn.execute(INSERT)
    conn.close()


@expect("write-lost")
async def test_async_block_that_was_only_a_savepoint(db):
    conn = await psycopg.AsyncConnection.connect(db)
    await (await conn.execute("select 1")).fetchone()
    async with conn.transaction():
        await conn.execute(INSERT)
    await conn.close()


def test_block_that_was_the_transaction(db):
    conn = psycopg.connect(db)
    with conn.transaction():
        conn.execute(INSERT)
    conn.close()


@expect("write-lost")
def test_pipelined_block_that_was_only_a_savepoint(db):
    conn = psycopg.connect(db)
    conn.execute("select 1")
    with conn.pipeline(), conn.transaction():
        conn.execute(INSERT)
    conn.close()


def test_pipelined_block_that_was_the_transaction(db):
    conn = psycopg.connect(db)
    with conn.pipeline(), conn.transaction():
        conn.execute(INSERT)
    conn.close()


# -- two-phase commit -------------------------------------------------------------------------------------------------


@expect("write-lost")
def test_two_phase_begun_and_closed(db):
    conn = psycopg.connect(db)
    conn.tpc_begin(conn.xid(1, "lost", "a"))
    conn.execute(INSERT)
    conn.close()


@pytest.mark.parametrize("end", ["one phase", "rolled back"])
def test_two_phase_ended_in_one(db, end):
    conn = psycopg.connect(db)
    conn.tpc_begin(conn.xid(1, "one", "a"))
    conn.execute(INSERT)
    conn.tpc_commit() if end == "one phase" else conn.tpc_rollback()
    conn.close()


@pytest.mark.parametrize("end", ["committed", "rolled back"])
def test_two_phase(db, end):
    conn = psycopg.connect(db)
    if conn.execute("show max_prepared_transactions").fetchone() == ("0",):
        conn.close()
        pytest.skip("the server does not allow prepared transactions")
    conn.rollback()
    conn.tpc_begin(conn.xid(1, "two", "a"))
    conn.execute(INSERT)
    conn.tpc_prepare()
    conn.tpc_commit() if end == "committed" else conn.tpc_rollback()
    conn.close()


# -- others than the main thread, others than the call ----------------------------------------------------------------


@expect("write-lost")
def test_background_thread(db):
    def work():
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        conn.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@expect("write-lost")
async def test_to_thread(db):
    def work():
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        conn.close()

    await asyncio.to_thread(work)


@expect("write-lost")
async def test_task(db):
    async def work():
        conn = await psycopg.AsyncConnection.connect(db)
        await conn.execute(INSERT)
        await conn.close()

    await asyncio.create_task(work())


@expect("write-lost")
def test_opened_in_one_thread_and_closed_in_another(db):
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    thread = threading.Thread(target=conn.close)
    thread.start()
    thread.join()


class MyConnection(psycopg.Connection):
    def close(self):
        super().close()


@expect("write-lost")
def test_subclass(db):
    conn = MyConnection.connect(db)
    conn.execute(INSERT)
    conn.close()


def test_subclass_that_commits_when_it_is_closed(db):
    class Committing(psycopg.Connection):
        def close(self):
            if not self.closed:
                self.commit()
            super().close()

    conn = Committing.connect(db)
    conn.execute(INSERT)
    conn.close()


# -- pools ------------------------------------------------------------------------------------------------------------


@expect("write-lost")
def test_pool_closed_while_a_checkout_is_in_a_transaction(db):
    pool = psycopg_pool.ConnectionPool(db, min_size=1, open=True)
    conn = pool.getconn()
    conn.execute(INSERT)
    pool.close()
    pool.putconn(conn)


def test_pool_closed_while_a_checkout_is_in_a_transaction_that_is_committed(db):
    pool = psycopg_pool.ConnectionPool(db, min_size=1, open=True)
    conn = pool.getconn()
    conn.execute(INSERT)
    pool.close()
    conn.commit()
    pool.putconn(conn)


@expect("write-lost")
def test_close_returns(db):
    with psycopg_pool.ConnectionPool(db, min_size=1, open=False, close_returns=True) as pool:
        conn = pool.getconn()
        conn.execute(INSERT)
        conn.close()


def test_close_returns_after_a_commit(db):
    with psycopg_pool.ConnectionPool(db, min_size=1, open=False, close_returns=True) as pool:
        conn = pool.getconn()
        conn.execute(INSERT)
        conn.commit()
        conn.close()


def reset(conn):
    conn.execute("discard all") if conn.autocommit else conn.execute("reset all")
    conn.commit()


@expect("write-lost")
def test_pool_with_callbacks(db):
    with psycopg_pool.ConnectionPool(
        db, min_size=1, open=False, reset=reset, check=psycopg_pool.ConnectionPool.check_connection
    ) as pool:
        conn = pool.getconn()
        conn.execute(INSERT)
        pool.putconn(conn)
        with pool.connection() as conn:
            conn.execute(INSERT)


def test_pool_with_callbacks_and_commits(db):
    with psycopg_pool.ConnectionPool(
        db, min_size=1, open=False, reset=reset, check=psycopg_pool.ConnectionPool.check_connection
    ) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute(INSERT)


def test_pool_whose_callbacks_write(db):
    """What a pool does to its connections is its own business."""

    def configure(conn):
        conn.execute("insert into audit values ('configured')")
        conn.commit()

    def rolls_back(conn):
        conn.execute("insert into audit values ('given back')")
        conn.rollback()

    with psycopg_pool.ConnectionPool(db, min_size=1, open=False, configure=configure, reset=rolls_back) as pool:
        with pool.connection() as conn:
            conn.execute(INSERT)
        with pool.connection() as conn:
            conn.execute("select 1")


@expect("write-lost")
def test_null_pool(db):
    with psycopg_pool.NullConnectionPool(db, open=False, max_size=2) as pool:
        conn = pool.getconn()
        conn.execute(INSERT)
        pool.putconn(conn)


@expect("write-lost")
async def test_async_null_pool(db):
    async with psycopg_pool.AsyncNullConnectionPool(db, open=False, max_size=2) as pool:
        conn = await pool.getconn()
        await conn.execute(INSERT)
        await pool.putconn(conn)


# -- how many, how ended ----------------------------------------------------------------------------------------------


@expect("write-lost")
def test_often_on_the_same_lines_is_one_finding(db):
    for _ in range(5):
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        conn.close()


@expect("write-lost", "write-lost")
def test_on_two_lines_is_two(db):
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    conn.close()
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    conn.close()


@expect("write-lost")
def test_the_backend_is_ended_later(db):
    """What the server has ended was nobody's doing here; the write before that was."""
    conn = psycopg.connect(db)
    conn.execute(INSERT)
    conn.close()
    with psycopg.connect(db, autocommit=True) as admin, psycopg.connect(db) as victim:
        victim.execute(INSERT)
        admin.execute("select pg_terminate_backend(%s)", [victim.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            victim.execute("select 1")
