"""Places among the file descriptors of the process, kept for the plugin's own sockets.

Suites assert that a test leaves as many file descriptors as it has found. An observer connects when it is first needed,
in the middle of a test if need be. So its place is taken before the first test begins, and its socket gets that number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

_PLACES: Final = 5
"""Three for observers (suites speak to one server, seldom to two), and two for what makes and drops fresh databases."""


class Places:
    """Keeps places. What is opened beyond their number takes a place of its own."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._given = 0
        self._is_reserved = False

    def reserve(self) -> None:
        """Take the places, once."""
        if not self._is_reserved:
            self._is_reserved = True
            for _ in range(_PLACES):
                self._keep_one()

    @contextlib.contextmanager
    def vacated(self) -> Iterator[None]:
        """Leave one place free, so that what is opened inside gets it.

        An exception means that nothing was opened: the place is taken again.
        """
        if not self._kept:
            yield
            return
        place = self._kept.pop()
        self._given += 1
        try:
            with _none_free_below(place):
                with contextlib.suppress(OSError):
                    os.close(place)
                yield
        except BaseException:
            self.returned()
            raise

    def returned(self) -> None:
        """What was opened is closed: take the place again."""
        if self._given:
            self._given -= 1
            self._keep_one()

    def close(self) -> None:
        """Give all places up."""
        for place in self._kept:
            with contextlib.suppress(OSError):
                os.close(place)
        self._kept.clear()
        self._given = 0

    def _keep_one(self) -> None:
        with contextlib.suppress(OSError):  # none is left, or somebody has replaced `os.open`
            self._kept.append(os.open(os.devnull, os.O_RDONLY))


@contextlib.contextmanager
def _none_free_below(place: int) -> Iterator[None]:
    # The system gives the lowest number that is free.
    below: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while (lower := os.dup(place)) < place:
                below.append(lower)
            os.close(lower)
        yield
    finally:
        for descriptor in below:
            os.close(descriptor)
