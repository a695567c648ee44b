"""Several processes against one server at the same time: each judges only its own backends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pytest_pgleak.servers.databases import create_database, drop_database

OWN_DATABASE = """
    import os, psycopg, pytest, time

    @pytest.fixture(scope="session", autouse=True)
    def kept():  # so that the database is looked at from the first test on
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
            yield conn

    @pytest.mark.parametrize("number", range(8))
    def test_holds_a_connection_for_a_while(number):
        # Never at the same time as in the other process, if nobody waits for anybody.
        time.sleep(0.05 * (number % 3))
        with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
            conn.execute("select 1")
            time.sleep(0.1)
"""

PGLEAKS_DATABASE = """
    import pathlib, psycopg, pytest, time

    @pytest.mark.parametrize("number", range(6))
    def test_holds_a_connection_for_a_while(pgleak_dsn, number):
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("create table if not exists visit (id int)")
            conn.execute("insert into visit values (1)")
            pathlib.Path("database").write_text(conn.info.dbname)
            time.sleep(0.1)
        with psycopg.connect(pgleak_dsn) as conn:
            assert conn.execute("select count(*) from visit").fetchone() == (number + 1,)
"""


@pytest.fixture
def shared_database(server_dsn: str, monkeypatch: pytest.MonkeyPatch):
    dsn = create_database(server_dsn, "pgleak_test_shared")
    monkeypatch.setenv("DATABASE_URL", dsn)
    yield dsn
    drop_database(server_dsn, "pgleak_test_shared")


def test_workers_that_share_the_applications_database(pytester: pytest.Pytester, shared_database: str) -> None:
    pytester.makepyfile(test_it=OWN_DATABASE)
    result = pytester.runpytest_subprocess("--pgleak-select=all", "-n", "2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=8)
    assert "pgleak:" not in "".join(line for line in result.outlines if "tests checked" not in line)


def test_a_leak_of_one_worker_is_found_once(pytester: pytest.Pytester, shared_database: str) -> None:
    pytester.makepyfile(
        test_it=OWN_DATABASE
        + """
    def test_leaks():
        conn = psycopg.connect(os.environ["DATABASE_URL"])
        conn.execute("select 1")
    """
    )
    result = pytester.runpytest_subprocess("--pgleak-select=all", "-n", "2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(["*pgleak: 1 leak from 1 line of code*", "   1 × [[]connection-dropped] test_it.py:*"])


def test_two_runs_on_one_server_never_meet(pytester: pytest.Pytester, server_dsn: str) -> None:
    runs = []
    for name in ("one", "two"):
        folder = pytester.path / name
        folder.mkdir()
        pytester.makepyfile(**{f"{name}/test_it": PGLEAKS_DATABASE})
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pgleak-select=all", "-q"]
        runs.append(
            subprocess.Popen(
                [*command, f"--pgleak-dsn={server_dsn}", "--rootdir=."],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    assert all("6 passed" in output and "pgleak: 1" not in output for output in outputs), "\n".join(outputs)
    names = {Path(pytester.path, name, "database").read_text(encoding="utf-8") for name in ("one", "two")}
    assert len(names) == 2
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        left = conn.execute("select datname from pg_database where datname = any(%s)", [list(names)]).fetchall()
    assert left == []
