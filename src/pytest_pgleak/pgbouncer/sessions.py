"""Follows what clients of PgBouncer may have left on server connections, and looks when these are idle again.

A client of transaction pooling speaks on whichever server connection is free, and leaves it to others after each
transaction; what it has SET stays there. Only where the console was named, and only for connections of its clients.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak import psycopg_internals
from pytest_pgleak.clock import Clock
from pytest_pgleak.events import ConnectionFacts, Moment
from pytest_pgleak.known_servers import conninfo_of
from pytest_pgleak.libraries.psycopg3 import PSYCOPG
from pytest_pgleak.pgbouncer.pending import Pending
from pytest_pgleak.pgbouncer.probe import look_at_idle, undo_on_idle
from pytest_pgleak.pgbouncer.rows import Address, Client
from pytest_pgleak.pgbouncer.shared import SharedHint, is_same, is_text_of, left_on, may_leave, parts_of
from pytest_pgleak.pgbouncer.turns import own_turn
from pytest_pgleak.pgbouncer.witness import PgBouncer
from pytest_pgleak.session_state.state import Leftover, LeftState, SessionState, SharedServer
from pytest_pgleak.transaction_tracking import Operation, how_of
from pytest_pgleak.transactions import How

if TYPE_CHECKING:
    from pytest_pgleak.observer import Observer

_MOST: Final = 200
"""Statements that are remembered."""
_IN_TRANSACTION: Final = ("INTRANS", "INERROR", "ACTIVE")
_FAREWELL: Final = 0.002
"""Seconds between two looks for a client that has just gone."""
_FAREWELLS: Final = 25
_WAIT: Final = 0.005
"""Seconds between two looks at a server connection that another client has at this moment."""
_WAITS: Final = 20


@dataclass(slots=True)
class _Client:
    """A connection of this process that leads through PgBouncer."""

    client: Client
    conninfo: str
    pending: Pending = field(default_factory=Pending)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A statement whose transaction has ended, with the pool that it was executed in."""

    hint: SharedHint
    client: Client
    conninfo: str


class SharedSessions:
    """Knows what this process may have left on server connections of PgBouncer's.

    Args:
        is_enabled: Tells whether a test is being checked, for this kind of finding.
        pgbouncer: The console.
        observers: Returns the servers that can be asked; one of them may be the one behind PgBouncer.
        prepared: Returns the statements that a driver has prepared by itself on a connection: texts by names.
        fault: Takes note, inside an ``except`` block, of a fault of the plugin; the argument says where.
    """

    def __init__(
        self,
        is_enabled: Callable[[], bool],
        pgbouncer: PgBouncer,
        observers: Callable[[], Iterable[Observer]],
        prepared: Callable[[ConnectionFacts, Any], Mapping[str, str]],
        fault: Callable[[str], None],
    ) -> None:
        self._is_enabled = is_enabled
        self._pgbouncer = pgbouncer
        self._observers = observers
        self._prepared = prepared
        self._fault = fault
        self._clients: dict[int, _Client] = {}
        self._known: dict[int, frozenset[str]] = {}
        self._strangers: set[tuple[str, str]] = set()
        self._ended: deque[_Ended] = deque(maxlen=_MOST)
        self._found: list[LeftState] = []
        self._conninfos: dict[tuple[str, str], tuple[str, Client]] = {}

    def follows(self, facts: ConnectionFacts) -> bool:
        """Tell, quickly, whether a connection may lead through PgBouncer."""
        return bool(self._pgbouncer.version) and facts.server not in self._strangers

    def opened(self, serial: int) -> None:
        """A connection was opened: nothing is prepared on it yet."""
        if self._is_enabled():
            self._known[serial] = frozenset()

    def ended(
        self,
        serial: int,
        facts: ConnectionFacts,
        connection: Any,
        statuses: tuple[str, str],
        operation: Operation,
        error: BaseException | None,
        moment: Callable[[], Moment],
    ) -> None:
        """A connection has done what it was asked for, or failed; while a test is checked.

        Args:
            serial: Number of the connection.
            facts: What is known of it.
            connection: The connection.
            statuses: Names of its ``TransactionStatus`` before and after.
            operation: What it was asked for.
            error: The exception that it ended with.
            moment: Says when, where and on whose account.
        """
        if not self._is_enabled():
            return
        statement = operation.statement or ""
        prepared = self._newly_prepared(serial, self._prepared(facts, connection), statement)
        if operation.prepared is not None:
            prepared.append(operation.prepared)
        client = self._clients.get(serial)
        if prepared or (error is None and may_leave(statement, operation.parameters)):
            client = client or self._meet(serial, facts, connection)
            if client is None:
                return
            parts, now = parts_of(statement, operation.parameters) if error is None else (), moment()
            server = self._pgbouncer.served_by(
                facts,
                connection,
                statement or "".join(text for _, text in prepared[-1:]),
                self._observers(),
                status=statuses[1],
            )
            hints = client.pending.hints
            hints += [SharedHint(text, names, now, serial, facts, None, to, server) for text, names, to in parts]
            hints += [SharedHint("", frozenset(), now, serial, facts, each, {}, server) for each in prepared]
        if client is None:
            return
        if statuses[1] in _IN_TRANSACTION:
            if error is None:
                client.pending.follow(operation)
        elif client.pending.hints:
            is_undone = error is not None or _is_rolled_back(statuses[0], operation)
            kept = [hint for hint in client.pending.take() if not is_undone or hint.outlives_rollback]
            self._ended.extend(_Ended(hint, client.client, client.conninfo) for hint in kept)

    def closed(self, serial: int) -> None:
        """A connection is closed, or gone. In a transaction, PgBouncer throws its server connection away."""
        self._clients.pop(serial, None)
        self._known.pop(serial, None)

    def left(self) -> tuple[LeftState, ...]:
        """Look at the server connections that are idle, and return what was left on them."""
        if self._ended:
            # One by one: other threads go on adding.
            ended = [self._ended.popleft() for _ in range(len(self._ended))]
            pools: dict[tuple[str, str], list[_Ended]] = {}
            for each in ended:
                if self._is_ripe(each):
                    pools.setdefault((each.client.database, each.client.user), []).append(each)
                else:
                    self._ended.append(each)
            for of_pool in pools.values():
                try:
                    for left in self._left_in(of_pool):
                        self._remember(left)
                except Exception:  # noqa: BLE001 - not knowing is no reason to fail the whole check
                    self._fault("the look at PgBouncer's server connections")
        return tuple(self._found)

    def _remember(self, left: LeftState) -> None:
        # What a worker of the application leaves again and again, for as long as it lives, is one thing.
        if not any(is_same(each, left) for each in self._found):
            self._found.append(left)

    def settle(self, serial: int, left: Iterable[Leftover]) -> None:
        """Note that something was judged: it is not found again."""
        known = frozenset(left)
        self._found = [each for each in self._found if each.connection != serial or not known.issuperset(each.left)]

    def forget_owner(self, owner: int) -> None:
        """Let go of what belongs to an owner that has ended and been judged, or that nobody judges."""
        self._found = [each for each in self._found if each.holder.owner.serial != owner]
        self._ended = deque((each for each in self._ended if each.hint.moment.owner.serial != owner), maxlen=_MOST)

    def undo(self, shared: SharedServer, left: Iterable[Leftover]) -> None:
        """Take away what was left on server connections, as far as they are idle."""
        conninfo, client = self._conninfos.get((shared.database, shared.user), ("", None))
        if client is None or shared.pool_mode == "statement":
            return
        try:
            with own_turn():
                undo_on_idle(conninfo, self._pgbouncer.servers(client)[1], shared.pids, left)
        except Exception:  # noqa: BLE001 - what is not undone is found again
            self._fault("undoing what was left on PgBouncer's server connections")

    def _newly_prepared(self, serial: int, prepared: Mapping[str, str], statement: str) -> list[tuple[str, str]]:
        """Return what the driver has prepared to execute this very statement: name and text."""
        known = self._known.get(serial)
        if known is not None and len(prepared) == len(known) == 0:
            return []
        self._known[serial] = frozenset(prepared)
        if known is None:
            return []  # nobody has seen all of it: others may have prepared it
        new = [(name, text) for name, text in prepared.items() if name not in known]
        return [each for each in new if is_text_of(each[1], statement)]

    def _meet(self, serial: int, facts: ConnectionFacts, connection: Any) -> _Client | None:
        client = self._pgbouncer.client_of(facts)
        if client is None:
            self._strangers.add(facts.server)
            return None
        met = self._clients[serial] = _Client(client, conninfo_of(facts, connection))
        self._conninfos[client.database, client.user] = met.conninfo, client
        return met

    def _is_ripe(self, ended: _Ended) -> bool:
        """Tell whether the server connection is back. In session mode it is as soon as the client has gone."""
        if self._pgbouncer.pool_mode(ended.client) != "session":
            return True
        return ended.hint.connection not in self._clients and self._has_gone(ended.client.address)

    def _has_gone(self, address: Address | None) -> bool:
        for _ in range(_FAREWELLS):
            if address is None or not self._pgbouncer.has_client(address):
                return True
            Clock.sleep(_FAREWELL)
        return False

    def _left_in(self, ended: list[_Ended]) -> tuple[LeftState, ...]:
        hints = [each.hint for each in ended]
        client = ended[-1].client
        server = SharedServer(client.database, client.user, self._pgbouncer.pool_mode(client))
        seen: dict[int, SessionState] = {}
        wanted = {hint.server for hint in hints if hint.server is not None}
        for attempt in range(_WAITS if wanted else 0):
            if attempt:
                Clock.sleep(_WAIT)
            seen |= self._look(ended, wanted - seen.keys(), server)
            # One that another client has will be back. One that is gone will not.
            wanted &= self._pgbouncer.servers(client)[0]
            if server.pool_mode == "statement" or not wanted - seen.keys():
                break
        return left_on(seen, hints, server)

    def _look(self, ended: list[_Ended], wanted: set[int], server: SharedServer) -> dict[int, SessionState]:
        customs = {name for each in ended for name in each.hint.names if "." in name}
        client, conninfo = ended[-1].client, ended[-1].conninfo
        with own_turn():
            idle = self._pgbouncer.servers(client)[1]
            if not wanted & idle:
                return {}
            return look_at_idle(conninfo, idle, sorted(customs), wanted, holds=server.pool_mode != "statement")


def _is_rolled_back(before: str, operation: Operation) -> bool:
    """Tell whether the transaction that has just ended was rolled back."""
    if before == "INERROR" or operation.forced or (operation.is_block and operation.fails):
        return True
    return how_of(operation) is How.ROLLBACK or operation.answer == "ROLLBACK"


def prepared_by_itself(facts: ConnectionFacts, connection: Any) -> Mapping[str, str]:
    """Return the statements that a driver has prepared by itself on a connection: texts by names."""
    if facts.library is PSYCOPG:
        return psycopg_internals.prepared_statements(connection)
    return facts.library.prepared(connection)
