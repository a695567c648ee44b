"""Machines on which something is missing: room on the disk or in /dev/shm, a home that can be written, short paths."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
import venv
from pathlib import Path

import psycopg
import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, cluster, owned, plan, privilege, runtime, start, template

NOBODY = pwd.getpwnam("nobody")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="only root can mount, and only where mount namespaces can be made",
)

USE = """
import os
from pytest_pgleak.servers import ServerRequest, plan, start
server = start(plan(ServerRequest(server=SOURCE)))
import psycopg
with psycopg.connect(server.dsn) as conn:
    for name in ("data_directory", "unix_socket_directories"):
        print(conn.execute(f"show {name}").fetchone()[0])
server.stop()
"""


@pytest.fixture
def disk(run_dir, monkeypatch):
    """Make the directory for servers a small disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    mounted = []

    def make(size):
        path = run_dir.path / "disk"
        path.mkdir()
        options = f"size={size},mode=1777"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False, capture_output=True)
        if done.returncode != 0:
            path.rmdir()
            pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(path)
        monkeypatch.setenv("PGLEAK_RUN_DIR", str(path))
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", path], check=True)
        path.rmdir()


@pytest.mark.parametrize("room", ["none", "for a line", "for a part"])
@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "port"])
def test_a_disk_that_is_too_small(room, tcp, any_plan, disk, processes_with, wait_until):
    path = disk({"none": "1m", "for a line": "4k", "for a part": "16m"}[room])
    filling = path / "filling"
    if room == "none":
        filling.write_bytes(bytes(2**20))
    with pytest.raises(ServerError) as caught:
        start(plan(ServerRequest(server=any_plan.source, tcp=tcp, run_id="a run")))

    assert "ame a directory with 100 MB free in the environment variable PGLEAK_RUN_DIR." in str(caught.value)
    filling.unlink(missing_ok=True)
    assert wait_until(lambda: not list(path.iterdir()) and not processes_with(str(path)))


def test_the_template_is_kept_when_the_disk_is_full(any_plan, disk, cache):
    start(any_plan).stop()
    user = privilege.server_user()
    made = template.locate(cluster.initdb_command(runtime.usable_bindir(any_plan.bindir, user), any_plan.version), user)
    before = made.path.stat().st_ino
    disk("16m")
    with pytest.raises(ServerError, match="No space left on device"):
        start(any_plan)
    assert made.path.stat().st_ino == before


def test_a_disk_that_a_test_fills(any_plan, disk, processes_with, wait_until):
    path = disk("64m")
    server = start(any_plan)
    with pytest.raises(psycopg.Error), psycopg.connect(server.dsn) as conn:
        conn.execute("create table much as select repeat('x', 1000) from generate_series(1, 100000)")
    server.stop()
    assert wait_until(lambda: not list(path.iterdir()) and not processes_with(str(path)))


def test_a_disk_that_is_full_when_the_server_is_up(any_plan, disk, monkeypatch, processes_with, wait_until):
    path = disk("64m")
    filling = path / "filling"
    begin = owned._start

    def begin_and_fill(*args, **kwargs):
        server = begin(*args, **kwargs)
        subprocess.run(["dd", "if=/dev/zero", f"of={filling}", "bs=4k"], check=False, capture_output=True)
        return server

    monkeypatch.setattr(owned, "_start", begin_and_fill)
    with pytest.raises(ServerError, match="100 MB free in the environment variable PGLEAK_RUN_DIR"):
        start(plan(ServerRequest(server=any_plan.source, run_id="a run")))
    filling.unlink()
    assert wait_until(lambda: not list(path.iterdir()) and not processes_with(str(path)))


@pytest.fixture
def base():
    """A directory of this test's own that everybody may enter; gone afterwards, and found empty."""
    with tempfile.TemporaryDirectory(prefix="servers-test-", dir="/tmp") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


@pytest.fixture(params=["as ourselves", pytest.param("as nobody", marks=root_only)])
def run(request, python, base):
    """Run a script in mount namespace of its own (as root), as ourselves or as a plain user; return what it prints."""
    prefix, options = [], {}
    if request.param == "as nobody":
        options = {"executable": request.getfixturevalue("nobodys_python")}
        prefix = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]

    def run(source, mounts="", **environment):
        inside = prefix
        if mounts:
            inside = ["unshare", "-m", "--propagation", "private", "sh", "-c", f'{mounts} && exec "$@"', "sh", *prefix]
        variables = {"PGLEAK_RUN_DIR": "", "PGLEAK_CACHE_DIR": "", **environment}
        with python(f"SOURCE = {source!r}\n{USE}", prefix=inside, environment=variables, **options) as process:
            output, errors = process.communicate(timeout=60)
        assert errors == ""
        return [Path(line) for line in output.splitlines()]

    return run


@needs_namespaces
def test_a_shm_with_room(any_plan, run):
    data, socket_dir = run(any_plan.source, "mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm")
    assert data.parent == socket_dir
    assert socket_dir.parent == Path("/dev/shm")


@needs_namespaces
def test_a_shm_of_64_mb_and_a_long_name_for_temporary_files(any_plan, run, base, processes_with):
    long = base / ("x" * (119 - len(str(base))))
    long.mkdir()
    long.chmod(0o1777)
    assert len(str(long)) == 120

    data, socket_dir = run(any_plan.source, "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm", TMPDIR=str(long))

    assert long in data.parents
    assert socket_dir.parent == Path("/tmp")
    assert not socket_dir.exists()
    assert list(long.iterdir()) == []
    assert processes_with(str(long)) == {}


@needs_namespaces
def test_a_home_that_cannot_be_written(any_plan, run, base):
    home = base / "home"
    home.mkdir()
    mounts = f"mount -t tmpfs -o ro tmpfs {home}"
    data, _ = run(any_plan.source, mounts, HOME=str(home), XDG_CACHE_HOME="")

    assert not data.exists()
    assert list(home.iterdir()) == []


@root_only
def test_a_virtual_environment_that_the_servers_user_cannot_enter(tree, run_dir, python):
    environment = tree.top / "venv"
    venv.create(environment, symlinks=True, with_pip=False)
    tree.top.chmod(0o700)
    modes = {path: path.lstat().st_mode for path in tree.top.rglob("*")}
    users = Path("/etc/passwd").read_bytes()
    public = run_dir.path / "public"
    script = f"""
from pathlib import Path
from pytest_pgleak.servers import ServerRequest, plan, runtime, start
runtime.PUBLIC = Path({str(public)!r})
server = start(plan(ServerRequest(bindir={str(tree.bindir)!r})))
import psycopg, sys
print(sys.prefix, psycopg.connect(server.dsn).execute("select 1").fetchone())
server.stop()
"""
    with python(script, executable=environment / "bin" / "python") as process:
        output, errors = process.communicate(timeout=60)

    assert output.split() == [str(environment), "(1,)"], errors
    assert list(public.glob("runtime-*"))
    assert {path: path.lstat().st_mode for path in tree.top.rglob("*") if "__pycache__" not in path.parts} == modes
    assert Path("/etc/passwd").read_bytes() == users
