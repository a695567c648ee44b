"""pytest-asyncio, AnyIO and unittest: their loops, their fixtures, their set-up and tear-down."""

import asyncio
import unittest

import psycopg
import psycopg_pool
import pytest

try:
    import pytest_asyncio
except ModuleNotFoundError:  # pragma: no cover
    pytest.skip("needs pytest-asyncio", allow_module_level=True)

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []
DSN = []


@pytest.fixture(scope="session", autouse=True)
def _for_unittest(dsn):
    DSN.append(dsn)


# -- pytest-asyncio ---------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def closing(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn


@pytest_asyncio.fixture
async def forgets(dsn):
    conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
    KEPT.append(conn)
    return conn


@pytest_asyncio.fixture
async def rolling_back(dsn):
    conn = await psycopg.AsyncConnection.connect(dsn)
    yield conn
    await conn.rollback()
    await conn.close()


@pytest.mark.asyncio
async def test_asyncio_fixture(closing):
    await closing.execute("select 1")
    await closing.commit()


@expect("connection-not-closed")
@pytest.mark.asyncio
async def test_asyncio_fixture_forgets(forgets):
    pass


@pytest.mark.asyncio
async def test_asyncio_isolated(rolling_back):
    await rolling_back.execute("insert into item(name) values ('x')")


@expect("transaction-left-open")
@pytest.mark.asyncio
async def test_asyncio_not_committed(closing):
    await closing.execute("insert into item(name) values ('x')")  # leaks


@expect("connection-dropped")
@pytest.mark.asyncio
async def test_asyncio_dropped(dsn):
    await psycopg.AsyncConnection.connect(dsn)  # leaks


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_pool(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


@pytest.mark.asyncio(loop_scope="module")
class TestModuleLoop:
    async def test_first(self, module_pool):
        async with module_pool.connection() as conn:
            await conn.execute("select 1")

    async def test_grows(self, module_pool):
        async def one():
            async with module_pool.connection() as conn:
                await conn.execute("select pg_sleep(0.02)")

        await asyncio.gather(*(one() for _ in range(8)))

    @expect("connection-not-returned")
    async def test_getconn(self, module_pool):
        KEPT.append(await module_pool.getconn())  # leaks

    async def test_still_works(self, module_pool):
        async with module_pool.connection() as conn:
            await conn.execute("select 1")


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def class_conn(dsn):
    conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    yield conn
    await conn.close()


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def class_conn_forgotten(dsn):
    conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)  # leaks
    KEPT.append(conn)
    return conn


@pytest.mark.asyncio(loop_scope="class")
class TestClassLoop:
    async def test_first(self, class_conn, class_conn_forgotten):
        await class_conn.execute("select 1")

    @expect("connection-not-closed")
    async def test_last(self, class_conn, class_conn_forgotten):
        await class_conn.execute("select 1")


# -- AnyIO ------------------------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def anyio_conn(anyio_backend, dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn


@pytest.fixture
async def anyio_isolated(anyio_backend, dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn, conn.transaction(force_rollback=True):
        yield conn


@pytest.mark.anyio
async def test_anyio(anyio_conn):
    await anyio_conn.execute("select 1")
    await anyio_conn.commit()


@pytest.mark.anyio
async def test_anyio_isolated(anyio_isolated):
    await anyio_isolated.execute("insert into item(name) values ('x')")


@expect("connection-dropped")
@pytest.mark.anyio
async def test_anyio_dropped(dsn):
    await psycopg.AsyncConnection.connect(dsn)  # leaks


@expect("transaction-left-open")
@pytest.mark.anyio
async def test_anyio_not_committed(anyio_conn):
    await anyio_conn.execute("insert into item(name) values ('x')")  # leaks


# -- unittest ---------------------------------------------------------------------------------------------------


class TestUnittest(unittest.TestCase):
    def setUp(self):
        self.conn = psycopg.connect(DSN[0])

    def tearDown(self):
        self.conn.close()

    def test_clean(self):
        self.conn.execute("select 1")


class TestUnittestCleanup(unittest.TestCase):
    def setUp(self):
        self.conn = psycopg.connect(DSN[0])
        self.addCleanup(self.conn.close)

    def test_clean(self):
        self.conn.execute("select 1")


class TestUnittestForgets(unittest.TestCase):
    def setUp(self):
        self.conn = psycopg.connect(DSN[0])  # leaks
        KEPT.append(self.conn)

    @expect("connection-not-closed")
    def test_leak(self):
        self.conn.execute("select 1")


class TestUnittestClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pool = psycopg_pool.ConnectionPool(DSN[0], min_size=1, open=True)

    @classmethod
    def tearDownClass(cls):
        cls.pool.close()

    def test_clean(self):
        with self.pool.connection() as conn:
            conn.execute("select 1")

    @expect("connection-not-returned")
    def test_getconn(self):
        KEPT.append(self.pool.getconn())  # leaks


class TestUnittestClassForgets(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.conn = psycopg.connect(DSN[0], autocommit=True)  # leaks

    @expect("connection-not-closed")
    def test_leak(self):
        self.conn.execute("select 1")


class TestIsolatedAsyncio(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.conn = await psycopg.AsyncConnection.connect(DSN[0])

    async def asyncTearDown(self):
        await self.conn.close()

    async def test_clean(self):
        await self.conn.execute("select 1")


class TestIsolatedAsyncioCleanup(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.pool = await self.enterAsyncContext(psycopg_pool.AsyncConnectionPool(DSN[0], min_size=1, open=False))

    async def test_clean(self):
        async with self.pool.connection() as conn:
            await conn.execute("select 1")

    @expect("connection-not-returned")
    async def test_getconn(self):
        KEPT.append(await self.pool.getconn())  # leaks


class TestIsolatedAsyncioForgets(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.conn = await psycopg.AsyncConnection.connect(DSN[0])  # leaks
        KEPT.append(self.conn)

    @expect("connection-not-closed")
    async def test_leak(self):
        await self.conn.execute("select 1")


class TestXunit:
    @classmethod
    def setup_class(cls):
        cls.conn = psycopg.connect(DSN[0], autocommit=True)

    @classmethod
    def teardown_class(cls):
        cls.conn.close()

    def setup_method(self):
        self.own = psycopg.connect(DSN[0])

    def teardown_method(self):
        self.own.close()

    def test_clean(self):
        self.conn.execute("select 1")


class TestXunitForgets:
    def setup_method(self):
        self.own = psycopg.connect(DSN[0])  # leaks
        KEPT.append(self.own)

    @expect("connection-not-closed")
    def test_leak(self):
        pass
