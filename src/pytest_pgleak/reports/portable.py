"""Paths and texts as they may leave this machine: relative to pytest's root directory, nothing absolute. Pure."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pytest_pgleak.rendering import relative

_INSTALLED: Final = ("site-packages", "dist-packages")
# As `rendering.place` writes it, where the file is not below the root directory.
_PLACE: Final = re.compile(r"(?<!\S)(?P<file>(?:/|[A-Za-z]:[\\/])[^:]+)(?=:\d+ in )")


def portable(filename: str, root: Path) -> str:
    """Name a file without naming the directories of this machine.

    Args:
        filename: Path of a source file.
        root: pytest's root directory.

    Returns:
        With forward slashes: the path relative to the root directory. Of installed code it begins with
        ``site-packages``; of a file that has nothing in common with the root directory only the name is left.
    """
    path = Path(relative(filename, root))
    for installed in _INSTALLED:  # first, for the virtual environment may lie below the root directory
        if installed in path.parts:
            return "/".join(path.parts[path.parts.index(installed) :])
    if not path.is_absolute():
        return path.as_posix()
    if path.parts[:2] != root.parts[:2]:
        return path.name
    return Path(os.path.relpath(path, root)).as_posix()


def portable_line(text: str, root: Path) -> str:
    """Do the same for each place, ``file:line in function``, of a line of a failure."""
    return _PLACE.sub(lambda match: portable(match["file"], root), text)


def portable_note(note: str, root: Path) -> str:
    """Leave out the traceback of a note, and the root directory's own path."""
    return note.partition("\nTraceback ")[0].replace(str(root) + os.sep, "").replace(str(root), ".").strip()
