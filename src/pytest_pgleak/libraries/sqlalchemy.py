"""SQLAlchemy 2: engines as pools, sessions and connections as checkouts, over whatever driver is watched.

The driver's tracker knows the connections and their transactions; this one knows which engine they belong to, who has
them out, and whether a rollback was asked for. ``Engine``'s constructor and ``dispose`` and ``Pool.connect`` are
wrapped; all else SQLAlchemy's own events tell, see `pytest_pgleak.libraries.sqlalchemy_events`. All of that is public.
What is not: ``Pool._max_overflow``, for the text only. Where it is missing, the text does without.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_pgleak.events import PoolFacts
from pytest_pgleak.libraries.opening import opening_for
from pytest_pgleak.libraries.signatures import with_arguments_of
from pytest_pgleak.libraries.sqlalchemy_events import driver_connection_of, event_listeners
from pytest_pgleak.libraries.sqlalchemy_words import SQLALCHEMY, WITH_NULL_POOL, SqlAlchemy
from pytest_pgleak.patching import Patch, Patches

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]


def sqlalchemy_patches(module: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about engines and what is checked out of them.

    Args:
        module: The imported ``sqlalchemy``.
        tracker: Is told.

    Raises:
        AttributeError: This SQLAlchemy looks different from those that are known.
    """
    pools = (module.pool.Pool, module.pool.SingletonThreadPool)  # the second one has a ``connect`` of its own
    return Patches(
        Patch(module.pool.Pool, "__init__", functools.partial(_wrap_pool_init, tracker)),
        Patch(module.Engine, "__init__", functools.partial(_wrap_engine_init, tracker)),
        *(Patch(pool, "connect", functools.partial(_wrap_pool_connect, tracker)) for pool in pools),
        Patch(module.Engine, "dispose", functools.partial(_wrap_dispose, tracker)),
        *event_listeners(module, tracker),
    )


def _facts_of_engine(engine: Any, reference: weakref.ref[Any]) -> PoolFacts:
    pool = engine.pool
    size, overflow = getattr(pool, "size", None), getattr(pool, "_max_overflow", -1)
    limit = size() + overflow if callable(size) and overflow >= 0 else 0  # that of a SingletonThreadPool is no method
    name = str(engine.url.database or engine.url.drivername)
    return PoolFacts(reference, type(pool).__name__, engine.dialect.is_async, name, limit, _library(pool))


def _facts_of_pool(pool: Any, reference: weakref.ref[Any]) -> PoolFacts:
    """Return what is known of a pool before its engine is there, if there will be one."""
    return PoolFacts(reference, type(pool).__name__, False, "a pool without an engine", 0, _library(pool))


def _library(pool: Any) -> SqlAlchemy:
    return WITH_NULL_POOL if any(cls.__name__ == "NullPool" for cls in type(pool).__mro__) else SQLALCHEMY


def _wrap_pool_init(tracker: Tracker, original: Method) -> Method:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        tracker.pool_opened(self, functools.partial(_facts_of_pool, self))

    return with_arguments_of(original, __init__)


def _wrap_engine_init(tracker: Tracker, original: Method) -> Method:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        tracker.pool_opened(self.pool, functools.partial(_facts_of_engine, self))

    return with_arguments_of(original, __init__)


def _wrap_pool_connect(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def connect(self: Any) -> Any:
        __tracebackhide__ = True
        with opening_for(self):
            proxied = original(self)
        connection = driver_connection_of(getattr(proxied, "dbapi_connection", None))
        if connection is not None:
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
                tracker.pool_opened(self.pool, functools.partial(_facts_of_engine, self), before)
                tracker.pool_closed(before)

    return dispose
