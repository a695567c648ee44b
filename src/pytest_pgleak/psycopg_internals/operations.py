"""What a connection is asked for, and how it stands."""

from __future__ import annotations

import weakref
from typing import Any

from pytest_pgleak.prepared.gids import GidUse, gids_in
from pytest_pgleak.transaction_tracking import Operation
from pytest_pgleak.transactions import How


def status_of(connection: Any) -> str:
    """Return the name of a connection's ``TransactionStatus``; never raises."""
    try:
        if connection._pipeline is not None and connection._pipeline.command_queue:  # noqa: SLF001
            return "ACTIVE"  # asked for, but not sent yet
        return str(connection.info.transaction_status.name)
    except Exception:  # noqa: BLE001 - a mock, or what somebody has made of a connection; its user must not notice
        return "UNKNOWN"


def operation_of(generator: Any) -> Operation:
    """Read from a generator that ``Connection.wait`` is given what it is going to do; never raises."""
    try:
        return _read(generator)
    except Exception:  # noqa: BLE001 - a fake, or parameters of the user's own making; he must not notice
        return Operation()


def prepared_statements(connection: Any) -> dict[str, str]:
    """Return the statements that psycopg has prepared by itself on a connection: their texts by their names."""
    names = getattr(getattr(connection, "_prepared", None), "_names", None)
    if not names:
        return {}
    return {name.decode(errors="replace"): key[0].decode(errors="replace") for key, name in list(names.items())}


def _read(generator: Any) -> Operation:
    name = getattr(generator, "__name__", "")
    given = getattr(getattr(generator, "gi_frame", None), "f_locals", {})
    if name == "_commit_gen":
        return Operation(How.COMMIT)
    if name == "_rollback_gen":
        return Operation(How.ROLLBACK)
    if name == "_exit_gen" and "exc_type" in given:  # the end of a pipeline goes by the same name
        forced = bool(getattr(given.get("self"), "force_rollback", False))
        return Operation(is_block=True, fails=given.get("exc_val") is not None, forced=forced)
    if name == "_enter_gen":
        return Operation(begins_block=True)
    if name == "_tpc_prepare_gen":
        return Operation(How.PREPARED, gids=_gid(given, finishes=False))
    if name == "_tpc_finish_gen":
        how = How.ROLLBACK if given.get("action") == "ROLLBACK" else How.COMMIT
        return Operation(how, gids=_gid(given, finishes=True))
    query, parameters = given.get("query", given.get("statement")), given.get("params")
    if query is None:
        return Operation()
    statement = _text(query)
    if name == "_declare_gen" and getattr(given.get("self"), "withhold", False):
        statement = f'declare "{given["self"].name}" cursor with hold for {statement}'
    cursor = given.get("self")
    tag = None if cursor is None or not hasattr(cursor, "statusmessage") else weakref.ref(cursor)
    return Operation(statement=statement, gids=gids_in(statement, parameters), parameters=parameters, cursor=tag)


def _gid(given: dict[str, Any], *, finishes: bool) -> tuple[GidUse, ...]:
    xid, prepared = getattr(given.get("self"), "_tpc", None) or (None, False)
    if finishes:
        # Without an argument it is this connection's own, and that may end in one phase.
        xid = given.get("xid") or (xid if prepared else None)
    return () if xid is None else (GidUse(str(xid), finishes),)


def _text(query: Any) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, str):
        return query
    if hasattr(query, "interpolations"):  # a template string, Python 3.14
        return "%s".join(query.strings)
    try:
        return str(query.as_string())
    except Exception:  # noqa: BLE001 - the text is a help only; psycopg itself will say what is wrong with it
        return ""
