"""Engines and their pools: disposed of or not, of every class; connections that break, leave or come from elsewhere."""

import gc
import threading
import time
from contextlib import closing, suppress

import psycopg
import psycopg2
import psycopg_pool
import pytest
from sqlalchemy import create_engine, event, inspect, select, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool
from tables import Base, Item

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
not_closed = expect("pool-not-closed")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")
POOLS = (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool)


def read(engine):
    with Session(engine) as session:
        session.scalars(select(Item)).first()


# -- disposed of, or not ----------------------------------------------------------------------------------------------


@not_closed
def test_never_disposed(url):
    engine = create_engine(url)
    read(engine)
    KEPT.append(engine)


@not_closed
def test_dropped(url):
    read(create_engine(url))


@not_closed
def test_dropped_in_a_cycle(url):
    engine = create_engine(url)
    read(engine)
    engine.me = engine


def test_never_used(url):
    KEPT.append(create_engine(url))


def test_all_arguments(url):
    engine = create_engine(
        url,
        echo=True,
        echo_pool=True,
        execution_options={"isolation_level": "SERIALIZABLE"},
        hide_parameters=True,
        logging_name="engine",
        pool_logging_name="pool",
        pool_pre_ping=True,
        pool_recycle=100,
        pool_reset_on_return="rollback",
        pool_size=2,
        max_overflow=3,
        pool_timeout=4,
        pool_use_lifo=True,
        query_cache_size=10,
    )
    assert (engine.echo, engine.hide_parameters, engine.logging_name) == (True, True, "engine")
    assert (engine.pool.size(), engine.pool.logging_name) == (2, "pool")
    with pytest.raises(TypeError, match="Invalid argument"):
        create_engine(url, poolsize=2)
    read(engine)
    engine.dispose()


def test_disposed(url):
    engine = create_engine(url)
    read(engine)
    engine.dispose()


def test_disposed_twice(url):
    engine = create_engine(url)
    read(engine)
    engine.dispose()
    engine.dispose()


@not_closed
def test_used_again_after_dispose(url):
    engine = create_engine(url)
    read(engine)
    engine.dispose()
    read(engine)
    KEPT.append(engine)


def test_used_again_and_disposed_again(url):
    engine = create_engine(url)
    for _ in range(3):
        read(engine)
        engine.dispose()


def test_disposed_without_closing(url):
    # For a process that has just forked: the parent's connections are left alone.
    engine = create_engine(url)
    read(engine)
    engine.dispose(close=False)
    gc.collect()


def test_disposed_while_one_is_out(url):
    engine = create_engine(url)
    with Session(engine) as session:
        session.scalars(select(Item)).all()
        engine.dispose()


@not_returned
def test_disposed_while_one_is_out_and_stays_out(url):
    engine = create_engine(url)
    session = Session(engine)
    session.scalars(select(Item)).all()
    engine.dispose()
    KEPT.append(session)


@lost
def test_disposed_while_one_is_out_that_writes(url):
    engine = create_engine(url)
    with Session(engine) as session:
        session.execute(INSERT)
        engine.dispose()


@expect("pool-not-closed", "connection-not-returned")
def test_neither_disposed_nor_closed(url):
    engine = create_engine(url)
    session = Session(engine)
    session.scalars(select(Item)).all()
    KEPT.append(session)


@expect("pool-not-closed", "pool-not-closed")
def test_two_engines(url):
    for _ in range(2):
        engine = create_engine(url)
        read(engine)
        KEPT.append(engine)


def test_a_copy_of_an_engine(url):
    engine = create_engine(url)
    read(engine.execution_options(isolation_level="SERIALIZABLE"))
    engine.dispose()


def test_a_copy_disposes_of_the_one_pool(url):
    engine = create_engine(url)
    copy = engine.execution_options(isolation_level="SERIALIZABLE")
    read(engine)
    copy.dispose()


@not_closed
def test_a_copy_and_never_disposed(url):
    KEPT.append(create_engine(url).execution_options(isolation_level="SERIALIZABLE"))
    read(KEPT[-1])


def test_pool_replaced(url):
    engine = create_engine(url)
    read(engine)
    engine.pool.dispose()
    engine.pool = engine.pool.recreate()
    read(engine)
    engine.dispose()


@not_closed
def test_sessionmaker_with_an_engine_of_its_own(url):
    factory = sessionmaker(create_engine(url))
    with factory() as session:
        session.scalars(select(Item)).all()
    KEPT.append(factory)


# -- pools of every class ---------------------------------------------------------------------------------------------


@pytest.fixture(params=POOLS)
def any_pool(url, request):
    engine = create_engine(url, poolclass=request.param)
    yield engine
    engine.dispose()


def test_any_pool(any_pool):
    for _ in range(3):
        with Session(any_pool) as session, session.begin():
            session.add(Item(name="x"))


@not_returned
def test_any_pool_and_kept(any_pool):
    session = Session(any_pool)
    session.scalars(select(Item)).all()
    KEPT.append(session)


@not_returned
def test_any_pool_and_dropped(any_pool):
    session = Session(any_pool)
    session.scalars(select(Item)).all()
    del session
    gc.collect()


@lost
def test_any_pool_and_lost(any_pool):
    with Session(any_pool) as session:
        session.execute(INSERT)


def test_null_pool_needs_no_dispose(url):
    engine = create_engine(url, poolclass=NullPool)
    read(engine)
    KEPT.append(engine)


def test_null_pool_twice_at_once(url):
    engine = create_engine(url, poolclass=NullPool)
    with Session(engine) as one, Session(engine) as two:
        one.scalars(select(Item)).all()
        two.scalars(select(Item)).all()


def test_static_pool_is_shared(url):
    engine = create_engine(url, poolclass=StaticPool)
    with Session(engine) as one, Session(engine) as two:
        one.scalars(select(Item)).all()
        two.scalars(select(Item)).all()
    engine.dispose()


@not_closed
def test_static_pool_never_disposed(url):
    KEPT.append(create_engine(url, poolclass=StaticPool))
    read(KEPT[-1])


def test_a_pool_of_one(url):
    engine = create_engine(url, pool_size=1, max_overflow=0)
    for _ in range(3):
        read(engine)
    engine.dispose()


@not_returned
def test_a_pool_of_one_runs_dry(url):
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    session = Session(engine)
    session.scalars(select(Item)).all()
    with pytest.raises(PoolTimeoutError):
        read(engine)
    KEPT.append(session)
    engine.dispose()


def test_more_than_pool_size(url):
    engine = create_engine(url, pool_size=1, max_overflow=3)

    def work():
        with Session(engine) as session:
            session.execute(text("select pg_sleep(0.05)"))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()


@expect("nested-checkout")
def test_two_at_once(engine):
    with engine.connect(), engine.connect():
        pass


def test_pre_ping_and_recycle(url):
    engine = create_engine(url, pool_pre_ping=True, pool_recycle=0)
    for _ in range(3):
        read(engine)
        time.sleep(0.01)
    engine.dispose()


def test_last_in_first_out(url):
    engine = create_engine(url, pool_use_lifo=True, pool_reset_on_return="commit")
    read(engine)
    engine.dispose()


def test_committed_on_return(url):
    # Odd, but what was written stays.
    engine = create_engine(url, pool_reset_on_return="commit")
    with closing(engine.raw_connection()) as raw, closing(raw.cursor()) as cursor:
        cursor.execute("insert into entry(name) values ('x')")
    engine.dispose()


def test_no_reset_on_return(url):
    engine = create_engine(url, pool_reset_on_return=None)
    with Session(engine) as session, session.begin():
        session.add(Item(name="x"))
    engine.dispose()


# -- connections that break or leave ----------------------------------------------------------------------------------


def kill(dsn, pid):
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 1000)", [pid])


def test_killed_while_idle(url, dsn):
    engine = create_engine(url, pool_pre_ping=True)
    with engine.connect() as conn:
        pid = conn.scalar(text("select pg_backend_pid()"))
    kill(dsn, pid)
    read(engine)
    engine.dispose()


def test_killed_while_out(engine, dsn):
    with Session(engine) as session:
        kill(dsn, session.scalar(text("select pg_backend_pid()")))
        with pytest.raises(DBAPIError):
            session.scalars(select(Item)).all()
        session.rollback()
        session.add(Item(name="x"))
        session.commit()


def test_killed_while_out_and_closed(engine, dsn):
    with Session(engine) as session:
        kill(dsn, session.scalar(text("select pg_backend_pid()")))
        with pytest.raises(DBAPIError):
            session.scalars(select(Item)).all()


def test_killed_and_the_error_goes_on(engine, dsn):
    with pytest.raises(DBAPIError), Session(engine) as session:
        session.execute(INSERT)
        kill(dsn, session.scalar(text("select pg_backend_pid()")))
        session.commit()


def test_invalidated(engine):
    with engine.connect() as conn:
        conn.execute(text("select 1"))
        conn.invalidate()
        conn.rollback()
        conn.execute(text("select 1"))


def test_session_invalidated(engine):
    session = Session(engine)
    session.scalars(select(Item)).all()
    session.invalidate()


@not_returned
def test_invalidated_and_connected_again(engine):
    conn = engine.connect()
    conn.invalidate()
    conn.execute(text("select 1"))
    KEPT.append(conn)


def test_invalidated_and_kept(engine):
    conn = engine.connect()
    conn.invalidate()
    KEPT.append(conn)


def test_used_after_an_error_without_rollback(engine):
    with Session(engine) as session:
        session.add(Item(name=None))
        with suppress(DBAPIError):
            session.flush()
        with pytest.raises((PendingRollbackError, DBAPIError)):
            session.add(Item(name=None))
            session.flush()


def test_detached(engine):
    conn = engine.connect()
    conn.detach()
    conn.execute(INSERT)
    conn.commit()
    conn.close()


@lost
def test_detached_without_commit(engine):
    conn = engine.connect()
    conn.detach()
    conn.execute(INSERT)
    conn.close()


@expect("connection-not-closed")
def test_detached_and_kept(engine):
    conn = engine.connect()
    conn.detach()
    conn.execute(text("select 1"))
    KEPT.append(conn)


@expect("connection-dropped")
def test_detached_and_dropped(engine):
    conn = engine.connect()
    conn.detach()
    conn.execute(text("select 1"))
    del conn
    gc.collect()


# -- connections from elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_creator(dsn, driver):
    engine = create_engine(f"postgresql+{driver.__name__}://", creator=lambda: driver.connect(dsn))
    read(engine)
    engine.dispose()


@not_closed
@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_creator_and_never_disposed(dsn, driver):
    engine = create_engine(f"postgresql+{driver.__name__}://", creator=lambda: driver.connect(dsn))
    read(engine)
    KEPT.append(engine)


@not_returned
@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_creator_and_kept(dsn, driver):
    engine = create_engine(f"postgresql+{driver.__name__}://", creator=lambda: driver.connect(dsn), poolclass=NullPool)
    KEPT.append(engine.connect())


def test_do_connect(url, dsn):
    engine = create_engine(url)

    @event.listens_for(engine, "do_connect")
    def connect(dialect, record, args, kwargs):
        return dialect.loaded_dbapi.connect(*args, **kwargs)

    read(engine)
    engine.dispose()


@pytest.fixture
def psycopg_pool_below(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2, open=False, close_returns=True) as pool:
        yield pool


def test_on_psycopgs_own_pool(psycopg_pool_below):
    engine = create_engine("postgresql+psycopg://", creator=psycopg_pool_below.getconn, poolclass=NullPool)
    for _ in range(3):
        with Session(engine) as session, session.begin():
            session.add(Item(name="x"))
    KEPT.append(engine)


@not_returned
def test_on_psycopgs_own_pool_and_kept(psycopg_pool_below):
    engine = create_engine("postgresql+psycopg://", creator=psycopg_pool_below.getconn, poolclass=NullPool)
    session = Session(engine)
    session.scalars(select(Item)).all()
    KEPT.append(session)


@lost
def test_on_psycopgs_own_pool_and_lost(psycopg_pool_below):
    engine = create_engine("postgresql+psycopg://", creator=psycopg_pool_below.getconn, poolclass=NullPool)
    with Session(engine) as session:
        session.execute(INSERT)


def test_pool_without_an_engine(dsn):
    pool = QueuePool(lambda: psycopg2.connect(dsn))
    pool.connect().close()
    pool.dispose()


@expect("connection-not-returned", "pool-not-closed")
def test_pool_without_an_engine_and_kept(dsn):
    KEPT.append(QueuePool(lambda: psycopg2.connect(dsn)).connect())


@not_closed
def test_pool_without_an_engine_never_disposed(dsn):
    KEPT.append(QueuePool(lambda: psycopg2.connect(dsn)))
    KEPT[-1].connect().close()


# -- the application's own listeners ----------------------------------------------------------------------------------


def test_listeners_that_execute(url):
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection, record):
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute("set statement_timeout = '30s'")
            cursor.execute("insert into entry(name) values ('connected')")
        dbapi_connection.commit()

    @event.listens_for(engine, "checkout")
    def on_checkout(dbapi_connection, record, proxy):
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute("select 1")

    @event.listens_for(engine, "checkin")
    def on_checkin(dbapi_connection, record):
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute("select 2")
        dbapi_connection.rollback()

    read(engine)
    with Session(engine) as session, session.begin():
        session.add(Item(name="x"))
    engine.dispose()


def test_listener_of_begin(url):
    engine = create_engine(url)

    @event.listens_for(engine, "begin")
    def on_begin(conn):
        conn.exec_driver_sql("select set_config('app.user', '1', true)")

    read(engine)
    engine.dispose()


def test_first_connect_that_fails(url):
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection, record):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.connect()
    engine.dispose()


def test_checkout_listener_that_refuses(url):
    engine = create_engine(url)
    refused = []

    @event.listens_for(engine, "checkout")
    def on_checkout(dbapi_connection, record, proxy):
        if not refused:
            from sqlalchemy.exc import DisconnectionError

            refused.append(1)
            raise DisconnectionError

    read(engine)
    engine.dispose()


# -- schema, migrations -----------------------------------------------------------------------------------------------


def test_create_all(engine):
    Base.metadata.create_all(engine)


def test_reflect(engine):
    from sqlalchemy import MetaData, Table

    metadata = MetaData()
    metadata.reflect(engine)
    assert "entry" in metadata.tables
    Table("entry", MetaData(), autoload_with=engine)
    assert inspect(engine).has_table("entry")


def test_migration(engine):
    # As alembic's env.py does.
    with engine.connect() as connection:
        with connection.begin():
            connection.execute(text("create table if not exists alembic_version (version_num varchar(32))"))
            connection.execute(text("insert into alembic_version values ('abc')"))
    engine.dispose()


def test_migration_on_null_pool(url):
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("alter table alembic_version add column if not exists note text"))


@lost
def test_migration_without_commit(url):
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("create table forgotten (x int)"))


# -- other databases --------------------------------------------------------------------------------------------------


def test_sqlite(tmp_path):
    for url in ("sqlite://", f"sqlite:///{tmp_path}/a.db"):
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        session = Session(engine)
        session.add(Item(name="x"))
        session.flush()
        KEPT.append((engine, session))
        with Session(engine) as dropped:
            dropped.execute(select(Item))
        engine.connect().execute(text("select 1"))
