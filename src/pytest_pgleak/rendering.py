"""Findings as text: the failure, and the summary of a session. Pure; decides nothing."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_pgleak import sentences, transaction_sentences
from pytest_pgleak.budget import sentences as peak_sentences
from pytest_pgleak.findings import Finding
from pytest_pgleak.frames import Frame
from pytest_pgleak.kinds import NESTED_CHECKOUT, TRANSACTION_LEFT_OPEN, UNTRACKED_BACKEND
from pytest_pgleak.pgbouncer import sentences as pgbouncer_sentences
from pytest_pgleak.prepared import sentences as prepared_sentences
from pytest_pgleak.session_state import sentences as session_sentences
from pytest_pgleak.sql import OWN, one_line

_LABEL: Final = 10
_CALLERS: Final = 2
# A password in a URI, in a conninfo string, as a keyword argument.
_PASSWORD: Final = re.compile(r"""(://[^:/@\s'"]*:)[^@\s'"]+(?=@)|(password\s*=\s*['"]?)[^\s'",)&]+""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output.

    Attributes:
        text: Plain text.
        style: ``kind`` for the line that opens a finding, ``source`` for source code, ``fix`` for the remedy,
            else empty. Colours are chosen from it at the very end.
    """

    text: str
    style: str = ""


def failure(findings: Sequence[Finding], root: Path) -> list[Line]:
    """Render all findings of one test: each mistake once, with how often it happened.

    Args:
        findings: The findings of one checkpoint.
        root: Paths below it are shown relative to it.
    """
    lines: list[Line] = []
    for group in by_place(findings):
        if lines:
            lines.append(Line(""))
        lines.extend(_finding(group[0], group[1:], root))
    return lines


def by_place(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Group findings of one kind from one line, in the order of their first."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        end = str(finding.ended_at) if finding.ended_at else ""
        key = (finding.kind, finding.place, end if finding.origin else str(finding.serial))
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def headline(findings: Sequence[Finding], root: Path) -> str:
    """Say in one line what a test left, for pytest's short summary."""
    groups = by_place(findings)
    first = groups[0][0]
    where = f" at {place(first.origin, root)}" if first.origin else ""
    more = f" (and {len(groups) - 1} more)" if len(groups) > 1 else ""
    return f"pgleak: {first.kind}{where}{more}"


def place(frame: Frame, root: Path) -> str:
    """Show where a frame is, clickable: ``file:line in function``."""
    return f"{relative(frame.filename, root)}:{frame.lineno} in {frame.function}"


def places(finding: Finding, root: Path) -> str:
    """Show where a finding comes from; a write that several requests share is lost where its transaction ended."""
    shown = place(finding.origin, root) if finding.origin else ""
    if finding.ended_at is None or finding.ended_at == finding.origin:
        return shown
    return f"{shown}, ended at {place(finding.ended_at, root)}"


def relative(filename: str, root: Path) -> str:
    """Show a path below the root relative to it, with forward slashes."""
    path = Path(filename)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else filename


def without_passwords(text: str) -> str:
    """Leave out what stands where a password would."""
    return _PASSWORD.sub(lambda match: (match[1] or match[2]) + "…", text)


def _finding(finding: Finding, others: Sequence[Finding], root: Path) -> list[Line]:
    times = f" ({len(others) + 1} times)" if others else ""
    lines = [Line(f"[{finding.kind}] {finding.headline}{times}", "kind")]
    lines += _origin(finding, root)
    if finding.request is not None:
        lines.append(_line("request", _request(finding, others)))
    if finding.owner.what != "call":
        lines.append(_line("owner", finding.owner.describe()))
    if finding.pool is not None and finding.kind != TRANSACTION_LEFT_OPEN and finding.subject != "transaction":
        lines.append(_line("pool", _pool(finding)))
    lines += _witnessed(finding)
    if finding.left:
        lines.append(_line("left", session_sentences.left(finding)))
    if finding.prepared is not None:
        lines += [_line(label, text) for label, text in prepared_sentences.blocks(finding)]
    if finding.over is not None:
        lines += [_line(label, text) for label, text in peak_sentences.details(finding, lambda at: place(at, root))]
    else:
        lines.append(_line("risk" if finding.kind == NESTED_CHECKOUT else "ended", _ended(finding, root)))
    lines.append(_line("fix", sentences.fix(finding), "fix"))
    if finding.prepared is not None and finding.prepared.stays:
        lines.append(_line("undo", prepared_sentences.undo(finding)))
    lines.append(_allow(finding, root))
    return lines


def _witnessed(finding: Finding) -> list[Line]:
    """Show what the server and PgBouncer saw."""
    lines = []
    if (server := sentences.server(finding)) is not None:
        lines.append(_line("server", server))
    if finding.through is not None:
        lines.append(_line("pgbouncer", pgbouncer_sentences.client(finding.through)))
    if finding.backend is not None and finding.backend.query and not finding.backend.query.startswith(OWN):
        lines.append(_line("last sql", one_line(finding.backend.query)))
    return lines


def _allow(finding: Finding, root: Path) -> Line:
    if finding.owner.outlives_tests and finding.origin is not None and finding.kind != TRANSACTION_LEFT_OPEN:
        # Told at the end of the session: no marker of a test speaks for it.
        where = f"{relative(finding.origin.filename, root)}::{finding.origin.function.rpartition('.')[2]}"
        return _line("ignore", f"a line of pgleak_ignore: {finding.kind} {where}")
    return _line("allow", f'@pytest.mark.pgleak(allow=["{finding.kind}"])')


def _ended(finding: Finding, root: Path) -> str:
    if finding.subject != "transaction":
        return sentences.ended(finding)
    at = finding.ended_at
    return transaction_sentences.ended(finding, f" at {place(at, root)}" if at is not None else "")


def _origin(finding: Finding, root: Path) -> list[Line]:
    if finding.origin is None:
        if finding.kind == UNTRACKED_BACKEND or finding.over or (finding.prepared and not finding.prepared.is_known):
            return []
        return [_line(sentences.verb(finding), "outside of any code that pgleak could recognise as yours")]
    context = _context(finding)
    where = place(finding.origin, root)
    lines = [_line(sentences.verb(finding), f"{where:<40} {context}".rstrip() if context else where)]
    source = linecache.getline(finding.origin.filename, finding.origin.lineno).strip()
    if source:
        shown = without_passwords(source)
        lines.append(Line(" " * (_LABEL + 6) + shown, "source"))
    callers = [place(frame, root) for frame in finding.stack[1 : 1 + _CALLERS]]
    # Who came first is not to blame for what belongs to the process.
    if callers and finding.dependency is None and not finding.owner.outlives_tests:
        lines.append(_line("called by", ", ".join(callers)))
    if finding.began is not None:
        lines.append(_line("began", place(finding.began, root)))
    if finding.kind == NESTED_CHECKOUT and finding.opened is not None:
        lines.append(_line("while", f"another one is held, taken at {place(finding.opened, root)}"))
    elif finding.taken is not None and finding.taken != finding.origin:
        lines.append(_line("taken", place(finding.taken, root)))
    elif finding.opened is not None and finding.opened != finding.origin:
        is_taken = finding.left or (finding.subject == "transaction" and finding.pool is not None)
        of_session = finding.subject == "transaction" and finding.transactions[0].of_session
        label = "session" if of_session else "taken" if is_taken else "opened"
        lines.append(_line(label, place(finding.opened, root)))
    return lines


def _context(finding: Finding) -> str:
    request = finding.request
    if request is None:
        # An event loop in a thread of its own (TestClient's portal) explains nothing.
        return f"in thread {finding.thread}" if finding.thread and "portal" not in finding.thread else ""
    target = f"{request.method} {request.route or request.path}"
    endpoint = f" ({request.endpoint})" if request.endpoint else ""
    return f"dependency of {target}{endpoint}" if finding.dependency else f"in {target}{endpoint}"


def _request(finding: Finding, others: Sequence[Finding]) -> str:
    assert finding.request is not None
    request = finding.request
    text = f"#{request.ordinal} {request.method} {request.path} → {_status(finding)}"
    numbers = [other.request.ordinal for other in others if other.request is not None]
    if numbers:
        shown = ", ".join(f"#{number}" for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
        text += f", also {shown}"
    return text + (transaction_sentences.told(finding) if finding.subject == "transaction" else "")


def _status(finding: Finding) -> str:
    assert finding.request is not None
    if finding.request.status is not None:
        return str(finding.request.status)
    if finding.request.failed:
        return "an exception"
    if finding.request.socket != "over":
        return sentences.SOCKETS[finding.request.socket]
    return "no exception" if finding.request.method == "WEBSOCKET" else "not answered yet"


def _pool(finding: Finding) -> str:
    assert finding.pool is not None
    pool = finding.pool
    size = f", {pool.facts.library.limit} {pool.facts.max_size}" if pool.facts.max_size else ""
    out = "" if finding.kind == NESTED_CHECKOUT else f", {pool.checked_out} checked out"
    return f"{pool.facts.name!r} ({pool.facts.class_name}{size}){out}"


def _line(label: str, text: str, style: str = "") -> Line:
    return Line(f"  {label:<{_LABEL}}{text}", style)
