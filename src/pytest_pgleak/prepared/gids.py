"""The gid of a prepared transaction in SQL: read out of a statement, written as a literal. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# A string constant in each of its forms (PostgreSQL manual, section 4.1.2), or a placeholder that the client fills in.
_STATEMENT: Final = re.compile(
    r"""\b(?:(?P<prepares>prepare\s+transaction)|(?:commit|rollback)\s+prepared)\s+
    (?: '(?P<plain>(?:[^']|'')*)'
      | e'(?P<escaped>(?:[^'\\]|\\.|'')*)'
      | (?P<tag>\$\w*\$)(?P<dollars>.*?)(?P=tag)
      | %(?:\((?P<name>[^)]+)\))?[stb]
    )""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WRITTEN: Final = {character: "\\" + letter for letter, character in _ESCAPES.items()} | {"\\": "\\\\", "'": "''"}


@dataclass(frozen=True, slots=True)
class GidUse:
    """What becomes of a prepared transaction.

    Attributes:
        gid: Which one.
        finishes: Whether it is committed or rolled back, and not prepared.
        by_sql: Whether by a statement, and not by a method of the connection.
    """

    gid: str
    finishes: bool = False
    by_sql: bool = False


def gids_in(statement: str, parameters: Any = None) -> tuple[GidUse, ...]:
    """Find the prepared transactions that a statement prepares or finishes.

    What only looks like one, inside of a string, is found too: the server knows whether there is one.

    Args:
        statement: SQL, of any length and with any number of commands.
        parameters: What a client-side cursor puts in place of ``%s`` and ``%(name)s``.
    """
    if "repare" not in statement and "REPARE" not in statement:  # asked of each statement; the pattern takes 50 × that
        return ()
    return tuple(
        GidUse(gid, match["prepares"] is None, by_sql=True)
        for match in _STATEMENT.finditer(statement)
        if (gid := _gid(match, parameters)) is not None
    )


def literal(gid: str) -> str:
    """Write a gid as a string constant of SQL, on one line, as ``quote_literal()`` would."""
    written = "".join(_WRITTEN.get(character, character) for character in gid)
    return f"E'{written}'" if "\\" in written else f"'{written}'"


def _gid(match: re.Match[str], parameters: Any) -> str | None:
    if match["plain"] is not None:
        return match["plain"].replace("''", "'")
    if match["escaped"] is not None:
        return re.sub(r"\\(.)|''", lambda part: _unescaped(part[1]), match["escaped"], flags=re.DOTALL)
    if match["dollars"] is not None:
        return match["dollars"]
    if match["name"] is not None:
        value = parameters.get(match["name"]) if isinstance(parameters, Mapping) else None
    else:
        is_list = isinstance(parameters, Sequence) and not isinstance(parameters, str)
        value = parameters[0] if is_list and parameters else None
    return value if isinstance(value, str) else None


def _unescaped(character: str | None) -> str:
    return "'" if character is None else _ESCAPES.get(character, character)
