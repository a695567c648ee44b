"""A server of ours that listens on a port of loopback as well."""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pytest_pgleak.servers import ServerRequest, plan, rundir, start, tcp

JOIN = """
import sys, time
from pytest_pgleak.servers import ServerRequest, plan, start
server = start(plan(ServerRequest(server=SOURCE, run_id="a run", tcp=True)))
print(server.dsn, flush=True)
time.sleep(60)
"""


def listening():
    """The addresses, each with its port, on which anybody on this machine listens."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            _, local, _, state, *_ = line.split()
            if state == "0A":
                address, _, port = local.partition(":")
                found.add((address, int(port, 16)))
    return found


def refused(dsn):
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(dsn).close()
    return str(caught.value)


def test_a_port_and_a_password(owned_plan, run_dir, processes_with):
    server = start(replace(owned_plan, request=ServerRequest(tcp=True)))
    found = conninfo_to_dict(server.dsn)
    port, password = int(found["port"]), found["password"]

    with psycopg.connect(server.dsn) as conn:
        assert conn.pgconn.used_password
        assert conn.execute("select host(inet_client_addr())").fetchone() == ("127.0.0.1",)
        assert conn.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() == (True,)
        [socket_dir] = conn.execute("show unix_socket_directories").fetchone()
        conn.execute("create role other login password 'other'")
        [kept] = conn.execute("select rolpassword from pg_authid where rolname = 'other'").fetchone()
    assert kept.startswith("SCRAM-SHA-256$1:" if int(server.version.partition(".")[0]) >= 16 else "SCRAM-SHA-256$")
    assert psycopg.connect(make_conninfo(host=socket_dir, port=port, user="postgres")).close() is None
    assert "password authentication failed" in refused(make_conninfo(server.dsn, password="guessed"))
    assert "no password supplied" in refused(make_conninfo(server.dsn, password="", passfile="/dev/null"))
    assert [address for address, number in listening() if number == port] == ["0100007F"]  # 127.0.0.1

    assert processes_with(password) == {}
    assert password not in repr(server) + server.description
    assert [path for path in run_dir.path.rglob("*") if path.is_file() and password.encode() in path.read_bytes()] == []
    server.stop()
    assert run_dir.traces() == []
    assert port not in {number for _, number in listening()}


def test_without_being_asked_nothing_listens(any_plan, run_dir):
    server = start(any_plan)
    with psycopg.connect(server.dsn) as conn:
        assert conn.execute("show listen_addresses").fetchone() == ("",)
    pids = {int(path.read_text().split()[0]) for path in run_dir.path.glob("pgleak-*/data/postmaster.pid")}
    inodes = {link for pid in pids for link in map(os.readlink, Path(f"/proc/{pid}/fd").iterdir()) if "socket" in link}
    of_tcp = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    assert not {f"socket:[{inode}]" for inode in of_tcp} & inodes
    server.stop()


def test_those_who_share_a_server_share_its_password(any_plan, run_dir, python):
    script = f"SOURCE = {any_plan.source!r}\n{JOIN}"
    with python(script) as one, python(script) as other:
        dsn = one.stdout.readline().strip()
        assert dsn == other.stdout.readline().strip()
        psycopg.connect(dsn).close()
        [published] = run_dir.path.glob("pgleak-*/published")
        assert stat.S_IMODE(published.stat().st_mode) == 0o600
        assert dsn in published.read_text()
    assert run_dir.is_clean()


def test_a_chosen_port_is_given_to_nobody_else():
    doors = [tcp.choose_door() for _ in range(50)]
    assert len({door.port for door in doors}) == len({door.password for door in doors}) == 50
    for door in doors:
        door.release_port()


def test_the_sockets_path_has_room_for_a_longer_port():
    longest = Path("/" + "x" * (103 - len("/.s.PGSQL.65535") - 1))
    assert rundir.socket_lease(longest, None) is None
    lease = rundir.socket_lease(Path(f"{longest}x"), None)
    assert lease is not None
    assert lease.release()
    rundir.sweep(lease.path.parent, None)
    assert not lease.path.exists()


def test_the_example_of_the_standard():
    # RFC 7677, section 3; its server signature follows from the two keys.
    made = tcp.verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    assert made == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_all_workers_of_xdist_use_it_and_no_output_has_the_password(any_plan, run_dir, pytester, processes_with):
    pytester.makeini(f"[pytest]\npgleak_tcp = true\npgleak_server = {any_plan.source}\n")
    pytester.makepyfile(
        """
        import os, pathlib, time
        import psycopg, pytest

        KEPT = []

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(2))
        def test_it(number, pgleak_postgres, pgleak_dsn, pgleak_fresh_dsn):
            mine = pathlib.Path(os.environ["PYTEST_XDIST_WORKER"])
            mine.write_text(f"{pgleak_postgres.dsn}\\n{pgleak_dsn}")
            while len(list(pathlib.Path().glob("gw*"))) < 2:  # both at the same time
                time.sleep(0.01)
            dsn = pgleak_postgres.dsn
            KEPT.append(psycopg.connect(pgleak_fresh_dsn))
            assert (dsn, pgleak_dsn, pgleak_postgres) == ()
        """
    )
    result = pytester.runpytest_subprocess("-n2", "--showlocals", "-vv", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*pgleak also found*", "*[[]connection-not-closed]*"])
    [server], databases = (
        set(each) for each in zip(*(path.read_text().split() for path in pytester.path.glob("gw*")), strict=True)
    )
    assert len(databases) == 2
    found = conninfo_to_dict(server)
    assert found["host"] == "127.0.0.1"
    assert found["port"] in result.stdout.str()
    assert found["password"] not in result.stdout.str() + result.stderr.str()
    assert processes_with(found["password"]) == {}
    assert run_dir.is_clean()


def test_the_option(any_plan, run_dir, pytester):
    pytester.makepyfile(
        """
        import psycopg

        def test_it(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                assert conn.info.host == "127.0.0.1"
        """
    )
    options = ["-p", "no:pytest_asyncio.plugin", f"--pgleak-server={any_plan.source}", "--pgleak-tcp"]
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


def test_a_server_that_is_not_ours_is_taken_as_it_is(server):
    assert start(plan(ServerRequest(dsn=server.dsn, tcp=True))).dsn == server.dsn
