"""What a report says, before it becomes JSON, SARIF or HTML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_pgleak.reports.bugs import Bug

DOCUMENTATION: Final = "https://pypi.org/project/pytest-pgleak/"


@dataclass(frozen=True, slots=True)
class SourceTree:
    """Where files are, for those who see the repository instead of this machine.

    Attributes:
        root: pytest's root directory.
        top: The directory that paths in a repository begin at.
    """

    root: Path
    top: Path

    @classmethod
    def of(cls, root: Path, environment: Mapping[str, str]) -> SourceTree:
        """Find the repository: where ``.git`` is, else GitHub's workspace, else pytest's root directory."""
        for directory in (root, *root.parents):
            if os.path.exists(directory / ".git"):  # noqa: PTH110 - it never raises, whatever may not be read
                return cls(root, directory)
        workspace = environment.get("GITHUB_WORKSPACE")
        return cls(root, Path(workspace) if workspace and root.is_relative_to(workspace) else root)

    def path(self, file: str) -> str | None:
        """Turn a path relative to pytest's root directory into one of the repository; None for other files."""
        if not file:
            return None
        path = Path(os.path.normpath(self.root / file))
        if not path.is_relative_to(self.top) or not os.path.isfile(path):  # noqa: PTH113 - as above
            return None
        return path.relative_to(self.top).as_posix()


@dataclass(frozen=True, slots=True)
class Report:
    """The whole of it.

    Attributes:
        bugs: What was found, each bug once.
        notes: What else the user must be told.
        mode: ``pgleak_mode`` of the run.
        exitstatus: pytest's exit status: whether the run came to its end.
        tree: Where the files are.
    """

    bugs: Sequence[Bug]
    notes: Sequence[str]
    mode: str
    exitstatus: int
    tree: SourceTree

    @property
    def totals(self) -> dict[str, int]:
        """How many bugs there are, and how many findings: those that failed a test, and the others."""
        return {
            "bugs": len(self.bugs),
            "leaks": sum(bug.count for bug in self.bugs if bug.fails),
            "warnings": sum(bug.count for bug in self.bugs if not bug.fails),
        }
