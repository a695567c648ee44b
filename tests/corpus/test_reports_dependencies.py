"""Dependencies of every shape that FastAPI takes, as public reports have them; `# leaks` is the line to be named."""

import contextlib
from typing import Annotated

import psycopg
import psycopg_pool
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Security
from fastapi.security import APIKeyHeader

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
KEY = {"x-key": "k"}


def build(dsn):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
            with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=4, open=False) as sync_pool:
                app.state.pool, app.state.sync_pool = pool, sync_pool
                yield

    app = FastAPI(lifespan=lifespan)

    # Callable objects (full-stack template, dependency_injector).
    class Connector:
        def __init__(self, managed):
            self.managed = managed

        async def __call__(self):
            conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
            try:
                yield conn
            finally:
                if self.managed:
                    await conn.close()

    @app.get("/callable/leaky")
    async def callable_leaky(conn=Depends(Connector(managed=False))):
        await conn.execute("select 1")

    @app.get("/callable/clean")
    async def callable_clean(conn=Depends(Connector(managed=True))):
        await conn.execute("select 1")

    # A repository that connects in its constructor: Depends() on the class.
    class Repository:
        def __init__(self):
            self.conn = psycopg.connect(dsn)  # leaks

        def one(self):
            return self.conn.execute("select 1").fetchone()[0]

    @app.get("/repository/leaky")
    def repository_leaky(repository: Annotated[Repository, Depends()]):
        return repository.one()

    def repository():
        made = Repository()
        try:
            yield made
        finally:
            made.conn.close()

    @app.get("/repository/clean")
    def repository_clean(repository=Depends(repository)):
        return repository.one()

    # A bound method of a database object (harlequin-postgres#61: every helper skipped its putconn on errors).
    class Database:
        def get(self, request: Request):
            conn = request.app.state.sync_pool.getconn()  # leaks
            yield conn
            request.app.state.sync_pool.putconn(conn)

        def get_safely(self, request: Request):
            conn = request.app.state.sync_pool.getconn()
            try:
                yield conn
            finally:
                request.app.state.sync_pool.putconn(conn)

    database = Database()

    @app.get("/method/leaky")
    def method_leaky(conn=Depends(database.get)):
        raise HTTPException(409)

    @app.get("/method/clean")
    def method_clean(conn=Depends(database.get_safely)):
        raise HTTPException(409)

    # A chain: the connection is two dependencies below the endpoint.
    async def get_conn():
        return await psycopg.AsyncConnection.connect(dsn)  # leaks

    async def get_repository(conn=Depends(get_conn)):
        return {"conn": conn}

    async def get_service(repository=Depends(get_repository)):
        return {"repository": repository}

    @app.get("/chain/leaky")
    async def chain_leaky(service=Depends(get_service)):
        await service["repository"]["conn"].execute("select 1")

    async def get_conn_safely():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            yield conn

    async def get_repository_safely(conn=Depends(get_conn_safely)):
        return {"conn": conn}

    @app.get("/chain/clean")
    async def chain_clean(repository=Depends(get_repository_safely), conn=Depends(get_conn_safely)):
        assert repository["conn"] is conn

    # use_cache=False: twice the dependency, twice the connection.
    @app.get("/uncached/leaky")
    async def uncached_leaky(first=Depends(get_conn, use_cache=False), second=Depends(get_conn, use_cache=False)):
        assert first is not second

    @app.get("/uncached/clean")
    async def uncached_clean(
        first=Depends(get_conn_safely, use_cache=False), second=Depends(get_conn_safely, use_cache=False)
    ):
        assert first is not second

    # scope="function": the exit runs before the response.
    @app.get("/function-scope/clean")
    async def function_scope_clean(conn=Depends(get_conn_safely, scope="function")):
        await conn.execute("select 1")

    async def bare_yield():
        conn = await psycopg.AsyncConnection.connect(dsn)  # leaks
        yield conn
        await conn.close()

    @app.get("/function-scope/leaky")
    async def function_scope_leaky(conn=Depends(bare_yield, scope="function")):
        raise HTTPException(404)

    # `async for db in get_db(): yield db` (otari#1236, FLIP#775): the inner generator is abandoned.
    async def delegating():
        async for conn in bare_yield():
            yield conn

    @app.get("/delegating/leaky")
    async def delegating_leaky(conn=Depends(delegating)):
        raise HTTPException(404)

    @app.get("/delegating/clean")
    async def delegating_clean(conn=Depends(delegating)):
        return {}

    # `except Exception` only: HTTPException is one, so this is clean here (cancellation is in test_reports_requests).
    async def except_exception(request: Request):
        conn = await request.app.state.pool.getconn()
        try:
            yield conn
        except Exception:
            await request.app.state.pool.putconn(conn)
            raise
        else:
            await request.app.state.pool.putconn(conn)

    @app.get("/except-exception/clean")
    async def except_exception_clean(conn=Depends(except_exception)):
        raise HTTPException(404)

    # The dependency itself fails after it has taken the connection.
    async def fails_after_getconn(request: Request):
        conn = await request.app.state.pool.getconn()  # leaks
        if not request.headers.get("x-tenant"):
            raise HTTPException(400)
        try:
            yield conn
        finally:
            await request.app.state.pool.putconn(conn)

    @app.get("/fails-early")
    async def fails_early(conn=Depends(fails_after_getconn)):
        return {}

    # A later dependency fails: validation (422) and security.
    @app.get("/invalid/leaky")
    async def invalid_leaky(number: int, conn=Depends(get_conn)):
        return {}

    @app.get("/invalid/clean")
    async def invalid_clean(number: int, conn=Depends(get_conn_safely)):
        return {}

    async def user_leaky(request: Request, key: str = Security(APIKeyHeader(name="x-key"))):
        conn = await request.app.state.pool.getconn()  # leaks
        cur = await conn.execute("select %s::text", [key])
        return (await cur.fetchone())[0]

    async def user_clean(request: Request, key: str = Security(APIKeyHeader(name="x-key"))):
        async with request.app.state.pool.connection() as conn:
            cur = await conn.execute("select %s::text", [key])
            return (await cur.fetchone())[0]

    @app.get("/security/leaky")
    async def security_leaky(user: str = Security(user_leaky)):
        return user

    @app.get("/security/clean")
    async def security_clean(user: str = Security(user_clean)):
        return user

    # Dependencies of a router, of include_router and of the path operation decorator: nobody takes their value.
    def audit_leaky():
        psycopg.connect(dsn).execute("select 1")  # leaks

    def audit_clean():
        with psycopg.connect(dsn) as conn:
            conn.execute("select 1")

    for how, audit in (("leaky", audit_leaky), ("clean", audit_clean)):
        of_router = APIRouter(prefix=f"/router/{how}", dependencies=[Depends(audit)])
        included = APIRouter(prefix=f"/included/{how}")
        inner = APIRouter(prefix="/inner")
        for router in (of_router, included, inner):

            @router.get("/{number}")
            async def read(number: int):
                return number

        included.include_router(inner)
        app.include_router(of_router)
        app.include_router(included, dependencies=[Depends(audit)])

        @app.get(f"/decorator/{how}", dependencies=[Depends(audit)])
        async def decorated():
            return {}

    # A context manager of the user's own in between.
    @contextlib.contextmanager
    def session(commit):
        conn = psycopg.connect(dsn)  # leaks
        yield conn
        if commit:
            conn.commit()
        conn.close()

    def get_session():
        with session(commit=True) as conn:
            yield conn

    @app.get("/session/leaky")
    def session_leaky(conn=Depends(get_session)):
        raise HTTPException(418)

    @app.get("/session/clean")
    def session_clean(conn=Depends(get_session)):
        return {}

    # ExitStack: entered and never closed, and closed.
    async def stack_leaky():
        stack = contextlib.AsyncExitStack()
        return await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))  # leaks

    async def stack_clean():
        async with contextlib.AsyncExitStack() as stack:
            yield await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))

    @app.get("/stack/leaky")
    async def exit_stack_leaky(conn=Depends(stack_leaky)):
        await conn.execute("select 1")

    @app.get("/stack/clean")
    async def exit_stack_clean(conn=Depends(stack_clean)):
        await conn.execute("select 1")

    # A pool in each request, and a health check that connects by itself.
    def pool_per_request():
        return psycopg_pool.ConnectionPool(dsn, min_size=1, open=True)  # leaks

    @app.get("/pool/leaky")
    def pool_leaky(pool=Depends(pool_per_request)):
        with pool.connection() as conn:
            conn.execute("select 1")

    def pool_per_request_clean():
        with psycopg_pool.ConnectionPool(dsn, min_size=1, open=True) as pool:
            yield pool

    @app.get("/pool/clean")
    def pool_clean(pool=Depends(pool_per_request_clean)):
        with pool.connection() as conn:
            conn.execute("select 1")

    # Two pools in one dependency; only one connection goes back.
    async def both(request: Request):
        first = await request.app.state.pool.getconn()
        second = await request.app.state.pool.getconn()  # leaks
        try:
            yield first, second
        finally:
            await request.app.state.pool.putconn(first)

    @app.get("/both/leaky")
    async def both_leaky(conns=Depends(both)):
        return {}

    # putconn in `else` / reassigned variable: the first connection is forgotten.
    def reassigned(request: Request):
        pool = request.app.state.sync_pool
        conn = pool.getconn()  # leaks
        conn = pool.getconn()
        try:
            yield conn
        finally:
            pool.putconn(conn)

    @app.get("/reassigned/leaky")
    def reassigned_leaky(conn=Depends(reassigned)):
        return {}

    return app


@pytest.fixture(scope="session")
def pgleak_app(dsn):
    return build(dsn)


def leaky(path, kind, *kinds):
    return pytest.param(path, marks=expect(kind, *kinds))


PATHS = [
    leaky("/callable/leaky", "connection-dropped"),
    "/callable/clean",
    leaky("/repository/leaky", "connection-dropped"),
    "/repository/clean",
    leaky("/method/leaky", "connection-not-returned"),
    "/method/clean",
    leaky("/chain/leaky", "connection-dropped"),
    "/chain/clean",
    leaky("/uncached/leaky", "connection-dropped", "connection-dropped"),
    "/uncached/clean",
    leaky("/function-scope/leaky", "connection-dropped"),
    "/function-scope/clean",
    leaky("/delegating/leaky", "connection-dropped"),
    "/delegating/clean",
    "/except-exception/clean",
    leaky("/fails-early", "connection-not-returned"),
    leaky("/invalid/leaky?number=x", "connection-dropped"),
    "/invalid/clean?number=x",
    leaky("/security/leaky", "connection-not-returned"),
    "/security/clean",
    leaky("/router/leaky/1", "connection-dropped"),
    "/router/clean/1",
    leaky("/included/leaky/1", "connection-dropped"),
    "/included/clean/1",
    leaky("/included/leaky/inner/1", "connection-dropped"),
    "/included/clean/inner/1",
    leaky("/decorator/leaky", "connection-dropped"),
    "/decorator/clean",
    leaky("/session/leaky", "connection-dropped"),
    "/session/clean",
    leaky("/stack/leaky", "connection-dropped"),
    "/stack/clean",
    leaky("/pool/leaky", "pool-not-closed"),
    "/pool/clean",
    leaky("/both/leaky", "connection-not-returned", "nested-checkout"),
    leaky("/reassigned/leaky", "connection-not-returned"),
]


@pytest.mark.parametrize("path", PATHS)
async def test_async_client(pgleak_client, path):
    assert (await pgleak_client.get(path, headers=KEY)).status_code < 500


@pytest.mark.parametrize("path", PATHS)
def test_sync_client(pgleak_sync_client, path):
    assert pgleak_sync_client.get(path, headers=KEY).status_code < 500


@pytest.mark.parametrize("how", [pytest.param("leaky", marks=expect("connection-dropped")), "clean"])
def test_overridden_by_a_dependency_of_the_tests(dsn, how):
    from fastapi.testclient import TestClient

    def get_conn():
        raise AssertionError("never called")

    app = FastAPI()

    @app.get("/")
    def read(conn=Depends(get_conn)):
        return conn.execute("select 1").fetchone()[0]

    def override():
        conn = psycopg.connect(dsn)  # leaks
        yield conn
        if how == "clean":
            conn.close()

    app.dependency_overrides[get_conn] = override
    assert TestClient(app).get("/").json() == 1
