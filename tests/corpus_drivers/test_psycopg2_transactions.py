"""psycopg2: transactions and what becomes of writes."""

import contextlib
import io

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

KEPT = []
INSERT = "insert into item(name) values ('a')"
REFUSED = "insert into item(name) values ('refused')"


@pytest.fixture
def conn(dsn):
    conn = psycopg2.connect(dsn)
    yield conn
    conn.close()


@contextlib.contextmanager
def opened(dsn, **more):
    with contextlib.closing(psycopg2.connect(dsn, **more)) as conn:
        yield conn


def test_committed(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute(INSERT)
        conn.commit()


def test_committed_by_with(dsn):
    with opened(dsn) as conn, conn, conn.cursor() as cursor:
        cursor.execute(INSERT)


def test_committed_by_sql(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        cursor.execute("commit")


def test_autocommit(dsn):
    with opened(dsn) as conn:
        conn.autocommit = True
        conn.cursor().execute(INSERT)


def test_autocommit_by_session(dsn):
    with opened(dsn) as conn:
        conn.set_session(autocommit=True)
        conn.cursor().execute(INSERT)


def test_autocommit_by_level(dsn):
    with opened(dsn) as conn:
        conn.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
        conn.cursor().execute(INSERT)


def test_autocommit_and_with(dsn):
    with opened(dsn) as conn:
        conn.autocommit = True
        with conn, conn.cursor() as cursor:
            cursor.execute(INSERT)


@expect("write-lost")
def test_closed(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute(INSERT)


@expect("write-lost")
def test_closed_after_a_commit(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        conn.commit()
        cursor.execute(INSERT)


@expect("write-lost")
def test_begun_by_sql_in_autocommit(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute("begin")
        cursor.execute(INSERT)


def test_only_read(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute("select * from item")


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED", "DEFAULT"])
@expect("write-lost")
def test_isolation_levels(dsn, level):
    with opened(dsn) as conn:
        conn.set_session(isolation_level=level)
        conn.cursor().execute(INSERT)


def test_read_only(dsn):
    with opened(dsn) as conn:
        conn.set_session(readonly=True, deferrable=True)
        conn.cursor().execute("select 1")


def test_rolled_back(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute(INSERT)
        conn.rollback()


def test_rolled_back_by_with(dsn):
    with opened(dsn) as conn, pytest.raises(ValueError), conn:
        conn.cursor().execute(INSERT)
        raise ValueError


def test_rolled_back_by_reset(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute(INSERT)
        conn.reset()


def test_closed_by_an_exception(dsn):
    with pytest.raises(ValueError), opened(dsn) as conn:
        conn.cursor().execute(INSERT)
        raise ValueError


def test_refused_and_told(dsn):
    with opened(dsn) as conn, pytest.raises(psycopg2.errors.CheckViolation), conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        cursor.execute(REFUSED)


def test_refused_alone_and_swallowed(dsn):
    with opened(dsn) as conn:
        with contextlib.suppress(psycopg2.errors.CheckViolation):
            conn.cursor().execute(REFUSED)
        conn.rollback()


@expect("write-lost")
def test_failed_swallowed_and_committed(dsn):
    with opened(dsn) as conn, conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        with contextlib.suppress(psycopg2.errors.CheckViolation):
            cursor.execute(REFUSED)


@expect("write-lost")
def test_failed_swallowed_and_committed_by_sql(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        with contextlib.suppress(psycopg2.errors.CheckViolation):
            cursor.execute(REFUSED)
        cursor.execute("commit")


def test_failed_inside_a_savepoint(dsn):
    with opened(dsn) as conn, conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        cursor.execute("savepoint s")
        with contextlib.suppress(psycopg2.errors.CheckViolation):
            cursor.execute(REFUSED)
        cursor.execute("rollback to savepoint s")
        cursor.execute(INSERT)


def test_a_savepoint_is_rolled_back_and_nothing_else_was_written(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute("select 1")
        cursor.execute("savepoint s")
        cursor.execute(INSERT)
        cursor.execute("select 1")
        cursor.execute("rollback to savepoint s")


@expect("write-lost")
def test_a_savepoint_is_rolled_back_and_something_else_was_written(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        cursor.execute("savepoint s")
        cursor.execute(INSERT)
        cursor.execute("rollback to savepoint s")


# All that writes.


@expect("write-lost")
def test_executemany(dsn):
    with opened(dsn) as conn:
        conn.cursor().executemany("insert into item(name) values (%s)", [("a",), ("b",)])


@expect("write-lost")
def test_execute_values(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, "insert into item(name) values %s", [("a",), ("b",)])


@expect("write-lost")
def test_execute_batch(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        psycopg2.extras.execute_batch(cursor, "insert into item(name) values (%s)", [("a",), ("b",)])


@expect("write-lost")
def test_copy_expert(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.copy_expert("copy item(name) from stdin", io.StringIO("a\nb\n"))


@expect("write-lost")
def test_copy_from(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.copy_from(io.StringIO("a\nb\n"), "item", columns=["name"])


def test_copy_to(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.copy_to(io.StringIO(), "item")


def test_copied_in_autocommit(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.copy_expert("copy item(name) from stdin", io.StringIO("a\nb\n"))


@expect("write-lost")
def test_callproc(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(
            "create or replace function commit_order() returns int language sql as"
            " $$ insert into item(name) values ('a') returning id $$"
        )
        conn.autocommit = False
        cursor.callproc("commit_order")
        cursor.execute("select 1")


@expect("write-lost")
def test_bytes(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute(INSERT.encode())


@expect("write-lost")
def test_composed(dsn):
    from psycopg2 import sql

    with opened(dsn) as conn:
        conn.cursor().execute(sql.SQL("insert into {} (name) values ('a')").format(sql.Identifier("item")))


@expect("write-lost")
def test_keyword(dsn):
    with opened(dsn) as conn:
        conn.cursor().execute(query="insert into item(name) values (%(name)s)", vars={"name": "a"})


@expect("write-lost")
def test_named_cursor(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute(INSERT)
        with conn.cursor("named") as named:
            named.execute("select * from item")
            named.fetchmany(2)


def test_named_cursor_only(dsn):
    with opened(dsn) as conn, conn.cursor("named", scrollable=True) as named:
        named.itersize = 2
        named.execute("select * from generate_series(1, 5)")
        assert [row[0] for row in named] == [1, 2, 3, 4, 5]


def test_named_cursor_with_hold(dsn):
    with opened(dsn) as conn:
        named = conn.cursor("named", withhold=True)
        named.execute("select * from generate_series(1, 5)")
        conn.commit()
        assert named.fetchone() == (1,)
        named.close()
        conn.commit()


def test_cursor_is_iterated(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute("select * from generate_series(1, 3)")
        assert list(cursor) == [(1,), (2,), (3,)]
        cursor.scroll(-1)
        assert cursor.mogrify("select %s", ["a"]) == b"select 'a'"
        assert cursor.query
        assert cursor.statusmessage == "SELECT 3"


def test_lobject(dsn):
    with opened(dsn) as conn:
        large = conn.lobject(0, "w")
        large.write("abc")
        large.close()
        conn.lobject(large.oid).unlink()
        conn.commit()


@expect("write-lost")
def test_lobject_lost(dsn):
    with opened(dsn) as conn:
        large = conn.lobject(0, "w")
        large.write("abc")
        large.close()


def test_notifications(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute("listen news")
        cursor.execute("notify news, 'a'")
        conn.poll()
        assert [each.payload for each in conn.notifies] == ["a"]


def test_cancelled(dsn):
    import threading

    with opened(dsn) as conn:
        timer = threading.Timer(0.2, conn.cancel)
        timer.start()
        with pytest.raises(psycopg2.errors.QueryCanceled):
            conn.cursor().execute("select pg_sleep(10)")
        timer.join()


def test_a_deferred_constraint_fails_the_commit_and_is_told(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        cursor.execute("create table if not exists once2 (a int unique deferrable initially deferred)")
        conn.commit()
        cursor.execute("insert into once2 values (1), (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            conn.commit()


# On a connection of a fixture.


@expect("transaction-left-open")
def test_left_open(conn):
    conn.cursor().execute(INSERT)


# Nothing was written, and the fixture closes the connection right after the test.
def test_left_open_by_a_select(conn):
    conn.cursor().execute("select 1")


def test_left_failed(conn):
    with contextlib.suppress(psycopg2.errors.DivisionByZero):
        conn.cursor().execute("select 1/0")


def test_left_clean(conn):
    with conn:
        conn.cursor().execute(INSERT)


@pytest.fixture
def isolated(dsn):
    conn = psycopg2.connect(dsn)
    yield conn
    conn.rollback()
    conn.close()


def test_isolated(isolated):
    isolated.cursor().execute(INSERT)


@pytest.fixture(scope="session")
def session_conn(dsn):
    with contextlib.closing(psycopg2.connect(dsn)) as conn:
        yield conn


@pytest.fixture
def rolled_back(session_conn):
    yield session_conn
    session_conn.rollback()


def test_rolled_back_by_a_fixture(rolled_back):
    rolled_back.cursor().execute(INSERT)


@expect("transaction-left-open")
def test_left_open_on_the_sessions_connection(session_conn):
    session_conn.cursor().execute(INSERT)


def test_after_that_it_is_idle(session_conn):
    assert session_conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE
    session_conn.cursor().execute("select 1")
    session_conn.commit()


# Two phases.


def two_phases(conn):
    with conn.cursor() as cursor:
        cursor.execute("show max_prepared_transactions")
        if cursor.fetchone() == ("0",):
            pytest.skip("this server prepares no transactions")
    conn.rollback()


@expect("prepared-transaction")
def test_tpc_left(dsn):
    with opened(dsn) as conn:
        two_phases(conn)
        conn.tpc_begin("left2")
        conn.cursor().execute(INSERT)
        conn.tpc_prepare()


@expect("prepared-transaction")
def test_tpc_left_with_an_xid(dsn):
    with opened(dsn) as conn:
        two_phases(conn)
        conn.tpc_begin(conn.xid(1, "left", "branch"))
        conn.cursor().execute(INSERT)
        conn.tpc_prepare()


@expect("prepared-transaction")
def test_prepared_by_sql_and_left(dsn):
    with opened(dsn) as conn, conn.cursor() as cursor:
        two_phases(conn)
        cursor.execute(INSERT)
        cursor.execute("prepare transaction %s", ["by_sql"])


@pytest.mark.parametrize("finish", ["tpc_commit", "tpc_rollback"])
def test_tpc_finished(dsn, finish):
    with opened(dsn) as conn:
        two_phases(conn)
        conn.tpc_begin(conn.xid(1, "finished", "branch"))
        conn.cursor().execute(INSERT)
        conn.tpc_prepare()
        getattr(conn, finish)()


@pytest.mark.parametrize("finish", ["tpc_commit", "tpc_rollback"])
def test_tpc_in_one_phase(dsn, finish):
    with opened(dsn) as conn:
        two_phases(conn)
        conn.tpc_begin("one-phase")
        conn.cursor().execute(INSERT)
        getattr(conn, finish)()
        conn.cursor().execute("select 1")


def test_tpc_finished_by_another_connection(dsn):
    with opened(dsn) as conn, opened(dsn) as other:
        two_phases(conn)
        xid = conn.xid(1, "other", "branch")
        conn.tpc_begin(xid)
        conn.cursor().execute(INSERT)
        conn.tpc_prepare()
        conn.reset()
        assert str(xid) in [str(each) for each in other.tpc_recover()]
        other.commit()
        other.tpc_commit(xid)


@expect("write-lost")
def test_tpc_begun_and_closed(dsn):
    with opened(dsn) as conn:
        two_phases(conn)
        conn.tpc_begin("closed")
        conn.cursor().execute(INSERT)
