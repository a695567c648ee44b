"""The plugin's hooks. Thin, and it imports nothing heavy until psycopg or a checked test turns up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_pgleak.fixtures import (  # noqa: F401 - pytest collects fixtures from the plugin's namespace
    pgleak,
    pgleak_app,
    pgleak_client,
    pgleak_dsn,
    pgleak_fresh_dsn,
    pgleak_live,
    pgleak_live_server,
    pgleak_postgres,
    pgleak_sync_client,
)
from pytest_pgleak.libraries.registry import BUILT_IN, LibraryTracker
from pytest_pgleak.options import MARKER, add_options, is_configured
from pytest_pgleak.post_import import PostImportHook
from pytest_pgleak.session_end import SessionEnd

if TYPE_CHECKING:
    from pytest_pgleak.reports.targets import Target
    from pytest_pgleak.session import Session
    from pytest_pgleak.state import State

_HOOK = pytest.StashKey[PostImportHook]()
_SESSION = pytest.StashKey["Session"]()
_CONFIGURED = pytest.StashKey[bool]()
_LIBRARIES = pytest.StashKey[list[LibraryTracker]]()


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
    reports: tuple[Target, ...] = ()
    baseline = None
    if active is not None or is_configured(config):
        settings = _read_settings(config)
        reports = settings.reports
        if active is not None:
            # A conftest.py has imported psycopg before the command line was read.
            active.state.settings = settings
        if settings.baseline is not None:
            from pytest_pgleak.baseline.run import BaselineRun

            baseline = BaselineRun(config, settings.baseline, settings)
            config.pluginmanager.register(baseline, "pgleak-baseline")
    config.pluginmanager.register(SessionEnd(config, _active, reports, baseline), "pgleak-session-end")
    _watch_imports(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (hook := config.stash.get(_HOOK, None)) is not None:
        hook.uninstall()
        del config.stash[_HOOK], config.stash[_LIBRARIES]
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
    if _is_off(config):
        return

    def watch(library: LibraryTracker) -> Callable[[ModuleType], None]:
        return lambda module: _session(config).state.watch(library, module)

    if (hook := config.stash.get(_HOOK, None)) is None:
        hook = config.stash[_HOOK] = PostImportHook()
        hook.install()
        hook.add("starlette.applications", lambda module: _session(config).state.starlette_imported(module))
    # Asked again when all of conftest.py is there.
    known = config.stash.setdefault(_LIBRARIES, [])
    for library in libraries_of(config):
        if library not in known:
            known.append(library)
            hook.add(library.module, watch(library))


def libraries_of(config: pytest.Config) -> list[LibraryTracker]:
    """Ask all plugins which libraries are watched."""
    libraries: list[LibraryTracker] = []
    for supplied in config.hook.pytest_pgleak_trackers():
        libraries.extend([supplied] if isinstance(supplied, LibraryTracker) else supplied)
    if strange := next((each for each in libraries if not isinstance(each, LibraryTracker)), None):
        raise pytest.UsageError(
            f"pytest_pgleak_trackers: {strange!r} is no pytest_pgleak.libraries.registry.LibraryTracker;"
            " the hook returns a list of them"
        )
    return libraries


_PARAMETER: Final = "get_direct_param_fixture_func"
"""The function of what pytest makes of an argument of ``parametrize``: a fixture that only hands its value on."""


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
    if active is None or getattr(fixturedef.func, "__name__", "") == _PARAMETER:
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


def pytest_pgleak_trackers() -> Sequence[LibraryTracker]:
    return BUILT_IN


def _active(config: pytest.Config) -> Session | None:
    return config.stash.get(_SESSION, None)
