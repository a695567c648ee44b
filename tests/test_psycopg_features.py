"""psycopg does the same with the plugin's checks as without: results, exceptions, statuses, notices, the log."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import psycopg
import pytest

FEATURES = Path(__file__).with_name("features_of_psycopg.py")
PATIENCE = 240.0
"""Seconds; a run takes about 10."""


@pytest.fixture
def seen(pytester: pytest.Pytester, server_dsn: str, monkeypatch: pytest.MonkeyPatch):
    """Run all operations in a process and a database of their own; return what was seen, by test."""
    name = f"pgleak_features_{os.getpid()}"
    dsn = psycopg.conninfo.make_conninfo(server_dsn, dbname=name, options="-c lock_timeout=10s")

    def run(*arguments: str) -> dict[str, list[str]]:
        shutil.copy(FEATURES, pytester.path / "test_features.py")
        result_file = pytester.path / "result.json"
        result_file.unlink(missing_ok=True)
        drop(dsn)
        with psycopg.connect(server_dsn, autocommit=True) as conn:
            conn.execute(f"create database {name}")
        monkeypatch.setenv("FEATURES_DSN", dsn)
        monkeypatch.setenv("FEATURES_RESULT", str(result_file))
        common = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", "-p", "no:randomly")
        result = pytester.runpytest_subprocess(*common, *arguments, timeout=PATIENCE)
        assert "internal error" not in result.stdout.str()
        assert result.ret == 0, result.stdout.str()
        seen: dict[str, list[str]] = json.loads(result_file.read_text(encoding="utf-8"))
        return seen

    def drop(dsn: str) -> None:
        with psycopg.connect(server_dsn, autocommit=True) as conn:
            for (gid,) in conn.execute("select gid from pg_prepared_xacts where database = %s", [name]).fetchall():
                with psycopg.connect(dsn, autocommit=True) as own:
                    own.tpc_rollback(gid)
            conn.execute(f"drop database if exists {name} with (force)")

    yield run
    drop(dsn)


def test_nothing_changes(seen, server_dsn: str) -> None:
    without = seen("-p", "no:pgleak")
    assert len(without) > 150
    checked = seen("--pgleak-select=all", "--pgleak-mode=warn", f"--pgleak-dsn={server_dsn}")
    unchecked = seen(f"--pgleak-dsn={server_dsn}")
    for with_plugin in (checked, unchecked):
        different = {
            test: (expected, with_plugin.get(test))
            for test, expected in without.items()
            if with_plugin.get(test) != expected
        }
        assert not different, json.dumps(different, indent=1)
        assert set(with_plugin) == set(without)
