"""FastAPI on async sessions, on psycopg and on asyncpg."""

import asyncio
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import pytest_asyncio
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from tables import Item

pytestmark = [pytest.mark.pgleak, pytest.mark.asyncio, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")
SLEEP = text("select pg_sleep(5)")


def build(engine):
    app = FastAPI()
    new_session = async_sessionmaker(engine, expire_on_commit=False)
    registry = async_scoped_session(new_session, scopefunc=asyncio.current_task)

    # -- dependencies

    async def finally_close():
        db = new_session()
        try:
            yield db
        finally:
            await db.close()

    async def in_with():
        async with new_session() as db:
            yield db

    async def in_begin():
        async with new_session.begin() as db:
            yield db

    async def commits():
        async with new_session() as db:
            try:
                yield db
                await db.commit()
            except BaseException:
                await db.rollback()
                raise

    async def without_finally():
        db = new_session()
        yield db
        await db.close()

    async def returned():
        return new_session()

    def returned_by_a_sync_one():
        return new_session()

    async def returned_and_kept():
        KEPT.append(new_session())
        return KEPT[-1]

    async def removed():
        try:
            yield registry
        finally:
            await registry.remove()

    async def connection():
        async with engine.connect() as conn:
            yield conn

    async def connection_returned():
        return await engine.connect()

    names = ("app", "engine", "new_session", "registry", "names")
    for name, dependency in [(name, it) for name, it in locals().items() if name not in names]:

        def add(name, dependency):
            @app.post(f"/{name}/commit")
            async def commit(db=Depends(dependency)):
                await db.execute(INSERT)
                await db.commit()
                return {}

            @app.post(f"/{name}/flush")
            async def flush(db=Depends(dependency)):
                await db.execute(INSERT)
                return {}

            @app.get(f"/{name}/read")
            async def read(db=Depends(dependency)):
                return await db.scalar(text("select 1"))

            @app.post(f"/{name}/404")
            async def refuse(db=Depends(dependency)):
                await db.execute(INSERT)
                raise HTTPException(404)

            @app.post(f"/{name}/500")
            async def boom(db=Depends(dependency)):
                await db.execute(INSERT)
                raise RuntimeError("boom")

        add(name, dependency)

    # -- endpoints

    @app.get("/endpoint/with")
    async def endpoint_with():
        async with new_session() as db:
            return await db.scalar(text("select 1"))

    @app.get("/endpoint/early")
    async def endpoint_early(stop: bool = True):
        db = new_session()
        found = await db.scalar(text("select 1"))
        if stop:
            return found
        await db.close()

    @app.get("/endpoint/kept")
    async def endpoint_kept():
        db = new_session()
        KEPT.append(db)
        return await db.scalar(text("select 1"))

    @app.post("/endpoint/rollback")
    async def endpoint_rollback(db: AsyncSession = Depends(finally_close)):
        db.add(Item(name="x"))
        await db.flush()
        await db.rollback()
        return {}

    @app.post("/endpoint/duplicate")
    async def endpoint_duplicate(db: AsyncSession = Depends(finally_close)):
        db.add(Item(name=None))
        try:
            await db.commit()
        except IntegrityError:
            await db.rollback()
        return {}

    @app.post("/endpoint/retry")
    async def endpoint_retry():
        for attempt in range(2):
            with suppress(ZeroDivisionError):
                async with new_session.begin() as db:
                    db.add(Item(name="x"))
                    await db.flush()
                    _ = 1 / attempt
        return {}

    @app.post("/endpoint/swallowed")
    async def endpoint_swallowed():
        with suppress(ZeroDivisionError):
            async with new_session.begin() as db:
                db.add(Item(name="x"))
                await db.flush()
                _ = 1 / 0
        return {}

    @app.post("/endpoint/swallowed/close")
    async def endpoint_swallowed_close():
        with suppress(ZeroDivisionError):
            async with new_session() as db:
                db.add(Item(name="x"))
                await db.flush()
                _ = 1 / 0
        return {}

    async def slow(db):
        db.add(Item(name="x"))
        await db.flush()
        await db.execute(SLEEP)
        await db.commit()

    @app.post("/endpoint/timeout/504")
    async def endpoint_timeout_504(db: AsyncSession = Depends(in_with)):
        try:
            await asyncio.wait_for(slow(db), 0.5)
        except TimeoutError:
            raise HTTPException(504) from None

    @app.post("/endpoint/timeout/swallowed")
    async def endpoint_timeout_swallowed(db: AsyncSession = Depends(in_with)):
        with suppress(TimeoutError):
            await asyncio.wait_for(slow(db), 0.5)
        return {}

    @app.get("/endpoint/two")
    async def endpoint_two(db: AsyncSession = Depends(finally_close)):
        await db.scalar(text("select 1"))
        async with new_session() as other:
            return await other.scalar(text("select 1"))

    @app.get("/endpoint/gathered")
    async def endpoint_gathered():
        async def read():
            async with new_session() as db:
                return await db.scalar(text("select 1"))

        return sum(await asyncio.gather(read(), read()))

    async def job_that_closes():
        async with new_session.begin() as db:
            await db.execute(INSERT)

    async def job_that_forgets():
        db = new_session()
        await db.execute(text("select 1"))
        KEPT.append(db)

    @app.post("/background/closes")
    async def background_closes(tasks: BackgroundTasks):
        tasks.add_task(job_that_closes)

    @app.post("/background/forgets")
    async def background_forgets(tasks: BackgroundTasks):
        tasks.add_task(job_that_forgets)

    @app.post("/task/holds")
    async def task_holds():
        async def hold():
            async with new_session() as db:
                await db.scalar(text("select 1"))
                await asyncio.sleep(30)

        KEPT.append(asyncio.create_task(hold()))
        await asyncio.sleep(0.2)

    @app.get("/stream")
    async def stream():
        async def rows():
            async with engine.connect() as conn:
                async for row in await conn.stream(text("select generate_series(1, 5)")):
                    yield f"{row[0]}\n"

        return StreamingResponse(rows())

    @app.get("/run-sync")
    async def run_sync(db: AsyncSession = Depends(in_with)):
        return await db.run_sync(lambda db: db.scalar(text("select 1")))

    return app


@pytest_asyncio.fixture
async def client(async_engine):
    transport = httpx.ASGITransport(build(async_engine), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


CLEAN = (
    *(f"{name}/{what}" for name in ("finally_close", "in_with") for what in ("commit", "read", "404", "500")),
    *(f"{name}/{what}" for name in ("commits", "in_begin") for what in ("flush", "read", "404", "500")),
    *(f"{name}/{what}" for name in ("without_finally", "removed", "connection") for what in ("commit", "read")),
    "returned/commit",
    "commits/commit",
    "endpoint/with",
    "endpoint/duplicate",
    "endpoint/retry",
    "endpoint/timeout/504",
    "endpoint/gathered",
    "background/closes",
    "stream",
    "run-sync",
)
LOST = (
    "finally_close/flush",
    "in_with/flush",
    "without_finally/flush",
    "removed/flush",
    "connection/flush",
    "endpoint/rollback",
    "endpoint/swallowed",
    "endpoint/swallowed/close",
    "endpoint/timeout/swallowed",
)
NOT_RETURNED = (
    "returned/read",
    "returned/flush",
    "returned_by_a_sync_one/read",
    "returned_and_kept/read",
    "returned_and_kept/404",
    "connection_returned/commit",
    "without_finally/404",
    "without_finally/500",
    "endpoint/early",
    "endpoint/kept",
    "background/forgets",
    "task/holds",
)


async def get_or_post(client, path):
    response = await client.post(f"/{path}")
    return await client.get(f"/{path}") if response.status_code == 405 else response


@pytest.mark.parametrize("path", CLEAN)
async def test_clean(client, path):
    await get_or_post(client, path)


@lost
@pytest.mark.parametrize("path", LOST)
async def test_lost(client, path):
    assert (await get_or_post(client, path)).status_code == 200


@not_returned
@pytest.mark.parametrize("path", NOT_RETURNED)
async def test_not_returned(client, path):
    await get_or_post(client, path)


@expect("nested-checkout")
async def test_nested(client):
    await client.get("/endpoint/two")


@pytest.mark.pgleak(commit="before-response")
@expect("commit-after-response")
@pytest.mark.parametrize("name", ["commits", "in_begin"])
async def test_commit_after_response(client, name):
    await client.post(f"/{name}/flush")


@pytest.mark.pgleak(commit="before-response")
async def test_commit_before_response(client):
    await client.post("/finally_close/commit")


async def test_client_gives_up(client):
    with suppress(TimeoutError):
        await asyncio.wait_for(client.post("/endpoint/timeout/504"), 0.05)


# -- the session of the test in the place of the application's ---------------------------------------------------------


def get_db():
    raise NotImplementedError


def application_with_get_db():
    app = FastAPI()

    @app.post("/commit")
    async def commit(db: AsyncSession = Depends(get_db)):
        db.add(Item(name="x"))
        await db.commit()
        return {}

    @app.post("/flush")
    async def flush(db: AsyncSession = Depends(get_db)):
        db.add(Item(name="x"))
        await db.flush()
        return {}

    return app


@pytest_asyncio.fixture
async def db(async_engine):
    async with async_engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        await transaction.rollback()


@pytest_asyncio.fixture
async def plain_db(async_engine):
    async with AsyncSession(async_engine) as session:
        yield session
        await session.rollback()


async def call(db, path):
    app = application_with_get_db()
    app.dependency_overrides[get_db] = lambda: db
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post(path)).status_code == 200


@pytest.mark.parametrize("path", ["/commit", "/flush"])
async def test_overridden(db, path):
    await call(db, path)


@pytest.mark.parametrize("path", ["/commit", "/flush"])
async def test_overridden_by_a_plain_session(plain_db, path):
    await call(plain_db, path)


async def test_overridden_by_a_session_of_the_test(async_engine):
    async with AsyncSession(async_engine) as session:
        await call(session, "/flush")


# -- the engine of the application --------------------------------------------------------------------------------------


def lifespan_app(url, dispose):
    @asynccontextmanager
    async def lifespan(app):
        app.state.engine = create_async_engine(url)
        KEPT.append(app.state.engine)
        yield
        if dispose:
            await app.state.engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def read(request: Request):
        async with AsyncSession(request.app.state.engine) as db:
            return await db.scalar(text("select 1"))

    return app


@pytest.fixture(params=[True])
def pgleak_app(async_url, request):
    return lifespan_app(async_url, request.param)


async def test_engine_of_the_lifespan(pgleak_client):
    await pgleak_client.get("/")


@expect("pool-not-closed")
@pytest.mark.parametrize("pgleak_app", [False], indirect=True)
async def test_engine_of_the_lifespan_never_disposed(pgleak_client):
    await pgleak_client.get("/")


@expect("pool-not-closed")
async def test_engine_in_each_request(async_url):
    app = FastAPI()

    @app.get("/")
    async def read():
        engine = create_async_engine(async_url)
        KEPT.append(engine)
        async with engine.connect() as conn:
            return await conn.scalar(text("select 1"))

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/")
