"""Set-ups and teardowns of xunit style and of unittest's, which pytest runs as fixtures of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.owners import Owner

if TYPE_CHECKING:
    import pytest

_OF_CLASSES: Final = (
    *("setup_class", "teardown_class", "setUpClass", "tearDownClass", "setup_method", "teardown_method"),
    *("setUp", "tearDown", "asyncSetUp", "asyncTearDown"),
)
_OF_MODULES: Final = ("setup_module", "teardown_module", "setUpModule", "tearDownModule")
_OF_FUNCTIONS: Final = ("setup_function", "teardown_function")


def is_xunit(owner: Owner) -> bool:
    """Tell whether a fixture is pytest's own, for a set-up of xunit style or of unittest's."""
    return owner.teardown is not None


def xunit_teardown(owner: Owner, item: pytest.Item | None) -> Callable[..., Any] | None:
    """Return the user's teardown function behind one of pytest's fixtures for such set-ups."""
    if not is_xunit(owner):
        return None
    places = {
        "module": (getattr(item, "module", None), ("teardown_module", "tearDownModule")),
        "class": (getattr(item, "cls", None), ("teardown_class", "tearDownClass")),
    }
    if owner.scope == "function":
        return teardown_of_each(item)
    place, names = places.get(owner.scope or "", (None, ()))
    found = (getattr(place, teardown, None) for teardown in names)
    return next((teardown for teardown in found if teardown is not None), None)


def teardown_of_each(item: pytest.Item | None) -> Callable[..., Any] | None:
    """Return the user's teardown function of xunit style that runs after a test; unittest's run within the test."""
    if (instance := getattr(item, "instance", None)) is not None:
        return getattr(instance, "teardown_method", None)
    return getattr(getattr(item, "module", None), "teardown_function", None)


def xunit_functions(opener: Owner, item: pytest.Item) -> list[Callable[..., Any]]:
    """Return the functions that may end what a test did on a connection; those of base classes included.

    A set-up counts as well as a teardown, for it may register what is done in the end: ``cls.addClassCleanup(…)``.

    Args:
        opener: Who has opened the connection. Those of a module count for the connection that they have opened.
        item: The test.
    """
    bases = getattr(getattr(item, "cls", None), "__mro__", ())
    of_classes = (vars(base).get(name) for base in bases for name in _OF_CLASSES)
    names = [*(_OF_MODULES if is_xunit(opener) and opener.scope == "module" else ()), *(_OF_FUNCTIONS * (not bases))]
    of_module = (getattr(getattr(item, "module", None), name, None) for name in names)
    found = (getattr(each, "__func__", each) for each in (*of_classes, *of_module))
    return [each for each in found if callable(each)]


def class_attributes(item: pytest.Item | None) -> list[object]:
    """Return what the class of a test, and its base classes, keep in their attributes."""
    return [value for base in getattr(getattr(item, "cls", None), "__mro__", ()) for value in list(vars(base).values())]
