"""Which libraries are watched, and by what. Light: every pytest run on the machine imports it.

Each entry imports its own module only when the application has imported the library.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_pgleak.patching import Switch
    from pytest_pgleak.tracking import Tracker


class LibraryTracker(NamedTuple):
    """Watches one library.

    Attributes:
        module: Full name of the module whose import it waits for.
        watch: Called with that module and the tracker to tell; returns what is to be switched on.
    """

    module: str
    watch: Callable[[ModuleType, Tracker], Switch]


def _psycopg(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.psycopg_internals import connection_patches

    return connection_patches(module, tracker)


def _psycopg_pool(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.psycopg_internals import pool_patches

    return pool_patches(module, tracker)


def _psycopg2(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.libraries.psycopg2 import connection_patches

    return connection_patches(module, tracker)


def _psycopg2_pool(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.libraries.psycopg2_pools import pool_patches

    return pool_patches(module, tracker)


def _asyncpg(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.libraries.asyncpg import asyncpg_patches

    return asyncpg_patches(module, tracker)


def _sqlalchemy(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.libraries.sqlalchemy import sqlalchemy_patches

    return sqlalchemy_patches(module, tracker)


def _sqlalchemy_orm(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.libraries.sqlalchemy_sessions import session_patches

    return session_patches(module, tracker)


def _sqlalchemy_asyncio(module: ModuleType, tracker: Tracker) -> Switch:
    from pytest_pgleak.libraries.sqlalchemy_asyncio import asyncio_patches

    return asyncio_patches(module, tracker)


BUILT_IN = (
    LibraryTracker("psycopg", _psycopg),
    LibraryTracker("psycopg_pool", _psycopg_pool),
    LibraryTracker("psycopg2", _psycopg2),
    LibraryTracker("psycopg2.pool", _psycopg2_pool),
    LibraryTracker("asyncpg", _asyncpg),
    LibraryTracker("sqlalchemy", _sqlalchemy),
    LibraryTracker("sqlalchemy.orm", _sqlalchemy_orm),
    LibraryTracker("sqlalchemy.ext.asyncio", _sqlalchemy_asyncio),
)
"""The plugin's own."""
