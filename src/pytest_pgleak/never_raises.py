"""Keeps a fault of the plugin out of the user's code."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def never_raises(method: Callable[..., None]) -> Callable[..., None]:
    """Have a method swallow what goes wrong in it; it is reported as the plugin's own fault.

    Args:
        method: A method of a class that has a method ``fault``, which takes note of where inside an ``except`` block.
    """

    @wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, the application must not notice
            self.fault(f"tracking ({method.__name__})")

    return guarded
