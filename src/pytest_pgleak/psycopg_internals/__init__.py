"""The only room that patches psycopg and psycopg_pool, and knows their insides.

Public methods are wrapped where there are any: ``close``, ``wait`` (whatever a connection is asked for goes through
it), ``getconn``, ``putconn``, ``open``, and ``wait`` of pools. What is not public, and
why it is needed all the same:

- ``BaseConnection.__init__`` and ``__del__``: every connection passes through them, also those of subclasses and of a
  ``connect`` that somebody imported by name before the patch. ``connect`` itself is bound into the ``psycopg``
  namespace at import and cannot be replaced for everybody.
- ``ConnectionPool._connect``: the only place that knows for which pool a worker opens a connection.
- ``BaseConnection._connect_gen``: runs while a connection is being opened. A task that outlives its test may be in
  the middle of it when the test ends. Where it is missing, a fixed moment is waited instead. It is also where a server
  that is full refuses.
- The names of the generators that ``Connection.wait`` is given (``_commit_gen``, ``_rollback_gen``, ``_exit_gen``), and
  of their arguments: what a connection is asked for. By an unknown name it is a statement.
- ``Connection.__exit__`` on the stack below a COMMIT that fails: psycopg then leaves the connection open, and nobody
  who wrote ``with`` can close it.
- ``Connection._pipeline``: what a connection was asked for in pipeline mode and has not sent yet.
- ``Connection._pool``: set while a connection is checked out, None while it idles in its pool, absent otherwise;
  psycopg's own ``close`` and ``__del__`` read it.
- A pool's ``_pool``, ``_lock``, ``_waiting`` and ``_add_to_pool``: an idle connection is taken out and put back where
  it was, so that nobody else has it while we look into its session.
- ``Connection._notify_handlers``: whether notifications wait for handlers or for ``notifies()``.
- ``Connection._prepared`` and its ``_names``: which statements psycopg has prepared by itself. Where they are missing,
  it has prepared none.
- ``Connection._tpc``: the identifier of its two-phase transaction, and whether it is prepared. Where it is missing,
  only statements tell of prepared transactions.
"""

from __future__ import annotations

from pytest_pgleak.psycopg_internals.connections import connection_patches
from pytest_pgleak.psycopg_internals.idle import in_hand, is_in_a_pool, keeps_connections, while_idle
from pytest_pgleak.psycopg_internals.operations import prepared_statements
from pytest_pgleak.psycopg_internals.pools import pool_patches

__all__ = [
    "connection_patches",
    "in_hand",
    "is_in_a_pool",
    "keeps_connections",
    "pool_patches",
    "prepared_statements",
    "while_idle",
]
