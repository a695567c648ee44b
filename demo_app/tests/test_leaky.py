"""The leaky applications. Every request is answered as it should be, and every test fails: for the leak alone.

`demo_app.expected` says of what kind each of them is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg.errors import ForeignKeyViolation

if TYPE_CHECKING:
    import httpx
    from fastapi.testclient import TestClient

pytestmark = pytest.mark.pgleak


CREATING_LEAKS = [
    "advisory_lock_left",
    "close_without_commit",
    "commit_forgotten",
    "connection_held_by_task",
    "connection_on_app_state",
    "dependency_returned",
    "exception_swallowed",
    "getconn_without_putconn",
    "nested_checkout",
    "pool_never_closed",
    "pool_per_request",
    "search_path_left",
    "yield_transaction_only",
]
MISSING_ONE_LEAKS = [
    "endpoint_early_return",
    "endpoint_exception_path",
    "putconn_only_on_success",
    "yield_without_finally",
]
CREATING_LEAKS_SYNC = ["sync_dependency_returned", "sync_pool_never_closed"]
MISSING_ONE_LEAKS_SYNC = ["sync_putconn_only_on_success", "sync_yield_without_finally"]


def applications(names: list[str]) -> pytest.MarkDecorator:
    """Run a test once with each of these applications."""
    return pytest.mark.parametrize("module", [f"leaky.{name}" for name in names], ids=names, indirect=True)


@applications(CREATING_LEAKS)
async def test_create_visit(pgleak_client: httpx.AsyncClient) -> None:
    """Recording a visit is enough to leak."""
    assert (await pgleak_client.post("/visit/")).status_code == 200


@applications(MISSING_ONE_LEAKS)
async def test_missing_visit(pgleak_client: httpx.AsyncClient) -> None:
    """Asking for a visit that does not exist leaks."""
    assert (await pgleak_client.get("/visit/0")).status_code == 404


@applications(["commit_after_response"])
async def test_commit_fails(pgleak_client: httpx.AsyncClient) -> None:
    """A visit that refers to one that does not exist is refused: too late, only the server's log sees the error."""
    with pytest.raises(ForeignKeyViolation):
        await pgleak_client.post("/visit/", params={"referrer": 0})


@applications(CREATING_LEAKS_SYNC)
def test_create_visit_sync(pgleak_sync_client: TestClient) -> None:
    """As `test_create_visit`, in a sync test."""
    assert pgleak_sync_client.post("/visit/").status_code == 200


@applications(MISSING_ONE_LEAKS_SYNC)
def test_missing_visit_sync(pgleak_sync_client: TestClient) -> None:
    """As `test_missing_visit`, in a sync test."""
    assert pgleak_sync_client.get("/visit/0").status_code == 404
