"""The server that the user names with a DSN: it is only looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_pgleak.servers import conninfo, libpq
from pytest_pgleak.servers.values import Plan, RunningServer, ServerError

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from pytest_pgleak.servers.values import ServerRequest


def start_given(plan: Plan) -> RunningServer:
    """Connect once, to know that the server is there and which version it is.

    Raises:
        ServerError: If the DSN is malformed, or nobody answers, or the server does not let us in.
    """
    request = plan.request
    dsn = request.dsn or ""
    pq = libpq.pq()
    _check_syntax(request, dsn)
    conn = libpq.connect(libpq.with_timeout(dsn))
    try:
        if conn.status != pq.ConnStatus.OK:
            raise ServerError(_refusal(conn, request, dsn))
        version = libpq.version(conn)
    finally:
        conn.finish()
    return RunningServer(dsn, version, "dsn", f"PostgreSQL {version}, {plan.origin}", owned=False)


def _check_syntax(request: ServerRequest, dsn: str) -> None:
    from psycopg import Error

    try:
        conninfo.parse(dsn)
        libpq.pq().Conninfo.parse(dsn.encode())
    except (ValueError, Error) as error:
        # libpq's own message is not repeated: it quotes the string, and with it a password.
        detail = f": {error}" if isinstance(error, ValueError) else ""
        raise ServerError(
            f"{request.dsn_option} is no connection string that libpq understands{detail}.\n"
            "Write postgresql://user@host:5432/dbname or 'host=... port=5432 user=... dbname=...'. In a URI the\n"
            "characters @ : / ? # % of a password are percent-encoded (%40 for @); in the other form a value with\n"
            "spaces stands in single quotes. The parameters are listed at\n"
            "https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"
        ) from None


def _refusal(conn: PGconn, request: ServerRequest, dsn: str) -> str:
    text = libpq.reason(conn, dsn)
    shown = conninfo.redacted(dsn) or "its defaults"
    if conn.needs_password:
        what = f"The server of {request.dsn_option} ({shown}) asks for a password and none is set"
        remedy = "Put it into the DSN, into PGPASSWORD or into ~/.pgpass."
    elif "authentication failed" in text:
        what = f"Authentication failed at the server of {request.dsn_option} ({shown})"
        remedy = "Check the user and the password (in the DSN, PGPASSWORD or ~/.pgpass) and the server's pg_hba.conf."
    else:
        what = f"Cannot connect to the server of {request.dsn_option} ({shown})"
        remedy = (
            f"Start that server, correct {request.dsn_option}, or leave the choice to pgleak \n"
            "(--pgleak-server=embedded, local or docker)."
        )
    return f"{what}:\n{text}\n{remedy}"
