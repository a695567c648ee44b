"""psycopg2: connections without a pool, and the classes of connections and cursors."""

import contextlib
import gc
import logging
import os
import threading

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from psycopg2 import connect as connect_by_name

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []
INSERT = "insert into item(name) values ('a')"


@expect("connection-dropped")
def test_dropped(dsn):
    psycopg2.connect(dsn)


@expect("connection-dropped")
def test_dropped_by_name(dsn):
    connect_by_name(dsn)


@expect("connection-dropped")
def test_dropped_after_use(dsn):
    conn = psycopg2.connect(dsn)
    conn.cursor().execute("select 1")


@expect("connection-dropped")
def test_dropped_with_a_write(dsn):
    conn = psycopg2.connect(dsn)
    conn.cursor().execute(INSERT)


@expect("connection-dropped")
def test_dropped_in_a_cycle(dsn):
    class Holder:
        pass

    gc.disable()
    try:
        holder = Holder()
        holder.me, holder.conn = holder, psycopg2.connect(dsn)
    finally:
        gc.enable()


@expect("connection-not-closed")
def test_kept(dsn):
    KEPT.append(psycopg2.connect(dsn))


@expect("connection-not-closed")
def test_kept_with_a_write(dsn):
    conn = psycopg2.connect(dsn)
    conn.cursor().execute(INSERT)
    KEPT.append(conn)


@expect("connection-not-closed")
def test_a_cursor_keeps_it(dsn):
    KEPT.append(psycopg2.connect(dsn).cursor())


def test_closed(dsn):
    conn = psycopg2.connect(dsn)
    conn.cursor().execute("select 1")
    conn.close()


def test_closed_twice(dsn):
    conn = psycopg2.connect(dsn)
    conn.close()
    conn.close()


def test_closing(dsn):
    with contextlib.closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(INSERT)


@expect("connection-dropped")
def test_with_does_not_close(dsn):
    with psycopg2.connect(dsn) as conn, conn.cursor() as cursor:
        cursor.execute(INSERT)


@expect("connection-not-closed")
def test_with_does_not_close_and_kept(dsn):
    with psycopg2.connect(dsn) as conn:
        conn.cursor().execute(INSERT)
    KEPT.append(conn)


@expect("connection-dropped", "connection-dropped")
def test_two_of_three(dsn):
    psycopg2.connect(dsn)
    psycopg2.connect(dsn)
    psycopg2.connect(dsn).close()


def test_refused(dsn):
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(dsn, user="nobody_knows_this_role")


@expect("connection-dropped")
def test_keywords(dsn):
    psycopg2.connect(**psycopg2.extensions.parse_dsn(dsn), application_name="corpus")


@expect("connection-dropped")
def test_in_a_thread(dsn):
    thread = threading.Thread(target=lambda: psycopg2.connect(dsn))
    thread.start()
    thread.join()


def test_used_by_several_threads(dsn):
    with contextlib.closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True

        def work():
            with conn.cursor() as cursor:
                for _ in range(20):
                    cursor.execute(INSERT)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_ended_by_the_server_and_noticed(dsn):
    with contextlib.closing(psycopg2.connect(dsn)) as admin:
        conn = psycopg2.connect(dsn)
        admin.cursor().execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg2.OperationalError):
            conn.cursor().execute("select 1")
        assert conn.closed


# Classes of connections.


class MyConnection(psycopg2.extensions.connection):
    """As people make it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with self.cursor() as cursor:
            cursor.execute("select 1")
        self.commit()
        self.label = "mine"


@expect("connection-dropped")
def test_a_class_of_ones_own(dsn):
    conn = psycopg2.connect(dsn, connection_factory=MyConnection)
    assert type(conn) is MyConnection
    assert conn.label == "mine"


def test_a_class_of_ones_own_closed(dsn):
    psycopg2.connect(dsn, connection_factory=MyConnection).close()


class ClosingConnection(MyConnection):
    """Closes at the end of its `with`, as psycopg 3 does; and comes after its base."""

    def __exit__(self, *exc):
        super().__exit__(*exc)
        self.close()

    def close(self):
        self.label = "closed"
        super().close()

    def commit(self):
        self.label = "committed"
        super().commit()


def test_a_class_that_closes(dsn):
    with psycopg2.connect(dsn, connection_factory=ClosingConnection) as conn:
        conn.cursor().execute(INSERT)


@expect("write-lost")
def test_a_class_that_closes_loses(dsn):
    conn = psycopg2.connect(dsn, connection_factory=ClosingConnection)
    conn.cursor().execute(INSERT)
    conn.close()


class Registered(psycopg2.extensions.connection):
    classes = []

    def __init_subclass__(cls, *, label, **more):
        cls.classes.append((cls, label))


@expect("connection-dropped")
def test_nobody_makes_a_subclass_of_the_users_class(dsn):
    psycopg2.connect(dsn, connection_factory=Registered)
    assert Registered.classes == []
    assert Registered.__subclasses__() == []


@expect("connection-dropped")
def test_a_function_makes_it(dsn):
    def make(dsn):
        return MyConnection(dsn)

    assert type(psycopg2.connect(dsn, connection_factory=make)) is MyConnection


class WithFinalizer(psycopg2.extensions.connection):
    ended = []

    def __del__(self):
        self.ended.append("ended")


@expect("connection-dropped")
def test_a_finalizer_of_ones_own(dsn):
    psycopg2.connect(dsn, connection_factory=WithFinalizer)
    gc.collect()
    assert WithFinalizer.ended == ["ended"]


class Unhashable(psycopg2.extensions.connection):
    def __eq__(self, other):
        return self is other

    __hash__ = None


def test_a_class_without_a_hash(dsn):
    conn = psycopg2.connect(dsn, connection_factory=Unhashable)
    with conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
    conn.close()


EXTRAS = [
    psycopg2.extras.DictConnection,
    psycopg2.extras.RealDictConnection,
    psycopg2.extras.NamedTupleConnection,
]


@expect("connection-dropped")
@pytest.mark.parametrize("factory", EXTRAS)
def test_dropped_extras(dsn, factory):
    conn = psycopg2.connect(dsn, connection_factory=factory)
    assert type(conn) is factory
    with conn.cursor() as cursor:
        cursor.execute("select 1 as a")
        assert type(cursor).__name__ == factory.__name__.replace("Connection", "Cursor")


@expect("write-lost")
@pytest.mark.parametrize("factory", EXTRAS)
def test_lost_extras(dsn, factory):
    conn = psycopg2.connect(dsn, connection_factory=factory)
    with conn.cursor() as cursor:
        cursor.execute(INSERT)
    conn.close()


@pytest.mark.parametrize("factory", EXTRAS)
def test_committed_extras(dsn, factory):
    conn = psycopg2.connect(dsn, connection_factory=factory)
    with conn, conn.cursor() as cursor:
        cursor.execute("insert into item(name) values (%s) returning id, name", ["a"])
        assert cursor.fetchone()[1 if factory is not psycopg2.extras.RealDictConnection else "name"] == "a"
    conn.close()


@expect("write-lost")
def test_lost_logging_connection(dsn):
    conn = psycopg2.connect(dsn, connection_factory=psycopg2.extras.LoggingConnection)
    conn.initialize(logging.getLogger("corpus"))
    conn.cursor().execute(INSERT)
    conn.close()


@expect("write-lost")
def test_lost_min_time_logging_connection(dsn):
    conn = psycopg2.connect(dsn, connection_factory=psycopg2.extras.MinTimeLoggingConnection)
    conn.initialize(logging.getLogger("corpus"))
    conn.cursor().execute(INSERT)
    conn.close()


@pytest.mark.parametrize("factory", ["DictCursor", "RealDictCursor", "NamedTupleCursor"])
@pytest.mark.parametrize("where", ["connect", "attribute", "cursor", "positional"])
@expect("write-lost")
def test_cursor_factories(dsn, factory, where):
    factory = getattr(psycopg2.extras, factory)
    conn = psycopg2.connect(dsn, **({"cursor_factory": factory} if where == "connect" else {}))
    if where == "attribute":
        conn.cursor_factory = factory
    cursor = {
        "cursor": lambda: conn.cursor(cursor_factory=factory),
        "positional": lambda: conn.cursor(None, factory),
    }.get(where, conn.cursor)()
    assert type(cursor) is factory
    cursor.execute(INSERT)
    conn.close()


class MyCursor(psycopg2.extensions.cursor):
    def execute(self, query, vars=None):
        self.said = query
        return super().execute(query, vars)


@expect("write-lost")
def test_a_cursor_class_of_ones_own(dsn):
    conn = psycopg2.connect(dsn)
    cursor = conn.cursor(cursor_factory=MyCursor)
    cursor.execute(INSERT)
    assert (type(cursor), cursor.said) == (MyCursor, INSERT)
    conn.close()


@expect("write-lost")
def test_a_function_makes_the_cursor(dsn):
    conn = psycopg2.connect(dsn, cursor_factory=lambda *args, **kwargs: MyCursor(*args, **kwargs))
    conn.cursor().execute(INSERT)
    conn.close()


class CountingConnection(psycopg2.extensions.connection):
    cursors = 0

    def cursor(self, *args, **kwargs):
        self.cursors += 1
        return super().cursor(*args, cursor_factory=MyCursor, **kwargs)


@expect("write-lost")
def test_a_cursor_method_of_ones_own(dsn):
    conn = psycopg2.connect(dsn, connection_factory=CountingConnection)
    conn.cursor().execute(INSERT)
    assert conn.cursors == 1
    conn.close()


# Neither tracked nor disturbed.


def test_asynchronous(dsn):
    conn = psycopg2.connect(dsn, async_=1)
    assert type(conn) is psycopg2.extensions.connection
    psycopg2.extras.wait_select(conn)
    cursor = conn.cursor()
    cursor.execute("select 1")
    psycopg2.extras.wait_select(conn)
    assert cursor.fetchone() == (1,)
    conn.close()


def test_asynchronous_with_a_class_that_is_watched(dsn):
    psycopg2.connect(dsn, connection_factory=MyConnection).close()

    class Later(psycopg2.extras.RealDictConnection):
        pass

    psycopg2.connect(dsn, connection_factory=Later).close()
    conn = psycopg2.connect(dsn, connection_factory=Later, async_=1)
    psycopg2.extras.wait_select(conn)
    cursor = conn.cursor()
    cursor.execute("select 1")
    psycopg2.extras.wait_select(conn)
    conn.close()


def test_fork(dsn):
    with contextlib.closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        if (child := os.fork()) == 0:
            try:
                own = psycopg2.connect(dsn)
                own.cursor().execute("select 1")
                own.close()
                del cursor
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        cursor.execute("select 1")


# What works on a connection.


def test_adapters_and_types(dsn):
    import uuid

    with contextlib.closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        psycopg2.extras.register_uuid(conn_or_curs=conn)
        psycopg2.extras.register_json(conn)
        psycopg2.extras.register_default_jsonb(cursor)
        psycopg2.extras.register_inet()
        one = uuid.uuid4()
        cursor.execute("select %s, '{}'::jsonb", [one])
        assert cursor.fetchone() == (one, {})
        cursor.execute("create type pair as (a int, b text)")
        psycopg2.extras.register_composite("pair", cursor)
        cursor.execute("select (1, 'x')::pair")
        assert cursor.fetchone()[0].b == "x"
        with pytest.raises(psycopg2.ProgrammingError):
            psycopg2.extras.register_hstore(conn)
        conn.rollback()


def test_sql(dsn):
    from psycopg2 import sql

    with contextlib.closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        query = sql.SQL("insert into {} (name) values ({})").format(sql.Identifier("item"), sql.Literal("a"))
        assert query.as_string(conn) == query.as_string(cursor) == "insert into \"item\" (name) values ('a')"
        assert psycopg2.extensions.quote_ident("a b", conn) == '"a b"'
        cursor.execute(query)


@pytest.fixture
def conn(dsn):
    conn = psycopg2.connect(dsn)
    yield conn
    conn.close()


def test_fixture(conn):
    with conn:
        conn.cursor().execute(INSERT)


@pytest.fixture
def leaking_fixture(dsn):
    conn = psycopg2.connect(dsn)
    KEPT.append(conn)
    yield conn


@expect("connection-not-closed")
def test_leaking_fixture(leaking_fixture):
    pass


@pytest.fixture
def fixture_with_a_block(dsn):
    with psycopg2.connect(dsn) as conn:
        yield conn


# pytest itself still holds the value: open, not dropped.
@expect("connection-not-closed")
def test_a_fixture_with_a_block(fixture_with_a_block):
    fixture_with_a_block.cursor().execute(INSERT)
    fixture_with_a_block.commit()


@pytest.fixture
def connect(dsn):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(psycopg2.connect(dsn)))


def test_factory_fixture(connect):
    connect().cursor().execute("select 1")


class TestInAClass:
    @pytest.fixture(autouse=True)
    def _conn(self, dsn):
        self.conn = psycopg2.connect(dsn)
        self.conn.autocommit = True
        yield
        self.conn.close()

    def test_clean(self):
        self.conn.cursor().execute("select 1")

    @expect("connection-dropped")
    def test_leaky(self, dsn):
        psycopg2.connect(dsn)
