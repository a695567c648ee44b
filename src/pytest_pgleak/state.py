"""Everything that lives as long as the session; kept in ``config.stash``, made when first needed."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_pgleak import psycopg_internals
from pytest_pgleak.activity import Backend
from pytest_pgleak.asgi import AsgiTracking
from pytest_pgleak.background import Background
from pytest_pgleak.budget.budget import Budget
from pytest_pgleak.checkpoints import Judge
from pytest_pgleak.descriptors import Places
from pytest_pgleak.events import ConnectionFacts
from pytest_pgleak.findings import Finding
from pytest_pgleak.hangs.slot_notes import SlotNotes
from pytest_pgleak.healing import Healer
from pytest_pgleak.kinds import SESSION_STATE
from pytest_pgleak.known_servers import KnownServers
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.observers import Observers
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.pgbouncer.sessions import SharedSessions, prepared_by_itself
from pytest_pgleak.pgbouncer.witness import PgBouncer
from pytest_pgleak.prepared.watch import PreparedWatch
from pytest_pgleak.reporting import Reported
from pytest_pgleak.session_state.tracking import SessionTracking
from pytest_pgleak.settings import Settings
from pytest_pgleak.tasks import EventLoops
from pytest_pgleak.tracking import Tracker
from pytest_pgleak.verdicts import Verdict

if TYPE_CHECKING:
    from pytest_pgleak.clients import HostedApp
    from pytest_pgleak.fresh_databases import FreshDatabases
    from pytest_pgleak.item_checks import ItemCheck
    from pytest_pgleak.libraries.registry import LibraryTracker
    from pytest_pgleak.live.servers import LiveServers
    from pytest_pgleak.owners import Owner
    from pytest_pgleak.patching import Switch

STATE: Final = pytest.StashKey["State"]()


class State:
    """The owners of everything mutable, joined up.

    Args:
        config: pytest's config.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        # The defaults, until pytest has read its command line: a conftest.py may import psycopg before that.
        self.settings = Settings()
        self.loops = EventLoops()
        self.ownership = Ownership(Background(self.loops))
        self.ledger = Ledger()
        self.places = Places()
        self.pgbouncer = PgBouncer(self._console_of_settings, self.places)
        self.observers = Observers(KnownServers(self.places, self._dsn_of_settings), self.pgbouncer)
        self.tracker = Tracker(
            self.ledger.record, self.ownership, self._witness, lambda: self.checking, self.fault, self.ledger.catch_up
        )
        self.slot_notes = SlotNotes(self.ledger, self.observers, lambda: self.ownership.active.nodeid, config.rootpath)
        self.tracker.slots = self.slot_notes
        self.tracker.observers = self.observers
        self.sessions = self.tracker.sessions = SessionTracking(self._judges_sessions, psycopg_internals, self.fault)
        self.shared = self.tracker.shared = SharedSessions(
            self._judges_sessions,
            self.pgbouncer,
            lambda: self.observers.servers.seeing.values(),
            prepared_by_itself,
            self.fault,
        )
        self.requests = itertools.count(1)
        self.asgi = AsgiTracking(self.ownership, lambda: next(self.requests), self.loops, self._lifespan_ended)
        prepared = PreparedWatch(
            self.ledger, self.observers, lambda: self.watched_databases, self._may_change, self.note
        )
        self.judge = Judge(
            self.ledger,
            self.observers,
            self.loops,
            lambda: self.tracker.half_open.is_connecting or self.sessions.is_returning,
            lambda: self.watched_databases,
            self._may_collect,
            prepared,
            self.sessions,
            self._may_be_ours,
            self.shared,
            lambda: len(self.tracker.half_open),
        )
        self.budget = Budget(
            self.ledger,
            self.observers,
            self.judge.watched,
            self._may_be_counted,
            self.fault,
            lambda: frozenset() if self.live is None else self.live.pids(),
        )
        self.healer = Healer(self.observers, self.may_terminate, prepared.heal, self._undo_session, self.ledger.undone)
        self.verdict = Verdict(lambda: self.settings, config.hook.pytest_pgleak_ignore, config.rootpath)
        self.reported: list[Reported] = []
        self.notes: list[str] = []
        self.missed = ""
        """Why findings may be missing, through no fault of the tests."""
        self.checking = False
        self.current_check: ItemCheck | None = None
        self.live: LiveServers | None = None
        """The live servers, from when a fixture first asks for them."""
        self.own_databases: set[str] = set()
        # The worker's database, and the one that it is a copy of.
        self.templates: dict[str, str] = {}
        self.fresh: FreshDatabases | None = None
        self.watched_databases: set[tuple[tuple[str, str], str]] = set()
        self.late_apps: list[HostedApp] = []
        self.after_teardown: list[Callable[[], None]] = []
        self.after_session: list[Callable[[], None]] = []
        self._patches: list[Switch] = []

    def at_end(self, callback: Callable[[], None], *, last: bool = False) -> None:
        """Have something done when the session is over, by this process: its children by fork() have made nothing.

        Args:
            callback: Does it.
            last: Whether it comes after what is known by now, instead of before.
        """
        process = os.getpid()

        def by_its_maker() -> None:
            if os.getpid() == process:
                callback()

        self.after_session.insert(len(self.after_session) if last else 0, by_its_maker)

    def watch(self, library: LibraryTracker, module: ModuleType) -> None:
        """Start to watch a library that has been imported."""
        self._patch(lambda: library.watch(module, self.tracker), module)

    def starlette_imported(self, applications: ModuleType) -> None:
        """Start to follow requests."""
        self._patch(lambda: self.asgi.starlette_patch(applications), applications)

    def may_terminate(self, facts: ConnectionFacts) -> bool:
        """Tell whether the plugin may end the backend of a connection."""
        return self._may_change(facts.dbname)

    def _may_change(self, dbname: str) -> bool:
        return self.settings.terminate or dbname in self.own_databases

    def note(self, text: str) -> None:
        """Keep something that the user must be told at the end of the session, once."""
        if text not in self.notes:
            self.notes.append(text)

    def fault(self, where: str) -> None:
        """Report an exception inside the plugin as the plugin's own, with its traceback."""
        self.missed = f"internal error in {where}"
        self.note(
            f"internal error of pytest-pgleak in {where}; what it would have found is missing. Please report it:\n"
            + traceback.format_exc()
        )

    def close(self) -> None:
        """Put everything back as it was."""
        if self.live is not None:
            self.live.close()
        for patch in reversed(self._patches):
            patch.off()
        self._patches.clear()
        self.budget.end()
        # Somebody may have put a wrapper of ours aside, and put it back after this.
        self.tracker.stop()
        self.observers.servers.close()
        self.pgbouncer.close()
        self.places.close()

    def _patch(self, make: Callable[[], Switch], module: ModuleType) -> None:
        try:
            patch = make()
            patch.on()
        except (AttributeError, ImportError) as error:
            version = getattr(module, "__version__", "of unknown version")
            self.missed = f"{module.__name__} is not watched"
            self.note(
                f"{module.__name__} {version} looks different from the versions that pytest-pgleak knows ({error});"
                " it is not watched, and leaks through it are not found. Upgrade pytest-pgleak, or pin"
                f" {module.__name__.partition('.')[0]} to a version that it was tested with."
            )
            return
        except Exception:  # noqa: BLE001 - somebody else's tracker may raise anything, and the import must not fail
            self.fault(f"the tracker of {module.__name__}")
            return
        self._patches.append(patch)

    async def _lifespan_ended(self, lifespan: Owner) -> None:
        if self.current_check is not None:
            try:
                await self.current_check.judge_lifespan(lifespan)
            except Exception:  # noqa: BLE001 - a fault of the plugin must not fail the application's shutdown
                self.fault("the check of a lifespan")

    def _dsn_of_settings(self) -> tuple[str, str] | None:
        settings = self.settings
        if settings.dsn is None or settings.server not in ("auto", "dsn"):
            return None
        return settings.dsn, settings.dsn_option

    def _console_of_settings(self) -> tuple[str, str] | None:
        settings = self.settings
        return None if settings.pgbouncer is None else (settings.pgbouncer, settings.pgbouncer_option)

    def _may_collect(self) -> bool:
        # What is collected may warn, and with `filterwarnings = error` that fails the test that happens to run. Where
        # a finding fails it anyway, that is fair; a warning must not.
        return gc.isenabled() and self.settings.mode == "fail"

    def _judges_sessions(self) -> bool:
        return self.checking and self.settings.level(SESSION_STATE) != "off"

    def _undo_session(self, finding: Finding) -> None:
        if finding.shared is not None:
            self.shared.undo(finding.shared, finding.left)
        else:
            self.sessions.undo(finding.serial, finding.left)

    def _may_be_ours(self, backend: Backend) -> bool:
        return self._may_be_counted(backend) and (self.live is None or not self.live.owns(backend))

    def _may_be_counted(self, backend: Backend) -> bool:
        # In the sampler's thread: workers cannot be asked here.
        # With xdist, what is new in a database that is not ours is as likely another worker's.
        return not hasattr(self.config, "workerinput") or backend.datname in self.own_databases

    def _witness(self, facts: ConnectionFacts, connection: Any, wait: bool) -> Backend | None:
        # Unchecked tests must not pay for a look that nobody will read.
        if not self.checking or sys.is_finalizing():
            return None
        return self.observers.witness(facts, connection, wait)
