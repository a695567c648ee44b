"""One bug is one entry: the findings of a session, grouped by kind, line of code and owner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_pgleak.kinds import KINDS

if TYPE_CHECKING:
    from pytest_pgleak.reporting import Reported


@dataclass(frozen=True, slots=True)
class Bug:
    """What the findings of one kind from one line have in common.

    Attributes:
        first: The first of them.
        count: How many there are.
        fails: Whether it failed a test.
        tests: The tests at whose checkpoints they were made, in that order; none for what the session left.
        text: The whole text of the first.
    """

    first: Reported
    count: int
    fails: bool
    tests: tuple[str, ...]
    text: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The kind."""
        return self.first.kind

    @property
    def headline(self) -> str:
        """The sentence after the kind."""
        return KINDS[self.kind].headline

    @property
    def place(self) -> str:
        """Where it comes from, as ``file:line in function``, or what stands in for it. No absolute path."""
        first = self.first
        if not first.file:
            return first.place
        place = f"{first.file}:{first.lineno} in {first.function}"
        if not first.ended_file:
            return place
        return f"{place}, ended at {first.ended_file}:{first.ended_lineno} in {first.ended_function}"

    @property
    def times(self) -> str:
        """How often and where it was found, in words."""
        number = "once" if self.count == 1 else f"{self.count} times"
        if not self.tests:
            return f"{number}, at the end of the session"
        return f"{number}, {'first ' if len(self.tests) > 1 else ''}in {self.tests[0]}"

    @property
    def allow(self) -> str:
        """The marker that allows it in a test."""
        return f'@pytest.mark.pgleak(allow=["{self.kind}"])'


def bugs_of(entries: Iterable[Reported]) -> list[Bug]:
    """Group findings. What the baseline knows is left out.

    Args:
        entries: The findings of a session, of all workers.

    Returns:
        Those that failed tests, then the warnings; the most frequent first; else in the order of their first findings.
    """
    groups: dict[tuple[str, str, str], list[Reported]] = {}
    for entry in entries:
        if entry.known:
            continue
        groups.setdefault((entry.kind, entry.place, entry.owner), []).append(entry)
    return sorted(map(_bug, groups.values()), key=lambda bug: (not bug.fails, -bug.count))


def drop_repeated_texts(entries: Iterable[dict[str, Any]], told: set[tuple[str, str, str]]) -> None:
    """Keep the text only with the first finding of each bug: pytest holds all reports until the session ends.

    Args:
        entries: Findings that are about to be reported, as `Reported.as_dict` makes them.
        told: The bugs whose text was reported by this process; those of the entries are added.
    """
    for entry in entries:
        bug = (entry["kind"], entry["place"], entry["owner"])
        if bug in told:
            entry["detail"] = []
        told.add(bug)


def _bug(group: list[Reported]) -> Bug:
    return Bug(
        group[0],
        len(group),
        any(entry.fails for entry in group),
        tuple(dict.fromkeys(entry.nodeid for entry in group if entry.nodeid)),
        next((tuple(entry.detail) for entry in group if entry.detail), ()),
    )
