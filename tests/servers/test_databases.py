from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from pytest_pgleak.servers import ServerError, libpq
from pytest_pgleak.servers.databases import create_database, drop_database, with_dbname


def names(server):
    with psycopg.connect(server.dsn) as conn:
        return {name for (name,) in conn.execute("select datname from pg_database")}


def test_create_and_drop(server, query):
    dsn = create_database(server.dsn, 'one "of" us')

    assert query(dsn, "select current_database()") == 'one "of" us'
    drop_database(server.dsn, 'one "of" us')
    assert names(server) == {"postgres", "template0", "template1"}


def test_from_a_template(server, query):
    template = create_database(server.dsn, "origin")
    with psycopg.connect(template) as conn:
        conn.execute("create table t as select 42 as x")

    assert query(create_database(server.dsn, "copy", template="origin"), "select x from t") == 42
    for name in ("copy", "origin"):
        drop_database(server.dsn, name)


def test_dropping_twice(server, capfd):
    create_database(server.dsn, "gone")
    drop_database(server.dsn, "gone")
    drop_database(server.dsn, "gone")

    assert capfd.readouterr() == ("", "")


def test_dropping_what_is_in_use(server):
    dsn = create_database(server.dsn, "used")
    with psycopg.connect(dsn) as conn:
        drop_database(server.dsn, "used")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")

    assert "used" not in names(server)


def test_refusals_say_what_and_why(server):
    create_database(server.dsn, "taken")
    with pytest.raises(ServerError, match=r"cannot create the database 'taken': .*already exists"):
        create_database(server.dsn, "taken")
    with pytest.raises(ServerError, match="at most 63 bytes"):
        create_database(server.dsn, "é" * 32)
    with pytest.raises(ServerError, match=r"cannot drop the database 'template1': .*template"):
        drop_database(server.dsn, "template1")
    drop_database(server.dsn, "taken")


def test_a_prepared_transaction_goes_with_its_database(server):
    dsn = create_database(server.dsn, "prepared")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("begin")
        conn.execute("create table t ()")
        conn.execute("prepare transaction 'it''s left'")
    drop_database(server.dsn, "prepared")
    with psycopg.connect(server.dsn) as conn:
        assert conn.execute("select gid from pg_prepared_xacts").fetchall() == []
        assert conn.execute("select datname from pg_database where datname = 'prepared'").fetchall() == []


def test_an_unreachable_server():
    with pytest.raises(ServerError, match=r"cannot connect to the server \(host=/nonexistent dbname=db\)"):
        create_database("host=/nonexistent dbname=db password=s3cret", "x")


def test_a_malformed_dsn():
    with pytest.raises(ServerError, match="malformed"):
        with_dbname("s3cret", "x")


def test_psycopgs_connect_is_not_used(server, monkeypatch):
    def patched(*args, **kwargs):
        raise AssertionError("tracked")

    monkeypatch.setattr(psycopg.Connection, "connect", patched)
    monkeypatch.setattr(psycopg, "connect", patched)

    create_database(server.dsn, "untracked")
    drop_database(server.dsn, "untracked")


def test_without_libpq_the_error_names_the_extra(server):
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pytest_pgleak.servers import libpq, ServerError\n"
        "try: libpq.pq()\n"
        "except ServerError as error: print(error)"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'pip install "psycopg[binary]"' in done.stdout
    assert libpq.pq() is not None
