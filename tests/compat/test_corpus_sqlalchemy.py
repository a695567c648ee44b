"""SQLAlchemy and SQLModel: real code, real leaks, in an inner pytest: exactly the expected kinds, test by test."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pytest_pgleak.kinds import KINDS

for needed in ("sqlalchemy", "sqlmodel", "asyncpg", "psycopg2", "pytest_asyncio"):
    pytest.importorskip(needed, reason=f"the corpus of SQLAlchemy needs {needed}")

PATIENCE = 240.0
"""Seconds; the slowest module takes about 40."""

TESTS = Path(__file__).parents[1]
CORPUS = TESTS / "corpus_sqlalchemy"


@pytest.mark.parametrize("module", sorted(path.name for path in CORPUS.glob("test_*.py")))
def test_exactly_the_expected_findings(module: str, pytester: pytest.Pytester, server_dsn: str) -> None:
    for name in ("conftest.py", "tables.py", module):
        shutil.copy(CORPUS / name, pytester.path / name)
    shutil.copy(TESTS / "corpus" / "conftest.py", pytester.path / "corpus_recorder.py")
    result_file = pytester.path / "result.json"
    os.environ["CORPUS_RESULT"] = str(result_file)
    result = pytester.runpytest_subprocess(
        f"--pgleak-dsn={server_dsn}",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        timeout=PATIENCE,
    )
    corpus = json.loads(result_file.read_text(encoding="utf-8"))
    assert corpus, "nothing was collected"
    wrong = {}
    for nodeid, test in corpus.items():
        failed = "failed" in test["outcome"].values()
        fails = any(KINDS[kind].level != "warn" for kind in test["expected"])
        if sorted(test["found"]) != test["expected"] or failed != fails:
            wrong[nodeid] = test
    assert not wrong, json.dumps(wrong, indent=1)
    assert "internal error" not in result.stdout.str()
