"""The classes of psycopg2's connections and cursors, so that what is called on them is told.

psycopg2's own are written in C, and nothing can be put into them. A subclass of such a class stands in for it, as
``connection_factory`` and ``cursor_factory`` allow; it goes by the same name, has no attribute more, and ``__class__``
is the original. Any other class, of ``psycopg2.extras`` or of the user's own, is patched in its place.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.libraries.psycopg2_methods import WatchedMethods
from pytest_pgleak.patching import Patch, Patches

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]
Wrap = Callable[[Method], Method]

_MADE_BY_PYTHON: Final = 1 << 9
"""``Py_TPFLAGS_HEAPTYPE``."""
_IMMUTABLE: Final = 1 << 8
"""``Py_TPFLAGS_IMMUTABLETYPE``."""


class WatchedClasses:
    """Watches classes, each from the moment that it is first used. A switch: off puts everything back.

    Args:
        extensions: ``psycopg2.extensions``.
        tracker: Is told.
    """

    def __init__(self, extensions: Any, tracker: Tracker) -> None:
        self._connection = extensions.connection
        self._cursor = extensions.cursor
        self._methods = WatchedMethods(tracker, self.cursor_factory, self.watch)
        self._patches: dict[type, Patches] = {}
        self._stand_ins: dict[type, type] = {}
        self._wrappers: weakref.WeakSet[Method] = weakref.WeakSet()
        self._lock = threading.Lock()

    def on(self) -> None:
        """Nothing to do: a class is watched when it is first used."""

    def off(self) -> None:
        """Put all classes back as they were."""
        with self._lock:
            for patches in reversed(self._patches.values()):
                patches.off()
            self._patches.clear()

    def connection_factory(self, factory: Any) -> type | None:
        """Return what has to stand in for a connection factory, None being psycopg2's own; None for nothing."""
        return self._stand_in(self._connection if factory is None else factory)

    def cursor_factory(self, factory: Any) -> type | None:
        """Return what has to stand in for a cursor factory, None being psycopg2's own; None for nothing."""
        return self._stand_in(self._cursor if factory is None else factory)

    def watch(self, thing: Any) -> bool:
        """Watch the class of a connection or a cursor that there is; tell whether that can be done."""
        kind = type(thing)
        if kind in self._patches:
            return True
        if not _is_changeable(kind):
            return False
        with self._lock:
            if kind not in self._patches:
                patches = Patches(
                    *(
                        Patch(kind, name, wrap, missing=_nothing if name == "__del__" else None)
                        for name, wrap in self._wraps(kind).items()
                        if getattr(kind, name, None) not in self._wrappers  # of a base that is watched itself
                    )
                )
                patches.on()
                self._patches[kind] = patches
        return True

    def _stand_in(self, factory: Any) -> type | None:
        if not isinstance(factory, type) or _is_changeable(factory):
            return None
        if factory not in self._stand_ins:
            with self._lock:
                if factory not in self._stand_ins:
                    self._stand_ins[factory] = self._make_stand_in(factory)
        return self._stand_ins[factory]

    def _make_stand_in(self, kind: type) -> type:
        methods = {name: wrap(getattr(kind, name, _nothing)) for name, wrap in self._wraps(kind).items()}
        described = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        same = {"__slots__": (), "__class__": property(lambda _: kind)}
        return type(kind.__name__, (kind,), {**methods, **described, **same})

    def _wraps(self, kind: Any) -> dict[str, Wrap]:
        wraps = self._methods.of_connection if issubclass(kind, self._connection) else self._methods.of_cursor
        return {
            name: self._remembering(wrap) for name, wrap in wraps.items() if name == "__del__" or hasattr(kind, name)
        }

    def _remembering(self, wrap: Wrap) -> Wrap:
        def wrapped(original: Method) -> Method:
            wrapper = wrap(original)
            self._wrappers.add(wrapper)
            return wrapper

        return wrapped


def _is_changeable(kind: type) -> bool:
    return bool(kind.__flags__ & _MADE_BY_PYTHON) and not kind.__flags__ & _IMMUTABLE


def _nothing(_: Any) -> None:
    """Stand for a finalizer where a class has none."""
