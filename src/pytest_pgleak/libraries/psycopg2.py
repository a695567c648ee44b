"""psycopg2: its connections.

``connect`` is imported by name everywhere, so ``psycopg2._connect`` is replaced, through which it goes. What happens on
a connection is the business of `pytest_pgleak.libraries.psycopg2_classes`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.libraries.opening import opening_pool
from pytest_pgleak.libraries.psycopg2_classes import WatchedClasses
from pytest_pgleak.libraries.psycopg2_words import PSYCOPG2
from pytest_pgleak.patching import Patch, Patches

if TYPE_CHECKING:
    from pytest_pgleak.tracking import Tracker

Method = Callable[..., Any]


def connection_patches(psycopg2: ModuleType, tracker: Tracker) -> Patches:
    """Make the patch that tells a tracker about psycopg2's connections.

    Args:
        psycopg2: The imported ``psycopg2``.
        tracker: Is told.

    Raises:
        AttributeError: This psycopg2 looks different from those that are known.
    """
    plain = psycopg2.extensions.connection
    if missing := [name for name in ("info", "get_transaction_status", "cursor_factory") if not hasattr(plain, name)]:
        raise AttributeError(f"{plain!r} has no {missing[0]}")
    classes = WatchedClasses(psycopg2.extensions, tracker)

    def wrap(original: Method) -> Method:
        @functools.wraps(original)
        def _connect(dsn: Any, connection_factory: Any = None, **more: Any) -> Any:
            __tracebackhide__ = True
            if any(more.values()):  # asynchronous: not connected yet, and never tracked
                return original(dsn, connection_factory=connection_factory, **more)
            stand_in = classes.connection_factory(connection_factory)
            try:
                connection = original(dsn, connection_factory=stand_in or connection_factory, **more)
            except psycopg2.OperationalError as error:
                tracker.refused(error)
                raise
            if stand_in is not None or classes.watch(connection):
                tracker.connection_opened(connection, functools.partial(_facts, connection), opening_pool.get())
            return connection

        return _connect

    return Patches(Patch(psycopg2, "_connect", wrap), classes)


def _facts(connection: Any, reference: weakref.ref[Any]) -> ConnectionFacts:
    info = connection.info
    server = info.host or "", str(info.port)
    name = connection.__class__.__name__
    return ConnectionFacts(reference, name, False, info.backend_pid, server, info.dbname, info.user, PSYCOPG2)
