"""Sessions and connections in the test itself, on psycopg and on psycopg2."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from sqlalchemy import insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from tables import Item

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")


# -- clean ------------------------------------------------------------------------------------------------------------


def test_session_in_with(engine):
    with Session(engine) as session:
        session.add(Item(name="x"))
        session.commit()


def test_session_closed_in_finally(engine):
    session = Session(engine)
    try:
        session.add(Item(name="x"))
        session.commit()
    finally:
        session.close()


def test_session_in_closing(engine):
    with closing(Session(engine)) as session:
        session.scalars(select(Item)).all()


def test_session_and_begin(engine):
    with Session(engine) as session, session.begin():
        session.add(Item(name="x"))


def test_sessionmaker_begin(engine):
    with sessionmaker(engine).begin() as session:
        session.add(Item(name="x"))


def test_engine_begin(engine):
    with engine.begin() as conn:
        conn.execute(INSERT)


def test_connect_and_commit(engine):
    with engine.connect() as conn:
        conn.execute(INSERT)
        conn.commit()


def test_connect_and_begin(engine):
    with engine.connect() as conn, conn.begin():
        conn.execute(INSERT)


def test_connect_and_roll_back(engine):
    with engine.connect() as conn:
        conn.execute(INSERT)
        conn.rollback()


def test_connection_closed_by_hand(engine):
    conn = engine.connect()
    conn.execute(INSERT)
    conn.commit()
    conn.close()


def test_raw_connection(engine):
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("insert into entry(name) values ('x')")
        cursor.close()
        raw.commit()
    finally:
        raw.close()


def test_only_read_and_closed(engine):
    with Session(engine) as session:
        session.scalars(select(Item)).all()
    with engine.connect() as conn:
        conn.execute(text("select 1"))


def test_never_used(engine):
    KEPT.append(Session(engine))


def test_committed_and_not_closed(engine):
    # commit() gives the connection back: nothing is held.
    session = Session(engine)
    session.add(Item(name="x"))
    session.commit()
    KEPT.append(session)


def test_refreshed_after_commit(engine):
    # The attributes expired: reading one begins a transaction, that close() ends.
    with Session(engine) as session:
        item = Item(name="x")
        session.add(item)
        session.commit()
        assert item.name == "x"


def test_reset_instead_of_close(engine):
    session = Session(engine)
    session.scalars(select(Item)).first()
    session.reset()


def test_added_and_never_flushed(engine):
    with Session(engine) as session:
        session.add(Item(name="x"))


def test_session_rolled_back(engine):
    with Session(engine) as session:
        session.add(Item(name="x"))
        session.flush()
        session.rollback()


def test_refused_by_a_constraint(engine):
    with Session(engine) as session:
        session.add(Item(name=None))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()


def test_refused_by_a_constraint_at_commit(engine):
    with Session(engine) as session:
        session.add(Item(name=None))
        with pytest.raises(IntegrityError):
            session.commit()


def test_refused_then_done_right(engine):
    with Session(engine) as session:
        session.add(Item(name=None))
        with suppress(IntegrityError):
            session.commit()
        session.rollback()
        session.add(Item(name="x"))
        session.commit()


def test_an_error_leaves_the_session(engine):
    with pytest.raises(NoResultFound), Session(engine) as session:
        session.add(Item(name="x"))
        session.flush()
        session.scalars(select(Item).where(Item.id == -1)).one()


def test_an_error_leaves_the_block(engine):
    with pytest.raises(ZeroDivisionError), Session(engine) as session, session.begin():
        session.add(Item(name="x"))
        session.flush()
        raise ZeroDivisionError


def test_an_error_leaves_sessionmaker_begin(engine):
    with pytest.raises(ZeroDivisionError), sessionmaker(engine).begin() as session:
        session.add(Item(name="x"))
        session.flush()
        raise ZeroDivisionError


def test_an_error_leaves_engine_begin(engine):
    with pytest.raises(ZeroDivisionError), engine.begin() as conn:
        conn.execute(INSERT)
        raise ZeroDivisionError


def test_an_error_leaves_engine_connect(engine):
    with pytest.raises(ZeroDivisionError), engine.connect() as conn:
        conn.execute(INSERT)
        raise ZeroDivisionError


def test_savepoints(engine):
    with Session(engine) as session, session.begin():
        with session.begin_nested():
            session.add(Item(name="x"))
        with suppress(IntegrityError), session.begin_nested():
            session.add(Item(name=None))
        session.add(Item(name="x"))


def test_savepoint_rolled_back(engine):
    with Session(engine) as session:
        savepoint = session.begin_nested()
        session.add(Item(name="x"))
        session.flush()
        savepoint.rollback()
        session.commit()


def test_bulk(engine):
    with Session(engine) as session:
        session.execute(insert(Item), [{"name": "a"}, {"name": "b"}])
        session.execute(update(Item).where(Item.name == "a").values(name="c"))
        session.commit()


def test_session_on_a_connection(engine):
    with engine.connect() as conn, conn.begin(), Session(bind=conn) as session:
        session.add(Item(name="x"))
        session.commit()


def test_scoped_session_removed(engine):
    session = scoped_session(sessionmaker(engine))
    session.add(Item(name="x"))
    session.commit()
    session.scalars(select(Item)).first()
    session.remove()


def test_scoped_session_committed_and_not_removed(engine):
    session = scoped_session(sessionmaker(engine))
    session.add(Item(name="x"))
    session.commit()
    KEPT.append(session)


def test_close_all_sessions(engine):
    from sqlalchemy.orm import close_all_sessions

    KEPT.append(Session(engine))
    KEPT[-1].scalars(select(Item)).first()
    close_all_sessions()


def test_autocommit_of_the_connection(engine):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(INSERT)


def test_autocommit_of_the_engine(engine):
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        conn.execute(INSERT)
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.execute(INSERT)


def test_serializable(engine):
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn:
        conn.execute(INSERT)
        conn.commit()


def test_streaming_read_to_its_end(engine):
    with Session(engine) as session:
        for _ in session.scalars(select(Item).execution_options(yield_per=2)):
            pass


def test_streaming_left_early(engine):
    with engine.connect() as conn:
        for _ in conn.execution_options(yield_per=1).execute(text("select generate_series(1, 100)")):
            break


def test_result_used_after_close(engine):
    with engine.connect() as conn:
        rows = conn.execute(text("select 1"))
    KEPT.append(rows)


def test_inspect(engine):
    assert "entry" in inspect(engine).get_table_names()


def test_in_threads(engine):
    def work(_):
        with Session(engine) as session, session.begin():
            session.add(Item(name="x"))

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(work, range(6)))


def test_scoped_session_in_threads(engine):
    session = scoped_session(sessionmaker(engine))

    def work(_):
        session.add(Item(name="x"))
        session.commit()
        session.scalars(select(Item)).first()
        session.remove()

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(work, range(6)))


def test_two_phase(engine):
    with Session(engine, twophase=True) as session:
        session.add(Item(name="x"))
        session.commit()


def test_two_phase_rolled_back(engine):
    with engine.connect() as conn:
        transaction = conn.begin_twophase()
        conn.execute(INSERT)
        transaction.prepare()
        transaction.rollback()


def test_own_subclass(engine):
    class Unit(Session):
        def close(self):
            super().close()

        def __exit__(self, *exc):
            if exc[0] is None:
                self.commit()
            super().__exit__(*exc)

    with Unit(engine) as unit:
        unit.add(Item(name="x"))


# -- not returned -----------------------------------------------------------------------------------------------------


@not_returned
def test_session_kept(engine):
    session = Session(engine)
    session.scalars(select(Item)).all()
    KEPT.append(session)


@not_returned
def test_session_kept_with_a_write(engine):
    session = Session(engine)
    session.add(Item(name="x"))
    session.flush()
    KEPT.append(session)


@not_returned
def test_session_dropped(engine):
    session = Session(engine)
    session.scalars(select(Item)).all()


@not_returned
def test_session_dropped_with_a_write(engine):
    session = Session(engine)
    session.add(Item(name="x"))
    session.flush()


@not_returned
def test_session_dropped_in_a_cycle(engine):
    session = Session(engine)
    session.scalars(select(Item)).all()
    session.info["me"] = session


@not_returned
def test_used_after_commit(engine):
    session = Session(engine)
    item = Item(name="x")
    session.add(item)
    session.commit()
    assert item.name == "x"
    KEPT.append(session)


@not_returned
def test_connection_kept(engine):
    KEPT.append(engine.connect())


@not_returned
def test_connection_kept_after_commit(engine):
    # Other than a session, a connection goes back only with close().
    conn = engine.connect()
    conn.execute(INSERT)
    conn.commit()
    KEPT.append(conn)


@not_returned
def test_connection_dropped(engine):
    engine.connect().execute(text("select 1"))


@not_returned
def test_raw_connection_kept(engine):
    KEPT.append(engine.raw_connection())


@not_returned
def test_raw_connection_dropped(engine):
    engine.raw_connection().cursor().execute("select 1")


@not_returned
def test_scoped_session_not_removed(engine):
    session = scoped_session(sessionmaker(engine))
    session.scalars(select(Item)).all()
    KEPT.append(session)


@not_returned
def test_scoped_session_of_a_thread(engine):
    session = scoped_session(sessionmaker(engine))

    def work():
        session.scalars(select(Item)).all()

    thread = threading.Thread(target=work, name="reader")
    thread.start()
    thread.join()


@not_returned
def test_session_of_a_thread(engine):
    def work():
        session = Session(engine)
        session.scalars(select(Item)).all()
        KEPT.append(session)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@not_returned
def test_streaming_left_open(engine):
    session = Session(engine)
    rows = session.scalars(select(Item).execution_options(yield_per=1))
    next(rows, None)
    KEPT.append((session, rows))


@not_returned
def test_closed_only_when_all_goes_well(engine):
    session = Session(engine)
    with suppress(NoResultFound):
        session.scalars(select(Item).where(Item.id == -1)).one()
        session.close()
    KEPT.append(session)


@not_returned
def test_read_with_an_isolation_level(engine):
    KEPT.append(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))


# -- writes -----------------------------------------------------------------------------------------------------------


@lost
def test_flushed_and_closed(engine):
    session = Session(engine)
    session.add(Item(name="x"))
    session.flush()
    session.close()


@lost
def test_flushed_in_with(engine):
    with Session(engine) as session:
        session.add(Item(name="x"))
        session.flush()


@lost
def test_flushed_by_a_query(engine):
    with Session(engine) as session:
        session.add(Item(name="x"))
        session.scalars(select(Item)).all()


@lost
def test_executed_in_session(engine):
    with Session(engine) as session:
        session.execute(INSERT)


@lost
def test_executed_in_connect(engine):
    with engine.connect() as conn:
        conn.execute(INSERT)


@lost
def test_raw_connection_without_commit(engine):
    with closing(engine.raw_connection()) as raw, closing(raw.cursor()) as cursor:
        cursor.execute("insert into entry(name) values ('x')")


@lost
def test_only_the_savepoint_is_released(engine):
    with Session(engine) as session, session.begin_nested():
        session.add(Item(name="x"))


@lost
def test_begun_and_closed(engine):
    conn = engine.connect()
    conn.begin()
    conn.execute(INSERT)
    conn.close()


@lost
def test_reset_with_a_write(engine):
    session = Session(engine)
    session.add(Item(name="x"))
    session.flush()
    session.reset()


@lost
def test_scoped_session_removed_with_a_write(engine):
    session = scoped_session(sessionmaker(engine))
    session.execute(INSERT)
    session.remove()


@lost
def test_ddl_without_commit(engine):
    with engine.connect() as conn:
        conn.execute(text("create table migration_of_nobody (x int)"))


@lost
def test_committed_once_written_twice(engine):
    with Session(engine) as session:
        session.execute(INSERT)
        session.commit()
        session.execute(INSERT)


@lost
def test_own_subclass_without_commit(engine):
    class Unit(Session):
        def close(self):
            super().close()

    with Unit(engine) as unit:
        unit.execute(INSERT)


@lost
def test_in_a_thread(engine):
    def work():
        with Session(engine) as session:
            session.execute(INSERT)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@lost
def test_error_swallowed_inside(engine):
    with Session(engine) as session:
        session.execute(INSERT)
        with suppress(NoResultFound):
            session.scalars(select(Item).where(Item.id == -1)).one()
            session.commit()


# -- two at once ------------------------------------------------------------------------------------------------------


@expect("nested-checkout")
def test_two_sessions(engine):
    with Session(engine) as one, Session(engine) as two:
        one.scalars(select(Item)).all()
        two.scalars(select(Item)).all()


def test_two_sessions_of_two_engines(engine, url):
    from sqlalchemy import create_engine

    other = create_engine(url)
    with Session(engine) as one, Session(other) as two:
        one.scalars(select(Item)).all()
        two.scalars(select(Item)).all()
    other.dispose()


def test_two_sessions_one_after_the_other(engine):
    with Session(engine) as one, Session(engine) as two:
        one.scalars(select(Item)).all()
        one.commit()
        two.scalars(select(Item)).all()
