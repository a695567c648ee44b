"""Two checkouts of one flow of control, and connections that go back to their pool in a transaction."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress

import anyio
import psycopg
import psycopg_pool
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('x')"
nested = expect("nested-checkout")
returned = expect("returned-in-transaction")


def leaky(path, *kinds):
    return pytest.param(path, marks=expect(*(kinds or ("nested-checkout",))))


@pytest.fixture(scope="module")
def pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=8, open=False) as pool:
        pool.wait()
        yield pool


@pytest.fixture(scope="module")
def other_pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=8, open=False) as pool:
        pool.wait()
        yield pool


# -- nested, without a request ----------------------------------------------------------------------------------------


def audit(pool):
    with pool.connection() as conn:
        conn.execute("select 'audit'")


@nested
def test_helper_takes_a_second_one(pool):
    with pool.connection() as conn:
        conn.execute("select 1")
        audit(pool)


def test_helper_takes_one_after_the_other(pool):
    with pool.connection() as conn:
        conn.execute("select 1")
    audit(pool)


def test_helper_is_given_the_one_that_is_held(pool):
    def audit_on(conn):
        conn.execute("select 'audit'")

    with pool.connection() as conn:
        conn.execute("select 1")
        audit_on(conn)


@nested
async def test_helper_takes_a_second_one_async(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
        async with pool.connection():
            async with pool.connection() as second:
                await second.execute("select 1")


@expect("nested-checkout", "nested-checkout")
def test_three_deep(pool):
    with pool.connection():
        with pool.connection():
            with pool.connection():
                pass


@nested
def test_by_hand(pool):
    first, second = pool.getconn(), pool.getconn()
    pool.putconn(first)
    pool.putconn(second)


def test_by_hand_one_after_the_other(pool):
    for _ in range(3):
        pool.putconn(pool.getconn())


@nested
def test_exit_stack(pool):
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(pool.connection())


@nested
async def test_async_exit_stack(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(pool.connection())


def test_two_pools(pool, other_pool):
    with pool.connection(), other_pool.connection():
        pass


def test_pool_and_direct_connection(pool, dsn):
    with pool.connection(), psycopg.connect(dsn) as conn:
        conn.execute("select 1")


def test_null_pool_without_a_limit(dsn):
    """It opens as many as are asked for: nobody waits."""
    with psycopg_pool.NullConnectionPool(dsn, open=False, max_size=None, min_size=0) as pool:
        with pool.connection(), pool.connection():
            pass


@nested
def test_null_pool_with_a_limit(dsn):
    with psycopg_pool.NullConnectionPool(dsn, open=False, max_size=2) as pool:
        with pool.connection(), pool.connection():
            pass


@expect("connection-not-returned")
def test_the_first_is_never_returned(pool):
    """One mistake: what was not returned is held when the next one is taken."""
    KEPT.append(pool.getconn())
    with pool.connection():
        pass


KEPT = []


def test_threads(pool):
    barrier = threading.Barrier(3)

    def work():
        with pool.connection():
            barrier.wait(10)

    with ThreadPoolExecutor(3) as executor:
        for future in [executor.submit(work) for _ in range(3)]:
            future.result(10)


def test_threads_of_one_that_holds_a_connection(pool):
    """They could as well be independent: nobody knows who waits for whom."""

    def work():
        with pool.connection():
            pass

    with pool.connection():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


async def test_gather(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:

        async def work():
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(0.01)")

        await asyncio.gather(work(), work(), work())
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(work())
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(work)


@nested
async def test_gather_of_nested(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=8, open=False) as pool:

        async def work(nests):
            async with pool.connection() as conn:
                await conn.execute("select 1")
                if nests:
                    async with pool.connection() as second:
                        await second.execute("select 1")

        await asyncio.gather(work(False), work(True))


async def test_given_to_a_task(dsn):
    """The first one is handed over: whoever took it takes another for himself, as a producer does."""
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:

        async def work(conn):
            await conn.execute("select 1")
            await conn.rollback()
            await pool.putconn(conn)

        task = asyncio.create_task(work(await pool.getconn()))
        await task
        async with pool.connection() as conn:
            await conn.execute("select 1")


@pytest.fixture
def held(pool):
    with pool.connection() as conn:
        yield conn


def test_a_fixture_holds_the_first(pool, held):
    with pool.connection() as conn:
        conn.execute("select 1")


@nested
def test_a_fixture_holds_one_and_the_test_two(pool, held):
    with pool.connection(), pool.connection() as conn:
        conn.execute("select 1")


@pytest.fixture
def of_two(pool):
    """A fixture that compares two sessions: that is the test's set-up, and yet it would wait for itself."""
    with pool.connection() as first, pool.connection() as second:
        yield first, second


def test_a_fixture_holds_both(of_two):
    for conn in of_two:
        conn.execute("select 1")
        conn.commit()


@nested
def test_named_once_for_a_loop(pool):
    """One line, one finding."""
    with pool.connection():
        for _ in range(3):
            audit(pool)


@pytest.mark.pgleak(allow=["nested-checkout"])
def test_allowed(pool):
    with pool.connection(), pool.connection():
        pass


@nested
def test_one_out_of_date_comes_back_in_between(pool):
    first = pool.getconn()
    second = pool.getconn()
    pool.putconn(first)
    pool.putconn(second)
    audit(pool)


# -- nested, in requests ----------------------------------------------------------------------------------------------


def build(dsn):
    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=8, open=False) as app.state.pool:
            with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=8, open=False) as app.state.sync_pool:
                with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=8, open=False) as app.state.replica:
                    yield

    app = FastAPI(lifespan=lifespan)

    def sync_dependency(request: Request):
        with request.app.state.sync_pool.connection() as conn:
            yield conn

    async def async_dependency(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    def user(request: Request):
        with request.app.state.sync_pool.connection() as conn:
            return conn.execute("select 'user'").fetchone()[0]

    def user_while_holding(request: Request, conn=Depends(sync_dependency)):
        with request.app.state.sync_pool.connection() as second:
            return second.execute("select 'user'").fetchone()[0]

    def second_dependency(request: Request):
        with request.app.state.sync_pool.connection() as conn:
            yield conn

    @app.get("/sync/leaky")
    def sync_leaky(request: Request, conn=Depends(sync_dependency)):
        with request.app.state.sync_pool.connection() as second:
            second.execute("select 1")

    @app.get("/sync/clean")
    def sync_clean(conn=Depends(sync_dependency)):
        conn.execute("select 1")

    @app.get("/sync-dependency-async-endpoint/leaky")
    async def mixed_leaky(request: Request, conn=Depends(sync_dependency)):
        with request.app.state.sync_pool.connection() as second:
            second.execute("select 1")

    @app.get("/async/leaky")
    async def async_leaky(request: Request, conn=Depends(async_dependency)):
        async with request.app.state.pool.connection() as second:
            await second.execute("select 1")

    @app.get("/async/clean")
    async def async_clean(conn=Depends(async_dependency)):
        await conn.execute("select 1")

    @app.get("/two-dependencies/leaky")
    def two_leaky(first=Depends(sync_dependency), second=Depends(second_dependency)):
        pass

    @app.get("/two-dependencies/clean")
    def two_clean(first=Depends(sync_dependency), second=Depends(sync_dependency)):
        assert first is second  # FastAPI's cache

    @app.get("/uncached/leaky")
    def uncached(first=Depends(sync_dependency), second=Depends(sync_dependency, use_cache=False)):
        assert first is not second

    @app.get("/dependency-of-a-dependency/leaky")
    def chain_leaky(name=Depends(user_while_holding)):
        pass

    @app.get("/one-after-the-other/clean")
    def sequence(request: Request, name=Depends(user)):
        with request.app.state.sync_pool.connection() as conn:
            conn.execute("select 1")

    @app.get("/order/leaky")
    def user_after_the_connection(conn=Depends(sync_dependency), name=Depends(user)):
        pass

    @app.get("/order/clean")
    def user_before_the_connection(name=Depends(user), conn=Depends(sync_dependency)):
        pass

    @app.get("/replica/clean")
    def replica(request: Request, conn=Depends(sync_dependency)):
        with request.app.state.replica.connection() as second:
            second.execute("select 1")

    @app.get("/threadpool/leaky")
    async def threadpool(request: Request, conn=Depends(sync_dependency)):
        await anyio.to_thread.run_sync(audit, request.app.state.sync_pool)

    @app.get("/to-thread/leaky")
    async def to_thread(request: Request, conn=Depends(sync_dependency)):
        await asyncio.to_thread(audit, request.app.state.sync_pool)

    @app.get("/gather/clean")
    async def gather(request: Request):
        async def work():
            async with request.app.state.pool.connection() as conn:
                await conn.execute("select pg_sleep(0.01)")

        await asyncio.gather(work(), work())

    @app.get("/gather-while-holding/clean")
    async def gather_while_holding(request: Request, conn=Depends(async_dependency)):
        """Debatable: the endpoint waits for them, but a task of its own need not be waited for."""

        async def work():
            async with request.app.state.pool.connection() as conn:
                await conn.execute("select 1")

        await asyncio.gather(work(), work())

    @app.get("/background/leaky")
    async def background(tasks: BackgroundTasks, request: Request, conn=Depends(async_dependency)):
        """Since FastAPI 0.118 the dependency is held while background tasks run."""

        async def work():
            async with request.app.state.pool.connection() as second:
                await second.execute("select 1")

        tasks.add_task(work)

    @app.get("/background/clean")
    async def background_clean(
        tasks: BackgroundTasks, request: Request, conn=Depends(async_dependency, scope="function")
    ):
        async def work():
            async with request.app.state.pool.connection() as second:
                await second.execute("select 1")

        tasks.add_task(work)

    @app.get("/stream/leaky")
    async def stream(request: Request, conn=Depends(async_dependency)):
        async def body():
            async with request.app.state.pool.connection() as second:
                await second.execute("select 1")
            yield "x"

        return StreamingResponse(body())

    @app.middleware("http")
    async def middleware(request: Request, call_next):
        if not request.url.path.startswith("/middleware/leaky"):
            return await call_next(request)
        async with request.app.state.pool.connection() as conn:
            await conn.execute("select 1")
            return await call_next(request)

    @app.get("/middleware/leaky")
    async def below_middleware(request: Request, conn=Depends(async_dependency)):
        """Debatable: the endpoint runs in a task of its own below BaseHTTPMiddleware, which waits for it."""
        await conn.execute("select 1")

    @app.get("/middleware/clean")
    async def below_no_middleware(conn=Depends(async_dependency)):
        await conn.execute("select 1")

    # Given back by hand.
    @app.get("/putconn/{how}")
    def putconn(how: str, request: Request):
        pool = request.app.state.sync_pool
        conn = pool.getconn()
        try:
            conn.execute(INSERT if "write" in how else "select 1")
            if "fails" in how:
                conn.execute("select 1 / 0")
            if "refused" in how:
                raise HTTPException(409)
            if how.endswith("committed"):
                conn.commit()
        finally:
            pool.putconn(conn)

    @app.get("/async-putconn/{how}")
    async def async_putconn(how: str, request: Request):
        pool = request.app.state.pool
        conn = await pool.getconn()
        try:
            await conn.execute(INSERT if "write" in how else "select 1")
            if "fails" in how:
                await conn.execute("select 1 / 0")
            if "refused" in how:
                raise HTTPException(409)
            if how.endswith("committed"):
                await conn.commit()
        finally:
            await pool.putconn(conn)

    return app


@pytest.fixture(scope="session")
def pgleak_app(dsn):
    return build(dsn)


PATHS = [
    leaky("/sync/leaky"),
    "/sync/clean",
    leaky("/sync-dependency-async-endpoint/leaky"),
    leaky("/async/leaky"),
    "/async/clean",
    leaky("/two-dependencies/leaky"),
    "/two-dependencies/clean",
    leaky("/uncached/leaky"),
    leaky("/dependency-of-a-dependency/leaky"),
    "/one-after-the-other/clean",
    leaky("/order/leaky"),
    "/order/clean",
    "/replica/clean",
    leaky("/threadpool/leaky"),
    leaky("/to-thread/leaky"),
    "/gather/clean",
    "/gather-while-holding/clean",
    leaky("/background/leaky"),
    "/background/clean",
    leaky("/stream/leaky"),
    leaky("/middleware/leaky"),
    "/middleware/clean",
    leaky("/putconn/read", "returned-in-transaction"),
    leaky("/putconn/write", "write-lost"),
    leaky("/putconn/write-fails", "returned-in-transaction"),
    leaky("/putconn/read-fails", "returned-in-transaction"),
    leaky("/putconn/write-refused", "returned-in-transaction"),
    leaky("/putconn/read-refused", "returned-in-transaction"),
    "/putconn/read-committed",
    "/putconn/write-committed",
    leaky("/async-putconn/read", "returned-in-transaction"),
    leaky("/async-putconn/write", "write-lost"),
    leaky("/async-putconn/write-fails", "returned-in-transaction"),
    leaky("/async-putconn/write-refused", "returned-in-transaction"),
    "/async-putconn/read-committed",
    "/async-putconn/write-committed",
]


@pytest.mark.parametrize("path", PATHS)
async def test_async_client(pgleak_client, path):
    with suppress(psycopg.Error):
        await pgleak_client.get(path)


@pytest.mark.parametrize("path", PATHS)
def test_sync_client(pgleak_sync_client, path):
    with suppress(psycopg.Error):
        pgleak_sync_client.get(path)


async def test_two_requests_at_once(pgleak_client):
    responses = await asyncio.gather(*(pgleak_client.get("/async/clean") for _ in range(4)))
    assert all(response.status_code == 200 for response in responses)


async def test_a_test_holds_one_while_a_request_takes_another(pgleak_client, pgleak_app):
    """The test is no part of the application: another flow of control."""
    async with pgleak_app.state.pool.connection() as conn:
        await conn.execute("select 1")
        await pgleak_client.get("/async/clean")


def test_a_test_holds_one_while_a_request_takes_another_sync(pgleak_sync_client, pgleak_app):
    with pgleak_app.state.sync_pool.connection() as conn:
        conn.execute("select 1")
        pgleak_sync_client.get("/sync/clean")


# -- returned in a transaction, without a request ---------------------------------------------------------------------


@returned
def test_returned_after_reading(pool):
    conn = pool.getconn()
    conn.execute("select 1")
    pool.putconn(conn)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_returned_after_the_transaction(pool, end):
    conn = pool.getconn()
    conn.execute("select 1")
    getattr(conn, end)()
    pool.putconn(conn)


@returned
def test_returned_after_an_error(pool):
    conn = pool.getconn()
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("select 1 / 0")
    pool.putconn(conn)


@returned
def test_returned_while_a_copy_goes_on(pool):
    conn = pool.getconn()
    copy = conn.cursor().copy("copy (select generate_series(1, 100000)) to stdout")
    rows = copy.__enter__()
    rows.read()
    pool.putconn(conn)
    with suppress(psycopg.Error):
        copy.__exit__(None, None, None)


def test_returned_in_autocommit(pool):
    conn = pool.getconn()
    conn.autocommit = True
    conn.execute("select 1")
    conn.autocommit = False
    pool.putconn(conn)


@returned
def test_returned_in_a_sql_transaction(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        conn = pool.getconn()
        conn.execute("begin")
        pool.putconn(conn)


@returned
def test_returned_with_a_server_cursor_open(pool):
    conn = pool.getconn()
    cur = conn.cursor("rows")
    cur.execute("select generate_series(1, 10)")
    pool.putconn(conn)


@returned
def test_returned_while_an_exception_goes_to_the_test(pool):
    def service():
        conn = pool.getconn()
        try:
            conn.execute(INSERT)
            raise LookupError
        finally:
            pool.putconn(conn)

    with pytest.raises(LookupError):
        service()


@returned
async def test_returned_async(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
        conn = await pool.getconn()
        await conn.execute("select 1")
        await pool.putconn(conn)


@returned
def test_closed_into_its_pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, close_returns=True) as pool:
        conn = pool.getconn()
        conn.execute("select 1")
        conn.close()


def test_with_returns_after_its_commit(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, close_returns=True) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")


@returned
def test_check_leaves_a_transaction_open(dsn):
    """A `check` that reads: the user commits it with his own, and whoever does nothing gives it back in it."""
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False, check=lambda conn: conn.execute("select 1")) as pool:
        pool.putconn(pool.getconn())


def test_closed_by_hand_in_a_transaction_and_returned(pool):
    """`close()` has ended it, and nothing was written."""
    conn = pool.getconn()
    conn.execute("select 1")
    conn.close()
    pool.putconn(conn)


def test_terminated_and_returned(pool, dsn):
    conn = pool.getconn()
    conn.execute("select 1")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")
    pool.putconn(conn)


@returned
def test_one_line_is_one_finding(pool):
    for _ in range(3):
        conn = pool.getconn()
        conn.execute("select 1")
        pool.putconn(conn)


@contextmanager
def borrowed(pool):
    conn = pool.getconn()
    try:
        yield conn
    finally:
        pool.putconn(conn)


@returned
def test_a_context_manager_of_ones_own(pool):
    with borrowed(pool) as conn:
        conn.execute("select 1")


@pytest.fixture
def borrowed_by_a_fixture(pool):
    with borrowed(pool) as conn:
        yield conn


def test_a_fixture_returns_it(borrowed_by_a_fixture):
    """It isolates the test: the pool's rollback is as good as its own."""
    borrowed_by_a_fixture.execute(INSERT)
    borrowed_by_a_fixture.rollback()


def test_in_another_context(pool):
    """A ContextVar that holds the connection does not make two checkouts of one."""
    current = contextvars.ContextVar("current")

    def get():
        return current.get()

    with pool.connection() as conn:
        current.set(conn)
        assert get() is conn
