"""Beside other plugins and pytest's own options; each in a process of its own."""

from __future__ import annotations

import sys
import textwrap

import pytest

pytestmark = pytest.mark.usefixtures("all_plugins")

SUITE = """
    import psycopg, pytest

    MARKS

    @pytest.fixture
    def dsn(pgleak_dsn):
        return pgleak_dsn

    ASYNC_FIXTURE
    async def async_conn(dsn):
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            yield conn

    @pytest.mark.pgleak
    async def test_clean(async_conn, pgleak_client):
        await async_conn.execute("select 1")
        await async_conn.commit()
        assert (await pgleak_client.get("/")).json() == {"open": True}

    @pytest.mark.pgleak
    async def test_leak(dsn, pgleak_client):
        assert (await pgleak_client.get("/leak")).status_code == 200

    @pytest.mark.pgleak
    def test_sync(dsn, pgleak_sync_client):
        assert pgleak_sync_client.get("/").json() == {"open": True}

    class TestInClass:
        @pytest.mark.pgleak
        async def test_leak_in_class(self, pgleak_client):
            assert (await pgleak_client.get("/leak")).status_code == 200
"""

CONFTEST = """
    from contextlib import asynccontextmanager

    import psycopg, psycopg_pool, pytest
    from fastapi import FastAPI, Request

    @pytest.fixture
    def pgleak_app(pgleak_dsn):
        @asynccontextmanager
        async def lifespan(app):
            async with psycopg_pool.AsyncConnectionPool(pgleak_dsn, min_size=1, open=False) as pool:
                app.state.pool = pool
                yield

        app = FastAPI(lifespan=lifespan)

        @app.get("/")
        async def root(request: Request):
            async with request.app.state.pool.connection() as conn:
                await conn.execute("select 1")
            return {"open": not request.app.state.pool.closed}

        @app.get("/leak")
        async def leak(request: Request):
            conn = await request.app.state.pool.getconn()
            await conn.execute("select 1")

        return app
"""


@pytest.fixture(autouse=True)
def _suite(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(textwrap.dedent(CONFTEST))


def write(pytester: pytest.Pytester, marks: str = "", async_fixture: str = "@pytest.fixture") -> None:
    pytester.makepyfile(test_it=textwrap.dedent(SUITE).replace("MARKS", marks).replace("ASYNC_FIXTURE", async_fixture))


def check(result: pytest.RunResult, times: int = 1) -> None:
    result.assert_outcomes(passed=2 * times, failed=2 * times)
    result.stdout.fnmatch_lines(
        [
            "[[]connection-not-returned] connection checked out of a pool and never returned",
            "  taken     conftest.py:* in leak * in GET /leak (leak)",
            "*conn = await request.app.state.pool.getconn()",
            "  request   #1 GET /leak → 200",
        ]
    )
    assert "internal error" not in result.stdout.str()


QUIET = ("-o", "asyncio_default_fixture_loop_scope=function")


def test_pytest_asyncio_strict(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    marks = "import pytest_asyncio\nasyncio = pytest.mark.asyncio\n"
    write(pytester, marks, "@pytest_asyncio.fixture")
    source = pytester.path / "test_it.py"
    text = source.read_text(encoding="utf-8").replace("async def test_", "@ASYNCIO\nasync def test_")
    lines = [
        line.replace("@ASYNCIO", "@pytest.mark.asyncio") if line == "@ASYNCIO" else line for line in text.splitlines()
    ]
    # In the class the marker must be indented.
    source.write_text(
        "\n".join(lines).replace("    @ASYNCIO\nasync def", "    @pytest.mark.asyncio\n    async def"),
        encoding="utf-8",
    )
    check(pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", "--asyncio-mode=strict", *QUIET))


def test_pytest_asyncio_auto(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    check(pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", "--asyncio-mode=auto", *QUIET, "-W", "error"))


def test_pytest_asyncio_session_loop(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    check(
        pytester.runpytest_subprocess(
            f"--pgleak-dsn={server_dsn}",
            "--asyncio-mode=auto",
            "-o",
            "asyncio_default_fixture_loop_scope=session",
            "-o",
            "asyncio_default_test_loop_scope=session",
        )
    )


def test_anyio_marker(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester, "pytestmark = pytest.mark.anyio")
    (pytester.path / "conftest.py").write_text(
        textwrap.dedent(CONFTEST) + "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n", encoding="utf-8"
    )
    check(pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", *QUIET, "-W", "error"))


def test_anyio_module_scoped_backend(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester, "pytestmark = pytest.mark.anyio")
    (pytester.path / "conftest.py").write_text(
        textwrap.dedent(CONFTEST)
        + "\n@pytest.fixture(scope='module')\ndef anyio_backend():\n    return 'asyncio', {'debug': True}\n",
        encoding="utf-8",
    )
    check(pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", *QUIET))


def test_no_async_marker_at_all(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    result = pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", "-p", "no:asyncio", "-W", "error", "-v")
    check(result)
    # Nobody asked for a parameter, so nobody gets one in his test ids.
    result.stdout.fnmatch_lines(["test_it.py::test_clean PASSED*"])


def test_no_async_marker_beside_pytest_asyncio_strict(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    check(pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", *QUIET))


def test_order_of_tests_stays(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.pgleak
        ORDER = []

        def test_1(): ORDER.append(1)
        async def test_2(): ORDER.append(2)
        def test_3(): ORDER.append(3)
        async def test_4(): ORDER.append(4)
        def test_5(): assert ORDER == [1, 2, 3, 4]

        class Base:
            async def test_inherited(self):
                pass

        class TestA(Base):
            pass

        class TestB(Base):
            pass
        """
    )
    pytester.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=7)


def test_own_anyio_backend_is_respected(pytester: pytest.Pytester, server_dsn: str) -> None:
    (pytester.path / "conftest.py").write_text(
        textwrap.dedent(CONFTEST)
        + "\n@pytest.fixture(params=['asyncio'])\ndef anyio_backend(request):\n    return request.param\n",
        encoding="utf-8",
    )
    write(pytester)
    check(pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", "-p", "no:asyncio"))


def test_strict_markers_and_config(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    check(
        pytester.runpytest_subprocess(
            f"--pgleak-dsn={server_dsn}", "-p", "no:asyncio", "--strict-markers", "--strict-config", "-W", "error"
        )
    )


def test_xdist(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    pytester.makepyfile(
        test_databases="""
        import os, pathlib, psycopg, pytest

        @pytest.mark.parametrize("number", range(8))
        def test_database(pgleak_dsn, number):
            with psycopg.connect(pgleak_dsn) as conn:
                name = conn.info.dbname
            worker = os.environ["PYTEST_XDIST_WORKER"]
            assert worker in name
            pathlib.Path(f"{worker}-{name}").touch()
        """
    )
    result = pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", "-n", "2", "-p", "no:asyncio")
    result.assert_outcomes(passed=10, failed=2)
    result.stdout.fnmatch_lines(
        ["*pgleak: 2 leaks from 1 line of code*", "   2 × [[]connection-not-returned] conftest*"]
    )
    assert len(list(pytester.path.glob("gw*-pgleak_*"))) == 2


def test_stop_at_first_and_last_failed(pytester: pytest.Pytester, server_dsn: str) -> None:
    write(pytester)
    options = (f"--pgleak-dsn={server_dsn}", "-p", "no:asyncio")
    pytester.runpytest_subprocess(*options, "-x").assert_outcomes(passed=1, failed=1)
    pytester.runpytest_subprocess(*options, "--lf").assert_outcomes(failed=1)


def test_without_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("")
    pytester.makepyfile("import psycopg\ndef test_it():\n    assert psycopg.connect.__module__ == 'psycopg.connection'")
    pytester.runpytest_subprocess("-p", "no:pgleak", "-W", "error", *QUIET).assert_outcomes(passed=1)


def test_hypothesis_is_not_wrapped(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        import psycopg, pytest
        from hypothesis import given, settings, strategies, HealthCheck

        @pytest.mark.pgleak
        @settings(max_examples=5, suppress_health_check=list(HealthCheck), deadline=None)
        @given(strategies.integers())
        def test_it(pgleak_dsn, number):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("select 1")
        """
    )
    pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", *QUIET).assert_outcomes(passed=1)


def test_unused_plugin_imports_nothing_and_says_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("")
    pytester.makepyfile(
        """
        import sys

        def test_it():
            ours = [name for name in sys.modules if name.startswith("pytest_pgleak")]
            assert set(ours) <= {
                "pytest_pgleak", "pytest_pgleak.plugin", "pytest_pgleak.fixtures", "pytest_pgleak.options",
                "pytest_pgleak.post_import", "pytest_pgleak.hookspecs", "pytest_pgleak.libraries",
                "pytest_pgleak.libraries.registry", "pytest_pgleak.session_end",
            }
            assert not {"psycopg", "psycopg_pool", "asyncpg", "sqlalchemy", "httpx", "fastapi"} & set(sys.modules)
        """
    )
    result = pytester.run(
        sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=1)
    assert "pgleak:" not in result.stdout.str() + result.stderr.str()


def test_a_suite_that_uses_psycopg_without_the_marker(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeconftest("")
    pytester.makepyfile(
        f"""
        import psycopg, sys

        def test_it():
            conn = psycopg.connect({server_dsn!r})
            conn.execute("select 1")
            conn.close()
            assert "pytest_pgleak.servers" not in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-W", "error", *QUIET)
    result.assert_outcomes(passed=1)
    assert "pgleak:" not in result.stdout.str()
