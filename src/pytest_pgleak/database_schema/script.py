"""A file of SQL as statements, each with its line, so that an error can show the one that failed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# PostgreSQL manual, section 4.1: strings, quoted names, dollar quotes; comments, which nest, are read by hand.
_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<line_comment>--[^\n]*)
  | (?P<comment>/\*)
  | (?P<quoted>
      [eE]'(?:[^'\\]|''|\\.)*(?:'|$)
    | '(?:[^']|'')*(?:'|$)
    | "(?:[^"]|"")*(?:"|$)
    | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|$)
    )
  | (?P<word>[^\W\d][\w$]*)
  | (?P<end>;)
  | (?P<command>\\[^\n]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_IGNORED: Final = ("\\restrict", "\\unrestrict")
"""What pg_dump writes since 2025 around its statements, for psql alone."""
_COPY: Final = re.compile(r"copy\b.*\bfrom\s+stdin\b", re.IGNORECASE | re.DOTALL)


class ScriptError(Exception):
    """The file has something in it that only psql understands; the message names the line and the remedy."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    Attributes:
        text: Without comments before it and without its semicolon.
        line: The line of the file that it begins in, from 1.
    """

    text: str
    line: int


def statements(script: str) -> Iterator[Statement]:
    """Yield the statements of a script, as psql would send them.

    Args:
        script: The text of the file.

    Raises:
        ScriptError: There is a command of psql's, or data for ``COPY … FROM stdin``.
    """
    position, start = 0, -1
    body = _Body()
    while position < len(script):
        match = _TOKEN.match(script, position)
        assert match is not None  # the last alternative takes anything
        kind, position = match.lastgroup, match.end()
        if kind == "comment":
            position = _end_of_comment(script, match.start())
        elif kind == "command" and start < 0:
            _check_command(match["command"].strip(), _line(script, match.start()))
        elif kind == "end" and not body.is_open:
            if start >= 0:
                yield _statement(script, start, match.start())
            start, body = -1, _Body()
        elif kind not in ("space", "line_comment"):
            start = match.start() if start < 0 else start
            body.see(match["word"] or "")
    if start >= 0:
        yield _statement(script, start, len(script))


class _Body:
    """Knows whether a semicolon belongs to the body of a function (``BEGIN ATOMIC … END``), as psql's scanner does."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._depth = 0

    @property
    def is_open(self) -> bool:
        return self._depth > 0

    def see(self, word: str) -> None:
        word = word.lower()
        if not word:
            return
        if self._makes_function():
            if word == "begin" or (word == "case" and self._depth):
                self._depth += 1
            elif word == "end" and self._depth:
                self._depth -= 1
        elif len(self._words) < 4:
            self._words.append(word)

    def _makes_function(self) -> bool:
        words = [word for word in self._words if word not in ("or", "replace")]
        return words[:1] == ["create"] and words[1:2] in (["function"], ["procedure"])


def _statement(script: str, start: int, end: int) -> Statement:
    statement = Statement(script[start:end].strip(), _line(script, start))
    if _COPY.match(statement.text):
        raise ScriptError(
            f"line {statement.line}: the data of COPY … FROM stdin can be read by psql only."
            " Write it with pg_dump --inserts, or without data (--schema-only)."
        )
    return statement


def _check_command(command: str, line: int) -> None:
    if not command.startswith(_IGNORED):
        name = command.split()[0]
        raise ScriptError(f"line {line}: {name} is a command of psql's, and here the server gets the file.")


def _end_of_comment(script: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(script, start):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    return len(script)


def _line(script: str, position: int) -> int:
    return script.count("\n", 0, position) + 1
