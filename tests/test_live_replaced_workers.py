"""``max_connections`` over the workers of a live server that start or end while the test runs."""

from __future__ import annotations

import inspect
import re

import pytest
from uvicorn.supervisors.multiprocess import Multiprocess

STARTS_THE_NEW_FIRST = "wait_until_ready" in inspect.getsource(Multiprocess.restart_all)
"""Whether this uvicorn, when it reloads, starts a new worker before it ends the old one, as later versions do."""

APP = """
import asyncio, os, signal
from contextlib import AsyncExitStack, asynccontextmanager
import psycopg
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

DSN = os.environ["DATABASE_URL"]

@asynccontextmanager
async def lifespan(app):
    async with AsyncConnectionPool(DSN, min_size=4, max_size=4, name="main", open=False) as app.state.pool:
        await app.state.pool.wait()
        yield

app = FastAPI(lifespan=lifespan)

@app.get("/pooled")
async def pooled():
    async with app.state.pool.connection() as conn:
        await conn.execute("select 1")

@app.get("/beside/{number}")
async def beside(number: int):
    async with AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(DSN))

@app.get("/die")
async def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

TESTS = """
import time
import httpx, pytest

@pytest.fixture(scope="module")
def start(pgleak_live, pgleak_dsn):
    def start(command):
        return pgleak_live("shop:app", command=command, env={"DATABASE_URL": pgleak_dsn})
    return start

@pytest.fixture
def one(start):
    with start("gunicorn {app}") as server:
        yield server

@pytest.fixture
def recycled(start):
    with start("gunicorn {app} --max-requests 1") as server:
        yield server

def wait_for_another(server, pids):
    deadline = time.monotonic() + 30
    while not server.worker_pids or set(server.worker_pids) & set(pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)

def kill(server):
    pids = server.worker_pids
    with server.client() as client, pytest.raises(httpx.TransportError):
        client.get("/pooled")
        client.get("/die")
    wait_for_another(server, pids)

@pytest.mark.pgleak(max_connections=4)
def test_killed(one):
    kill(one)

@pytest.mark.pgleak(max_connections=3)
def test_killed_with_too_many(one):
    kill(one)

@pytest.mark.pgleak(max_connections=5)
def test_killed_and_more_in_the_next(one):
    kill(one)
    httpx.get(one.url + "/beside/2")  # not a client of ours

@pytest.mark.pgleak(max_connections=5)
def test_recycled(recycled):
    pids = recycled.worker_pids
    with recycled.client() as client:
        client.get("/beside/2")
    wait_for_another(recycled, pids)

@pytest.mark.pgleak(max_connections=6)
def test_recycled_one_after_the_other(recycled):
    for _ in range(2):
        pids = recycled.worker_pids
        with recycled.client() as client:
            client.get("/beside/2")
        wait_for_another(recycled, pids)

@pytest.mark.pgleak(max_connections=16)
def test_reload_of_gunicorn(start):
    with start("gunicorn {app} --workers 2") as server:
        server.reload()

@pytest.mark.pgleak(max_connections=12)
def test_reload_of_uvicorn(start):
    with start("uvicorn {app} --workers 2") as server:
        server.reload()

@pytest.mark.pgleak(max_connections=11)
def test_reload_with_too_many(start):
    with start("uvicorn {app} --workers 2") as server:
        server.reload()

@pytest.mark.pgleak(max_connections=5)
def test_started_and_stopped(start):
    with start("uvicorn {app}") as server, server.client() as client:
        client.get("/beside/2")

@pytest.mark.pgleak(max_connections=6)
def test_started_and_stopped_one_after_the_other(start):
    for _ in range(2):
        with start("uvicorn {app}") as server, server.client() as client:
            client.get("/beside/2")
"""


def test_workers_that_start_or_end_are_counted(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(shop=APP, test_it=TESTS)
    arguments = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result = pytester.runpytest_subprocess(*arguments, timeout=120)
    output = result.stdout.str()
    numbers = {
        "test_killed_with_too_many": "4",
        "test_killed_and_more_in_the_next": "6",
        "test_recycled": "6",
        "test_reload_with_too_many": "12",
        "test_started_and_stopped": "6",
    }
    if not STARTS_THE_NEW_FIRST:
        del numbers["test_reload_with_too_many"]
    for test, number in numbers.items():
        found = rf"_ {test} _+\n\[too-many-connections\] .*\n(?:.*\n){{1,3}}  at once   {number} connections were"
        assert re.search(found, output), (test, output)
    assert output.count("  request   #1 GET /beside/2 → 200") == 3, output
    result.assert_outcomes(passed=10 - len(numbers), failed=len(numbers))
    if STARTS_THE_NEW_FIRST:
        assert "  held by   3 workers × 4, pool 'main' (shop.py:11 in lifespan)" in output
    assert "internal error" not in output
