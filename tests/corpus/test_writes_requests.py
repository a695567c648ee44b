"""Writes that a request loses while its client is told that all is well; each beside its correct twin."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager, closing, suppress

import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

pytestmark = [pytest.mark.pgleak(grace=5), pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('x')"
LATE = "insert into booking values (1, 'a'), (1, 'b')"
"""Refused by the COMMIT: the constraint is deferred."""


class DomainError(Exception):
    def __init__(self, status):
        self.status = status


@pytest.fixture(scope="session")
def db(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute(
            """
            create table if not exists booking (id int primary key deferrable initially deferred, name text);
            create table if not exists tag (id serial primary key, name text unique);
            create table if not exists audit (note text);
            create table if not exists seat (id int primary key, taken int default 0);
            insert into tag(name) values ('known') on conflict do nothing;
            insert into seat values (1), (2) on conflict do nothing;
            """
        )
    return dsn


def build(db):
    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(db, min_size=1, max_size=4, open=False) as pool:
            app.state.pool = pool
            with psycopg_pool.ConnectionPool(db, min_size=1, max_size=4, open=False) as app.state.sync_pool:
                yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(dependencies(db))
    app.include_router(endpoints(db))
    app.include_router(commits(db))
    app.include_router(after_the_response(db))

    @app.exception_handler(DomainError)
    async def domain_error(request, error):
        if error.status == 303:
            return RedirectResponse("/", 303)
        return JSONResponse({}, error.status)

    return app


# -- dependencies -----------------------------------------------------------------------------------------------------


def dependencies(db):
    router = APIRouter(prefix="/dep")

    def sync_close():
        conn = psycopg.connect(db)
        try:
            yield conn
        finally:
            conn.close()

    def sync_closing():
        with closing(psycopg.connect(db)) as conn:
            yield conn

    def sync_putconn(request: Request):
        pool = request.app.state.sync_pool
        conn = pool.getconn()
        try:
            yield conn
        finally:
            pool.putconn(conn)

    async def async_close():
        conn = await psycopg.AsyncConnection.connect(db)
        try:
            yield conn
        finally:
            await conn.close()

    async def async_putconn(request: Request):
        conn = await request.app.state.pool.getconn()
        try:
            yield conn
        finally:
            await request.app.state.pool.putconn(conn)

    async def async_rollback():
        conn = await psycopg.AsyncConnection.connect(db)
        try:
            yield conn
        finally:
            await conn.rollback()
            await conn.close()

    # The twins: these commit.
    def sync_with():
        with psycopg.connect(db) as conn:
            yield conn

    def sync_pooled(request: Request):
        with request.app.state.sync_pool.connection() as conn:
            yield conn

    async def async_with():
        async with await psycopg.AsyncConnection.connect(db) as conn:
            yield conn

    async def async_pooled(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    async def async_transaction():
        async with await psycopg.AsyncConnection.connect(db, autocommit=True) as conn, conn.transaction():
            yield conn

    async def async_autocommit():
        async with await psycopg.AsyncConnection.connect(db, autocommit=True) as conn:
            yield conn

    for dependency in (sync_close, sync_closing, sync_putconn, sync_with, sync_pooled):
        add_sync(router, dependency)
    for dependency in (
        *(async_close, async_putconn, async_rollback),
        *(async_with, async_pooled, async_transaction, async_autocommit),
    ):
        add_async(router, dependency)
    return router


def add_sync(router, dependency):
    path = f"/{dependency.__name__}"

    @router.post(path)
    def writes(conn=Depends(dependency)):
        conn.execute(INSERT)
        return {}

    @router.get(path)
    def reads(conn=Depends(dependency)):
        return conn.execute("select count(*) from item").fetchone()[0]

    @router.post(path + "/commit")
    def commits(conn=Depends(dependency)):
        conn.execute(INSERT)
        conn.commit()
        return {}

    @router.post(path + "/block")
    def block(conn=Depends(dependency)):
        with conn.transaction():
            conn.execute(INSERT)
        return {}

    @router.post(path + "/savepoint")
    def savepoint(conn=Depends(dependency)):
        conn.execute("select 1")
        with conn.transaction():
            conn.execute(INSERT)
        return {}

    @router.post(path + "/refused")
    def refused(conn=Depends(dependency)):
        conn.execute(INSERT)
        raise HTTPException(409)

    @router.post(path + "/crash")
    def crash(conn=Depends(dependency)):
        conn.execute(INSERT)
        raise RuntimeError("crash")

    @router.post(path + "/swallowed")
    def swallowed(conn=Depends(dependency)):
        conn.execute(INSERT)
        try:
            conn.execute("insert into tag(name) values ('known')")
        except psycopg.errors.UniqueViolation:
            pass
        return {}


def add_async(router, dependency):
    path = f"/{dependency.__name__}"

    @router.post(path)
    async def writes(conn=Depends(dependency)):
        await conn.execute(INSERT)
        return {}

    @router.get(path)
    async def reads(conn=Depends(dependency)):
        return (await (await conn.execute("select count(*) from item")).fetchone())[0]

    @router.post(path + "/commit")
    async def commits(conn=Depends(dependency)):
        await conn.execute(INSERT)
        await conn.commit()
        return {}

    @router.post(path + "/block")
    async def block(conn=Depends(dependency)):
        async with conn.transaction():
            await conn.execute(INSERT)
        return {}

    @router.post(path + "/savepoint")
    async def savepoint(conn=Depends(dependency)):
        await conn.execute("select 1")
        async with conn.transaction():
            await conn.execute(INSERT)
        return {}

    @router.post(path + "/refused")
    async def refused(conn=Depends(dependency)):
        await conn.execute(INSERT)
        raise HTTPException(409)

    @router.post(path + "/crash")
    async def crash(conn=Depends(dependency)):
        await conn.execute(INSERT)
        raise RuntimeError("crash")

    @router.post(path + "/swallowed")
    async def swallowed(conn=Depends(dependency)):
        await conn.execute(INSERT)
        try:
            await conn.execute("insert into tag(name) values ('known')")
        except psycopg.errors.UniqueViolation:
            pass
        return {}


LOSING = ["sync_close", "sync_closing", "sync_putconn", "async_close", "async_putconn", "async_rollback"]
KEEPING = ["sync_with", "sync_pooled", "async_with", "async_pooled"]
WHOLE = ["async_transaction"]
AUTOCOMMIT = ["async_autocommit"]
PUTCONN = ["sync_putconn", "async_putconn"]


def paths():
    for name in LOSING:
        for way in ("", "/savepoint", "/swallowed"):
            yield lost(f"/dep/{name}{way}")
        yield f"/dep/{name}/commit"
        yield f"/dep/{name}/block"
    for name in PUTCONN:
        yield pytest.param(f"/dep/{name}/refused", marks=expect("returned-in-transaction"))
        yield pytest.param(f"/dep/{name}/crash", marks=expect("returned-in-transaction"))
    for name in LOSING + KEEPING + WHOLE:
        if name not in PUTCONN:
            yield f"/dep/{name}/refused"
            yield f"/dep/{name}/crash"
    for name in KEEPING:
        for way in ("", "/savepoint", "/commit", "/block"):
            yield f"/dep/{name}{way}"
        yield lost(f"/dep/{name}/swallowed")  # COMMIT answers ROLLBACK
    yield "/dep/async_transaction"
    yield "/dep/async_transaction/block"
    yield lost("/dep/async_transaction/swallowed")
    for way in ("", "/commit", "/block", "/savepoint", "/swallowed", "/refused", "/crash"):
        yield f"/dep/async_autocommit{way}"


def lost(path, *kinds):
    return pytest.param(path, marks=expect(*(kinds or ("write-lost",))))


# Once: FastAPI builds it for longer than a test takes.
@pytest.fixture(scope="session")
def pgleak_app(db):
    return build(db)


@pytest.mark.parametrize("path", list(paths()))
async def test_dependency(pgleak_client, path):
    with suppress(RuntimeError):
        await pgleak_client.post(path)


@pytest.mark.parametrize("path", [path for path in paths() if "/crash" not in str(path)])
def test_dependency_sync(pgleak_sync_client, path):
    pgleak_sync_client.post(path)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(f"/dep/{name}", marks=expect("returned-in-transaction")) if name in PUTCONN else f"/dep/{name}"
        for name in LOSING + KEEPING + WHOLE + AUTOCOMMIT
    ],
)
async def test_reading(pgleak_client, path):
    assert (await pgleak_client.get(path)).status_code == 200


@expect("write-lost", "write-lost", "write-lost")
async def test_three_requests(pgleak_client):
    for _ in range(3):
        await pgleak_client.post("/dep/async_close")
        await pgleak_client.post("/dep/async_close/commit")


# -- endpoints --------------------------------------------------------------------------------------------------------


def endpoints(db):
    router = APIRouter(prefix="/end")

    @router.post("/close/{how}")
    def close(how: str):
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        if how == "commit":
            conn.commit()
        conn.close()

    @router.post("/dropped/{how}")
    def dropped(how: str):
        conn = psycopg.connect(db)
        conn.execute(INSERT)

    # An explicit rollback, and then …
    @router.post("/rollback/{how}")
    async def rollback(how: str, response: Response, request: Request):
        async with request.app.state.pool.connection() as conn:
            try:
                await conn.execute(INSERT)
                await conn.execute("insert into tag(name) values ('known')")
            except psycopg.errors.UniqueViolation:
                await conn.rollback()
                if how == "raised":
                    raise
                if how == "conflict":
                    raise HTTPException(409) from None
                if how == "status":
                    response.status_code = 409
                if how == "returned":
                    return JSONResponse({}, 400)
                if how == "handler":
                    raise DomainError(422) from None
                if how == "handled-well":
                    raise DomainError(200) from None
                if how == "redirected":
                    raise DomainError(303) from None
                if how == "retried":
                    await conn.execute(INSERT)
                if how == "audited":
                    await conn.execute("insert into audit values ('refused')")
                    await conn.rollback()
                if how == "read":
                    await conn.execute("select 1")
        return {}

    # A `with` block left by an exception that is swallowed further out.
    @router.post("/with/{how}")
    def with_block(how: str, request: Request):
        try:
            with request.app.state.sync_pool.connection() as conn:
                conn.execute(INSERT)
                raise DomainError(409)
        except DomainError:
            if how == "raised":
                raise
        if how == "again":
            with request.app.state.sync_pool.connection() as conn:
                conn.execute(INSERT)
        if how.startswith("autocommit"):
            with psycopg.connect(db, autocommit=True) as conn:
                if how == "autocommit-read":
                    conn.execute("select 1")
                    conn.execute("update seat set taken = 1 where false")
                elif how == "autocommit-many":
                    conn.cursor().executemany("insert into audit values (%s)", [["a"], ["b"]])
                elif how == "autocommit-copy":
                    with conn.cursor() as cur, cur.copy("copy audit from stdin") as copy:
                        copy.write_row(["a"])
                else:
                    conn.execute("insert into audit values ('again')")
        return {}

    @router.post("/block/{how}")
    async def transaction_block(how: str):
        async with await psycopg.AsyncConnection.connect(db, autocommit=True) as conn:
            try:
                async with conn.transaction(force_rollback=how == "forced"):
                    await conn.execute(INSERT)
                    if how == "rollback":
                        raise psycopg.Rollback
                    if how != "forced":
                        raise DomainError(409)
            except DomainError:
                if how == "raised":
                    raise
            if how == "again":
                async with conn.transaction():
                    await conn.execute(INSERT)
        return {}

    @router.post("/pipeline/{how}")
    async def pipeline_block(how: str):
        async with await psycopg.AsyncConnection.connect(db, autocommit=True) as conn:
            try:
                async with conn.pipeline(), conn.transaction():
                    await conn.execute(INSERT)
                    if how != "kept":
                        raise DomainError(409)
            except DomainError:
                if how == "raised":
                    raise
            if how == "again":
                async with conn.pipeline(), conn.transaction():
                    await conn.execute(INSERT)
        return {}

    @router.post("/savepoint/{how}")
    async def savepoint(how: str):
        async with await psycopg.AsyncConnection.connect(db) as conn:
            await conn.execute(INSERT)
            with suppress(psycopg.errors.UniqueViolation):
                async with conn.transaction():
                    await conn.execute("insert into audit values ('a')")
                    await conn.execute("insert into tag(name) values ('known')")
        return {}

    @router.post("/get-or-create/{how}")
    def get_or_create(how: str, request: Request):
        with request.app.state.sync_pool.connection() as conn:
            if how == "after-write":
                conn.execute(INSERT)
            try:
                tag = conn.execute("insert into tag(name) values ('known') returning id").fetchone()
            except psycopg.errors.UniqueViolation:
                conn.rollback()
                tag = conn.execute("select id from tag where name = 'known'").fetchone()
        return tag[0]

    # Serializable transactions, tried again as tenacity would.
    @router.post("/retry/{how}")
    def retry(how: str):
        with psycopg.connect(db, autocommit=True) as other, psycopg.connect(db) as conn:
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            for attempt in range(3):
                try:
                    with conn.transaction():
                        conn.execute("select * from seat").fetchall()
                        conn.execute(INSERT)
                        if attempt < (3 if how == "given-up" else 1):
                            other.execute("update seat set taken = taken + 1 where id = 1")
                        conn.execute("update seat set taken = taken + 1 where id = 1")
                    break
                except psycopg.errors.SerializationFailure:
                    continue
            else:
                if how == "raised":
                    raise HTTPException(503)
        return {}

    @router.post("/left/{how}")
    async def leaves_a_generator(how: str):
        async def connection():
            async with await psycopg.AsyncConnection.connect(db) as conn:
                yield conn

        async for conn in connection():
            await conn.execute(INSERT)
            if how == "committed":
                await conn.commit()
            if how != "exhausted":
                return {}
        return {}

    @router.post("/timeout/{how}")
    async def timeout(how: str):
        async def work():
            async with await psycopg.AsyncConnection.connect(db) as conn:
                await conn.execute(INSERT)
                await conn.execute("select pg_sleep(20)")

        try:
            await asyncio.wait_for(work(), 0.5)
        except TimeoutError:
            if how == "told":
                raise HTTPException(504) from None
        return {}

    @router.post("/two/{how}")
    def two_connections(how: str):
        def write(end):
            conn = psycopg.connect(db)
            conn.execute(INSERT)
            getattr(conn, end)()
            conn.close()

        if how == "committed-later":
            write("rollback")
            write("commit")
        elif how == "committed-before":
            write("commit")
            write("rollback")
        else:
            write("rollback")
        return {}

    @router.post("/sql/{how}")
    def transaction_in_sql(how: str):
        with psycopg.connect(db, autocommit=True) as conn:
            conn.execute("begin")
            conn.execute(INSERT)
            conn.execute(how)
        return {}

    @router.post("/unit-of-work/{how}")
    def unit_of_work(how: str):
        class UnitOfWork:
            def __enter__(self):
                self.conn = psycopg.connect(db)
                self.done = False
                return self

            def __exit__(self, *exc):
                self.conn.commit() if self.done else self.conn.rollback()
                self.conn.close()

        with UnitOfWork() as work:
            work.conn.execute(INSERT)
            work.done = how == "done"
        return {}

    @router.post("/thread/{how}")
    def thread(how: str):
        def work():
            conn = psycopg.connect(db)
            conn.execute(INSERT)
            if how == "committed":
                conn.commit()
            conn.close()

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        return {}

    @router.post("/gather/{how}")
    async def gather(how: str, request: Request):
        committed = asyncio.Event()

        async def work(fails):
            async with request.app.state.pool.connection() as conn:
                await conn.execute(INSERT)
                if fails:
                    await committed.wait()  # what is committed after a rollback may be its second attempt
                    raise DomainError(409)
            committed.set()

        await asyncio.gather(work(False), work(how == "swallowed"), return_exceptions=True)
        return {}

    @router.get("/dry-run")
    def dry_run():
        with psycopg.connect(db) as conn, conn.transaction(force_rollback=True):
            conn.execute(INSERT)
        return {}

    return router


ENDPOINTS = [
    lost("/end/close/lost"),
    "/end/close/commit",
    lost("/end/dropped/lost", "connection-dropped"),
    lost("/end/rollback/swallowed"),
    lost("/end/rollback/handled-well"),
    lost("/end/rollback/redirected"),
    lost("/end/rollback/audited", "write-lost", "write-lost"),
    lost("/end/rollback/read"),
    "/end/rollback/raised",
    "/end/rollback/conflict",
    "/end/rollback/status",
    "/end/rollback/returned",
    "/end/rollback/handler",
    "/end/rollback/retried",
    lost("/end/with/swallowed"),
    "/end/with/raised",
    "/end/with/again",
    "/end/with/autocommit",
    "/end/with/autocommit-many",
    "/end/with/autocommit-copy",
    lost("/end/with/autocommit-read"),
    lost("/end/block/swallowed"),
    lost("/end/block/rollback"),
    "/end/block/raised",
    "/end/block/again",
    "/end/block/forced",
    lost("/end/pipeline/swallowed"),
    "/end/pipeline/kept",
    "/end/pipeline/raised",
    "/end/pipeline/again",
    "/end/savepoint/confined",
    "/end/get-or-create/clean",
    lost("/end/get-or-create/after-write"),
    "/end/retry/clean",
    lost("/end/retry/given-up"),
    "/end/retry/raised",
    lost("/end/left/lost"),
    "/end/left/exhausted",
    "/end/left/committed",
    lost("/end/timeout/swallowed"),
    "/end/timeout/told",
    "/end/two/committed-later",
    lost("/end/two/committed-before"),
    lost("/end/two/one"),
    lost("/end/sql/rollback"),
    lost("/end/sql/ROLLBACK WORK"),
    lost("/end/sql/-- a comment%0Arollback"),
    "/end/sql/-- a comment%0Acommit",
    "/end/sql/commit",
    lost("/end/unit-of-work/lost"),
    "/end/unit-of-work/done",
    lost("/end/thread/lost"),
    "/end/thread/committed",
    lost("/end/gather/swallowed"),
    "/end/gather/clean",
]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_endpoint(pgleak_client, path):
    with suppress(psycopg.Error):
        await pgleak_client.post(path)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_endpoint_sync(pgleak_sync_client, path):
    with suppress(psycopg.Error):
        pgleak_sync_client.post(path)


async def test_dry_run(pgleak_client):
    assert (await pgleak_client.get("/end/dry-run")).status_code == 200


async def test_cancelled_by_its_client(pgleak_client):
    request = asyncio.create_task(pgleak_client.post("/end/timeout/swallowed"))
    await asyncio.sleep(0.1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


# -- COMMIT -----------------------------------------------------------------------------------------------------------


def commits(db):
    router = APIRouter(prefix="/commit")

    async def after_the_response():
        async with await psycopg.AsyncConnection.connect(db) as conn:
            yield conn

    def after_the_response_sync():
        with psycopg.connect(db) as conn:
            yield conn

    @router.post("/late")
    async def late(conn=Depends(after_the_response)):
        await conn.execute(LATE)
        return {}

    @router.post("/late-sync")
    def late_sync(conn=Depends(after_the_response_sync)):
        conn.execute(LATE)
        return {}

    @router.post("/late-and-swallowed")
    async def late_and_swallowed(conn=Depends(swallowing(db))):
        await conn.execute(LATE)
        return {}

    @router.post("/function-scope")
    async def function_scope(conn=Depends(after_the_response, scope="function")):
        await conn.execute(LATE)
        return {}

    @router.post("/in-the-endpoint")
    async def in_the_endpoint(conn=Depends(after_the_response)):
        await conn.execute(LATE)
        await conn.commit()
        return {}

    @router.post("/swallowed")
    async def swallowed(conn=Depends(after_the_response)):
        await conn.execute(LATE)
        try:
            await conn.commit()
        except psycopg.errors.UniqueViolation:
            pass
        return {}

    @router.post("/told")
    async def told(conn=Depends(after_the_response)):
        await conn.execute(LATE)
        try:
            await conn.commit()
        except psycopg.errors.UniqueViolation:
            raise HTTPException(409) from None
        return {}

    @router.post("/again")
    async def again(conn=Depends(after_the_response)):
        await conn.execute(LATE)
        try:
            await conn.commit()
        except psycopg.errors.UniqueViolation:
            await conn.execute(INSERT)
        return {}

    @router.post("/checked")
    async def checked(conn=Depends(after_the_response)):
        """Asks for the check before it is too late."""
        await conn.execute(LATE)
        await conn.execute("set constraints all immediate")
        return {}

    @router.post("/serialization")
    def serialization(conn=Depends(after_the_response_sync)):
        conn.execute("set transaction isolation level serializable")
        conn.execute("select sum(taken) from seat").fetchone()
        with psycopg.connect(db) as other:
            other.execute("set transaction isolation level serializable")
            other.execute("select sum(taken) from seat").fetchone()
            other.execute("update seat set taken = taken + 1 where id = 1")
            conn.execute("update seat set taken = taken + 1 where id = 2")
        return {}

    return router


def swallowing(db):
    async def dependency():
        conn = await psycopg.AsyncConnection.connect(db)
        try:
            yield conn
            await conn.commit()
        except psycopg.Error:
            pass
        finally:
            await conn.close()

    return dependency


@pytest.mark.parametrize(
    "path",
    [
        # psycopg leaves a connection open whose COMMIT fails in `with`: that is not the user's mistake.
        lost("/commit/late"),
        lost("/commit/late-sync"),
        lost("/commit/late-and-swallowed"),
        lost("/commit/serialization"),
        "/commit/function-scope",
        "/commit/in-the-endpoint",
        lost("/commit/swallowed"),
        "/commit/told",
        "/commit/again",
        "/commit/checked",
    ],
)
async def test_commit(pgleak_client, path):
    with suppress(psycopg.Error):
        await pgleak_client.post(path)


# -- after the response has started -----------------------------------------------------------------------------------


def after_the_response(db):
    router = APIRouter(prefix="/after")

    async def write(commits):
        conn = await psycopg.AsyncConnection.connect(db)
        await conn.execute(INSERT)
        if commits:
            await conn.commit()
        await conn.close()

    def write_sync(commits):
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        if commits:
            conn.commit()
        conn.close()

    @router.post("/background/{commits}")
    async def background(commits: bool, tasks: BackgroundTasks):
        tasks.add_task(write, commits)

    @router.post("/background-sync/{commits}")
    async def background_sync(commits: bool, tasks: BackgroundTasks):
        tasks.add_task(write_sync, commits)

    @router.post("/stream/{commits}")
    async def stream(commits: bool):
        async def body():
            yield "a"
            await write(commits)
            yield "b"

        return StreamingResponse(body())

    @router.post("/task/{commits}")
    async def task(commits: bool):
        asyncio.create_task(write(commits))  # noqa: RUF006 - as people do

    @router.post("/background-with-the-requests/{commits}")
    async def background_with_the_requests(commits: bool, tasks: BackgroundTasks):
        conn = await psycopg.AsyncConnection.connect(db)

        async def finish():
            await conn.execute(INSERT)
            if commits:
                await conn.commit()
            await conn.close()

        tasks.add_task(finish)

    async def own_connection():
        async with await psycopg.AsyncConnection.connect(db) as conn:
            yield conn

    @router.post("/failing-background/{commits}")
    async def failing_background(commits: bool, tasks: BackgroundTasks, conn=Depends(own_connection)):
        """What a background task raises goes through the exits of the dependencies, when everything has been sent."""

        def fails():
            raise RuntimeError("background")

        await conn.execute(INSERT)
        if commits:
            await conn.commit()
        tasks.add_task(fails)

    async def failing_exit(conn=Depends(own_connection)):
        yield
        raise RuntimeError("exit")

    @router.post("/failing-exit/{commits}")
    async def failing_exit_of_a_dependency(commits: bool, _=Depends(failing_exit), conn=Depends(own_connection)):
        await conn.execute(INSERT)
        if commits:
            await conn.commit()

    @router.post("/failing-stream")
    async def failing_stream(conn=Depends(own_connection)):
        """The client sees that the answer is not whole."""

        async def body():
            yield "a"
            await conn.execute(INSERT)
            raise RuntimeError("stream")

        return StreamingResponse(body())

    @router.websocket("/socket/{commits}")
    async def socket(socket: WebSocket, commits: bool):
        await socket.accept()
        await socket.receive_text()
        await write(commits)
        await socket.send_text("done")
        await socket.close()

    return router


@pytest.mark.parametrize("commits", [pytest.param(False, marks=expect("write-lost")), True])
@pytest.mark.parametrize("way", ["background", "background-sync", "stream", "task", "background-with-the-requests"])
async def test_after_the_response(pgleak_client, way, commits):
    assert (await pgleak_client.post(f"/after/{way}/{commits}")).status_code == 200


@pytest.mark.parametrize("commits", [pytest.param(False, marks=expect("write-lost")), True])
@pytest.mark.parametrize("way", ["background", "background-sync", "stream"])
def test_after_the_response_sync(pgleak_sync_client, way, commits):
    assert pgleak_sync_client.post(f"/after/{way}/{commits}").status_code == 200


@pytest.mark.parametrize("commits", [pytest.param(False, marks=expect("write-lost")), True])
@pytest.mark.parametrize("way", ["failing-background", "failing-exit"])
def test_exception_after_the_response(pgleak_app, way, commits):
    from fastapi.testclient import TestClient

    with TestClient(pgleak_app, raise_server_exceptions=False) as client:
        assert client.post(f"/after/{way}/{commits}").status_code == 200


async def test_exception_in_the_middle_of_the_response(pgleak_client):
    with pytest.raises(RuntimeError):
        await pgleak_client.post("/after/failing-stream")


@pytest.mark.parametrize("commits", [pytest.param(False, marks=expect("write-lost")), True])
def test_web_socket(pgleak_sync_client, commits):
    with pgleak_sync_client.websocket_connect(f"/after/socket/{commits}") as socket:
        socket.send_text("go")
        assert socket.receive_text() == "done"


# -- middleware -------------------------------------------------------------------------------------------------------


def with_middleware(db, how):
    app = FastAPI()

    class Middleware(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            if how == "swallows":
                try:
                    return await call_next(request)
                except DomainError:
                    return JSONResponse({"ok": True})
            if how in ("commits", "forgets"):
                conn = request.state.conn = await psycopg.AsyncConnection.connect(db)
                response = await call_next(request)
                if how == "commits":
                    await conn.commit()
                await conn.close()
                return response
            return await call_next(request)

    async def connection():
        async with await psycopg.AsyncConnection.connect(db) as conn:
            yield conn

    @app.post("/own")
    async def own(request: Request):
        await request.state.conn.execute(INSERT)

    @app.post("/dependency")
    async def dependency(conn=Depends(connection)):
        await conn.execute(INSERT)
        if how in ("swallows", "passes-on-an-error"):
            raise DomainError(409)

    app.add_middleware(Middleware)
    return app


@pytest.mark.parametrize(
    ("how", "path"),
    [
        pytest.param("swallows", "/dependency", marks=expect("write-lost")),
        pytest.param("forgets", "/own", marks=expect("write-lost")),
        ("commits", "/own"),
        ("passes-on", "/dependency"),
        ("passes-on-an-error", "/dependency"),
    ],
)
def test_middleware(db, how, path):
    from fastapi.testclient import TestClient

    with TestClient(with_middleware(db, how), raise_server_exceptions=False) as client:
        assert client.post(path).status_code == (500 if how == "passes-on-an-error" else 200)


# -- connections that outlive the request -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [pytest.param("lost", marks=expect("write-lost", "write-lost")), "committed"])
def test_connection_of_the_lifespan(db, how):
    from fastapi.testclient import TestClient

    @asynccontextmanager
    async def lifespan(app):
        app.state.conn = psycopg.connect(db)
        yield
        app.state.conn.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/")
    def write(request: Request):
        conn = request.app.state.conn
        conn.rollback()  # a fresh start
        conn.execute(INSERT)
        if how == "committed":
            conn.commit()

    with TestClient(app) as client:
        for _ in range(2):
            client.post("/")
        app.state.conn.rollback()


@pytest.mark.parametrize("how", [pytest.param("lost", marks=expect("write-lost")), "committed"])
def test_worker_of_the_lifespan(db, how):
    from fastapi.testclient import TestClient

    @asynccontextmanager
    async def lifespan(app):
        async def work():
            conn = await psycopg.AsyncConnection.connect(db)
            await conn.execute(INSERT)
            if how == "committed":
                await conn.commit()
            await conn.close()

        worker = asyncio.create_task(work())
        yield
        await worker

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    def read():
        return {}

    with TestClient(app) as client:
        client.get("/")


# -- a server in a thread ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live_server(db):
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(build(db), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    "path",
    [
        lost("/dep/sync_close"),
        "/dep/sync_close/commit",
        lost("/dep/async_putconn"),
        "/dep/async_pooled",
        lost("/end/rollback/swallowed"),
        "/end/rollback/conflict",
        "/end/rollback/retried",
        lost("/commit/late-and-swallowed"),
        lost("/after/background/false"),
        "/after/background/true",
        lost("/after/failing-background/false"),
        "/after/failing-background/true",
    ],
)
def test_live_server(live_server, path):
    httpx.post(f"{live_server}{path}")
    if path.startswith("/after/"):
        time.sleep(0.3)  # the answer comes before the background task


# -- several ----------------------------------------------------------------------------------------------------------


def test_of_several_requests_each_is_judged_for_itself(db):
    """One fails and loses nothing that was promised, the other one commits."""
    from fastapi.testclient import TestClient

    app = FastAPI()

    @app.post("/{fails}")
    def write(fails: bool):
        conn = psycopg.connect(db)
        try:
            conn.execute(INSERT)
            if fails:
                raise HTTPException(500)
            conn.commit()
        finally:
            conn.close()

    client = TestClient(app)
    assert client.post("/true").status_code == 500
    assert client.post("/false").status_code == 200
