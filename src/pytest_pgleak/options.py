"""The command line and ini options. Light: it is imported by every pytest run on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MARKER = (
    "pgleak(allow=(), grace=None, max_connections=None, commit=None, faults=()): "
    "fail this test if it leaves a PostgreSQL connection, a pooled checkout or a transaction open."
)

INI = (
    ("pgleak_mode", "string", "fail, warn or off: what a leak does to its test (default: fail)"),
    ("pgleak_select", "string", "marked or all: which tests are checked (default: marked)"),
    ("pgleak_grace", "string", "seconds to wait for a late release before it is a leak (default: 0.5)"),
    (
        "pgleak_blocked_after",
        "string",
        "seconds after which a test that waits for a lock is told of while it waits; 0 for never (default: 5)",
    ),
    ("pgleak_levels", "linelist", "a line each, `KIND = fail|warn|off`: how serious a kind is"),
    ("pgleak_ignore", "linelist", "a line each, `KIND GLOB::FUNCTION`: leave out findings by where they come from"),
    (
        "pgleak_baseline",
        "string",
        "file of known findings, relative to the root directory: they fail nothing (made if it is not there)",
    ),
    ("pgleak_server", "string", "auto, dsn, embedded, local or docker: where the server comes from (default: auto)"),
    ("pgleak_dsn", "string", "DSN of a server to use (also: environment variable PGLEAK_DSN)"),
    (
        "pgleak_pgbouncer",
        "string",
        "DSN of PgBouncer's admin console, where the application connects through one",
    ),
    ("pgleak_bindir", "string", "directory with the programs postgres and initdb"),
    ("pgleak_docker_image", "string", "image for pgleak_server = docker"),
    (
        "pgleak_tcp",
        "bool",
        "a server that pgleak starts listens on 127.0.0.1, too, and its DSN has a port and a password (default: false)",
    ),
    (
        "pgleak_schema",
        "string",
        "what pgleak_dsn and pgleak_fresh_dsn have in them: a file of SQL, or module:callable that takes a DSN",
    ),
    (
        "pgleak_live_command",
        "string",
        "what starts pgleak_live_server, as `DATABASE_URL={dsn} uvicorn app.main:app --workers 2`",
    ),
    ("pgleak_terminate", "bool", "terminate leaked backends in databases that pgleak did not create (default: false)"),
)


def add_options(parser: pytest.Parser) -> None:
    """Add the options to pytest's parser."""
    for name, kind, text in INI:
        default: object = {"bool": False, "linelist": []}.get(kind)
        parser.addini(name, text, type=kind, default=default)  # type: ignore[arg-type]  # a literal in INI
    group = parser.getgroup("pgleak", "PostgreSQL connection leaks (pytest-pgleak)")
    group.addoption(
        "--pgleak-mode",
        choices=("fail", "warn", "off"),
        help="what a leak does to its test; off switches the plugin off (ini: pgleak_mode)",
    )
    group.addoption(
        "--pgleak-select",
        choices=("marked", "all"),
        help="check the tests marked pgleak, or all tests (ini: pgleak_select)",
    )
    group.addoption(
        "--pgleak-baseline",
        metavar="FILE",
        help="known findings: what this file lists fails nothing; made from this run if it is not there"
        " (ini: pgleak_baseline)",
    )
    group.addoption(
        "--pgleak-baseline-update",
        action="store_true",
        help="add to the baseline what this run finds, and if the run was complete remove what it does not find",
    )
    group.addoption(
        "--pgleak-server",
        choices=("auto", "dsn", "embedded", "local", "docker"),
        help="where pgleak_postgres gets its server from; auto tries the others in this order (ini: pgleak_server)",
    )
    group.addoption("--pgleak-dsn", metavar="DSN", help="use this server (ini: pgleak_dsn; environment: PGLEAK_DSN)")
    group.addoption(
        "--pgleak-pgbouncer",
        metavar="DSN",
        help="read this PgBouncer's admin console, where the application connects through one (ini: pgleak_pgbouncer)",
    )
    group.addoption(
        "--pgleak-bindir",
        metavar="DIR",
        help="start the server from the programs postgres and initdb in this directory (ini: pgleak_bindir)",
    )
    group.addoption(
        "--pgleak-tcp",
        action="store_true",
        help="a server that pgleak starts listens on 127.0.0.1, too, with a random password (ini: pgleak_tcp)",
    )
    group.addoption(
        "--pgleak-report",
        metavar="PATH",
        action="append",
        help="write what was found to this file, as .json, .sarif or .html; may be given several times",
    )


def is_configured(config: pytest.Config) -> bool:
    """Tell whether the user has set anything."""
    return any(config.getini(name) for name, _, _ in INI) or any(
        config.getoption(name, None)
        for name in (
            "pgleak_mode",
            "pgleak_select",
            "pgleak_baseline",
            "pgleak_baseline_update",
            "pgleak_server",
            "pgleak_dsn",
            "pgleak_pgbouncer",
            "pgleak_bindir",
            "pgleak_tcp",
            "pgleak_report",
        )
    )
