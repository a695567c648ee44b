"""Real applications on asyncpg and on psycopg2, in an inner pytest: exactly the expected kinds, test by test."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pytest_pgleak.kinds import KINDS

PATIENCE = 240.0
"""Seconds; the slowest module takes about 20."""

CORPUS = Path(__file__).parent.parent / "corpus_drivers"


@pytest.mark.parametrize("module", sorted(path.name for path in CORPUS.glob("test_*.py")))
def test_exactly_the_expected_findings(module: str, pytester: pytest.Pytester, server_dsn: str) -> None:
    driver = module.split("_")[1]
    pytest.importorskip(driver, reason=f"{driver} is not installed; make compat runs this where it is")
    for name in ("conftest.py", module):
        shutil.copy(CORPUS / name, pytester.path / name)
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
        if "skipped" in test["outcome"].values():
            continue  # it said why; what it needs is not there
        failed = "failed" in test["outcome"].values()
        fails = any(KINDS[kind].level != "warn" for kind in test["expected"])
        if sorted(test["found"]) != test["expected"] or failed != fails:
            wrong[nodeid] = test
    assert not wrong, json.dumps(wrong, indent=1)
    assert "internal error" not in result.stdout.str()
