"""One server for the whole suite; inner pytest runs get it with ``--pgleak-dsn``."""

from __future__ import annotations

import compileall
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_pgleak
from pytest_pgleak.servers import ServerRequest, plan, start

pytest_plugins = ["pytester"]
pytest.register_assert_rewrite("twice")

# Inner suites, leaking on purpose: test_corpus.py, compat/test_corpus_*.py and test_stateful.py run them.
collect_ignore = ["corpus", "corpus_drivers", "corpus_sqlalchemy", "stateful"]

LONGEST = {
    "test_corpus.py",
    "test_corpus_sqlalchemy.py",
    "test_psycopg_features.py",
    "test_stacks.py",
    "test_stateful.py",
}
"""Files with tests of ten seconds and more."""

# In the background of a shell Ctrl-C is ignored, and so it would be by all that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    # Inner runs write no bytecode, but read it: compiling the plugin anew is half the time of a short one.
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(pytest_pgleak.__file__).parent, quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    # Half of the time a worker waits: for servers, for timeouts, for what must not happen.
    return (os.cpu_count() or 1) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest first, so that none is still running when all others are done.
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    server = start(plan(ServerRequest(dsn=os.environ.get("PGLEAK_DSN"))))
    yield server.dsn
    server.stop()


@pytest.fixture(autouse=True)
def _own_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the developer has set must not reach the inner runs.
    for name in ("PGLEAK_DSN", "PYTEST_XDIST_WORKER", "GITHUB_ACTIONS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    # Of a file that a test edits, bytecode could be a second old and would be taken for that of the same text.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    # `pytester` removes the variables that follow.
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")
    # By their modules: pytest rewrites the asserts of all that is below a name, and below "asyncio" is much.
    # What else is installed would be two thirds of the time of an inner run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p pytest_asyncio.plugin -p pgleak -p anyio.pytest_plugin -p xdist.plugin")


@pytest.fixture
def all_plugins(_own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs have all plugins that are installed, as a user's have."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    # One shuffles, the other has a thread: for those who ask for them.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly -p no:rerunfailures")
