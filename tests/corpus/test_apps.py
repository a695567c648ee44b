"""FastAPI applications through every sort of client."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []


def build(dsn):
    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
            app.state.pool = pool
            app.state.conn = await psycopg.AsyncConnection.connect(dsn)
            yield {"from_lifespan": True}
            await app.state.conn.close()

    app = FastAPI(lifespan=lifespan)

    async def returned():
        return await psycopg.AsyncConnection.connect(dsn)

    def returned_sync():
        return psycopg.connect(dsn)

    async def bare_yield():
        conn = await psycopg.AsyncConnection.connect(dsn)
        yield conn
        await conn.close()

    async def by_hand():
        conn = await psycopg.AsyncConnection.connect(dsn)
        try:
            yield conn
            await conn.commit()
        except BaseException:
            await conn.rollback()
            raise
        finally:
            await conn.close()

    def by_hand_sync():
        conn = psycopg.connect(dsn)
        try:
            yield conn
        finally:
            conn.close()

    async def managed():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            yield conn

    async def pooled(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    async def getconn_only(request: Request):
        return await request.app.state.pool.getconn()

    async def putconn_on_success(request: Request):
        conn = await request.app.state.pool.getconn()
        yield conn
        await request.app.state.pool.putconn(conn)

    async def leave_generator(request: Request):
        async def generate():
            conn = await request.app.state.pool.getconn()
            yield conn
            await request.app.state.pool.putconn(conn)

        async for conn in generate():
            return conn

    async def pool_per_request():
        pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False)
        await pool.open()
        async with pool.connection() as conn:
            yield conn

    for name, dependency in list(locals().items()):
        if name in ("dsn", "lifespan", "app"):
            continue

        def add(name, dependency):
            if name.endswith("_sync"):

                @app.post(f"/{name}")
                def write(conn=Depends(dependency)):
                    conn.execute("insert into item(name) values ('x')")
                    conn.commit()
                    return {}

                @app.get(f"/{name}/404")
                def fail(conn=Depends(dependency)):
                    raise HTTPException(404)
            else:

                @app.post(f"/{name}")
                async def write(conn=Depends(dependency)):
                    await conn.execute("insert into item(name) values ('x')")
                    await conn.commit()
                    return {}

                @app.get(f"/{name}/404")
                async def fail(conn=Depends(dependency)):
                    raise HTTPException(404)

        add(name, dependency)

    @app.post("/endpoint/closed")
    async def endpoint_closed():
        conn = await psycopg.AsyncConnection.connect(dsn)
        try:
            await conn.execute("insert into item(name) values ('x')")
            await conn.commit()
        finally:
            await conn.close()

    @app.post("/endpoint/early")
    async def endpoint_early(stop: bool = True):
        conn = await psycopg.AsyncConnection.connect(dsn)
        if stop:
            return {}
        await conn.close()

    @app.get("/endpoint/boom")
    async def endpoint_boom():
        conn = await psycopg.AsyncConnection.connect(dsn)
        raise RuntimeError("boom")
        await conn.close()

    @app.post("/state/no-commit")
    async def state_no_commit(request: Request):
        await request.app.state.conn.execute("insert into item(name) values ('x')")

    @app.post("/state/commit")
    async def state_commit(request: Request):
        async with request.app.state.conn.transaction():
            await request.app.state.conn.execute("insert into item(name) values ('x')")

    @app.get("/state/lifespan")
    async def state_lifespan(request: Request):
        return request.state.from_lifespan

    @app.post("/background")
    async def background(tasks: BackgroundTasks, conn=Depends(managed)):
        async def work():
            await asyncio.sleep(0.05)
            await conn.execute("insert into item(name) values ('x')")

        tasks.add_task(work)

    @app.post("/fire-and-forget/{seconds}")
    async def fire_and_forget(seconds: float, request: Request):
        async def keep():
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute("select 1")
                await asyncio.sleep(seconds)

        KEPT.append(asyncio.create_task(keep()))
        await asyncio.sleep(0)

    @app.get("/stream")
    async def stream(conn=Depends(pooled)):
        async def rows():
            for _ in range(3):
                cur = await conn.execute("select 1")
                yield str(await cur.fetchone())

        return StreamingResponse(rows())

    @app.websocket("/ws/{clean}")
    async def ws(websocket: WebSocket, clean: int):
        await websocket.accept()
        conn = await psycopg.AsyncConnection.connect(dsn)
        if clean:
            await conn.close()
        await websocket.close()

    sub = FastAPI()

    @sub.get("/leak")
    async def sub_leak(conn=Depends(returned)):
        return {}

    app.mount("/sub", sub)
    return app


@pytest.fixture(scope="session")
def pgleak_app(dsn):
    return build(dsn)


LEAKY = {
    "returned": ("connection-dropped", "connection-dropped"),
    "returned_sync": ("connection-dropped", "connection-dropped"),
    "bare_yield": (None, "connection-dropped"),
    "getconn_only": ("connection-not-returned", "connection-not-returned"),
    "putconn_on_success": (None, "connection-not-returned"),
    "pool_per_request": ("pool-not-closed", "pool-not-closed"),
    "leave_generator": ("connection-not-returned", "connection-not-returned"),
    "by_hand": (None, None),
    "by_hand_sync": (None, None),
    "managed": (None, None),
    "pooled": (None, None),
}


def cases():
    for name, kinds in LEAKY.items():
        for path, method, kind in zip((f"/{name}", f"/{name}/404"), ("POST", "GET"), kinds, strict=True):
            yield pytest.param(method, path, marks=[expect(kind)] if kind else [])


@pytest.mark.parametrize(("method", "path"), cases())
async def test_async_client(pgleak_client, method, path):
    assert (await pgleak_client.request(method, path)).status_code in (200, 404)


@pytest.mark.parametrize(("method", "path"), cases())
def test_sync_client(pgleak_sync_client, method, path):
    assert pgleak_sync_client.request(method, path).status_code in (200, 404)


@pytest.mark.parametrize(("method", "path"), cases())
def test_own_client(dsn, method, path):
    with TestClient(build(dsn)) as client:
        assert client.request(method, path).status_code in (200, 404)


async def test_endpoint_closed(pgleak_client):
    assert (await pgleak_client.post("/endpoint/closed")).status_code == 200


@expect("connection-dropped")
async def test_endpoint_early(pgleak_client):
    assert (await pgleak_client.post("/endpoint/early")).status_code == 200


@expect("connection-dropped")
async def test_endpoint_boom(pgleak_client):
    with pytest.raises(RuntimeError, match="boom"):
        await pgleak_client.get("/endpoint/boom")


@expect("transaction-left-open")
async def test_no_commit_on_lifespan_connection(pgleak_client):
    await pgleak_client.post("/state/no-commit")


@expect("transaction-left-open")
def test_no_commit_on_lifespan_connection_sync(pgleak_sync_client):
    pgleak_sync_client.post("/state/no-commit")


async def test_commit_on_lifespan_connection(pgleak_client):
    await pgleak_client.post("/state/commit")


async def test_lifespan_state(pgleak_client):
    assert (await pgleak_client.get("/state/lifespan")).json() is True


async def test_background_task(pgleak_client):
    await pgleak_client.post("/background")


async def test_fire_and_forget_that_finishes(pgleak_client):
    await pgleak_client.post("/fire-and-forget/0.1")


@expect("connection-not-closed")
async def test_fire_and_forget_that_does_not(pgleak_client):
    await pgleak_client.post("/fire-and-forget/60")


@expect("connection-not-closed")
def test_fire_and_forget_sync(pgleak_sync_client):
    pgleak_sync_client.post("/fire-and-forget/60")


async def test_stream(pgleak_client):
    assert (await pgleak_client.get("/stream")).text == "(1,)(1,)(1,)"


def test_stream_sync(pgleak_sync_client):
    assert pgleak_sync_client.get("/stream").text == "(1,)(1,)(1,)"


def test_websocket_clean(pgleak_sync_client):
    with pgleak_sync_client.websocket_connect("/ws/1") as ws:
        assert ws.receive()["type"] == "websocket.close"


@expect("connection-dropped")
def test_websocket_leak(pgleak_sync_client):
    with pgleak_sync_client.websocket_connect("/ws/0") as ws:
        assert ws.receive()["type"] == "websocket.close"


@expect("connection-dropped")
async def test_mounted(pgleak_client):
    assert (await pgleak_client.get("/sub/leak")).status_code == 200


async def test_concurrent_requests(pgleak_client):
    answers = await asyncio.gather(*(pgleak_client.post("/pooled") for _ in range(12)))
    assert {answer.status_code for answer in answers} == {200}


@expect(*["connection-dropped"] * 5)
async def test_concurrent_leaks(pgleak_client):
    await asyncio.gather(*(pgleak_client.post("/returned") for _ in range(5)))


@expect("connection-dropped")
async def test_own_asgi_transport(dsn):
    app = build(dsn)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as client:
        await client.post("/returned")


def test_client_without_lifespan(dsn):
    client = TestClient(build(dsn))
    client.post("/managed")
    client.post("/endpoint/closed")


@expect("pool-not-closed")
async def test_lifespan_forgets_the_pool(dsn, own_app_client):
    await own_app_client("forgets").get("/")


def forgetful(dsn, how):
    @asynccontextmanager
    async def lifespan(app):
        pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False)
        await pool.open()
        if how == "kept":
            KEPT.append(pool)
        app.state.pool = pool
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root(request: Request):
        async with request.app.state.pool.connection() as conn:
            await conn.execute("select 1")

    return app


class TestForgetfulLifespan:
    @pytest.fixture(params=["state", "kept"])
    def pgleak_app(self, dsn, request):
        return forgetful(dsn, request.param)

    @expect("pool-not-closed")
    async def test_async(self, pgleak_client):
        await pgleak_client.get("/")

    @expect("pool-not-closed")
    def test_sync(self, pgleak_sync_client):
        pgleak_sync_client.get("/")


@pytest.fixture
def own_app_client(dsn):
    def make(how):
        app = forgetful(dsn, how)
        transport = httpx.ASGITransport(app=app)

        class Client:
            async def get(self, path):
                async with (
                    app.router.lifespan_context(app),
                    httpx.AsyncClient(transport=transport, base_url="http://t") as client,
                ):
                    return await client.get(path)

        return Client()

    return make


@pytest.fixture(scope="module")
def module_client(dsn):
    with TestClient(build(dsn)) as client:
        yield client


def test_module_client_first(module_client):
    module_client.post("/pooled")


@expect("connection-not-returned")
def test_module_client_leak(module_client):
    module_client.post("/getconn_only")


@pytest.mark.parametrize("number", range(5))
def test_module_client_many(module_client, number):
    module_client.post("/pooled")


def test_dependency_override(dsn, pgleak_app, isolated):
    app = FastAPI()

    def get_conn():
        with psycopg.connect(dsn) as conn:
            yield conn

    @app.post("/")
    def write(conn=Depends(get_conn)):
        conn.execute("insert into item(name) values ('x')")

    app.dependency_overrides[get_conn] = lambda: isolated
    with TestClient(app) as client:
        assert client.post("/").status_code == 200


@pytest.fixture
def isolated(dsn):
    with psycopg.connect(dsn) as conn, conn.transaction(force_rollback=True):
        yield conn
