"""What a worker process and pytest say to each other, and how findings get from the one to the other.

Both ends run this package, as one user, in a directory that nobody else may enter: so it is pickle. What means nothing
elsewhere is replaced on the way: a weak reference by one to nothing, a code object by its names, a request by what is
known of it.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import CodeType
from typing import Any, Final
from urllib.parse import quote, unquote

from pytest_pgleak.find import Question
from pytest_pgleak.findings import Finding
from pytest_pgleak.libraries.library import Library
from pytest_pgleak.live.trackers import OwnTracker
from pytest_pgleak.owners import Owner
from pytest_pgleak.requests import Request

LONGEST_WORK: Final = 30.0
"""Seconds for dependency exits and background tasks after an answer; in process the client waits without a limit."""
HEADER: Final = "x-pytest-pgleak"
"""Which request of whose it is. The worker takes it away before the application sees the request."""
PROBE: Final = "probe"
"""Value of the header with which the worker answers by itself: whether the server is there."""
RULES: Final = "rules"
"""File with the settings, in the directory of a server."""
VARIABLE: Final = "PGLEAK_LIVE"
"""Environment variable with the directory of a server: what tells a Python process that it is to be watched."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a worker has to know of the settings.

    Attributes:
        own_databases: Databases that pgleak has created: what was left there may be undone.
        terminate: Whether it may be undone anywhere.
        collects: Whether the garbage collector may be run where something is still open.
        dsn: The DSN of the settings, and the option that it comes from.
        pgbouncer: The same of PgBouncer's console.
        grace: Longest time to wait for a late release at a shutdown, seconds.
        counts: Serial of the running test, where it has ``max_connections``.
        trackers: The user's own.
    """

    own_databases: frozenset[str] = frozenset()
    terminate: bool = False
    collects: bool = True
    dsn: tuple[str, str] | None = None
    pgbouncer: tuple[str, str] | None = None
    grace: float = 0.5
    counts: int | None = None
    trackers: tuple[OwnTracker, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker has connected."""

    pid: int


@dataclass(frozen=True, slots=True)
class Serving:
    """The start-up of the worker's application has completed."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A test's call phase begins.

    Attributes:
        owner: It.
        rules: The settings by now.
    """

    owner: Owner
    rules: Rules


@dataclass(frozen=True, slots=True)
class Judge:
    """A checkpoint.

    Attributes:
        question: What it asks.
        grace: Longest time to wait for a late release, seconds.
        ends_call: Whether the test's call phase is over. What a request holds that is still being answered is left for
            the checkpoint after its teardown, when the test's own clients are closed.
        is_last: Whether what is found is not to be found again.
    """

    question: Question
    grace: float
    ends_call: bool
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """What a checkpoint has found in one worker.

    Attributes:
        findings: That.
    """

    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a worker still had when it shut down: opened at import, kept in a global variable or by a websocket.

    Attributes:
        findings: That.
    """

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of the findings that were judged last, by their places among them.

    Attributes:
        failing: They have failed the test.
        warning: They were only told.
    """

    failing: tuple[int, ...] = ()
    warning: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Owners that have ended.

    Attributes:
        owners: Their serials.
        judged: Those of them that were judged: what outlives them is told at the end. Nobody judges the others.
    """

    owners: tuple[int, ...]
    judged: frozenset[int]


@dataclass(frozen=True, slots=True)
class Pids:
    """Which backends the worker has opened: asked with none."""

    pids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Stopping:
    """The server is about to be stopped. Answered with what is kept by websockets that have outlived their tests.

    Attributes:
        ended: Serials of tests that are over, though their owners are not forgotten yet.
    """

    ended: frozenset[int]


@dataclass(frozen=True, slots=True)
class Done:
    """It was done."""


@dataclass(frozen=True, slots=True)
class Unwatched:
    """The worker has imported a library whose tracker it cannot import.

    Attributes:
        tracker: That.
    """

    tracker: OwnTracker


@dataclass(frozen=True, slots=True)
class Fault:
    """The plugin failed inside a worker.

    Attributes:
        text: Where, with the traceback.
    """

    text: str


def dumps(message: object) -> bytes:
    """Pack a message."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return stream.getvalue()


def loads(packed: bytes) -> Any:
    """Unpack what `dumps` has packed."""
    return pickle.loads(packed)  # noqa: S301 - from a process of ours, through a directory of ours


def header_of(ordinal: int, owner: Owner) -> str:
    """Say in a header which request of whose it is."""
    started_by = "" if owner.started_by is None else owner.started_by
    names = (owner.scope or "", owner.fixturename or "", owner.nodeid)
    parts = (ordinal, owner.serial, started_by, owner.what, *names)
    return ";".join(quote(str(part), safe="") for part in parts)


def read_header(value: str) -> tuple[int, Owner] | None:
    """Read what `header_of` has written; None for anything else."""
    parts = [unquote(part) for part in value.split(";")]
    if len(parts) != 7 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    ordinal, serial, started_by, scope, fixturename, nodeid = (*parts[:3], *parts[4:])
    what: Any = parts[3]
    starter = int(started_by) if started_by.isdigit() else None
    return int(ordinal), Owner(int(serial), what, nodeid, fixturename or None, scope or None, starter)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        reduce = _REDUCERS.get(type(obj))
        if reduce is not None:
            return reduce(obj)
        if isinstance(obj, Library) and (name := _global_name(obj)) is not None:
            return _global, (type(obj).__module__, name)
        return NotImplemented


def _nothing() -> None:
    """Stand for a weak reference to something in another process."""


def _dead() -> Callable[[], None]:
    return _nothing


def _template(self: object) -> None:
    """Give its code to those that come from another process."""


def _code(filename: str, name: str, qualname: str, lineno: int, flags: int) -> CodeType:
    code: CodeType = _template.__code__
    return code.replace(co_filename=filename, co_name=name, co_qualname=qualname, co_firstlineno=lineno, co_flags=flags)


# Of the flags only what says that it is a generator or a coroutine; the others speak of the code itself.
_SORTS: Final = 0x20 | 0x80 | 0x100 | 0x200


def _reduce_code(code: CodeType) -> Any:
    flags = (_template.__code__.co_flags & ~_SORTS) | (code.co_flags & _SORTS)
    return _code, (code.co_filename, code.co_name, code.co_qualname, code.co_firstlineno, flags)


_NOT_SENT: Final = frozenset(("dependencies", "task", "overrides", "learn", "is_connected"))
_SENT: Final = tuple(field.name for field in fields(Request) if field.name not in _NOT_SENT)


def _request(*values: Any) -> Request:
    return Request(**dict(zip(_SENT, values, strict=True)))


def _reduce_request(request: Request) -> Any:
    request.refresh()
    return _request, tuple(getattr(request, name) for name in _SENT)


def _reduce_dead(_: object) -> Any:
    return _dead, ()


_REDUCERS: Final[dict[type, Callable[[Any], Any]]] = {
    weakref.ref: _reduce_dead,
    CodeType: _reduce_code,
    Request: _reduce_request,
}


@functools.cache
def _global_name(library: Library) -> str | None:
    module = sys.modules[type(library).__module__]
    return next((name for name, value in vars(module).items() if value is library), None)


def _global(module: str, name: str) -> Any:
    __import__(module)
    return getattr(sys.modules[module], name)
