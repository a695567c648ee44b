"""Hooks that other plugins and ``conftest.py`` files may implement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_pgleak.findings import Finding
    from pytest_pgleak.libraries.registry import LibraryTracker


@pytest.hookspec(firstresult=True)
def pytest_pgleak_server(config: pytest.Config) -> Any:
    """Supply the PostgreSQL server of ``pgleak_postgres``; the first result is used.

    Args:
        config: pytest's config.

    Returns:
        A conninfo string or URI, or an object with ``dsn``, ``version`` and ``source`` and optionally ``stop()``,
        which is called at the end of the session; None to leave it to the next implementation. The plugin's own
        (``trylast``) does what ``pgleak_server`` says.
    """


@pytest.hookspec(firstresult=True)
def pytest_pgleak_ignore(finding: Finding, item: pytest.Item | None) -> bool | None:
    """Decide whether a finding is ignored; the first result that is not None is used.

    Args:
        finding: The finding.
        item: The test at whose checkpoint it was made; None at the end of the session.

    Returns:
        True to ignore it, False to keep it whatever others say, None to leave it to the next implementation. The
        plugin's own (``trylast``) applies ``pgleak_ignore``.
    """


@pytest.hookspec
def pytest_pgleak_findings(item: pytest.Item | None, findings: Sequence[Finding]) -> None:
    """See the findings of one checkpoint, after the ignored, the allowed and the known ones were taken out.

    Called only when there are any; warnings are among them.

    Args:
        item: The test; None at the end of the session.
        findings: What was found.
    """


@pytest.hookspec
def pytest_pgleak_trackers() -> Sequence[LibraryTracker]:  # type: ignore[empty-body]  # a specification
    """Supply trackers for more drivers and pools; the plugin's own go the same way.

    Asked before any ``conftest.py`` is imported, and again when all of them are. A tracker is made when the
    application imports the library, and never if it does not.

    Returns:
        A list of ``pytest_pgleak.libraries.registry.LibraryTracker``: a module to wait for, and a function that is
        given the module and a ``pytest_pgleak.tracking.Tracker`` to tell what happens.
    """
