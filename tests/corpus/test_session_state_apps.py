"""Session state left by applications and fixtures, whoever runs them; and what pgleak's look must not disturb."""

import asyncio
import threading
from contextlib import asynccontextmanager, suppress

import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.testclient import TestClient
from psycopg.rows import dict_row

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
state_left = expect("session-state")


@pytest.fixture(scope="session", autouse=True)
def schema(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("""
            create or replace function log_in(who text) returns void language plpgsql as $$
            begin perform set_config('search_path', who, false); end $$
        """)
        conn.execute("""
            create or replace function peek(who text) returns text language plpgsql as $$
            begin perform set_config('search_path', who, true); return who; end $$
        """)


def build(dsn, at_start=None):
    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
            with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=4, open=False) as sync_pool:
                app.state.pool, app.state.sync_pool = pool, sync_pool
                if at_start is None:
                    yield
                else:
                    async with at_start(app):
                        yield

    app = FastAPI(lifespan=lifespan)

    async def pooled(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    def pooled_sync(request: Request):
        with request.app.state.sync_pool.connection() as conn:
            yield conn

    async def tenant(conn=Depends(pooled)):
        await conn.execute("select set_config('app.tenant', %s, false)", ("7",))
        return conn

    async def tenant_local(conn=Depends(pooled)):
        await conn.execute("select set_config('app.tenant', %s, true)", ("7",))
        return conn

    @app.get("/tenant")
    async def get_tenant(conn=Depends(tenant)):
        await conn.execute("select * from item")

    @app.get("/tenant-local")
    async def get_tenant_local(conn=Depends(tenant_local)):
        await conn.execute("select * from item")

    @app.get("/sync-role")
    def sync_role(conn=Depends(pooled_sync)):
        conn.execute("set time zone 'Europe/Lisbon'")

    @app.get("/sync-local")
    def sync_local(conn=Depends(pooled_sync)):
        conn.execute("set local time zone 'Europe/Lisbon'")

    @app.get("/fails")
    async def fails(conn=Depends(pooled)):
        await conn.execute("select pg_advisory_lock(7)")
        await conn.execute("select 1 / 0")

    @app.get("/function")
    async def function(conn=Depends(pooled)):
        await conn.execute("select log_in(%s)", ("tenant_a",))

    @app.get("/function-local")
    async def function_local(conn=Depends(pooled)):
        await conn.execute("select peek(%s)", ("tenant_a",))

    @app.get("/background")
    async def background(request: Request, tasks: BackgroundTasks):
        async def work():
            async with request.app.state.pool.connection() as conn:
                await conn.execute("create temp table scratch (id int)")

        tasks.add_task(work)

    @app.get("/hold")
    async def hold(conn=Depends(pooled)):
        async with conn.cursor("report", withhold=True) as cur:
            await cur.execute("select * from item")
        cur = conn.cursor("kept", withhold=True)
        await cur.execute("select * from item")

    @app.get("/hold-closed")
    async def hold_closed(conn=Depends(pooled)):
        async with conn.cursor("report", withhold=True) as cur:
            await cur.execute("select * from item")
            await conn.commit()
            await cur.fetchall()

    @app.get("/listen-and-notify")
    async def listen(conn=Depends(pooled)):
        await conn.execute("listen once")
        await conn.execute("notify once, 'hello'")
        await conn.commit()
        async for _ in conn.notifies(stop_after=1, timeout=2):
            pass
        await conn.execute("unlisten once")

    return app


LEAKY = ["/tenant", "/sync-role", "/function", "/background", "/hold"]
CLEAN = ["/tenant-local", "/sync-local", "/function-local", "/hold-closed", "/listen-and-notify"]


@pytest.fixture
def pgleak_app(dsn):
    return build(dsn)


@state_left
@pytest.mark.parametrize("path", LEAKY)
async def test_leaky(pgleak_client, path):
    assert (await pgleak_client.get(path)).status_code == 200


@pytest.mark.parametrize("path", CLEAN)
async def test_clean(pgleak_client, path):
    assert (await pgleak_client.get(path)).status_code == 200


@state_left
@pytest.mark.asyncio
@pytest.mark.parametrize("path", LEAKY)
async def test_leaky_pytest_asyncio(pgleak_client, path):
    assert (await pgleak_client.get(path)).status_code == 200


@state_left
@pytest.mark.parametrize("path", LEAKY)
def test_leaky_sync_client(pgleak_sync_client, path):
    assert pgleak_sync_client.get(path).status_code == 200


@pytest.mark.parametrize("path", CLEAN)
def test_clean_sync_client(pgleak_sync_client, path):
    assert pgleak_sync_client.get(path).status_code == 200


@state_left
@pytest.mark.parametrize("path", LEAKY)
def test_leaky_test_client_in_the_test(dsn, path):
    with TestClient(build(dsn)) as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", CLEAN)
def test_clean_test_client_in_the_test(dsn, path):
    with TestClient(build(dsn)) as client:
        assert client.get(path).status_code == 200


@pytest.fixture(scope="module")
def module_client(dsn):
    with TestClient(build(dsn)) as client:
        yield client


@state_left
@pytest.mark.parametrize("path", LEAKY)
def test_leaky_client_of_the_module(module_client, path):
    assert module_client.get(path).status_code == 200


@pytest.mark.parametrize("path", CLEAN)
def test_clean_client_of_the_module(module_client, path):
    assert module_client.get(path).status_code == 200


@state_left
@pytest.mark.parametrize("path", LEAKY)
async def test_leaky_httpx(dsn, path):
    app = build(dsn)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        assert (await client.get(path)).status_code == 200


@state_left
async def test_a_failed_request_leaves_it_too(pgleak_client):
    with pytest.raises(psycopg.errors.DivisionByZero):
        await pgleak_client.get("/fails")


@state_left
def test_one_line_is_one_finding(pool):
    for table in ("first", "second", "third"):
        with pool.connection() as conn:
            conn.execute(f"create temp table {table} (id int)")


@expect("session-state", "session-state")
async def test_two_lines_are_two(pgleak_client):
    await pgleak_client.get("/function")
    await pgleak_client.get("/background")


# --- lifespans


@asynccontextmanager
async def listening(app):
    async def listen():
        async with app.state.pool.connection() as conn:
            await conn.set_autocommit(True)
            await conn.execute("listen visits")
            started.set()
            async for _ in conn.notifies():
                pass

    started = asyncio.Event()
    task = asyncio.create_task(listen())
    await started.wait()
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def migrating(app):
    async with app.state.pool.connection() as conn:
        await conn.execute("set lock_timeout = '2s'")
    yield


def test_a_listener_that_ends_with_its_application(dsn):
    with TestClient(build(dsn, listening)) as client:
        assert client.get("/function-local").status_code == 200


def test_a_listener_of_a_running_application(dsn, module_client):
    conn = module_client.app.state.sync_pool.getconn()
    conn.autocommit = True
    conn.execute("listen visits")
    assert module_client.get("/function-local").status_code == 200
    conn.execute("unlisten visits")
    conn.autocommit = False
    module_client.app.state.sync_pool.putconn(conn)


@state_left
def test_what_start_up_leaves_requests_inherit(dsn):
    with TestClient(build(dsn, migrating)) as client:
        assert client.get("/function-local").status_code == 200


# --- fixtures


@pytest.fixture(scope="module")
def pool(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        yield pool


@pytest.fixture
def as_lisbon(pool):
    with pool.connection() as conn:
        conn.autocommit = True
        conn.execute("set time zone 'Europe/Lisbon'")
        yield conn
        conn.execute("reset time zone")
        conn.autocommit = False


@pytest.fixture
def as_lisbon_for_ever(pool):
    with pool.connection() as conn:
        conn.autocommit = True
        conn.execute("set time zone 'Europe/Lisbon'")
        yield conn
        conn.autocommit = False


@pytest.fixture
def prepared_for_the_test(pool):
    with pool.connection() as conn:
        conn.execute("set time zone 'Europe/Lisbon'")
    yield pool
    with pool.connection() as conn:
        conn.execute("reset time zone")


def test_a_fixture_that_sets_it_back(as_lisbon):
    assert as_lisbon.execute("show time zone").fetchone() == ("Europe/Lisbon",)


@state_left
def test_a_fixture_that_does_not(as_lisbon_for_ever):
    assert as_lisbon_for_ever.execute("show time zone").fetchone() == ("Europe/Lisbon",)


def test_and_the_next_does_not_inherit_it(pool):
    with pool.connection() as conn:
        assert conn.execute("show time zone").fetchone() != ("Europe/Lisbon",)


def test_a_fixture_prepares_what_the_test_uses(prepared_for_the_test):
    with prepared_for_the_test.connection() as conn:
        assert conn.execute("show time zone").fetchone() == ("Europe/Lisbon",)
        conn.execute("set local time zone 'UTC'")


@state_left
def test_on_the_connection_of_a_fixture(as_lisbon):
    as_lisbon.execute("listen visits")


# --- what psycopg does for itself


def test_prepared_statements(pool):
    with pool.connection() as conn:
        for number in range(10):
            conn.execute("select %s::int", (number,))
        conn.execute("select 1", prepare=True)


def test_pipeline_copy_stream_and_many(pool):
    with pool.connection() as conn:
        with conn.pipeline():
            conn.execute("set local time zone 'Europe/Lisbon'")
            conn.execute("select 1")
        with conn.cursor(row_factory=dict_row) as cur:
            cur.executemany("insert into item (name) values (%s)", [("a",), ("b",)])
            with cur.copy("copy item (name) from stdin") as copy:
                copy.write_row(("c",))
            assert list(cur.stream("select 1 as a"))


@state_left
def test_in_a_pipeline(pool):
    with pool.connection() as conn, conn.pipeline():
        conn.execute("set time zone 'Europe/Lisbon'")
        conn.execute("select 1")


# --- looking disturbs nothing


def left(tracker):
    return [finding for finding in tracker.findings() if finding.kind == "session-state"]


SEEN = """
    select pg_backend_pid(), current_setting('app.user_id', true), current_setting('role'), session_user::text,
        (select array_agg(name || '=' || setting order by name) from pg_settings where source = 'session'),
        (select array_agg(c order by c) from pg_listening_channels() c),
        (select array_agg(name order by name) from pg_cursors),
        (select array_agg(statement order by name) from pg_prepared_statements),
        (select array_agg(objid::text order by objid) from pg_locks
            where locktype = 'advisory' and pid = pg_backend_pid()),
        (select array_agg(relname order by relname) from pg_class where relnamespace = pg_my_temp_schema())
"""


def dirty():
    return [
        "set app.user_id = '7'",
        "set search_path to public, pg_catalog",
        "set role pg_monitor",
        "set session characteristics as transaction isolation level serializable",
        "select pg_advisory_lock(42)",
        "listen visits",
        "create temp table scratch (id serial)",
        "declare c cursor with hold for select 1",
    ]


def picture(conn):
    return (
        conn.execute(SEEN).fetchone(),
        conn.autocommit,
        conn.info.transaction_status,
        conn.isolation_level,
        conn.read_only,
        dict(conn._prepared._names),
        {statement for statement, _ in conn._prepared._counts},
        conn.info.parameter_status("client_encoding"),
        conn.pgconn.notice_handler is not None,
    )


@pytest.mark.pgleak(allow=["session-state"])
@pytest.mark.parametrize("autocommit", [False, True])
def test_looking_changes_nothing(dsn, pgleak, autocommit):
    notices, notified = [], []
    kwargs = {"autocommit": autocommit}
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False, kwargs=kwargs) as pool:
        with pool.connection() as conn:
            conn.add_notice_handler(notices.append)
            for statement in dirty():
                conn.execute(statement)
            conn.execute("select %s::text", ("x",), prepare=True)
            picture(conn)
            conn.commit()
            before = picture(conn)
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("notify visits, 'first'")
        stats = pool.get_stats()
        assert len(left(pgleak)) == 1
        assert {k: v for k, v in pool.get_stats().items() if k != "usage_ms"} == {
            k: v for k, v in stats.items() if k != "usage_ms"
        }
        with pool.connection() as conn:
            notified += [n.payload for n in conn.notifies(timeout=1, stop_after=1)]
            conn.add_notify_handler(lambda n: notified.append(n.payload))
            after = picture(conn)
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("notify visits, 'second'")
        pgleak.findings()
        assert notified == ["first"]
        with pool.connection() as conn:
            conn.execute("select 1")
        assert notified == ["first", "second"]
    assert after == before
    assert notices == []


@pytest.mark.pgleak(allow=["session-state"])
async def test_looking_changes_nothing_async(dsn, pgleak):
    async def picture():
        row = await (await conn.execute(SEEN)).fetchone()
        return (row, conn.autocommit, conn.info.transaction_status, dict(conn._prepared._names))

    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        async with pool.connection() as conn:
            for statement in dirty():
                await conn.execute(statement)
            await conn.execute("select %s::text", ("x",), prepare=True)
            await conn.commit()
            before = await picture()
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await other.execute("notify visits, 'first'")
        assert len(left(pgleak)) == 1
        async with pool.connection() as conn:
            assert [n.payload async for n in conn.notifies(timeout=1, stop_after=1)] == ["first"]
            assert await picture() == before


@pytest.mark.pgleak(allow=["session-state"])
def test_a_connection_in_use_is_not_asked(dsn, pgleak):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        with pool.connection() as conn:
            conn.execute("set time zone 'Europe/Lisbon'")
            pid = conn.info.backend_pid
            assert left(pgleak) == []
            with psycopg.connect(dsn, autocommit=True) as other:
                query = other.execute("select query, state from pg_stat_activity where pid = %s", (pid,)).fetchone()
            assert query == ("set time zone 'Europe/Lisbon'", "idle in transaction")
        assert len(left(pgleak)) == 1


def test_nothing_suspicious_is_not_asked(dsn, pgleak):
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        with pool.connection() as conn:
            conn.execute("select count(*) from item")
            pid = conn.info.backend_pid
        assert left(pgleak) == []
        with psycopg.connect(dsn, autocommit=True) as other:
            assert other.execute("select query from pg_stat_activity where pid = %s", (pid,)).fetchone() == ("COMMIT",)


@pytest.mark.pgleak(allow=["session-state"])
@pytest.mark.parametrize("size", [1, 2])
def test_others_use_the_pool_meanwhile(dsn, pgleak, size):
    wrong, stop = [], threading.Event()

    def use():
        while not stop.wait(0.005):
            try:
                conn = pool.getconn(timeout=10)
                if conn.info.transaction_status.name != "IDLE":
                    wrong.append(conn.info.transaction_status)
                pool.putconn(conn)
                with pool.connection() as conn:
                    conn.execute("set application_name = 'x'")
                    if conn.execute("select 1 + 1").fetchone() != (2,):
                        wrong.append("answer")
            except Exception as error:  # noqa: BLE001 - whatever it is, the main thread shall see it
                wrong.append(error)

    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=size, open=False) as pool:
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        looks = 0
        for _ in range(5000):
            looks += bool(left(pgleak))
            if looks == 50:
                break
            stop.wait(0.001)
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert looks == 50
        assert pool.get_stats().get("returns_bad", 0) == 0
        assert pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"]
