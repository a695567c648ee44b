"""Two clients in one pool of PgBouncer: each answers for what it has left itself, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pgbouncers import console, needs_pgbouncer, pgbouncer, through

pytestmark = needs_pgbouncer

Run = Callable[..., pytest.RunResult]

STRANGER = """
    import threading, time
    from psycopg import pq

    class Stranger:
        # Another application: pgleak does not know of it.
        def __init__(self):
            self.connection = pq.PGconn.connect(os.environ["APP_DSN"].encode())

        def __call__(self, statements):
            result = self.connection.exec_(statements.encode())
            assert result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK), result.error_message

    @pytest.fixture
    def stranger():
        stranger = Stranger()
        yield stranger
        stranger("begin; discard temp; select pg_advisory_unlock_all(); reset all; reset role; close all; commit")
        stranger.connection.finish()
"""

CLEAN = """
    def test_on_another_server_connection(stranger):
        with connect() as conn:
            conn.execute("set work_mem = '77MB'")
            stranger("begin; set work_mem = '77MB'; commit")
            conn.execute("set work_mem = '4MB'")

    def test_on_the_same_server_connection_later(stranger):
        with connect() as conn:
            conn.execute("set work_mem = '64MB'")
            conn.execute("set work_mem = '4MB'")
        stranger("begin; set work_mem = '77MB'; commit")

    def test_rolled_back_to_a_savepoint(stranger):
        with connect() as conn:
            conn.execute("select 1")
            with conn.transaction(force_rollback=True):
                conn.execute("set work_mem = '77MB'")
        stranger("begin; set work_mem = '77MB'; commit")

    def test_rolled_back_to_a_named_savepoint(stranger):
        with connect() as conn:
            conn.execute("savepoint here")
            conn.execute("set work_mem = '77MB'")
            conn.execute("rollback to here")
        stranger("begin; set work_mem = '77MB'; commit")

    def test_a_lock_that_it_did_not_get(stranger):
        with connect() as conn:
            conn.execute("select 1")
            stranger("begin; select pg_advisory_lock(42); commit")
            assert conn.execute("select pg_try_advisory_lock(42)").fetchone() == (False,)

    def test_a_column_by_the_name_of_a_setting(stranger):
        with connect() as conn:
            conn.execute("create temporary table users (role text, work_mem text) on commit drop")
            conn.execute("update users set role = 'a'")
            conn.execute("update users set work_mem = 'a'")
        stranger("begin; set role pg_monitor; set work_mem = '77MB'; commit")

    def test_a_table_that_is_dropped_in_the_end(stranger):
        with connect() as conn:
            conn.execute("create temporary table kept on commit drop as select 1")
        stranger("begin; create temporary table kept as select 1; commit")

    def test_a_cursor_without_hold(stranger):
        with connect() as conn:
            conn.execute("declare kept cursor for select 1")
        stranger("begin; declare kept cursor with hold for select 1; commit")
"""


@pytest.mark.parametrize("straight", [True, False], ids=["with-dsn", "without-dsn"])
def test_nobody_is_accused_of_what_another_client_has_left(run: Run, database: str, straight: bool) -> None:
    with pgbouncer(database, "transaction") as address:
        dsn = [f"--pgleak-dsn={database}"] if straight else []
        result = run(through(address, database), STRANGER + CLEAN, *dsn, f"--pgleak-pgbouncer={console(address)}")
    result.assert_outcomes(passed=8)


LEAKS = """
    def test_that_leaks(stranger):
        with connect() as conn:
            conn.execute("set work_mem = '77MB'")
            stranger("begin; set work_mem = '77MB'; commit")

    def test_that_leaks_before_a_savepoint(stranger):
        stranger("begin")
        with connect() as conn:
            conn.execute("set work_mem = '77MB'")
            with conn.transaction(force_rollback=True):
                conn.execute("select 1")
        stranger("commit")

    def test_that_leaks_on_a_server_connection_that_is_busy(stranger):
        with connect() as conn:
            conn.execute("set work_mem = '77MB'")
        stranger("begin")
        threading.Timer(0.02, stranger, ["commit"]).start()

    def test_that_undoes_it_somewhere_else(stranger):
        other = Stranger()
        with connect() as conn:
            conn.execute("set work_mem = '77MB'")
            conn.commit()
            stranger("begin")  # on that server connection
            conn.execute("reset work_mem")
        stranger("commit")
        other.connection.finish()
"""


def test_who_leaks_is_accused_whatever_another_client_does(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address:
        result = run(
            through(address, database),
            STRANGER + LEAKS,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={console(address)}",
        )
    result.assert_outcomes(failed=4)
    assert sum(line.startswith("[session-state] ") for line in result.stdout.lines) == 4


AUTOCOMMIT = """
    def test_that_leaks(stranger):
        with connect(autocommit=True) as conn:
            stranger("begin")
            conn.execute("set work_mem = '77MB'")
        stranger("commit")
"""


@pytest.mark.parametrize("straight", [True, False], ids=["with-dsn", "without-dsn"])
def test_outside_of_a_transaction_only_the_server_knows_which_one_it_was(
    run: Run, database: str, straight: bool
) -> None:
    with pgbouncer(database, "transaction") as address:
        dsn = [f"--pgleak-dsn={database}"] if straight else []
        result = run(through(address, database), STRANGER + AUTOCOMMIT, *dsn, f"--pgleak-pgbouncer={console(address)}")
    result.assert_outcomes(**({"failed": 1} if straight else {"passed": 1}))


CONFIGURED = """
    def configure(conn):
        conn.execute("set work_mem = '55MB'")
        conn.commit()

    def test_configured():
        with psycopg_pool.ConnectionPool(os.environ["APP_DSN"], min_size=1, configure=configure) as pool:
            with pool.connection() as conn:
                conn.execute("select 1")

    def test_that_inherits():
        with connect() as conn:
            assert conn.execute("show work_mem").fetchone() == ("55MB",)

    def test_that_puts_back_what_it_has_inherited():
        with connect() as conn:
            conn.execute("set work_mem = '64MB'")
            conn.execute("set work_mem = '4MB'")

    def test_that_leaves_more():
        with connect() as conn:
            conn.execute("set work_mem = '64MB'")
"""


def test_what_a_pool_has_configured_is_laid_to_nobody(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address:
        options = f"--pgleak-dsn={database}", f"--pgleak-pgbouncer={console(address)}", "-p", "no:randomly"
        result = run(through(address, database), CONFIGURED, *options)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["  set       test_it.py:* in test_that_leaves_more"])
