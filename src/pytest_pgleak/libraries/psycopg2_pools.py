"""psycopg2's pools. ``AbstractConnectionPool._connect`` is not public: only it opens a pool's connections."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_pgleak.events import PoolFacts
from pytest_pgleak.libraries.opening import opening_for
from pytest_pgleak.libraries.psycopg2_words import PSYCOPG2
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]


def pool_patches(module: ModuleType, tracker: Tracker) -> Patches:
    """Make the patches that tell a tracker about pools.

    Args:
        module: The imported ``psycopg2.pool``.
        tracker: Is told.

    Raises:
        AttributeError: This psycopg2 looks different from those that are known.
    """
    base = module.AbstractConnectionPool
    wraps = (("getconn", _wrap_getconn), ("putconn", _wrap_putconn), ("closeall", _wrap_closeall))
    return Patches(
        Patch(base, "__init__", functools.partial(_wrap_init, tracker)),
        Patch(base, "_connect", _wrap_connect),
        *(
            Patch(pool, name, functools.partial(wrap, tracker))
            for pool in (module.SimpleConnectionPool, module.ThreadedConnectionPool)
            for name, wrap in wraps
        ),
    )


def _facts(pool: Any, reference: weakref.ref[Any]) -> PoolFacts:
    return PoolFacts(reference, type(pool).__name__, False, "psycopg2", pool.maxconn, PSYCOPG2)


def _wrap_init(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        original(self, *args, **kwargs)
        tracker.pool_opened(self, functools.partial(_facts, self))

    return __init__


def _wrap_connect(original: Method) -> Method:
    @functools.wraps(original)
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with opening_for(self):
            return original(self, *args, **kwargs)

    return _connect


def _wrap_getconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        connection = original(self, *args, **kwargs)
        tracker.checked_out(self, connection)
        return connection

    return getconn


def _wrap_putconn(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def putconn(self: Any, conn: Any = None, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        if conn is not None:
            tracker.transaction_ending(conn, PSYCOPG2.transaction_status(conn), How.POOL)
            tracker.returned(conn)
        with opening_for(self):  # what happens to it now is the pool's business
            original(self, conn, *args, **kwargs)

    return putconn


def _wrap_closeall(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def closeall(self: Any) -> None:
        __tracebackhide__ = True
        original(self)
        tracker.pool_closed(self)

    return closeall
