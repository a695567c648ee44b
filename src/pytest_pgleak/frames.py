"""Call stacks: captured as plain code objects and line numbers, read as the user's own frames only for findings."""

from __future__ import annotations

import inspect
import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

RawStack = tuple[tuple[CodeType, int], ...]
"""Innermost frame first. Code objects and integers only, so that no local variable is kept alive."""

_DEEPEST: Final = 150
_OUTERMOST: Final = "pytest_pyfunc_call"
"""What calls a test function, in pytest, AnyIO and pytest-asyncio alike: outside of it is nobody who opens anything."""
_INSTALLED: Final = ("site-packages", "dist-packages")
_THIS_PACKAGE: Final = str(Path(__file__).parent) + os.sep
_DRIVES_LOOKS: Final = str(Path(__file__).with_name("settling.py"))
_ASGI: Final = str(Path(__file__).with_name("asgi.py"))


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of source that was running.

    Attributes:
        filename: Path of the source file, as the code object has it.
        lineno: Line number, counted from 1.
        function: Name of the function, with its class where it has one.
        is_generator: Whether the function is a generator, as a dependency with ``yield`` is.
    """

    filename: str
    lineno: int
    function: str
    is_generator: bool = False


def capture(depth: int = 1) -> RawStack:
    """Record where the caller is.

    Walking the frames by hand takes a sixth of what ``traceback.extract_stack`` takes, and most stacks are
    never shown to anybody. Most of the frames under a test are pytest's own, so they are left out.

    Args:
        depth: How many innermost frames to leave out.
    """
    frame = sys._getframe()  # noqa: SLF001 - the documented CPython way; inspect.stack() reads source files
    stack = []
    parents: list[Any] = []
    for _ in range(_DEEPEST):
        code = frame.f_code
        stack.append((code, frame.f_lineno))
        if code.co_name == _OUTERMOST:
            break
        outer = frame.f_back
        if outer is None and (outer := _frame_of_parent(parents)) is None:
            break
        frame = outer
    return tuple(stack[depth:])


def is_thread_ending() -> bool:
    """Tell, inside a finalizer, whether nobody is running any more: what was local to this thread is being freed.

    Or whether only a look of pgleak's own has kept it for a moment longer: then the thread has ended meanwhile. What
    the garbage collector finds when pgleak runs it is none of that.
    """
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the documented CPython way
    inner = ""
    while frame is not None and _is_own(frame):
        if frame.f_code.co_filename == _DRIVES_LOOKS:
            return inner != "__del__"
        inner, frame = frame.f_code.co_name, frame.f_back
    return frame is None


def _is_own(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_THIS_PACKAGE)


def _frame_of_parent(parents: list[Any]) -> FrameType | None:
    """Return the frame in which the greenlet waits that has started this one; SQLAlchemy's async half runs in them.

    Args:
        parents: The greenlet that was gone through last, if any; it is replaced.
    """
    if (greenlet := sys.modules.get("greenlet")) is None:
        return None
    current = parents.pop() if parents else greenlet.getcurrent()
    parent = current.parent
    if parent is None:
        return None
    parents.append(parent)
    frame: FrameType | None = parent.gr_frame
    return frame


def user_frames(stack: RawStack) -> tuple[Frame, ...]:
    """Keep the frames of the user's own code, innermost first, up to where pytest or the HTTP client called it.

    Where everything on the stack is installed code (an application tested from its wheel), the frames of the
    packages between the driver and the test framework stand in.
    """
    own: list[Frame] = []
    for code, lineno in stack:
        if is_user_code(code.co_filename):
            own.append(_frame(code, lineno))
        elif own and _is_boundary(code.co_filename):
            break
    if own:
        return tuple(own)
    return tuple(_frame(code, lineno) for code, lineno in stack if _is_other_package(code.co_filename))


def origin(stack: RawStack) -> Frame | None:
    """Return the first frame in the user's own code, or None where there is none."""
    for code, lineno in stack:
        if is_user_code(code.co_filename):
            return _frame(code, lineno)
    return next(iter(user_frames(stack)), None)


@lru_cache(maxsize=4096)
def _is_boundary(filename: str) -> bool:
    return filename == _ASGI or "_pytest" in Path(filename).parts


@lru_cache(maxsize=4096)
def is_user_code(filename: str) -> bool:
    """Tell whether a file belongs to the user rather than to Python, an installed package or this plugin."""
    if filename.startswith(("<", _THIS_PACKAGE)):
        return False
    if any(part in _INSTALLED for part in Path(filename).parts):
        return False
    return not filename.startswith(_library_directories())


_FRAMEWORKS: Final = frozenset(
    [
        "psycopg",
        "psycopg_pool",
        "psycopg_binary",
        "psycopg_c",
        "starlette",
        "fastapi",
        "anyio",
        "httpx",
        "httpx2",
        "httpcore",
        "uvicorn",
        "uvicorn_worker",
        "uvloop",
        "gunicorn",
        "hypercorn",
        "_pytest",
        "pytest",
        "pluggy",
        "pytest_asyncio",
        "xdist",
        "execnet",
        "sqlalchemy",
        "sqlmodel",
        "greenlet",
        "asyncpg",
        "psycopg2",
    ]
)


@lru_cache(maxsize=4096)
def _is_other_package(filename: str) -> bool:
    parts = Path(filename).parts
    for installed in _INSTALLED:
        if installed in parts:
            package = parts[parts.index(installed) + 1]
            return package.removesuffix(".py") not in _FRAMEWORKS and not filename.startswith(_THIS_PACKAGE)
    return False


@lru_cache(maxsize=1)
def _library_directories() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    # The scripts are those of installed packages, `pytest` itself among them: the outermost frame of all there is.
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    directories = {paths[name] for name in names if paths.get(name)}
    directories.update(site.getsitepackages() if hasattr(site, "getsitepackages") else ())
    directories.update(str(Path(directory).resolve()) for directory in tuple(directories))
    return tuple(directory + ("" if directory.endswith("/") else "/") for directory in directories)


def _frame(code: CodeType, lineno: int) -> Frame:
    function = code.co_qualname.rpartition("<locals>.")[2]
    generator = bool(code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))
    return Frame(code.co_filename, lineno, function, generator)
