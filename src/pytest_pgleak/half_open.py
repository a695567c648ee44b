"""Connections that are being opened: their backends may be there already, and nobody knows their pids yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HalfOpen:
    """Counts them."""

    def __init__(self) -> None:
        self._by_pools: set[object] = set()
        self._by_others: set[object] = set()

    def __len__(self) -> int:
        return len(self._by_pools) + len(self._by_others)

    @property
    def is_connecting(self) -> bool:
        """Whether somebody else than a pool is opening one now. What a pool opens is nothing to wait for."""
        return bool(self._by_others)

    @contextmanager
    def connecting(self, by_pool: bool) -> Iterator[None]:
        """A connection is being opened.

        Args:
            by_pool: Whether a pool opens it.
        """
        token, opening = object(), self._by_pools if by_pool else self._by_others
        opening.add(token)
        try:
            yield
        finally:
            opening.discard(token)
