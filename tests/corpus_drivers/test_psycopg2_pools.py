"""psycopg2: pools."""

import contextlib
import gc
import threading

import psycopg2
import psycopg2.extras
import psycopg2.pool
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []
INSERT = "insert into item(name) values ('a')"
POOLS = [psycopg2.pool.SimpleConnectionPool, psycopg2.pool.ThreadedConnectionPool]


@pytest.fixture(params=POOLS, ids=lambda pool: pool.__name__)
def kind(request):
    return request.param


@pytest.fixture
def pool(dsn, kind):
    pool = kind(1, 4, dsn)
    yield pool
    pool.closeall()


@contextlib.contextmanager
def taken(pool):
    conn = pool.getconn()
    try:
        with conn:
            yield conn
    finally:
        pool.putconn(conn)


def test_closed(dsn, kind):
    kind(2, 4, dsn).closeall()


@expect("pool-not-closed")
def test_kept(dsn, kind):
    KEPT.append(kind(2, 4, dsn))


@expect("pool-not-closed")
def test_kept_without_a_connection_in_it(dsn, kind):
    KEPT.append(kind(0, 4, dsn))


@expect("pool-not-closed")
def test_dropped(dsn, kind):
    pool = kind(1, 4, dsn)
    pool.putconn(pool.getconn())
    del pool
    gc.collect()


def test_could_not_be_opened(dsn, kind):
    with pytest.raises(psycopg2.OperationalError):
        kind(1, 4, dsn, user="nobody_knows_this_role")


def test_put_back(pool):
    with taken(pool) as conn:
        conn.cursor().execute(INSERT)


def test_put_back_without_a_statement(pool):
    pool.putconn(pool.getconn())


def test_put_back_to_be_closed(pool):
    conn = pool.getconn()
    pool.putconn(conn, close=True)


def test_put_back_by_keyword(pool):
    conn = pool.getconn(key="mine")
    assert pool.getconn(key="mine") is conn
    pool.putconn(conn=conn, key="mine")


@expect("connection-not-returned")
def test_taken_and_kept(pool):
    KEPT.append(pool.getconn())


@expect("connection-not-returned")
def test_taken_and_dropped(pool):
    # The pool keeps it.
    pool.getconn().cursor().execute("select 1")


@expect("connection-not-returned")
def test_with_does_not_put_back(pool):
    with pool.getconn() as conn:
        conn.cursor().execute(INSERT)


@expect("connection-not-returned")
def test_closed_instead(pool):
    pool.getconn().close()


def test_closed_and_put_back(pool):
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)


def test_pool_closed_with_a_connection_out(dsn, kind):
    # It closes that one, too.
    pool = kind(1, 4, dsn)
    pool.getconn()
    pool.closeall()


@expect("write-lost")
def test_pool_closed_with_a_write_out(dsn, kind):
    pool = kind(1, 4, dsn)
    pool.getconn().cursor().execute(INSERT)
    pool.closeall()


def test_put_back_to_a_closed_pool(dsn, kind):
    pool = kind(1, 4, dsn)
    conn = pool.getconn()
    pool.closeall()
    with pytest.raises(psycopg2.pool.PoolError):
        pool.putconn(conn)


def test_a_foreign_connection(dsn, pool):
    with contextlib.closing(psycopg2.connect(dsn)) as conn, pytest.raises(psycopg2.pool.PoolError):
        pool.putconn(conn)


@expect("connection-not-returned")
def test_put_back_to_the_wrong_pool(dsn, pool):
    other = psycopg2.pool.SimpleConnectionPool(1, 2, dsn)
    with pytest.raises(psycopg2.pool.PoolError):
        other.putconn(pool.getconn())
    other.closeall()


def test_wrong_calls(pool):
    with pytest.raises((TypeError, psycopg2.pool.PoolError)):
        pool.putconn()
    with pytest.raises(TypeError):
        pool.closeall(1)


@expect("nested-checkout")
def test_exhausted(dsn, kind):
    pool = kind(1, 2, dsn)
    conns = [pool.getconn(), pool.getconn()]
    with pytest.raises(psycopg2.pool.PoolError, match="exhausted"):
        pool.getconn()
    for conn in conns:
        pool.putconn(conn)
    pool.closeall()


@expect("nested-checkout")
def test_nested(pool):
    with taken(pool), taken(pool):
        pass


@expect("write-lost")
def test_lost(pool):
    conn = pool.getconn()
    conn.cursor().execute(INSERT)
    pool.putconn(conn)


@expect("write-lost")
def test_lost_where_it_is_closed(pool):
    conn = pool.getconn()
    conn.cursor().execute(INSERT)
    pool.putconn(conn, close=True)


@expect("returned-in-transaction")
def test_returned_in_a_transaction(pool):
    conn = pool.getconn()
    conn.cursor().execute("select 1")
    pool.putconn(conn)


@expect("returned-in-transaction")
def test_returned_failed(pool):
    conn = pool.getconn()
    with contextlib.suppress(psycopg2.errors.DivisionByZero):
        conn.cursor().execute("select 1/0")
    pool.putconn(conn)


def test_more_than_it_keeps(pool):
    for _ in range(3):
        with taken(pool) as conn:
            conn.cursor().execute(INSERT)


def test_threads(dsn):
    pool = psycopg2.pool.ThreadedConnectionPool(1, 8, dsn)

    def work():
        for _ in range(5):
            with taken(pool) as conn:
                conn.cursor().execute(INSERT)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.closeall()


@expect("connection-not-returned")
def test_taken_in_a_thread(dsn, pool):
    thread = threading.Thread(target=pool.getconn)
    thread.start()
    thread.join()


class WaitingPool(psycopg2.pool.ThreadedConnectionPool):
    """As people make it."""

    def __init__(self, minconn, maxconn, *args, **kwargs):
        self._semaphore = threading.Semaphore(maxconn)
        super().__init__(minconn, maxconn, *args, **kwargs)

    def getconn(self, *args, **kwargs):
        self._semaphore.acquire()
        return super().getconn(*args, **kwargs)

    def putconn(self, *args, **kwargs):
        super().putconn(*args, **kwargs)
        self._semaphore.release()


class OwnPool(psycopg2.pool.AbstractConnectionPool):
    """On top of the abstract one."""

    @contextlib.contextmanager
    def connection(self):
        conn = self._getconn()
        try:
            with conn:
                yield conn
        finally:
            self._putconn(conn)

    def close(self):
        self._closeall()


def test_a_pool_of_ones_own(dsn):
    pool = WaitingPool(1, 2, dsn)
    with taken(pool) as conn:
        conn.cursor().execute(INSERT)
    pool.closeall()


@expect("connection-not-returned")
def test_a_pool_of_ones_own_leaks(dsn):
    pool = WaitingPool(1, 2, dsn)
    KEPT.append((pool, pool.getconn()))


test_a_pool_of_ones_own_leaks = expect("pool-not-closed")(test_a_pool_of_ones_own_leaks)


def test_a_pool_on_top_of_the_abstract_one(dsn):
    pool = OwnPool(1, 2, dsn)
    with pool.connection() as conn:
        conn.cursor().execute(INSERT)
    pool.close()


@expect("pool-not-closed")
def test_a_pool_on_top_of_the_abstract_one_leaks(dsn):
    pool = OwnPool(1, 2, dsn)
    with pool.connection() as conn:
        conn.cursor().execute(INSERT)
    KEPT.append(pool)


@expect("write-lost")
def test_factories(dsn):
    pool = psycopg2.pool.SimpleConnectionPool(
        1, 2, dsn, connection_factory=psycopg2.extras.RealDictConnection, cursor_factory=psycopg2.extras.DictCursor
    )
    conn = pool.getconn()
    assert type(conn) is psycopg2.extras.RealDictConnection
    conn.cursor().execute(INSERT)
    pool.putconn(conn)
    pool.closeall()


@pytest.fixture(scope="session")
def session_pool(dsn):
    pool = psycopg2.pool.ThreadedConnectionPool(1, 2, dsn)
    yield pool
    pool.closeall()


@expect("connection-not-returned")
def test_the_sessions_pool(session_pool):
    session_pool.getconn()


@expect("connection-not-returned")
def test_the_sessions_pool_again(session_pool):
    session_pool.getconn()


def test_its_slots_are_free_again(session_pool):
    for _ in range(3):
        with taken(session_pool) as conn:
            conn.cursor().execute(INSERT)


@expect("connection-not-returned")
def test_the_sessions_pool_and_three_times(session_pool):
    session_pool.getconn()


def test_its_slots_are_still_there(session_pool):
    with taken(session_pool) as first:
        first.cursor().execute(INSERT)


@pytest.fixture
def leaking_pool(dsn):
    pool = psycopg2.pool.SimpleConnectionPool(1, 2, dsn)
    KEPT.append(pool)
    yield pool


@expect("pool-not-closed")
def test_a_fixtures_pool_not_closed(leaking_pool):
    with taken(leaking_pool) as conn:
        conn.cursor().execute(INSERT)


@expect("too-many-connections")
@pytest.mark.pgleak(max_connections=2)
def test_more_than_two(dsn):
    pool = psycopg2.pool.SimpleConnectionPool(3, 4, dsn)
    pool.closeall()


@pytest.mark.pgleak(max_connections=2)
def test_two(dsn):
    pool = psycopg2.pool.SimpleConnectionPool(1, 4, dsn)
    with taken(pool) as conn, contextlib.closing(psycopg2.connect(dsn)):
        conn.cursor().execute(INSERT)
    pool.closeall()
