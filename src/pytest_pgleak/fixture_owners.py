"""Fixtures and lifespans as owners: which are alive, which have ended, which a checked test has used."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.frames import RawStack
from pytest_pgleak.guardians import is_held, lifespan_functions, opened_inside, shuts_down
from pytest_pgleak.isolation import code_of, nested_codes, rolls_back
from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.xunit_style import class_attributes, xunit_functions, xunit_teardown

if TYPE_CHECKING:
    import pytest

_CONNECT_TO_NOTHING: Final = frozenset(
    f"_pytest.{name}" for name in ("tmpdir", "monkeypatch", "capture", "logging", "recwarn")
)
"""Modules whose fixtures run nothing of the user's."""
_GENERATORS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class FixtureOwners:
    """Follows pytest's fixtures.

    Args:
        ownership: The stack to push owners on.
        tick: Returns a number for the moment at which a fixture begins …
        release: … which is given back when its teardown begins.
    """

    def __init__(
        self,
        ownership: Ownership,
        tick: Callable[[], int] = lambda: 0,
        release: Callable[[int], None] = lambda _since: None,
    ) -> None:
        self._ownership = ownership
        self._tick = tick
        self._release = release
        self._began: dict[int, int] = {}
        self._alive: dict[int, Owner] = {}
        self._functions: dict[int, Callable[..., Any]] = {}
        self._watched: set[int] = set()
        self._definitions: dict[int, pytest.FixtureDef[Any]] = {}
        self._session: pytest.Session | None = None
        self.teardown_begins: Callable[[Owner], None] = lambda _owner: None
        """Told when the finalizers of a fixture are about to run."""
        self.changes = 0
        """Grows with whatever may have opened something beside checked test functions: fixtures, unchecked tests."""
        self.judged_at = -1
        """What `changes` was when a call phase was judged last."""
        self.watching = False
        """Whether the running test is checked: then every fixture that is set up for it is judged when it ends."""

    def begin(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Owner:
        """A fixture is being set up."""
        self._note_change(fixturedef)
        self._session = request.session
        nodeid = request.node.nodeid
        owner = self._ownership.begin("fixture", nodeid, fixturedef.argname, fixturedef.scope)
        self._alive[id(fixturedef)] = owner
        self._began[owner.serial] = self._tick()
        self._functions[owner.serial] = fixturedef.func
        self._definitions[owner.serial] = fixturedef
        if self.watching:
            self._watched.add(owner.serial)
        self._ownership.push(owner)
        return owner

    def set_up(self, fixturedef: pytest.FixtureDef[Any], owner: Owner) -> None:
        """A fixture has been set up. What its own teardown opens is still its doing."""
        self._ownership.pop(owner)
        self._ownership.background.adopt(owner)
        # Finalizers run last in, first out: this one right before the code after the fixture's `yield`.
        fixturedef.addfinalizer(functools.partial(self._begin_teardown, owner))

    def _begin_teardown(self, owner: Owner) -> None:
        self.teardown_begins(owner)
        self._ownership.push(owner)
        self._release(self._began.get(owner.serial, 0))

    def finish(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """A fixture's finalizers have run. pytest may say so more than once."""
        owner = self._alive.pop(id(fixturedef), None)
        if owner is not None:
            self._note_change(fixturedef)
            self._began.pop(owner.serial, None)
            self._ownership.pop(owner)
            self._ownership.end(owner)

    def _note_change(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        # Not all that is pytest's: `setup_method` is the user's code in a function of `_pytest.python`.
        if getattr(fixturedef.func, "__module__", "") not in _CONNECT_TO_NOTHING:
            self.changes += 1

    def watch(self, item: pytest.Item) -> None:
        """A checked test is about to use its fixtures: from now on they are judged when they end."""
        for fixturedef in _fixturedefs(item):
            if (owner := self._alive.get(id(fixturedef))) is not None:
                self._watched.add(owner.serial)

    def is_part_of(self, item: pytest.Item, call: Owner, owner: Owner) -> bool:
        """Tell whether what an owner opens is part of what a test has open, for ``max_connections``.

        That are the test, what began while it runs, the fixtures that it uses by now, their lifespans, and the session.
        A fixture that is only still alive is not.

        Args:
            item: The test.
            call: Its call phase.
            owner: The owner.
        """
        if owner.serial >= call.serial or owner.outlives_tests:
            return True
        active = getattr(getattr(item, "_request", None), "_fixture_defs", {})  # also those that were asked for by name
        alive = (self._alive.get(id(each)) for each in (*_fixturedefs(item), *active.values()))
        used = {each.serial for each in alive if each is not None}
        return owner.serial in used or owner.started_by in used

    def watch_owner(self, owner: Owner) -> None:
        """Judge an owner when it ends."""
        self._watched.add(owner.serial)

    def is_watched(self, owner: Owner) -> bool:
        """Tell whether a checked test has used a fixture, or the fixture that ran a lifespan."""
        return owner.serial in self._watched or (owner.what == "lifespan" and owner.started_by in self._watched)

    @property
    def living(self) -> frozenset[int]:
        """Serials of the fixtures that have not ended. May be asked from any thread."""
        return frozenset(owner.serial for owner in list(self._alive.values()))

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
        self._definitions.pop(owner.serial, None)
        self._ownership.forget_lifespan(owner)

    def guardian_of(
        self,
        target: object,
        stack: RawStack,
        item: pytest.Item | None,
        around: Sequence[object] = (),
        *,
        is_lent: bool = False,
    ) -> Owner | None:
        """Find who, of those that are still alive, is going to close something that a test has opened.

        Args:
            target: The connection or the pool.
            stack: Where it was opened.
            item: The test; None where it runs in another process.
            around: What holds it without being able to close it.
            is_lent: Whether it is a pool's connection, checked out. A fixture that has used its pool before the test
                may still have that connection in a variable, long since given back.

        Returns:
            A fixture or a lifespan; the test's own owner is `item`'s business.
        """
        for owner in self._alive.values():
            definition = self._definitions[owner.serial]
            roots = [*(definition.cached_result or ())[:1], *definition._finalizers]  # noqa: SLF001 - no public way
            function = self._functions[owner.serial]
            if getattr(function, "__module__", "").startswith("pytest_pgleak."):
                continue  # the plugin's own clients hold the whole application
            own = code_of(function) if is_lent else None
            if _has_teardown(definition) and (opened_inside(stack, function) or is_held(target, roots, around, own)):
                return owner
            if (teardown := xunit_teardown(owner, item)) is not None:
                instance = getattr(item, "instance", None)
                is_modules = owner.scope == "module" or instance is None
                held = _globals_named(teardown) if is_modules else [instance]
                if owner.scope == "class":
                    held += class_attributes(item)
                if shuts_down([teardown]) and is_held(target, held, around):
                    return owner
        for owner in self._ownership.lifespans:
            app = self._ownership.app_of(owner)
            if app is not None and shuts_down(lifespan_functions(app)) and is_held(target, [vars(app.state)], around):
                return owner
        return None

    def rolls_back_for(self, opener: Owner, item: pytest.Item) -> bool:
        """Tell whether the fixture that owns a connection, or an xunit teardown, ends its transactions on purpose."""
        return self.test_function(opener, rolls_back) or any(rolls_back(each) for each in xunit_functions(opener, item))

    def test_function(self, owner: Owner, test: Callable[[Callable[..., Any]], bool]) -> bool:
        """Apply a test to the function of a fixture; False for owners that are no fixture."""
        function = self._functions.get(owner.serial)
        return function is not None and test(function)

    def codes_of(self, owner: Owner) -> set[CodeType]:
        """Return the code of a fixture's function and of those inside it."""
        code = code_of(self._functions.get(owner.serial))
        return set() if code is None else nested_codes(code)

    def any_used_with(self, owner: Owner, test: Callable[[Callable[..., Any]], bool]) -> bool:
        """Tell whether any fixture of the tests that use a fixture passes a test."""
        definition = self._definitions.get(owner.serial)
        items = getattr(self._session, "items", ())
        together = (definitions for item in items if definition in (definitions := _fixturedefs(item)))
        return any(test(function) for function in {each.func for definitions in together for each in definitions})

    def any_function_scoped(self, item: pytest.Item, test: Callable[[Callable[..., Any]], bool]) -> bool:
        """Tell whether any function-scoped fixture of a test that has a teardown passes a test."""
        return any(
            definition.scope == "function" and _has_teardown(definition) and test(definition.func)
            # The living ones as well: a test may ask for a fixture with `request.getfixturevalue()`.
            for definition in (*_fixturedefs(item), *(self._definitions[each.serial] for each in self._alive.values()))
        )

    def any_wider(self, item: pytest.Item, test: Callable[[Callable[..., Any]], bool]) -> bool:
        """Tell whether any fixture that a test asks for, of a wider scope and with a teardown, passes a test."""
        return any(
            definition.scope != "function" and _has_teardown(definition) and test(definition.func)
            for definition in _fixturedefs(item)
        )


def _fixturedefs(item: pytest.Item) -> list[pytest.FixtureDef[Any]]:
    # pytest offers no public way from an item to its fixture definitions; `_fixtureinfo` has been there since 2.x and
    # is what pytest-asyncio and AnyIO read. Doctests and other items have none.
    names = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    # A copy, for it may be asked for in another thread while the test asks for one more fixture by name.
    return [fixturedef for fixturedefs in list(names.values()) for fixturedef in fixturedefs]


def _has_teardown(definition: pytest.FixtureDef[Any]) -> bool:
    # A fixture without a `yield` and without a finalizer of its own cannot close anything.
    code = code_of(definition.func)
    is_generator = code is not None and bool(code.co_flags & _GENERATORS)
    return is_generator or any(not _is_pytests(finalizer) for finalizer in definition._finalizers)  # noqa: SLF001


def _is_pytests(finalizer: Any) -> bool:
    while isinstance(finalizer, functools.partial):
        finalizer = finalizer.func
    return str(getattr(finalizer, "__module__", "")).partition(".")[0] in ("_pytest", "pytest_pgleak")


def _globals_named(function: Callable[..., Any]) -> list[object]:
    code, known = code_of(function), getattr(function, "__globals__", {})
    return [known[name] for name in (code.co_names if code is not None else ()) if name in known]
