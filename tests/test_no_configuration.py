"""``--pgleak-select=all`` on suites that name no server: what they connect to, and how, is their own affair.

All of them bring their databases themselves; what the plugin knows, it has from their connections.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pgbouncers import needs_pgbouncer, pgbouncer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pytest_pgleak.servers import RunningServer, ServerError, ServerRequest, plan, start

Run = Callable[..., pytest.RunResult]

TESTS = """
    import os, time
    import psycopg, pytest

    KEPT = []

    def connect(**more):
        return psycopg.connect(os.environ["APP_DSN"], **more)

    @pytest.fixture(scope="session", autouse=True)
    def schema():
        with contextlib.closing(connect(autocommit=True)) as conn:
            conn.execute("create table if not exists visits (id int)")

    def test_clean():
        with connect() as conn:
            conn.execute("insert into visits values (1)")

    def test_leaks():
        KEPT.append(connect())

    def test_clean_again():
        with connect() as conn:
            conn.execute("select 1 from visits")
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    def write_and_run(dsn: str, source: str = TESTS, *args: str, **environment: str) -> pytest.RunResult:
        monkeypatch.setenv("APP_DSN", dsn)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        pytester.makepyfile(test_it="import contextlib\n" + textwrap.dedent(source))
        result = pytester.runpytest_subprocess(
            "-p",
            "no:pytest_asyncio.plugin",
            "-p",
            "no:cacheprovider",
            "--pgleak-select=all",
            "-o",
            "pgleak_grace=0.2",
            *args,
        )
        assert "internal error" not in result.stdout.str()
        return result

    return write_and_run


@pytest.fixture
def database(server_dsn: str) -> Iterator[str]:
    """A DSN with a database of the test's own."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield make_conninfo(server_dsn, dbname=name)
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextlib.contextmanager
def role(database: str, options: str) -> Iterator[str]:
    """A DSN with a role of the test's own."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    identifier = sql.Identifier(name)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login " + options).format(identifier))
        admin.execute(sql.SQL("grant all on schema public to {}").format(identifier))
        try:
            yield make_conninfo(database, user=name)
        finally:
            admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,))
            admin.execute(sql.SQL("drop owned by {}").format(identifier))
            admin.execute(sql.SQL("drop role {}").format(identifier))


def running(*sources: str) -> RunningServer:
    for source in sources:
        with contextlib.suppress(ServerError):
            return start(plan(ServerRequest(server=source)))
    pytest.skip(f"none of these servers is here: {', '.join(sources)}")


def notes(result: pytest.RunResult) -> list[str]:
    """What the run says of its servers: nothing, or one line each."""
    return [line for line in result.stdout.lines if "the server " in line and "pgleak" in line]


def test_the_observer_comes_from_the_first_connection(run: Run, database: str) -> None:
    result = run(database)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*", "  server *pid * idle *"])
    assert notes(result) == []


@needs_pgbouncer
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_pooler_in_between(run: Run, database: str, pool_mode: str) -> None:
    name = conninfo_to_dict(database)["dbname"]
    with pgbouncer(database, pool_mode) as through:
        result = run(make_conninfo(through, dbname=name))
        result.assert_outcomes(passed=2, failed=1)
        result.stdout.fnmatch_lines(["[[]connection-not-closed]*"])
        [note] = notes(result)
        assert "a pooler stands in between" in note
        assert "ledger" in note


@needs_pgbouncer
def test_the_server_behind_a_pooler_may_be_named(run: Run, database: str) -> None:
    name = conninfo_to_dict(database)["dbname"]
    with pgbouncer(database, "transaction") as through:
        result = run(make_conninfo(through, dbname=name), TESTS, f"--pgleak-dsn={database}")
        result.assert_outcomes(passed=2, failed=1)
        result.stdout.fnmatch_lines(["[[]connection-not-closed]*"])


def test_a_role_that_may_enter_its_own_database_only(run: Run) -> None:
    server = running("embedded", "local")
    try:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create database app")
            admin.execute("revoke connect on database postgres from public")
            admin.execute("revoke connect on database template1 from public")
        with role(make_conninfo(server.dsn, dbname="app"), "") as dsn:
            result = run(dsn)
            result.assert_outcomes(passed=2, failed=1)
            assert len(notes(result)) <= 1
    finally:
        server.stop()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_of_the_role(run: Run, database: str, limit: int) -> None:
    with role(database, f"connection limit {limit}") as dsn:
        result = run(
            dsn,
            f"""
            import os
            import psycopg

            def test_all_that_there_are():
                with contextlib.ExitStack() as stack:
                    for _ in range({limit}):
                        stack.enter_context(psycopg.connect(os.environ["APP_DSN"]))

            def test_again():
                test_all_that_there_are()

            def test_leaks(kept=[]):
                kept.append(psycopg.connect(os.environ["APP_DSN"]))
            """,
        )
        result.assert_outcomes(passed=2, failed=1)
        [note] = notes(result)
        assert f"may not have more than {limit} connections" in note


HOLDS_ONE = """
    import os
    import psycopg, pytest

    @pytest.fixture(scope="session", autouse=True)
    def conn():
        with psycopg.connect(os.environ["APP_DSN"], autocommit=True) as conn:
            yield conn

    def test_clean(conn):
        conn.execute("select 1")
"""


def test_a_full_server_is_asked_again_while_backends_are_on_their_way_out(run: Run, database: str) -> None:
    with role(database, "connection limit 2") as dsn:
        closing = psycopg.connect(dsn)

        def close_after_the_suite_has_connected() -> None:
            with psycopg.connect(database, autocommit=True) as admin:
                for _ in range(1000):
                    query = "select count(*) from pg_stat_activity where usename = %s"
                    count = admin.execute(query, (closing.info.user,)).fetchone()
                    if count is not None and count[0] == 2:
                        break
                    time.sleep(0.02)
            time.sleep(0.2)
            closing.close()

        thread = threading.Thread(target=close_after_the_suite_has_connected)
        thread.start()
        try:
            result = run(dsn, HOLDS_ONE)
        finally:
            thread.join()
        result.assert_outcomes(passed=1)
        [note] = notes(result)
        assert "may not have more than 2 connections" in note


def test_a_role_whose_connections_are_all_in_use(run: Run, database: str) -> None:
    with role(database, "connection limit 1") as dsn:
        result = run(dsn, HOLDS_ONE)
        result.assert_outcomes(passed=1)
        [note] = notes(result)
        assert "no connection left" in note
        assert "too many connections for role" in note
        assert "--pgleak-dsn" in note


def test_a_process_whose_role_may_not_be_looked_at_is_seen(run: Run, database: str) -> None:
    if not str(conninfo_to_dict(database)["host"]).startswith("/"):
        pytest.skip("over TCP, an address that may not be seen is not known to be of this machine")
    with role(database, "") as dsn, role(database, "") as other:
        result = run(
            dsn,
            """
            import os, subprocess, sys
            import psycopg, pytest

            CODE = "import sys, psycopg; c = psycopg.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"

            @pytest.fixture(scope="session", autouse=True)
            def conn():
                with psycopg.connect(os.environ["APP_DSN"], autocommit=True) as conn:
                    yield conn

            @pytest.fixture(scope="session")
            def worker(conn):
                pipe = subprocess.PIPE
                with subprocess.Popen([sys.executable, "-c", CODE, os.environ["OTHER"]], stdin=pipe, stdout=pipe) as it:
                    it.stdout.readline()
                    yield
                    it.communicate()

            def test_first(conn): pass

            def test_begins_it(request):
                request.getfixturevalue("worker")

            def test_after(conn):
                conn.execute("select 1")
            """,
            OTHER=other,
        )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*pgleak: 1 warning from 1 line*", "*[[]untracked-backend]*", "*::test_begins_it"])
    assert notes(result) == []


def test_a_limit_of_the_server(run: Run) -> None:
    server = running("embedded", "local")
    try:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create role app login")
            admin.execute("create database app owner app")
            [most] = admin.execute(
                "select current_setting('max_connections')::int"
                " - current_setting('superuser_reserved_connections')::int"
            ).fetchone() or [0]
        result = run(
            make_conninfo(server.dsn, dbname="app", user="app"),
            f"""
            import os
            import psycopg

            def test_all_that_there_are():
                with contextlib.ExitStack() as stack:
                    for _ in range({most}):
                        stack.enter_context(psycopg.connect(os.environ["APP_DSN"]))
            """,
        )
        result.assert_outcomes(passed=1)
    finally:
        server.stop()


def test_two_servers_each_with_its_observer(run: Run, database: str) -> None:
    server = running("embedded", "local")
    try:
        result = run(
            database,
            """
            import os
            import psycopg

            KEPT = []

            def test_clean():
                with psycopg.connect(os.environ["APP_DSN"]), psycopg.connect(os.environ["OTHER_DSN"]):
                    pass

            def test_leaks_on_one():
                KEPT.append(psycopg.connect(os.environ["APP_DSN"]))

            def test_leaks_on_the_other():
                KEPT.append(psycopg.connect(os.environ["OTHER_DSN"]))
            """,
            OTHER_DSN=server.dsn,
        )
        result.assert_outcomes(passed=1, failed=2)
        # Both are seen on a server of their own: only an observer can say so.
        assert result.stdout.str().count("\n  server    pid ") == 2
        assert notes(result) == []
    finally:
        server.stop()


def test_a_server_of_the_suites_own_that_is_shut_down_smartly(run: Run, pytester: pytest.Pytester) -> None:
    server = running("embedded", "local")
    try:
        with psycopg.connect(server.dsn) as admin:
            [data] = admin.execute("show data_directory").fetchone() or [""]
        result = run(
            server.dsn,
            """
            import os, signal, time
            from pathlib import Path
            import psycopg, pytest

            @pytest.fixture(scope="session")
            def dsn():
                yield os.environ["APP_DSN"]
                # Smart: it waits until its clients have gone.
                pid_file = Path(os.environ["DATA"], "postmaster.pid")
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGTERM)
                give_up_at = time.monotonic() + 10
                while pid_file.exists():
                    assert time.monotonic() < give_up_at, "somebody is still connected"
                    time.sleep(0.01)

            def test_it(dsn):
                with psycopg.connect(dsn) as conn:
                    conn.execute("select 1")
            """,
            DATA=data,
        )
        result.assert_outcomes(passed=1)
        assert notes(result) == []
    finally:
        server.stop()


PASSWORD = "s3cr3t-w0rd"


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A server that wants a password; without it in the DSN."""
    server = running("embedded", "local")
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("set password_encryption = 'scram-sha-256'")
        conn.execute(f"create role guarded login superuser password '{PASSWORD}'")
        conn.execute("create database app")
        [path] = conn.execute("show hba_file").fetchone() or [""]
        Path(path).write_text(f"local all guarded scram-sha-256\n{Path(path).read_text()}")
        conn.execute("select pg_reload_conf()")
    yield make_conninfo(server.dsn, user="guarded", dbname="app")
    server.stop()


def check(result: pytest.RunResult) -> None:
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*", "  server *pid * idle *"])
    assert notes(result) == []
    assert PASSWORD not in result.stdout.str() + result.stderr.str()


def test_a_password_file(run: Run, guarded: str, tmp_path: Path) -> None:
    (tmp_path / "pgpass").write_text(f"*:*:*:guarded:{PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    check(run(guarded, PGPASSFILE=str(tmp_path / "pgpass")))


def test_a_service_file(run: Run, guarded: str, tmp_path: Path) -> None:
    parameters = conninfo_to_dict(guarded) | {"password": PASSWORD}
    lines = [f"{key}={value}" for key, value in parameters.items()]
    (tmp_path / "services").write_text("\n".join(["[app]", *lines]) + "\n")
    check(run("service=app", PGSERVICEFILE=str(tmp_path / "services")))


def test_variables_of_the_environment(run: Run, guarded: str) -> None:
    parameters = conninfo_to_dict(guarded)
    check(
        run(
            "",
            PGHOST=str(parameters["host"]),
            PGPORT=str(parameters.get("port", 5432)),
            PGUSER="guarded",
            PGDATABASE="app",
            PGPASSWORD=PASSWORD,
        )
    )


def test_what_the_application_reads_and_forgets(run: Run, guarded: str) -> None:
    tests = TESTS.replace(
        'psycopg.connect(os.environ["APP_DSN"], **more)',
        'psycopg.connect(os.environ["APP_DSN"], password=PASSWORD, **more)',
    ).replace("KEPT = []", 'KEPT = []\n    PASSWORD = os.environ.pop("APP_PASSWORD")')
    check(run(guarded, tests, APP_PASSWORD=PASSWORD))


def test_a_server_that_says_no_pid(run: Run, database: str) -> None:
    """As PGlite, which has no processes: seen through a relay that takes BackendKeyData out of the protocol."""
    with relay_without_key_data(database) as dsn:
        result = run(dsn)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*"])
    [note] = notes(result)
    assert "it says no pid of its connections, as PGlite does" in note


@contextlib.contextmanager
def relay_without_key_data(dsn: str) -> Iterator[str]:
    """Stand between client and server, and take the message that names the backend out (manual, section 55.7)."""
    parameters = conninfo_to_dict(dsn)
    path = f"{parameters['host']}/.s.PGSQL.{parameters.get('port', 5432)}"

    class Relay(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as server, server.makefile("rb") as answers:
                server.connect(path)
                asking = threading.Thread(target=self.ask, args=(server,))
                asking.start()
                while header := answers.read(5):
                    message = header + answers.read(int.from_bytes(header[1:]) - 4)
                    if header[:1] != b"K":
                        self.wfile.write(message)
                asking.join()

        def ask(self, server: socket.socket) -> None:
            while data := self.request.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        serving = threading.Thread(target=relay.serve_forever, args=(0.01,))
        serving.start()
        try:
            port = relay.server_address[1]
            yield make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        finally:
            relay.shutdown()
            serving.join()
