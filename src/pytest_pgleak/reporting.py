"""From findings to pytest's reports: the failure, the section beside another error, the summary of the session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _pytest._code.code import ReprFileLocation, TerminalRepr  # the only way to colour a failure of one's own
from _pytest.outcomes import Failed  # pytest.fail.Exception, which mypy does not see as a class

from pytest_pgleak import rendering, sentences
from pytest_pgleak.findings import Finding
from pytest_pgleak.rendering import Line
from pytest_pgleak.summary_layout import Entry, lay_out

if TYPE_CHECKING:
    from _pytest._io import TerminalWriter


@dataclass(frozen=True, slots=True)
class Reported:
    """A finding as the summary needs it; plain strings, for it travels from xdist's workers to the controller.

    Attributes:
        kind: The kind.
        place: ``file:line in function``, or what stands in for it.
        nodeid: The test at whose checkpoint it was made; empty at the end of the session.
        fails: Whether it failed the test.
        owner: Who answers for it, in words; empty for the test itself.
        detail: The whole text, for what does not fail its test.
    """

    kind: str
    place: str
    nodeid: str
    fails: bool
    owner: str = ""
    detail: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what can be sent between processes."""
        return asdict(self) | {"detail": list(self.detail)}

    @classmethod
    def from_dict(cls, sent: dict[str, Any]) -> Reported:
        """Take what `as_dict` has made."""
        return cls(**(sent | {"detail": tuple(sent["detail"])}))


def reported(finding: Finding, nodeid: str, fails: bool, root: Path) -> Reported:
    """Make the summary's form of a finding."""
    where = rendering.places(finding, root) or sentences.name(finding)
    owner = "" if finding.owner.what == "call" else finding.owner.describe()
    # What fails is shown in full with its test; what does not is shown nowhere else.
    detail = () if fails else tuple(line.text for line in rendering.failure([finding], root))
    return Reported(finding.kind, where, nodeid, fails, owner, detail)


def entries_of(findings: Iterable[Finding], nodeid: str, fails: bool, root: Path) -> list[dict[str, Any]]:
    """Make the summary's form of findings, ready to travel between processes."""
    return [reported(finding, nodeid, fails, root).as_dict() for finding in findings]


class LeaksFound(Failed):
    """Raised from a checkpoint; pytest shows it as the failure of the phase.

    Args:
        findings: What was found.
        root: pytest's root directory.
        preface: A line to put first.
    """

    def __init__(self, findings: Sequence[Finding], root: Path, preface: str = "") -> None:
        self.findings = tuple(findings)
        self.lines = ([Line(preface), Line("")] if preface else []) + rendering.failure(findings, root)
        self.headline = rendering.headline(findings, root)
        first = findings[0].origin
        self.location = (rendering.relative(first.filename, root), first.lineno) if first else ("", 0)
        super().__init__(plain(self.lines), pytrace=False)

    def representation(self) -> FailureRepr:
        """Return what pytest prints."""
        return FailureRepr(self.lines, ReprFileLocation(*self.location, self.headline))


class FailureRepr(TerminalRepr):
    """The failure, with colours where the terminal has them. ``str()`` of it is plain.

    Args:
        lines: The lines.
        reprcrash: Where pytest's short summary finds its one line.
    """

    def __init__(self, lines: Sequence[Line], reprcrash: ReprFileLocation) -> None:
        self.lines = lines
        self.reprcrash = reprcrash

    def __str__(self) -> str:
        return plain(self.lines)

    def toterminal(self, tw: TerminalWriter) -> None:
        """Print it."""
        write(self.lines, tw)


def plain(lines: Iterable[Line]) -> str:
    """Join lines without colours."""
    return "\n".join(line.text for line in lines)


def write(lines: Iterable[Line], tw: Any) -> None:
    """Print lines to a `TerminalWriter` or a `TerminalReporter`, which know whether there are colours."""
    for line in lines:
        style = {"kind": {"red": True, "bold": True}, "source": {"cyan": True}, "fix": {"green": True}}.get(line.style)
        tw.line(line.text, **(style or {}))


def summary(entries: Sequence[Reported], notes: Sequence[str]) -> tuple[str, list[Line]]:
    """Group the findings of a session by the line they come from, the most frequent first.

    Args:
        entries: All findings.
        notes: What else the user must be told.

    Returns:
        A title, and the lines below it.
    """
    groups: dict[tuple[str, str, str], list[Reported]] = {}
    for entry in entries:
        groups.setdefault((entry.kind, entry.place, entry.owner), []).append(entry)
    ordered = sorted(groups.values(), key=lambda group: (not group[0].fails, -len(group)))
    lines = lay_out([_entry(group) for group in ordered])
    lines.extend(Line(f"pgleak: {note}") for note in notes)
    return _title(entries, len(ordered)), lines


def _title(entries: Sequence[Reported], places: int) -> str:
    leaks = sum(entry.fails for entry in entries)
    warnings = len(entries) - leaks
    counts = [
        f"{number} {word}{'s' if number != 1 else ''}"
        for number, word in ((leaks, "leak"), (warnings, "warning"))
        if number
    ]
    if not counts:
        return "pgleak"
    return f"pgleak: {', '.join(counts)} from {places} {'line' if places == 1 else 'lines'} of code"


def _entry(group: Sequence[Reported]) -> Entry:
    first = group[0]
    warning = "" if first.fails else "  (warning)"
    owner = f"  by {first.owner}" if first.owner else ""
    heading = Line(f"{len(group):>4} × [{first.kind}] {first.place}{owner}{warning}", "kind" if first.fails else "")
    tests = dict.fromkeys(entry.nodeid for entry in group if entry.nodeid)
    return Entry(heading, tuple(tests), first.detail)
