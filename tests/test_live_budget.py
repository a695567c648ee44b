"""``max_connections`` over all workers of a live server."""

from __future__ import annotations

import pytest

APP = """
import os
from contextlib import asynccontextmanager
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
        await conn.execute("select pg_sleep(0.1)")

@app.get("/beside")
async def beside():
    async with await psycopg.AsyncConnection.connect(DSN, application_name="the user's own") as conn:
        await conn.execute("select pg_sleep(0.1)")
"""

TESTS = """
import asyncio, psycopg, pytest

@pytest.fixture(scope="module")
def server(pgleak_live, pgleak_dsn):
    with pgleak_live("shop:app", workers=4, env={"DATABASE_URL": pgleak_dsn}) as server:
        yield server

async def visit(server, path, number):
    async with server.async_client() as client:
        await asyncio.gather(*(client.get(path) for _ in range(number)))

@pytest.mark.pgleak(max_connections=16)
async def test_all(server):
    await visit(server, "/pooled", 20)

@pytest.mark.pgleak(max_connections=15)
async def test_one_too_many(server):
    await visit(server, "/pooled", 20)

@pytest.mark.pgleak(max_connections=17)
def test_one_after_the_other(server):
    with server.client() as client:
        for _ in range(4):
            client.get("/beside")

@pytest.mark.pgleak(max_connections=16)
def test_beside(server):
    with server.client() as client:
        client.get("/beside")

@pytest.mark.pgleak(max_connections=16)
def test_of_the_test(server, pgleak_dsn):
    with psycopg.connect(pgleak_dsn):
        pass
    assert server.worker_pids

@pytest.mark.pgleak
def test_not_counted(server, pgleak_dsn):
    with psycopg.connect(pgleak_dsn), server.client() as client:
        client.get("/beside")
"""


def test_all_workers_count_together(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(shop=APP, test_it=TESTS)
    arguments = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result = pytester.runpytest_subprocess(*arguments, timeout=120)
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ test_one_too_many _*",
            "[[]too-many-connections] more connections open at once than allowed",
            "  opened    shop.py:* in lifespan",
            "  at once   16 connections were open at once, max_connections allows 15; the server takes *",
            "  held by   4 workers × 4, pool 'main' (shop.py:* in lifespan): * in use, * idle",
            "*_ test_beside _*",
            "  opened    shop.py:* in beside * in GET /beside (beside)",
            "  at once   17 connections were open at once, max_connections allows 16; the server takes *",
            "  held by   4 workers × 4, pool 'main' (shop.py:* in lifespan): 0 in use, 16 idle",
            "            1 worker × 1, shop.py:* in beside",
        ]
    )
    result.stdout.no_fnmatch_line("*untracked-backend*")
