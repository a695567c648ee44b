"""From findings to pytest's reports: the failure, the section beside another error, the summary of the session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _pytest._code.code import ReprFileLocation, TerminalRepr  # the only way to colour a failure of one's own
from _pytest.outcomes import Failed  # pytest.fail.Exception, which mypy does not see as a class

from pytest_pgleak import rendering, sentences
from pytest_pgleak.baseline.keys import key_of
from pytest_pgleak.findings import Finding
from pytest_pgleak.rendering import Line
from pytest_pgleak.reports.bugs import Bug, bugs_of
from pytest_pgleak.reports.portable import portable, portable_line
from pytest_pgleak.summary_layout import Entry, lay_out
from pytest_pgleak.verdicts import Verdicts

if TYPE_CHECKING:
    from _pytest._io import TerminalWriter


@dataclass(frozen=True, slots=True)
class Reported:
    """A finding as the summary needs it; plain strings, for it travels from xdist's workers to the controller.

    Attributes:
        kind: The kind.
        place: ``file:line in function``, or what stands in for it.
        nodeid: The test at whose checkpoint it was made; at the end of the session the one that it is charged to, or
            empty.
        fails: Whether it failed the test.
        owner: Who answers for it, in words; empty for the test itself.
        detail: The whole text; only the first finding of a bug carries it.
        file: The file of the origin, relative to the root directory, with forward slashes; empty where there is none.
        lineno: The line of the origin.
        function: The function of the origin.
        ended_file: The same for the line that ended it, where that makes it a bug of its own.
        ended_lineno: As above.
        ended_function: As above.
        method: HTTP method of the request in which it happened; empty outside of one.
        route: The request's path template, else its path.
        status: How it was answered.
        fix: What to change.
        known: Whether the baseline has it.
        key: What the baseline knows it by, as `pytest_pgleak.baseline.keys.Key.as_strings` has it.
    """

    kind: str
    place: str
    nodeid: str
    fails: bool
    owner: str = ""
    detail: Sequence[str] = ()
    file: str = ""
    lineno: int = 0
    function: str = ""
    ended_file: str = ""
    ended_lineno: int = 0
    ended_function: str = ""
    method: str = ""
    route: str = ""
    status: int | None = None
    fix: str = ""
    known: bool = False
    key: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what can be sent between processes."""
        return asdict(self) | {"detail": list(self.detail), "key": list(self.key)}

    @classmethod
    def from_dict(cls, sent: dict[str, Any]) -> Reported:
        """Take what `as_dict` has made."""
        return cls(**(sent | {"detail": tuple(sent["detail"]), "key": tuple(sent["key"])}))


def reported(finding: Finding, nodeid: str, fails: bool, root: Path, known: bool = False) -> Reported:
    """Make the form of a finding in which it travels."""
    where = rendering.places(finding, root) or sentences.name(finding)
    owner = "" if finding.owner.what == "call" else finding.owner.describe()
    detail = () if known else tuple(portable_line(line.text, root) for line in rendering.failure([finding], root))
    key = key_of(finding, root).as_strings()
    entry = Reported(
        finding.kind, where, nodeid, fails, owner, detail, fix=sentences.fix(finding), known=known, key=key
    )
    if (at := finding.origin) is not None:
        entry = replace(entry, file=portable(at.filename, root), lineno=at.lineno, function=at.function)
    if (at := finding.ended_at) is not None and at != finding.origin:
        end = portable(at.filename, root)
        entry = replace(entry, ended_file=end, ended_lineno=at.lineno, ended_function=at.function)
    if (request := finding.request) is not None:
        entry = replace(entry, method=request.method, route=request.route or request.path, status=request.status)
    return entry


def entries_of(
    findings: Iterable[Finding], nodeid: str, fails: bool, root: Path, known: bool = False
) -> list[dict[str, Any]]:
    """Make the summary's form of findings, ready to travel between processes."""
    return [reported(each, nodeid or _test_of(each), fails, root, known).as_dict() for each in findings]


def _test_of(finding: Finding) -> str:
    """Return the test that a request of a live server has outlived."""
    return finding.owner.nodeid if finding.owner.what == "call" else ""


def entries_of_verdicts(verdicts: Verdicts, nodeid: str, root: Path) -> list[dict[str, Any]]:
    """Make the summary's form of everything that one checkpoint has found."""
    return [
        *entries_of(verdicts.failing, nodeid, True, root),
        *entries_of(verdicts.warning, nodeid, False, root),
        *entries_of(verdicts.known, nodeid, False, root, known=True),
    ]


class LeaksFound(Failed):
    """Raised from a checkpoint; pytest shows it as the failure of the phase.

    Args:
        findings: What was found.
        root: pytest's root directory.
        preface: A line to put first.
        is_of_a_block: Whether a ``no_leaks()`` block raises it, and not a checkpoint: it may be caught.
    """

    def __init__(
        self, findings: Sequence[Finding], root: Path, preface: str = "", *, is_of_a_block: bool = False
    ) -> None:
        self.findings = tuple(findings)
        self.is_of_a_block = is_of_a_block
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
        entries: All findings; the known ones are left out.
        notes: What else the user must be told.

    Returns:
        A title, and the lines below it.
    """
    entries = [entry for entry in entries if not entry.known]
    bugs = bugs_of(entries)
    lines = lay_out([_entry(bug) for bug in bugs])
    lines.extend(Line(f"pgleak: {note}") for note in notes)
    return _title(entries, len(bugs)), lines


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


def _entry(bug: Bug) -> Entry:
    first = bug.first
    warning = "" if bug.fails else "  (warning)"
    owner = f"  by {first.owner}" if first.owner else ""
    heading = Line(f"{bug.count:>4} × [{first.kind}] {first.place}{owner}{warning}", "kind" if bug.fails else "")
    # What fails is shown in full with its test; what does not is shown nowhere else.
    return Entry(heading, bug.tests, () if bug.fails else bug.text)
