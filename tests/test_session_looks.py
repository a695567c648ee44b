"""Looking into sessions and undoing what was left, on real connections and pools: nothing else may change."""

from __future__ import annotations

import asyncio
import os
import threading

import psycopg
import psycopg_pool
import pytest

from pytest_pgleak import answers
from pytest_pgleak.psycopg_internals import in_hand, is_in_a_pool, keeps_connections, while_idle
from pytest_pgleak.session_state import queries as session_queries
from pytest_pgleak.session_state.home_loop import at_home
from pytest_pgleak.session_state.queries import look, look_at_defaults, undo
from pytest_pgleak.session_state.state import BORN, left_since

DIRTY = (
    "set app.user_id = '7'",
    "set search_path to nowhere",
    "set statement_timeout = '3s'",
    "set role pg_monitor",
    "select pg_advisory_lock(42), pg_advisory_lock(-1, 2), pg_advisory_lock_shared(-42)",
    "listen visits",
    'listen "Other Channel"',
    "create temp table scratch (id serial primary key, name text)",
    "create temp view glance as select * from scratch",
    "create temp sequence numbers",
    "declare report cursor with hold for select 1",
)

SEEN = """
    select pg_backend_pid(), current_setting('app.user_id', true), current_setting('role'), session_user::text,
        array(select name || '=' || setting from pg_settings where source = 'session' order by 1),
        array(select c from pg_listening_channels() c order by 1),
        array(select name from pg_cursors where is_holdable order by 1),
        array(select statement from pg_prepared_statements order by 1),
        array(select objid::text || mode from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
            order by 1),
        array(select relname::text from pg_class where relnamespace = pg_my_temp_schema() order by 1),
        pg_current_xact_id_if_assigned() is null
"""


@pytest.fixture(scope="module")
def dsn(server_dsn):
    # Advisory locks are a database's: another worker of xdist must not wait for these.
    name = f"pgleak_looks_{os.getpid()}"
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"create database {name}")
        yield psycopg.conninfo.make_conninfo(server_dsn, dbname=name)
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def dirty(conn):
    for statement in DIRTY:
        conn.execute(statement)
    conn.execute("select %s::text", ("x",), prepare=True)
    return conn


def picture(conn):
    return (
        conn.execute(SEEN, prepare=False).fetchone(),
        conn.info.transaction_status,
        conn.autocommit,
        conn.isolation_level,
        conn.read_only,
        dict(conn._prepared._names),
        conn.info.parameter_status("client_encoding"),
        conn.pgconn.nonblocking,
        conn.pgconn.notice_handler,
        conn.lock.locked(),
        conn.closed,
    )


def test_a_fresh_session_is_as_it_was_born(conn):
    assert left_since(BORN, look(conn, ["app.user_id"])) == ()


def test_all_that_was_left(dirty):
    found = look(dirty, ["app.user_id", "app.other"])
    assert found.role == "pg_monitor"
    assert found.session_user == ""
    assert {name: setting.value for name, setting in found.settings.items()} == {
        "search_path": "nowhere",
        "statement_timeout": "3000ms",
    }
    assert found.custom == {"app.user_id": "7", "app.other": ""}
    assert found.locks == {"42", "(-1, 2)", "-42 (shared)"}
    assert found.channels == {"visits", "Other Channel"}
    assert found.relations == {
        ("scratch", "temporary table"),
        ("glance", "temporary view"),
        ("numbers", "temporary sequence"),
    }
    assert found.cursors == {"report"}


@pytest.mark.parametrize("how", ["look", "defaults"])
def test_looking_changes_nothing(dirty, how):
    notices = []
    dirty.add_notice_handler(notices.append)
    picture(dirty)
    before = picture(dirty)
    in_hand(dirty, lambda: look(dirty, ["app.user_id"]) if how == "look" else look_at_defaults(dirty, ["app.user_id"]))
    assert picture(dirty) == before
    assert notices == []


def test_what_a_reset_would_bring(dirty):
    defaults = look_at_defaults(dirty, ["app.user_id"])
    assert (defaults.role, defaults.session_user, defaults.custom) == ("none", "", {"app.user_id": ""})


def test_a_role_of_its_own_and_a_setting_by_default_are_no_leftovers(conn, dsn):
    name = f"pgleak_born_{os.getpid()}"
    conn.execute(f"drop role if exists {name}")
    conn.execute(f"create role {name} login superuser")
    try:
        conn.execute(f"alter role {name} set role to pg_monitor")
        conn.execute(f"alter role {name} set app.born to 'yes'")
        with psycopg.connect(dsn, user=name, autocommit=True) as born:
            assert look(born, ["app.born"]).role == "pg_monitor"
            defaults = look_at_defaults(born, ["app.born"])
            assert (defaults.role, defaults.session_user, defaults.custom) == ("pg_monitor", "", {"app.born": "yes"})
    finally:
        conn.execute(f"drop role {name}")


def test_undo(dirty):
    names = dict(dirty._prepared._names)
    undo(dirty, left_since(look_at_defaults(dirty, ["app.user_id"]), look(dirty, ["app.user_id"])), BORN)
    after = look(dirty, ["app.user_id"])
    assert left_since(look_at_defaults(dirty, ["app.user_id"]), after) == ()
    assert (after.settings, after.role, after.custom) == ({}, "none", {"app.user_id": ""})
    assert dirty._prepared._names == names
    assert dirty.execute("select %s::text", ("y",), prepare=True).fetchone() == ("y",)


def test_undo_leaves_what_was_there_before(dirty):
    before = look(dirty, ["app.user_id"])
    dirty.execute("set app.user_id = '8'")
    dirty.execute('set search_path to pg_catalog, "no\'where"')
    dirty.execute("reset role")
    dirty.execute("listen third")
    seen = look(dirty, ["app.user_id"])
    undo(dirty, left_since(before, seen), before)
    assert look(dirty, ["app.user_id"]) == before


def test_quotes_and_backslashes(conn):
    conn.execute('create temp table "it\'s \\ a ""table""" (id int)')
    conn.execute('listen "it\'s"')
    conn.execute("set standard_conforming_strings = off")
    undo(conn, left_since(BORN, look(conn)), BORN)
    assert left_since(BORN, look(conn)) == ()


def test_a_search_path_that_hides_the_catalog(conn):
    conn.execute("create temp table pg_settings (name text, setting text, reset_val text, source text, unit text)")
    conn.execute("insert into pg_settings values ('fake', 'a', 'b', 'session', null)")
    assert "fake" not in look(conn).settings


def test_no_answer_is_none(conn, monkeypatch):
    conn.execute("set statement_timeout = 1")
    monkeypatch.setattr(session_queries, "_LOOK", "select pg_sleep(10)")
    assert look(conn) is None
    assert conn.info.transaction_status.name == "IDLE"


def test_a_server_that_does_not_answer_is_not_waited_for(conn, monkeypatch):
    monkeypatch.setattr(session_queries, "_LOOK", "select pg_sleep(60)")
    monkeypatch.setattr(answers, "_PATIENCE", 0.05)
    assert look(conn) is None
    assert conn.execute("select 1").fetchone() == (1,)


def test_a_connection_that_the_server_has_ended(conn, dsn):
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 1000)", (conn.info.backend_pid,))
    assert look(conn) is None


# --- whose turn it is


def done(run, *arguments):
    """Tell whether an action was run."""
    runs = []
    run(*arguments, lambda: runs.append(1))
    return bool(runs)


def test_in_hand_only_if_idle_and_free(conn):
    assert done(in_hand, conn)
    with conn.transaction():
        assert not done(in_hand, conn)
    with conn.lock:
        assert not done(in_hand, conn)
    with conn.pipeline():
        assert not done(in_hand, conn)
    assert done(in_hand, conn)
    conn.close()
    assert not done(in_hand, conn)


def test_the_lock_is_held_meanwhile_and_released_after_an_error(conn):
    def fail():
        assert conn.lock.locked()
        raise LookupError

    with pytest.raises(LookupError):
        in_hand(conn, fail)
    assert not conn.lock.locked()


def test_notifications_are_delivered_as_ever(conn, dsn):
    conn.execute("listen visits")
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("notify visits, 'first'")
        in_hand(conn, lambda: look(conn))
        assert [notify.payload for notify in conn.notifies(timeout=5, stop_after=1)] == ["first"]
        heard = []
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))
        other.execute("notify visits, 'second'")
        in_hand(conn, lambda: look(conn))
        assert heard == []  # the handlers are the application's: they run with its next statement
        conn.execute("select 1")
        assert heard == ["second"]


@pytest.fixture
def pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=2, max_size=2, open=False) as pool:
        pool.wait()
        yield pool


def test_while_idle_only_in_the_pool(pool):
    conn = pool.getconn()
    assert not is_in_a_pool(conn)
    assert not done(while_idle, pool, conn)
    pool.putconn(conn)
    assert is_in_a_pool(conn)
    assert done(while_idle, pool, conn)


def test_the_pool_is_as_before(pool):
    members, stats = list(pool._pool), pool.get_stats()
    for conn in members:
        while_idle(pool, conn, lambda conn=conn: look(conn))
        assert list(pool._pool) == members
    with pytest.raises(LookupError):
        while_idle(pool, members[0], lambda: {}["fails"])
    assert list(pool._pool) == members
    assert pool.get_stats() == stats


def test_who_comes_meanwhile_gets_another_or_waits(pool):
    first, _ = pool._pool
    got = []

    def take_all():
        with pool.connection() as one, pool.connection() as two:
            got.extend([one, two])

    thread = threading.Thread(target=take_all)

    def meanwhile():
        thread.start()
        while len(pool._pool) or not pool._waiting:
            threading.Event().wait(0.001)

    while_idle(pool, first, meanwhile)
    thread.join()
    assert set(got) == {first, *pool._pool}
    assert got[1] is first


def test_a_pool_that_is_closed_meanwhile(pool):
    first, second = pool._pool
    while_idle(pool, first, pool.close)
    assert first.closed
    assert second.closed


async def _async_pool(dsn):
    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False)
    await pool.open(wait=True)
    return pool


@pytest.mark.asyncio
async def test_async(dsn):
    pool = await _async_pool(dsn)
    conn = await pool.getconn()
    assert not done(while_idle, pool, conn)
    async with conn.lock:
        assert not done(in_hand, conn)
    assert done(in_hand, conn)
    await pool.putconn(conn)
    assert done(while_idle, pool, conn)
    await pool.close()


@pytest.mark.parametrize(
    ("pool", "keeps"),
    [
        (psycopg_pool.ConnectionPool, True),
        (psycopg_pool.AsyncConnectionPool, True),
        (psycopg_pool.NullConnectionPool, False),
        (psycopg_pool.AsyncNullConnectionPool, False),
        (type("Own", (psycopg_pool.NullConnectionPool,), {}), False),
    ],
)
def test_null_pools_keep_nothing(pool, keeps):
    assert keeps_connections(pool("", open=False)) is keeps


# --- at home


def where(loop):
    threads = []
    at_home(loop, lambda: threads.append(threading.current_thread()))
    return threads


def test_no_loop_is_everywhere():
    assert where(None) == [threading.current_thread()]


def test_a_loop_that_does_not_run():
    loop = asyncio.new_event_loop()
    assert where(loop) == [threading.current_thread()]
    loop.close()
    assert where(loop) == [threading.current_thread()]


@pytest.mark.asyncio
async def test_the_loop_that_runs_here():
    assert where(asyncio.get_running_loop()) == [threading.current_thread()]


def test_a_loop_in_another_thread():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert where(loop) == [thread]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_loop_that_has_no_time(monkeypatch):
    monkeypatch.setattr("pytest_pgleak.session_state.home_loop._PATIENCE", 0.01)
    loop, busy = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        loop.call_soon_threadsafe(busy.wait)
        assert where(loop) == []
    finally:
        busy.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
