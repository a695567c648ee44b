"""Fixtures as suites really have them: who answers, and when. `# leaks` is the line to be named."""

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


def test_getfixturevalue(request):
    request.getfixturevalue("closes").execute("select 1")
    request.getfixturevalue("closes").commit()


@pytest.fixture
def closed_by_finalizer(dsn, request):
    conn = psycopg.connect(dsn)
    request.addfinalizer(conn.close)
    return conn


def test_closed_by_finalizer(closed_by_finalizer):
    closed_by_finalizer.execute("select 1")
    closed_by_finalizer.rollback()


@pytest.fixture(params=["closes", pytest.param("forgets", marks=expect("connection-not-closed"))])
def one_of(request):
    return request.getfixturevalue(request.param)


def test_one_of(one_of):
    one_of.execute("select 1")
    one_of.commit()


# -- fixtures that hand out what the test opens, and clean up after it -------------------------------------------


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
