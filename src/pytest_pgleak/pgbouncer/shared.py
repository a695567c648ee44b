"""What one client has left on a server connection that PgBouncer gives to the next one. Pure.

That something was left is never told from the text of a statement: another client has seen it. Statements only tell
whose doing it was, if they are known to have run on the same server connection; where nothing tells that, nobody is
accused: several processes may share a pool.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.pgbouncer.values import is_another, values_in
from pytest_pgleak.session_state.hints import mentions
from pytest_pgleak.session_state.state import Leftover, LeftState, SessionState, SharedServer, left_since
from pytest_pgleak.session_state.statements import names_in
from pytest_pgleak.sql import one_line

FOLLOWED: Final = frozenset(
    ("application_name", "client_encoding", "datestyle", "intervalstyle", "standard_conforming_strings", "timezone")
)
"""Settings that PgBouncer itself sets anew for each client (PgBouncer, config.md, ``track_extra_parameters``)."""

_LONGEST: Final = 2_000
"""Characters of a statement that are read."""
_LOCKS: Final = re.compile(r"\bpg_(?:try_)?advisory_lock")
_UNLOCKS: Final = re.compile(r"\bpg_advisory_unlock(?!_all)")
_PREPARES: Final = re.compile(r"\s*prepare\s+(?!transaction\b)")
_ENDS_BY_ITSELF: Final = re.compile(r"\bon\s+commit\s+drop\b")
_SETS: Final = re.compile(r"set\s|.*\bset_config\s*\(", re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"\$\d+|%(?:\(\w+\))?[sbt]")
_MAY_BE_HINT: Final = re.compile(
    r"\b(?:set|listen|declare|create|reset|unlisten|discard|deallocate|drop|close|prepare|set_config|temp|temporary)\b"
    r"|advisory_(?:un)?lock"
)
_LEAVES: Final = re.compile(
    r"^[\s(]*(?:set\s+(?!local\b|transaction\b|constraints\b)|listen\b|declare\b|create\s|reset\b|unlisten\b|discard\b"
    r"|deallocate\b|drop\b|close\b)|\bset_config\s*\(.*?,\s*false\s*\)|\binto\s+(?:local\s+|global\s+)?temp|advisory_(?:un)?lock",
    re.DOTALL,
)
_AS_A_PARAMETER_SAYS: Final = re.compile(
    r"\bset_config\s*\(.*?,\s*(?:%(?:\(\w+\))?[sbt]|\$\d+)\s*(?:::\s*bool\w*\s*)?\)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class SharedHint:
    """A statement that may have left something, or that has taken something away again.

    Attributes:
        text: The statement in lower case, without the values in it.
        names: Names of the settings in it.
        moment: Where it was executed.
        connection: Serial of the connection.
        facts: Facts of the connection.
        prepared: Name and text of a statement that the driver itself has prepared meanwhile.
        values: What it sets settings to, as far as that can be told.
        server: The pid of the server connection that has executed it; None where nobody knows.
    """

    text: str
    names: frozenset[str]
    moment: Moment
    connection: int
    facts: ConnectionFacts
    prepared: tuple[str, str] | None = None
    values: Mapping[str, str] = field(default_factory=dict, repr=False)  # row-level security: may be anything
    server: int | None = None

    @property
    def outlives_rollback(self) -> bool:
        """Whether what it did stays where its transaction is rolled back."""
        return self.prepared is not None or bool(_LOCKS.search(self.text) or _PREPARES.match(self.text))


def parts_of(statement: str, parameters: object = None) -> tuple[tuple[str, frozenset[str], Mapping[str, str]], ...]:
    """Take those statements out of a text that are hints, each with the names of the settings in it, and their values.

    Args:
        statement: As it was given to the driver.
        parameters: Its parameters.
    """
    parts = []
    texts = one_line(statement[:_LONGEST], _LONGEST).lower().strip("; ").split(";")
    values = values_in(statement[:_LONGEST], parameters) if len(texts) == 1 else {}
    for part in texts:
        if _is_hint(part, parameters):
            names = names_in(statement[:_LONGEST], parameters) if "set_config" in part else names_in(part)
            parts.append((part.strip(), names, values))
    return tuple(parts)


def may_leave(statement: str, parameters: object = None) -> bool:
    """Tell, quickly, whether a statement may be a hint; arguments as for `parts_of`."""
    return _MAY_BE_HINT.search(statement[:_LONGEST].lower()) is not None and bool(parts_of(statement, parameters))


def is_text_of(prepared: str, statement: str) -> bool:
    """Tell whether a driver has prepared a statement under this text: it has its own way to write placeholders."""
    return _PLACEHOLDER.sub("?", prepared) == _PLACEHOLDER.sub("?", statement).replace("%%", "%")


def is_same(one: LeftState, other: LeftState) -> bool:
    """Tell whether the same was left twice: by the same line, on the same account, in the same request if in any."""
    return (
        one.moment.stack == other.moment.stack
        and one.moment.owner == other.moment.owner
        and one.moment.request is other.moment.request
        and {(each.what, each.name) for each in one.left} == {(each.what, each.name) for each in other.left}
    )


def left_on(
    seen: Mapping[int, SessionState],
    hints: Sequence[SharedHint],
    server: SharedServer,
    followed: Collection[str] = FOLLOWED,
) -> tuple[LeftState, ...]:
    """Tell what was left, and by which statements.

    Args:
        seen: What another client has seen on idle server connections, by the pid of their backends.
        hints: Statements of this process that have ended, in their order.
        server: What is known of these server connections.
        followed: Names, in lower case, of the settings that PgBouncer sets anew for each client.
    """
    by_line: dict[tuple[object, ...], tuple[SharedHint, list[Leftover], list[int]]] = {}
    for pid, state in sorted(seen.items()):
        for each in _found(state):
            if each.what == "setting" and each.name.lower() in followed:
                continue
            if (hint := _cause(each, state, hints, pid)) is None:
                continue
            line = (hint.moment.stack, id(hint.moment.request), hint.moment.owner.serial)
            _, left, pids = by_line.setdefault(line, (hint, [], []))
            if each.name not in {other.name for other in left if other.what == each.what}:
                left.append(each)
            pids.append(pid)
    return tuple(
        LeftState(
            hint.connection, hint.facts, None, hint.moment, hint.moment, tuple(left), server.of(dict.fromkeys(pids))
        )
        for hint, left, pids in by_line.values()
    )


def _found(state: SessionState) -> Iterable[Leftover]:
    # As the server makes a session. What ALTER ROLE has set is no setting of the session.
    before = SessionState(role="none", custom=dict.fromkeys(state.custom, ""))
    yield from left_since(before, state)
    yield from (Leftover("prepared statement", name) for name in sorted(state.prepared))


def _cause(left: Leftover, state: SessionState, hints: Sequence[SharedHint], pid: int) -> SharedHint | None:
    """Return the statement that has left something on one server connection.

    It is the last that speaks of it and has run there, unless it was taken away again; where that has run need not be
    known.
    """
    hints = [hint for hint in hints if hint.server in (pid, None)]
    if left.what == "advisory lock":
        return _cause_of_lock(hints)
    undone = set()
    for hint in reversed(hints):
        if hint.connection in undone:
            continue
        if _undoes(hint.text, left):
            undone.add(hint.connection)
        elif hint.server is not None and _leaves(hint, left, state):
            return None if _sets_another(hint, left, state) else hint
    return None


def _cause_of_lock(hints: Sequence[SharedHint]) -> SharedHint | None:
    # Which lock, the text does not say: its key may be a parameter. Each of them has to be given back once.
    held: dict[int, list[SharedHint]] = {}
    for hint in hints:
        locks = held.setdefault(hint.connection, [])
        locks += [hint] * (len(_LOCKS.findall(hint.text)) if hint.server is not None else 0)
        if "pg_advisory_unlock_all" in hint.text or hint.text.startswith("discard all"):
            locks.clear()
        del locks[len(locks) - min(len(locks), len(_UNLOCKS.findall(hint.text))) :]
    last = [locks[-1] for locks in held.values() if locks]
    return max(last, key=lambda hint: hint.moment.at) if last else None


def _is_hint(text: str, parameters: object) -> bool:
    if _LEAVES.search(text) is not None or _PREPARES.match(text) is not None:
        return True
    return _AS_A_PARAMETER_SAYS.search(text) is not None and _has_false(parameters)


def _has_false(parameters: object) -> bool:
    """Tell whether one of the parameters is False, as that of ``set_config`` which says how long it is for."""
    values = parameters.values() if isinstance(parameters, Mapping) else parameters
    return isinstance(values, Iterable) and any(each is False for each in values)


def _leaves(hint: SharedHint, left: Leftover, state: SessionState) -> bool:
    if left.what == "prepared statement":
        if hint.prepared is not None:
            return hint.prepared == (left.name, state.prepared[left.name])
        return _PREPARES.match(hint.text) is not None and _word(left.name, hint.text)
    if left.what in ("setting", "role", "session authorization") and _SETS.match(hint.text) is None:
        return False
    if left.what == "cursor" and "with hold" not in hint.text:
        return False
    return hint.prepared is None and _ENDS_BY_ITSELF.search(hint.text) is None and mentions(hint.text, hint.names, left)


def _sets_another(hint: SharedHint, left: Leftover, state: SessionState) -> bool:
    """Tell whether a statement has set something to another value than it has: somebody else came after it."""
    if left.what == "role":
        is_literal = "'" in hint.text or "set_config" in hint.text
        return not is_literal and not _word(left.name, hint.text)
    if left.what != "setting" or (written := hint.values.get(left.name.lower())) is None:
        return False
    return is_another(written, left.value if left.value is not None else state.custom.get(left.name, written))


def _undoes(text: str, left: Leftover) -> bool:
    if text.startswith("discard all"):
        return True
    if left.what == "setting":
        is_default = re.search(r"(?:\bto|=)\s*default\b", text) is not None
        return text.startswith("reset all") or (
            (text.startswith("reset") or is_default) and (_word(left.name, text) or mentions(text, frozenset(), left))
        )
    if left.what in ("role", "session authorization"):
        return re.match(rf"(?:reset\s+(?:all|{left.what})|set\s+role\s+none|.*\bdefault$)", text) is not None
    if left.what == "channel":
        return text.startswith("unlisten") and ("*" in text or _word(left.name, text))
    if left.what == "prepared statement":
        return text.startswith("deallocate") and (text.endswith("all") or _word(left.name, text))
    if left.what == "cursor":
        return text.startswith("close") and (text.endswith("all") or _word(left.name, text))
    return text.startswith("discard temp") or (text.startswith("drop") and _word(left.name, text))


def _word(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w$]){re.escape(word.lower())}(?![\w$])", text) is not None
