from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, cluster, plan, privilege, rundir, runtime, start

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="about running as root")

START = """
import os, signal, sys, time
from pytest_pgleak.servers import ServerRequest, plan, start
server = start(plan(ServerRequest(server=SOURCE)))
print(server.version, flush=True)
"""


def started(script, plan):
    return f"SOURCE = {plan.source!r}\n{START}\n{script}"


def postmaster(run_dir):
    [pid_file] = run_dir.path.glob("pgleak-*/data/postmaster.pid")
    return int(pid_file.read_text().split()[0])


def test_start_and_stop(owned_plan, run_dir, query):
    server = start(owned_plan)

    assert server.owned
    assert server.source == owned_plan.source
    assert server.description == owned_plan.description
    assert query(server.dsn, "select current_setting('server_version')").split()[0] == server.version
    assert query(server.dsn, "select rolsuper from pg_roles where rolname = current_user")
    assert query(server.dsn, "select current_setting('listen_addresses')") == ""
    [directory] = run_dir.path.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    server.stop()
    assert run_dir.traces() == []
    server.stop()


def test_shared_memory_is_left_as_it_was(any_plan, run_dir):
    def system_v():
        return [line for line in Path("/proc/sysvipc/shm").read_text().splitlines() if f" {pid} " in line]

    server = start(any_plan)
    pid = postmaster(run_dir)
    # Only what this server maps: others may come and go at the same time.
    posix = set(re.findall(r"/dev/shm/PostgreSQL\.\d+", Path(f"/proc/{pid}/maps").read_text()))
    [_interlock] = system_v()
    server.stop()

    assert [path for path in posix if Path(path).exists()] == []
    assert system_v() == []


def test_two_servers_at_once(any_plan, run_dir, query):
    one, two = start(any_plan), start(any_plan)
    one.stop()

    assert query(two.dsn, "select 1") == 1
    two.stop()
    assert run_dir.traces() == []


def test_sigkill_of_the_owner_leaves_nothing(owned_plan, run_dir, python):
    with python(started("time.sleep(60)", owned_plan)) as owner:
        assert owner.stdout.readline()
        assert len(run_dir.traces()) > 1
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert run_dir.is_clean()


@pytest.mark.parametrize(
    "end",
    ["os._exit(3)", "sys.exit(3)", "raise RuntimeError", "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"],
)
def test_any_other_end_of_the_owner_leaves_nothing(end, any_plan, run_dir, python):
    with python(started(end, any_plan)) as owner:
        assert owner.wait(60) != 0
        assert run_dir.is_clean()


def test_a_terminals_interrupt_does_not_reach_the_server(any_plan, run_dir, python):
    # The group gets it, as with Ctrl-C. Fixtures that are torn down afterwards still need the server.
    script = """
import psycopg
signal.signal(signal.SIGINT, lambda *_: None)
os.killpg(0, signal.SIGINT)
time.sleep(0.1)
print(psycopg.connect(server.dsn).execute("select 1").fetchone(), flush=True)
"""
    with python(started(script, any_plan), start_new_session=True) as owner:
        output, errors = owner.communicate(timeout=60)
        assert "(1,)" in output, errors
        assert run_dir.is_clean()


def test_the_owner_dies_while_the_cluster_is_made(any_plan, run_dir, python, wait_until):
    with python(started("time.sleep(60)", any_plan)) as owner:
        assert wait_until(lambda: list(run_dir.path.glob("pgleak-*/data/*")))
        owner.kill()
        owner.wait()
        assert run_dir.is_clean()


def test_a_forked_child_does_not_keep_the_server(any_plan, run_dir, python):
    script = """
child = os.fork()
if child == 0:
    server.stop()  # the parent's, not ours to stop
    time.sleep(60)
import psycopg
time.sleep(0.1)
print(child, psycopg.connect(server.dsn).execute("select 1").fetchone(), flush=True)
os._exit(0)
"""
    with python(started(script, any_plan)) as owner:
        owner.stdout.readline()
        child, answer = owner.stdout.readline().split(maxsplit=1)
        try:
            assert answer.strip() == "(1,)"
            owner.wait(60)
            assert run_dir.is_clean()
            os.kill(int(child), 0)  # it is still there
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_killed_supervisor_takes_the_server_along_and_stop_removes_the_rest(any_plan, run_dir, processes_with):
    server = start(any_plan)
    [supervisor] = [pid for pid, line in processes_with(str(run_dir.path)).items() if "supervisor_main" in line]
    os.kill(supervisor, signal.SIGKILL)
    server.stop()

    assert run_dir.is_clean()


def test_a_killed_postmaster_is_cleaned_up(any_plan, run_dir):
    server = start(any_plan)
    os.kill(postmaster(run_dir), signal.SIGKILL)
    server.stop()

    assert run_dir.is_clean()


def test_the_next_start_sweeps_what_a_dead_owner_and_supervisor_left(any_plan, run_dir, python, processes_with):
    user = privilege.server_user()
    used = rundir.create(run_dir.path, user)
    stale = run_dir.path / "pgleak-stale"
    shutil.copytree(used.path, stale)
    (stale / "data").mkdir()
    # A pid that somebody else has by now: it must not be harmed.
    (stale / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    if user is not None:  # the supervisor could empty its directory, and not remove it
        emptied = run_dir.path / "pgleak-emptied"
        emptied.mkdir()
        os.chown(emptied, user.uid, user.gid)
    foreign = run_dir.path / "pgleak-without-lock"
    (foreign / "data").mkdir(parents=True)

    rundir.sweep(run_dir.path, user)

    assert run_dir.entries() == sorted([used.path.name, foreign.name])
    used.release()
    used.release()
    rundir.sweep(run_dir.path, user)
    assert run_dir.entries() == [foreign.name]


def test_the_sweep_takes_only_what_is_provably_ours_and_dead(run_dir):
    user = privilege.server_user()
    outside = run_dir.path / "outside"
    outside.mkdir()
    (outside / "alive.lock").touch()
    (run_dir.path / "pgleak-link").symlink_to(outside)
    linked = run_dir.path / "pgleak-linked-lock"
    linked.mkdir()
    (linked / "alive.lock").symlink_to(outside / "alive.lock")
    (run_dir.path / "pgleak-file").touch()
    (run_dir.path / "pgleak-empty").mkdir()
    half_made = run_dir.path / "new-pgleak-by-somebody"  # about to be locked, or left when its maker was killed
    half_made.mkdir()
    if user is not None:  # only root can make what belongs to a third user
        of_others = run_dir.path / "pgleak-of-others"
        of_others.mkdir()
        (of_others / "alive.lock").touch()
        os.chown(of_others, user.uid + 1, user.gid)
    before = run_dir.entries()

    rundir.sweep(run_dir.path, user)
    assert run_dir.entries() == before
    os.utime(half_made, (0, 0))
    rundir.sweep(run_dir.path, user)
    assert run_dir.entries() == sorted({*before} - {half_made.name})
    assert (outside / "alive.lock").exists()


def test_a_sweep_that_is_interrupted_leaves_what_the_next_one_recognises(run_dir, python):
    left = run_dir.path / "pgleak-left"
    (left / "data").mkdir(parents=True)
    for number in range(50):
        (left / f"data/{number}").touch()
    (left / "alive.lock").touch()  # last: a tmpfs lists, and so removes, what is new first
    script = f"""
import os, pathlib, sys
from pytest_pgleak.servers import rundir
removed = []
def stop_in_the_middle(event, arguments):
    if event == "os.remove":
        removed.append(arguments[0])
        if len(removed) == 25:
            os._exit(0)
sys.addaudithook(stop_in_the_middle)
rundir.sweep(pathlib.Path({str(run_dir.path)!r}), None)
"""
    with python(script) as sweeping:
        assert sweeping.wait(20) == 0
    assert len(list((left / "data").iterdir())) > 0
    rundir.sweep(run_dir.path, None)
    assert not left.exists()


def test_the_sweep_stops_a_server_that_lost_everybody(any_plan, run_dir, wait_until):
    user = privilege.server_user()
    identity = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    bindir = runtime.usable_bindir(any_plan.bindir, user)
    lease = rundir.create(run_dir.path, user)
    data = lease.path / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **identity}
    initdb = cluster.initdb_command(bindir, any_plan.version)
    subprocess.run([*initdb, "-D", str(data)], check=True, **quiet)
    # No supervisor here, and the parent outlives it: nothing but the sweep ends it.
    server = subprocess.Popen(cluster.postgres_command(bindir, data, lease.path, any_plan.version), **quiet)
    assert wait_until((lease.path / ".s.PGSQL.5432").exists)

    segment = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]

    rundir.sweep(run_dir.path, user)
    assert server.poll() is None

    lease.release()
    rundir.sweep(run_dir.path, user)
    assert server.wait(5) is not None
    assert run_dir.is_clean()
    assert segment not in [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def test_a_long_run_dir_gets_its_socket_elsewhere(any_plan, run_dir, monkeypatch, query):
    long = run_dir.path / ("x" * 90)
    long.mkdir()
    long.chmod(0o1777)
    monkeypatch.setenv("PGLEAK_RUN_DIR", str(long))

    server = start(any_plan)
    socket_dir = Path(query(server.dsn, "select current_setting('unix_socket_directories')"))
    assert long not in socket_dir.parents
    server.stop()

    assert not socket_dir.exists()
    assert list(long.iterdir()) == []


def test_run_dir_that_does_not_exist(any_plan, monkeypatch):
    monkeypatch.setenv("PGLEAK_RUN_DIR", "/nonexistent")

    with pytest.raises(ServerError, match="PGLEAK_RUN_DIR=/nonexistent: it is not a directory"):
        start(any_plan)


def test_a_failing_initdb_is_shown(any_plan, run_dir, tree):
    (tree.bindir.parent / "share" / "postgres.bki").write_text("# PostgreSQL 1\n")

    with pytest.raises(ServerError) as caught:
        start(plan(ServerRequest(bindir=str(tree.bindir))))

    assert "did not start (exited initdb 1" in str(caught.value)
    assert "postgres.bki" in str(caught.value)
    assert "--pgleak-dsn" in str(caught.value)
    assert run_dir.is_clean()


def test_a_failing_postgres_is_shown(any_plan, run_dir, monkeypatch):
    monkeypatch.setitem(cluster._SETTINGS, "shared_buffers", "much")
    with pytest.raises(ServerError) as caught:
        start(any_plan)

    assert "did not start (" in str(caught.value)
    assert 'invalid value for parameter "shared_buffers": "much"' in str(caught.value)
    assert run_dir.is_clean()


@root_only
def test_root_drops_to_nobody(owned_plan, run_dir, processes_with):
    server = start(owned_plan)
    uids = {Path(f"/proc/{pid}").stat().st_uid for pid in processes_with(str(run_dir.path))}
    groups = Path(f"/proc/{postmaster(run_dir)}/status").read_text().split("Groups:")[1].splitlines()[0].strip()
    server.stop()

    nobody = privilege.server_user()
    assert nobody.name == "nobody"
    # A process that changed its user belongs to root in /proc until it executes a program.
    assert uids <= {nobody.uid, 0}
    assert nobody.uid in uids
    assert groups == ""


@root_only
def test_root_drops_to_the_user_that_is_named(any_plan, run_dir, monkeypatch):
    monkeypatch.setenv("PGLEAK_OS_USER", "daemon")

    server = start(any_plan)
    uid = Path(f"/proc/{postmaster(run_dir)}").stat().st_uid
    server.stop()

    assert uid == pwd.getpwnam("daemon").pw_uid
    assert run_dir.is_clean()


@root_only
@pytest.mark.parametrize(("name", "problem"), [("root", "is root too"), ("no-such-user", "there is no user")])
def test_a_user_that_cannot_be_dropped_to(name, problem, any_plan, monkeypatch):
    monkeypatch.setenv("PGLEAK_OS_USER", name)

    with pytest.raises(ServerError, match=problem):
        start(any_plan)


@root_only
def test_a_runtime_that_only_root_can_reach_is_copied_once(run_dir, tree, monkeypatch, tmp_path_factory):
    public = run_dir.path / "public"
    monkeypatch.setattr(runtime, "PUBLIC", public)
    private = tree.top
    private.chmod(0o700)
    modes = {path: path.stat().st_mode for path in private.rglob("*")}
    request = ServerRequest(bindir=str(tree.bindir))

    for _ in range(2):
        start(plan(request)).stop()

    assert sorted(path.name.partition("-")[0] for path in public.iterdir()) == ["clusters", "runtime"]
    assert stat.S_IMODE(public.stat().st_mode) == 0o755
    assert {path: path.stat().st_mode for path in private.rglob("*")} == modes

    [copy] = public.glob("runtime-*")
    copy.chmod(0o777)
    with pytest.raises(ServerError, match="belongs to root"):
        start(plan(request))


def test_an_unprivileged_user(owned_plan, run_dir, python, nobodys_python, as_nobody):
    script = "print(os.stat(server.dsn.partition('host=')[2].partition('&')[0]).st_uid); server.stop()"
    with python(started(script, owned_plan), executable=nobodys_python, **as_nobody) as owner:
        output, errors = owner.communicate(timeout=60)
    assert errors == ""
    assert output.split()[1:] == [str(as_nobody["user"])]
    assert run_dir.traces() == []
