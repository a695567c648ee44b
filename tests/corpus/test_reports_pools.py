"""Pools and connections in every way of use that psycopg offers. `# leaks` is the line to be named."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import psycopg
import psycopg_pool
import pytest

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []


@pytest.fixture(scope="module")
def pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=8, open=False) as pool:
        yield pool


# -- the pool's own comings and goings are no leaks --------------------------------------------------------------


def test_grows_under_concurrency(pool):
    def work(_):
        with pool.connection() as conn:
            conn.execute("select pg_sleep(0.02)")

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(24)))


def test_recycled_by_max_lifetime(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=2, open=False, max_lifetime=0.05) as pool:
        for _ in range(5):
            with pool.connection() as conn:
                conn.execute("select pg_sleep(0.04)")


def test_recycled_while_nobody_looks(pool):
    pool.drain()
    pool.check()
    with pool.connection() as conn:
        conn.execute("select 1")


def test_resized(pool):
    pool.resize(4, 8)
    pool.wait()
    pool.resize(1, 8)


def test_configure_check_and_reset(dsn):
    def configure(conn):
        conn.autocommit = True
        conn.execute("set application_name = 'configured'")

    def reset(conn):
        conn.execute("reset all")

    with psycopg_pool.ConnectionPool(
        dsn,
        min_size=1,
        open=False,
        configure=configure,
        reset=reset,
        check=psycopg_pool.ConnectionPool.check_connection,
    ) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute("select 1")


def test_check_finds_a_broken_connection(dsn):
    with psycopg_pool.ConnectionPool(
        dsn, min_size=2, open=False, check=psycopg_pool.ConnectionPool.check_connection
    ) as pool:
        pool.wait()
        with psycopg.connect(dsn, autocommit=True) as admin, pool.connection() as conn:
            pid = conn.info.backend_pid
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute("select pg_terminate_backend(%s)", [pid])
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute("select 1")


def test_broken_in_use_and_returned(pool, dsn):
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        conn.execute("select 1")
    with pool.connection() as conn:
        conn.execute("select 1")


def test_reset_fails(dsn):
    def reset(conn):
        raise RuntimeError("no reset today")

    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, reset=reset) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                conn.execute("select 1")


def test_configure_fails(dsn):
    def configure(conn):
        conn.execute("select 1/0")

    with (
        psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, configure=configure, reconnect_timeout=0.1) as pool,
        pytest.raises(psycopg_pool.PoolTimeout),
    ):
        pool.wait(timeout=0.1)


def test_closed_by_hand_in_the_block(pool):
    with pool.connection() as conn:
        conn.close()


def test_error_in_the_block(pool):
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.execute("select 1")
        1 / 0  # noqa: B018


def test_reopened_per_request(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, name="per request")
    for _ in range(3):
        with pool.connection() if not pool.closed else psycopg.connect(dsn) as conn:
            conn.execute("select 1")
    with pool, pool.connection() as conn:
        conn.execute("select 1")


def test_close_returns(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, close_returns=True) as pool:
        for _ in range(3):
            # Not `with pool.getconn():`, which neither closes nor returns a connection of a pool.
            with contextlib.closing(pool.getconn()) as conn:
                conn.execute("select 1")
                conn.commit()


@expect("connection-not-returned")
def test_close_returns_but_nobody_closes(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, close_returns=True) as pool:
        KEPT.append(pool.getconn())  # leaks


def test_two_pools(dsn, pool):
    with (
        psycopg_pool.ConnectionPool(dsn, min_size=1, open=False) as other,
        pool.connection() as first,
        other.connection() as second,
    ):
        first.execute("select 1")
        second.execute("select 1")


def test_subclass_that_overrides_connection(dsn):
    class Traced(psycopg_pool.ConnectionPool):
        def getconn(self, timeout=None):
            conn = super().getconn(timeout)
            conn.execute("select 'taken'")
            conn.rollback()
            return conn

        def putconn(self, conn):
            conn.rollback()
            super().putconn(conn)

    with Traced(dsn, min_size=1, open=False) as traced, traced.connection() as conn:
        conn.execute("select 1")


class Counted(psycopg.Connection):
    closed_by = 0

    def close(self):
        type(self).closed_by += 1
        super().close()


def test_pool_of_a_subclass(dsn):
    with (
        psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, connection_class=Counted) as pool,
        pool.connection() as conn,
    ):
        assert isinstance(conn, Counted)


@expect("connection-not-returned")
def test_pool_of_a_subclass_leak(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, connection_class=Counted) as pool:
        KEPT.append(pool.getconn())  # leaks


def test_null_pool_many(dsn):
    with psycopg_pool.NullConnectionPool(dsn, open=False, max_size=2) as pool:

        def work(_):
            with pool.connection() as conn:
                conn.execute("select pg_sleep(0.01)")

        with ThreadPoolExecutor(4) as executor:
            list(executor.map(work, range(8)))


@expect("connection-not-returned")
def test_null_pool_getconn(dsn):
    with psycopg_pool.NullConnectionPool(dsn, open=False, max_size=2) as pool:
        KEPT.append(pool.getconn())  # leaks


@expect("connection-not-returned")
async def test_async_null_pool_dropped(dsn):
    async with psycopg_pool.AsyncNullConnectionPool(dsn, open=False, max_size=2) as pool:
        await pool.getconn()  # leaks


@expect("connection-not-returned", "connection-not-returned", "returned-in-transaction")
def test_error_paths_drain_the_pool(pool):
    """harlequin-postgres#61: every helper skipped its putconn() when the query raised."""

    def helper(query):
        conn = pool.getconn()  # leaks
        cur = conn.execute(query)
        pool.putconn(conn)
        return cur

    helper("select 1")
    for _ in range(2):
        with pytest.raises(psycopg.Error):
            helper("select no_such_column")


@expect("pool-not-closed", "pool-not-closed")
def test_two_pools_forgotten(dsn):
    for name in ("one", "two"):
        KEPT.append(psycopg_pool.ConnectionPool(dsn, min_size=1, open=True, name=name))  # leaks  # noqa: PERF401


@expect("pool-not-closed", "connection-not-returned")
def test_pool_and_its_checkout(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)  # leaks
    KEPT.append((pool, pool.getconn()))  # leaks


@expect("pool-not-closed")
async def test_async_pool_replaced(dsn):
    """A module-global pool that is made again for each event loop (psycopg#737)."""
    for _ in range(2):
        pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False)
        await pool.open()  # leaks
        async with pool.connection() as conn:
            await conn.execute("select 1")
    await pool.close()


# -- connections handed around ------------------------------------------------------------------------------------


@expect("nested-checkout")
def test_handed_to_threads(pool):
    conns = [pool.getconn() for _ in range(4)]

    def work(conn):
        conn.execute("select 1")
        conn.commit()
        pool.putconn(conn)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, conns))


@expect("connection-not-returned")
def test_handed_to_a_thread_that_dies(pool):
    conn = pool.getconn()  # leaks

    def work(conn):
        try:
            conn.execute("select no_such_column")
        except psycopg.Error:
            return
        pool.putconn(conn)

    thread = threading.Thread(target=work, args=(conn,))
    thread.start()
    thread.join()


async def test_handed_between_tasks(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
        queue = asyncio.Queue()

        async def producer():
            await queue.put(await pool.getconn())

        async def consumer():
            await pool.putconn(await queue.get())

        await asyncio.gather(producer(), consumer())


@expect("connection-not-closed")
def test_thread_holds_it_still(dsn):
    stop = threading.Event()
    KEPT.append(stop)
    ready = threading.Event()

    def work():
        with psycopg.connect(dsn) as conn:  # leaks
            conn.execute("select 1")
            ready.set()
            stop.wait(3)

    threading.Thread(target=work, daemon=True).start()
    ready.wait()


def test_executor_per_test_with_thread_locals(dsn):
    local = threading.local()
    opened = []

    def work(_):
        if not hasattr(local, "conn"):
            local.conn = psycopg.connect(dsn, autocommit=True)
            opened.append(local.conn)
        local.conn.execute("select 1")

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(work, range(9)))
    for conn in opened:
        conn.close()


@expect("connection-dropped")
def test_executor_with_a_thread_local(dsn):
    local = threading.local()

    def work():
        local.conn = psycopg.connect(dsn)  # leaks
        local.conn.execute("select 1")

    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()


async def test_to_thread(dsn):
    def work():
        with psycopg.connect(dsn) as conn:
            return conn.execute("select 1").fetchone()[0]

    assert await asyncio.to_thread(work) == 1


# -- garbage ---------------------------------------------------------------------------------------------------


@expect("connection-dropped")
def test_weak_reference_only(dsn):
    registry = weakref.WeakValueDictionary()
    registry["conn"] = psycopg.connect(dsn)  # leaks
    assert "conn" not in registry


def test_weak_reference_and_closed(dsn):
    registry = weakref.WeakSet()
    conn = psycopg.connect(dsn)
    registry.add(conn)
    conn.close()


@expect("connection-dropped")
def test_cycle_with_gc_off(dsn):
    class Repository:
        def __init__(self):
            self.conn = psycopg.connect(dsn)  # leaks
            self.find = lambda: self.conn

    gc.disable()
    try:
        Repository()
    finally:
        gc.enable()


@expect("connection-dropped")
def test_replaced_singleton(dsn):
    class Singleton:
        conn = None

    for _ in range(2):
        Singleton.conn = psycopg.connect(dsn)  # leaks
    Singleton.conn.close()


@expect("connection-dropped")
@pytest.mark.filterwarnings("error")
def test_warnings_are_errors(dsn):
    psycopg.connect(dsn)  # leaks


@pytest.mark.filterwarnings("error")
def test_warnings_are_errors_clean(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute("select 1")


@expect("connection-not-closed")
def test_detached_by_hand(dsn):
    """`with conn.transaction():` is not `with conn:`: it does not close."""
    conn = psycopg.connect(dsn)  # leaks
    with conn.transaction():
        conn.execute("select 1")
    KEPT.append(conn)


@expect("connection-dropped")
def test_cursor_closed_connection_not(dsn):
    with psycopg.connect(dsn).cursor() as cur:  # leaks
        cur.execute("select 1")


@expect("connection-dropped")
def test_close_skipped_by_an_error(dsn):
    def work():
        conn = psycopg.connect(dsn)  # leaks
        conn.execute("select 1/0")
        conn.close()

    with pytest.raises(psycopg.errors.DivisionByZero):
        work()


# -- ways of use ------------------------------------------------------------------------------------------------


def test_pipeline(dsn):
    with psycopg.connect(dsn) as conn, conn.pipeline() as pipeline:
        conn.execute("select 1")
        pipeline.sync()


def test_server_side_cursor_left_early(pool):
    with pool.connection() as conn, conn.cursor(name="server side") as cur:
        cur.execute("select generate_series(1, 1000)")
        cur.fetchone()


def test_stream_left_early(pool):
    with pool.connection() as conn:
        for _ in conn.cursor().stream("select generate_series(1, 1000)"):
            break


def test_copy(pool):
    with pool.connection() as conn, conn.cursor() as cur:
        with cur.copy("copy item(name) from stdin") as copy:
            copy.write_row(("x",))
        with cur.copy("copy item to stdout") as copy:
            assert list(copy.rows())


def test_executemany_and_prepared(pool):
    with pool.connection() as conn:
        conn.cursor().executemany("insert into item(name) values (%s)", [("a",), ("b",)])
        conn.execute("select 1", prepare=True)


def test_two_phase_rolled_back(dsn):
    with psycopg.connect(dsn) as conn:
        conn.tpc_begin(conn.xid(1, "reports", ""))
        conn.execute("select 1")
        conn.tpc_rollback()


def test_autocommit(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into item(name) values ('x')")
        with conn.transaction():
            conn.execute("select 1")


def test_isolation_level_and_read_only(dsn):
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.execute("select 1")


def test_two_hosts(dsn):
    host = psycopg.conninfo.conninfo_to_dict(dsn).get("host", "")
    with psycopg.connect(psycopg.conninfo.make_conninfo(dsn, host=f"/nowhere,{host}", port="")) as conn:
        conn.execute("select 1")


def test_cancel_from_another_thread(dsn):
    with psycopg.connect(dsn) as conn:
        threading.Timer(0.05, conn.cancel_safe).start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("select pg_sleep(10)")


async def test_cancelled_connect(dsn):
    task = asyncio.create_task(psycopg.AsyncConnection.connect(dsn))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_async_notifies(dsn):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("listen reports")
        await conn.execute("notify reports")
        async for _ in conn.notifies(timeout=1, stop_after=1):
            pass


def test_monkeypatched_connect(dsn, monkeypatch):
    real = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda *args, **kwargs: real(dsn))
    with psycopg.connect("host=production") as conn:
        conn.execute("select 1")


@expect("connection-dropped")
def test_monkeypatched_connect_leak(dsn, monkeypatch):
    real = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda *args, **kwargs: real(dsn))  # leaks
    psycopg.connect("host=production")


def test_mocked_connection(monkeypatch):
    from unittest import mock

    monkeypatch.setattr(psycopg, "connect", mock.MagicMock(spec=psycopg.connect))
    psycopg.connect("host=nowhere").execute("select 1")
    mock.create_autospec(psycopg.Connection, instance=True).close()


def test_retry_after_a_failed_connect(dsn):
    for number in range(3):
        try:
            with psycopg.connect(dsn, **({} if number == 2 else {"dbname": "no_such_database"})) as conn:
                conn.execute("select 1")
        except psycopg.OperationalError:
            time.sleep(0.01)


def test_finish_by_libpq(dsn):
    conn = psycopg.connect(dsn)
    conn.pgconn.finish()


@expect("transaction-left-open")
def test_copy_error_on_a_fixture_connection(shared):
    with pytest.raises(psycopg.Error), shared.cursor().copy("copy item(id) from stdin") as copy:  # leaks
        copy.write("not a number\n")


def test_shared_connection_recovers(shared):
    shared.rollback()


@expect("transaction-left-open")
def test_select_only_on_a_fixture_connection(shared):
    shared.execute("select 1")  # leaks


def test_transaction_block_on_a_fixture_connection(shared):
    shared.rollback()
    with shared.transaction():
        shared.execute("insert into item(name) values ('x')")


@pytest.fixture(scope="module")
def shared(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn
