"""What the terminal is told at the end of a session."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_pgleak.reporting import Reported, summary, write
from pytest_pgleak.reports.bugs import bugs_of
from pytest_pgleak.reports.github import annotate
from pytest_pgleak.reports.report import SourceTree

if TYPE_CHECKING:
    import pytest


def tell(
    terminalreporter: pytest.TerminalReporter,
    entries: Iterable[dict[str, Any]],
    notes: Sequence[str],
    written: Iterable[str],
) -> None:
    """Print the summary, where reports were written, and GitHub's annotations where it is GitHub that runs this.

    Args:
        terminalreporter: pytest's.
        entries: All findings of the session, as `Reported.as_dict` makes them.
        notes: What else the user must be told.
        written: What became of the reports, a line each.
    """
    found = [Reported.from_dict(entry) for entry in entries]
    if found or notes:
        title, lines = summary(found, notes)
        terminalreporter.section(title)
        write(lines, terminalreporter)
    shown = list(written)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        shown += annotate(bugs_of(found), SourceTree.of(terminalreporter.config.rootpath, os.environ))
    for line in shown:
        terminalreporter.write_line(line)
