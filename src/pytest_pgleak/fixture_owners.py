"""Fixtures and lifespans as owners: which are alive, which have ended, which a checked test has used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership


class FixtureOwners:
    """Follows pytest's fixtures.

    Args:
        ownership: The stack to push owners on.
    """

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._alive: dict[int, Owner] = {}
        self._functions: dict[int, Callable[..., Any]] = {}
        self._watched: set[int] = set()

    def begin(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Owner:
        """A fixture is being set up."""
        nodeid = request.node.nodeid
        owner = self._ownership.begin("fixture", nodeid, fixturedef.argname, fixturedef.scope)
        self._alive[id(fixturedef)] = owner
        self._functions[owner.serial] = fixturedef.func
        self._ownership.push(owner)
        return owner

    def set_up(self, fixturedef: pytest.FixtureDef[Any], owner: Owner) -> None:
        """A fixture has been set up. What its own teardown opens is still its doing."""
        self._ownership.pop(owner)
        # Finalizers run last in, first out: this one right before the code after the fixture's `yield`.
        fixturedef.addfinalizer(lambda: self._ownership.push(owner))

    def finish(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """A fixture's finalizers have run. pytest may say so more than once."""
        owner = self._alive.pop(id(fixturedef), None)
        if owner is not None:
            self._ownership.pop(owner)
            self._ownership.end(owner)

    def watch(self, item: pytest.Item) -> None:
        """A checked test is about to use its fixtures: from now on they are judged when they end."""
        for fixturedef in _fixturedefs(item):
            if (owner := self._alive.get(id(fixturedef))) is not None:
                self._watched.add(owner.serial)

    def watch_owner(self, owner: Owner) -> None:
        """Judge an owner when it ends."""
        self._watched.add(owner.serial)

    def is_watched(self, owner: Owner) -> bool:
        """Tell whether a checked test has used a fixture, or the fixture that ran a lifespan."""
        return owner.serial in self._watched or (owner.what == "lifespan" and owner.started_by in self._watched)

    def watched_serials(self) -> frozenset[int]:
        """Return the serials of all owners that are judged, living and ended."""
        lifespans = {owner.serial for owner in self._ownership.lifespans if self.is_watched(owner)}
        return frozenset(self._watched | lifespans)

    def ended_with(self, call: Owner) -> frozenset[int]:
        """Return the serials of what ends with a call phase: itself, and the lifespans that it ran."""
        lifespans = (owner.serial for owner in self._ownership.lifespans if owner.started_by == call.serial)
        return frozenset({call.serial, *lifespans})

    def forget(self, owner: Owner) -> None:
        """Let go of an owner that has ended and been judged."""
        self._watched.discard(owner.serial)
        self._functions.pop(owner.serial, None)
        self._ownership.forget_lifespan(owner)

    def test_function(self, owner: Owner, test: Callable[[Callable[..., Any]], bool]) -> bool:
        """Apply a test to the function of a fixture; False for owners that are no fixture."""
        function = self._functions.get(owner.serial)
        return function is not None and test(function)

    def any_function_scoped(self, item: pytest.Item, test: Callable[[Callable[..., Any]], bool]) -> bool:
        """Tell whether any function-scoped fixture of a test passes a test."""
        return any(fixturedef.scope == "function" and test(fixturedef.func) for fixturedef in _fixturedefs(item))


def _fixturedefs(item: pytest.Item) -> list[pytest.FixtureDef[Any]]:
    # pytest offers no public way from an item to its fixture definitions; `_fixtureinfo` has been there since 2.x and
    # is what pytest-asyncio and AnyIO read. Doctests and other items have none.
    names = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return [fixturedef for fixturedefs in names.values() for fixturedef in fixturedefs]
