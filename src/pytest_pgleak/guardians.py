"""What a test opens and somebody else is going to close: a factory fixture, an ``ExitStack``, a lazy database.

Asked only for things that are still open when the test is over. The evidence is in memory: whoever will close a
connection has to hold it. A fixture that is suspended at its ``yield`` holds it in a local variable, in its value or in
a finalizer; an application in its ``state``, with a lifespan that has something to close.
"""

from __future__ import annotations

import gc
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.frames import RawStack
from pytest_pgleak.isolation import code_of, mentions, nested_codes

if TYPE_CHECKING:
    import pytest

_MOST_OBJECTS: Final = 50_000
_CLOSING: Final = ("close", "dispose", "putconn", "terminate", "exit", "shutdown", "stop", "disconnect")
# Frameworks hold everything, and an event loop holds every task; theirs is looked at in its own way, or not at all.
_CLOSED_BOOKS: Final = frozenset(
    (
        *("_pytest", "pytest", "pluggy", "pytest_pgleak", "pytest_asyncio", "starlette", "fastapi", "httpx", "httpx2"),
        *("asyncio", "_asyncio", "uvloop", "anyio", "concurrent", "threading", "_thread", "selectors"),
        *("contextvars", "_contextvars"),
    )
)
# Of SQLAlchemy only what may hold a connection: all else is mappings and statements, and there are very many of them.
_SQLALCHEMY: Final = (
    *("sqlalchemy.engine.base", "sqlalchemy.engine.cursor", "sqlalchemy.engine.result", "sqlalchemy.pool"),
    *("sqlalchemy.orm.session", "sqlalchemy.orm.scoping", "sqlalchemy.util._collections", "sqlalchemy.ext.asyncio"),
    *("sqlalchemy.connectors.asyncio", "sqlalchemy.dialects.postgresql"),
)
_FRAMES: Final = {
    types.GeneratorType: "gi_frame",
    types.AsyncGeneratorType: "ag_frame",
    types.CoroutineType: "cr_frame",
}
_CLOSED_BOOKS_TYPES: Final = (type, types.ModuleType, types.CodeType, types.TracebackType, str, bytes, int, float)


def is_held(
    target: object,
    roots: Iterable[object],
    around: Iterable[object] = (),
    not_in: types.CodeType | None = None,
) -> bool:
    """Tell whether an object can be reached from others.

    Args:
        target: The object.
        roots: Where to start: values, finalizers, suspended generators.
        around: What does not count as a way.
        not_in: A suspended function. That one of its variables is the object itself does not count.
    """
    seen = {id(each) for each in around}
    queue = deque(roots)
    while queue and len(seen) < _MOST_OBJECTS:
        current = queue.popleft()
        if current is target:
            return True
        if id(current) in seen or issubclass(type(current), _CLOSED_BOOKS_TYPES) or is_frameworks(current):
            continue
        seen.add(id(current))
        frame = _frame_of(current) if not_in is not None else None
        is_aside = frame is not None and frame.f_code is not_in
        queue.extend(each for each in _held_by(current) if not (is_aside and each is target))
    return False


def opened_inside(stack: RawStack, function: Callable[..., Any]) -> bool:
    """Tell whether a function inside a fixture did it, as a factory fixture's does."""
    code = code_of(function)
    if code is None:
        return False
    inner = nested_codes(code) - {code}
    return any(frame_code in inner for frame_code, _ in stack)


def shuts_down(functions: Iterable[Callable[..., Any]]) -> bool:
    """Tell whether a lifespan or a teardown function has something in it that closes."""
    return any(mentions(function, _CLOSING) for function in functions)


def is_closing(name: str) -> bool:
    """Tell whether a method of this name closes."""
    return any(word in name.lower() for word in _CLOSING)


def lifespan_functions(app: Any) -> list[Callable[..., Any]]:
    """Return the user's functions that run when an application of Starlette's is shut down."""
    router = getattr(app, "router", None)
    found: list[Callable[..., Any]] = list(getattr(router, "on_shutdown", None) or ())
    pending = [getattr(router, "lifespan_context", None)]
    while pending and len(found) < 50:
        function = pending.pop()
        function = getattr(function, "__wrapped__", function)
        if isinstance(function, types.FunctionType):
            found.append(function)
            pending.extend(_cells(function))
    return found


def pending_finalizers(item: pytest.Item) -> list[object]:
    """Return the finalizers that a test has registered itself, with ``request.addfinalizer``."""
    # pytest keeps them in its set-up state; there is no public way to look.
    stack = getattr(getattr(item.session, "_setupstate", None), "stack", {})
    finalizers, *_ = stack.get(item, ([],))
    return [finalizer for finalizer in finalizers if not _is_frameworks_function(finalizer)]


def _is_frameworks_function(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] in _CLOSED_BOOKS or (owner is not None and is_frameworks(owner))


def is_frameworks(current: object) -> bool:
    """Tell whether an object is of a class that holds everything: a framework's, an event loop's, a thread's."""
    module = type(current).__module__
    if not isinstance(module, str) or issubclass(type(current), threading.local):
        return False
    package = module.partition(".")[0]
    return package in _CLOSED_BOOKS or (package == "sqlalchemy" and not module.startswith(_SQLALCHEMY))


def _held_by(current: Any) -> Iterable[object]:
    # By its type, and no attribute that the type does not have: a mock would make one, a lazy proxy would wake up.
    kind = type(current)
    if issubclass(kind, types.FunctionType):
        # Not its globals: through them everything can be reached.
        return [*_cells(current), *(current.__defaults__ or ())]
    if issubclass(kind, types.MethodType):
        return (current.__self__, current.__func__)
    if issubclass(kind, partial):
        return (current.func, *current.args, *current.keywords.values())
    if issubclass(kind, threading.local):
        return list(vars(current).values())  # this thread's, as of a ``scoped_session``
    if kind in _FRAMES:
        frame = _frame_of(current)
        return list(frame.f_locals.values()) if frame is not None else ()
    if issubclass(kind, types.FrameType):
        return ()
    if issubclass(kind, dict):
        # Not by its referents: the dictionary of an instance with inline attributes shows none (CPython 3.13).
        return list(dict.values(current))
    return gc.get_referents(current)


def _frame_of(current: Any) -> types.FrameType | None:
    """Return the frame of a suspended generator or coroutine."""
    name = _FRAMES.get(type(current))
    frame: types.FrameType | None = None if name is None else getattr(current, name)
    return frame


def _cells(function: types.FunctionType) -> list[object]:
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return contents
