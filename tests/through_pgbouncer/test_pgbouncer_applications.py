"""Applications with pools of their own, in process and in the workers of a live server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pgbouncers import console, lines_of, needs_pgbouncer, pgbouncer, through
from psycopg.conninfo import make_conninfo

pytestmark = needs_pgbouncer

Run = Callable[..., pytest.RunResult]


SECRET = "s3cr3t-w0rd"

APP = """
    pytestmark = pytest.mark.pgleak

    import asyncio
    import anyio, httpx
    from contextlib import asynccontextmanager
    from typing import Annotated
    from fastapi import Depends, FastAPI, Request

    @asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(os.environ["APP_DSN"], min_size=2, max_size=4) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    async def get_conn(request: Request):
        async with request.app.state.pool.connection() as conn:
            yield conn

    Conn = Annotated[psycopg.AsyncConnection, Depends(get_conn)]

    @app.get("/clean")
    async def clean(conn: Conn):
        await conn.execute("set local work_mem = '77MB'")

    @app.get("/tenant")
    async def tenant(conn: Conn):
        await conn.execute("select set_config('app.tenant', %s, false)", ["seven"])

    @app.get("/two")
    async def two(conn: Conn, other: Annotated[psycopg.AsyncConnection, Depends(get_conn, use_cache=False)]):
        await conn.execute("select 1")
        await other.execute("set lock_timeout = '3s'")

    @app.get("/kept")
    async def kept(request: Request):
        conn = await request.app.state.pool.getconn()
        await conn.execute("insert into visits values (1)")
        KEPT.append(conn)

    @pytest.fixture
    def pgleak_app():
        return app

    @pytest.mark.parametrize("path", ["/clean", "/tenant", "/two", "/kept"])
    async def test_get(pgleak_client, path):
        assert (await pgleak_client.get(path)).status_code == 200

    async def test_get_all(pgleak_client):
        for _ in range(3):
            await asyncio.gather(*(pgleak_client.get(path) for path in ("/clean", "/clean", "/tenant")))
"""


def test_an_application_with_a_pool_of_its_own(run: Run, database: str) -> None:
    """As a user of PgBouncer's own, that it maps to another one on the server."""
    with pgbouncer(database, "transaction", {"web": SECRET, "admin": SECRET}) as address:
        result = run(
            make_conninfo(through(address, database), user="web", password=SECRET),
            APP,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={make_conninfo(console(address), password=SECRET)}",
            "-o",
            "pgleak_terminate=true",
        )
    result.assert_outcomes(passed=1, failed=4)
    (setting,) = (lines_of(result, f"test_get[/{path}]") for path in ("tenant",))
    pytest.LineMatcher(setting).fnmatch_lines(
        [
            "[[]session-state] *",
            "  set       test_it.py:* in tenant * in GET /tenant (tenant)",
            "  request   #1 GET /tenant → 200",
            "  left      setting app.tenant",
            "  ended     left on a server connection of PgBouncer's (pid *) in transaction mode; *",
        ]
    )
    pytest.LineMatcher(lines_of(result, "test_get[/two]")).fnmatch_lines(
        ["  left      setting lock_timeout = 3000ms *"]
    )
    pytest.LineMatcher(lines_of(result, "test_get[/kept]")).fnmatch_lines(
        ["[[]connection-not-returned] *", "  server    pid *, idle in transaction*", "  pgbouncer client 127.0.0.1:*"]
    )
    assert SECRET not in result.stdout.str().partition("test session starts")[2] + result.stderr.str()
    every = "\n".join(lines_of(result, "test_get_all"))
    assert every.count("[session-state]") == 1
    assert "  left      setting app.tenant\n" in every


SHOP = """
import os
from contextlib import asynccontextmanager
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

KEPT = []

@asynccontextmanager
async def lifespan(app):
    async with AsyncConnectionPool(os.environ["APP_DSN"], min_size=1, max_size=2, open=False) as app.state.pool:
        await app.state.pool.wait()
        yield

app = FastAPI(lifespan=lifespan)

@app.get("/clean")
async def clean():
    async with app.state.pool.connection() as conn:
        await conn.execute("set local work_mem = '77MB'")

@app.get("/setting")
async def setting():
    async with app.state.pool.connection() as conn:
        await conn.execute("set work_mem = '77MB'")

@app.get("/kept")
async def kept():
    KEPT.append(await app.state.pool.getconn())
    await KEPT[-1].execute("insert into visits values (1)")
"""

LIVE = """
    @pytest.fixture(scope="module")
    def server(pgleak_live):
        with pgleak_live("shop:app", env={"APP_DSN": os.environ["APP_DSN"]}) as server:
            yield server

    @pytest.mark.pgleak
    @pytest.mark.parametrize("path", ["/clean", "/setting", "/kept"])
    def test_get(server, path):
        with server.client() as client:
            assert client.get(path).status_code == 200
"""


def test_in_the_workers_of_a_live_server(run: Run, pytester: pytest.Pytester, database: str) -> None:
    pytester.makepyfile(shop=SHOP)
    with pgbouncer(database, "transaction") as address:
        console_of = f"--pgleak-pgbouncer={console(address)}"
        result = run(through(address, database), LIVE, f"--pgleak-dsn={database}", console_of)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.no_fnmatch_line("*untracked-backend*")
    pytest.LineMatcher(lines_of(result, "test_get[/setting]")).fnmatch_lines(
        ["  set       shop.py:* in setting * in GET /setting (setting)", "  left      setting work_mem = 78848kB*"]
    )
    pytest.LineMatcher(lines_of(result, "test_get[/kept]")).fnmatch_lines(
        ["[[]connection-not-returned]*", "  server    pid *, idle in transaction*", "  pgbouncer client 127.0.0.1:*"]
    )
