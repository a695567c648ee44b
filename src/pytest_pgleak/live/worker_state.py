"""Everything that lives as long as a worker process: the same ledger and the same judge as in pytest, joined up."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from pytest_pgleak import psycopg_internals
from pytest_pgleak.activity import Backend
from pytest_pgleak.background import Background
from pytest_pgleak.checkpoints import Judge
from pytest_pgleak.descriptors import Places
from pytest_pgleak.events import ConnectionFacts, Event
from pytest_pgleak.findings import Finding
from pytest_pgleak.fixture_owners import FixtureOwners
from pytest_pgleak.healing import Healer
from pytest_pgleak.known_servers import KnownServers
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.libraries.registry import LibraryTracker
from pytest_pgleak.live.counting import Counting
from pytest_pgleak.live.journal import Journal
from pytest_pgleak.live.last_words import Notes
from pytest_pgleak.live.wire import Rules
from pytest_pgleak.live.worker_asgi import WorkerAsgi
from pytest_pgleak.observers import Observers
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.patching import Switch
from pytest_pgleak.pgbouncer.sessions import SharedSessions, prepared_by_itself
from pytest_pgleak.pgbouncer.witness import PgBouncer
from pytest_pgleak.prepared.watch import PreparedWatch
from pytest_pgleak.process_lifetime import ProcessLifetime
from pytest_pgleak.session_state.tracking import SessionTracking
from pytest_pgleak.tasks import EventLoops
from pytest_pgleak.tracking import Tracker

_FIRST_SERIAL: Final = 1_000_000_000
"""Serials of owners below it are pytest's: a test, a fixture."""


class WorkerState:
    """The owners of everything mutable.

    Args:
        rules: The settings, as they were when the server was started.
        fault: Takes the text of a fault of the plugin.
        asgi: Makes what follows ASGI calls.
        journal: Takes what must survive this process.
    """

    def __init__(
        self,
        rules: Rules,
        fault: Callable[[str], None],
        asgi: Callable[[Ownership, EventLoops], WorkerAsgi],
        journal: Journal,
    ) -> None:
        self.rules = rules
        self._tell_fault = fault
        self.loops = EventLoops()
        self.ownership = Ownership(Background(self.loops), _FIRST_SERIAL)
        self.ledger = Ledger()
        self.counting = Counting(self.ledger, journal)
        self.places = Places()
        self.pgbouncer = PgBouncer(lambda: self.rules.pgbouncer, self.places)
        self.observers = Observers(KnownServers(self.places, lambda: self.rules.dsn), self.pgbouncer)
        self.notes = Notes(journal)
        self.tracker = Tracker(
            self._record, self.ownership, self._witness, lambda: True, self.fault, self.ledger.catch_up
        )
        self.tracker.observers = self.observers
        self.tracker.executed = self.notes.executed
        self.sessions = self.tracker.sessions = SessionTracking(lambda: True, psycopg_internals, self.fault)
        self.shared = self.tracker.shared = SharedSessions(
            lambda: True, self.pgbouncer, lambda: self.observers.servers.seeing.values(), prepared_by_itself, self.fault
        )
        self.asgi = asgi(self.ownership, self.loops)
        prepared = PreparedWatch(self.ledger, self.observers, lambda: (), self._may_change, self._note)
        self.judge = Judge(
            self.ledger,
            self.observers,
            self.loops,
            lambda: self.tracker.half_open.is_connecting or self.sessions.is_returning,
            lambda: (),
            lambda: gc.isenabled() and self.rules.collects,
            prepared,
            self.sessions,
            shared=self.shared,
        )
        self.healer = Healer(
            self.observers,
            lambda facts: self._may_change(facts.dbname),
            prepared.heal,
            self._undo_session,
            self.ledger.undone,
        )
        # Fixtures are pytest's; of the owners that may close something only lifespans are here.
        self.fixtures = FixtureOwners(self.ownership)
        self.process_lifetime = ProcessLifetime(self.ownership, self.fixtures)
        self._patches: list[Switch] = []

    def patch(self, make: Callable[[], Switch], module: ModuleType) -> None:
        """Put a patch in place, or say why that cannot be."""
        try:
            patch = make()
            patch.on()
        except Exception:  # noqa: BLE001 - the import must not fail
            self.fault(f"the tracker of {module.__name__}; it is not watched in this process")
            return
        self._patches.append(patch)

    def watch(self, library: LibraryTracker, module: ModuleType) -> None:
        """Start to watch a library that has been imported."""
        self.patch(lambda: library.watch(module, self.tracker), module)

    def fault(self, where: str) -> None:
        """Report an exception inside the plugin as the plugin's own, with its traceback."""
        self._tell_fault(f"{where}, in a worker process\n{traceback.format_exc()}")

    def close(self) -> None:
        """Put everything back as it was, and ask nobody any more."""
        for patch in reversed(self._patches):
            patch.off()
        self._patches.clear()
        self.tracker.stop()

    def _record(self, event: Event) -> None:
        self.ledger.record(event)
        self.notes.see(event)
        self.counting.see(event)

    def _may_change(self, dbname: str) -> bool:
        return self.rules.terminate or dbname in self.rules.own_databases

    def _undo_session(self, finding: Finding) -> None:
        if finding.shared is not None:
            self.shared.undo(finding.shared, finding.left)
        else:
            self.sessions.undo(finding.serial, finding.left)

    def _note(self, text: str) -> None:
        self._tell_fault(text)

    def _witness(self, facts: ConnectionFacts, connection: Any, wait: bool) -> Backend | None:
        return None if sys.is_finalizing() else self.observers.witness(facts, connection, wait)
