"""What the ledger has written down, and how each event changes it. Whoever calls holds the ledger's lock."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Final

from pytest_pgleak.activity import Backend
from pytest_pgleak.budget.meter import ConnectionMeter
from pytest_pgleak.events import Event, EventKind
from pytest_pgleak.hangs.holders import Holder
from pytest_pgleak.nesting import NestedCheckout
from pytest_pgleak.prepared.book import PreparedBook
from pytest_pgleak.records import ConnectionRecord, PoolRecord, holder_of
from pytest_pgleak.transactions import Transaction
from pytest_pgleak.views import ConnectionView, Ending

_REMEMBERED_PIDS: Final = 4096
_REMEMBERED_LOSSES: Final = 100
MOST_TRANSACTIONS: Final = 1000
"""Ended transactions that are kept for the next checkpoint: a worker of a whole session may lose any number."""


class Books:
    """Connections, pools and what has ended, by their serials.

    Attributes:
        connections: Those that are open, and those that are over and have not been judged.
        pools: The same of pools.
        transactions: Those that have ended and have not been judged.
        nested: Second checkouts that have not been judged.
        roles: Server and user name of every connection that was ever opened.
        past_pids: Backends of connections that are forgotten, the oldest first.
        closed: How many those are.
        lost: Who took slots of pools that are gone for good.
        collected: Checkouts that the garbage collector has ended, by numbers of their own.
        prepared: The prepared transactions.
        meter: Sees each event, as long as there is one.
    """

    def __init__(self) -> None:
        self.connections: dict[int, ConnectionRecord] = {}
        self.pools: dict[int, PoolRecord] = {}
        self.transactions: deque[Transaction] = deque(maxlen=MOST_TRANSACTIONS)
        self.nested: deque[NestedCheckout] = deque(maxlen=MOST_TRANSACTIONS)
        self.roles: set[tuple[tuple[str, str], str]] = set()
        self.past_pids: dict[int, None] = {}
        self.closed = 0
        self.lost: dict[int, Holder] = {}
        self.collected: dict[int, ConnectionView] = {}
        self._collected_serials = itertools.count(-1, -1)
        self.prepared = PreparedBook()
        self.meter: ConnectionMeter | None = None

    def fold(self, event: Event) -> None:
        """Write down what has happened."""
        self._folds[event.kind](self, event)
        if self.meter is not None:
            self.meter.see(event)

    def _fold_connection_opened(self, event: Event) -> None:
        assert event.connection is not None
        assert event.moment is not None
        self.connections[event.subject] = ConnectionRecord(event.connection, event.moment, event.pool)
        self.roles.add((event.connection.server, event.connection.user))

    def _fold_connection_closed(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is not None:
            record.ending = Ending.CLOSED
            self.forget_if_over(event.subject, record)

    def _fold_connection_finalized(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is not None and record.ending is not Ending.CLOSED:
            record.transaction_status = event.transaction_status
            record.backend = event.backend
            record.after_response = event.after_response
            record.with_thread = event.with_thread

    def _fold_connection_gone(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is None:
            return
        if record.ending is Ending.OPEN:
            record.ending = Ending.DROPPED
            pool = self.pools.get(record.pool) if record.pool is not None and record.checkout is None else None
            if pool is not None:
                pool.dropped += 1
        if record.after_response is None:
            record.after_response = event.after_response
        self.forget_if_over(event.subject, record)

    def _fold_checked_out(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is not None:
            record.checkout, record.taken = event.moment, None
            record.checkout_settled = False
            record.pool = event.pool
            if event.held is not None and event.moment is not None and event.pool is not None:
                self._note_nested(NestedCheckout(event.subject, record.facts, event.pool, *event.held, event.moment))

    def _fold_taken_for(self, event: Event) -> None:
        record = self.connections.get(event.subject)
        if record is None or record.checkout is None or record.taken is not None or record.pool is None:
            return
        pool = self.pools.get(record.pool)
        if pool is not None and pool.facts is not None and pool.facts.library.is_of_session(record.checkout.stack):
            record.checkout, record.taken = event.moment, record.checkout

    def _note_nested(self, nested: NestedCheckout) -> None:
        pool = self.pools.get(nested.pool)
        if pool is not None and pool.facts is not None and not pool.facts.max_size:
            return  # a null pool without a limit: it opens as many as are asked for
        if not any(nested.is_like(other) for other in self.nested):
            self.nested.append(nested)

    def _fold_transaction_began(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is not None:
            record.began = event.moment

    def _fold_transaction_ended(self, event: Event) -> None:
        assert event.transaction is not None
        record = self.connections.get(event.subject)
        if record is not None:
            record.began = None
            if event.transaction.committed and _is_of_no_request(event.transaction):
                return  # all is well, and it makes good for nothing that a request has lost
            holder = record.checkout or record.opened
            pool = self.pools.get(record.pool) if record.pool is not None else None
            facts = pool.facts if pool is not None else None
            of_session = record.taken is not None
            ended = replace(event.transaction, pool=record.pool, pool_facts=facts, holder=holder, of_session=of_session)
            self.transactions.append(ended)

    def _fold_transaction_finished(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is not None:
            record.was_finished = True
            record.is_undone = False

    def _fold_returned(self, event: Event) -> None:
        self.lost.pop(event.subject, None)
        if (record := self.connections.get(event.subject)) is not None:
            record.checkout = record.taken = record.began = None
            record.checkout_settled = False
            record.is_undone = False
            self.forget_if_over(event.subject, record)

    def _fold_checkout_collected(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is not None and record.checkout is not None:
            self._note_collected(record, event.transaction_status, event.backend, event.after_response)
            self._fold_returned(event)

    def _fold_connection_revived(self, event: Event) -> None:
        if (record := self.connections.get(event.subject)) is None or event.connection is None:
            return  # it was judged when it seemed to be gone
        if record.checkout is not None and not record.checkout_settled:
            self._note_collected(record, record.transaction_status, record.backend, record.after_response)
        record.facts, record.ending = event.connection, Ending.OPEN
        record.transaction_status = record.backend = record.after_response = None

    def _note_collected(
        self, record: ConnectionRecord, status: str | None, backend: Backend | None, after_response: bool | None
    ) -> None:
        while len(self.collected) >= _REMEMBERED_LOSSES:
            del self.collected[next(iter(self.collected))]
        # A number of its own: the connection itself lives on in its pool, and may be checked out again at once.
        serial = next(self._collected_serials)
        self.collected[serial] = ConnectionView(
            serial,
            record.facts,
            record.opened,
            Ending.DROPPED,
            record.pool,
            record.checkout,
            status,
            backend,
            after_response,
            None,
            record.began,
            taken=record.taken,
        )

    def _fold_detached(self, event: Event) -> None:
        self._fold_returned(event)
        record = self.connections.get(event.subject)
        if record is not None and event.moment is not None:
            pool = self.pools.get(record.pool) if record.pool is not None else None
            if pool is not None and pool.facts is not None:
                record.facts = replace(record.facts, written_with=pool.facts.library)
            record.pool, record.opened = None, event.moment

    def _fold_prepared(self, event: Event) -> None:
        self.prepared.fold(event)

    def _fold_pool_opened(self, event: Event) -> None:
        before = self.pools.get(event.pool) if event.pool is not None else None
        opened = before.opened if before is not None else event.moment
        self.pools[event.subject] = PoolRecord(event.opened_pool, opened)

    def _fold_pool_closed(self, event: Event) -> None:
        if (pool := self.pools.get(event.subject)) is not None:
            pool.ending = Ending.CLOSED
            self.forget_finished_pools()

    def _fold_pool_gone(self, event: Event) -> None:
        if (pool := self.pools.get(event.subject)) is not None and pool.ending is Ending.OPEN:
            pool.ending = Ending.DROPPED
            self.forget_finished_pools()

    def forget_if_over(self, serial: int, record: ConnectionRecord) -> None:
        """Let go of a connection of which nothing is left to judge."""
        if record.is_over and self.connections.pop(serial, None) is not None:
            self._remember_pid(record.facts.backend_pid)
            if record.checkout is not None:
                while len(self.lost) >= _REMEMBERED_LOSSES:
                    del self.lost[next(iter(self.lost))]
                self.lost[serial] = holder_of(serial, record, self.pools)

    def _remember_pid(self, pid: int) -> None:
        self.closed += 1
        self.past_pids.pop(pid, None)
        self.past_pids[pid] = None
        if len(self.past_pids) > _REMEMBERED_PIDS:
            del self.past_pids[next(iter(self.past_pids))]

    def forget_finished_pools(self) -> None:
        """Let go of pools of which nothing is left to judge."""
        # A closed pool is kept as long as a checkout of it is out: the finding names the pool.
        used = {record.pool for record in self.connections.values()}
        for serial, pool in list(self.pools.items()):
            done = pool.ending is Ending.CLOSED or (pool.settled and pool.ending is Ending.DROPPED)
            if done and serial not in used:
                del self.pools[serial]
        if self.lost:
            self.lost = {serial: lost for serial, lost in self.lost.items() if lost.pool in self.pools}

    _folds: ClassVar[dict[EventKind, Callable[[Books, Event], None]]] = {
        EventKind.CONNECTION_OPENED: _fold_connection_opened,
        EventKind.CONNECTION_CLOSED: _fold_connection_closed,
        EventKind.CONNECTION_FINALIZED: _fold_connection_finalized,
        EventKind.CONNECTION_GONE: _fold_connection_gone,
        EventKind.CONNECTION_REVIVED: _fold_connection_revived,
        EventKind.CHECKED_OUT: _fold_checked_out,
        EventKind.TAKEN_FOR: _fold_taken_for,
        EventKind.TRANSACTION_ENDED: _fold_transaction_ended,
        EventKind.TRANSACTION_FINISHED: _fold_transaction_finished,
        EventKind.RETURNED: _fold_returned,
        EventKind.CHECKOUT_COLLECTED: _fold_checkout_collected,
        EventKind.DETACHED: _fold_detached,
        EventKind.TRANSACTION_BEGAN: _fold_transaction_began,
        EventKind.PREPARED: _fold_prepared,
        EventKind.POOL_OPENED: _fold_pool_opened,
        EventKind.POOL_CLOSED: _fold_pool_closed,
        EventKind.POOL_GONE: _fold_pool_gone,
    }


def _is_of_no_request(transaction: Transaction) -> bool:
    return transaction.work.request is None and transaction.ended.request is None
