"""Inner runs whose connections lead through a real PgBouncer."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

Run = Callable[..., pytest.RunResult]

HEAD = """
    import contextlib, os
    import psycopg, psycopg_pool, pytest

    KEPT = []

    def connect(**more):
        return psycopg.connect(os.environ["APP_DSN"], **more)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, database: str) -> Run:
    def write_and_run(dsn: str, source: str, *args: str) -> pytest.RunResult:
        monkeypatch.setenv("APP_DSN", dsn)
        monkeypatch.setenv("STRAIGHT", database)
        pytester.makepyfile(test_it=textwrap.dedent(HEAD) + textwrap.dedent(source))
        options = ("-p", "no:cacheprovider", "--pgleak-select=all", "-o", "pgleak_grace=0.2", "-vv")
        result = pytester.runpytest_subprocess(*options, *args)
        assert "internal error" not in result.stdout.str()
        return result

    return write_and_run


@pytest.fixture(scope="session")
def database(server_dsn: str) -> Iterator[str]:
    """A DSN with a database of these tests' own, straight to the server."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(server_dsn, dbname=name) as conn:
            conn.execute("create table visits (id int)")
        yield make_conninfo(server_dsn, dbname=name)
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
