"""Numbers for living objects, which it knows by their ``id()`` as long as they live and holds none of."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from pytest_pgleak.events import ConnectionFacts

_REMEMBERED_DEAD: Final = 64

Gone = Callable[[int, weakref.ref[Any]], object]
"""Called when an object is gone, with what it was known by: the arguments for `Serials.let_go`."""


class Serials:
    """Gives connections and pools their numbers, and keeps what is known of each connection."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        # By id(); the weak reference guards against an id that is used again.
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.facts: dict[int, ConnectionFacts] = {}
        """What is known of each connection, by its number."""
        # In a reference cycle the weak reference is cleared before __del__ runs, otherwise after it (CPython,
        # InternalDocs/garbage_collector.md): who comes second finds here what the first one knew.
        self._dying: dict[int, tuple[int, ConnectionFacts | None]] = {}
        self._finalized: set[int] = set()
        # A finalizer may bring back what the collector has come for: a generator gives its connection to the pool.
        self._dead: dict[int, tuple[int, ConnectionFacts | None]] = {}

    def __contains__(self, living: object) -> bool:
        return id(living) in self._known or id(living) in self._dying

    def of(self, living: Any) -> int | None:
        """Return the number of an object; None where it was never given one."""
        known = self._known.get(id(living))
        return known[1] if known is not None and known[0]() is living else None

    def give(self, living: Any, gone: Gone) -> tuple[int, weakref.ref[Any]]:
        """Give an object a number.

        Args:
            living: The object.
            gone: Called when it is gone.

        Returns:
            The number, and the weak reference to it.
        """
        serial, identity = next(self._numbers), id(living)
        reference = weakref.ref(living, lambda dead: gone(identity, dead))
        self._known[identity] = (reference, serial)
        self._dying.pop(identity, None)
        self._dead.pop(identity, None)
        return serial, reference

    def give_once(self, living: Any, gone: Gone) -> tuple[int, weakref.ref[Any]]:
        """Return the number that an object has; give it one where it has none."""
        known = self._known.get(id(living))
        if known is None or known[0]() is not living:
            return self.give(living, gone)
        return known[1], known[0]

    def of_closed(self, living: Any) -> int | None:
        """Return the number of a connection that may be in the middle of being freed."""
        serial = self.of(living)
        return serial if serial is not None else self._dying.get(id(living), (None, None))[0]

    def of_finalizing(self, living: Any) -> tuple[int | None, ConnectionFacts | None]:
        """Return number and facts of a connection whose ``__del__`` runs."""
        if (serial := self.of(living)) is not None:
            self._finalized.add(id(living))
            return serial, self.facts.get(serial)
        if (dying := self._dying.pop(id(living), None)) is None:
            return None, None
        while len(self._dead) >= _REMEMBERED_DEAD:
            del self._dead[next(iter(self._dead))]
        self._dead[id(living)] = dying
        return dying

    def give_again(self, living: Any, gone: Gone) -> tuple[int, ConnectionFacts] | None:
        """Give a connection its number back, which had gone in a reference cycle and turns out to live on.

        Args:
            living: The connection.
            gone: Called when it is gone.

        Returns:
            The number, and what is known of it; None for any other connection.
        """
        identity = id(living)
        serial, facts = self._dying.get(identity) or self._dead.get(identity) or (None, None)
        if serial is None or facts is None or facts.class_name != type(living).__name__:
            return None
        del (self._dying if identity in self._dying else self._dead)[identity]
        reference = weakref.ref(living, lambda dead: gone(identity, dead))
        self._known[identity] = (reference, serial)
        self.facts[serial] = replace(facts, reference=reference)
        return serial, self.facts[serial]

    def let_go(self, identity: int, reference: weakref.ref[Any]) -> int | None:
        """Forget an object that is gone.

        Args:
            identity: Its ``id()``.
            reference: The weak reference to it, which is dead.

        Returns:
            The number that it had; None where another object has its ``id()`` by now.
        """
        known = self._known.get(identity)
        if known is None or known[0] is not reference:
            return None
        del self._known[identity]
        facts = self.facts.pop(known[1], None)
        if identity in self._finalized:
            self._finalized.discard(identity)
        elif facts is not None:
            self._dying[identity] = (known[1], facts)
        return known[1]
