"""A patch as a value: on, off, any number of times, and the original back in its place."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, Protocol

_ABSENT: Final = object()


class Switch(Protocol):
    """Something that is put in place and taken away again, any number of times."""

    def on(self) -> None:
        """Put it in place; raises `AttributeError` where the library looks different from those that are known."""

    def off(self) -> None:
        """Take it away."""


class Patch:
    """Replaces one attribute of a class, or of a module, by a wrapper of it.

    Args:
        target: The class or module.
        name: The attribute; it may be inherited.
        wrap: Called with the original function, returns the function to put in its place.
        missing: Stands for the original where there is none; without it there has to be one.
    """

    def __init__(
        self,
        target: type | ModuleType,
        name: str,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
        missing: Callable[..., Any] | None = None,
    ) -> None:
        self.target = target
        self.name = name
        self._wrap = wrap
        self._missing = missing
        self._own: Any = _ABSENT
        self._wrapper: Any = None

    def __repr__(self) -> str:
        target = self.target
        place = f"{target.__module__}.{target.__qualname__}" if isinstance(target, type) else target.__name__
        return f"<Patch {place}.{self.name} {'on' if self.is_on else 'off'}>"

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
        known = () if self._missing is None else (self._missing,)
        original = getattr(self.target, self.name, *known)
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
    """Several patches, or other switches, that are all on or all off."""

    def __init__(self, *patches: Switch) -> None:
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
