"""Some hundred requests, sixteen at a time, on two workers: the one route that leaks is accused, and nobody else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TESTS = """
import asyncio, pkgutil
import httpx, psycopg, pytest
from demo_app import correct
from demo_app.schema import create_schema

CORRECT = [f"/correct.{module.name}/visit/" for module in pkgutil.iter_modules(correct.__path__)]
AT_ONCE = 16
ANSWERS = {200, 429}  # one of them takes so many visits an hour

@pytest.fixture(scope="module")
def server(pgleak_live, pgleak_dsn):
    create_schema(pgleak_dsn)
    with pgleak_live("demo_app.live:one_leaks", workers=2, env={"VISITS_DSN": pgleak_dsn}) as server:
        yield server

async def load(server, paths):
    turns = asyncio.Semaphore(AT_ONCE)

    async def visit(client, path):
        async with turns:
            return (await client.post(path)).status_code

    async with server.async_client(timeout=60, limits=httpx.Limits(max_connections=AT_ONCE)) as client:
        return await asyncio.gather(*(visit(client, path) for path in paths))

@pytest.mark.pgleak
async def test_one_leaks(server):
    paths = [path for turn in range(15) for path in (*CORRECT, "/leaky.dependency_returned/visit/")]
    assert set(await load(server, paths)) <= ANSWERS

@pytest.mark.pgleak
@pytest.mark.parametrize("repetition", range(10))
async def test_nothing_leaks(server, repetition):
    assert set(await load(server, CORRECT * 5)) <= ANSWERS
"""


def test_exactly_the_leaky_route_is_accused(
    pytester: pytest.Pytester, server_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(test_it=TESTS)
    arguments = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result = pytester.runpytest_subprocess(*arguments, timeout=170)
    output = result.stdout.str()
    result.assert_outcomes(failed=1, passed=10)
    assert re.search(r"^=+ pgleak: 15 leaks from 1 line of code =+$", output, re.MULTILINE), output
    result.stdout.fnmatch_lines(
        [
            "[[]connection-dropped] connection opened and never closed (15 times)",
            "  opened    *demo_app/leaky/dependency_returned.py:21 in get_conn dependency of POST /visit/ (create_*",
            "  15 × [[]connection-dropped] *demo_app/leaky/dependency_returned.py:21 in get_conn",
        ]
    )
    assert "internal error" not in output
