"""An error of the user's own comes through functions of the plugin: none of them is shown in its traceback."""

from __future__ import annotations

import textwrap

import pytest

CONFTEST = """
    import psycopg, pytest
    from fastapi import FastAPI

    @pytest.fixture
    def broken():
        raise RuntimeError("not set up")

    @pytest.fixture
    def breaks():
        yield
        raise RuntimeError("not torn down")

    @pytest.fixture
    def unreachable():
        return psycopg.connect("host=127.0.0.1 port=1")

    @pytest.fixture
    async def unreachable_async():
        return await psycopg.AsyncConnection.connect("host=127.0.0.1 port=1")

    @pytest.fixture
    def bad_statement(pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("selct 1")

    @pytest.fixture
    def app():
        application = FastAPI()

        @application.get("/")
        async def index():
            raise RuntimeError("not answered")

        return application

    @pytest.fixture
    def cannot_start():
        async def lifespan(_app):
            raise RuntimeError("not started")
            yield

        return FastAPI(lifespan=lifespan)
"""

SUITE = """
    import httpx, pytest
    from fastapi.testclient import TestClient

    pytestmark = [pytest.mark.pgleak, pytest.mark.anyio]

    def test_set_up(broken):
        pass

    def test_torn_down(breaks):
        pass

    def test_unreachable(unreachable):
        pass

    async def test_unreachable_async(unreachable_async):
        pass

    def test_bad_statement(bad_statement):
        pass

    def test_request(app):
        TestClient(app).get("/")

    async def test_async_request(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.get("/")

    def test_lifespan(cannot_start):
        with TestClient(cannot_start):
            pass
"""


@pytest.mark.parametrize("style", ["short", "long"])
def test_no_frame_of_the_plugin_is_shown(pytester: pytest.Pytester, server_dsn: str, style: str) -> None:
    pytester.makeconftest(textwrap.dedent(CONFTEST))
    pytester.makepyfile(test_it=textwrap.dedent(SUITE))
    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", "-W", "ignore"),
        *(f"--tb={style}", f"--pgleak-dsn={server_dsn}"),
    )
    result.assert_outcomes(passed=1, failed=3, errors=5)
    shown = [line for line in result.outlines if "pytest_pgleak/" in line]
    assert not shown, "\n".join(shown)
