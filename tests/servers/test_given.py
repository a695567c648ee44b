from __future__ import annotations

import socket
from pathlib import Path

import psycopg
import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, plan, start
from pytest_pgleak.servers.databases import with_dbname

PASSWORD = "s3cr3t-w0rd"


def attempt(dsn, option="--pgleak-dsn"):
    return start(plan(ServerRequest(server="dsn", dsn=dsn, dsn_option=option)))


def failure(dsn, option="--pgleak-dsn"):
    with pytest.raises(ServerError) as caught:
        attempt(dsn, option)
    text = str(caught.value)
    assert PASSWORD not in text
    assert caught.value.__cause__ is None
    return text


def refused(dsn):
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return True
    return False


@pytest.fixture(scope="module")
def guarded(server, wait_until):
    """`server`, asking a new role for its password."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("set password_encryption = 'scram-sha-256'")
        conn.execute(f"create role guarded login password '{PASSWORD}'")
        [path] = conn.execute("show hba_file").fetchone()
        hba = Path(path)
        hba.write_text(f"local all guarded scram-sha-256\n{hba.read_text()}")
        conn.execute("select pg_reload_conf()")
    address = server.dsn.replace("postgres@", "guarded:{}@", 1)
    assert wait_until(lambda: refused(address.format("wrong")))  # the server reloads when it finds the time
    return address


def test_a_server_that_answers(server):
    given = attempt(server.dsn)

    assert given.dsn == server.dsn
    assert given.version == server.version
    assert given.source == "dsn"
    assert not given.owned
    assert given.description.startswith(f"PostgreSQL {server.version}, the server of --pgleak-dsn (host=")
    given.stop()
    assert attempt(server.dsn).version == server.version


def test_the_right_password(guarded):
    given = attempt(guarded.format(PASSWORD))

    assert PASSWORD not in given.description + repr(given)


def test_a_wrong_password(guarded):
    text = failure(guarded.format(f"wrong-{PASSWORD}"))

    assert text.startswith("Authentication failed at the server of --pgleak-dsn (host=")
    assert "PGPASSWORD" in text


def test_no_password(guarded, monkeypatch):
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    text = failure(guarded.replace(":{}", ""))

    assert "asks for a password and none is set" in text


@pytest.mark.parametrize("option", ["--pgleak-dsn", "PGLEAK_DSN"])
def test_nobody_listens(option):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        text = failure(f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/db", option)

    assert f"Cannot connect to the server of {option} (host=127.0.0.1 port={port} user=me dbname=db)" in text
    assert "refused" in text
    assert "--pgleak-server=embedded" in text


def test_no_such_database(server):
    assert 'database "missing" does not exist' in failure(with_dbname(server.dsn, "missing"))


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:a@{PASSWORD}@localhost/db",
        f"postgresql://me:1/{PASSWORD}@localhost/db",
        f"postgresql://me:{PASSWORD}",
        f"host=localhost password=a {PASSWORD}",
        f"host=localhost password=a {PASSWORD}=b",
        f"host=localhost password='{PASSWORD}",
        f"localhost/{PASSWORD}",
        f"postgresql://localhost/db?password={PASSWORD}&{PASSWORD}",
    ],
)
def test_a_malformed_dsn(dsn):
    text = failure(dsn)

    assert text.startswith("--pgleak-dsn is no connection string")
    assert "postgresql://user@host:5432/dbname" in text


def test_connecting_gives_up_by_itself(monkeypatch):
    monkeypatch.setattr("pytest_pgleak.servers.libpq._CONNECT_TIMEOUT", 2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        text = failure(f"host=127.0.0.1 port={mute.getsockname()[1]} dbname=db")

    assert "timeout expired" in text
