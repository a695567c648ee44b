"""``pgleak_schema``: find out what it names, and apply it to a database."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pytest_pgleak.database_schema.script import ScriptError, Statement, statements
from pytest_pgleak.servers import ServerError, conninfo, libpq
from pytest_pgleak.servers.conninfo import redacted

_OPTION: Final = "pgleak_schema"
_MOST_LINES: Final = 12
"""Of a statement, in an error."""
_CALLABLE: Final = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def apply_schema(source: str, root: Path, dsn: str) -> None:
    """Make what the tests expect in a new database.

    Args:
        source: A file of SQL, relative to the root directory, or ``module:callable``.
        root: pytest's root directory.
        dsn: The database.

    Raises:
        ServerError: It cannot be done; the message names the option, and the statement that the server refused.
    """
    path = root / source
    if path.is_file():
        _run_file(source, path, dsn)
    elif _CALLABLE.fullmatch(source):
        _call(source, dsn)
    else:
        raise ServerError(
            f"{_OPTION} = {source}: there is no file {path}, and it is not of the form module:callable,"
            " as `app.db:create_tables`."
        )


def _run_file(source: str, path: Path, dsn: str) -> None:
    try:
        script = path.read_text(encoding="utf-8-sig")
        parts = list(statements(script))
    except (OSError, UnicodeDecodeError, ScriptError) as error:
        raise ServerError(f"{_OPTION} = {source}: {error}") from None
    with libpq.connected(dsn) as conn:
        conn.notice_handler = None  # "does not exist, skipping" is what the script says, not what the run says
        enums = libpq.pq()
        for statement in parts:
            result = conn.exec_(statement.text.encode())
            if result.status not in (enums.ExecStatus.COMMAND_OK, enums.ExecStatus.TUPLES_OK):
                message = result.error_message.decode(errors="replace").strip()
                raise ServerError(f"{source}:{statement.line}: {message}\n{_quoted(statement)}") from None


def _quoted(statement: Statement) -> str:
    lines = statement.text.splitlines()
    shown = [f"    {line}" for line in lines[:_MOST_LINES]]
    return "\n".join(shown + ["    …"] * (len(lines) > _MOST_LINES))


def _call(source: str, dsn: str) -> None:
    function = _load(source)
    try:
        result = function(dsn)
        if inspect.iscoroutine(result):
            _run_apart(result)
    except Exception as error:  # noqa: BLE001 - what the user's function raises is shown as his
        raise ServerError(f"{_OPTION} = {source} failed.\n{_told(error, dsn)}") from None


def _load(source: str) -> Callable[[str], Any]:
    module_name, _, attributes = source.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except ImportError as error:
        raise ServerError(
            f"{_OPTION} = {source}: {module_name} cannot be imported: {error}.\n"
            "Is the project installed, or its directory in `pythonpath` (pytest's ini option)?"
        ) from None
    except AttributeError as error:
        raise ServerError(f"{_OPTION} = {source}: {error}") from None
    if not callable(found):
        raise ServerError(f"{_OPTION} = {source}: it is a {type(found).__name__}, and not callable with a DSN.")
    return found  # type: ignore[no-any-return]


def _run_apart(coroutine: Any) -> None:
    """Run a coroutine in a thread of its own: in this one an event loop of the tests may be running."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            # psycopg refuses the default loop of Windows.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if sys.platform == "win32" else None) as runner:
                runner.run(coroutine)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run, name="pgleak schema")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _told(error: Exception, dsn: str) -> str:
    """The user's own part of the traceback, and the error; without the password, should it be quoted."""
    here = Path(__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) != here]
    lines = traceback.format_list(frames) + traceback.format_exception_only(error)
    text = "".join(lines).rstrip().replace(dsn, redacted(dsn))
    password = conninfo.parse(dsn).get("password")
    # Also where the function has made another URL of it.
    return text.replace(password, "***").replace(quote(password, safe=""), "***") if password else text
