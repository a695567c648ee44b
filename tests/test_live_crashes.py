"""What goes wrong on the wire: a worker that is killed, a client that leaves, a timeout, a reload, a slow shutdown."""

from __future__ import annotations

import re
import textwrap

import pytest

APP = """
import asyncio, os, signal, threading
from contextlib import asynccontextmanager
import psycopg
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from psycopg_pool import AsyncConnectionPool

DSN = os.environ["DATABASE_URL"]

def listens():
    with psycopg.connect(DSN) as conn:
        threading.Event().wait()

@asynccontextmanager
async def lifespan(app):
    if "listens" in os.environ.get("LIFESPAN", ""):
        await asyncio.sleep(2)  # a test begins meanwhile
        threading.Thread(target=listens, daemon=True).start()
        await asyncio.sleep(0.2)
    async with AsyncConnectionPool(DSN, min_size=1, max_size=4, open=False) as app.state.pool:
        yield
        if "forgets" in os.environ.get("LIFESPAN", ""):
            app.state.forgotten = await psycopg.AsyncConnection.connect(DSN)

app = FastAPI(lifespan=lifespan)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def pooled():
    async with app.state.pool.connection() as conn:
        yield conn

async def dies_before_the_commit():
    async with app.state.pool.connection() as conn:
        yield conn
        await asyncio.sleep(0.2)  # the answer reaches the client
        die()

@app.get("/die/after-the-answer")
async def lost(conn=Depends(dies_before_the_commit)):
    await conn.execute("insert into t values (1)")

@app.get("/die/before-the-answer")
async def unanswered(conn=Depends(pooled)):
    await conn.execute("insert into t values (1)")
    die()

@app.get("/die/idle")
async def idle(tasks: BackgroundTasks):
    async with app.state.pool.connection() as conn:
        await conn.execute("insert into t values (1)")
    tasks.add_task(die)

@app.get("/drop")
async def drop():
    await psycopg.AsyncConnection.connect(DSN)

@app.get("/keep")
async def keep():
    app.state.kept = await psycopg.AsyncConnection.connect(DSN)

async def rows_of(conn):
    await conn.execute("select 1")
    for number in range(1000):
        yield f"{number}\\n"
        await asyncio.sleep(0.05)

@app.get("/stream/leaky")
async def stream_leaky():
    async def rows():
        conn = await app.state.pool.getconn()
        async for row in rows_of(conn):
            yield row
        await app.state.pool.putconn(conn)
    return StreamingResponse(rows())

@app.get("/stream/clean")
async def stream_clean():
    async def rows():
        async with app.state.pool.connection() as conn:
            async for row in rows_of(conn):
                yield row
    return StreamingResponse(rows())

@app.get("/timeout/leaky")
async def timeout_leaky():
    async def work():
        conn = await app.state.pool.getconn()
        await conn.execute("select pg_sleep(10)")
        await app.state.pool.putconn(conn)
    try:
        await asyncio.wait_for(work(), 0.1)
    except TimeoutError:
        return "too slow"

@app.get("/timeout/clean")
async def timeout_clean():
    async def work():
        async with app.state.pool.connection() as conn:
            await conn.execute("select pg_sleep(10)")
    try:
        await asyncio.wait_for(work(), 0.1)
    except TimeoutError:
        return "too slow"

@app.get("/works-on/{seconds}")
async def works_on(seconds: float):
    # It ends with the process, which PostgreSQL notices when the statement has been executed.
    def work():
        with psycopg.connect(DSN) as conn:
            conn.execute("select pg_sleep(%s)", [seconds])
    threading.Thread(target=work, daemon=True).start()
    await asyncio.sleep(0.2)

@app.get("/outlives")
async def outlives():
    await asyncio.sleep(1.5)  # its test is over
    await psycopg.AsyncConnection.connect(DSN)

@app.get("/slow")
async def slow(conn=Depends(pooled)):
    await conn.execute("select pg_sleep(0.3)")
"""

TESTS = """
import os, signal, time
import httpx, psycopg, pytest

pytestmark = pytest.mark.pgleak

@pytest.fixture(scope="session")
def dsn(pgleak_dsn):
    with psycopg.connect(pgleak_dsn) as conn:
        conn.execute("create table if not exists t (number int)")
    return pgleak_dsn

@pytest.fixture
def dying(pgleak_live, dsn):
    with pgleak_live("shop:app", env={"DATABASE_URL": dsn}) as server:
        with server.client() as client:
            yield client

@pytest.fixture(scope="module")
def server(pgleak_live, dsn):
    with pgleak_live("shop:app", workers=2, env={"DATABASE_URL": dsn}) as server:
        yield server

@pytest.fixture
def client(server):
    with server.client(timeout=5) as client:
        yield client

@pytest.fixture
def restarting(pgleak_live, dsn):
    with pgleak_live("shop:app", workers=2, env={"DATABASE_URL": dsn, "LIFESPAN": "listens"}) as server:
        os.kill(server.worker_pids[0], signal.SIGKILL)
        while len(server.workers.links) == 2 and len(server.worker_pids) == 2:
            time.sleep(0.01)
        while len(server.workers.links) < 2:
            time.sleep(0.01)
        yield server

def test_restarts_meanwhile(restarting):
    while len(restarting.worker_pids) < 2:
        time.sleep(0.01)

def test_reload_leaky(pgleak_live, dsn):
    with pgleak_live("shop:app", workers=2, env={"DATABASE_URL": dsn, "LIFESPAN": "forgets"}) as server:
        server.reload()

@pytest.mark.parametrize("command", ["uvicorn {app} --workers 2", "gunicorn {app} --workers 2"])
def test_reload_clean(pgleak_live, dsn, command):
    with pgleak_live("shop:app", command=command, env={"DATABASE_URL": dsn}) as server, server.client() as client:
        before = server.worker_pids
        client.get("/die/never")
        server.reload()
        assert not set(before) & set(server.worker_pids)
        client.get("/die/never")

@pytest.mark.pgleak(allow=["connection-dropped"])
@pytest.mark.parametrize("seconds", [30, 0.3])
def test_shutdown(pgleak_live, dsn, seconds):
    with pgleak_live("shop:app", env={"DATABASE_URL": dsn}) as server, server.client() as client:
        client.get(f"/works-on/{seconds}")

def test_one_worker_cannot_reload(pgleak_live, dsn):
    with pgleak_live("shop:app", env={"DATABASE_URL": dsn}) as server:
        with pytest.raises(Exception, match="workers=2 or more"):
            server.reload()

def test_killed_after_the_answer(dying):
    assert dying.get("/die/after-the-answer").status_code == 200
    with pytest.raises(httpx.TransportError):
        while True:
            dying.get("/drop/nowhere")

@pytest.mark.pgleak(allow=["connection-dropped"])
def test_killed_before_the_answer(dying):
    with pytest.raises(httpx.TransportError):
        dying.get("/die/before-the-answer")

def test_killed_while_idle(dying):
    dying.get("/die/idle")

def test_dropped_before_it_was_killed(dying):
    dying.get("/drop")
    dying.get("/die/idle")

def test_kept_before_it_was_killed(dying):
    import time
    dying.get("/keep")
    time.sleep(0.5)
    dying.get("/die/idle")

@pytest.mark.parametrize("how", ["leaky", "clean"])
def test_disconnected(client, how):
    with client.stream("GET", f"/stream/{how}") as response:
        assert next(response.iter_lines()) == "0"

@pytest.mark.parametrize("how", ["leaky", "clean"])
def test_timeout(client, how):
    assert client.get(f"/timeout/{how}").json() == "too slow"

def test_the_request_goes_on(client):
    with pytest.raises(httpx.ReadTimeout):
        client.get("/outlives", timeout=0.1)

def test_the_client_gives_up(client):
    with pytest.raises(httpx.ReadTimeout):
        client.get("/slow", timeout=0.1)

@pytest.fixture
def open_stream(client):
    with client.stream("GET", "/stream/clean") as response:
        yield response.iter_lines()

def test_a_stream_that_its_fixture_closes(open_stream):
    assert next(open_stream) == "0"
"""


def test_what_goes_wrong_on_the_wire(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(shop=APP, test_it=textwrap.dedent(TESTS))
    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", "-rA", f"--pgleak-dsn={server_dsn}"),
        timeout=120,
    )
    output = result.stdout.str()
    failed = {
        "test_reload_leaky": "connection-not-closed",
        "test_shutdown[30]": "connection-not-closed",
        "test_killed_after_the_answer": "write-lost",
        "test_dropped_before_it_was_killed": "connection-dropped",
        "test_kept_before_it_was_killed": "connection-not-closed",
        "test_disconnected[leaky]": "connection-not-returned",
        "test_timeout[leaky]": "connection-not-returned",
    }
    for test, kind in failed.items():
        assert re.search(rf"^_+ {re.escape(test)} _+\n\[{kind}\] ", output, re.MULTILINE), output
    # Told at the end, for by then nobody's test could fail for it.
    outlived = r"^ +1 × \[connection-dropped\] shop.py:\d+ in outlives  \(warning\)$"
    assert re.search(outlived, output, re.MULTILINE), output
    result.assert_outcomes(failed=len(failed), passed=12)
    result.stdout.fnmatch_lines(
        [
            "  wrote     shop.py:* in lost *",
            "  request   #1 GET /die/after-the-answer → 200: the client was told that all is well",
            "  ended     worker process * was killed with the transaction open; nothing had called commit()",
        ]
    )
    told = "in unanswered of GET /die/before-the-answer (the client got no answer), in test_it.py::test_killed_before"
    assert re.search(rf"^pgleak: worker process \d+ ended without a .* {re.escape(told)}", output, re.MULTILINE), output
    assert output.count("ended without a shutdown") == 1
    assert "internal error" not in output
