"""What a worker has to say when nobody asks: at its shutdown, and after it was killed.

One file a process, only ever appended to, with one ``write`` a record: what was written stays when the process is
killed. A record that was not written to its end is the last one, and is left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from pytest_pgleak.live.wire import dumps, loads

_LENGTH: Final = 8
_PREFIX: Final = "journal-"


class Journal:
    """Writes the journal of this process.

    Args:
        directory: The server's.
    """

    def __init__(self, directory: str) -> None:
        path = f"{directory}/{_PREFIX}{os.getpid()}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, record: object) -> None:
        """Append a record."""
        packed = dumps(record)
        os.write(self._file, len(packed).to_bytes(_LENGTH, "big") + packed)

    def close(self) -> None:
        """Close the file; in a child of ``fork()``, whose journal is another one."""
        os.close(self._file)


class JournalReader:
    """Reads one journal, from where it stopped the last time.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.pid = int(path.name.removeprefix(_PREFIX))
        self._path = path
        self._at = 0

    def read(self) -> list[Any]:
        """Return the records that are new."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        records, at = [], 0
        while len(content) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(content[at : at + _LENGTH], "big")
            if end > len(content):
                break
            records.append(loads(content[at + _LENGTH : end]))
            at = end
        self._at += at
        return records


def journals(directory: Path) -> list[Path]:
    """Return the journals of a server: one for each Python process that it has started."""
    return sorted(directory.glob(f"{_PREFIX}*"))
