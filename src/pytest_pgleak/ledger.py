"""The one mutable thing: which connections and pools this process holds, from the events that were recorded.

Recording is a single ``deque.append``: it needs no lock, so it is safe from any thread and from inside the garbage
collector. Events are folded into records when somebody looks, and when something has come to its end: what is over is
forgotten then, and a suite that counts objects or bytes finds none of ours.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Container
from dataclasses import replace
from typing import Final

from pytest_pgleak.budget.meter import ConnectionMeter, Reading
from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.events import ConnectionFacts, Event, EventKind, PoolFacts
from pytest_pgleak.hangs.holders import Holder
from pytest_pgleak.nesting import NestedCheckout
from pytest_pgleak.owners import Owner
from pytest_pgleak.prepared.book import PreparedBook
from pytest_pgleak.records import (
    ConnectionRecord,
    PoolRecord,
    holder_of,
    is_closed,
    is_in_transaction,
    is_suspect,
    is_suspect_pool,
    view_connection,
    view_pools,
)
from pytest_pgleak.transactions import How, Transaction
from pytest_pgleak.views import ConnectionView, Ending, View

_REMEMBERED_PIDS: Final = 4096
_REMEMBERED_LOSSES: Final = 100
_MOST_TRANSACTIONS: Final = 1000
"""Ended transactions that are kept for the next checkpoint: a worker of a whole session may lose any number."""


class _Turn:
    """A lock that its thread may take again, and that can say whether somebody has it, this thread included."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()

    def try_alone(self) -> bool:
        """Take it unless somebody has it; whether it was taken."""
        if not self._lock.acquire(blocking=False):
            return False
        if self._depth:
            self._lock.release()
            return False
        self._depth += 1
        return True


class Ledger:
    """Folds events into records and shows them as a `View`.

    It holds no strong reference to a connection or a pool.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._connections: dict[int, ConnectionRecord] = {}
        self._pools: dict[int, PoolRecord] = {}
        self._transactions: deque[Transaction] = deque(maxlen=_MOST_TRANSACTIONS)
        self._nested: deque[NestedCheckout] = deque(maxlen=_MOST_TRANSACTIONS)
        self.roles: set[tuple[tuple[str, str], str]] = set()
        """Server and user name of every connection that was ever opened."""
        self._past_pids: deque[int] = deque(maxlen=_REMEMBERED_PIDS)
        self._lost: dict[int, Holder] = {}
        self._collected: dict[int, ConnectionView] = {}
        self._collected_serials = itertools.count(-1, -1)
        self.prepared = PreparedBook()
        self._meter: ConnectionMeter | None = None
        self._lock = _Turn()
        self.record: Callable[[Event], None] = self._events.append
        """Record an event. Never blocks."""

    def catch_up(self) -> None:
        """Fold what was recorded, unless somebody is at it. Never waits; may be called in the middle of anything."""
        if self._lock.try_alone():
            try:
                self._fold()
            finally:
                self._lock.__exit__()

    def view(self) -> View:
        """Show what is there now and has not been judged."""
        with self._lock:
            self._fold()
            pools = view_pools(self._pools, self._connections.values())
            connections = tuple(
                view
                for serial, record in list(self._connections.items())
                if not record.settled and (view := self._view_readable(serial, record)) is not None
            )
            connections += tuple(self._collected.values())
            return View(connections, pools, tuple(self._transactions), tuple(self._nested), self.prepared.open)

    def standing(self) -> tuple[tuple[ConnectionFacts, ...], frozenset[int]]:
        """Show what is there before a test, which is less than a `view`, for a third of its price.

        Returns:
            What is known of each connection that has not been judged, and the serials of those that are open and in a
            transaction in which nothing runs.
        """
        with self._lock:
            self._fold()
            records = [(serial, record) for serial, record in self._connections.items() if not record.settled]
            in_transaction = frozenset(serial for serial, record in records if self._is_in_transaction(serial, record))
            return tuple(record.facts for _, record in records), in_transaction

    def may_have_left(self, ended: Container[int], judged: Container[int]) -> bool:
        """Tell whether a `view` may show anything that a checkpoint finds. False is certain; True costs a `view`.

        Args:
            ended: Serials of the owners that have ended.
            judged: Serials of the others that the checkpoint speaks about.
        """
        with self._lock:
            self._fold()
            if self._collected or self._transactions or self._nested or self.prepared.open:
                return True
            try:
                suspects = any(is_suspect(record, ended) for record in list(self._connections.values()))
            except Exception:  # noqa: BLE001 - one that only looks like a connection: `view` takes it out
                return True
            return suspects or any(is_suspect_pool(pool, ended, judged) for pool in list(self._pools.values()))

    def known_pids(self) -> frozenset[int]:
        """Return the backend pids that this process has opened, the recently closed ones included."""
        with self._lock:
            self._fold()
            open_pids = {record.facts.backend_pid for record in self._connections.values()}
            return frozenset(open_pids.union(self._past_pids))

    def holders(self) -> tuple[Holder, ...]:
        """Show who holds what, judged or not: open connections, and the slots of pools that were lost with one."""
        with self._lock:
            self._fold()
            held = {serial: holder_of(serial, record, self._pools) for serial, record in self._connections.items()}
            return tuple((self._lost | held).values())

    def pool_facts(self, serial: int) -> PoolFacts | None:
        """Return what is known of a pool since it opened; None where it is closed, or was not seen."""
        with self._lock:
            self._fold()
            pool = self._pools.get(serial)
            return None if pool is None else pool.facts

    def open_connections(self) -> dict[tuple[str, str], dict[str, int]]:
        """Count the open connections of this process by server and database name."""
        counts: dict[tuple[str, str], dict[str, int]] = {}
        with self._lock:
            self._fold()
            for record in self._connections.values():
                if record.ending is Ending.OPEN and not is_closed(record.facts):
                    databases = counts.setdefault(record.facts.server, {})
                    databases[record.facts.dbname] = databases.get(record.facts.dbname, 0) + 1
        return counts

    def start_meter(self, meter: ConnectionMeter) -> None:
        """Let a meter see each event from now on, and what is open already."""
        with self._lock:
            self._fold()
            is_open = {
                serial: OpenConnection(serial, record.facts, record.opened, record.pool)
                for serial, record in self._connections.items()
                if record.ending is Ending.OPEN and not is_closed(record.facts)
            }
            pools = self._pools.items()
            known = {serial: (pool.facts, pool.opened) for serial, pool in pools if pool.facts and pool.opened}
            meter.start(is_open.values(), known)
            self._meter = meter

    def read_meter(self) -> Reading:
        """Read the meter, after all events that there are.

        Raises:
            LookupError: There is none.
        """
        with self._lock:
            self._fold()
            if self._meter is None:
                raise LookupError("no meter")
            return self._meter.take()

    def stop_meter(self) -> None:
        """Show a meter no more."""
        with self._lock:
            self._meter = None

    def reassign(self, finding_subject: str, serial: int, owner: Owner) -> None:
        """Charge a connection, a checkout or a pool to another owner, who turned out to answer for it.

        Args:
            finding_subject: ``"connection"``, ``"checkout"`` or ``"pool"``.
            serial: Its number.
            owner: The new owner.
        """
        with self._lock:
            self._fold()
            if finding_subject == "pool":
                pool = self._pools.get(serial)
                if pool is not None and pool.opened is not None:
                    pool.opened = replace(pool.opened, owner=owner)
                return
            record = self._connections.get(serial)
            if record is not None and finding_subject == "checkout" and record.checkout is not None:
                record.checkout = replace(record.checkout, owner=owner)
            elif record is not None:
                record.opened = replace(record.opened, owner=owner)

    def settle_connection(self, serial: int) -> None:
        """Note that a connection was judged: it will not be shown again."""
        with self._lock:
            self._forget_transactions(lambda each: each.how is How.COLLECTED and each.connection == serial)
            if (record := self._connections.get(serial)) is not None:
                record.settled = True
                self._forget_if_over(serial, record)

    def undone(self, serial: int) -> None:
        """Note that pgleak itself has ended the transaction that was left open on a connection."""
        with self._lock:
            self._fold()
            if (record := self._connections.get(serial)) is not None:
                record.is_undone = True

    def settle_transactions(self, serials: Collection[int]) -> None:
        """Note that ended transactions were judged."""
        with self._lock:
            self._forget_transactions(lambda each: each.serial in serials)

    def settle_nested(self, connections: Collection[int]) -> None:
        """Note that nested checkouts were judged, by the serials of the connections that were taken second."""
        with self._lock:
            self._nested = deque((n for n in self._nested if n.serial not in connections), maxlen=_MOST_TRANSACTIONS)

    def settle_checkout(self, serial: int) -> None:
        """Note that a checkout was judged: it will not be shown again until the connection is returned."""
        with self._lock:
            self._collected.pop(serial, None)
            if (record := self._connections.get(serial)) is not None:
                record.checkout_settled = True
                self._forget_if_over(serial, record)
            self._forget_transactions(lambda each: each.how is How.COLLECTED and each.connection == serial)

    def settle_pool(self, serial: int) -> None:
        """Note that a pool was judged: neither it nor its idle members will be shown again."""
        with self._lock:
            if (pool := self._pools.get(serial)) is not None:
                pool.settled = True

    def forget_owner(self, owner: int) -> None:
        """Let go of what belongs to an owner that has ended and been judged, or that nobody judges."""
        with self._lock:
            self._fold()
            for serial, record in list(self._connections.items()):
                if record.checkout is not None and record.checkout.owner.serial == owner:
                    record.checkout_settled = True
                if record.pool is None and record.opened.owner.serial == owner:
                    record.settled = True
                self._forget_if_over(serial, record)
            for pool in self._pools.values():
                if pool.opened is not None and pool.opened.owner.serial == owner:
                    pool.settled = True
            self._collected = {n: each for n, each in self._collected.items() if each.held.owner.serial != owner}
            self._forget_finished_pools()
            self._forget_transactions(lambda each: each.work.owner.serial == owner)
            self.settle_nested({each.serial for each in self._nested if each.second.owner.serial == owner})
            self.prepared.forget(owner)

    def _forget_transactions(self, is_over: Callable[[Transaction], bool]) -> None:
        if self._transactions:
            kept = [each for each in self._transactions if not is_over(each)]
            self._transactions = deque(kept, maxlen=_MOST_TRANSACTIONS)

    def _view_readable(self, serial: int, record: ConnectionRecord) -> ConnectionView | None:
        try:
            return view_connection(serial, record)
        except Exception:  # noqa: BLE001 - a connection that only looks like one must not end all checks
            del self._connections[serial]
            return None

    def _is_in_transaction(self, serial: int, record: ConnectionRecord) -> bool:
        try:
            return is_in_transaction(record)
        except Exception:  # noqa: BLE001 - as above
            del self._connections[serial]
            return False

    def _fold(self) -> None:
        while self._events:
            event = self._events.popleft()
            _FOLDS[event.kind](self, event)
            if self._meter is not None:
                self._meter.see(event)

    def _fold_connection_opened(self, event: Event) -> None:
        assert event.connection is not None
        assert event.moment is not None
        self._connections[event.subject] = ConnectionRecord(event.connection, event.moment, event.pool)
        self.roles.add((event.connection.server, event.connection.user))

    def _fold_connection_closed(self, event: Event) -> None:
        if (record := self._connections.get(event.subject)) is not None:
            record.ending = Ending.CLOSED
            self._forget_if_over(event.subject, record)

    def _fold_connection_finalized(self, event: Event) -> None:
        if (record := self._connections.get(event.subject)) is not None and record.ending is not Ending.CLOSED:
            record.transaction_status = event.transaction_status
            record.backend = event.backend
            record.after_response = event.after_response

    def _fold_connection_gone(self, event: Event) -> None:
        if (record := self._connections.get(event.subject)) is None:
            return
        if record.ending is Ending.OPEN:
            record.ending = Ending.DROPPED
            pool = self._pools.get(record.pool) if record.pool is not None and record.checkout is None else None
            if pool is not None:
                pool.dropped += 1
        if record.after_response is None:
            record.after_response = event.after_response
        self._forget_if_over(event.subject, record)

    def _fold_checked_out(self, event: Event) -> None:
        if (record := self._connections.get(event.subject)) is not None:
            record.checkout, record.taken = event.moment, None
            record.checkout_settled = False
            record.pool = event.pool
            if event.held is not None and event.moment is not None and event.pool is not None:
                self._note_nested(NestedCheckout(event.subject, record.facts, event.pool, *event.held, event.moment))

    def _fold_taken_for(self, event: Event) -> None:
        record = self._connections.get(event.subject)
        if record is None or record.checkout is None or record.taken is not None or record.pool is None:
            return
        pool = self._pools.get(record.pool)
        if pool is not None and pool.facts is not None and pool.facts.library.is_of_session(record.checkout.stack):
            record.checkout, record.taken = event.moment, record.checkout

    def _note_nested(self, nested: NestedCheckout) -> None:
        pool = self._pools.get(nested.pool)
        if pool is not None and pool.facts is not None and not pool.facts.max_size:
            return  # a null pool without a limit: it opens as many as are asked for
        if not any(nested.is_like(other) for other in self._nested):
            self._nested.append(nested)

    def _fold_transaction_began(self, event: Event) -> None:
        if (record := self._connections.get(event.subject)) is not None:
            record.began = event.moment

    def _fold_transaction_ended(self, event: Event) -> None:
        assert event.transaction is not None
        record = self._connections.get(event.subject)
        if record is not None:
            record.began = None
            if event.transaction.committed and _is_of_no_request(event.transaction):
                return  # all is well, and it makes good for nothing that a request has lost
            holder = record.checkout or record.opened
            pool = self._pools.get(record.pool) if record.pool is not None else None
            facts = pool.facts if pool is not None else None
            of_session = record.taken is not None
            ended = replace(event.transaction, pool=record.pool, pool_facts=facts, holder=holder, of_session=of_session)
            self._transactions.append(ended)

    def _fold_transaction_finished(self, event: Event) -> None:
        if (record := self._connections.get(event.subject)) is not None:
            record.was_finished = True
            record.is_undone = False

    def _fold_returned(self, event: Event) -> None:
        self._lost.pop(event.subject, None)
        if (record := self._connections.get(event.subject)) is not None:
            record.checkout = record.taken = record.began = None
            record.checkout_settled = False
            record.is_undone = False
            self._forget_if_over(event.subject, record)

    def _fold_checkout_collected(self, event: Event) -> None:
        record = self._connections.get(event.subject)
        if record is None or record.checkout is None:
            return
        while len(self._collected) >= _REMEMBERED_LOSSES:
            del self._collected[next(iter(self._collected))]
        # A number of its own: the connection itself lives on in its pool, and may be checked out again at once.
        serial = next(self._collected_serials)
        self._collected[serial] = ConnectionView(
            serial,
            record.facts,
            record.opened,
            Ending.DROPPED,
            record.pool,
            record.checkout,
            event.transaction_status,
            event.backend,
            event.after_response,
            None,
            record.began,
            taken=record.taken,
        )
        self._fold_returned(event)

    def _fold_detached(self, event: Event) -> None:
        self._fold_returned(event)
        record = self._connections.get(event.subject)
        if record is not None and event.moment is not None:
            pool = self._pools.get(record.pool) if record.pool is not None else None
            if pool is not None and pool.facts is not None:
                record.facts = replace(record.facts, written_with=pool.facts.library)
            record.pool, record.opened = None, event.moment

    def _fold_prepared(self, event: Event) -> None:
        self.prepared.fold(event)

    def _fold_pool_opened(self, event: Event) -> None:
        before = self._pools.get(event.pool) if event.pool is not None else None
        opened = before.opened if before is not None else event.moment
        self._pools[event.subject] = PoolRecord(event.opened_pool, opened)

    def _fold_pool_closed(self, event: Event) -> None:
        if (pool := self._pools.get(event.subject)) is not None:
            pool.ending = Ending.CLOSED
            self._forget_finished_pools()

    def _fold_pool_gone(self, event: Event) -> None:
        if (pool := self._pools.get(event.subject)) is not None and pool.ending is Ending.OPEN:
            pool.ending = Ending.DROPPED
            self._forget_finished_pools()

    def _forget_if_over(self, serial: int, record: ConnectionRecord) -> None:
        if record.is_over and self._connections.pop(serial, None) is not None:
            self._past_pids.append(record.facts.backend_pid)
            if record.checkout is not None:
                while len(self._lost) >= _REMEMBERED_LOSSES:
                    del self._lost[next(iter(self._lost))]
                self._lost[serial] = holder_of(serial, record, self._pools)

    def _forget_finished_pools(self) -> None:
        # A closed pool is kept as long as a checkout of it is out: the finding names the pool.
        used = {record.pool for record in self._connections.values()}
        for serial, pool in list(self._pools.items()):
            done = pool.ending is Ending.CLOSED or (pool.settled and pool.ending is Ending.DROPPED)
            if done and serial not in used:
                del self._pools[serial]
        if self._lost:
            self._lost = {serial: lost for serial, lost in self._lost.items() if lost.pool in self._pools}


_FOLDS: Final[dict[EventKind, Callable[[Ledger, Event], None]]] = {
    EventKind.CONNECTION_OPENED: Ledger._fold_connection_opened,
    EventKind.CONNECTION_CLOSED: Ledger._fold_connection_closed,
    EventKind.CONNECTION_FINALIZED: Ledger._fold_connection_finalized,
    EventKind.CONNECTION_GONE: Ledger._fold_connection_gone,
    EventKind.CHECKED_OUT: Ledger._fold_checked_out,
    EventKind.TAKEN_FOR: Ledger._fold_taken_for,
    EventKind.TRANSACTION_ENDED: Ledger._fold_transaction_ended,
    EventKind.TRANSACTION_FINISHED: Ledger._fold_transaction_finished,
    EventKind.RETURNED: Ledger._fold_returned,
    EventKind.CHECKOUT_COLLECTED: Ledger._fold_checkout_collected,
    EventKind.DETACHED: Ledger._fold_detached,
    EventKind.TRANSACTION_BEGAN: Ledger._fold_transaction_began,
    EventKind.PREPARED: Ledger._fold_prepared,
    EventKind.POOL_OPENED: Ledger._fold_pool_opened,
    EventKind.POOL_CLOSED: Ledger._fold_pool_closed,
    EventKind.POOL_GONE: Ledger._fold_pool_gone,
}


def _is_of_no_request(transaction: Transaction) -> bool:
    return transaction.work.request is None and transaction.ended.request is None
