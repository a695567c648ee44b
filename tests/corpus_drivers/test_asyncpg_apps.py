"""asyncpg in applications: dependencies, lifespans, background tasks; the requests are named."""

import asyncio
from contextlib import asynccontextmanager, suppress

import asyncpg
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

pytestmark = [
    pytest.mark.pgleak,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('a')"
REFUSED = "insert into item(name) values ('refused')"
KEPT = []


def build(dsn):
    @asynccontextmanager
    async def lifespan(app):
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
        app.state.pool = pool
        yield
        pool.terminate()  # close() would wait for what the routes below keep

    app = FastAPI(lifespan=lifespan)

    async def returned():
        return await asyncpg.connect(dsn)

    async def closed_on_success():
        conn = await asyncpg.connect(dsn)
        yield conn
        await conn.close()

    async def closed():
        conn = await asyncpg.connect(dsn)
        try:
            yield conn
        finally:
            await conn.close()

    async def acquired(request: Request):
        async with request.app.state.pool.acquire() as conn:
            yield conn

    async def acquired_only(request: Request):
        return await request.app.state.pool.acquire()

    async def released_on_success(request: Request):
        conn = await request.app.state.pool.acquire()
        yield conn
        await request.app.state.pool.release(conn)

    async def in_transaction(request: Request):
        async with request.app.state.pool.acquire() as conn, conn.transaction():
            yield conn

    async def started(request: Request):
        async with request.app.state.pool.acquire() as conn:
            await conn.transaction().start()
            yield conn

    def route(path, dependency):
        @app.get(path + "/{outcome}")
        async def handler(outcome: str, conn=Depends(dependency)):
            await conn.execute(INSERT)
            if outcome == "refused":
                raise HTTPException(422)
            if outcome == "broken":
                raise ValueError
            return "fine"

    for name, dependency in list(locals().items()):
        if name not in ("dsn", "app", "lifespan", "route"):
            route(f"/{name}", dependency)

    @app.get("/swallowed")
    async def swallowed(request: Request):
        async with request.app.state.pool.acquire() as conn:
            with suppress(asyncpg.CheckViolationError):
                async with conn.transaction():
                    await conn.execute(INSERT)
                    await conn.execute(REFUSED)
        return "fine"

    @app.get("/swallowed-and-retried")
    async def retried(request: Request):
        async with request.app.state.pool.acquire() as conn:
            with suppress(asyncpg.CheckViolationError):
                async with conn.transaction():
                    await conn.execute(INSERT)
                    await conn.execute(REFUSED)
            async with conn.transaction():
                await conn.execute(INSERT)
        return "fine"

    @app.get("/swallowed-and-retried-alone")
    async def retried_alone(request: Request):
        pool = request.app.state.pool
        with suppress(asyncpg.CheckViolationError):
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute(INSERT)
                await conn.execute(REFUSED)
        await pool.fetch("insert into item(name) values ('b') returning id")
        return "fine"

    @app.get("/conflict")
    async def conflict(request: Request):
        try:
            async with request.app.state.pool.acquire() as conn, conn.transaction():
                await conn.execute(INSERT)
                await conn.execute(REFUSED)
        except asyncpg.CheckViolationError:
            raise HTTPException(409) from None

    @app.get("/nested")
    async def nested(request: Request, conn=Depends(acquired)):
        return await request.app.state.pool.fetchval("select 1")

    @app.get("/background")
    async def background(request: Request, tasks: BackgroundTasks):
        async def work():
            async with request.app.state.pool.acquire() as conn:
                await conn.execute(INSERT)

        tasks.add_task(work)

    @app.get("/background-leak")
    async def background_leak(request: Request, tasks: BackgroundTasks):
        async def work():
            conn = await request.app.state.pool.acquire()
            await conn.execute(INSERT)

        tasks.add_task(work)

    @app.get("/task")
    async def task(request: Request):
        async def work():
            async with request.app.state.pool.acquire() as conn:
                await conn.execute("select pg_sleep(0.05)")

        KEPT.append(asyncio.create_task(work()))

    @app.get("/pool-in-a-request")
    async def pool_in_a_request():
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
        KEPT.append(pool)
        return await pool.fetchval("select 1")

    return app


@pytest.fixture
def pgleak_app(dsn):
    return build(dsn)


async def test_closed(pgleak_client):
    assert (await pgleak_client.get("/closed/fine")).status_code == 200
    assert (await pgleak_client.get("/closed/refused")).status_code == 422


@expect("connection-dropped")
async def test_returned(pgleak_client):
    assert (await pgleak_client.get("/returned/fine")).status_code == 200


@expect("connection-dropped")
async def test_closed_on_success(pgleak_client):
    assert (await pgleak_client.get("/closed_on_success/fine")).status_code == 200
    assert (await pgleak_client.get("/closed_on_success/refused")).status_code == 422


async def test_acquired(pgleak_client):
    assert (await pgleak_client.get("/acquired/fine")).status_code == 200
    assert (await pgleak_client.get("/acquired/refused")).status_code == 422


@expect("connection-not-returned")
async def test_acquired_only(pgleak_client):
    assert (await pgleak_client.get("/acquired_only/fine")).status_code == 200


@expect("connection-not-returned")
async def test_released_on_success(pgleak_client):
    assert (await pgleak_client.get("/released_on_success/fine")).status_code == 200
    assert (await pgleak_client.get("/released_on_success/refused")).status_code == 422


async def test_in_transaction(pgleak_client):
    assert (await pgleak_client.get("/in_transaction/fine")).status_code == 200
    assert (await pgleak_client.get("/in_transaction/refused")).status_code == 422


@expect("write-lost")
async def test_started(pgleak_client):
    assert (await pgleak_client.get("/started/fine")).status_code == 200


@expect("returned-in-transaction")
async def test_started_and_refused(pgleak_client):
    assert (await pgleak_client.get("/started/refused")).status_code == 422


@expect("write-lost")
async def test_swallowed(pgleak_client):
    assert (await pgleak_client.get("/swallowed")).status_code == 200


async def test_swallowed_and_retried(pgleak_client):
    assert (await pgleak_client.get("/swallowed-and-retried")).status_code == 200
    assert (await pgleak_client.get("/swallowed-and-retried-alone")).status_code == 200


async def test_conflict(pgleak_client):
    assert (await pgleak_client.get("/conflict")).status_code == 409


@expect("nested-checkout")
async def test_nested(pgleak_client):
    assert (await pgleak_client.get("/nested")).status_code == 200


async def test_background(pgleak_client):
    assert (await pgleak_client.get("/background")).status_code == 200


@expect("connection-not-returned")
async def test_background_leak(pgleak_client):
    assert (await pgleak_client.get("/background-leak")).status_code == 200


async def test_task(pgleak_client):
    assert (await pgleak_client.get("/task")).status_code == 200


@expect("pool-not-closed")
async def test_pool_in_a_request(pgleak_client):
    assert (await pgleak_client.get("/pool-in-a-request")).status_code == 200


async def test_many_at_once(pgleak_client):
    answers = await asyncio.gather(*(pgleak_client.get("/in_transaction/fine") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}


@expect("commit-after-response")
@pytest.mark.pgleak(commit="before-response")
async def test_commit_after_response(pgleak_client):
    assert (await pgleak_client.get("/in_transaction/fine")).status_code == 200


@pytest.mark.pgleak(commit="before-response")
async def test_commit_before_response(pgleak_client):
    assert (await pgleak_client.get("/swallowed-and-retried")).status_code == 200


# The user's own client.


@pytest.fixture
async def client(dsn):
    app = build(dsn)
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


async def test_own_client(client):
    assert (await client.get("/in_transaction/fine")).status_code == 200


@expect("connection-not-returned")
async def test_own_client_leaks(client):
    assert (await client.get("/acquired_only/fine")).status_code == 200


# In a thread with a loop of its own.


@pytest.fixture
def test_client(dsn):
    with TestClient(build(dsn), raise_server_exceptions=False) as client:
        yield client


def test_client_of_starlette(test_client):
    assert test_client.get("/in_transaction/fine").status_code == 200
    assert test_client.get("/in_transaction/broken").status_code == 500
    assert test_client.get("/acquired/broken").status_code == 500


@expect("connection-not-returned")
def test_client_of_starlette_leaks(test_client):
    assert test_client.get("/acquired_only/fine").status_code == 200


@expect("connection-dropped")
def test_client_of_starlette_drops(test_client):
    assert test_client.get("/returned/fine").status_code == 200


@expect("write-lost")
def test_client_of_starlette_loses(test_client):
    assert test_client.get("/started/fine").status_code == 200


# A lifespan that does not close.


@pytest.fixture
def leaking_app(dsn):
    @asynccontextmanager
    async def lifespan(app):
        app.state.pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def one(request: Request):
        return await request.app.state.pool.fetchval("select 1")

    return app


@expect("pool-not-closed")
def test_a_lifespan_that_does_not_close(leaking_app):
    with TestClient(leaking_app) as client:
        assert client.get("/").status_code == 200


@expect("pool-not-closed")
async def test_a_lifespan_that_does_not_close_async(leaking_app):
    transport = httpx.ASGITransport(app=leaking_app)
    async with (
        leaking_app.router.lifespan_context(leaking_app),
        httpx.AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        assert (await client.get("/")).status_code == 200


@pytest.fixture
def closing_app(dsn):
    @asynccontextmanager
    async def lifespan(app):
        async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def one(request: Request):
        return await request.app.state.pool.fetchval("select 1")

    @app.get("/kept")
    async def kept(request: Request):
        KEPT.append(await request.app.state.pool.acquire())

    return app


def test_a_lifespan_that_closes(closing_app):
    with TestClient(closing_app) as client:
        assert client.get("/").status_code == 200


async def test_a_lifespan_that_closes_async(closing_app):
    transport = httpx.ASGITransport(app=closing_app)
    async with (
        closing_app.router.lifespan_context(closing_app),
        httpx.AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        assert (await client.get("/")).status_code == 200


@pytest.fixture
async def client_of_closing_app(closing_app):
    transport = httpx.ASGITransport(app=closing_app)
    async with (
        closing_app.router.lifespan_context(closing_app),
        httpx.AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        yield client


@expect("connection-not-returned")
async def test_what_is_kept_does_not_hang_the_shutdown(client_of_closing_app):
    # close() would wait for ever: pgleak has given the slot back after its report.
    assert (await client_of_closing_app.get("/kept")).status_code == 200
