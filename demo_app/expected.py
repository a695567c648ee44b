"""What pytest-pgleak has to find in each application of `demo_app.leaky`: exactly one finding of this kind."""

EXPECTED: dict[str, str] = {
    "commit_forgotten": "transaction-left-open",
    "connection_held_by_task": "connection-not-closed",
    "connection_on_app_state": "connection-not-closed",
    "dependency_returned": "connection-dropped",
    "endpoint_early_return": "connection-dropped",
    "endpoint_exception_path": "connection-dropped",
    "getconn_without_putconn": "connection-not-returned",
    "pool_never_closed": "pool-not-closed",
    "pool_per_request": "pool-not-closed",
    "putconn_only_on_success": "connection-not-returned",
    "sync_dependency_returned": "connection-dropped",
    "sync_pool_never_closed": "pool-not-closed",
    "sync_putconn_only_on_success": "connection-not-returned",
    "sync_yield_without_finally": "connection-dropped",
    "yield_transaction_only": "connection-dropped",
    "yield_without_finally": "connection-dropped",
}
