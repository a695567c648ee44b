"""The terminal, while pytest captures what is printed."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class LiveTerminal:
    """Writes where pytest's own output goes, whatever is captured at that moment.

    In a worker of pytest-xdist that is standard error: the worker has no terminal of its own, and what it was given as
    standard output is the channel to the controller.

    Args:
        config: pytest's config.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._lock = threading.Lock()
        self._stream: Any = None
        self._fd: int | None = None
        with _not_capturing(config):
            self._stream = sys.stderr if hasattr(config, "workerinput") else sys.stdout
            # Not a file in a notebook, nor where pytester runs an inner suite in its own process.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._fd = os.dup(self._stream.fileno())

    def write(self, text: str) -> None:
        """Write lines, on lines of their own: pytest may be in the middle of one."""
        lines = f"\n{text}\n"
        # Closed, or nobody reads any more: what is said here is said again in the report of the test.
        with self._lock, contextlib.suppress(OSError, ValueError, AttributeError):
            if self._fd is None:
                self._stream.write(lines)
                self._stream.flush()
                return
            data = lines.encode(getattr(self._stream, "encoding", None) or "utf-8", "replace")
            while data:
                data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Let go of the terminal."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = self._stream = None


@contextmanager
def _not_capturing(config: pytest.Config) -> Iterator[None]:
    # What the fixtures `capsys.disabled()` and `capfd.disabled()` use.
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        yield
