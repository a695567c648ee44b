"""The plugin's hooks. Thin, and it imports nothing heavy until psycopg or a checked test turns up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_pgleak.fixtures import (  # noqa: F401 - pytest collects fixtures from the plugin's namespace
    pgleak,
    pgleak_app,
    pgleak_client,
    pgleak_dsn,
    pgleak_fresh_dsn,
    pgleak_postgres,
    pgleak_sync_client,
)
from pytest_pgleak.options import MARKER, add_options, is_configured
from pytest_pgleak.post_import import PostImportHook

if TYPE_CHECKING:
    from pytest_pgleak.findings import Finding
    from pytest_pgleak.session import Session
    from pytest_pgleak.state import State

_HOOK = pytest.StashKey[PostImportHook]()
_SESSION = pytest.StashKey["Session"]()
_CONFIGURED = pytest.StashKey[bool]()


def _unseen(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Leave a hook out of the tracebacks that pass through it.

    pytest leaves out its own, and code that comes from no file. What is left decides where it says an error happened.
    """
    hook.__code__ = hook.__code__.replace(co_filename="<pytest_pgleak>")
    return hook


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_pgleak import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # Before any conftest.py can import psycopg.
    _watch_imports(early_config)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    config.stash[_CONFIGURED] = True
    active = config.stash.get(_SESSION, None)
    if active is not None or is_configured(config):
        settings = _read_settings(config)
        if active is not None:
            # A conftest.py has imported psycopg before the command line was read.
            active.state.settings = settings
    config.pluginmanager.register(SessionEnd(config), "pgleak-session-end")
    _watch_imports(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (hook := config.stash.get(_HOOK, None)) is not None:
        hook.uninstall()
        del config.stash[_HOOK]
    if (session := config.stash.get(_SESSION, None)) is not None:
        session.close()
        del config.stash[_SESSION]


def get_state(config: pytest.Config) -> State:
    """Return the session's state, made when first asked for.

    Raises:
        pytest.UsageError: A setting cannot be meant.
    """
    return _session(config).state


def _session(config: pytest.Config) -> Session:
    if (session := config.stash.get(_SESSION, None)) is None:
        from pytest_pgleak.session import Session

        session = config.stash[_SESSION] = Session(config)
        if config.stash.get(_CONFIGURED, False):
            session.state.settings = _read_settings(config)
    return session


def _read_settings(config: pytest.Config) -> Any:
    from pytest_pgleak.settings import SettingError, read_settings

    try:
        return read_settings(config)
    except SettingError as error:
        raise pytest.UsageError(str(error)) from None


def _watch_imports(config: pytest.Config) -> None:
    if _HOOK in config.stash or _is_off(config):
        return

    def when_imported(method: str) -> Any:
        def call(module: ModuleType) -> None:
            getattr(_session(config).state, method)(module)

        return call

    hook = config.stash[_HOOK] = PostImportHook(
        {
            "psycopg": when_imported("psycopg_imported"),
            "psycopg_pool": when_imported("psycopg_pool_imported"),
            "starlette.applications": when_imported("starlette_imported"),
        }
    )
    hook.install()


def _is_off(config: pytest.Config) -> bool:
    given = getattr(config.known_args_namespace, "pgleak_mode", None) or config.getini("pgleak_mode")
    return bool(given == "off")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    if getattr(getattr(obj, "__code__", None), "co_flags", 0) & 0x80 and collector.istestfunction(obj, name):
        from pytest_pgleak.async_tests import claim

        claim(collector, obj)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if not _is_off(session.config) and any(_is_selected(item) for item in session.items):
        _session(session.config).collected(session.items)


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    active = config.stash.get(_SESSION, None)
    return active.header(items) if active is not None else []


def _is_selected(item: pytest.Item) -> bool:
    config = item.config
    select = config.getoption("pgleak_select", None) or config.getini("pgleak_select")
    return select == "all" or item.get_closest_marker("pgleak") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
@_unseen
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    active = request.config.stash.get(_SESSION, None)
    if active is None:
        return (yield)
    owner = active.fixtures.begin(fixturedef, request)
    try:
        return (yield)
    finally:
        active.fixtures.set_up(fixturedef, owner)


@pytest.hookimpl(trylast=True)
def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    if (active := request.config.stash.get(_SESSION, None)) is not None:
        active.fixtures.finish(fixturedef)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    __tracebackhide__ = True
    if (active := item.config.stash.get(_SESSION, None)) is not None:
        active.begin_item(item, is_selected=_is_selected(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
@_unseen
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if (active := item.config.stash.get(_SESSION, None)) is None:
        return (yield)
    with active.call_phase(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
@_unseen
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    if (active := item.config.stash.get(_SESSION, None)) is None:
        return (yield)
    with active.teardown_phase(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
@_unseen
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    active = item.config.stash.get(_SESSION, None)
    # Before pytest makes its text of the error.
    notes = active.before_report(call) if active is not None else []
    report = yield
    if active is not None:
        active.complete_report(item, call, report, notes)
    return report


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    if item.config.stash.get(_SESSION, None) is not None:
        from pytest_pgleak.timeouts import timer_set

        timer_set(item, settings)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    if item.config.stash.get(_SESSION, None) is not None:
        from pytest_pgleak.timeouts import timer_cancelled

        timer_cancelled(item)


@pytest.hookimpl(trylast=True)
def pytest_pgleak_server(config: pytest.Config) -> Any:
    from pytest_pgleak.postgres import start_server

    return start_server(config)


class SessionEnd:
    """The hooks that bring the findings of a session together, from this process and from xdist's workers.

    Args:
        config: pytest's config; some of these hooks are not given it.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._entries: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._discarded: set[str] = set()
        self._of_attempt: dict[str, list[dict[str, Any]]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]  # pytest-rerunfailures' word
            self._discarded.add(report.nodeid)
        self._of_attempt.setdefault(report.nodeid, []).extend(getattr(report, "pgleak", ()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        # An attempt that is made again counts for nothing; each has a finish of its own.
        found = self._of_attempt.pop(nodeid, [])
        if nodeid not in self._discarded:
            self._entries.extend(found)
        self._discarded.discard(nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if (active := self._config.stash.get(_SESSION, None)) is None:
            return
        entries, notes = active.finish()
        if (output := getattr(self._config, "workeroutput", None)) is not None:
            output["pgleak"] = {"entries": entries, "notes": notes}
        else:
            self._take(entries, notes)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        found = getattr(node, "workeroutput", {}).get("pgleak", {})
        self._take(found.get("entries", []), found.get("notes", []))

    @pytest.hookimpl(trylast=True)
    def pytest_pgleak_ignore(self, finding: Finding) -> bool | None:
        active = self._config.stash.get(_SESSION, None)
        return True if active is not None and active.state.verdict.matches_a_rule(finding) else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for found in self._of_attempt.values():  # their worker crashed before it could finish them
            self._entries.extend(found)
        if not self._entries and not self._notes:
            return
        from pytest_pgleak.reporting import Reported, summary, write

        title, lines = summary([Reported.from_dict(entry) for entry in self._entries], self._notes)
        terminalreporter.section(title)
        write(lines, terminalreporter)

    def _take(self, entries: list[dict[str, Any]], notes: list[str]) -> None:
        self._entries.extend(entries)
        self._notes.extend(note for note in notes if note not in self._notes)
