"""Statements as they may be shown: one line, without the values in them."""

from __future__ import annotations

import re
from typing import Final

OWN: Final = "/* pgleak */"
"""What a statement of the plugin's own begins with, where it is executed on a connection of the application."""

_WIDTH: Final = 100

# PostgreSQL manual, section 4.1.2: quoted strings with '' (and \\' in E'…'), dollar-quoted strings, numbers.
_TOKENS: Final = re.compile(
    r"""
    (?P<comment>--[^\n]*|/\*.*?(?:\*/|$))
  | (?P<name>"(?:[^"]|"")*(?:"|$))
  | (?P<text>
      \b[eE]'(?:[^'\\]|''|\\.)*(?:\\?$|')
    | (?:\b[uUbBxXnN]&?)?'(?:[^']|'')*(?:'|$)
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|$)
    )
  | (?<![\w$."])[+-]?(?:0[xXoObB][\da-fA-F_]+|\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?(?![\w"])
    """,
    re.VERBOSE | re.DOTALL,
)


def one_line(statement: str, width: int = _WIDTH) -> str:
    """Cut a statement to one line and take every literal out of it.

    psycopg sends parameters apart from the statement, but a ``ClientCursor`` and other drivers merge them into its
    text, and nobody wants a customer's name in the log of a build.

    Args:
        statement: SQL, possibly cut off in the middle by ``track_activity_query_size``.
        width: Longest result, in characters.
    """
    text = " ".join(_TOKENS.sub(_mask, statement).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _mask(match: re.Match[str]) -> str:
    if match["comment"]:
        return " "
    if match["name"]:
        return match["name"]
    return "'…'" if match["text"] else "…"
