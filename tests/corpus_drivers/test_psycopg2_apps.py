"""psycopg2 in applications: synchronous dependencies, in Starlette's threads."""

import contextlib

import psycopg2
import psycopg2.errors
import psycopg2.pool
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('a')"
REFUSED = "insert into item(name) values ('refused')"
KEPT = []


def build(dsn):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        app.state.pool = psycopg2.pool.ThreadedConnectionPool(1, 4, dsn)
        yield
        app.state.pool.closeall()

    app = FastAPI(lifespan=lifespan)

    def returned():
        return psycopg2.connect(dsn)

    def not_closed():
        with psycopg2.connect(dsn) as conn:
            yield conn

    def closed():
        with contextlib.closing(psycopg2.connect(dsn)) as conn, conn:
            yield conn

    def never_committed():
        conn = psycopg2.connect(dsn)
        try:
            yield conn
        finally:
            conn.close()

    def pooled(request: Request):
        conn = request.app.state.pool.getconn()
        try:
            with conn:
                yield conn
        finally:
            request.app.state.pool.putconn(conn)

    def pooled_never_committed(request: Request):
        conn = request.app.state.pool.getconn()
        try:
            yield conn
        finally:
            request.app.state.pool.putconn(conn)

    def put_on_success(request: Request):
        conn = request.app.state.pool.getconn()
        yield conn
        conn.commit()
        request.app.state.pool.putconn(conn)

    def getconn_only(request: Request):
        return request.app.state.pool.getconn()

    def route(path, dependency):
        @app.get(path + "/{outcome}")
        def handler(outcome: str, conn=Depends(dependency)):
            with conn.cursor() as cursor:
                cursor.execute(INSERT)
            if outcome == "refused":
                raise HTTPException(422)
            if outcome == "broken":
                raise ValueError
            return "fine"

    for name, dependency in list(locals().items()):
        if name not in ("dsn", "app", "lifespan", "route"):
            route(f"/{name}", dependency)

    @app.get("/swallowed")
    def swallowed(conn=Depends(closed)):
        cursor = conn.cursor()
        cursor.execute(INSERT)
        with contextlib.suppress(psycopg2.errors.CheckViolation):
            cursor.execute(REFUSED)
        return "fine"

    @app.get("/rolled-back")
    def rolled_back(conn=Depends(closed)):
        cursor = conn.cursor()
        try:
            cursor.execute(INSERT)
            cursor.execute(REFUSED)
        except psycopg2.errors.CheckViolation:
            conn.rollback()
        return "fine"

    @app.get("/retried")
    def retried(conn=Depends(closed)):
        cursor = conn.cursor()
        try:
            cursor.execute(INSERT)
            cursor.execute(REFUSED)
        except psycopg2.errors.CheckViolation:
            conn.rollback()
            cursor.execute(INSERT)
        conn.commit()
        return "fine"

    @app.get("/background")
    def background(tasks: BackgroundTasks):
        def work():
            with contextlib.closing(psycopg2.connect(dsn)) as conn, conn:
                conn.cursor().execute(INSERT)

        tasks.add_task(work)

    @app.get("/background-leak")
    def background_leak(tasks: BackgroundTasks):
        def work():
            KEPT.append(psycopg2.connect(dsn))

        tasks.add_task(work)

    return app


@pytest.fixture
def client(dsn):
    with TestClient(build(dsn), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/closed", "/pooled"])
def test_clean(client, path):
    assert client.get(f"{path}/fine").status_code == 200
    assert client.get(f"{path}/refused").status_code == 422
    assert client.get(f"{path}/broken").status_code == 500


@pytest.mark.parametrize("path", ["/returned", "/not_closed"])
@expect("connection-dropped")
def test_dropped(client, path):
    assert client.get(f"{path}/fine").status_code == 200


@pytest.mark.parametrize("path", ["/never_committed", "/pooled_never_committed"])
@expect("write-lost")
def test_lost(client, path):
    assert client.get(f"{path}/fine").status_code == 200


def test_never_committed_and_told(client):
    assert client.get("/never_committed/refused").status_code == 422


@expect("returned-in-transaction")
def test_never_committed_and_told_pooled(client):
    assert client.get("/pooled_never_committed/broken").status_code == 500


@expect("connection-not-returned")
def test_put_on_success(client):
    assert client.get("/put_on_success/fine").status_code == 200
    assert client.get("/put_on_success/broken").status_code == 500


@expect("connection-not-returned")
def test_getconn_only(client):
    assert client.get("/getconn_only/fine").status_code == 200


@expect("write-lost")
def test_swallowed(client):
    assert client.get("/swallowed").status_code == 200


@expect("write-lost")
def test_rolled_back(client):
    assert client.get("/rolled-back").status_code == 200


def test_retried(client):
    assert client.get("/retried").status_code == 200


def test_background(client):
    assert client.get("/background").status_code == 200


@expect("connection-not-closed")
def test_background_leak(client):
    assert client.get("/background-leak").status_code == 200


@expect("commit-after-response")
@pytest.mark.pgleak(commit="before-response")
def test_commit_after_response(client):
    assert client.get("/closed/fine").status_code == 200


@pytest.mark.pgleak(commit="before-response")
def test_commit_before_response(client):
    assert client.get("/retried").status_code == 200


# The plugin's own clients.


@pytest.fixture
def pgleak_app(dsn):
    return build(dsn)


@expect("write-lost")
def test_sync_client(pgleak_sync_client):
    assert pgleak_sync_client.get("/never_committed/fine").status_code == 200


@expect("connection-dropped")
async def test_async_client(pgleak_client):
    assert (await pgleak_client.get("/not_closed/fine")).status_code == 200


async def test_async_client_clean(pgleak_client):
    assert (await pgleak_client.get("/pooled/fine")).status_code == 200
