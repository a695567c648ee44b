"""How much of a summary fits on one screen, however many findings there are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pytest_pgleak.rendering import Line

_SCREEN: Final = 40
"""Lines in all, the notes left out."""
_MOST_PLACES: Final = 20
_AROUND: Final = 3
"""Lines that come with a text: an empty one before it and after it, and the number of those that are left out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is said of one line of code.

    Attributes:
        heading: The kind, the line, and how often.
        tests: The tests in which it was found.
        text: The whole text, where it is shown nowhere else.
    """

    heading: Line
    tests: Sequence[str] = ()
    text: Sequence[str] = ()


def lay_out(entries: Sequence[Entry]) -> list[Line]:
    """Choose what is shown of each: three tests of a few lines of code, one of several, none of many.

    Args:
        entries: In the order in which they are shown.
    """
    shown, texts = entries[:_MOST_PLACES], [entry.text for entry in entries if entry.text]
    room = _SCREEN - 1 - (len(texts[0]) + _AROUND if texts else 0)
    lines = next(lines for most in (3, 1, 0) if len(lines := _with_tests(shown, most)) <= room or most == 0)
    told = 0
    for number, text in enumerate(texts):
        if number > 0 and len(lines) + len(text) + _AROUND > _SCREEN:
            break
        lines += [Line(""), *map(Line, text)]
        told += 1
    if texts:
        lines.append(Line(""))
    if told < len(texts):
        more = len(texts) - told
        lines.append(Line(f"… and {more} more text{'s' if more > 1 else ''} like this one"))
    if (more := len(entries) - len(shown)) > 0:
        lines.append(Line(f"… and {more} more line{'s' if more > 1 else ''} of code"))
    return lines


def _with_tests(entries: Sequence[Entry], most: int) -> list[Line]:
    lines = []
    for entry in entries:
        lines.append(entry.heading)
        lines += [Line(f"         {nodeid}") for nodeid in entry.tests[:most]]
        if 0 < most < len(entry.tests):
            more = len(entry.tests) - most
            lines.append(Line(f"         … and {more} more test{'s' if more > 1 else ''}"))
    return lines
