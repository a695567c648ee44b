"""Applications that live longer than a request: lifespans, on_event, several applications, clients of every scope."""

import asyncio
import contextlib
import threading
import time

import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []


def build(dsn, lifespan):
    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root(request: Request):
        if (pool := getattr(request.app.state, "pool", None)) is not None:
            async with pool.connection() as conn:
                await conn.execute("select 1")

    @app.get("/write")
    async def write(request: Request):
        await request.app.state.conn.execute("insert into item(name) values ('x')")  # leaks

    @app.get("/getconn")
    async def getconn(request: Request):
        request.app.state.taken = await request.app.state.pool.getconn()  # leaks

    return app


def lifespans(dsn):
    @contextlib.asynccontextmanager
    async def pool_clean(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as app.state.pool:
            yield

    @contextlib.asynccontextmanager
    async def pool_leaky(app):
        app.state.pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False)
        await app.state.pool.open()  # leaks
        yield

    @contextlib.asynccontextmanager
    async def connection_leaky(app):
        app.state.conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)  # leaks
        yield

    @contextlib.asynccontextmanager
    async def sync_pool_leaky(app):
        app.state.sync_pool = psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)  # leaks
        yield

    @contextlib.asynccontextmanager
    async def migrations_leaky(app):
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        await conn.execute("select 1")
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as app.state.pool:
            yield

    @contextlib.asynccontextmanager
    async def migrations_clean(app):
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute("select 1")
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as app.state.pool:
            yield

    @contextlib.asynccontextmanager
    async def listener_clean(app):
        async def listen():
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
                await conn.execute("listen reports")
                async for _ in conn.notifies():
                    pass

        task = asyncio.create_task(listen())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    @contextlib.asynccontextmanager
    async def advisory_lock_clean(app):
        """Leader election: a session lock and an open snapshot, held on purpose."""
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute("select pg_advisory_lock(4242)")
            yield

    @contextlib.asynccontextmanager
    async def closes_with_checkout_out(app):
        """`pool.close()` at the end of the lifespan with checkouts out: it returns, and says nothing."""
        app.state.pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False)
        await app.state.pool.open()
        app.state.held = await app.state.pool.getconn()  # leaks
        yield
        await app.state.pool.close()

    return locals()


CASES = [
    "pool_clean",
    pytest.param("pool_leaky", marks=expect("pool-not-closed")),
    pytest.param("connection_leaky", marks=expect("connection-not-closed")),
    pytest.param("sync_pool_leaky", marks=expect("pool-not-closed")),
    pytest.param("migrations_leaky", marks=expect("connection-dropped")),
    "migrations_clean",
    "listener_clean",
    "advisory_lock_clean",
    pytest.param("closes_with_checkout_out", marks=expect("connection-not-returned")),
]


class TestEveryLifespan:
    @pytest.fixture
    def pgleak_app(self, dsn, name):
        app = build(dsn, lifespans(dsn)[name])
        KEPT.append(app)
        return app

    @pytest.mark.parametrize("name", CASES)
    async def test_async_client(self, pgleak_client, name):
        await asyncio.sleep(0.05)
        assert (await pgleak_client.get("/")).status_code == 200

    @pytest.mark.parametrize("name", CASES)
    def test_sync_client(self, pgleak_sync_client, name):
        time.sleep(0.05)
        assert pgleak_sync_client.get("/").status_code == 200

    @pytest.mark.parametrize("name", CASES)
    def test_own_client(self, pgleak_app, name):
        with TestClient(pgleak_app) as client:
            time.sleep(0.05)
            assert client.get("/").status_code == 200

    @pytest.fixture
    def client(self, pgleak_app):
        with TestClient(pgleak_app) as client:
            yield client

    @pytest.mark.parametrize("name", CASES)
    def test_own_fixture(self, client, name):
        time.sleep(0.05)
        assert client.get("/").status_code == 200

    @pytest.mark.parametrize("name", CASES)
    async def test_lifespan_context(self, pgleak_app, name):
        transport = httpx.ASGITransport(app=pgleak_app)
        async with (
            pgleak_app.router.lifespan_context(pgleak_app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as client,
        ):
            await asyncio.sleep(0.05)
            assert (await client.get("/")).status_code == 200


# -- start-up and shutdown events, as before lifespans -------------------------------------------------------------


def with_events(dsn, closes):
    app = FastAPI()

    @app.on_event("startup")
    async def startup():
        app.state.pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False)
        await app.state.pool.open()  # leaks

    @app.on_event("shutdown")
    async def shutdown():
        if closes:
            await app.state.pool.close()

    @app.get("/")
    async def root():
        async with app.state.pool.connection() as conn:
            await conn.execute("select 1")

    return app


@pytest.mark.parametrize("closes", [True, pytest.param(False, marks=expect("pool-not-closed"))])
def test_events(dsn, closes):
    with TestClient(with_events(dsn, closes)) as client:
        client.get("/")


# -- clients of wider scopes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_client(dsn):
    with TestClient(build(dsn, lifespans(dsn)["pool_clean"])) as client:
        yield client


@pytest.mark.parametrize("number", range(3))
def test_module_client(module_client, number):
    module_client.get("/")


@expect("connection-not-returned")
def test_module_client_getconn(module_client):
    module_client.get("/getconn")


def test_module_client_again(module_client):
    module_client.get("/")


@pytest.fixture(scope="session")
def session_client_without_with(dsn):
    return TestClient(build(dsn, None))


def test_session_client_without_with(session_client_without_with):
    session_client_without_with.get("/")


class TestClassClientLeaks:
    @pytest.fixture(scope="class")
    def client(self, dsn):
        app = build(dsn, lifespans(dsn)["pool_leaky"])
        KEPT.append(app)
        with TestClient(app) as client:
            yield client

    def test_first(self, client):
        client.get("/")

    @expect("pool-not-closed")
    def test_last(self, client):
        client.get("/")


# -- several applications ------------------------------------------------------------------------------------------


def test_two_applications(dsn):
    collected = lifespans(dsn)
    with (
        TestClient(build(dsn, collected["pool_clean"])) as first,
        TestClient(build(dsn, collected["migrations_clean"])) as second,
    ):
        first.get("/")
        second.get("/")


@expect("pool-not-closed")
def test_two_applications_one_leaks(dsn):
    collected = lifespans(dsn)
    with (
        TestClient(build(dsn, collected["pool_clean"])) as first,
        TestClient(build(dsn, collected["pool_leaky"])) as second,
    ):
        first.get("/")
        second.get("/")


@pytest.mark.parametrize("closes", [True, pytest.param(False, marks=expect("connection-dropped"))])
def test_mounted_starlette(dsn, closes):
    async def page(request):
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        await conn.execute("select 1")
        if closes:
            await conn.close()
        return PlainTextResponse("ok")

    app = FastAPI()
    app.mount("/admin", Starlette(routes=[Mount("/inner", routes=[Route("/page", page)])]))
    assert TestClient(app).get("/admin/inner/page").text == "ok"


@pytest.mark.parametrize("closes", [True, pytest.param(False, marks=expect("connection-dropped"))])
async def test_bare_asgi_application(dsn, closes):
    async def app(scope, receive, send):
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        await conn.execute("select 1")
        if closes:
            await conn.close()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as client:
        await client.get("/")


@pytest.mark.parametrize("closes", [True, pytest.param(False, marks=expect("connection-dropped"))])
async def test_middleware_around_the_application(dsn, closes):
    inner = FastAPI()

    async def outer(scope, receive, send):
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        try:
            await inner(scope, receive, send)
        finally:
            if closes:
                await conn.close()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://t") as client:
        await client.get("/")


# -- a real server in a thread -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live_server(dsn):
    uvicorn = pytest.importorskip("uvicorn")
    app = build(dsn, lifespans(dsn)["pool_clean"])

    async def get_conn():
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        yield conn
        await asyncio.sleep(0.05)
        await conn.close()

    @app.get("/late")
    async def late(conn=Depends(get_conn)):
        await conn.execute("select 1")

    @app.get("/fails")
    async def fails(conn=Depends(get_conn)):
        raise RuntimeError

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_live_server(live_server):
    assert httpx.get(f"{live_server}/").status_code == 200


def test_live_server_closes_after_the_response(live_server):
    assert httpx.get(f"{live_server}/late").status_code == 200


@expect("connection-dropped")
def test_live_server_leak(live_server):
    assert httpx.get(f"{live_server}/fails").status_code == 500


@expect("connection-not-returned")
def test_live_server_getconn(live_server):
    assert httpx.get(f"{live_server}/getconn").status_code == 200
