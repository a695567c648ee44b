"""One server for several processes: started by the first, gone with the last, however each of them ends."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from pytest_pgleak.servers import ServerError, ServerRequest, cluster, plan, start

JOIN = """
import os, sys, time
from pytest_pgleak.servers import ServerRequest, plan, start
from pytest_pgleak.servers.values import ServerRequest
server = start(plan(ServerRequest(server=SOURCE, run_id="a run")))
print(server.dsn, flush=True)
sys.stdin.read() if WAITS else None
time.sleep(60 if WAITS else 0)
server.stop()
"""


def script(source, waits=True):
    return f"SOURCE = {source!r}\nWAITS = {waits}\n{JOIN}"


@pytest.fixture
def processes(any_plan, run_dir, python):
    """Start so many processes that share one server; return them with the DSN that each was given."""
    with ExitStack() as stack:

        def start_all(number):
            started = [stack.enter_context(python(script(any_plan.source))) for _ in range(number)]
            return [(process, process.stdout.readline().strip()) for process in started]

        yield start_all


def test_all_get_one_server(processes, run_dir, query):
    started = processes(4)
    assert len({dsn for _, dsn in started}) == 1
    assert len(run_dir.entries()) == 1
    assert query(started[0][1], "select 1") == 1


def test_it_lives_as_long_as_the_last_of_them(processes, run_dir, query):
    started = processes(3)
    for process, dsn in started:
        assert query(dsn, "select 1") == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run_dir.is_clean()


def test_killed_all_at_once(processes, run_dir):
    started = processes(3)
    for process, _ in started:
        process.send_signal(signal.SIGKILL)
    assert run_dir.is_clean()


def test_the_one_who_starts_it_is_killed_meanwhile(any_plan, run_dir, python, wait_until, query):
    with python(script(any_plan.source)) as first:
        assert wait_until(run_dir.entries)
        first.send_signal(signal.SIGKILL)
        with python(script(any_plan.source)) as second:
            dsn = second.stdout.readline().strip()
            assert query(dsn, "select 1") == 1
    assert run_dir.is_clean()


def test_the_one_who_starts_it_does_not_wait_for_the_others(any_plan, run_dir, python, query):
    request = ServerRequest(server=any_plan.source, run_id="a run")
    server = start(plan(request))
    with python(script(any_plan.source)) as other:
        dsn = other.stdout.readline().strip()
        assert dsn == server.dsn
        server.stop()  # it would wait for ten seconds, and fail
        assert query(dsn, "select 1") == 1
    assert run_dir.is_clean()


def test_it_is_gone_at_once_where_there_is_nobody_else(any_plan, run_dir):
    server = start(plan(ServerRequest(server=any_plan.source, run_id="a run")))
    server.stop()
    assert run_dir.traces() == []


def test_a_server_that_is_stopped_can_be_started_again(any_plan, run_dir, query):
    for _ in range(3):
        server = start(plan(ServerRequest(server=any_plan.source, run_id="a run")))
        assert query(server.dsn, "select 1") == 1
        server.stop()
    assert run_dir.traces() == []


def test_another_run_has_another_server(any_plan, run_dir):
    one, two = (start(plan(ServerRequest(server=any_plan.source, run_id=run_id))) for run_id in ("one", "two"))
    assert one.dsn != two.dsn
    one.stop()
    two.stop()


def test_a_server_that_does_not_start_is_told_of(any_plan, run_dir, monkeypatch):
    monkeypatch.setattr(cluster, "postgres_command", lambda bindir, *_: [str(bindir / "postgres"), "--no-such-option"])
    with pytest.raises(ServerError, match="no-such-option"):
        start(plan(ServerRequest(server=any_plan.source, run_id="a run")))
    assert run_dir.is_clean()
