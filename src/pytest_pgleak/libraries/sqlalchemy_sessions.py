"""SQLAlchemy's sessions: who has made the session that takes a connection.

A session takes its connection with its first statement, which may stand in any endpoint. What is to be changed is where
the session was made and nobody closes it: a dependency, a fixture. So a session's checkout is its maker's. It needs
``Session.__init__``, which async sessions go through as well, and the event ``after_begin``; both are public.
"""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_pgleak.events import Moment
from pytest_pgleak.libraries.signatures import with_arguments_of
from pytest_pgleak.libraries.sqlalchemy_events import Listener, driver_connection_of, guarded
from pytest_pgleak.patching import Patch, Patches

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]


def session_patches(orm: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker who has made which session.

    Args:
        orm: The imported ``sqlalchemy.orm``.
        tracker: Is told.

    Raises:
        AttributeError: This SQLAlchemy looks different from those that are known.
    """
    makers = _Makers()

    def after_begin(tracker: Tracker, session: Any, _transaction: Any, connection: Any) -> None:
        made = makers.of(session)
        if made is not None and not connection.closed and not connection.invalidated:
            tracker.taken_for(driver_connection_of(connection.connection.dbapi_connection), made)

    event = importlib.import_module("sqlalchemy.event")
    return Patches(
        Patch(orm.Session, "__init__", functools.partial(_wrap_init, tracker, makers)),
        Listener(event, orm.Session, "after_begin", guarded(after_begin, tracker)),
    )


class _Makers:
    """Knows where each living session was made. Keeps none of them alive, and asks none whether it equals another."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Any], Moment]] = {}

    def note(self, session: Any, moment: Moment) -> None:
        """A session was made."""
        identity = id(session)
        self._made[identity] = weakref.ref(session, lambda _: self._made.pop(identity, None)), moment

    def of(self, session: Any) -> Moment | None:
        """Return where a session was made, if anybody saw it."""
        known = self._made.get(id(session))
        return known[1] if known is not None and known[0]() is session else None


def _wrap_init(tracker: Tracker, makers: _Makers, original: Method) -> Method:
    own_frame = original.__code__, original.__code__.co_firstlineno

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        if (moment := tracker.here()) is not None:
            stack = moment.stack
            # Of subclasses: the async session's, the application's own.
            while stack and stack[0][0].co_name in ("__init__", "made"):
                stack = stack[1:]
            makers.note(self, replace(moment, stack=(own_frame, *stack)))

    return with_arguments_of(original, __init__)
