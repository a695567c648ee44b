"""Random sequences against a simple model, in an inner pytest: tests/stateful. `make fuzz` tries many more of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

STATEFUL = Path(__file__).parent / "stateful"
INI = """
[pytest]
pgleak_grace = 0.01
pgleak_levels =
    returned-in-transaction = fail
    nested-checkout = fail
"""
PATIENCE = 3600.0 if os.environ.get("PGLEAK_FUZZ") else 300.0
"""Seconds; about thirty are needed for the examples of CI."""


@pytest.mark.parametrize("world", ["sync", "async"])
def test_findings_are_what_the_model_expects(world: str, pytester: pytest.Pytester, server_dsn: str) -> None:
    for source in STATEFUL.glob("*.py"):
        shutil.copy(source, pytester.path / source.name)
    # What is left there is left for good: to wait for it longer would only take longer.
    pytester.makeini(INI)
    result = pytester.runpytest_subprocess(
        f"--pgleak-dsn={server_dsn}",
        "-p",
        "no:cacheprovider",
        "-p",
        "hypothesispytest",
        "-k",
        f"test_{world}",
        timeout=PATIENCE,
    )
    result.assert_outcomes(passed=1, deselected=1)
    assert "internal error" not in result.stdout.str()
