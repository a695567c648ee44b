"""How one writes things with SQLAlchemy. Pure."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Awaitable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.libraries.library import Library, Words

if TYPE_CHECKING:
    from pytest_pgleak.frames import RawStack

_SCOPED: Final = (("sqlalchemy", "orm", "scoping.py"), ("sqlalchemy", "ext", "asyncio", "scoping.py"))
_SESSIONS: Final = (("sqlalchemy", "orm", "session.py"), ("sqlalchemy", "ext", "asyncio", "session.py"), *_SCOPED)


class SqlAlchemy(Library):
    """SQLAlchemy 2: an engine's pool. The connections in it are a driver's."""

    name = "SQLAlchemy"
    pool_is_lazy = True
    ends_transactions = True
    limit = "pool_size + max_overflow ="

    def __init__(self, *, pool_keeps_nothing: bool = False) -> None:
        self.pool_keeps_nothing = pool_keeps_nothing

    def words(self, class_name: str, is_async: bool, stack: RawStack = ()) -> Words:  # noqa: ARG002 - of no account
        """Return how one writes things, with a ``Session`` where that is how the connection was taken."""
        filenames = {code.co_filename for code, _ in stack}
        by_session = any(_is_at(filename, _SESSIONS) for filename in filenames)
        return _words(is_async, by_session, by_session and any(_is_at(filename, _SCOPED) for filename in filenames))

    def is_of_session(self, stack: RawStack) -> bool:
        """Tell whether it was a session, made before, that took a connection."""
        return any(_is_at(code.co_filename, _SESSIONS) for code, _ in stack)

    def is_closed(self, thing: Any) -> bool:  # noqa: ARG002 - a disposed pool can be used again
        """Never: ``dispose`` leaves a new pool in the place of the old one, which is told apart."""
        return False

    def close_pool(self, pool: Any, timeout: float) -> Awaitable[object] | None:  # noqa: ARG002 - it is quick
        """Close the idle connections of an engine."""
        if not getattr(pool, "_is_asyncio", False):
            pool.dispose()
            return None
        result: Awaitable[object] = importlib.import_module("sqlalchemy.util").greenlet_spawn(pool.dispose)
        return result


SQLALCHEMY: Final = SqlAlchemy()
WITH_NULL_POOL: Final = SqlAlchemy(pool_keeps_nothing=True)
"""An engine whose pool is a ``NullPool``: there is nothing to dispose of."""


@functools.lru_cache(maxsize=4096)
def _is_at(filename: str, places: tuple[tuple[str, ...], ...]) -> bool:
    parts = PurePath(filename).parts
    return any(parts[-len(place) :] == place for place in places)


@functools.lru_cache(maxsize=8)
def _words(is_async: bool, by_session: bool, is_scoped: bool) -> Words:
    wait, with_, prefix = ("await ", "async with", "Async") if is_async else ("", "with", "")
    name = "session" if by_session else "conn"
    collected = "SQLAlchemy gave the connection up then" if is_async else "SQLAlchemy took the connection back then"
    take = f"{with_} {prefix}Session(engine) as session:" if by_session else f"{with_} engine.connect() as conn:"
    return Words(
        open=take,
        close=f"{wait}{name}.close()",
        commit=f"{wait}{name}.commit()",
        rollback=f"{wait}{name}.rollback()",
        transaction=f"{with_} {name}.begin():",
        savepoint=f"{with_} {name}.begin_nested():",
        take=take,
        give_back=f"{wait}{name}.{'remove' if is_scoped else 'close'}()",
        open_pool=f"{wait}engine.dispose()",
        pool="make one engine",
        drops_slot=collected,
        takes_back=collected,
        writing=f"{with_} {prefix}Session(engine) as session, session.begin():"
        if by_session
        else f"{with_} engine.begin() as conn:",
        session_of=f"{prefix}Session" if by_session else "",
    )
