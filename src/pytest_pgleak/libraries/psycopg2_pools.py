"""psycopg2's pools.

What is not public, and why it is needed all the same: ``AbstractConnectionPool._connect``, for only it opens a pool's
connections; ``_getconn``, ``_putconn`` and ``_closeall``, which every pool goes through, the user's own included; and
``_rused``, which says whether a connection is the pool's to take back.
"""

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
    base, simple = module.AbstractConnectionPool, module.SimpleConnectionPool
    getting, putting = functools.partial(_wrap_getconn, tracker), functools.partial(_wrap_putconn, tracker)
    closing = functools.partial(_wrap_closeall, tracker)
    return Patches(
        Patch(base, "__init__", functools.partial(_wrap_init, tracker)),
        Patch(base, "_connect", _wrap_connect),
        Patch(base, "_getconn", getting),
        Patch(base, "_putconn", putting),
        Patch(base, "_closeall", closing),
        # The same functions by another name, which it has kept.
        Patch(simple, "getconn", getting),
        Patch(simple, "putconn", putting),
        Patch(simple, "closeall", closing),
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
    def putconn(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        connection = args[0] if args else kwargs.get("conn")
        # What is not its own is refused; and what it does with it from now on is the pool's business.
        if id(connection) in self._rused and not self.closed:
            tracker.transaction_ending(connection, PSYCOPG2.transaction_status(connection), How.POOL)
            tracker.returned(connection)
        with opening_for(self):
            original(self, *args, **kwargs)

    return putconn


def _wrap_closeall(tracker: Tracker, original: Method) -> Method:
    @functools.wraps(original)
    def closeall(self: Any) -> None:
        __tracebackhide__ = True
        original(self)
        tracker.pool_closed(self)

    return closeall
