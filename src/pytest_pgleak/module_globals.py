"""Which global variable of the user's modules holds an object, if any does: what lives as long as the process.

A name keeps one thing: a variable, an attribute, a class attribute, a closure, the cache of ``functools.lru_cache``.
A list, a set or a deque keeps any number, and what a program appends to one and forgets is the commonest leak there is;
so nothing is looked for in those. A dictionary may be either. Pools in one are a cache, by name, by tenant or by event
loop. A connection in one is, as long as it is the only one of its class there, or if its key is a thread that lives.

A ``threading.local`` keeps one thing for each thread that lives, on purpose. A ``ContextVar`` does so for each context:
outside of event loops that is the thread's own, which nobody leaves; a task's or a request's ends with it. What is in a
``queue.Queue`` was put there to be taken out again: a pool that somebody has written himself.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import queue
import sys
import threading
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from pytest_pgleak.frames import RawStack, is_user_code, user_frames
from pytest_pgleak.guardians import is_frameworks

_MOST_OBJECTS: Final = 20_000
_GROWING: Final = (list, set, frozenset, deque)
_SUSPENDED: Final = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType)
_ATOMS: Final = (str, bytes, int, float, complex, type(None), types.ModuleType, types.CodeType, types.TracebackType)
_DESCRIPTORS: Final = (types.GetSetDescriptorType, types.MemberDescriptorType)
_CACHE: Final = type(functools.lru_cache(lambda: None))
_QUEUES: Final = (queue.Queue, queue.SimpleQueue)

Path = tuple[Any, str]
"""How an object was reached: the path of what holds it, and the last step, in Python's own notation."""

_Found = tuple[object, Path]


def variable_holding(
    target: object, stack: RawStack, *, is_pool: bool, is_lifespans: Callable[[Any], bool] = lambda _app: False
) -> str | None:
    """Find the global variable through which an object can be reached.

    Args:
        target: The connection or the pool.
        stack: Where it was opened: the modules of these frames are looked at first.
        is_pool: Whether it is a pool, of which there may be many in one dictionary.
        is_lifespans: Tells of an application of Starlette's whether a lifespan answers for its ``state``.

    Returns:
        Its name with the steps to the object, as ``app.db.settings.pool``; None where there is no such variable.
    """
    modules = _modules(stack)
    roots = itertools.islice(_globals_of(modules), _MOST_OBJECTS)
    return _first(lambda each: each is target, roots, modules, is_pool, is_lifespans)


def thread_local_near(stack: RawStack) -> str | None:
    """Find a ``threading.local`` that can be reached from a global variable which a stack's functions name."""
    names = {name for code, _ in stack if is_user_code(code.co_filename) for name in code.co_names}
    modules = _modules(stack)
    roots = (found for found in _globals_of(modules) if found[1][1].removeprefix(".") in names)
    return _first(lambda each: issubclass(type(each), threading.local), roots, modules, False, lambda _app: True)


def _first(
    is_it: Callable[[object], bool],
    roots: Iterable[_Found],
    modules: list[types.ModuleType],
    is_pool: bool,
    is_lifespans: Callable[[Any], bool],
) -> str | None:
    seen: set[int] = set()
    packages = frozenset(_package(module) for module in modules)
    pending: deque[_Found] = deque(roots)
    while pending and len(seen) < _MOST_OBJECTS:
        current, path = pending.popleft()
        if is_it(current):
            return _name(path)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if _is_starlettes(current):
            held: Iterable[_Found] = _state_of(current, path, is_lifespans)
        elif issubclass(type(current), type):
            held = _attributes(vars(current), path) if current.__module__.partition(".")[0] in packages else ()
        else:
            held = _held_by(current, path, is_pool)
        pending.extend((value, step) for value, step in held if not _is_atom(value))
    return None


def _is_atom(value: object) -> bool:
    # Not `isinstance`: a proxy would answer for what it stands for, and may open it only to do so.
    return issubclass(type(value), _ATOMS)


def _modules(stack: RawStack) -> list[types.ModuleType]:
    """Return the user's modules, those of a stack first; and those of the packages on it, the user's or installed."""
    known = [module for module in list(sys.modules.values()) if issubclass(type(module), types.ModuleType)]
    by_file = {file: module for module in known if isinstance(file := vars(module).get("__file__"), str)}
    on_stack = dict.fromkeys(frame.filename for frame in user_frames(stack) if frame.filename in by_file)
    # An application that is tested from its wheel is installed, and its own all the same.
    packages = {_package(by_file[file]) for file in on_stack}
    others = [
        module
        for file, module in by_file.items()
        if file not in on_stack and (is_user_code(file) or _package(module) in packages)
    ]
    return [*(by_file[file] for file in on_stack), *others]


def _package(module: types.ModuleType) -> str:
    return module.__name__.partition(".")[0]


def _globals_of(modules: Iterable[types.ModuleType]) -> Iterator[_Found]:
    for module in modules:
        for name, value in list(vars(module).items()):
            if not name.startswith(("__", "@")) and not _is_atom(value):
                yield value, (module.__name__, f".{name}")


def _held_by(current: Any, path: Path, is_pool: bool) -> Iterable[_Found]:
    kind = type(current)
    if issubclass(kind, contextvars.ContextVar):
        return _of_context(current, path)
    if issubclass(kind, threading.local):
        return [found for attributes in _of_threads(current) for found in _attributes(attributes, path)]
    if issubclass(kind, _QUEUES) or kind.__module__ == "asyncio.queues":
        return [(value, (path, "[…]")) for value in _queued(current)]
    if issubclass(kind, (*_GROWING, *_SUSPENDED)) or is_frameworks(current):
        return ()
    if issubclass(kind, dict):
        return [(value, (path, "[…]")) for value in _values(current, is_pool)]
    if issubclass(kind, types.FunctionType):
        return _of_function(current, path)
    if issubclass(kind, _CACHE):
        return _of_cache(current, path)
    if issubclass(kind, functools.partial):
        return [(value, (path, "")) for value in (current.func, *current.args, *current.keywords.values())]
    if issubclass(kind, tuple):
        return [(value, (path, f"[{number}]")) for number, value in enumerate(tuple.__iter__(current))]
    attributes = _instance_dictionary(current)
    # Slots, and what objects written in C hold; the names of those are not known.
    others = [value for value in gc.get_referents(current) if value is not kind and value is not attributes]
    return [*_attributes(attributes, path), *((value, (path, "")) for value in others)]


def _values(dictionary: dict[Any, Any], is_pool: bool) -> list[object]:
    if is_pool:
        return list(dict.values(dictionary))
    items = list(dict.items(dictionary))
    classes = Counter(type(value) for _, value in items)
    threads = {thread.ident for thread in threading.enumerate()}
    return [value for key, value in items if classes[type(value)] == 1 or _is_living_thread(key, threads)]


def _is_living_thread(key: Any, idents: set[int | None]) -> bool:
    ident = key.ident if issubclass(type(key), threading.Thread) else key
    return type(ident) is int and ident in idents


def _of_threads(local: threading.local) -> list[dict[str, Any]]:
    """Return the attributes in each thread that lives; through the object itself one sees only one's own."""
    by_thread = (each for each in gc.get_referents(local) if type(each) is dict)
    # The keys stand for threads: weak references up to CPython 3.12, the objects themselves from 3.13 on. Its other
    # dictionary is that of the keyword arguments with which it was made.
    return [
        attributes
        for each in by_thread
        for thread, attributes in each.items()
        if type(thread) is not str and type(attributes) is dict
    ]


def _of_context(variable: contextvars.ContextVar[Any], path: Path) -> list[_Found]:
    """Return the value in a thread's own context; none in the context of a task."""
    if _is_in_event_loop():
        return []
    try:
        return [(variable.get(), (path, ".get()"))]
    except LookupError:
        return []


def _is_in_event_loop() -> bool:
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    return (asyncio is not None and asyncio._get_running_loop() is not None) or (  # noqa: SLF001 - asks, raises nothing
        trio is not None and bool(trio.lowlevel.in_trio_run())
    )


def _queued(waiting: Any) -> list[object]:
    if issubclass(type(waiting), queue.SimpleQueue):
        held = [each for each in gc.get_referents(waiting) if each is not type(waiting)]
        # Up to CPython 3.12 there is one list in it.
        return held if sys.version_info >= (3, 13) else [each for items in held for each in items]
    attributes = _instance_dictionary(waiting)
    return list(attributes.get("queue") or attributes.get("_queue") or ())


def _of_function(function: types.FunctionType, path: Path) -> Iterator[_Found]:
    # Not its globals: through them everything can be reached.
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents, (path, "")
        except ValueError:  # not filled yet
            continue
    yield from ((value, (path, "")) for value in function.__defaults__ or ())
    yield from ((value, (path, "")) for value in (function.__kwdefaults__ or {}).values())
    yield from _attributes(vars(function), path)


def _of_cache(cache: Any, path: Path) -> Iterator[_Found]:
    for value in gc.get_referents(cache):
        # Without a limit it is a plain dictionary, with one the values themselves are among the referents.
        values = list(value.values()) if type(value) is dict else [value]
        yield from ((each, (path, "()")) for each in values if not isinstance(each, type))


def _attributes(attributes: Any, path: Path) -> list[_Found]:
    named = list(attributes.items())
    return [(value, (path, "" if name == "__wrapped__" else f".{name}")) for name, value in named]


def _instance_dictionary(current: object) -> dict[str, Any]:
    """Return the attributes of an instance, without running any code of its class."""
    for base in type(current).__mro__:
        if (descriptor := vars(base).get("__dict__")) is not None:
            found = descriptor.__get__(current) if isinstance(descriptor, _DESCRIPTORS) else {}
            return found if isinstance(found, dict) else {}
    return {}


def _is_starlettes(current: object) -> bool:
    return any(
        base.__name__ == "Starlette" and base.__module__ == "starlette.applications" for base in type(current).__mro__
    )


def _state_of(app: Any, path: Path, is_lifespans: Callable[[Any], bool]) -> list[_Found]:
    if is_lifespans(app):
        return []
    state = _instance_dictionary(app).get("state")
    names = _instance_dictionary(state).get("_state", {})
    return _attributes(names, (path, ".state"))


def _name(path: Path) -> str:
    before, step = path
    return (before if isinstance(before, str) else _name(before)) + step
