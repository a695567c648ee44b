"""Commits that come after the response: found where the marker asks for it, and only there."""

import asyncio
from contextlib import asynccontextmanager, suppress

import psycopg
import psycopg_pool
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware

pytestmark = [pytest.mark.pgleak(commit="before-response", grace=5), pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
late = expect("commit-after-response")

INSERT = "insert into item(name) values ('x')"


def build(dsn):
    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as app.state.pool:
            with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=4, open=False) as app.state.sync_pool:
                yield

    app = FastAPI(lifespan=lifespan)

    def sync_with():
        with psycopg.connect(dsn) as conn:
            yield conn

    def sync_pooled(request: Request):
        with request.app.state.sync_pool.connection() as conn:
            yield conn

    def sync_by_hand():
        conn = psycopg.connect(dsn)
        try:
            yield conn
            conn.commit()
        finally:
            conn.close()

    def sync_block():
        with psycopg.connect(dsn, autocommit=True) as conn, conn.transaction():
            yield conn

    def sync_sql():
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("begin")
            yield conn
            conn.execute("commit")

    async def async_with():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            yield conn

    async def async_pooled(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    async def async_by_hand():
        conn = await psycopg.AsyncConnection.connect(dsn)
        try:
            yield conn
            await conn.commit()
        finally:
            await conn.close()

    async def async_block():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn, conn.transaction():
            yield conn

    async def async_pipeline():
        async with await psycopg.AsyncConnection.connect(dsn) as conn, conn.pipeline():
            yield conn

    async def autocommit():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            yield conn

    for dependency in (sync_with, sync_pooled, sync_by_hand, sync_block, sync_sql):
        app.include_router(sync_router(dependency))
    for dependency in (async_with, async_pooled, async_by_hand, async_block, async_pipeline, autocommit):
        app.include_router(async_router(dependency))

    @app.post("/background-on-its-own")
    async def background_on_its_own(tasks: BackgroundTasks):
        async def work():
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute(INSERT)

        tasks.add_task(work)

    @app.post("/background-finishes")
    async def background_finishes(tasks: BackgroundTasks):
        """The endpoint's own write is committed by a background task."""
        conn = await psycopg.AsyncConnection.connect(dsn)
        await conn.execute(INSERT)

        async def finish():
            await conn.commit()
            await conn.close()

        tasks.add_task(finish)

    @app.post("/task-on-its-own")
    async def task_on_its_own():
        async def work():
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute(INSERT)

        task = asyncio.create_task(work())
        app.state.task = task

    @app.post("/stream-on-its-own")
    async def stream_on_its_own():
        async def body():
            yield "a"
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute(INSERT)
            yield "b"

        return StreamingResponse(body())

    @app.post("/stream-with-the-requests")
    async def stream_with_the_requests(conn=Depends(async_with)):
        await conn.execute(INSERT)

        async def body():
            yield "a"

        return StreamingResponse(body())

    @app.websocket("/socket")
    async def socket(socket: WebSocket):
        await socket.accept()
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute(INSERT)
        await socket.send_text("done")
        await socket.close()

    return app


def sync_router(dependency):
    router = APIRouter(prefix=f"/{dependency.__name__}")

    @router.post("/written")
    def written(conn=Depends(dependency)):
        conn.execute(INSERT)

    @router.post("/function")
    def function(conn=Depends(dependency, scope="function")):
        conn.execute(INSERT)

    @router.post("/endpoint")
    def endpoint(conn=Depends(dependency)):
        conn.execute(INSERT)
        if not conn.autocommit:
            conn.commit()

    @router.post("/read")
    def read(conn=Depends(dependency)):
        conn.execute("select 1")

    @router.post("/sequence")
    def sequence(conn=Depends(dependency)):
        conn.execute("select nextval('item_id_seq')")

    @router.post("/refused")
    def refused(conn=Depends(dependency)):
        conn.execute(INSERT)
        raise HTTPException(409)

    @router.post("/conflict")
    def conflict(conn=Depends(dependency)):
        """Written down that it was refused: nobody was promised anything."""
        conn.execute(INSERT)
        return JSONResponse({}, 409)

    return router


def async_router(dependency):
    router = APIRouter(prefix=f"/{dependency.__name__}")

    @router.post("/written")
    async def written(conn=Depends(dependency)):
        await conn.execute(INSERT)

    @router.post("/function")
    async def function(conn=Depends(dependency, scope="function")):
        await conn.execute(INSERT)

    @router.post("/endpoint")
    async def endpoint(conn=Depends(dependency)):
        await conn.execute(INSERT)
        if not conn.autocommit:
            await conn.commit()

    @router.post("/read")
    async def read(conn=Depends(dependency)):
        await conn.execute("select 1")

    @router.post("/sequence")
    async def sequence(conn=Depends(dependency)):
        await conn.execute("select nextval('item_id_seq')")

    @router.post("/refused")
    async def refused(conn=Depends(dependency)):
        await conn.execute(INSERT)
        raise HTTPException(409)

    @router.post("/conflict")
    async def conflict(conn=Depends(dependency)):
        await conn.execute(INSERT)
        return JSONResponse({}, 409)

    return router


@pytest.fixture(scope="session")
def pgleak_app(dsn):
    return build(dsn)


SYNC = ["sync_with", "sync_pooled", "sync_by_hand"]
ASYNC = ["async_with", "async_pooled", "async_by_hand"]
BLOCKS = ["sync_block", "sync_sql", "async_block"]


def paths():
    for name in SYNC + ASYNC + BLOCKS:
        yield pytest.param(f"/{name}/written", marks=late)
        for way in ("function", "read", "sequence", "conflict"):
            yield f"/{name}/{way}"
        if name != "sync_sql":  # left by the exception, it goes on to the next user
            yield f"/{name}/refused"
    for name in SYNC + ASYNC:
        yield f"/{name}/endpoint"
    for way in ("written", "function", "endpoint", "read", "sequence", "refused", "conflict"):
        yield f"/autocommit/{way}"
    yield "/background-on-its-own"
    yield pytest.param("/background-finishes", marks=late)
    yield "/task-on-its-own"
    yield "/stream-on-its-own"
    yield pytest.param("/stream-with-the-requests", marks=late)


@pytest.mark.parametrize("path", list(paths()))
async def test_async_client(pgleak_client, path):
    await pgleak_client.post(path)


@pytest.mark.parametrize("path", list(paths()))
def test_sync_client(pgleak_sync_client, path):
    pgleak_sync_client.post(path)


@pytest.mark.parametrize("path", ["/async_with/written", "/sync_with/written", "/background-finishes"])
@pytest.mark.pgleak
async def test_nobody_asked(pgleak_client, path):
    """The nearest marker asks for nothing."""
    await pgleak_client.post(path)


@pytest.mark.pgleak(commit="before-response", allow=["commit-after-response"])
async def test_allowed(pgleak_client):
    await pgleak_client.post("/async_with/written")


@late
async def test_in_a_pipeline(pgleak_client):
    await pgleak_client.post("/async_pipeline/written")


async def test_in_a_pipeline_of_function_scope(pgleak_client):
    await pgleak_client.post("/async_pipeline/function")


@expect("commit-after-response", "commit-after-response")
async def test_two_requests(pgleak_client):
    for path in ("/async_with/written", "/sync_with/written", "/async_with/endpoint"):
        await pgleak_client.post(path)


def test_web_socket(pgleak_sync_client):
    with pgleak_sync_client.websocket_connect("/socket") as socket:
        assert socket.receive_text() == "done"


def test_direct_calls(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute(INSERT)


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=late)])
def test_commit_of_a_middleware(dsn, when):
    app = FastAPI()

    class Pure:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                scope["conn"] = conn

                async def sending(message):
                    if message["type"] == "http.response.start" and when == "before":
                        await conn.commit()
                    await send(message)

                await self.app(scope, receive, sending)

    @app.post("/")
    async def write(request: Request):
        await request.scope["conn"].execute(INSERT)

    app.add_middleware(Pure)
    assert TestClient(app).post("/").status_code == 200


def test_commit_of_a_base_http_middleware(dsn):
    """It holds the whole response back until it returns."""
    app = FastAPI()

    class Middleware(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                request.state.conn = conn
                return await call_next(request)

    @app.post("/")
    async def write(request: Request):
        await request.state.conn.execute(INSERT)

    app.add_middleware(Middleware)
    assert TestClient(app).post("/").status_code == 200


# The commit comes too late, and fails: that is a lost write, and not this as well.
@expect("write-lost")
async def test_it_fails(dsn):
    import httpx

    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute("create table if not exists late (id int primary key deferrable initially deferred)")
    app = FastAPI()

    async def dependency():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            yield conn

    @app.post("/")
    async def write(conn=Depends(dependency)):
        await conn.execute("insert into late values (1), (1)")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with suppress(psycopg.errors.UniqueViolation):
            await client.post("/")
