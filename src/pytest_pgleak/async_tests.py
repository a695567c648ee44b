"""Async tests that no async plugin claims: run through AnyIO's pytest plugin, on asyncio."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_pgleak.event_loops import anyio_backend_is_default, is_claimed


def claim(collector: pytest.Module | pytest.Class, function: Any) -> None:
    """Give an async test that is marked pgleak to AnyIO, unless somebody runs it already.

    Args:
        collector: Where it is being collected.
        function: The test function.
    """
    marks = {mark.name for mark in getattr(function, "pytestmark", ())}
    marked = "pgleak" in marks or collector.get_closest_marker("pgleak") is not None
    if marked and not is_claimed(collector.config, collector, function):
        # What AnyIO's own marker does: the fixture makes it run this test, and the test's async fixtures.
        pytest.mark.usefixtures("anyio_backend")(function)
        if anyio_backend_is_default(collector):
            # Not once for each backend that is installed: psycopg's async connections know asyncio only.
            # Function scope, for pytest reorders tests that share a parameter of a wider one. A suite whose async
            # fixtures live longer says so with an `anyio_backend` of its own, as AnyIO's manual has it.
            asyncio = pytest.param("asyncio", id=pytest.HIDDEN_PARAM)
            pytest.mark.parametrize("anyio_backend", [asyncio], scope="function")(function)
