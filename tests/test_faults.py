"""A fault of the plugin is reported as one, and fails no test."""

from __future__ import annotations

import textwrap

import pytest

BREAK = """
    import pytest
    from pytest_pgleak.checkpoints import Judge

    @pytest.fixture(autouse=True)
    def broken(monkeypatch):
        # Not a mock of what is watched: the plugin itself is broken on purpose.
        def settling(self, checkpoint):
            raise LookupError("a fault inside the plugin")
        monkeypatch.setattr(Judge, "settling", settling)
"""


def test_a_broken_judge(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makeconftest(textwrap.dedent(BREAK))
    pytester.makepyfile(
        """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_sync(pgleak_dsn):
            psycopg.connect(pgleak_dsn).close()

        @pytest.mark.pgleak
        async def test_async(pgleak_dsn):
            async with await psycopg.AsyncConnection.connect(pgleak_dsn) as conn:
                await conn.execute("select 1")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["pgleak: internal error of pytest-pgleak in the check of *", "*a fault inside the plugin*"]
    )


def test_what_only_looks_like_a_connection_ends_no_checks(pytester: pytest.Pytester, server_dsn: str) -> None:
    pytester.makepyfile(
        """
        import psycopg, pytest
        from unittest.mock import MagicMock

        KEPT = []

        @pytest.mark.pgleak
        def test_mock():
            KEPT.append(psycopg.Connection(MagicMock()))

        @pytest.mark.pgleak
        def test_closed_mock():
            psycopg.Connection(MagicMock()).close()

        @pytest.mark.pgleak
        def test_leak(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
    result.assert_outcomes(passed=2, failed=1)
    assert "internal error" not in result.stdout.str()
