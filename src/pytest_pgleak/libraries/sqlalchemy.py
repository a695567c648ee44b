"""SQLAlchemy 2: engines as pools, sessions and connections as checkouts, over whatever driver is watched.

The driver's tracker knows the connections and their transactions; this one knows which engine they belong to, who has
them out, and whether a rollback was asked for. It uses ``Engine``'s constructor and ``dispose``, ``Pool.connect`` and
SQLAlchemy's events, all of them public. What is not, and why it is needed all the same:

- The local variable ``is_gc_cleanup`` of ``_finalize_fairy``, in which SQLAlchemy takes back what nobody gave back: no
  event tells that it is the garbage collector's doing. Where it is missing, such a checkout counts as returned.
- ``Pool._max_overflow``, for the text, and ``Pool._is_asyncio``; each may be missing.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.events import PoolFacts
from pytest_pgleak.libraries.opening import opening_for
from pytest_pgleak.libraries.sqlalchemy_words import SQLALCHEMY
from pytest_pgleak.patching import Patch, Patches

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_MOST_FRAMES: Final = 40
_PART_OF_IT: Final = ("sqlalchemy", "sqlmodel", "contextlib")


def sqlalchemy_patches(module: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about engines and what is checked out of them.

    Args:
        module: The imported ``sqlalchemy``.
        tracker: Is told.

    Raises:
        AttributeError: This SQLAlchemy looks different from those that are known.
    """
    event, pool = module.event, module.pool.Pool
    listeners = _Listeners(tracker)
    return Patches(
        Patch(module.Engine, "__init__", functools.partial(_wrap_engine_init, tracker)),
        Patch(pool, "connect", functools.partial(_wrap_pool_connect, tracker)),
        Patch(module.Engine, "dispose", functools.partial(_wrap_dispose, tracker)),
        *(
            Listener(event, pool, name, getattr(listeners, name))
            for name in ("checkin", "reset", "invalidate", "detach")
        ),
        Listener(event, module.Engine, "rollback", listeners.rollback),
    )


class Listener:
    """A listener of one of SQLAlchemy's events, as something that is switched on and off."""

    def __init__(self, event: ModuleType, target: type, name: str, function: Method) -> None:
        self._event = event
        self._about = (target, name, function)

    def on(self) -> None:
        """Listen."""
        if not self._event.contains(*self._about):
            self._event.listen(*self._about)

    def off(self) -> None:
        """Listen no more."""
        if self._event.contains(*self._about):
            self._event.remove(*self._about)


class _Listeners:
    """What SQLAlchemy tells, passed on. Each method is called as the event that it is named after."""

    # An exception here would be the application's; the tracker keeps its own to itself.

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def checkin(self, _dbapi_connection: Any, record: Any) -> None:
        if (connection := record.driver_connection) is not None:
            self._tracker.returned(connection)

    def reset(self, _dbapi_connection: Any, record: Any, state: Any) -> None:
        if record is None or (connection := record.driver_connection) is None:
            return
        if _is_collecting():
            self._tracker.checkout_collected(connection)
        elif not state.transaction_was_reset:
            self._tracker.closes_instead(connection)

    def invalidate(self, _dbapi_connection: Any, record: Any, _error: BaseException | None) -> None:
        # The engine closes it and opens another one for whoever has it out.
        if (connection := record.driver_connection) is not None:
            self._tracker.returned(connection)

    def detach(self, dbapi_connection: Any, _record: Any) -> None:
        if not _is_collecting():
            driver_connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
            self._tracker.detached(driver_connection)

    def rollback(self, connection: Any) -> None:
        if _is_closing(sys._getframe(1)):  # noqa: SLF001 - the documented CPython way
            try:
                driver_connection = connection.connection.driver_connection
            except Exception:  # noqa: BLE001 - SQLAlchemy says so in many ways: there is none any more
                return
            if driver_connection is not None:
                self._tracker.closes_instead(driver_connection)


def _pool_facts(engine: Any, reference: weakref.ref[Any]) -> PoolFacts:
    pool = engine.pool
    size = pool.size() if hasattr(pool, "size") else 0
    overflow = getattr(pool, "_max_overflow", 0)
    limit = 0 if overflow < 0 else size + overflow
    return PoolFacts(
        reference, type(pool).__name__, engine.dialect.is_async, str(engine.url.database), limit, SQLALCHEMY
    )


def _wrap_engine_init(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        tracker.pool_opened(self.pool, functools.partial(_pool_facts, self))

    return __init__


def _wrap_pool_connect(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def connect(self: Any) -> Any:
        __tracebackhide__ = True
        with opening_for(self):
            proxied = original(self)
        if (connection := proxied.driver_connection) is not None:
            tracker.checked_out(self, connection)
        return proxied

    return connect


def _wrap_dispose(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def dispose(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        before = self.pool
        try:
            original(self, *args, **kwargs)
        finally:
            if self.pool is not before:
                tracker.pool_opened(self.pool, functools.partial(_pool_facts, self), before)
                tracker.pool_closed(before)

    return dispose


def _is_collecting() -> bool:
    """Tell whether SQLAlchemy is taking back what the garbage collector has found."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the documented CPython way
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_name == "_finalize_fairy":
            return bool(frame.f_locals.get("is_gc_cleanup"))
        frame = frame.f_back
    return False


def _is_closing(frame: FrameType | None) -> bool:
    """Tell whether a rollback was not asked for: the user's code has called something else of SQLAlchemy's."""
    called = ""
    for _ in range(_MOST_FRAMES):
        if frame is None or str(frame.f_globals.get("__name__")).partition(".")[0] not in _PART_OF_IT:
            break
        name = frame.f_code.co_name
        if name not in ("__exit__", "__aexit__", "go", "_close_internal"):
            called = name
        frame = frame.f_back
    return called in ("close", "close_all", "close_all_sessions", "remove", "reset", "invalidate")
