"""Who answers: fixtures of every scope, their teardown, and transactions on what they own."""

import psycopg
import psycopg_pool
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect


@pytest.fixture
def closing(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


@pytest.fixture
def forgets(dsn):
    yield psycopg.connect(dsn)


@pytest.fixture
def returns(dsn):
    return psycopg.connect(dsn)


KEPT = []


@pytest.fixture
def keeps(dsn):
    KEPT.append(psycopg.connect(dsn))
    yield KEPT[-1]


def test_fixture_closes(closing):
    closing.execute("select 1")
    closing.commit()


# pytest itself still holds the value: open, not dropped.
@expect("connection-not-closed")
def test_fixture_forgets(forgets):
    pass


# pytest itself still holds the value: open, not dropped.
@expect("connection-not-closed")
def test_fixture_returns(returns):
    pass


@expect("connection-not-closed")
def test_fixture_keeps(keeps):
    pass


@expect("transaction-left-open")
def test_no_commit_on_fixture_connection(closing):
    closing.execute("insert into item(name) values ('x')")


@pytest.fixture
def rolling_back(dsn):
    conn = psycopg.connect(dsn)
    yield conn
    conn.rollback()
    conn.close()


def test_isolated_by_rollback(rolling_back):
    rolling_back.execute("insert into item(name) values ('x')")


@pytest.fixture
def outer_transaction(dsn):
    with psycopg.connect(dsn) as conn, conn.transaction(force_rollback=True):
        yield conn


def test_isolated_by_outer_transaction(outer_transaction):
    outer_transaction.execute("insert into item(name) values ('x')")


@pytest.fixture(scope="session")
def session_connection(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


@pytest.fixture
def rolled_back_by_another_fixture(session_connection):
    yield session_connection
    session_connection.rollback()


def test_session_connection_rolled_back(rolled_back_by_another_fixture):
    rolled_back_by_another_fixture.execute("insert into item(name) values ('x')")


@expect("transaction-left-open")
def test_session_connection_not_committed(session_connection):
    session_connection.execute("insert into item(name) values ('x')")


def test_session_connection_after_it(session_connection):
    session_connection.execute("select 1")
    session_connection.commit()


@expect("transaction-left-open")
def test_session_connection_aborted(session_connection):
    with pytest.raises(psycopg.Error):
        session_connection.execute("select 1/0")


def test_session_connection_committed(session_connection):
    session_connection.commit()
    with session_connection.transaction():
        session_connection.execute("select 1")


@pytest.fixture
def opens_in_teardown(dsn):
    yield
    with psycopg.connect(dsn) as conn:
        conn.execute("select 1")


def test_teardown_opens_and_closes(opens_in_teardown):
    pass


@pytest.fixture
def leaks_in_teardown(dsn):
    yield
    psycopg.connect(dsn).execute("select 1")


@expect("connection-dropped")
def test_teardown_leaks(leaks_in_teardown):
    pass


@pytest.fixture
def pool_fixture_forgets(dsn):
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)
    KEPT.append(pool)
    yield pool


@expect("pool-not-closed")
def test_pool_fixture_forgets(pool_fixture_forgets):
    with pool_fixture_forgets.connection() as conn:
        conn.execute("select 1")


@pytest.fixture
def checkout(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=False) as pool, pool.connection() as conn:
        yield conn


def test_checkout_held_by_fixture(checkout):
    checkout.execute("select 1")
    checkout.commit()


@pytest.fixture
def drops_the_database(dsn, pgleak_postgres):
    with psycopg.connect(pgleak_postgres.dsn, autocommit=True) as admin:
        admin.execute("create database dropped_in_teardown")
        yield psycopg.conninfo.make_conninfo(dsn, dbname="dropped_in_teardown")
        admin.execute("drop database dropped_in_teardown with (force)")


@expect("connection-not-closed")
def test_evidence_destroyed_by_a_fixture(drops_the_database):
    KEPT.append(psycopg.connect(drops_the_database))


def test_database_dropped_cleanly(drops_the_database):
    with psycopg.connect(drops_the_database) as conn:
        conn.execute("select 1")


@pytest.fixture
async def async_fixture(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn


@pytest.fixture
async def async_fixture_keeps(dsn):
    KEPT.append(await psycopg.AsyncConnection.connect(dsn))
    yield KEPT[-1]


async def test_async_fixture(async_fixture):
    await async_fixture.execute("select 1")
    await async_fixture.commit()


@expect("connection-not-closed")
async def test_async_fixture_keeps(async_fixture_keeps):
    await async_fixture_keeps.execute("select 1")
    await async_fixture_keeps.commit()


@pytest.fixture(scope="module")
def parametrized(dsn, request):
    conn = psycopg.connect(dsn)
    yield conn
    if request.param == "closes":
        conn.close()
    else:
        KEPT.append(conn)


def pytest_generate_tests(metafunc):
    if metafunc.function.__name__ == "test_parametrized_module_fixture":
        # What [forgets] leaves comes to light in the set-up of [closes], and is told at that test's teardown.
        closes = pytest.param("closes", marks=expect("connection-not-closed"))
        metafunc.parametrize("parametrized", ["forgets", closes], indirect=True, scope="module")


def test_parametrized_module_fixture(parametrized):
    parametrized.execute("select 1")
    parametrized.commit()


def test_only_read_on_fixture_connection(closing):
    closing.execute("select 1")


@expect("connection-not-closed")
def test_only_read_on_forgotten_connection(forgets):
    forgets.execute("select 1")


@expect("transaction-left-open")
def test_only_read_on_session_connection(session_connection):
    session_connection.execute("select 1")
