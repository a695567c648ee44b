"""Trackers of the user's own, on their way into the workers of a live server: by the names of their functions.

A ``conftest.py`` is pytest's. It may import what a server has not got, or do something when it is imported; so workers
never do, and what is in there cannot be followed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_pgleak.libraries.registry import BUILT_IN, LibraryTracker

if TYPE_CHECKING:
    from pytest_pgleak.patching import Switch
    from pytest_pgleak.tracking import Tracker


@dataclass(frozen=True, slots=True)
class OwnTracker:
    """A tracker that is not pgleak's.

    Attributes:
        module: Full name of the module whose import it waits for.
        home: Name of the module that its function is in.
        function: Name of the function in there.
        is_importable: Whether a worker can get it by these names.
    """

    module: str
    home: str
    function: str
    is_importable: bool

    def as_tracker(self) -> LibraryTracker:
        """Return it as it can be used in another process."""

        def watch(module: ModuleType, tracker: Tracker) -> Switch:
            function = attrgetter(self.function)(import_module(self.home))
            switch: Switch = function(module, tracker)
            return switch

        return LibraryTracker(self.module, watch)


def own_trackers(trackers: Iterable[LibraryTracker]) -> tuple[OwnTracker, ...]:
    """Name the trackers that are not pgleak's."""
    return tuple(dict.fromkeys(_named(each) for each in trackers if each not in BUILT_IN))


def _named(tracker: LibraryTracker) -> OwnTracker:
    home = getattr(tracker.watch, "__module__", None) or ""
    function = getattr(tracker.watch, "__qualname__", None) or repr(type(tracker.watch).__name__)
    is_pytests = home.rpartition(".")[2] in ("conftest", "__main__")
    return OwnTracker(tracker.module, home, function, not is_pytests and _found(home, function) is tracker.watch)


def _found(home: str, function: str) -> object:
    try:
        return attrgetter(function)(sys.modules[home])
    except (KeyError, AttributeError):
        return None
