"""Fixtures as suites really have them: who answers, and when. `# leaks` is the line to be named."""

import contextlib
import threading

import psycopg
import psycopg_pool
import pytest

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []


# -- scopes: judged when the scope ends, which is in the teardown of its last test --------------------------------


class TestClassScope:
    @pytest.fixture(scope="class")
    def conn(self, dsn):
        with psycopg.connect(dsn, autocommit=True) as conn:
            yield conn

    def test_first(self, conn):
        conn.execute("select 1")

    def test_last(self, conn):
        conn.execute("select 1")


class TestClassScopeForgets:
    @pytest.fixture(scope="class")
    def conn(self, dsn):
        conn = psycopg.connect(dsn, autocommit=True)  # leaks
        KEPT.append(conn)
        return conn

    def test_first(self, conn):
        conn.execute("select 1")

    @expect("connection-not-closed")
    def test_last(self, conn):
        conn.execute("select 1")


class TestClassScopePoolForgets:
    @pytest.fixture(scope="class", autouse=True)
    def pool(self, dsn, request):
        request.cls.pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)  # leaks

    def test_first(self):
        with self.pool.connection() as conn:
            conn.execute("select 1")

    @expect("pool-not-closed")
    def test_last(self):
        with self.pool.connection() as conn:
            conn.execute("select 1")


# -- how fixtures are asked for ---------------------------------------------------------------------------------


@pytest.fixture
def forgets(dsn):
    KEPT.append(psycopg.connect(dsn))  # leaks
    yield KEPT[-1]


@pytest.fixture
def closes(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


@expect("connection-not-closed")
@pytest.mark.usefixtures("forgets")
def test_usefixtures_leak():
    pass


@pytest.mark.usefixtures("closes")
def test_usefixtures():
    pass


@expect("connection-not-closed")
def test_getfixturevalue_leak(request):
    request.getfixturevalue("forgets")


def test_getfixturevalue(request):
    request.getfixturevalue("closes").execute("select 1")
    request.getfixturevalue("closes").commit()


@pytest.fixture
def asks_for_another(request):
    return request.getfixturevalue("forgets")


@expect("connection-not-closed")
def test_fixture_asks_for_another(asks_for_another):
    pass


@pytest.fixture
def closed_by_finalizer(dsn, request):
    conn = psycopg.connect(dsn)
    request.addfinalizer(conn.close)
    return conn


def test_closed_by_finalizer(closed_by_finalizer):
    closed_by_finalizer.execute("select 1")
    closed_by_finalizer.rollback()


@pytest.fixture(params=["closes", "forgets"])
def one_of(request):
    return request.getfixturevalue(request.param)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.name == "test_one_of[forgets]":
            item.add_marker(expect("connection-not-closed"))


def test_one_of(one_of):
    one_of.execute("select 1")
    one_of.commit()


# -- fixtures that hand out what the test opens, and clean up after it -------------------------------------------


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


@pytest.fixture
def leaky_connect(dsn):
    opened = []

    def connect():
        opened.append(psycopg.connect(dsn))  # leaks
        return opened[-1]

    KEPT.append(opened)
    return connect


@expect("connection-not-closed")
def test_leaky_factory(leaky_connect):
    leaky_connect()


# -- isolation by an outer transaction ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_conn(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


@pytest.fixture
def sql_begin_rollback(dsn):
    conn = psycopg.connect(dsn, autocommit=True)
    conn.execute("BEGIN")
    yield conn
    conn.execute("ROLLBACK")
    conn.close()


def test_isolated_by_sql(sql_begin_rollback):
    sql_begin_rollback.execute("insert into item(name) values ('x')")


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


@pytest.fixture
def savepoint(module_conn):
    module_conn.execute("savepoint_please" if False else "select 1")
    module_conn.execute("SAVEPOINT before_test")
    yield module_conn
    module_conn.execute("ROLLBACK TO SAVEPOINT before_test")
    module_conn.rollback()


def test_isolated_by_savepoint(savepoint):
    savepoint.execute("insert into item(name) values ('x')")


@pytest.fixture(autouse=False)
def raises_rollback(module_conn):
    with module_conn.transaction() as tx:
        yield module_conn
        raise psycopg.Rollback(tx)


def test_isolated_by_raise_rollback(raises_rollback):
    raises_rollback.execute("insert into item(name) values ('x')")


@pytest.fixture
def finalizer_rolls_back(module_conn, request):
    request.addfinalizer(module_conn.rollback)
    return module_conn


def test_isolated_by_finalizer(finalizer_rolls_back):
    finalizer_rolls_back.execute("insert into item(name) values ('x')")


@pytest.fixture
def truncates(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn
        conn.execute("delete from item")


def test_autocommit_and_truncate(truncates):
    truncates.execute("insert into item(name) values ('x')")


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


class TestAutouseIsolationInAClass:
    @pytest.fixture(scope="class")
    def conn(self, dsn):
        with psycopg.connect(dsn) as conn:
            yield conn

    @pytest.fixture(autouse=True)
    def isolate(self, conn):
        yield
        conn.rollback()

    def test_first(self, conn):
        conn.execute("insert into item(name) values ('x')")

    def test_second(self, conn):
        conn.execute("insert into item(name) values ('x')")


@expect("transaction-left-open")
def test_not_isolated(module_conn):
    module_conn.execute("insert into item(name) values ('x')")  # leaks


def test_after_not_isolated(module_conn):
    module_conn.rollback()


# -- a database per test ----------------------------------------------------------------------------------------


@pytest.fixture
def database_per_test(dsn, pgleak_postgres):
    with psycopg.connect(pgleak_postgres.dsn, autocommit=True) as admin:
        admin.execute("create database reports_per_test")
        yield psycopg.conninfo.make_conninfo(dsn, dbname="reports_per_test")
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'reports_per_test'"
            " and pid <> pg_backend_pid()"
        )
        admin.execute("drop database reports_per_test with (force)")


@pytest.fixture
def conn_per_test(database_per_test):
    with psycopg.connect(database_per_test, autocommit=True) as conn:
        yield conn


@pytest.fixture
def pool_per_test(database_per_test):
    with psycopg_pool.ConnectionPool(database_per_test, min_size=2, open=True) as pool:
        yield pool


def test_database_per_test(conn_per_test, pool_per_test):
    conn_per_test.execute("create table t (a int)")
    with pool_per_test.connection() as conn:
        conn.execute("insert into t values (1)")


@expect("connection-not-returned")
def test_checkout_in_a_database_per_test(pool_per_test):
    KEPT.append(pool_per_test.getconn())  # leaks


@pytest.fixture
def pool_outlives_database(database_per_test):
    pool = psycopg_pool.ConnectionPool(database_per_test, min_size=1, open=True)  # leaks
    KEPT.append(pool)
    pool.wait()
    return pool


@expect("pool-not-closed")
def test_pool_outlives_database(pool_outlives_database):
    pass


# -- workers that a fixture starts ------------------------------------------------------------------------------


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


@pytest.fixture
def listener_in_setup(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("listen reports")
        yield conn


def test_notifies(listener_in_setup, dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("notify reports")
    assert len(list(listener_in_setup.notifies(timeout=1, stop_after=1))) == 1


def test_notifies_generator_left_early(listener_in_setup, dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("notify reports")
        conn.execute("notify reports")
    for _ in listener_in_setup.notifies(timeout=1):
        break


# -- fixtures that fail -----------------------------------------------------------------------------------------


@pytest.fixture
def replaced(dsn):
    conn = psycopg.connect(dsn)  # leaks
    conn = psycopg.connect(dsn)
    yield conn
    conn.close()


@expect("connection-dropped")
def test_fixture_replaces_its_connection(replaced):
    pass


@pytest.fixture
def closes_in_setup(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute("select 1")


def test_fixture_uses_in_setup_only(closes_in_setup):
    pass


@pytest.fixture
def nested_checkout(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
    conn = pool.getconn()  # leaks
    KEPT.append(conn)
    yield conn
    pool.close()


@expect("connection-not-returned")
def test_fixture_closes_pool_with_a_checkout_out(nested_checkout):
    nested_checkout.execute("select 1")
    nested_checkout.commit()


@pytest.fixture
def leaks_in_finalizer(dsn, request):
    def leak():
        psycopg.connect(dsn).execute("select 1")  # leaks

    request.addfinalizer(leak)


@expect("connection-dropped")
def test_leak_in_finalizer(leaks_in_finalizer):
    pass


def setup_module(module):
    module.XUNIT = {}


def teardown_module(module):
    for conn in module.XUNIT.values():
        conn.close()


def test_module_state_closed_by_teardown_module(dsn):
    XUNIT["conn"] = psycopg.connect(dsn, autocommit=True)  # noqa: F821 - made by setup_module
