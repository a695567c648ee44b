"""The report as SARIF 2.1.0, with what GitHub's code scanning asks for beyond the standard."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from pytest_pgleak import __version__
from pytest_pgleak.kinds import KINDS, Kind
from pytest_pgleak.reports.bugs import Bug
from pytest_pgleak.reports.report import DOCUMENTATION, Report, SourceTree

FINGERPRINT: Final = "pgleakKindFileFunction/v1"
"""Not ``primaryLocationLineHash``, the one that GitHub goes by: its upload action fills that in from the text of the
line, and complains about each value that is not its own."""
_SRCROOT: Final = "%SRCROOT%"
_LEVELS: Final = {"fail": "error", "warn": "warning", "off": "error"}
"""What is off by itself fails the tests that ask for it."""
_RULES: Final = {code: number for number, code in enumerate(KINDS)}
_COMPLETE: Final = (0, 1, 5)
"""pytest's exit statuses of a run that came to its end: all passed, some failed, there were none."""


def render(report: Report) -> str:
    """Make the text of the file."""
    placed = [(bug, location) for bug in report.bugs if (location := _location(bug, report.tree)) is not None]
    fingerprints = _fingerprints([bug for bug, _ in placed])
    run = {
        "tool": {
            "driver": {
                "name": "pytest-pgleak",
                "semanticVersion": __version__,
                "informationUri": DOCUMENTATION,
                "rules": [_rule(kind) for kind in KINDS.values()],
            }
        },
        "originalUriBaseIds": {_SRCROOT: {"description": {"text": "The root of the repository."}}},
        "invocations": [
            {
                "executionSuccessful": report.exitstatus in _COMPLETE,
                "exitCode": report.exitstatus,
                "toolExecutionNotifications": list(_notifications(report, [bug for bug, _ in placed])),
            }
        ],
        "results": [
            _result(bug, location, fingerprint, report.tree)
            for (bug, location), fingerprint in zip(placed, fingerprints, strict=True)
        ],
    }
    document = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _rule(kind: Kind) -> dict[str, Any]:
    headline = _sentence(kind.headline)
    help_text = (
        f"{headline} The message of a result says where, and what to change."
        f' In one test it is allowed by @pytest.mark.pgleak(allow=["{kind.code}"]), in the code of one function by a'
        f" line of pgleak_ignore. docs/kinds/{kind.code}.md of pytest-pgleak explains it."
    )
    return {
        "id": kind.code,
        "name": "".join(word.capitalize() for word in kind.code.split("-")),
        "shortDescription": {"text": headline},
        "fullDescription": {"text": f"{headline} Found in a PostgreSQL application by pytest-pgleak, while tests ran."},
        "help": {"text": help_text},
        "helpUri": DOCUMENTATION,
        "defaultConfiguration": {"level": _LEVELS[kind.level]},
        "properties": {"tags": ["postgresql", "reliability"]},
    }


def _result(bug: Bug, location: dict[str, Any], fingerprint: str, tree: SourceTree) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": bug.kind,
        "ruleIndex": _RULES[bug.kind],
        "level": _LEVELS["fail" if bug.fails else "warn"],
        "message": _message(_told(bug)),
        "locations": [location],
        "partialFingerprints": {FINGERPRINT: fingerprint},
        "occurrenceCount": bug.count,
        "properties": {"tests": list(bug.tests)},
    }
    first = bug.first
    if (path := tree.path(first.ended_file)) is not None:
        end = _physical(path, first.ended_lineno)
        result["relatedLocations"] = [{"id": 1, "physicalLocation": end, "message": {"text": "Ended here."}}]
    return result


def _told(bug: Bug) -> str:
    owner = f" Owner: {bug.first.owner}." if bug.first.owner else ""
    return f"{_sentence(bug.headline)} Found {bug.times}.{owner} To fix it, {bug.first.fix}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _message(text: str) -> dict[str, str]:
    # Braces stand for arguments in SARIF's messages (3.11.5), and are doubled where they are meant.
    return {"text": text.replace("{", "{{").replace("}", "}}")}


def _location(bug: Bug, tree: SourceTree) -> dict[str, Any] | None:
    """Return the origin; GitHub shows no result without a place, so the test stands in for code that is elsewhere."""
    first = bug.first
    if (path := tree.path(first.file)) is not None:
        function = {"name": first.function, "kind": "function"}
        return {"physicalLocation": _physical(path, first.lineno), "logicalLocations": [function]}
    files = (tree.path(nodeid.partition("::")[0]) for nodeid in bug.tests)
    path = next((path for path in files if path is not None), None)
    return {"physicalLocation": _physical(path, 1)} if path is not None else None


def _physical(path: str, lineno: int) -> dict[str, Any]:
    return {"artifactLocation": {"uri": quote(path), "uriBaseId": _SRCROOT}, "region": {"startLine": lineno}}


def _fingerprints(bugs: list[Bug]) -> list[str]:
    """Make what identifies each bug when lines have moved; bugs of one function are numbered from the top."""
    digests = {}
    seen: Counter[str] = Counter()
    for bug in sorted(bugs, key=lambda bug: (bug.first.lineno, bug.first.ended_lineno, bug.first.owner)):
        first = bug.first
        where = (first.file, first.function) if first.file else (*bug.tests[:1], first.owner)
        digest = hashlib.sha256("\0".join((bug.kind, *where)).encode(errors="backslashreplace")).hexdigest()[:16]
        seen[digest] += 1
        digests[id(bug)] = f"{digest}:{seen[digest]}"
    return [digests[id(bug)] for bug in bugs]


def _notifications(report: Report, placed: list[Bug]) -> Iterator[dict[str, Any]]:
    shown = {id(bug) for bug in placed}
    for bug in report.bugs:
        if id(bug) not in shown:
            yield {
                "level": _LEVELS["fail" if bug.fails else "warn"],
                "message": _message(_told(bug)),
                "associatedRule": {"id": bug.kind, "index": _RULES[bug.kind]},
            }
    for note in report.notes:
        yield {"level": "note", "message": _message(note)}
