"""Websockets of a live server: what their endpoints hold when the client has gone, or is still there after its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="uvicorn speaks no websocket without it")

APP = """
import asyncio, os
from contextlib import asynccontextmanager
from fastapi import FastAPI, WebSocket
from psycopg_pool import AsyncConnectionPool
from pytest_pgleak.live import worker_checks

worker_checks.LONGEST_WORK = 4.0  # else a leak takes half a minute

@asynccontextmanager
async def lifespan(app):
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=8, open=False) as app.state.pool:
        yield

app = FastAPI(lifespan=lifespan)

@app.websocket("/clean")
async def clean(socket: WebSocket):
    await socket.accept()
    async with app.state.pool.connection() as conn:
        await conn.execute("select 1")
        async for text in socket.iter_text():
            await socket.send_text(text)

@app.websocket("/leaky")
async def leaky(socket: WebSocket):
    await socket.accept()
    conn = await app.state.pool.getconn()
    await conn.execute("select 1")
    await socket.send_text("ready")
    while True:
        await socket.receive_text()  # raises when its client has gone

@app.websocket("/unaware")
async def unaware(socket: WebSocket):
    await socket.accept()
    async with app.state.pool.connection() as conn:
        await conn.set_autocommit(True)
        await conn.execute("listen news")
        await socket.send_text("ready")
        async for notify in conn.notifies():
            await socket.send_text(notify.payload)

@app.websocket("/unaware-and-idle")
async def unaware_and_idle(socket: WebSocket):
    await socket.accept()
    await socket.send_text("ready")
    await asyncio.sleep(8)

@app.websocket("/beats")
async def beats(socket: WebSocket):
    await socket.accept()
    async with app.state.pool.connection() as conn:
        while True:
            await conn.execute("select 1")
            await socket.send_text("beat")
            await asyncio.sleep(1.5)  # longer than the grace
"""

TESTS = """
import contextlib
import pytest
from websockets.sync.client import connect

pytestmark = pytest.mark.pgleak

@pytest.fixture(scope="module")
def address(pgleak_live, pgleak_dsn):
    with pgleak_live("shop:app", env={"DATABASE_URL": pgleak_dsn}) as server:
        yield server.url.replace("http:", "ws:")

@pytest.fixture(scope="module")
def of_module(address):
    with connect(address + "/clean") as socket:
        yield socket

@pytest.fixture(scope="module")
def later(address):
    with contextlib.ExitStack() as stack:
        yield stack

@pytest.fixture
def of_test(address):
    with connect(address + "/clean") as socket:
        yield socket

def echo(socket):
    socket.send("hello")
    assert socket.recv() == "hello"

def test_clean(address):
    with connect(address + "/clean") as socket:
        echo(socket)

def test_leaky(address):
    with connect(address + "/leaky") as socket:
        assert socket.recv() == "ready"

def test_unaware(address):
    with connect(address + "/unaware") as socket:
        assert socket.recv() == "ready"

def test_unaware_but_holds_nothing(address):
    with connect(address + "/unaware-and-idle") as socket:
        assert socket.recv() == "ready"

def test_notices_late(address):
    with connect(address + "/beats") as socket:
        assert socket.recv() == "beat"

def test_cut_off(address):
    with connect(address + "/clean") as socket:
        echo(socket)
        socket.socket.close()  # no word of farewell

def test_of_a_fixture(of_test, of_module):
    echo(of_test)
    echo(of_module)

def test_of_the_same_fixture(of_module):
    echo(of_module)

def test_that_is_closed_later(address, later):
    echo(later.enter_context(connect(address + "/clean")))

left_open = contextlib.ExitStack()

def test_left_open(address):
    echo(left_open.enter_context(connect(address + "/clean")))

def test_left_open_without_holding_anything(address):
    assert left_open.enter_context(connect(address + "/unaware-and-idle")).recv() == "ready"

def test_behind_a_proxy(address):
    with connect(address + "/clean", additional_headers={"X-Forwarded-For": "127.0.0.9:77"}) as socket:
        echo(socket)
    echo(left_open.enter_context(connect(address + "/clean", additional_headers={"X-Forwarded-For": "127.0.0.9:77"})))
"""


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="whether a client has gone is read in /proc")
def test_what_websockets_leave(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(shop=APP, test_it=TESTS)
    arguments = (
        "-p",
        "no:cacheprovider",
        "-p",
        "no:pytest_asyncio.plugin",
        f"--pgleak-dsn={server_dsn}",
        "--pgleak-report=report.json",
    )
    result = pytester.runpytest_subprocess(*arguments, timeout=120)
    output = result.stdout.str()
    assert "internal error" not in output
    result.assert_outcomes(passed=10, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ test_leaky _*",
            "[[]connection-not-returned]*",
            "  taken     shop.py:* in leaky * in WEBSOCKET /leaky (leaky)",
            "*_ test_unaware _*",
            "[[]connection-not-returned]*",
            "  taken     shop.py:* in unaware * in WEBSOCKET /unaware (unaware)",
            "  request   #* WEBSOCKET /unaware → its client has gone, and the endpoint goes on",
            "  fix       end the endpoint when its client has gone: *",
        ]
    )
    told = r"^ +2 × \[connection-not-returned\] shop.py:\d+ in clean  \(warning\)\n +test_it.py::test_left_open\n"
    assert re.search(told, output, re.MULTILINE), output
    assert '"fix": "close the websocket when its test is over' in (pytester.path / "report.json").read_text()
