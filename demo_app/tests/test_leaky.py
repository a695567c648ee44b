"""The leaky applications. Every request is answered as it should be, and every test fails: for the leak alone.

`demo_app.expected` says of what kind each of them is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx
    from fastapi.testclient import TestClient

pytestmark = pytest.mark.pgleak


def applications(*names: str) -> pytest.MarkDecorator:
    """Run a test once with each of these applications."""
    return pytest.mark.parametrize("module", [f"leaky.{name}" for name in names], ids=names, indirect=True)


@applications(
    "commit_forgotten",
    "connection_held_by_task",
    "connection_on_app_state",
    "dependency_returned",
    "getconn_without_putconn",
    "pool_never_closed",
    "pool_per_request",
    "yield_transaction_only",
)
async def test_create_visit(pgleak_client: httpx.AsyncClient) -> None:
    """Recording a visit is enough to leak."""
    assert (await pgleak_client.post("/visit/")).status_code == 200


@applications(
    "endpoint_early_return",
    "endpoint_exception_path",
    "putconn_only_on_success",
    "yield_without_finally",
)
async def test_missing_visit(pgleak_client: httpx.AsyncClient) -> None:
    """Asking for a visit that does not exist leaks."""
    assert (await pgleak_client.get("/visit/0")).status_code == 404


@applications("sync_dependency_returned", "sync_pool_never_closed")
def test_create_visit_sync(pgleak_sync_client: TestClient) -> None:
    """As `test_create_visit`, in a sync test."""
    assert pgleak_sync_client.post("/visit/").status_code == 200


@applications("sync_putconn_only_on_success", "sync_yield_without_finally")
def test_missing_visit_sync(pgleak_sync_client: TestClient) -> None:
    """As `test_missing_visit`, in a sync test."""
    assert pgleak_sync_client.get("/visit/0").status_code == 404
