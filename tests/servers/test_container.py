"""A server in a container, on a real engine: one for each run, and nothing of it left, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest
from docker_engines import DEADLINE, IMAGE

from pytest_pgleak.servers import ServerError, cluster, start

JOIN = f"""
import sys, time
from pytest_pgleak.servers import ServerRequest, plan, start
server = start(plan(ServerRequest(server="docker", docker_image={IMAGE!r}, run_id="a run")))
print(server.dsn, flush=True)
time.sleep(60)
"""

SUITE = """
    import os, pathlib, time, psycopg, pytest

    @pytest.mark.pgleak
    @pytest.mark.parametrize("number", range(4))
    def test_it(pgleak_postgres, pgleak_dsn, number):
        with psycopg.connect(pgleak_dsn) as conn:
            seen = f"{conn.info.host} {conn.info.port} {conn.info.dbname}"
        written = pathlib.Path(f"{os.getpid()}.tmp")
        written.write_text(seen, encoding="utf-8")
        written.rename(f"{os.getpid()}.seen")
        assert pgleak_postgres.source == "docker"
        deadline = time.monotonic() + 60
        while not pathlib.Path("go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
"""


@pytest.fixture
def processes(engine, python):
    """Start so many processes that share one server; return them with the DSN that each was given."""
    with ExitStack() as stack:

        def start_all(number):
            started = [stack.enter_context(python(JOIN)) for _ in range(number)]
            return [(process, process.stdout.readline().strip()) for process in started]

        yield start_all


def reapers(engine, processes_with):
    found = processes_with(str(engine.run_dir.path)).items()
    return {pid: line for pid, line in found if "container_reaper_main" in line}


def kill(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_container(engine, query):
    server = start(engine.plan())

    [container] = engine.containers()
    assert {port["IP"] for port in container["Ports"] if port.get("PublicPort")} == {"127.0.0.1"}
    details = engine.api.inspect_container(container["Id"])
    assert list(details["HostConfig"]["Tmpfs"]) == ["/pgleak"]
    assert server.owned
    assert query(server.dsn, "select current_setting('server_version')").split()[0] == server.version
    assert query(server.dsn, "show data_directory") == "/pgleak/data"
    for name in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum", "wal_level", "max_connections"):
        assert query(server.dsn, f"show {name}") == cluster._SETTINGS[name]
    password = server.dsn.split(":")[2].split("@")[0]
    assert password not in repr(server)
    with pytest.raises(Exception, match="password authentication failed"):
        query(server.dsn.replace(password, "wrong"), "select 1")

    # A child of fork() has nothing to stop.
    if (pid := os.fork()) == 0:
        server.stop()
        os._exit(0)
    os.waitpid(pid, 0)
    assert query(server.dsn, "select 1") == 1

    server.stop()
    assert engine.traces() == []
    server.stop()


def test_one_for_all_who_share_it_until_the_last_is_killed(engine, processes, query):
    started = processes(3)
    assert len({dsn for _, dsn in started}) == 1
    assert len(engine.containers()) == 1
    for process, dsn in started:
        assert query(dsn, "select 1") == 1
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("when", ["reaper", "container"])
def test_killed_while_it_starts(when, engine, python, wait_until, processes_with):
    there = {"reaper": lambda: reapers(engine, processes_with), "container": engine.containers}[when]
    with python(JOIN) as process:
        assert wait_until(there, DEADLINE)
        process.send_signal(signal.SIGKILL)
        assert process.stdout.readline() == ""


def test_without_its_reaper_the_owner_removes_it(engine, processes_with, wait_until):
    server = start(engine.plan())
    kill(*reapers(engine, processes_with))
    assert wait_until(lambda: not reapers(engine, processes_with), DEADLINE)
    server.stop()
    assert engine.traces() == []


def test_what_a_run_left_that_died_with_its_reaper_is_swept_by_the_next(
    engine, processes, processes_with, query, wait_until
):
    living = start(engine.plan("another run"))
    [first] = engine.containers()
    first_token = first["Labels"]["pytest-pgleak"]
    [(process, _)] = processes(1)
    assert len(engine.containers()) == 2

    def its_reaper():
        return [pid for pid, line in reapers(engine, processes_with).items() if first_token not in line]

    # The reaper first: it would get the lock in the moment between.
    kill(*its_reaper())
    assert wait_until(lambda: not its_reaper(), DEADLINE)
    kill(process.pid)
    process.wait()
    assert len(engine.containers()) == 2

    following = start(engine.plan("a third run"))
    ids = [each["Id"] for each in engine.containers()]
    assert len(ids) == 2
    assert first["Id"] in ids
    assert query(living.dsn, "select 1") == 1
    following.stop()
    living.stop()


def test_only_what_is_provably_dead_is_swept(engine, run_dir):
    from pytest_pgleak.servers import container_labels, rundir

    api = engine.api

    def create(directory, **other):
        labels = container_labels.labels("a token", directory) | other
        return api.create_container(IMAGE, ["true"], labels=labels)["Id"]

    lease = rundir.create(run_dir.path, None)
    gone = run_dir.path / "pgleak-gone"
    held, elsewhere, ended = create(lease.path), create(gone, **{"pytest-pgleak.machine": "another"}), create(None)
    dead = create(gone)
    try:
        api.start(ended)
        api.wait(ended)
        container_labels.sweep(api)
        left = {each["Id"] for each in api.containers(all=True)}
        assert {held, elsewhere, ended} <= left
        assert dead not in left

        [found] = api.containers(all=True, filters={"id": ended})
        assert not container_labels._has_long_ended(api, found)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(container_labels, "_LONG_ENDED", -5.0)
            assert container_labels._has_long_ended(api, found)

        lease.release()
        container_labels.sweep(api)
        assert held not in {each["Id"] for each in api.containers(all=True)}
        rundir.sweep(run_dir.path, None)
    finally:
        for each in (held, elsewhere, ended, dead):
            with suppress(Exception):
                api.remove_container(each, v=True, force=True)


def test_the_reaper_needs_no_lock_where_there_are_none(engine, python, wait_until):
    # As on Windows: it waits for the end of a pipe.
    with python(JOIN.replace('run_id="a run"', "plain=True")) as process:
        port = int(process.stdout.readline().rpartition(":")[2].partition("/")[0])

        def found():
            everything = engine.api.containers(all=True, filters={"label": "pytest-pgleak"})
            return [each for each in everything if port in [published.get("PublicPort") for published in each["Ports"]]]

        assert len(found()) == 1
        process.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not found(), DEADLINE)


def test_an_image_that_cannot_be_pulled(engine):
    # Nobody is there: connection refused.
    expected = r"(?s)image 127.0.0.1:1/nothing:1 is not there and cannot be pulled:\n.+\n.*pgleak_docker_image"
    with pytest.raises(ServerError, match=expected):
        start(engine.plan(image="127.0.0.1:1/nothing:1"))
    assert engine.traces() == []


def test_a_container_that_ends_shows_its_log(engine, monkeypatch):
    monkeypatch.setattr(cluster, "container_options", lambda: ["-c", "no_such_option=on"])
    with pytest.raises(ServerError, match=r"(?s)did not start: exited with 1. The end of its log:\n.*no_such_option"):
        start(engine.plan())
    assert engine.traces() == []


def pytest_run(pytester, workers):
    pytester.makepyfile(SUITE)
    pytester.makeini(f"[pytest]\npgleak_server = docker\npgleak_docker_image = {IMAGE}\n")
    options = ["-p", "no:pytest_asyncio.plugin", "-p", "no:cacheprovider", f"-n{workers}"]
    command = [sys.executable, "-m", "pytest", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def seen_by_workers(pytester):
    return {int(path.stem): path.read_text(encoding="utf-8").split() for path in pytester.path.glob("*.seen")}


def await_workers(pytester, wait_until, number):
    """Wait until each has a test of its own: it waits there."""
    assert wait_until(lambda: len(seen_by_workers(pytester)) == number, 60)


def test_workers_share_it_and_one_of_them_is_killed(engine, pytester, wait_until):
    with pytest_run(pytester, 2) as process:
        await_workers(pytester, wait_until, 2)
        seen = list(seen_by_workers(pytester).values())
        kill(next(iter(seen_by_workers(pytester))))
        (pytester.path / "go").touch()
        output = process.communicate(timeout=120)[0]
    assert {host for host, _, _ in seen} == {"127.0.0.1"}
    assert len({port for _, port, _ in seen}) == 1
    assert len({database for _, _, database in seen}) == 2
    assert "crashed" in output
    assert "3 passed" in output, output


@pytest.mark.parametrize("workers", [0, 2], ids=["pytest", "pytest and all workers"])
def test_pytest_is_killed(workers, engine, pytester, wait_until):
    with pytest_run(pytester, workers) as process:
        await_workers(pytester, wait_until, workers or 1)
        assert len(engine.containers()) == 1
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
