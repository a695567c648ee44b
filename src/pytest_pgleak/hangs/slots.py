"""Who holds the connections when there are none left: the text of the note on such an error. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pytest_pgleak.frames import Frame
from pytest_pgleak.rendering import place
from pytest_pgleak.requests import RequestInfo
from pytest_pgleak.sql import one_line
from pytest_pgleak.views import Ending

PREFIX: Final = "pgleak: "
_MOST_LINES: Final = 10
_MOST_PIDS: Final = 5
_WIDTH: Final = 240
_LOOPS: Final = {
    "closed": "its event loop is closed: it can open no connection any more. Open it in the loop that uses it: in the"
    " lifespan, or in a fixture with the loop scope of this test",
    "another": "it was opened in another event loop, and can open a connection only there. Open it in the loop that"
    " uses it: in the lifespan, or in a fixture with the loop scope of this test",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A connection that is held, or the slot of a pool that went with one.

    Attributes:
        pid: Its backend.
        seconds: How long it has been held.
        origin: Where it was taken, or opened.
        whose: Who answers for it, in words.
        request: The request in which it was taken.
        ending: How it stands.
        doing: What it does, as the server or the client says.
        query: Its last statement.
    """

    pid: int
    seconds: float
    origin: Frame | None = None
    whose: str = ""
    request: RequestInfo | None = None
    ending: Ending = Ending.OPEN
    doing: str | None = None
    query: str | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone and its pool does not know."""
        return self.ending is not Ending.OPEN


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """A pool that had nothing to give.

    Attributes:
        name: Its own name.
        max_size: Its ``max_size``.
        loop: Its event loop, where that is not the one in which it is asked.
    """

    name: str
    max_size: int | None = None
    loop: Literal["closed", "another"] | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who is connected: columns of ``pg_stat_activity``."""

    pid: int
    application_name: str
    usename: str
    datname: str


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be at once; None for any number.

    Attributes:
        server: ``max_connections``.
        reserved: How many of them are kept for superusers.
        role: The role's ``CONNECTION LIMIT``.
        database: The database's.
    """

    server: int
    reserved: int
    role: int | None = None
    database: int | None = None


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is connected to a server that takes nobody any more.

    Attributes:
        own: The connections of this process.
        others: The other clients.
        limits: How many there may be; None where nobody could be asked.
    """

    own: Sequence[Slot] = ()
    others: Sequence[Client] = field(default=())
    limits: Limits | None = None


def pool_note(pool: PoolFigures, slots: Sequence[Slot], trouble: str | None, root: Path) -> str:
    """Say who holds the connections of a pool.

    Args:
        pool: The pool.
        slots: What is checked out of it, and what was lost.
        trouble: Why it could not open another connection.
        root: Paths below it are shown relative to it.
    """
    lost = [slot for slot in slots if slot.is_lost]
    out = len(slots) - len(lost)
    size = f" (max_size {pool.max_size})" if pool.max_size else ""
    counts = f"{out} checked out" + (f", {_number(len(lost), 'slot')} lost for ever" if lost else "")
    lines = [f"{PREFIX}pool {pool.name!r}{size}: {counts}"]
    if pool.loop is not None:
        lines.append(f"  {_LOOPS[pool.loop]}")
    ordered = sorted(slots, key=lambda slot: (slot.is_lost, -slot.seconds))
    lines += [f"  {_slot(slot, root)}" for slot in ordered[:_MOST_LINES]]
    if len(ordered) > _MOST_LINES:
        lines.append(f"  … and {len(ordered) - _MOST_LINES} more")
    if trouble:
        lines.append(f"  the pool could not open another one: {_shortened(trouble)}")
    return "\n".join(lines)


def crowd_note(crowd: Crowd, root: Path) -> str:
    """Say who is connected to a server that is full.

    Args:
        crowd: Who is.
        root: Paths below it are shown relative to it.
    """
    lines = [f"{PREFIX}this process has {_number(len(crowd.own), 'connection')} open to that server"]
    groups: dict[tuple[Frame | None, str], list[Slot]] = {}
    for slot in crowd.own:
        groups.setdefault((slot.origin, slot.whose), []).append(slot)
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines += [f"  {_group(group, root)}" for group in ordered[:_MOST_LINES]]
    if len(ordered) > _MOST_LINES:
        lines.append(f"  … and from {len(ordered) - _MOST_LINES} more lines of code")
    if crowd.others:
        lines.append(f"others have {_number(len(crowd.others), 'connection')}")
        lines += [f"  {line}" for line in _others(crowd.others)]
    if crowd.limits is not None:
        lines.append(_limits(crowd.limits))
    return "\n".join(lines)


def _slot(slot: Slot, root: Path) -> str:
    which = "a slot that is lost:" if slot.is_lost else f"pid {slot.pid}"
    parts = [f"{which} taken {slot.seconds:.1f} s ago at {_where(slot, root)}"]
    if slot.request is not None:
        parts.append(request(slot.request))
    if slot.whose:
        parts.append(f"by {slot.whose}")
    if slot.is_lost:
        parts.append("garbage-collected" if slot.ending is Ending.DROPPED else "closed")
        return ", ".join(parts) + " without putconn()"
    if slot.doing:
        parts.append(slot.doing)
    last = f"\n    last sql  {one_line(slot.query)}" if slot.query else ""
    return ", ".join(parts) + last


def _where(slot: Slot, root: Path) -> str:
    return place(slot.origin, root) if slot.origin else "outside of any code that pgleak could recognise as yours"


def request(info: RequestInfo) -> str:
    """Show a request."""
    return f"{info.method} {info.route or info.path} (#{info.ordinal})"


def _group(group: Sequence[Slot], root: Path) -> str:
    oldest = max(group, key=lambda slot: slot.seconds)
    pids = ", ".join(str(slot.pid) for slot in group[:_MOST_PIDS]) + (", …" if len(group) > _MOST_PIDS else "")
    the_oldest = "the oldest " if len(group) > 1 else ""
    by = f", by {oldest.whose}" if oldest.whose else ""
    return f"{len(group)} × {_where(oldest, root)}, {the_oldest}{oldest.seconds:.1f} s ago{by} (pid {pids})"


def _others(others: Iterable[Client]) -> list[str]:
    counts = Counter((client.application_name, client.usename, client.datname) for client in others)
    shown = [
        f"{number} × application_name {name!r}, role {role}, database {database}"
        for (name, role, database), number in counts.most_common(_MOST_LINES)
    ]
    rest = len(counts) - len(shown)
    return [*shown, f"… and {rest} more application names"] if rest > 0 else shown


def _limits(limits: Limits) -> str:
    parts = [f"max_connections {limits.server}, {limits.reserved} of them for superusers"]
    if limits.role is not None:
        parts.append(f"the role may have {limits.role}")
    if limits.database is not None:
        parts.append(f"the database may have {limits.database}")
    return "limits: " + "; ".join(parts)


def _number(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
