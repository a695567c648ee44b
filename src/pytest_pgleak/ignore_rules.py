"""``pgleak_ignore``: findings to leave out, by where they come from. Pure."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from pytest_pgleak.findings import Finding
from pytest_pgleak.rendering import relative


@dataclass(frozen=True, slots=True)
class IgnoreRule:
    """One line of ``pgleak_ignore``.

    Attributes:
        kind: The kind, or ``*``.
        glob: Pattern for the file of the origin, relative to the root directory.
        function: Pattern for the function of the origin.
        text: The line as it was written.
    """

    kind: str
    glob: str
    function: str
    text: str

    def matches(self, finding: Finding, root: Path) -> bool:
        """Tell whether a finding is meant. A finding without an origin never is."""
        if finding.origin is None or self.kind not in ("*", finding.kind):
            return False
        name = finding.origin.function
        return fnmatch.fnmatch(relative(finding.origin.filename, root), self.glob) and (
            fnmatch.fnmatch(name, self.function) or fnmatch.fnmatch(name.rpartition(".")[2], self.function)
        )


def parse_rule(line: str) -> IgnoreRule | None:
    """Read ``KIND GLOB::FUNCTION``; ``::FUNCTION`` may be left out. None for anything else."""
    kind, place = (*line.split(None, 1), "", "")[:2]
    glob, separator, function = place.strip().rpartition("::")
    if not separator:
        glob, function = function, "*"
    if not kind or not glob or not function:
        return None
    return IgnoreRule(kind, glob, function, line.strip())
