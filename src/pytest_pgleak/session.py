"""The plugin's part in a session: which tests are checked, and what happens around each phase of a test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_pgleak.checkpoints import Checkpoint
from pytest_pgleak.find import Question
from pytest_pgleak.fixture_owners import FixtureOwners
from pytest_pgleak.fixture_transactions import FixtureTransactions
from pytest_pgleak.hangs.hangs import Hangs
from pytest_pgleak.item_checks import CALL_OWNER, CHECK, ENTRIES, ItemCheck
from pytest_pgleak.owners import Owner
from pytest_pgleak.process_lifetime import ProcessLifetime
from pytest_pgleak.reporting import LeaksFound, Reported, entries_of, entries_of_verdicts
from pytest_pgleak.reports.bugs import drop_repeated_texts
from pytest_pgleak.reports.junit import Properties
from pytest_pgleak.settings import MarkerSettings, SettingError, read_marker
from pytest_pgleak.settling import settle
from pytest_pgleak.state import State
from pytest_pgleak.verdicts import Verdicts

_SECTION: Final = pytest.StashKey[str]()
_PROPERTIES: Final = pytest.StashKey[Properties]()


class Session:
    """Goes through a session.

    Args:
        config: pytest's config.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.state = State(config)
        self.fixtures = FixtureOwners(self.state.ownership, self.state.observers.servers.tick, self._release)
        self.transactions = FixtureTransactions(self.state, self.fixtures)
        self.hangs = Hangs(self.state, self.fixtures)
        self._config = config
        self._checked = 0
        self._needs_server = False
        self._told: set[tuple[str, str, str]] = set()

    def collected(self, items: Sequence[pytest.Item]) -> None:
        """Some of the collected tests are selected."""
        self._checked = sum(self._is_checked(item) for item in items)
        self._needs_server = any("pgleak_postgres" in getattr(item, "fixturenames", ()) for item in items)

    def header(self, items: Sequence[pytest.Item]) -> list[str]:
        """Say what is checked and on which server."""
        if not self._checked:
            return []
        mode = "" if self.state.settings.mode == "fail" else f" (mode {self.state.settings.mode})"
        lines = [f"pgleak: {self._checked} of {len(items)} tests checked{mode}; server: {self._server()}"]
        if (pooler := self._pooler()) is not None:
            lines.append(f"pgleak: the ledger judges alone: {pooler}")
        return lines

    def begin_item(self, item: pytest.Item, is_selected: bool) -> None:
        """A test starts. Fails it where its marker cannot be meant."""
        __tracebackhide__ = True
        self.fixtures.watching = False
        is_checked = is_selected and self.state.settings.mode != "off"
        if is_checked:
            self.state.places.reserve()
            self.state.pgbouncer.begin(self.state.observers.servers.tick(), is_set_up=False)
            self.hangs.start()
        self.hangs.enter(item.nodeid, "setup")
        if not is_checked:
            self.fixtures.changes += 1
            return
        self.state.current_check = None
        self.state.current_check = item.stash[CHECK] = ItemCheck(self.state, self.fixtures, item, self._marker(item))
        self.fixtures.watching = self.state.checking = True

    @contextmanager
    def call_phase(self, item: pytest.Item) -> Iterator[None]:
        """Around the test function: checkpoint 1."""
        __tracebackhide__ = True
        self.hangs.enter(item.nodeid, "call")
        check = item.stash.get(CHECK, None)
        if check is None:
            with self._unchecked_call(item):
                yield
            return
        self._guarded(item, check.begin_call)
        failed = True
        try:
            yield
            failed = False
        finally:
            verdicts = self._guarded(item, lambda: check.end_call(failed)) or Verdicts()
            self.state.checking = False
            self._conclude(item, check, verdicts, failed)

    @contextmanager
    def teardown_phase(self, item: pytest.Item) -> Iterator[None]:
        """Around the finalizers: checkpoint 2, for fixtures of any scope that ended here."""
        __tracebackhide__ = True
        self.hangs.enter(item.nodeid, "teardown")
        check = item.stash.get(CHECK, None)
        self.state.checking = check is not None
        failed = True
        try:
            yield
            failed = False
        finally:
            ended = self.state.ownership.take_ended()
            try:
                self._end_teardown(item, check, ended, failed)
            finally:
                self.state.checking = self.fixtures.watching = False
                self.state.current_check = None
                if (live := self.state.live) is not None:
                    is_judged = self.fixtures.is_watched if check is None else lambda _owner: True
                    self._guarded(item, functools.partial(live.forget, ended, is_judged))
                for owner in ended:
                    self.state.ledger.forget_owner(owner.serial)
                    self.state.sessions.forget_owner(owner.serial)
                    self.state.shared.forget_owner(owner.serial)
                    self.fixtures.forget(owner)
                self._run(self.state.after_teardown)
                self.hangs.leave()

    def before_report(self, call: pytest.CallInfo[None]) -> list[str]:
        """Put the notes on the error of a phase; return those that found none to be on."""
        return self.hangs.before_report(call)

    def complete_report(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, notes: Sequence[str] = ()
    ) -> None:
        """Give a phase's report its colours, its sections and its entries for the summary."""
        report.sections.extend(self.hangs.sections(item, list(notes)))
        if call.excinfo is not None and isinstance(call.excinfo.value, LeaksFound):
            leaks = call.excinfo.value
            if report.failed:
                report.longrepr = leaks.representation()
            if leaks.is_of_a_block:
                told = entries_of(leaks.findings, item.nodeid, True, self._config.rootpath)
                item.stash[ENTRIES] = told + item.stash.get(ENTRIES, [])
        if section := item.stash.get(_SECTION, ""):
            report.sections.append(("pgleak also found", section))
            item.stash[_SECTION] = ""
        if call.when == "setup":  # of the first run, or of another one by pytest-rerunfailures
            item.stash[_PROPERTIES] = Properties()
        entries = item.stash.get(ENTRIES, [])
        if (junit := item.stash.get(_PROPERTIES, None)) is not None:
            junit.complete(report, [Reported.from_dict(entry) for entry in entries if not entry["known"]])
        if entries:
            drop_repeated_texts(entries, self._told)
            report.pgleak = entries  # type: ignore[attr-defined]  # travels with the report, through xdist too
            item.stash[ENTRIES] = []
        if call.when == "teardown":
            _let_go(item)

    def finish(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Checkpoint 3: what the session itself left. Then everything is put back.

        Returns:
            Entries for the summary, and what else the user must be told.
        """
        entries: list[dict[str, Any]] = []
        self.hangs.stop()
        try:
            entries = self._judge_session()
        except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one
            self.state.fault("the end of the session")
        self._note_complaints()
        self._run(self.state.after_session)
        return entries, list(self.state.notes)

    def close(self) -> None:
        """Put everything back as it was."""
        self.hangs.stop()
        self._run(self.state.after_session)
        self.state.close()

    def _judge_session(self) -> list[dict[str, Any]]:
        if not self._checked:
            return []
        state = self.state
        session = frozenset({state.ownership.session.serial})
        checkpoint = Checkpoint(Question(state.ownership.session, session, session), state.settings.grace)
        findings = settle(state.judge.settling(checkpoint))
        findings = ProcessLifetime(state.ownership, self.fixtures).at_the_end(findings, checkpoint.view, state.config)
        if state.live is not None:
            findings += tuple(state.live.kept)
        # It lives as long as the process, which is often what is wanted.
        verdicts = state.verdict.sort(findings, None, most="warn")
        if verdicts.told:
            state.config.hook.pytest_pgleak_findings(item=None, findings=verdicts.told)
        return entries_of_verdicts(verdicts, "", state.config.rootpath)

    def _note_complaints(self) -> None:
        for complaint in self.state.observers.complaints:
            self.state.missed = "a server could not be observed"
            self.state.note(f"the ledger judged alone for {complaint}")
        if self.state.missed and (doubt := self.state.pgbouncer.doubt) is not None:
            self.state.note(doubt)
        if (trouble := self.state.pgbouncer.complaint) is not None:
            self.state.missed = "PgBouncer's console could not be read"
            self.state.note(f"pgleak could not read {' '.join(trouble.split())}")
        if self._checked:
            for rule in self.state.verdict.unused_rules:
                self.state.note(f"pgleak_ignore: no finding matched `{rule.text}`: remove the line if it is fixed")

    def _end_teardown(self, item: pytest.Item, check: ItemCheck | None, ended: tuple[Owner, ...], failed: bool) -> None:
        __tracebackhide__ = True
        live = self.state.live
        is_left = any(self.fixtures.is_watched(owner) for owner in ended) or (live is not None and live.has_findings)
        if check is None and is_left:
            # A fixture that checked tests have used ends with one that is not checked.
            check = ItemCheck(self.state, self.fixtures, item, MarkerSettings())
        if check is not None:
            left_open = self.transactions.take(ended)
            verdicts = self._guarded(item, lambda: check.end_teardown(ended, left_open)) or Verdicts()
            self._conclude(item, check, verdicts, failed)

    def _conclude(self, item: pytest.Item, check: ItemCheck, verdicts: Verdicts, failed: bool) -> None:
        __tracebackhide__ = True
        # Where nothing fails, the end of the run says so.
        fails = self.state.settings.mode == "fail"
        trouble = self._misconfiguration() if fails else None
        if verdicts.all:
            item.stash[ENTRIES] = item.stash.get(ENTRIES, []) + check.entries(verdicts)
        if failed and verdicts.told:
            item.stash[_SECTION] = check.section(verdicts)
        elif verdicts.failing and not failed:
            raise check.failure(verdicts, trouble or "")
        elif trouble is not None and not failed:
            pytest.fail(trouble, pytrace=False)

    def _misconfiguration(self) -> str | None:
        """Return, once, what is wrong with a server that the user has named."""
        state = self.state
        if (trouble := state.observers.servers.take_misconfiguration()) is not None:
            return f"pgleak cannot watch the server of {state.settings.dsn_option}: {trouble}"
        trouble = state.pgbouncer.take_misconfiguration()
        return None if trouble is None else f"pgleak cannot read {trouble}"

    @contextmanager
    def _unchecked_call(self, item: pytest.Item) -> Iterator[None]:
        # What an unchecked test opens is its own, neither the session's nor the next test's.
        owner = item.stash[CALL_OWNER] = self.state.ownership.begin("call", item.nodeid)
        self.state.ownership.push(owner)
        if self.state.live is not None:
            self._guarded(item, functools.partial(self.state.live.begin, owner))
        try:
            yield
        finally:
            self.state.ownership.pop(owner)
            self.state.ownership.end(owner)
            self.state.ownership.background.adopt(owner)

    def _guarded(self, item: pytest.Item, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except Exception:  # noqa: BLE001 - a fault of the plugin is reported as one, it is no failure of the test
            self.state.fault(f"the check of {item.nodeid}")
            return None

    def _release(self, since: int) -> None:
        try:
            self.state.observers.servers.release(since)
            self.state.pgbouncer.release(since)
        except Exception:  # noqa: BLE001 - it must not get in the way of the user's teardown
            self.state.fault("the teardown of a fixture")

    def _run(self, callbacks: list[Callable[[], None]]) -> None:
        while callbacks:
            try:
                callbacks.pop(0)()
            except Exception as error:  # noqa: BLE001 - the others must run all the same
                self.state.note(f"could not clean up: {error}")

    def _marker(self, item: pytest.Item) -> MarkerSettings:
        __tracebackhide__ = True
        mark = item.get_closest_marker("pgleak")
        if mark is None:
            return MarkerSettings()
        try:
            return read_marker(mark.args, mark.kwargs)
        except SettingError as error:
            trouble = str(error)
        # Outside of the `except`, or pytest would show both.
        filename, lineno, name = item.location
        line = "" if lineno is None else f":{lineno + 1}"
        pytest.fail(f"{Path(filename).as_posix()}{line} ({name}): {trouble}", pytrace=False)

    def _is_checked(self, item: pytest.Item) -> bool:
        return self.state.settings.select == "all" or item.get_closest_marker("pgleak") is not None

    def _server(self) -> str:
        from pytest_pgleak.postgres import server_plan
        from pytest_pgleak.servers import ServerError

        if not self._needs_server:
            return "the application's own"
        try:
            return server_plan(self.state.settings).description
        except ServerError:
            return "none could be found (see the errors)"

    def _pooler(self) -> str | None:
        """Find out whether a pooler stands before the server of the settings, as far as that is known by now."""
        dsn, servers = self.state.settings.dsn, self.state.observers.servers
        if not self._needs_server or dsn is None or self.state.settings.server not in ("auto", "dsn"):
            return None
        # Whatever else is wrong with it, the fixture will say.
        with suppress(Exception):
            servers.add_configured(dsn)
        reason = servers.pooler_of(dsn)
        return None if reason is None else " ".join(reason.split())


def _let_go(item: pytest.Item) -> None:
    """Forget what was kept with a test: pytest keeps all tests to the end of the session."""
    keys: tuple[pytest.StashKey[Any], ...] = (CHECK, CALL_OWNER, ENTRIES, _SECTION, _PROPERTIES)
    for key in keys:
        if key in item.stash:
            del item.stash[key]
