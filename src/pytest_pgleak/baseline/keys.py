"""What makes a finding the same one as in another run: where it comes from, without line numbers. Pure."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pytest_pgleak.findings import Finding
from pytest_pgleak.frames import Frame, user_frames
from pytest_pgleak.kinds import CONNECTION_DROPPED, CONNECTION_NOT_CLOSED, TOO_MANY_CONNECTIONS
from pytest_pgleak.owners import Owner
from pytest_pgleak.reports.portable import portable
from pytest_pgleak.transactions import How

_COMPREHENSIONS: Final = frozenset(("<listcomp>", "<setcomp>", "<dictcomp>"))
"""Functions of their own until Python 3.11, part of the function around them since."""
_SAME_MISTAKE: Final = {CONNECTION_DROPPED: CONNECTION_NOT_CLOSED, CONNECTION_NOT_CLOSED: CONNECTION_DROPPED}
"""Which of the two it is, is a matter of when the garbage collector runs, and that of the mode of the run."""


@dataclass(frozen=True, slots=True)
class Key:
    """One known finding. An attribute that does not apply is empty.

    Attributes:
        kind: The kind.
        file: File of the origin, relative to the root directory, with forward slashes.
        function: Function of the origin, with its class where it has one.
        ended_in: For a transaction that was ended elsewhere, where: ``FILE::FUNCTION``. One function that writes may
            be called by many, and only some of them lose what it wrote.
        source: What stands for the origin of a finding that has none.
    """

    kind: str
    file: str = ""
    function: str = ""
    ended_in: str = ""
    source: str = ""

    @property
    def order(self) -> tuple[str, ...]:
        """What to sort by: the findings of one file stand together."""
        return (self.file, self.function, self.kind, self.ended_in, self.source)

    def describe(self) -> str:
        """Name it in a line of output."""
        where = f"{self.file} in {self.function}" if self.file else self.source
        return f"[{self.kind}] {where}" + (f", ended in {self.ended_in}" if self.ended_in else "")

    def among(self, known: Container[Key]) -> Key:
        """Return the key by which the mistake is known already; this one if it is by none."""
        other = replace(self, kind=_SAME_MISTAKE.get(self.kind, self.kind))
        return other if self not in known and other in known else self

    def as_strings(self) -> tuple[str, ...]:
        """Return what can be sent between processes; ``Key(*…)`` takes it."""
        return (self.kind, self.file, self.function, self.ended_in, self.source)


def key_of(finding: Finding, root: Path) -> Key:
    """Return what a finding is known by.

    Args:
        finding: The finding.
        root: pytest's root directory.
    """
    if finding.origin is None or finding.kind == TOO_MANY_CONNECTIONS:
        # Which of several lines is the one to open a connection too many is a matter of chance.
        return Key(finding.kind, source=_source(finding))
    file, function = _place((finding.origin, *finding.stack[1:]), root)
    return Key(finding.kind, file, function, _ended_in(finding, (file, function), root))


def function_of(nodeid: str) -> str:
    """Return the nodeid of a test without its parameters: these may be numbers that change from run to run."""
    path, separator, rest = nodeid.partition("::")
    return path + separator + rest.partition("[")[0]


def _place(frames: Sequence[Frame], root: Path) -> tuple[str, str]:
    frame = next((frame for frame in frames if frame.function not in _COMPREHENSIONS), frames[0])
    return portable(frame.filename, root), frame.function


def _ended_in(finding: Finding, origin: tuple[str, str], root: Path) -> str:
    # The garbage collector may come anywhere.
    if not finding.transactions or finding.transactions[0].how in (How.COLLECTED, How.UNKNOWN):
        return ""
    frames = user_frames(finding.transactions[0].ended.stack)
    place = _place(frames, root) if frames else origin
    return "" if place == origin else "::".join(place)


def _source(finding: Finding) -> str:
    if finding.subject == "backend" and finding.backend is not None:
        # Programs put their pid into it, or the number of the worker.
        return f"application_name {re.sub(r'[0-9]+', '#', finding.backend.application_name or '')!r}"
    return _of_owner(finding.owner)


def _of_owner(owner: Owner) -> str:
    if owner.what in ("call", "block"):
        return f"test {function_of(owner.nodeid)}"
    if owner.what == "fixture" and owner.teardown is None:
        return f"fixture {owner.fixturename!r}"
    return owner.describe()
