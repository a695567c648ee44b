"""The correct applications, each through both clients: they work, and pytest-pgleak has nothing to say about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx
    from fastapi.testclient import TestClient

pytestmark = pytest.mark.pgleak

WITHOUT_READ_VISIT = [
    "advisory_lock_of_transaction",
    "commit_before_response",
    "commit_by_hand",
    "connection_in_task",
    "connection_lifespan",
    "dependency_closing",
    "dependency_yield_context_manager",
    "exception_after_commit",
    "one_checkout",
    "pool_lifespan",
    "search_path_local",
    "sync_dependency_closing",
    "sync_endpoints",
]
WITH_READ_VISIT = [
    "dependency_yield_by_hand",
    "endpoint_context_manager",
    "endpoint_try_finally",
    "pool_getconn_putconn",
    "sync_dependency_yield",
    "sync_pool_getconn_putconn",
]


def applications(names: list[str]) -> pytest.MarkDecorator:
    """Run a test once with each of these applications."""
    return pytest.mark.parametrize("module", [f"correct.{name}" for name in names], ids=names, indirect=True)


@applications(WITHOUT_READ_VISIT + WITH_READ_VISIT)
async def test_visit(pgleak_client: httpx.AsyncClient) -> None:
    """A recorded visit is in the list."""
    created = await pgleak_client.post("/visit/")
    assert created.status_code == 200

    listed = await pgleak_client.get("/visit/")
    assert listed.status_code == 200
    assert created.json() in listed.json()


@applications(WITH_READ_VISIT)
async def test_read_visit(pgleak_client: httpx.AsyncClient) -> None:
    """A visit can be read by its id, and one that does not exist is a 404."""
    created = (await pgleak_client.post("/visit/")).json()

    assert (await pgleak_client.get(f"/visit/{created['id']}")).json() == created
    assert (await pgleak_client.get("/visit/0")).status_code == 404


@applications(["commit_before_response"])
async def test_commit_fails(pgleak_client: httpx.AsyncClient) -> None:
    """A visit that refers to one that does not exist is refused, and the client is told."""
    assert (await pgleak_client.post("/visit/", params={"referrer": 0})).status_code == 409


@applications(WITHOUT_READ_VISIT + WITH_READ_VISIT)
def test_visit_sync(pgleak_sync_client: TestClient) -> None:
    """As `test_visit`, in a sync test."""
    created = pgleak_sync_client.post("/visit/")
    assert created.status_code == 200

    listed = pgleak_sync_client.get("/visit/")
    assert listed.status_code == 200
    assert created.json() in listed.json()


@applications(WITH_READ_VISIT)
def test_read_visit_sync(pgleak_sync_client: TestClient) -> None:
    """As `test_read_visit`, in a sync test."""
    created = pgleak_sync_client.post("/visit/").json()

    assert pgleak_sync_client.get(f"/visit/{created['id']}").json() == created
    assert pgleak_sync_client.get("/visit/0").status_code == 404
