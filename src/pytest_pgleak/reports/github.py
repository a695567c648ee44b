"""GitHub's annotations: one line of the log for each bug, and GitHub puts it beside the line of code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytest_pgleak.reports.bugs import Bug
from pytest_pgleak.reports.report import SourceTree

MOST: Final = 10
"""GitHub keeps ten errors and ten warnings of a step and drops the others."""


def annotate(bugs: Sequence[Bug], tree: SourceTree) -> list[str]:
    """Make the lines for the log of a step.

    Args:
        bugs: What was found, the most important first.
        tree: Where the files are.

    Returns:
        At most `MOST` errors and as many warnings, and a line that counts the rest.
    """
    failing = [bug for bug in bugs if bug.fails]
    warning = [bug for bug in bugs if not bug.fails]
    lines = [_annotation("error", bug, tree) for bug in failing[:MOST]]
    lines += [_annotation("warning", bug, tree) for bug in warning[:MOST]]
    if (more := len(bugs) - len(lines)) > 0:
        lines.append(
            f"pgleak: {more} more {'bug has' if more == 1 else 'bugs have'} no annotation:"
            f" GitHub keeps {MOST} errors and {MOST} warnings of a step"
        )
    return lines


def _annotation(level: str, bug: Bug, tree: SourceTree) -> str:
    properties = {"title": f"pgleak: {bug.kind}"}
    if (path := tree.path(bug.first.file)) is not None:
        properties = {"file": path, "line": str(bug.first.lineno)} | properties
    shown = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {shown}::{_data(_message(bug))}"


def _message(bug: Bug) -> str:
    text = bug.text or (f"[{bug.kind}] {bug.headline}",)
    return "\n".join([*text, "", f"Found {bug.times}."])


# As in @actions/core: the percent sign first, or it would be escaped twice.
def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
