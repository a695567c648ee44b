"""From living objects to events: gives each connection and pool a number and writes down what happens to it."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_pgleak.activity import Backend
from pytest_pgleak.awaiters import awaiter
from pytest_pgleak.clock import Clock
from pytest_pgleak.events import ConnectionFacts, Event, EventKind, Moment, PoolFacts
from pytest_pgleak.frames import capture, is_thread_ending
from pytest_pgleak.half_open import HalfOpen
from pytest_pgleak.lent import Lent, lends_sessions
from pytest_pgleak.never_raises import never_raises
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.prepared.gids import GidUse
from pytest_pgleak.serials import Serials
from pytest_pgleak.tasks import current_task
from pytest_pgleak.transaction_tracking import Operation, TransactionTracking, how_of
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.hangs.slot_notes import SlotNotes
    from pytest_pgleak.observers import Observers
    from pytest_pgleak.pgbouncer.sessions import SharedSessions
    from pytest_pgleak.session_state.tracking import SessionTracking

_INSIDE = 4
"""Frames between the watched call and `capture`: the wrapper, the guard, the tracker's method, `_moment`."""


class Tracker:
    """Turns what the patched libraries tell it into events. Holds no strong reference to what it is told about.

    Args:
        record: Takes each event.
        ownership: Says on whose account things happen.
        witness: Looks at what the open transaction of a connection has written; its last argument says whether to wait
            for another thread's look, which a finalizer must not.
        is_checking: Tells whether a test is being checked: only then transactions are followed.
        fault: Takes note, inside an ``except`` block, of a fault of the plugin; the argument says where.
        catch_up: Called when something has come to its end. It never waits.
    """

    def __init__(
        self,
        record: Callable[[Event], None],
        ownership: Ownership,
        witness: Callable[[ConnectionFacts, Any, bool], Backend | None],
        is_checking: Callable[[], bool],
        fault: Callable[[str], None],
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.fault = fault
        self._catch_up = catch_up
        self._record = record
        self._ownership = ownership
        self._witness = witness
        self._serials = Serials()
        self._facts = self._serials.facts
        self.half_open = HalfOpen()
        self.is_checking = is_checking
        self.slots: SlotNotes | None = None
        """Explains why there is no connection left."""
        self.sessions: SessionTracking | None = None
        """Knows what was left in the sessions of pooled connections."""
        self.observers: Observers | None = None
        """Know the servers."""
        self.shared: SharedSessions | None = None
        """Knows what was left on server connections of PgBouncer's."""
        self.executed: Callable[[int, ConnectionFacts, str, str, Callable[[], Moment]], None] | None = None
        """Told of each statement: the connection's serial and facts, its status then, the server's answer, where."""
        self._lent = Lent()
        self._closes_instead: set[int] = set()
        self._transactions = TransactionTracking(
            record, self._moment, lambda facts, connection: witness(facts, connection, True)
        )

    @never_raises
    def connection_opened(
        self, connection: Any, facts: Callable[[weakref.ref[Any]], ConnectionFacts], pool: Any
    ) -> None:
        """A connection object came to be, its socket open.

        Args:
            connection: The connection.
            facts: Reads what is to be known of it, given the weak reference to keep.
            pool: The pool that is opening it, or None.
        """
        serial, reference = self._serials.give(connection, self._connection_gone)
        known = self._facts[serial] = facts(reference)
        pool_serial = None if pool is None else self._serial_of_pool(pool)
        self._record(Event(EventKind.CONNECTION_OPENED, serial, self._moment(), pool=pool_serial, connection=known))
        if self.sessions is not None and known.library.lends_sessions and lends_sessions(type(pool)):
            self.sessions.opened(serial, known)
        if self.observers is not None and self.is_checking():
            self.observers.opened(known, connection)
        if self.shared is not None and self.shared.follows(known):
            self.shared.opened(serial)

    def stop(self) -> None:
        """Tell nobody of anything any more."""
        self._record = self._transactions.record = lambda _event: None
        self.is_checking = lambda: False

    def knows(self, connection: Any) -> bool:
        """Tell whether a connection was seen when it opened."""
        return connection in self._serials

    @never_raises
    def connection_closed(self, connection: Any) -> None:
        """``close()`` has closed a connection."""
        # In a reference cycle a wrapper's own finalizer may close it after its weak reference was cleared.
        if (serial := self._serials.of_closed(connection)) is not None:
            self._record(Event(EventKind.CONNECTION_CLOSED, serial))
            if self.shared is not None:
                self.shared.closed(serial)
            self._catch_up()

    @never_raises
    def connection_finalizing(
        self, connection: Any, transaction_status: str, is_closed: bool, is_idle_in_pool: bool
    ) -> None:
        """The garbage collector is about to free a connection."""
        if sys.is_finalizing():
            return
        serial, facts = self._serials.of_finalizing(connection)
        if serial is None:
            return
        if is_closed:
            # By close(), or by libpq because it broke: not by the garbage collector.
            self._record(Event(EventKind.CONNECTION_CLOSED, serial))
            return
        backend = None if is_idle_in_pool or facts is None else self._witness(facts, connection, False)
        if facts is not None:
            self._transactions.collected(serial, facts, transaction_status, backend)
        self._collected(EventKind.CONNECTION_FINALIZED, serial, transaction_status, backend)

    @never_raises
    def checked_out(self, pool: Any, connection: Any) -> None:
        """A connection was handed out by a pool."""
        if (serial := self._serials.of(connection)) is not None:
            pool_serial = self._serial_of_pool(pool)
            moment = self._moment()
            held = self._lent.add(serial, pool_serial, moment) if self.is_checking() else None
            self._record(Event(EventKind.CHECKED_OUT, serial, moment, pool=pool_serial, held=held))
            self._closes_instead.discard(serial)
            if self.sessions is not None and lends_sessions(type(pool)):
                self.sessions.checked_out(serial, self._facts[serial], connection, pool, pool_serial, moment)

    @never_raises
    def taken_for(self, connection: Any, made: Moment) -> None:
        """A session, made before, is what has a connection now.

        Args:
            connection: The connection.
            made: Where the session was made. Who made it answers for the checkout, unless his time is over.
        """
        serial = self._serials.of(connection)
        if serial is not None and not self._ownership.is_over(made.owner):
            self._record(Event(EventKind.TAKEN_FOR, serial, made))

    def here(self) -> Moment | None:
        """Say when, where and on whose account something happens now; None where that cannot be told."""
        try:
            return self._moment(_INSIDE)  # there is no guard in between
        except Exception:  # noqa: BLE001 - whatever it is, the application must not notice
            self.fault("tracking (here)")
            return None

    @never_raises
    def configuring(self, connection: Any, operation: Operation) -> None:
        """A pool is about to ask one of its own connections for something."""
        serial = self._serials.of(connection)
        if self.sessions is not None and serial is not None and operation.statement is not None:
            self.sessions.statement(serial, operation.statement, operation.parameters, self._moment)

    @never_raises
    def configured(self, connection: Any) -> None:
        """A pool has opened and configured a connection."""
        if self.sessions is not None and (serial := self._serials.of(connection)) is not None:
            self.sessions.configured(serial, connection)

    @never_raises
    def connection_leaves_pool(self, connection: Any) -> None:
        """A pool is about to close one of its own connections."""
        if self.sessions is not None and (serial := self._serials.of(connection)) is not None:
            self.sessions.closing(serial, connection)

    @never_raises
    def operation_begins(self, connection: Any, status: str, operation: Operation) -> None:
        """A connection is about to be asked for something: a statement, a commit, a rollback.

        Args:
            connection: The connection.
            status: Name of its ``TransactionStatus``.
            operation: What it is asked for.
        """
        if (serial := self._serials.of(connection)) is not None and self._transactions.is_open(serial):
            self._transactions.before(serial, self._facts[serial], connection, status, operation)

    @never_raises
    def operation_ended(
        self, connection: Any, statuses: tuple[str, str], operation: Operation, error: BaseException | None
    ) -> None:
        """A connection has done what it was asked for, or failed.

        Args:
            connection: The connection.
            statuses: Names of its ``TransactionStatus`` before and after.
            operation: What it was asked for.
            error: The exception that it ended with.
        """
        if (serial := self._serials.of(connection)) is not None:
            facts = self._facts[serial]
            autocommit = facts.library.is_autocommit(connection)
            if serial in self._closes_instead and how_of(operation) is How.ROLLBACK:
                self._closes_instead.discard(serial)
                operation = replace(operation, how=How.CLOSE)
            self._transactions.after(serial, facts, statuses, operation, error, autocommit)
            if self.executed is not None and error is None:
                self.executed(serial, facts, statuses[1], operation.answer, self._moment)
            if self.sessions is not None and operation.statement is not None:
                self.sessions.statement(serial, operation.statement, operation.parameters, self._moment)
            if self.shared is not None and self.shared.follows(facts):
                self.shared.ended(serial, facts, connection, statuses, operation, error, self._moment)
            if operation.gids and error is None and statuses[0] != "INERROR":  # a failed one is only rolled back
                self._prepared(serial, connection, operation.gids)
            if statuses[1] == "IDLE" != statuses[0]:
                self._catch_up()

    @never_raises
    def transaction_ending(self, connection: Any, status: str, how: How) -> None:
        """A connection is about to be closed or given back.

        Args:
            connection: The connection.
            status: Name of its ``TransactionStatus``.
            how: What ends the transaction, if one is open.
        """
        if (serial := self._serials.of(connection)) is not None and self.is_checking():
            self._transactions.ending(serial, self._facts[serial], connection, status, how)

    @never_raises
    def returned(self, connection: Any) -> None:
        """A connection is being given back to its pool."""
        serial = self._serials.of(connection)
        if serial is None and (alive := self._serials.give_again(connection, self._connection_gone)) is not None:
            serial, facts = alive
            self._record(Event(EventKind.CONNECTION_REVIVED, serial, connection=facts))
        if serial is not None:
            self._lent.discard(serial)
            self._record(Event(EventKind.RETURNED, serial))
            if self.sessions is not None:
                self.sessions.returned(serial)
            self._catch_up()

    @never_raises
    def checkout_collected(self, connection: Any) -> None:
        """The garbage collector has found a checkout that nobody gave back, and its pool is about to take it back."""
        serial = self._serials.of(connection)
        if serial is None or sys.is_finalizing():
            return
        facts = self._facts[serial]
        status = facts.library.transaction_status(connection)
        backend = self._witness(facts, connection, False)
        self._transactions.collected(serial, facts, status, backend)
        self._lent.discard(serial)
        self._collected(EventKind.CHECKOUT_COLLECTED, serial, status, backend)

    @never_raises
    def detached(self, connection: Any) -> None:
        """A connection was taken out of its pool for good: whoever has it has to close it."""
        if (serial := self._serials.of(connection)) is not None:
            self._lent.discard(serial)
            self._record(Event(EventKind.DETACHED, serial, self._moment()))

    @never_raises
    def closes_instead(self, connection: Any) -> None:
        """The next rollback of a connection is what its library does where somebody only closes, or gives back."""
        if (serial := self._serials.of(connection)) is not None:
            self._closes_instead.add(serial)

    @never_raises
    def ending_because_of(self, connection: Any, error: BaseException) -> None:
        """A library ends the transaction of a connection while it handles an exception, which the driver cannot see."""
        if (serial := self._serials.of(connection)) is not None:
            self._transactions.ending_because_of(serial, error)

    @never_raises
    def pool_opened(self, pool: Any, facts: Callable[[weakref.ref[Any]], PoolFacts], instead_of: Any = None) -> None:
        """A pool was opened.

        Args:
            pool: The pool.
            facts: Reads what is to be known of it, given the weak reference to keep.
            instead_of: The pool whose place it takes, and whose owner becomes its own.
        """
        serial, reference = self._serials.give_once(pool, self._pool_gone)
        known = facts(reference)
        before = None if instead_of is None else self._serials.of(instead_of)
        self._record(Event(EventKind.POOL_OPENED, serial, self._moment(), pool=before, opened_pool=known))

    @never_raises
    def starved(self, pool: Any, error: BaseException) -> None:
        """A pool had no connection to give."""
        if self.slots is not None and self.is_checking():
            self.slots.pool_starved(pool, self._serial_of_pool(pool), error)

    @never_raises
    def refused(self, error: BaseException) -> None:
        """A server has refused a connection."""
        if self.slots is not None and self.is_checking():
            self.slots.refused(error)

    @never_raises
    def pool_has_tried(self, pool: Any, error: BaseException | None) -> None:
        """A pool has tried to open a connection for itself; ``error`` is None where it could."""
        if self.slots is not None:
            self.slots.pool_has_tried(self._serial_of_pool(pool), error)

    @never_raises
    def pool_closed(self, pool: Any) -> None:
        """A pool was closed."""
        if (serial := self._serials.of(pool)) is not None:
            self._record(Event(EventKind.POOL_CLOSED, serial))

    def _prepared(self, serial: int, connection: Any, gids: Iterable[GidUse]) -> None:
        facts, moment = self._facts[serial], self._moment()
        self._witness(facts, connection, True)  # its server is known from then on, be the connection closed
        for gid in gids:
            self._record(Event(EventKind.PREPARED, serial, moment, connection=facts, gid=gid))

    def _moment(self, depth: int = _INSIDE + 1) -> Moment:
        stack = capture(depth)
        if (waiting := awaiter()) is not None:
            stack += waiting.stack
        return Moment(
            Clock.monotonic(),
            self._ownership.current,
            stack,
            self._ownership.request,
            threading.current_thread().name,
            current_task(),
        )

    def _serial_of_pool(self, pool: Any) -> int:
        return self._serials.give_once(pool, self._pool_gone)[0]

    def _pool_gone(self, identity: int, reference: weakref.ref[Any]) -> None:
        if (serial := self._serials.let_go(identity, reference)) is not None:
            self._record(Event(EventKind.POOL_GONE, serial, after_response=self._after_response()))

    def _connection_gone(self, identity: int, reference: weakref.ref[Any]) -> None:
        if (serial := self._serials.let_go(identity, reference)) is None:
            return
        self._transactions.forget(serial)
        if self.shared is not None:
            self.shared.closed(serial)
        if self.sessions is not None:
            self.sessions.forget(serial)
        self._lent.discard(serial)
        self._closes_instead.discard(serial)
        self._record(Event(EventKind.CONNECTION_GONE, serial, after_response=self._after_response()))

    def _collected(self, kind: EventKind, serial: int, status: str, backend: Backend | None) -> None:
        after, ending = self._after_response(), is_thread_ending()
        self._record(
            Event(kind, serial, transaction_status=status, backend=backend, after_response=after, with_thread=ending)
        )

    def _after_response(self) -> bool | None:
        request = self._ownership.request
        return None if request is None else request.status is not None
