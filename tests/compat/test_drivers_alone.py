"""asyncpg or psycopg2 alone: no DSN is given, no fixture of the plugin's is used, psycopg is not the application's."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import textwrap
from pathlib import Path

import psycopg
import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, cluster, plan, start

PASSWORD = "not-to-be-seen"

ASYNCPG = """
    import os, sys
    import asyncpg
    import pytest

    APPLICATION_KNOWS_PSYCOPG = "psycopg" in sys.modules
    KEPT = []
    pytestmark = pytest.mark.pgleak

    async def test_kept():
        assert not APPLICATION_KNOWS_PSYCOPG
        conn = await asyncpg.connect(os.environ["APP_DSN"])
        await conn.transaction().start()
        await conn.execute("create table never (a int)")
        KEPT.append(conn)

    async def test_lost():
        conn = await asyncpg.connect(os.environ["APP_DSN"])
        await conn.transaction().start()
        await conn.execute("insert into item values (1)")
        await conn.close()

    async def test_clean():
        conn = await asyncpg.connect(os.environ["APP_DSN"])
        async with conn.transaction():
            await conn.execute("insert into item values (1)")
        await conn.close()
"""
PSYCOPG2 = """
    import os, sys
    import psycopg2
    import pytest

    APPLICATION_KNOWS_PSYCOPG = "psycopg" in sys.modules
    KEPT = []
    pytestmark = pytest.mark.pgleak

    def test_kept():
        assert not APPLICATION_KNOWS_PSYCOPG
        conn = psycopg2.connect(os.environ["APP_DSN"])
        conn.cursor().execute("create table never (a int)")
        KEPT.append(conn)

    def test_lost():
        conn = psycopg2.connect(os.environ["APP_DSN"])
        conn.cursor().execute("insert into item values (1)")
        conn.close()

    def test_clean():
        conn = psycopg2.connect(os.environ["APP_DSN"])
        with conn:
            conn.cursor().execute("insert into item values (1)")
        conn.close()
"""
SUITES = {"asyncpg": ASYNCPG, "psycopg2": PSYCOPG2}


@pytest.fixture(params=SUITES)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name, reason=f"{name} is not installed; make compat runs this where it is")
    return name


class Served:
    """A server on a loopback address of its own, whose roles need a password, and one of them TLS."""

    def __init__(self, dsn: str, address: str) -> None:
        self.socket_dsn, self.address = dsn, address
        with psycopg.connect(dsn, autocommit=True) as conn:
            row = conn.execute("show hba_file").fetchone()
            has_tls = conn.execute("show ssl_library").fetchone() != ("",)
            assert row is not None
            data = Path(row[0]).parent
            self.tls = has_tls and _make_certificate(data)
            conn.execute("set password_encryption = 'scram-sha-256'")
            for role in ("app", "tls"):
                conn.execute(f"create role {role} login password '{PASSWORD}'")
                conn.execute(f"create database {role} owner {role}")
            if self.tls:
                conn.execute("alter system set ssl = on")
            hba = Path(row[0])
            rules = "hostssl all tls 127.0.0.0/8 scram-sha-256\nhostnossl all tls 127.0.0.0/8 reject\n" * self.tls
            both = "local all app scram-sha-256\nhost all app 127.0.0.0/8 scram-sha-256\n"
            hba.write_text(rules + both + hba.read_text(encoding="utf-8"), encoding="utf-8")
            conn.execute("select pg_reload_conf()")
        for role in ("app", "tls"):
            with psycopg.connect(dsn, dbname=role, autocommit=True) as conn:
                conn.execute(f"create table item (a int); alter table item owner to {role}")


def _make_certificate(data: Path) -> bool:
    if (openssl := shutil.which("openssl")) is None:
        return False
    names = {name: data / f"server.{name}" for name in ("crt", "key")}
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-out", str(names["crt"]), "-keyout", str(names["key"])]
    subprocess.run(command, check=True, capture_output=True)
    owner = data.stat()
    for path in names.values():
        path.chmod(0o600)
        os.chown(path, owner.st_uid, owner.st_gid)
    return True


def _loopback_address() -> str:
    address = f"127.{random.randint(2, 250)}.{random.randint(2, 250)}.{random.randint(2, 250)}"
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError:
        pytest.skip("this system has one loopback address only, whose port 5432 may be in use")
    return address


@pytest.fixture(scope="module")
def served():
    address = _loopback_address()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cluster._SETTINGS, "listen_addresses", address)
        for kind in ("local", "embedded"):  # the former is usually built with TLS, the latter is not
            try:
                running = start(plan(ServerRequest(server=kind)))
                break
            except ServerError:
                continue
        else:
            pytest.skip("no PostgreSQL to start here")
    yield Served(running.dsn, address)
    running.stop()


def run(pytester: pytest.Pytester, driver: str, dsn: str, **environment: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=textwrap.dedent(SUITES[driver]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APP_DSN", dsn)
        for name, value in environment.items():
            patch.setenv(name, value)
        # Other plugins may import psycopg, as pytest-postgresql does.
        patch.setenv("PYTEST_ADDOPTS", "")
        result = pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "-p", "anyio.pytest_plugin", "-p", "pytest_pgleak.plugin", timeout=120
        )
    assert PASSWORD not in result.stdout.str() + result.stderr.str()
    assert "internal error" not in result.stdout.str()
    return result


def both_leaks_seen_by_the_server(result: pytest.RunResult) -> None:
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "[[]connection-not-closed] *",
            "  server    pid *, idle in transaction*, xid *: an uncommitted write is held, locks *",
            "[[]write-lost] *",
            "  server    pid *, 1 transaction (xid *) that wrote item: rolled back",
        ]
    )
    assert "judged alone" not in result.stdout.str()


def test_over_a_socket(pytester: pytest.Pytester, driver: str, served: Served) -> None:
    dsn = served.socket_dsn.replace("postgres@/postgres", f"app:{PASSWORD}@/app")
    both_leaks_seen_by_the_server(run(pytester, driver, dsn))


def test_over_tcp(pytester: pytest.Pytester, driver: str, served: Served) -> None:
    both_leaks_seen_by_the_server(run(pytester, driver, f"postgresql://app:{PASSWORD}@{served.address}:5432/app"))


def test_over_tls(pytester: pytest.Pytester, driver: str, served: Served) -> None:
    if not served.tls:
        pytest.skip("this server is built without TLS, or there is no openssl to make a certificate")
    dsn = f"postgresql://tls:{PASSWORD}@{served.address}:5432/tls?sslmode=require"
    both_leaks_seen_by_the_server(run(pytester, driver, dsn))


def test_parameters_from_the_environment(pytester: pytest.Pytester, driver: str, served: Served) -> None:
    environment = {"PGHOST": served.address, "PGUSER": "app", "PGPASSWORD": PASSWORD, "PGDATABASE": "app"}
    # asyncpg takes no empty DSN.
    dsn = "postgresql://" if driver == "asyncpg" else ""
    both_leaks_seen_by_the_server(run(pytester, driver, dsn, **environment))


def test_where_psycopg_cannot_be_imported(pytester: pytest.Pytester, driver: str, served: Served) -> None:
    # As on a machine without libpq: psycopg is here without a binary of its own.
    dsn = f"postgresql://app:{PASSWORD}@{served.address}:5432/app"
    result = run(pytester, driver, dsn, PSYCOPG_IMPL="no-such-thing")
    result.assert_outcomes(passed=2, failed=1)  # that a write was lost only the server would know
    result.stdout.fnmatch_lines(
        [
            "[[]connection-not-closed] *",
            "  server    pid *, in a transaction (INTRANS) by the client's account",
            "pgleak: the ledger judged alone for the server *: psycopg cannot be imported (*; install it with*",
        ]
    )
    assert result.stdout.str().count("psycopg cannot be imported") == 1
