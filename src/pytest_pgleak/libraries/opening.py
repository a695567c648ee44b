"""Which pool is opening a connection here and now.

A pool opens its connections through the driver, which knows nothing of pools. So whoever watches the pool says so, and
whoever watches the driver asks.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar, Token
from typing import Any, Final

_CURRENT: ContextVar[opening_for | None] = ContextVar("pgleak_opening_pool", default=None)


class opening_for:  # noqa: N801 - a context manager, that reads as one
    """Charge the connections that this context opens to a pool.

    A task or a callback that begins meanwhile inherits the context, and goes on when the pool has long been ready: what
    it opens then is not the pool's. So the end is written down here, and not only in the context.

    Args:
        pool: The pool.
    """

    __slots__ = ("_token", "pool")

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def __enter__(self) -> None:
        self._token: Token[opening_for | None] = _CURRENT.set(self)

    def __exit__(self, *_: object) -> None:
        self.pool = None
        with contextlib.suppress(ValueError):  # the garbage collector closes a coroutine in whatever context that runs
            _CURRENT.reset(self._token)


class OpeningPool:
    """The pool that is opening a connection here and now."""

    def get(self) -> Any:
        """Return it; None where no pool is."""
        opening = _CURRENT.get()
        return None if opening is None else opening.pool


opening_pool: Final = OpeningPool()
"""Asked by whoever watches a driver."""
