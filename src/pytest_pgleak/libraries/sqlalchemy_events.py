"""What SQLAlchemy's own events tell: what goes back to an engine, and whether a rollback was asked for.

SQLAlchemy rolls back when a session or a connection is closed, and again when one goes back to its pool. Whether a
write was lost depends on what the user's code has called, and that is read from the stack. Not public, and needed all
the same: the local variable ``is_gc_cleanup`` of ``_finalize_fairy``, in which SQLAlchemy takes back what nobody gave
back. No event tells that it is the garbage collector's doing. Where it is missing, such a checkout counts as returned.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]

_MOST_FRAMES: Final = 40
_PART_OF_IT: Final = frozenset(("sqlalchemy", "sqlmodel", "contextlib", "pytest_pgleak"))
_EXITS: Final = frozenset(("__exit__", "__aexit__", "go", "_close_internal"))
_CLOSING: Final = frozenset(("close", "close_all", "close_all_sessions", "remove", "reset", "invalidate"))


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


def event_listeners(module: ModuleType, tracker: Tracker) -> list[Listener]:
    """Make the listeners that tell a tracker about checkouts and rollbacks.

    Args:
        module: The imported ``sqlalchemy``.
        tracker: Is told.
    """
    about = (
        (module.pool.Pool, "checkin", _checkin),
        (module.pool.Pool, "reset", _reset),
        (module.pool.Pool, "invalidate", _invalidate),
        (module.pool.Pool, "detach", _detach),
        (module.Engine, "rollback", _rollback),
    )
    return [Listener(module.event, target, name, guarded(function, tracker)) for target, name, function in about]


def driver_connection_of(dbapi_connection: Any) -> Any:
    """Return the driver's own connection; an async one is wrapped in an adapter. None for None."""
    return getattr(dbapi_connection, "driver_connection", dbapi_connection)


def guarded(function: Callable[..., None], tracker: Tracker) -> Method:
    """Bind a tracker to a listener, and keep a fault of the plugin out of the user's code.

    Args:
        function: The listener; its first argument is the tracker.
        tracker: Is told.
    """

    @functools.wraps(function)
    def listener(*args: Any) -> None:
        try:
            function(tracker, *args)
        except Exception:  # noqa: BLE001 - whatever it is, the application must not notice
            tracker.fault(f"SQLAlchemy ({function.__name__.lstrip('_')})")

    del listener.__wrapped__  # SQLAlchemy reads the signature, and must find this one
    return listener


def _checkin(tracker: Tracker, dbapi_connection: Any, _record: Any) -> None:
    if (connection := driver_connection_of(dbapi_connection)) is not None:
        tracker.returned(connection)


def _reset(tracker: Tracker, dbapi_connection: Any, _record: Any, state: Any) -> None:
    if (connection := driver_connection_of(dbapi_connection)) is None:
        return
    if _is_collecting():
        tracker.checkout_collected(connection)
    elif not state.transaction_was_reset:
        tracker.closes_instead(connection)


def _invalidate(tracker: Tracker, dbapi_connection: Any, _record: Any, error: BaseException | None) -> None:
    if (connection := driver_connection_of(dbapi_connection)) is None:
        return
    if error is not None:
        tracker.ending_because_of(connection, error)
    tracker.returned(connection)  # the engine closes it, and opens another one for whoever has it out


def _detach(tracker: Tracker, dbapi_connection: Any, _record: Any) -> None:
    if not _is_collecting():
        tracker.detached(driver_connection_of(dbapi_connection))


def _rollback(tracker: Tracker, connection: Any) -> None:
    if connection.closed or connection.invalidated:
        return  # to ask it for its driver's connection would open another one
    driver_connection = driver_connection_of(connection.connection.dbapi_connection)
    if driver_connection is None:
        return
    if (error := sys.exc_info()[1]) is not None:
        tracker.ending_because_of(driver_connection, error)
    if _is_closing():
        tracker.closes_instead(driver_connection)


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


def _is_closing() -> bool:
    """Tell whether a rollback was not asked for: the user's code has called something else of SQLAlchemy's."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - as above
    called = ""
    for _ in range(_MOST_FRAMES):
        if frame is None or str(frame.f_globals.get("__name__")).partition(".")[0] not in _PART_OF_IT:
            break
        name = frame.f_code.co_name
        if name not in _EXITS:
            called = name
        frame = frame.f_back
    return called in _CLOSING
