"""Which statement has left something: a hint names the line. Pure.

Whether something was left is never told from text; the session itself says that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pytest_pgleak.events import Moment
from pytest_pgleak.session_state.state import Leftover, What

_TEMPORARY: Final = re.compile(r"\b(?:temp|temporary|pg_temp\w*)\b")
_STATEMENTS: Final[dict[What, re.Pattern[str]]] = {
    "cursor": re.compile(r"\bdeclare\b"),
    "channel": re.compile(r"\blisten\b"),
    "temporary table": _TEMPORARY,
    "temporary view": _TEMPORARY,
    "temporary sequence": _TEMPORARY,
}
# PostgreSQL manual, SET: other words for a setting.
_ALIASES: Final = {
    "timezone": "time zone",
    "client_encoding": "names",
    "search_path": "schema",
    "xmloption": "xml option",
    "default_transaction_isolation": "characteristics",
    "default_transaction_read_only": "characteristics",
    "default_transaction_deferrable": "characteristics",
}


@dataclass(frozen=True, slots=True)
class Hint:
    """A statement that may have left something.

    Attributes:
        text: The statement in lower case, without the values in it.
        names: Names of the settings in it.
        hides: Whether it does not say what it does.
        moment: Where it was executed.
        holder: Where the connection was checked out.
    """

    text: str
    names: frozenset[str]
    hides: bool
    moment: Moment
    holder: Moment


def cause_of(left: Leftover, hints: Sequence[Hint]) -> Hint | None:
    """Return the statement that left something: the last that mentions it, or else the last that hides what it does."""
    mentioning = (hint for hint in reversed(hints) if mentions(hint.text, hint.names, left))
    return next(mentioning, None) or next((hint for hint in reversed(hints) if hint.hides), None)


def mentions(text: str, names: frozenset[str], left: Leftover) -> bool:
    """Tell whether a statement speaks of what was left.

    Args:
        text: The statement, as `Reading.text` has it.
        names: Names of the settings in it.
        left: What was left.
    """
    name = left.name.lower()
    if left.what == "advisory lock":
        return "advisory_lock" in text
    if left.what == "role":
        return "role" in names or bool(re.search(r"\bset\s+(session\s+)?role\b", text))
    if left.what == "session authorization":
        return "authorization" in text or "session_authorization" in names
    if left.what in _STATEMENTS:
        return _STATEMENTS[left.what].search(text) is not None and _word(name, text)
    if left.what == "setting" and (name in names or _word(_ALIASES.get(name), text)):
        return True
    if left.what == "setting" and left.value is None and re.search(r"\b(?:reset|discard)\s+all\b", text):
        return True
    return left.what == "setting" and _word(name, text)


def _word(word: str | None, text: str) -> bool:
    return word is not None and re.search(rf"(?<![\w$]){re.escape(word)}(?![\w$])", text) is not None
