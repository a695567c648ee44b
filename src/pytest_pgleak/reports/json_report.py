"""The report as JSON; docs/reports.md describes it, and docs/report.schema.json."""

from __future__ import annotations

import json
from typing import Any, Final

from pytest_pgleak import __version__
from pytest_pgleak.reports.bugs import Bug
from pytest_pgleak.reports.report import Report

SCHEMA: Final = "pytest-pgleak/1"
"""The number changes when a field goes away or means something else. Fields may be added to a version."""


def render(report: Report) -> str:
    """Make the text of the file."""
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "mode": report.mode,
        "exitstatus": report.exitstatus,
        "totals": report.totals,
        "bugs": [_bug(bug) for bug in report.bugs],
        "notes": list(report.notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _bug(bug: Bug) -> dict[str, Any]:
    first = bug.first
    request = {"method": first.method, "route": first.route, "status": first.status}
    return {
        "kind": bug.kind,
        "level": "fail" if bug.fails else "warn",
        "headline": bug.headline,
        "place": bug.place,
        "origin": _line(first.file, first.lineno, first.function),
        "ended_at": _line(first.ended_file, first.ended_lineno, first.ended_function),
        "owner": first.owner or None,
        "count": bug.count,
        "tests": list(bug.tests),
        "request": request if first.method else None,
        "text": list(bug.text),
        "fix": first.fix,
        "allow": bug.allow,
    }


def _line(file: str, lineno: int, function: str) -> dict[str, Any] | None:
    return {"file": file, "line": lineno, "function": function} if file else None
