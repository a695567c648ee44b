"""Who is going to close it: fixtures, finalizers, lifespans, threads and tasks that the test did not make itself."""

import asyncio
import contextlib
import threading
import time

import psycopg
import psycopg_pool
import pytest
import pytest_asyncio
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []


@pytest.fixture(scope="module")
def module_conn(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


@pytest.fixture
def forgets(dsn):
    KEPT.append(psycopg.connect(dsn))  # leaks
    yield KEPT[-1]


# -- fixtures that are asked for by getfixturevalue, and fixtures of a set-up that fails ----------------------------


@pytest.fixture
def fails_holding(dsn):
    KEPT.append(psycopg.connect(dsn))  # leaks
    raise RuntimeError("the set-up's own error")


@expect("connection-not-closed")
def test_setup_fails_holding(fails_holding):
    pass


@pytest.fixture
def fails_after_another(forgets):
    raise RuntimeError("the set-up's own error")


@expect("connection-not-closed")
def test_setup_fails_after_another(fails_after_another):
    pass


@expect("connection-not-closed")
def test_getfixturevalue_leak(request):
    request.getfixturevalue("forgets")


@pytest.fixture
def asks_for_another(request):
    return request.getfixturevalue("forgets")


@expect("connection-not-closed")
def test_fixture_asks_for_another(asks_for_another):
    pass


@pytest.fixture
def connect(dsn):
    """A factory: opens during the test, closes afterwards."""
    opened = []

    def connect():
        opened.append(psycopg.connect(dsn))
        return opened[-1]

    yield connect
    for conn in opened:
        conn.close()


def test_factory(connect):
    connect().execute("select 1")
    connect().execute("select 1")


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


def test_exit_stack_fixture(stack, dsn):
    stack.enter_context(psycopg.connect(dsn)).execute("select 1")


def test_finalizer_of_the_test(request, dsn):
    conn = psycopg.connect(dsn)
    request.addfinalizer(conn.close)
    conn.execute("select 1")


class LazyDatabase:
    def __init__(self, dsn):
        self.dsn = dsn
        self._conn = None

    @property
    def conn(self):
        if self._conn is None:
            self._conn = psycopg.connect(self.dsn, autocommit=True)
        return self._conn

    def close(self):
        if self._conn is not None:
            self._conn.close()


@pytest.fixture
def lazy(dsn):
    database = LazyDatabase(dsn)
    yield database
    database.close()


def test_lazy(lazy):
    lazy.conn.execute("select 1")


@pytest.fixture(scope="module")
def lazy_module(dsn):
    database = LazyDatabase(dsn)
    yield database
    database.close()


def test_lazy_module_first(lazy_module):
    lazy_module.conn.execute("select 1")


def test_lazy_module_second(lazy_module):
    lazy_module.conn.execute("select 1")


@pytest.fixture
def lazy_pool(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=False)
    yield pool
    pool.close()


def test_pool_opened_by_the_test_closed_by_its_fixture(lazy_pool):
    lazy_pool.open()
    with lazy_pool.connection() as conn:
        conn.execute("select 1")


@pytest.fixture(scope="module")
def used_pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=3, open=True) as pool:
        with pool.connection() as conn:  # a variable that still names it when the test takes it again
            conn.execute("select 1")
        yield pool


def test_pool_that_its_fixture_has_used(used_pool):
    with used_pool.connection() as conn:
        conn.execute("select 1")


@pytest.fixture
def checkout(used_pool):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(used_pool.connection())


def test_checkout_of_an_exit_stack(checkout):
    checkout().execute("select 1")


@pytest.fixture
def taken(used_pool):
    taken = []
    yield taken
    for conn in taken:
        conn.rollback()
        used_pool.putconn(conn)


def test_checkout_in_a_list(used_pool, taken):
    taken.append(used_pool.getconn())


@expect("connection-not-returned")
def test_pool_that_its_fixture_has_used_before_a_leak(used_pool):
    used_pool.getconn()


@pytest.fixture
def sql_rollback_only(dsn):
    conn = psycopg.connect(dsn)
    yield conn
    conn.execute("ROLLBACK")
    conn.close()


def test_isolated_by_sql_rollback_only(sql_rollback_only):
    sql_rollback_only.execute("insert into item(name) values ('x')")


@contextlib.contextmanager
def rolled_back(conn):
    try:
        yield conn
    finally:
        conn.rollback()


@pytest.fixture
def isolated_by_helper(module_conn):
    with rolled_back(module_conn) as conn:
        yield conn


def test_isolated_by_helper(isolated_by_helper):
    isolated_by_helper.execute("insert into item(name) values ('x')")


class Sandbox:
    def __init__(self, conn):
        self.conn = conn

    def __enter__(self):
        return self.conn

    def __exit__(self, *_):
        self.conn.rollback()


@pytest.fixture
def sandboxed(module_conn):
    with Sandbox(module_conn) as conn:
        yield conn


def test_isolated_by_class(sandboxed):
    sandboxed.execute("insert into item(name) values ('x')")


class TestXunitStyle:
    def setup_method(self):
        self.conn = None

    def teardown_method(self):
        if self.conn is not None:
            self.conn.rollback()
            self.conn.close()

    @pytest.fixture(autouse=True)
    def connected(self, dsn):
        self.conn = psycopg.connect(dsn)

    def test_isolated(self):
        self.conn.execute("insert into item(name) values ('x')")


@pytest.fixture
def listener(dsn):
    """A thread that opens its own connection whenever the operating system lets it."""
    stop = threading.Event()
    go = threading.Event()

    def listen():
        go.wait()
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("listen reports")
            KEPT.append(conn.info.backend_pid)
            stop.wait()

    thread = threading.Thread(target=listen)
    thread.start()
    yield go
    stop.set()
    thread.join()


def test_listener_thread_of_a_fixture(listener, dsn):
    before = len(KEPT)
    listener.set()
    while len(KEPT) == before:
        pass


def setup_module(module):
    module.XUNIT = {}


def teardown_module(module):
    for conn in module.XUNIT.values():
        conn.close()


def test_module_state_closed_by_teardown_module(dsn):
    XUNIT["conn"] = psycopg.connect(dsn, autocommit=True)  # noqa: F821 - made by setup_module


class TestRolledBackWithTheClass:
    @pytest.fixture(scope="class")
    def conn(self, dsn):
        conn = psycopg.connect(dsn)
        yield conn
        conn.rollback()
        conn.close()

    def test_first(self, conn):
        conn.execute("insert into item(name) values ('x')")

    def test_last(self, conn):
        conn.execute("select 1")


# -- asynchronous: workers and factories of fixtures --------------------------------------------------------------


@pytest_asyncio.fixture
async def worker(dsn):
    """A task of the fixture's, that connects when the loop lets it: during the test."""
    stop = asyncio.Event()

    async def work():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("listen reports")
            await stop.wait()

    task = asyncio.create_task(work())
    yield task
    stop.set()
    await task


@pytest.mark.asyncio
async def test_worker_of_a_fixture(worker):
    await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def async_connect(dsn):
    opened = []

    async def connect():
        opened.append(await psycopg.AsyncConnection.connect(dsn))
        return opened[-1]

    yield connect
    for conn in opened:
        await conn.close()


@pytest.mark.asyncio
async def test_async_factory(async_connect):
    await (await async_connect()).execute("select 1")


# -- applications whose own tasks, threads and lazily opened pools are at work while a test ends ---------------------


def lifespans(dsn):
    @contextlib.asynccontextmanager
    async def poller_clean(app):
        """A queue worker: in a transaction most of the time."""
        stop = asyncio.Event()

        async def poll():
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                while not stop.is_set():
                    async with conn.transaction():
                        await conn.execute("select id from item for update skip locked limit 1")
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(stop.wait(), 30)

        task = asyncio.create_task(poll())
        yield
        stop.set()
        await task

    @contextlib.asynccontextmanager
    async def pooled_poller_clean(app):
        stop = asyncio.Event()

        async def poll(pool):
            while not stop.is_set():
                async with pool.connection() as conn:
                    await conn.execute("select id from item for update skip locked limit 1")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), 30)

        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as app.state.pool:
            task = asyncio.create_task(poll(app.state.pool))
            yield
            stop.set()
            await task

    @contextlib.asynccontextmanager
    async def ticking_clean(app):
        async def tick():
            while True:
                async with await psycopg.AsyncConnection.connect(dsn) as conn:
                    await conn.execute("select 1")
                    await asyncio.sleep(2)

        task = asyncio.create_task(tick())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    @contextlib.asynccontextmanager
    async def thread_clean(app):
        stop = threading.Event()

        def work():
            time.sleep(0.02)
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("listen reports")
                stop.wait()

        thread = threading.Thread(target=work)
        thread.start()
        yield
        stop.set()
        await asyncio.to_thread(thread.join)

    @contextlib.asynccontextmanager
    async def lazy_pool_clean(app):
        """Made at start-up, opened by whoever comes first, closed at shutdown."""

        class Lazy:
            pool = None

            @contextlib.asynccontextmanager
            async def connection(self):
                if self.pool is None:
                    self.pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False)
                    await self.pool.open()
                async with self.pool.connection() as conn:
                    yield conn

        app.state.pool = Lazy()
        yield
        if app.state.pool.pool is not None:
            await app.state.pool.pool.close()

    @contextlib.asynccontextmanager
    async def shared_connection_clean(app):
        """A request has used the connection and committed; later the application itself begins a transaction."""
        stop = asyncio.Event()

        async def work(conn):
            await app.state.go.wait()
            async with conn.transaction():
                await conn.execute("select 1")
                await stop.wait()

        async with await psycopg.AsyncConnection.connect(dsn) as app.state.conn:
            app.state.go = asyncio.Event()
            task = asyncio.create_task(work(app.state.conn))
            yield
            stop.set()
            await task

    return locals()


@pytest.fixture
def pgleak_app(dsn, name):
    app = FastAPI(lifespan=lifespans(dsn)[name])

    @app.get("/")
    async def root(request: Request):
        if (pool := getattr(request.app.state, "pool", None)) is not None:
            async with pool.connection() as conn:
                await conn.execute("select 1")
        if (conn := getattr(request.app.state, "conn", None)) is not None:
            async with conn.transaction():
                await conn.execute("select 1")
            request.app.state.go.set()
            await asyncio.sleep(0.05)

    return app


CASES = [
    "poller_clean",
    "pooled_poller_clean",
    "ticking_clean",
    "thread_clean",
    "lazy_pool_clean",
    "shared_connection_clean",
]


@pytest.mark.parametrize("name", CASES)
async def test_async_client(pgleak_client, name):
    await asyncio.sleep(0.05)
    assert (await pgleak_client.get("/")).status_code == 200


@pytest.fixture
def client(pgleak_app):
    with TestClient(pgleak_app) as client:
        yield client


@pytest.mark.parametrize("name", CASES)
def test_own_fixture(client, name):
    time.sleep(0.05)
    assert client.get("/").status_code == 200


# -- the wrong test: what an earlier one set off ----------------------------------------------------------------------


def test_leaves_a_thread(dsn):
    def late():
        time.sleep(0.15)
        KEPT.append(psycopg.connect(dsn))

    threading.Thread(target=late).start()


def test_next_to_it(dsn):
    time.sleep(0.3)
    psycopg.connect(dsn).close()


# -- the driver must not notice the plugin ----------------------------------------------------------------------------


def test_connection_object_on_a_finished_socket(dsn):
    pgconn = psycopg.pq.PGconn.connect(dsn.encode())
    pgconn.finish()
    assert psycopg.Connection(pgconn).closed
