"""The correct applications, served by uvicorn: they work, and pytest-pgleak has nothing to say about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from demo_app.tests.test_correct import WITH_READ_VISIT, WITHOUT_READ_VISIT, applications

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.pgleak


@pytest.fixture(scope="module")
def half() -> str:
    """Which half of the demo is served."""
    return "correct"


@applications(WITHOUT_READ_VISIT + WITH_READ_VISIT)
def test_visit(live_client: httpx.Client) -> None:
    """A recorded visit is in the list."""
    created = live_client.post("/visit/")
    assert created.status_code == 200

    listed = live_client.get("/visit/")
    assert listed.status_code == 200
    assert created.json() in listed.json()


@applications(WITH_READ_VISIT)
def test_read_visit(live_client: httpx.Client) -> None:
    """A visit can be read by its id, and one that does not exist is a 404."""
    created = live_client.post("/visit/").json()

    assert live_client.get(f"/visit/{created['id']}").json() == created
    assert live_client.get("/visit/0").status_code == 404


@applications(["commit_before_response"])
def test_commit_fails(live_client: httpx.Client) -> None:
    """A visit that refers to one that does not exist is refused, and the client is told."""
    assert live_client.post("/visit/", params={"referrer": 0}).status_code == 409
