"""Which pool is opening a connection here and now.

A pool opens its connections through the driver, which knows nothing of pools. So whoever watches the pool says so, and
whoever watches the driver asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

opening_pool: ContextVar[Any] = ContextVar("pgleak_opening_pool", default=None)
"""The pool that is opening a connection here and now."""


@contextmanager
def opening_for(pool: Any) -> Iterator[None]:
    """Charge the connections that this context opens to a pool."""
    token = opening_pool.set(pool)
    try:
        yield
    finally:
        opening_pool.reset(token)
