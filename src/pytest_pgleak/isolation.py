"""Which fixtures leave a transaction open on purpose, to roll it back when the test is over.

``transaction-left-open`` has to tell a forgotten commit from the commonest way of isolating tests: a fixture that
hands out a connection, lets the test write without a commit, and calls ``rollback()`` after its ``yield``. The evidence
is in the fixture's own code.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from pytest_pgleak.frames import is_user_code


def rolls_back(function: Callable[..., Any]) -> bool:
    """Tell whether a fixture's own code mentions a rollback, as a call or as ``force_rollback=True``."""
    code = _code(function)
    return code is not None and any("rollback" in name.lower() for name in _names(code))


def is_installed(function: Callable[..., Any]) -> bool:
    """Tell whether a fixture comes from an installed package.

    What such a fixture does with its connection is its design (pytest-postgresql's ``postgresql`` closes it with
    whatever the test left open), not the user's mistake.
    """
    code = _code(function)
    return code is not None and not is_user_code(code.co_filename)


def _code(function: Callable[..., Any]) -> CodeType | None:
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif isinstance(constant, tuple):
            # Keyword names of a call are one tuple of strings.
            names.update(part for part in constant if isinstance(part, str))
    return names
