"""The event loop of the running test, from a synchronous fixture. The one place that knows other plugins' insides.

AnyIO closes its loop when the last lease on its runner ends, pytest-asyncio when its runner fixture is torn down. A
fixture that starts a lifespan has to hold on to that loop, or the application would be cancelled where it should be
shut down.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""Runs a coroutine function to its end in the test's loop."""


@contextmanager
def loop_of_test(request: pytest.FixtureRequest) -> Iterator[Run | None]:
    """Hold the event loop in which the requesting test will run.

    Args:
        request: The fixture's request.

    Yields:
        A function that runs coroutines in it; None where no async plugin runs the test.
    """
    if "anyio_backend" in request.fixturenames:
        with _anyio_loop(request) as run:
            yield run
    else:
        yield _asyncio_loop(request)


def is_claimed(config: pytest.Config, node: pytest.Collector, function: Any) -> bool:
    """Tell whether some async plugin is going to run a coroutine function that is being collected."""
    marks = getattr(function, "pytestmark", ())
    if {mark.name for mark in marks} & {"anyio", "asyncio", "trio", "twisted"}:
        return True
    if any(mark.name == "usefixtures" and "anyio_backend" in mark.args for mark in marks):
        return True  # AnyIO's own way, or ours: a method of a base class is collected once for each subclass
    if any(node.get_closest_marker(name) for name in ("anyio", "asyncio", "trio")):
        return True
    for plugin in ("asyncio", "anyio", "trio"):
        mode = f"{plugin}_mode"
        if config.pluginmanager.has_plugin(plugin) and _setting(config, mode) in ("auto", True):
            return True
    return False


def anyio_backend_is_default(node: pytest.Collector) -> bool:
    """Tell whether the ``anyio_backend`` fixture is AnyIO's own, which runs a test once per installed backend."""
    manager = getattr(node.session, "_fixturemanager", None)
    fixturedefs = manager.getfixturedefs("anyio_backend", node) if manager is not None else None
    return fixturedefs is not None and fixturedefs[-1].func.__module__ == "anyio.pytest_plugin"


def _setting(config: pytest.Config, name: str) -> object:
    try:
        given = config.getoption(name, None)
        given = getattr(given, "value", given)
        return given or config.getini(name)
    except (KeyError, ValueError):  # that plugin, in that version, has no such setting
        return None


@contextmanager
def _anyio_loop(request: pytest.FixtureRequest) -> Iterator[Run]:
    from anyio.pytest_plugin import extract_backend_and_options, get_runner

    name, options = extract_backend_and_options(request.getfixturevalue("anyio_backend"))
    if name != "asyncio":
        pytest.fail(
            f"pgleak_client runs on asyncio, for psycopg's async connections do; this test asks for {name}.\n"
            '  Override the fixture `anyio_backend` to return "asyncio".',
            pytrace=False,
        )
    with get_runner(name, options) as runner:
        yield lambda function: runner.run_fixture(function, {})


def _asyncio_loop(request: pytest.FixtureRequest) -> Run | None:
    node = request.node
    if node.get_closest_marker("asyncio") is None or not inspect.iscoroutinefunction(getattr(node, "obj", None)):
        return None
    scope = getattr(node, "_loop_scope", "function")
    try:
        # Requested from here, the runner is torn down after us.
        runner = request.getfixturevalue(f"_{scope}_scoped_runner")
    except pytest.FixtureLookupError:
        # Another version of pytest-asyncio (1.1 brought the runner): the first request runs the lifespan instead.
        return None
    return lambda function: runner.run(function())
