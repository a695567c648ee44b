"""The one mutable thing: which connections and pools this process holds, from the events that were recorded.

Recording is a single ``deque.append``: it needs no lock, so it is safe from any thread and from inside the garbage
collector. Events are folded into records when somebody looks, and when something has come to its end: what is over is
forgotten then, and a suite that counts objects or bytes finds none of ours.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import replace

from pytest_pgleak.books import MOST_TRANSACTIONS, Books
from pytest_pgleak.budget.meter import ConnectionMeter, Reading
from pytest_pgleak.budget.peaks import OpenConnection
from pytest_pgleak.events import ConnectionFacts, Event, PoolFacts
from pytest_pgleak.hangs.holders import Holder
from pytest_pgleak.owners import Owner
from pytest_pgleak.records import (
    ConnectionRecord,
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
        self._books = Books()
        self.roles = self._books.roles
        """Server and user name of every connection that was ever opened."""
        self.prepared = self._books.prepared
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
            pools = view_pools(self._books.pools, self._books.connections.values())
            connections = tuple(
                view
                for serial, record in list(self._books.connections.items())
                if not record.settled and (view := self._view_readable(serial, record)) is not None
            )
            connections += tuple(self._books.collected.values())
            return View(
                connections, pools, tuple(self._books.transactions), tuple(self._books.nested), self.prepared.open
            )

    def standing(self) -> tuple[tuple[ConnectionFacts, ...], frozenset[int]]:
        """Show what is there before a test, which is less than a `view`, for a third of its price.

        Returns:
            What is known of each connection that has not been judged, and the serials of those that are open and in a
            transaction in which nothing runs.
        """
        with self._lock:
            self._fold()
            records = [(serial, record) for serial, record in self._books.connections.items() if not record.settled]
            in_transaction = frozenset(serial for serial, record in records if self._is_in_transaction(serial, record))
            # One that only looks like a connection is no longer among them.
            return tuple(
                record.facts for serial, record in records if serial in self._books.connections
            ), in_transaction

    def may_have_left(self, ended: Container[int], judged: Container[int]) -> bool:
        """Tell whether a `view` may show anything that a checkpoint finds. False is certain; True costs a `view`.

        Args:
            ended: Serials of the owners that have ended.
            judged: Serials of the others that the checkpoint speaks about.
        """
        with self._lock:
            self._fold()
            if self._books.collected or self._books.transactions or self._books.nested or self.prepared.open:
                return True
            try:
                suspects = any(is_suspect(record, ended) for record in list(self._books.connections.values()))
            except Exception:  # noqa: BLE001 - one that only looks like a connection: `view` takes it out
                return True
            return suspects or any(is_suspect_pool(pool, ended, judged) for pool in list(self._books.pools.values()))

    def known_pids(self) -> frozenset[int]:
        """Return the backend pids that this process has opened, the recently closed ones included."""
        with self._lock:
            self._fold()
            open_pids = {record.facts.backend_pid for record in self._books.connections.values()}
            return frozenset(open_pids.union(self._books.past_pids))

    def known_among(self, pids: Iterable[int]) -> frozenset[int]:
        """Return those of some backend pids that are among `known_pids`, of which a long session has thousands."""
        with self._lock:
            self._fold()
            open_pids = {record.facts.backend_pid for record in self._books.connections.values()}
            return frozenset(pid for pid in pids if pid in open_pids or pid in self._books.past_pids)

    @property
    def closed(self) -> int:
        """How many connections are over and forgotten, as of the last look."""
        return self._books.closed

    def holders(self) -> tuple[Holder, ...]:
        """Show who holds what, judged or not: open connections, and the slots of pools that were lost with one."""
        with self._lock:
            self._fold()
            held = {
                serial: holder_of(serial, record, self._books.pools)
                for serial, record in self._books.connections.items()
            }
            return tuple((self._books.lost | held).values())

    def pool_facts(self, serial: int) -> PoolFacts | None:
        """Return what is known of a pool since it opened; None where it is closed, or was not seen."""
        with self._lock:
            self._fold()
            pool = self._books.pools.get(serial)
            return None if pool is None else pool.facts

    def open_connections(self) -> dict[tuple[str, str], dict[str, int]]:
        """Count the open connections of this process by server and database name."""
        counts: dict[tuple[str, str], dict[str, int]] = {}
        with self._lock:
            self._fold()
            for record in self._books.connections.values():
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
                for serial, record in self._books.connections.items()
                if record.ending is Ending.OPEN and not is_closed(record.facts)
            }
            pools = self._books.pools.items()
            known = {serial: (pool.facts, pool.opened) for serial, pool in pools if pool.facts and pool.opened}
            meter.start(is_open.values(), known)
            self._books.meter = meter

    def read_meter(self) -> Reading:
        """Read the meter, after all events that there are.

        Raises:
            LookupError: There is none.
        """
        with self._lock:
            self._fold()
            if self._books.meter is None:
                raise LookupError("no meter")
            return self._books.meter.take()

    def stop_meter(self) -> None:
        """Show a meter no more."""
        with self._lock:
            self._books.meter = None

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
                pool = self._books.pools.get(serial)
                if pool is not None and pool.opened is not None:
                    pool.opened = replace(pool.opened, owner=owner)
                return
            record = self._books.connections.get(serial)
            if record is not None and finding_subject == "checkout" and record.checkout is not None:
                record.checkout = replace(record.checkout, owner=owner)
            elif record is not None:
                record.opened = replace(record.opened, owner=owner)

    def settle_connection(self, serial: int) -> None:
        """Note that a connection was judged: it will not be shown again."""
        with self._lock:
            self._forget_transactions(lambda each: each.how is How.COLLECTED and each.connection == serial)
            if (record := self._books.connections.get(serial)) is not None:
                record.settled = True
                self._books.forget_if_over(serial, record)

    def undone(self, serial: int) -> None:
        """Note that pgleak itself has ended the transaction that was left open on a connection."""
        with self._lock:
            self._fold()
            if (record := self._books.connections.get(serial)) is not None:
                record.is_undone = True

    def settle_transactions(self, serials: Collection[int]) -> None:
        """Note that ended transactions were judged."""
        with self._lock:
            self._forget_transactions(lambda each: each.serial in serials)

    def settle_nested(self, connections: Collection[int]) -> None:
        """Note that nested checkouts were judged, by the serials of the connections that were taken second."""
        with self._lock:
            self._books.nested = deque(
                (n for n in self._books.nested if n.serial not in connections), maxlen=MOST_TRANSACTIONS
            )

    def settle_checkout(self, serial: int) -> None:
        """Note that a checkout was judged: it will not be shown again until the connection is returned."""
        with self._lock:
            self._books.collected.pop(serial, None)
            if (record := self._books.connections.get(serial)) is not None:
                record.checkout_settled = True
                self._books.forget_if_over(serial, record)
            self._forget_transactions(lambda each: each.how is How.COLLECTED and each.connection == serial)

    def settle_pool(self, serial: int) -> None:
        """Note that a pool was judged: neither it nor its idle members will be shown again."""
        with self._lock:
            if (pool := self._books.pools.get(serial)) is not None:
                pool.settled = True

    def forget_owner(self, owner: int) -> None:
        """Let go of what belongs to an owner that has ended and been judged, or that nobody judges."""
        with self._lock:
            self._fold()
            for serial, record in list(self._books.connections.items()):
                if record.checkout is not None and record.checkout.owner.serial == owner:
                    record.checkout_settled = True
                if record.pool is None and record.opened.owner.serial == owner:
                    record.settled = True
                self._books.forget_if_over(serial, record)
            for pool in self._books.pools.values():
                if pool.opened is not None and pool.opened.owner.serial == owner:
                    pool.settled = True
            self._books.collected = {
                n: each for n, each in self._books.collected.items() if each.held.owner.serial != owner
            }
            self._books.forget_finished_pools()
            self._forget_transactions(lambda each: each.work.owner.serial == owner)
            self.settle_nested({each.serial for each in self._books.nested if each.second.owner.serial == owner})
            self.prepared.forget(owner)

    def _forget_transactions(self, is_over: Callable[[Transaction], bool]) -> None:
        if self._books.transactions:
            kept = [each for each in self._books.transactions if not is_over(each)]
            self._books.transactions = deque(kept, maxlen=MOST_TRANSACTIONS)

    def _view_readable(self, serial: int, record: ConnectionRecord) -> ConnectionView | None:
        try:
            return view_connection(serial, record)
        except Exception:  # noqa: BLE001 - a connection that only looks like one must not end all checks
            del self._books.connections[serial]
            return None

    def _is_in_transaction(self, serial: int, record: ConnectionRecord) -> bool:
        try:
            return is_in_transaction(record)
        except Exception:  # noqa: BLE001 - as above
            del self._books.connections[serial]
            return False

    def _fold(self) -> None:
        while self._events:
            self._books.fold(self._events.popleft())
