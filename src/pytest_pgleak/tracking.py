"""From living objects to events: gives each connection and pool a number and writes down what happens to it."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from pytest_pgleak.activity import Backend
from pytest_pgleak.events import ConnectionFacts, Event, EventKind, Moment, PoolFacts
from pytest_pgleak.frames import capture
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.tasks import current_task

_INSIDE = 4
"""Frames between the watched call and `capture`: the wrapper, the guard, the tracker's method, `_moment`."""


def _never_raises(method: Callable[..., None]) -> Callable[..., None]:
    """Keep a fault of the plugin out of the user's code; it is reported as the plugin's own."""

    @wraps(method)
    def guarded(self: Tracker, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, the application must not notice
            self.fault(f"tracking ({method.__name__})")

    return guarded


class Tracker:
    """Turns what the patched libraries tell it into events. Holds no strong reference to what it is told about.

    Args:
        record: Takes each event.
        ownership: Says on whose account things happen.
        witness: Looks at the server's row of a connection that the garbage collector is about to close.
        fault: Takes note, inside an ``except`` block, of a fault of the plugin; the argument says where.
    """

    def __init__(
        self,
        record: Callable[[Event], None],
        ownership: Ownership,
        witness: Callable[[ConnectionFacts, Any], Backend | None],
        fault: Callable[[str], None],
    ) -> None:
        self.fault = fault
        self._record = record
        self._ownership = ownership
        self._witness = witness
        self._serials = itertools.count(1)
        # By id(); the weak reference guards against an id that is used again.
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._facts: dict[int, ConnectionFacts] = {}
        # In a reference cycle the weak reference is cleared before __del__ runs, otherwise after it (CPython,
        # InternalDocs/garbage_collector.md): who comes second finds here what the first one knew.
        self._dying: dict[int, tuple[int, ConnectionFacts | None]] = {}
        self._finalized: set[int] = set()
        self._connecting: set[object] = set()
        self._holders: dict[int, int] = {}
        self._begun_by_holder: set[int] = set()

    @_never_raises
    def connection_opened(
        self, connection: Any, facts: Callable[[weakref.ref[Any]], ConnectionFacts], pool: Any
    ) -> None:
        """A connection object came to be, its socket open.

        Args:
            connection: The connection.
            facts: Reads what is to be known of it, given the weak reference to keep.
            pool: The pool that is opening it, or None.
        """
        serial = next(self._serials)
        reference = weakref.ref(connection, partial(self._gone, id(connection), EventKind.CONNECTION_GONE))
        self._known[id(connection)] = (reference, serial)
        self._dying.pop(id(connection), None)
        known = self._facts[serial] = facts(reference)
        pool_serial = None if pool is None else self._serial_of_pool(pool)
        moment = self._moment()
        self._holders[serial] = moment.owner.serial
        self._record(Event(EventKind.CONNECTION_OPENED, serial, moment, pool=pool_serial, connection=known))

    def knows(self, connection: Any) -> bool:
        """Tell whether a connection was seen when it opened."""
        return id(connection) in self._known or id(connection) in self._dying

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """A connection is being opened, by somebody else than a pool."""
        token = object()
        self._connecting.add(token)
        try:
            yield
        finally:
            self._connecting.discard(token)

    @property
    def is_connecting(self) -> bool:
        """Whether a connection is being opened now."""
        return bool(self._connecting)

    @_never_raises
    def connection_closed(self, connection: Any) -> None:
        """``close()`` has closed a connection."""
        serial = self._serial(connection)
        if serial is None:
            # In a reference cycle a wrapper's own finalizer may close it after its weak reference was cleared.
            serial, _ = self._dying.get(id(connection), (None, None))
        if serial is not None:
            self._record(Event(EventKind.CONNECTION_CLOSED, serial))

    @_never_raises
    def connection_finalizing(
        self, connection: Any, transaction_status: str, is_closed: bool, is_idle_in_pool: bool
    ) -> None:
        """The garbage collector is about to free a connection."""
        if sys.is_finalizing():
            return
        serial, facts = self._serial_of_dying(connection)
        if serial is None:
            return
        if is_closed:
            # By close(), or by libpq because it broke: not by the garbage collector.
            self._record(Event(EventKind.CONNECTION_CLOSED, serial))
            return
        backend = None if is_idle_in_pool or facts is None else self._witness(facts, connection)
        self._record(
            Event(
                EventKind.CONNECTION_FINALIZED,
                serial,
                transaction_status=transaction_status,
                backend=backend,
                after_response=self._after_response(),
            )
        )

    @_never_raises
    def checked_out(self, pool: Any, connection: Any) -> None:
        """A connection was handed out by a pool."""
        if (serial := self._serial(connection)) is not None:
            pool_serial = self._serial_of_pool(pool)
            moment = self._moment()
            self._holders[serial] = moment.owner.serial
            self._record(Event(EventKind.CHECKED_OUT, serial, moment, pool=pool_serial))

    @_never_raises
    def transaction_beginning(self, connection: Any) -> None:
        """A transaction is about to begin.

        The stack is written down only where somebody uses what another one holds, a test its fixture's connection: for
        the others the line that opened the connection says it all, and they pay for nothing but the fact.
        """
        if (serial := self._serial(connection)) is None:
            return
        by_holder = self._holders.get(serial) == self._ownership.current.serial
        if not by_holder:
            self._record(Event(EventKind.TRANSACTION_BEGAN, serial, self._moment()))
        elif serial not in self._begun_by_holder:
            self._record(Event(EventKind.TRANSACTION_BEGAN, serial))
        (self._begun_by_holder.add if by_holder else self._begun_by_holder.discard)(serial)

    @_never_raises
    def returned(self, connection: Any) -> None:
        """A connection is being given back to its pool."""
        if (serial := self._serial(connection)) is not None:
            self._record(Event(EventKind.RETURNED, serial))

    @_never_raises
    def pool_opened(self, pool: Any, facts: Callable[[weakref.ref[Any]], PoolFacts]) -> None:
        """A pool was opened."""
        serial = self._serial_of_pool(pool)
        reference = self._known[id(pool)][0]
        self._record(Event(EventKind.POOL_OPENED, serial, self._moment(), opened_pool=facts(reference)))

    @_never_raises
    def pool_closed(self, pool: Any) -> None:
        """A pool was closed."""
        if (serial := self._serial(pool)) is not None:
            self._record(Event(EventKind.POOL_CLOSED, serial))

    def _moment(self) -> Moment:
        return Moment(
            time.monotonic(),
            self._ownership.current,
            capture(_INSIDE + 1),
            self._ownership.request,
            threading.current_thread().name,
            current_task(),
        )

    def _serial(self, living: Any) -> int | None:
        known = self._known.get(id(living))
        return known[1] if known is not None and known[0]() is living else None

    def _serial_of_pool(self, pool: Any) -> int:
        if (serial := self._serial(pool)) is None:
            serial = next(self._serials)
            reference = weakref.ref(pool, partial(self._gone, id(pool), EventKind.POOL_GONE))
            self._known[id(pool)] = (reference, serial)
        return serial

    def _serial_of_dying(self, connection: Any) -> tuple[int | None, ConnectionFacts | None]:
        if (serial := self._serial(connection)) is not None:
            self._finalized.add(id(connection))
            return serial, self._facts.get(serial)
        return self._dying.pop(id(connection), (None, None))

    def _gone(self, identity: int, kind: EventKind, reference: weakref.ref[Any]) -> None:
        known = self._known.get(identity)
        if known is None or known[0] is not reference:
            return
        del self._known[identity]
        facts = self._facts.pop(known[1], None)
        self._holders.pop(known[1], None)
        self._begun_by_holder.discard(known[1])
        if identity in self._finalized:
            self._finalized.discard(identity)
        elif facts is not None:
            self._dying[identity] = (known[1], facts)
        self._record(Event(kind, known[1], after_response=self._after_response()))

    def _after_response(self) -> bool | None:
        request = self._ownership.request
        return None if request is None else request.status is not None
