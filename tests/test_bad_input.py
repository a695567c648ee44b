"""Bad input gets one clear error that names the option and the remedy, and no traceback into the plugin."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest

USES_THE_SERVER = """
    import psycopg, pytest

    @pytest.mark.pgleak
    def test_it(pgleak_dsn):
        psycopg.connect(pgleak_dsn).close()
"""


def output_of(result: pytest.RunResult) -> str:
    text: str = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "During handling of the above exception" not in text
    assert "src/pytest_pgleak" not in text
    assert "internal error" not in text.lower()
    return text


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("allow=['connection-droped']", ["unknown kind 'connection-droped' (did you mean 'connection-dropped'?)"]),
        ("alow=['connection-dropped']", ["unknown keyword 'alow' (did you mean 'allow'?)", "max_connections"]),
        ("'connection-dropped'", ["takes keywords only", "allow=['connection-dropped']"]),
        ("grace='soon'", ["grace = soon: expected a number of seconds"]),
        ("max_connections='many'", ["max_connections = 'many': expected a whole number"]),
        ("commit='later'", ["before-response"]),
        ("allow=7", ["allow = 7: expected a list of names"]),
    ],
)
def test_marker(marker: str, expected: list[str], pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.pgleak({marker})
        def test_it():
            pass

        def test_other():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin")
    result.assert_outcomes(errors=1, passed=1)
    text = output_of(result)
    assert "test_marker.py:3 (test_it): @pytest.mark.pgleak" in text
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    ("ini", "expected"),
    [
        ("pgleak_mode = loud", "pgleak_mode = loud: expected one of fail, warn, off"),
        ("pgleak_select = some", "pgleak_select = some: expected one of marked, all"),
        ("pgleak_grace = -1", "pgleak_grace = -1: expected a number of seconds"),
        ("pgleak_levels = connection-lost = fail", "unknown kind 'connection-lost'"),
        ("pgleak_levels = connection-dropped = loud", "expected a line `KIND = fail|warn|off`"),
        ("pgleak_ignore = connection-dropped", "expected a line `KIND GLOB::FUNCTION`"),
        ("pgleak_ignore = connection-lost app.py::f", "unknown kind 'connection-lost'"),
        ("pgleak_server = oracle", "pgleak_server = oracle: expected one of auto, dsn, embedded, local, docker"),
    ],
)
def test_ini(ini: str, expected: str, pytester: pytest.Pytester) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert expected in output_of(result)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pgleak-dsn=host=/nowhere/at/all dbname=x"], ["--pgleak-dsn"]),
        (["--pgleak-dsn=host=127.0.0.1 port=9 dbname=x"], ["--pgleak-dsn", "127.0.0.1"]),
        (["--pgleak-dsn=this is no dsn"], ["--pgleak-dsn"]),
        (["--pgleak-server=dsn"], ["--pgleak-dsn", "PGLEAK_DSN"]),
        (["--pgleak-bindir=/nowhere/at/all"], ["pgleak-bindir"]),
    ],
)
def test_no_server(arguments: list[str], expected: list[str], pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_THE_SERVER)
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", *arguments)
    result.assert_outcomes(errors=1)
    text = output_of(result)
    for part in expected:
        assert part in text


@pytest.fixture
def role(server_dsn: str) -> Iterator[tuple[str, str]]:
    """A role that may log in and nothing else, and its password."""
    name, password = f"role_{secrets.token_hex(4)}", secrets.token_hex(8)
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"create role {name} login password '{password}'")
        yield name, password
        conn.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{name}'")
        conn.execute(f"drop owned by {name}")
        conn.execute(f"drop role {name}")


def test_a_role_that_may_not_see_others(
    role: tuple[str, str], server_dsn: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, password = role
    dsn = psycopg.conninfo.make_conninfo(server_dsn, user=name, password=password)
    pytester.makepyfile(
        f"""
        import psycopg, pytest
        KEPT = []

        @pytest.mark.pgleak
        def test_it(pgleak_postgres):
            psycopg.connect({server_dsn!r}).close()

        @pytest.mark.pgleak
        def test_told_once(pgleak_postgres):
            psycopg.connect({server_dsn!r}).close()

        @pytest.mark.pgleak
        def test_the_ledger_still_judges(pgleak_postgres):
            KEPT.append(psycopg.connect({server_dsn!r}))
        """
    )
    monkeypatch.setenv("PGLEAK_DSN", dsn)
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin")
    result.assert_outcomes(failed=2, passed=1)
    text = output_of(result)
    assert "pgleak cannot watch the server of PGLEAK_DSN" in text
    assert f"role '{name}' may not see what role" in text
    assert f"GRANT pg_monitor TO {name}" in text
    assert password not in text


def test_a_failing_test_does_not_show_the_password(
    role: tuple[str, str], server_dsn: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, password = role
    monkeypatch.setenv("PGLEAK_DSN", psycopg.conninfo.make_conninfo(server_dsn, user=name, password=password))
    pytester.makepyfile(
        """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_it(pgleak_postgres, pgleak_dsn):
            conn = psycopg.connect(pgleak_dsn)
            assert conn.closed
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", "--showlocals")
    result.assert_outcomes(failed=1)
    assert f"user={name}" in result.stdout.str()
    assert password not in result.stdout.str()


def test_a_bad_setting_beside_a_conftest_that_imports_psycopg(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npgleak_grace = soon\n")
    pytester.makeconftest("import psycopg, psycopg_pool\n")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert output_of(result).count("pgleak_grace = soon: expected a number of seconds") == 1


def test_no_application(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.pgleak
        async def test_it(pgleak_client):
            pass

        def test_sync(pgleak_sync_client):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result.assert_outcomes(errors=2)
    assert "def pgleak_app(pgleak_dsn):" in output_of(result)


def test_no_asgi_application(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def pgleak_app():
            return "app.main:app"

        @pytest.mark.pgleak
        async def test_it(pgleak_client):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result.assert_outcomes(errors=1)
    assert "pgleak_app returned 'app.main:app', which is no ASGI application" in output_of(result)


def test_failing_start_up_shows_the_applications_own_exception(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(
        """
        from contextlib import asynccontextmanager
        import pytest
        from fastapi import FastAPI

        @asynccontextmanager
        async def lifespan(app):
            raise LookupError("no such setting: DATABASE")
            yield

        @pytest.fixture
        def pgleak_app():
            return FastAPI(lifespan=lifespan)

        @pytest.mark.pgleak
        async def test_async(pgleak_client):
            pass

        @pytest.mark.pgleak
        def test_sync(pgleak_sync_client):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result.assert_outcomes(errors=2)
    assert result.stdout.str().count("E       LookupError: no such setting: DATABASE") == 2


def test_unknown_psycopg_is_one_warning_and_no_crash(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeconftest(
        """
        import sys
        import psycopg_pool
        """
    )
    # Before the plugin: a pool that has another shape.
    pytester.makepyfile(
        other_shape="""
        import psycopg_pool
        psycopg_pool.ConnectionPool._make = psycopg_pool.ConnectionPool._connect
        del psycopg_pool.ConnectionPool._connect
        """,
        test_it="""
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_leak(pgleak_dsn):
            psycopg.connect(pgleak_dsn)

        @pytest.mark.pgleak
        def test_clean(pgleak_dsn):
            psycopg.connect(pgleak_dsn).close()
        """,
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:pytest_asyncio.plugin", "-p", "other_shape", f"--pgleak-dsn={server_dsn}"
    )
    result.assert_outcomes(failed=1, passed=1)
    text = output_of(result)
    assert text.count("looks different from the versions that pytest-pgleak knows") == 1
