"""The leaky applications, served by uvicorn: the same leaks as in process, for the same lines.

`demo_app.expected` says of what kind each of them is. What a lifespan leaves is found when the server is stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from demo_app.tests.test_leaky import (
    CREATING_LEAKS,
    CREATING_LEAKS_SYNC,
    MISSING_ONE_LEAKS,
    MISSING_ONE_LEAKS_SYNC,
    applications,
)

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.pgleak


@pytest.fixture(scope="module")
def half() -> str:
    """Which half of the demo is served."""
    return "leaky"


@applications(CREATING_LEAKS + CREATING_LEAKS_SYNC)
def test_create_visit(live_client: httpx.Client) -> None:
    """Recording a visit is enough to leak."""
    assert live_client.post("/visit/").status_code == 200


@applications(MISSING_ONE_LEAKS + MISSING_ONE_LEAKS_SYNC)
def test_missing_visit(live_client: httpx.Client) -> None:
    """Asking for a visit that does not exist leaks."""
    assert live_client.get("/visit/0").status_code == 404


@applications(["commit_after_response"])
def test_commit_fails(live_client: httpx.Client) -> None:
    """The answer is on the wire before the commit fails: the client is told 200, the server's log sees the error."""
    assert live_client.post("/visit/", params={"referrer": 0}).status_code == 200
