"""Writes the reports at the end of a session."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_pgleak.reporting import Reported
from pytest_pgleak.reports import html_report, json_report, sarif_report
from pytest_pgleak.reports.bugs import bugs_of
from pytest_pgleak.reports.portable import portable_note
from pytest_pgleak.reports.report import Report, SourceTree
from pytest_pgleak.reports.targets import Target

if TYPE_CHECKING:
    import pytest

_RENDER = {".json": json_report.render, ".sarif": sarif_report.render, ".html": html_report.render}


def write_reports(
    config: pytest.Config,
    targets: Iterable[Target],
    entries: Sequence[dict[str, Any]],
    notes: Iterable[str],
    exitstatus: int,
) -> list[str]:
    """Write the reports that were asked for. What cannot be written fails nothing.

    Args:
        config: pytest's config.
        targets: The reports.
        entries: All findings of the session, as `Reported.as_dict` makes them.
        notes: What else the user must be told.
        exitstatus: pytest's exit status.

    Returns:
        What to tell the user, a line for each report; with ``-q`` only of those that could not be written.
    """
    root = config.rootpath
    report = Report(
        bugs_of(map(Reported.from_dict, entries)),
        [portable_note(note, root) for note in notes],
        config.getoption("pgleak_mode", None) or config.getini("pgleak_mode") or "fail",
        int(exitstatus),
        SourceTree.of(root, os.environ),
    )
    lines = []
    for target in targets:
        if (trouble := _write(report, target)) is not None:
            lines.append(trouble)
        elif config.get_verbosity() >= 0:
            lines.append(f"pgleak: report written to {target.given}")
    return lines


def _write(report: Report, target: Target) -> str | None:
    try:
        text = _RENDER[target.suffix](report)
        target.path.parent.mkdir(parents=True, exist_ok=True)
        # Undecodable bytes in a file name are the only characters that UTF-8 has no place for.
        target.path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return f"pgleak: --pgleak-report={target.given}: it could not be written: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001 - a fault of the plugin is reported as one
        what = f"{type(error).__name__}: {error}"
        return f"pgleak: internal error of pytest-pgleak in --pgleak-report={target.given}. Please report it: {what}"
    return None
