"""The cached cluster: made once, copied, and never trusted."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from pytest_pgleak.servers import ServerError, cluster, privilege, runtime, start, supervisor_main, template

HEAD = 24  # bytes: the length, and a sum of all that follows


def whole(content):
    """`content` with a length and a sum that are right."""
    return f"{len(content):016}{zlib.crc32(content[HEAD:]):08x}".encode() + content[HEAD:]


def zeroed(content, part, size=None):
    """`content` with zeros in each file whose name begins with `part`."""
    content = bytearray(content)
    index, _, _ = bytes(content[HEAD:]).partition(b"\n\n")
    at = HEAD + len(index) + 2
    for line in index.decode().splitlines():
        if not line.startswith("/"):
            length, _, name = line.partition(" ")
            if name.startswith(part):
                content[at : at + (size or int(length))] = bytes(size or int(length))
            at += int(length)
    return bytes(content)


def templates(cache):
    return sorted(cache.glob("clusters-*/*.cluster"))


@pytest.fixture
def use(any_plan, run_dir, query):
    """Start a server, use it, stop it; tell whether initdb has run."""

    def use():
        server = start(any_plan)
        try:
            assert query(server.dsn, "select count(*) from pg_class") > 100
            [log] = run_dir.path.glob("pgleak-*/server.log")
            return "initialized with locale" in log.read_text()
        finally:
            server.stop()

    return use


def test_the_second_server_needs_no_initdb(use, cache, run_dir):
    assert use()
    [made] = templates(cache)
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
    assert not use()
    assert templates(cache) == [made]
    assert run_dir.traces() == []


def test_what_is_unpacked_is_what_was_packed(tmp_path):
    files = {
        "PG_VERSION": b"18\n",
        "base/1/1259": b"x" * 300_000,
        "base/1/1259_fsm": b"map",
        "base/1/1259_vm": b"map",
        "base/4/1259": b"x" * 300_000,
        "base/4/2600": b"",
        "base/5/1259": b"y" * 300_000,
        "base/5/2600": b"",
        "pg_wal/000000010000000000000005": b"the checkpoint",
        "pg_wal/000000010000000000000006": b"its end",
        "pg_wal/000000010000000000000007": b"of the past",
    }
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "data/pg_wal/archive_status").mkdir()
    with (tmp_path / "packed").open("w+b") as packed:
        supervisor_main._pack(str(tmp_path / "data"), packed.fileno())
        supervisor_main._unpack(packed.fileno(), packed.seek(0, os.SEEK_END), str(tmp_path / "copy"))

    assert (tmp_path / "copy/pg_wal/archive_status").is_dir()
    found = {path.relative_to(tmp_path / "copy"): path for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    left_out = {"base/1/1259_fsm", "base/1/1259_vm", "pg_wal/000000010000000000000007"}
    assert {str(name): path.read_bytes() for name, path in found.items()} == {
        name: content for name, content in files.items() if name not in left_out
    }


def test_a_server_from_a_template_can_do_all_that_one_of_initdbs_can(owned_plan, cache, query, wait_until):
    start(owned_plan).stop()
    server = start(owned_plan)
    try:
        [directory] = query(server.dsn, "select array[current_setting('data_directory')]")
        assert not list(Path(directory, "base").glob("1/*_vm"))  # it is from a template
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("create database of_template0 template template0")
            conn.execute("create database of_template1")
            conn.execute("vacuum (freeze, analyze)")
            conn.execute("create table t as select n, repeat('x', 500) from generate_series(1, 20000) n")
            conn.execute("create index on t (n)")
            conn.execute("vacuum t")
            conn.execute("checkpoint")
            conn.execute("delete from t where n > 10000")
            [pid] = conn.execute("select pg_backend_pid()").fetchone()
            # The others are ended, and the server recovers from its WAL.
            os.kill(pid, signal.SIGKILL)

        def recovered():
            with contextlib.suppress(psycopg.OperationalError):
                return query(server.dsn, "select count(*) from t") == 10000

        wait_until(recovered)
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("reindex database postgres")
            conn.execute("vacuum full")
    finally:
        server.stop()


@pytest.mark.parametrize("harm", ["cut off", "longer", "empty", "zeros", "other index", "not private", "a link"])
def test_a_broken_template_is_made_again(harm, use, cache):
    use()
    [made] = templates(cache)
    content = made.read_bytes()
    if harm == "not private":
        made.chmod(0o644)
    elif harm == "a link":
        made.symlink_to(made.rename(made.with_name("elsewhere")))
    else:
        made.write_bytes(
            {
                "cut off": content[:-1],
                "longer": content + b"x",
                "empty": b"",
                "zeros": zeroed(content, "/base/1/"),  # the server starts, and has a broken template1
                "other index": whole(content[:HEAD] + b"/../escaped\n" + content[HEAD:]),
            }[harm]
        )
    assert use()
    assert templates(cache)[0].read_bytes()[:16] == content[:16]
    assert not use()


def test_a_template_that_does_not_start_is_made_again(use, cache):
    use()
    [made] = templates(cache)
    # The control file holds a checksum of itself.
    made.write_bytes(whole(zeroed(made.read_bytes(), "/global/pg_control", 64)))
    assert use()  # the second attempt
    assert not use()


def test_where_there_is_no_place_it_goes_without(use, cache, monkeypatch):
    monkeypatch.setenv("PGLEAK_CACHE_DIR", "/proc/nowhere")
    assert use()
    assert use()
    assert templates(cache) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
def test_a_directory_of_somebody_else_is_not_used(use, cache):
    user = privilege.server_user()
    directory = cache / f"clusters-{user.uid}"
    directory.mkdir(mode=0o700)
    os.chown(directory, user.uid + 1, user.gid)
    assert use()
    assert use()
    assert templates(cache) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root's alone")
def test_roots_cache_is_for_the_servers_user_whatever_the_umask_is(tmp_path, monkeypatch):
    monkeypatch.delenv("PGLEAK_CACHE_DIR", raising=False)
    monkeypatch.setattr(runtime, "PUBLIC", tmp_path / "public")
    before = os.umask(0o077)
    try:
        assert template.locate(["/bin/ls"], privilege.server_user()) is None  # there is no postgres beside it
    finally:
        os.umask(before)
    assert stat.S_IMODE(runtime.PUBLIC.stat().st_mode) == 0o755


def test_the_key_depends_on_the_program_and_the_options(any_plan, cache):
    user = privilege.server_user()
    bindir = runtime.usable_bindir(any_plan.bindir, user)
    command = cluster.initdb_command(bindir, any_plan.version)
    one = template.locate(command, user)
    assert one is not None
    assert one == template.locate(command, user)
    assert one != template.locate([*command, "--encoding=LATIN1"], user)


def test_the_key_names_all_that_a_template_depends_on(tmp_path, monkeypatch):
    program = tmp_path / "postgres"
    command = [str(tmp_path / "initdb"), "-U", "postgres"]

    def keys():
        yield template._key(command, 1)
        yield template._key(command, 2)
        yield template._key([*command, "-E", "UTF8"], 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "uname", lambda: SimpleNamespace(machine="another"))
            yield template._key(command, 1)
            patch.undo()
            patch.setattr(template, "_FORMAT", 0)
            yield template._key(command, 1)
        os.utime(program, ns=(1, 1))
        yield template._key(command, 1)
        program.write_text("of another size")
        os.utime(program, ns=(1, 1))
        yield template._key(command, 1)

    program.write_text("one build")
    assert template._key(command, 1) == template._key(command, 1)
    assert len(set(keys())) == 7


def test_those_who_come_at_once_make_one(any_plan, cache, run_dir):
    with ThreadPoolExecutor() as threads:
        servers = list(threads.map(start, [any_plan] * 3))
    logs = [path.read_text() for path in run_dir.path.glob("pgleak-*/server.log")]
    for server in servers:
        server.stop()
    assert len(logs) == 3
    assert sum("initialized with locale" in log for log in logs) == 1


def test_what_is_wrong_with_the_binaries_is_told_once(any_plan, cache, run_dir, monkeypatch):
    monkeypatch.setattr(cluster, "postgres_command", lambda bindir, *_: [str(bindir / "postgres"), "--no-such-option"])
    with pytest.raises(ServerError, match="no-such-option"):
        start(any_plan)
    assert run_dir.is_clean()
