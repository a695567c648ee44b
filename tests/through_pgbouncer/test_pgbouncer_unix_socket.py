"""Connections to PgBouncer over a Unix socket: known by the process that they belong to."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pgbouncers import console, lines_of, needs_pgbouncer, pgbouncer, through
from psycopg.conninfo import make_conninfo

pytestmark = [needs_pgbouncer, pytest.mark.skipif(sys.platform != "linux", reason="needs SO_PEERCRED")]

Run = Callable[..., pytest.RunResult]

TESTS = """
    def test_left_in_transaction():
        KEPT.append(connect())
        KEPT[-1].execute("insert into visits values (2)")

    def test_then_closed():
        KEPT.pop().close()

    @pytest.fixture(scope="module")
    def pool():
        with psycopg_pool.ConnectionPool(os.environ["APP_DSN"], min_size=3) as pool:
            pool.wait()
            yield pool

    def test_setting_of_one_of_several(pool):
        with pool.connection() as conn:
            conn.execute("set work_mem = '77MB'")

    def test_write_lost_of_one_of_several(pool):
        conn = pool.getconn()
        conn.execute("insert into visits values (2)")
        pool.putconn(conn)

    def test_clean(pool):
        with pool.connection() as conn, pool.connection() as other:
            conn.execute("set local work_mem = '77MB'")
            other.execute("insert into visits values (2)")
"""


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        Path(name).chmod(0o777)  # it runs as somebody else
        yield name


@pytest.mark.parametrize("over", ["network", "unix"])
def test_over_a_unix_socket(run: Run, database: str, directory: str, over: str) -> None:
    with pgbouncer(database, "transaction", unix_socket_dir=directory) as address:
        local = make_conninfo(through(address, database), host=directory)
        of_console = console(address if over == "network" else make_conninfo(address, host=directory))
        result = run(local, TESTS, f"--pgleak-dsn={database}", f"--pgleak-pgbouncer={of_console}", "-p", "no:randomly")
    result.assert_outcomes(passed=2, failed=3)
    left = pytest.LineMatcher(lines_of(result, "test_left_in_transaction"))
    left.fnmatch_lines(
        [
            "  server    pid *, idle in transaction *, xid *",
            "  pgbouncer client process * (Unix socket), in transaction mode; it has a server connection *",
        ]
    )
    assert "left      setting work_mem" in "\n".join(lines_of(result, "test_setting_of_one_of_several"))
    assert "[write-lost]" in "\n".join(lines_of(result, "test_write_lost_of_one_of_several"))
    assert "the ledger judged alone" not in result.stdout.str()
