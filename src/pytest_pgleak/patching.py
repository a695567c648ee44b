"""A patch as a value: on, off, any number of times, and the original back in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_ABSENT: Final = object()


class Patch:
    """Replaces one attribute of a class by a wrapper of it.

    Args:
        target: The class.
        name: The attribute; it may be inherited.
        wrap: Called with the original function, returns the function to put in its place.
    """

    def __init__(self, target: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.target = target
        self.name = name
        self._wrap = wrap
        self._own: Any = _ABSENT
        self._wrapper: Any = None

    def __repr__(self) -> str:
        return (
            f"<Patch {self.target.__module__}.{self.target.__qualname__}.{self.name} {'on' if self.is_on else 'off'}>"
        )

    @property
    def is_on(self) -> bool:
        """Whether the wrapper is in place."""
        return self._wrapper is not None

    def on(self) -> None:
        """Put the wrapper in place.

        Raises:
            AttributeError: The class has no such attribute.
        """
        if self.is_on:
            return
        original = getattr(self.target, self.name)
        self._own = vars(self.target).get(self.name, _ABSENT)
        self._wrapper = self._wrap(original)
        setattr(self.target, self.name, self._wrapper)

    def off(self) -> None:
        """Put the original back, unless somebody else has replaced the wrapper meanwhile."""
        if not self.is_on:
            return
        if vars(self.target).get(self.name) is self._wrapper:
            if self._own is _ABSENT:
                delattr(self.target, self.name)
            else:
                setattr(self.target, self.name, self._own)
        self._wrapper = None
        self._own = _ABSENT


class Patches:
    """Several patches that are all on or all off."""

    def __init__(self, *patches: Patch) -> None:
        self._patches = patches

    def on(self) -> None:
        """Put all wrappers in place; where one cannot be, none is.

        Raises:
            AttributeError: One of the classes has no such attribute.
        """
        try:
            for patch in self._patches:
                patch.on()
        except BaseException:
            self.off()
            raise

    def off(self) -> None:
        """Put all originals back, the last patch first."""
        for patch in reversed(self._patches):
            patch.off()
