"""Which connections their pools have lent."""

from __future__ import annotations

from pytest_pgleak.events import Moment
from pytest_pgleak.nesting import is_same_flow


class Lent:
    """Knows them by their serials, each with its pool and when it was taken."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[int, Moment]] = {}

    def add(self, serial: int, pool: int, moment: Moment) -> tuple[int, Moment] | None:
        """Note that a connection is taken.

        Args:
            serial: The connection's.
            pool: Serial of the pool.
            moment: When, where and on whose account.

        Returns:
            The connection of the same pool that the same flow of control holds meanwhile, and when it was taken; the
            one taken last, if there are several.
        """
        held = [
            (other, first)
            for other, (of_pool, first) in list(self._taken.items())
            if other != serial and of_pool == pool and is_same_flow(first, moment)
        ]
        self._taken[serial] = (pool, moment)
        return held[-1] if held else None

    def discard(self, serial: int) -> None:
        """Note that a connection is back, or gone."""
        self._taken.pop(serial, None)


def lends_sessions(pool: type) -> bool:
    """Tell of the class of a pool whether pgleak may look into the sessions of its connections: psycopg_pool's only."""
    return any(base.__module__.partition(".")[0] == "psycopg_pool" for base in pool.__mro__)
