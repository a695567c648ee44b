"""State that one client of PgBouncer leaves to the next."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pgbouncers import console, lines_of, needs_pgbouncer, pgbouncer, through

pytestmark = needs_pgbouncer

Run = Callable[..., pytest.RunResult]


STATE = """
    def in_a_transaction(statement, **more):
        with connect(**more) as conn:
            conn.execute(statement)
            conn.execute("select 1")

    @pytest.mark.parametrize("statement", [
        "set work_mem = '77MB'",
        "select set_config('app.tenant', 'seven', false)",
        "set role pg_monitor",
        "select pg_advisory_lock(42)",
        "listen visits",
        "create temporary table kept as select 1",
        "declare kept cursor with hold for select 1",
        "prepare kept as select 1",
    ])
    def test_leaks(statement):
        in_a_transaction(statement)

    def test_leaks_what_psycopg_prepares():
        with connect() as conn:
            for number in range(7):
                conn.execute("select count(*) from visits where id = %s", (number,))

    def test_leaks_without_a_transaction():
        with connect(autocommit=True) as conn:
            conn.execute("set lock_timeout = '3s'")

    def test_leaks_while_the_client_lives_on(living):
        living.execute("set idle_session_timeout = '3h'")
        living.commit()

    @pytest.fixture(scope="module")
    def living():
        with connect() as conn:
            yield conn

    @pytest.mark.parametrize("statement", [
        "set local work_mem = '77MB'",
        "select set_config('app.tenant', 'seven', true)",
        "set local role pg_monitor",
        "select pg_advisory_xact_lock(42)",
        "select pg_advisory_lock(41); select pg_advisory_unlock(41)",
        "listen visits_too; unlisten visits_too",
        "create temporary table dropped on commit drop as select 1",
        "set statement_timeout = '7s'; reset statement_timeout",
        "prepare dropped as select 1; deallocate dropped",
        "set timezone = 'Europe/Vienna'",
        "notify visits",
    ])
    def test_clean(statement):
        in_a_transaction(statement)

    def test_clean_rolled_back(living):
        living.execute("set work_mem = '78MB'")
        living.rollback()

    def test_clean_without_preparing():
        with connect(prepare_threshold=None) as conn:
            for number in range(7):
                conn.execute("select count(*) from visits where id > %s", (number,))

    def test_clean_that_reads(living):
        living.execute("show work_mem")
        living.commit()

    def test_all_is_undone(living):
        [(work_mem, role, locks)] = living.execute(
            "select current_setting('work_mem'), current_setting('role'),"
            " (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())"
        ).fetchall()
        assert (work_mem, role, locks) == ("4MB", "none", 0)
        assert living.execute("select * from pg_prepared_statements").fetchall() == []
        assert living.execute("select * from pg_listening_channels()").fetchall() == []
        assert living.execute("select to_regclass('pg_temp.kept')").fetchone() == (None,)
        living.rollback()
"""

SAID = {
    "[set work_mem = '77MB']": ["  set       *", "  left      setting work_mem = 78848kB (was 4096kB)"],
    "[set role pg_monitor]": ["  set       *", "  left      role pg_monitor"],
    "[select pg_advisory_lock(42)]": ["  locked    *", "  left      advisory lock 42"],
    "[listen visits]": [
        "  listened  *",
        "  left      listening on channel visits",
        "  fix       LISTEN does not work *",
    ],
    "[create temporary table kept as select 1]": ["  created   *", "  left      temporary table kept"],
    "[declare kept cursor with hold for select 1]": ["  declared  *", "  left      cursor kept (WITH HOLD)"],
    "[prepare kept as select 1]": ["  prepared  *", "  left      prepared statement kept"],
    "_what_psycopg_prepares": [
        *("  prepared  test_it.py:* in test_leaks_what_psycopg_prepares", "  left      prepared statement _pg3_0"),
        "  fix       connect with `prepare_threshold=None`, *",
    ],
    "_without_a_transaction": ["  left      setting lock_timeout = 3000ms (was 0ms)"],
    "_while_the_client_lives_on": ["  left      setting idle_session_timeout = *"],
}

# What is undone is a custom setting of its own: without a value that anybody might read.
SAID["[select set_config('app.tenant', 'seven', false)]"] = ["  set       *", "  left      setting app.tenant"]


def test_what_one_client_leaves_to_the_next_in_transaction_mode(run: Run, database: str) -> None:
    with pgbouncer(database, "transaction") as address:
        result = run(
            through(address, database),
            STATE,
            f"--pgleak-dsn={database}",
            f"--pgleak-pgbouncer={console(address)}",
            "-o",
            "pgleak_terminate=true",
        )
    result.assert_outcomes(passed=15, failed=11)
    assert sum(line.startswith("[session-state] ") for line in result.stdout.lines) == len(SAID)
    for test, said in SAID.items():
        told = pytest.LineMatcher(lines_of(result, f"test_leaks{test}"))
        told.fnmatch_lines(["[[]session-state] *", *said], consecutive=False)
        told.fnmatch_lines(["  ended     left on a server connection of PgBouncer's (pid *) in transaction mode; *"])
    assert "seven" not in "\n".join(line for line in result.stdout.lines if "[select set_config" not in line)


@pytest.mark.parametrize(
    ("pool_mode", "settings", "failed"),
    [
        ("session", {}, 0),
        # The state of a session that nobody resets is the next client's.
        ("session", {"server_reset_query": ""}, 2),
        ("statement", {}, 2),
        ("transaction", {"server_reset_query_always": 1}, 0),
    ],
    ids=["session", "session-without-reset", "statement", "transaction-with-reset"],
)
def test_what_one_client_leaves_to_the_next(
    run: Run, database: str, pool_mode: str, settings: dict[str, str | int], failed: int
) -> None:
    with pgbouncer(database, pool_mode, **settings) as address:
        result = run(
            through(address, database),
            """
            def test_leaks():
                with connect(autocommit=True) as conn:
                    conn.execute("set work_mem = '77MB'")

            def test_leaks_again():
                test_leaks()

            def test_clean():
                with connect(autocommit=True) as conn:
                    conn.execute("select pg_advisory_lock(1), pg_advisory_unlock(1)")
            """,
            f"--pgleak-pgbouncer={console(address)}",
        )
    result.assert_outcomes(passed=3 - failed, failed=failed)
    assert result.stdout.str().count(f" in {pool_mode} mode; another client has seen it there") == failed
