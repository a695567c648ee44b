"""Middlewares, streams, cancellation, background work: requests that do not simply end. `# leaks` is the line."""

import asyncio
import contextlib
import contextvars
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

KEPT = []
CURRENT = contextvars.ContextVar("CURRENT", default=None)
LOCAL = threading.local()


class RepositoryError(Exception):
    pass


def build(dsn):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.executor = ThreadPoolExecutor(2)

    # Middlewares that hand a connection to the endpoint (fastapi#4719).
    @app.middleware("http")
    async def connection_middleware(request: Request, call_next):
        if not request.url.path.startswith("/middleware/"):
            return await call_next(request)
        conn = await request.app.state.pool.getconn()  # leaks
        request.state.conn = conn
        response = await call_next(request)
        if request.url.path.endswith("/clean") or response.status_code == 200:
            await request.app.state.pool.putconn(conn)
        return response

    @app.get("/middleware/clean")
    async def middleware_clean(request: Request):
        await request.state.conn.execute("select 1")
        await request.state.conn.commit()

    @app.get("/middleware/leaky")
    async def middleware_leaky(request: Request):
        raise HTTPException(409)

    class RawMiddleware:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["type"] != "http" or not scope["path"].startswith("/raw/"):
                await self.app(scope, receive, send)
            elif scope["path"].endswith("/clean"):
                async with await psycopg.AsyncConnection.connect(dsn) as conn:
                    scope["state"]["conn"] = conn
                    await self.app(scope, receive, send)
            else:
                scope["state"]["conn"] = await psycopg.AsyncConnection.connect(dsn)  # leaks
                await self.app(scope, receive, send)

    app.add_middleware(RawMiddleware)

    for how in ("clean", "leaky"):

        @app.get(f"/raw/{how}")
        async def raw(request: Request):
            cur = await request.state.conn.execute("select 1")
            return (await cur.fetchone())[0]

    class AuditMiddleware(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            response = await call_next(request)
            if request.url.path == "/audit/leaky":
                conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
                await conn.execute("select 1")
            if request.url.path == "/audit/clean":
                async with request.app.state.pool.connection() as conn:
                    await conn.execute("select 1")
            return response

    app.add_middleware(AuditMiddleware)

    @app.get("/audit/{how}")
    async def audit(how: str):
        return how

    # Exception handlers.
    @app.exception_handler(RepositoryError)
    async def on_error(request: Request, error: RepositoryError):
        if request.url.path == "/error/leaky":
            conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
            await conn.execute("select 1")
        else:
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute("select 1")
        return JSONResponse({}, 503)

    @app.get("/error/{how}")
    async def error(how: str):
        raise RepositoryError

    # Cancellation: what is not in a `finally` does not run.
    async def except_exception(request: Request):
        conn = await request.app.state.pool.getconn()  # leaks
        try:
            yield conn
        except Exception:
            await request.app.state.pool.putconn(conn)
            raise
        else:
            await request.app.state.pool.putconn(conn)

    async def pooled(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    @app.get("/slow/leaky")
    async def slow_leaky(conn=Depends(except_exception)):
        await asyncio.sleep(30)

    @app.get("/slow/clean")
    async def slow_clean(conn=Depends(pooled)):
        await conn.execute("select pg_sleep(30)")

    # Server-sent events and rows streamed to a client that goes away.
    @app.get("/events/clean")
    async def events_clean(conn=Depends(pooled)):
        async def events():
            number = 0
            while True:
                cur = await conn.execute("select %s::int", [number])
                yield f"data: {(await cur.fetchone())[0]}\n\n"
                number += 1
                await asyncio.sleep(0.005)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/events/leaky")
    async def events_leaky(request: Request):
        async def events():
            conn = await request.app.state.pool.getconn()  # leaks
            while True:
                await conn.execute("select 1")
                yield "data: 1\n\n"
                await asyncio.sleep(0.005)
            await request.app.state.pool.putconn(conn)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/rows/clean")
    async def rows_clean(conn=Depends(pooled)):
        async def rows():
            async with conn.cursor(name="rows") as cur:
                await cur.execute("select generate_series(1, 1000)")
                async for row in cur:
                    yield f"{row[0]}\n"

        return StreamingResponse(rows())

    @app.get("/rows/leaky")
    def rows_leaky():
        def rows():
            conn = psycopg.connect(dsn)  # leaks
            for row in conn.cursor().stream("select generate_series(1, 10)"):
                yield f"{row[0]}\n"

        return StreamingResponse(rows())

    @app.get("/copy/clean")
    async def copy_clean(conn=Depends(pooled)):
        async def rows():
            async with conn.cursor() as cur, cur.copy("copy (select generate_series(1, 100)) to stdout") as copy:
                async for block in copy:
                    yield bytes(block)

        return StreamingResponse(rows())

    # Background tasks.
    def forgetful_task():
        psycopg.connect(dsn).execute("select 1")  # leaks

    async def tidy_task():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await asyncio.sleep(0.02)
            await conn.execute("select 1")

    @app.post("/task/{how}")
    async def task(how: str, tasks: BackgroundTasks):
        tasks.add_task(forgetful_task if how == "leaky" else tidy_task)

    @app.post("/failing-task")
    async def failing_task(tasks: BackgroundTasks, request: Request):
        async def fail():
            conn = await request.app.state.pool.getconn()  # leaks
            await conn.execute("select 1/0")
            await request.app.state.pool.putconn(conn)

        tasks.add_task(fail)

    # Where the connection is kept: ContextVar, thread-local, module, lru_cache, app.state.
    @app.get("/contextvar/{how}")
    async def contextvar(how: str):
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        token = CURRENT.set(conn)
        await CURRENT.get().execute("select 1")
        if how == "clean":
            CURRENT.reset(token)
            await conn.close()

    @app.get("/thread-local/{how}")
    async def thread_local(how: str, request: Request):
        def work():
            LOCAL.conn = psycopg.connect(dsn)  # leaks
            LOCAL.conn.execute("select 1")
            if how == "clean":
                LOCAL.conn.close()
            del LOCAL.conn

        await asyncio.get_running_loop().run_in_executor(request.app.state.executor, work)

    @functools.lru_cache
    def cached():
        return psycopg.connect(dsn, autocommit=True)  # leaks

    @app.get("/lru-cache")
    def lru_cache():
        cached().execute("select 1")

    @app.get("/state")
    async def state(request: Request):
        if not hasattr(request.app.state, "conn"):
            request.app.state.conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        await request.app.state.conn.execute("select 1")

    # Concurrency inside a request.
    @app.get("/task-group/{how}")
    async def task_group(how: str, request: Request):
        pool = request.app.state.pool

        async def clean(number):
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(0.01)")

        async def leaky(number):
            conn = await pool.getconn()  # leaks
            await conn.execute("select 1")
            await conn.commit()
            if number:
                await pool.putconn(conn)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(leaky(number) if how == "leaky" else clean(number))

    @app.get("/gather-fails")
    async def gather_fails(request: Request):
        async def work(number):
            async with request.app.state.pool.connection() as conn:
                await conn.execute("select pg_sleep(0.02)")
                if number == 1:
                    raise RepositoryError

        await asyncio.gather(*(work(number) for number in range(3)))

    @app.get("/timeout/{how}")
    async def timeout(how: str, request: Request):
        pool = request.app.state.pool

        async def leaky():
            conn = await pool.getconn()  # leaks
            await conn.execute("select pg_sleep(5)")
            await pool.putconn(conn)

        async def clean():
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(5)")

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(leaky() if how == "leaky" else clean(), 0.3)

    @app.get("/generator/{how}")
    async def generator(how: str):
        async def rows():
            conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
            for number in range(3):
                yield number
            await conn.close()

        async def rows_safely():
            async with await psycopg.AsyncConnection.connect(dsn):
                for number in range(3):
                    yield number

        async for _ in rows() if how == "leaky" else rows_safely():
            break

    @app.get("/thread/{how}")
    def thread(how: str):
        conn = psycopg.connect(dsn)  # leaks

        def work():
            conn.execute("select 1")
            if how == "clean":
                conn.close()

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()

    @app.get("/pipeline/{how}")
    async def pipeline(how: str, request: Request):
        async with request.app.state.pool.connection() as conn, conn.pipeline(), conn.transaction():
            await conn.execute("select 1")
            await conn.execute("select 2")
        if how == "leaky":
            conn = await request.app.state.pool.getconn()  # leaks
            async with conn.pipeline():
                await conn.execute("select 1")

    @app.get("/response")
    async def response_class():
        class Closing(Response):
            async def __call__(self, scope, receive, send):
                async with await psycopg.AsyncConnection.connect(dsn) as conn:
                    await conn.execute("select 1")
                    await super().__call__(scope, receive, send)

        return Closing("ok")

    return app


@pytest.fixture
def pgleak_app(dsn):
    app = build(dsn)
    yield app
    app.state.executor.shutdown()


def leaky(method, path, kind, *kinds):
    return pytest.param(method, path, marks=expect(kind, *kinds))


REQUESTS = [
    leaky("GET", "/middleware/leaky", "connection-not-returned"),
    ("GET", "/middleware/clean"),
    leaky("GET", "/raw/leaky", "connection-dropped"),
    ("GET", "/raw/clean"),
    leaky("GET", "/audit/leaky", "connection-dropped"),
    ("GET", "/audit/clean"),
    leaky("GET", "/error/leaky", "connection-dropped"),
    ("GET", "/error/clean"),
    ("GET", "/rows/clean"),
    leaky("GET", "/rows/leaky", "connection-dropped"),
    ("GET", "/copy/clean"),
    leaky("POST", "/task/leaky", "connection-dropped"),
    ("POST", "/task/clean"),
    leaky("GET", "/contextvar/leaky", "connection-dropped"),
    ("GET", "/contextvar/clean"),
    leaky("GET", "/thread-local/leaky", "connection-dropped"),
    ("GET", "/thread-local/clean"),
    leaky("GET", "/lru-cache", "connection-not-closed"),
    leaky("GET", "/state", "connection-not-closed"),
    leaky("GET", "/task-group/leaky", "connection-not-returned"),
    ("GET", "/task-group/clean"),
    leaky("GET", "/timeout/leaky", "connection-not-returned"),
    ("GET", "/timeout/clean"),
    leaky("GET", "/generator/leaky", "connection-dropped"),
    ("GET", "/generator/clean"),
    leaky("GET", "/thread/leaky", "connection-dropped"),
    ("GET", "/thread/clean"),
    leaky("GET", "/pipeline/leaky", "connection-not-returned"),
    ("GET", "/pipeline/clean"),
    ("GET", "/gather-fails"),
    ("GET", "/response"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_async_client(pgleak_client, method, path):
    assert (await pgleak_client.request(method, path)).status_code in (200, 409, 503)


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_sync_client(pgleak_sync_client, method, path):
    assert pgleak_sync_client.request(method, path).status_code in (200, 409, 503)


@expect("connection-not-returned")
async def test_failing_background_task(pgleak_client):
    with pytest.raises(psycopg.errors.DivisionByZero):
        await pgleak_client.post("/failing-task")


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-not-returned")), "clean"])
async def test_cancelled_by_wait_for(pgleak_client, how):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pgleak_client.get(f"/slow/{how}"), 0.5)


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-not-returned")), "clean"])
async def test_cancelled_by_move_on_after(pgleak_client, how):
    with anyio.move_on_after(0.5) as scope:
        await pgleak_client.get(f"/slow/{how}")
    assert scope.cancelled_caught


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-not-returned")), "clean"])
async def test_cancelled_task(pgleak_client, how):
    task = asyncio.create_task(pgleak_client.get(f"/slow/{how}"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-not-returned")), "clean"])
def test_client_leaves_the_stream(pgleak_sync_client, how):
    with pgleak_sync_client.stream("GET", f"/events/{how}") as response:
        for _ in response.iter_lines():
            break


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-not-returned")), "clean"])
async def test_disconnect_by_asgi(pgleak_app, how):
    """A client that goes away, as a server tells it (cognee#4197, open-wearables#1566)."""
    app = pgleak_app
    sent, disconnected = [], asyncio.Event()

    async def receive():
        if not sent:
            return {"type": "http.request", "body": b"", "more_body": False}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) > 3:
            disconnected.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "GET",
        "path": f"/events/{how}",
        "raw_path": b"",
        "query_string": b"",
        "headers": [],
        "state": {},
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)


@expect("connection-not-closed")
def test_module_level_cache_first(pgleak_app):
    client = TestClient(pgleak_app)
    client.get("/lru-cache")
    client.get("/lru-cache")


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-dropped")), "clean"])
def test_without_lifespan(pgleak_app, how):
    client = TestClient(pgleak_app)
    assert client.post(f"/task/{how}").status_code == 200
    assert client.get("/raw/clean").status_code == 200


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-not-returned")), "clean"])
async def test_exception_reaches_the_client(dsn, how):
    app = FastAPI()

    @app.get("/")
    async def root():
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            conn = await pool.getconn()  # leaks
            try:
                await conn.execute("select no_such_column")
            finally:
                if how == "clean":
                    await conn.rollback()
                    await pool.putconn(conn)
                else:
                    KEPT.append(conn)

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        assert (await client.get("/")).status_code == 500


@expect(*["connection-not-returned"] * 3)
async def test_pool_exhausted_by_leaks(pgleak_client):
    for _ in range(3):
        assert (await pgleak_client.get("/middleware/leaky")).status_code == 409
