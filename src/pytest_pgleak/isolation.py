"""Which fixtures leave a transaction open on purpose, to roll it back when the test is over.

``transaction-left-open`` has to tell a forgotten commit from the commonest way of isolating tests: a fixture that
hands out a connection, lets the test write without a commit, and calls ``rollback()`` after its ``yield``. The evidence
is in the fixture's own code, or in what it calls.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any, Final

from pytest_pgleak.frames import is_user_code

_APPLICATIONS: Final = frozenset(("FastAPI", "Starlette"))
_BEGINS: Final = re.compile(r"\s*(begin|start\s+transaction|savepoint)\b", re.IGNORECASE)
_FINISHES: Final = re.compile(r"\b(commit|rollback)\s+prepared\b", re.IGNORECASE)


def rolls_back(function: Callable[..., Any]) -> bool:
    """Tell whether a function mentions a rollback: as a call, as ``force_rollback=True``, as SQL.

    What it calls by a global name counts as well, functions and methods, one level deep.
    """
    return any(_mentions_rollback(each) for each in (function, *_helpers(function)))


def finishes_prepared(function: Callable[..., Any]) -> bool:
    """Tell whether a function commits or rolls back prepared transactions: by a method, or by SQL.

    What it calls by a global name counts as well, as for `rolls_back`.
    """
    return any(_mentions_prepared(each) for each in (function, *_helpers(function)))


def keeps_transaction(function: Callable[..., Any]) -> bool:
    """Tell whether a function says that it keeps a transaction open: ``conn.transaction()``, or BEGIN in SQL."""
    code = code_of(function)
    texts = (text for inner in (nested_codes(code) if code is not None else ()) for text in inner.co_consts)
    begins = any(isinstance(text, str) and _BEGINS.match(text) for text in texts)
    return begins or mentions(function, ("transaction", "savepoint", "begin"))


def is_installed(function: Callable[..., Any]) -> bool:
    """Tell whether a fixture comes from an installed package.

    What such a fixture does with its connection is its design (pytest-postgresql's ``postgresql`` closes it with
    whatever the test left open), not the user's mistake.
    """
    code = code_of(function)
    return code is not None and not is_user_code(code.co_filename)


def is_own(function: Callable[..., Any]) -> bool:
    """Tell whether a fixture is the user's own."""
    return not is_installed(function)


def mentions(function: Callable[..., Any], words: Iterable[str]) -> bool:
    """Tell whether any name in a function's code contains one of some words, in lower case."""
    code = code_of(function)
    codes = nested_codes(code) if code is not None else ()
    return any(word in name.lower() for inner in codes for name in _names(inner) for word in words)


def code_of(function: Any) -> CodeType | None:
    """Return the code of a function below its decorators; None for what is no function."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return code if isinstance(code, CodeType) else None


def nested_codes(code: CodeType) -> set[CodeType]:
    """Return a code object and those of all functions defined inside it."""
    found = {code}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= nested_codes(constant)
    return found


def _mentions_rollback(function: Callable[..., Any]) -> bool:
    if (code := code_of(function)) is None:
        return False
    # A fixture may contain a whole application, whose own rollbacks say nothing of the fixture.
    codes = {code} if _APPLICATIONS & set(code.co_names) else nested_codes(code)
    return any(
        any("rollback" in name.lower() for name in _names(inner))
        or any(text.strip().lower().startswith("rollback") for text in inner.co_consts if isinstance(text, str))
        for inner in codes
    )


def _mentions_prepared(function: Callable[..., Any]) -> bool:
    code = code_of(function)
    return any(
        any(name.startswith(("tpc_commit", "tpc_rollback")) for name in inner.co_names)
        or any(_FINISHES.search(text) for text in inner.co_consts if isinstance(text, str))
        for inner in (nested_codes(code) if code is not None else ())
    )


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        # Keyword names of a call are one tuple of strings.
        if isinstance(constant, tuple):
            names.update(part for part in constant if isinstance(part, str))
    return names


def _helpers(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    code = code_of(function)
    known = getattr(inspect.unwrap(function), "__globals__", {}) if code is not None else {}
    helpers: list[Callable[..., Any]] = []
    for name in code.co_names if code is not None else ():
        helper = known.get(name)
        if isinstance(helper, type):
            helpers.extend(method for method in vars(helper).values() if isinstance(method, FunctionType))
        elif callable(helper) and not is_installed(helper):  # SQLAlchemy's `create_engine` rolls back, but for itself
            helpers.append(helper)
    return helpers
