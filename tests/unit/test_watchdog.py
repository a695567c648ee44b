from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from pytest_pgleak.hangs.watchdog import Watchdog

PATIENCE = 0.05
LONG = 30.0


@pytest.fixture
def make():
    made = []

    def make(look=lambda _phase: None, patience=PATIENCE, fault=print):
        made.append(Watchdog(patience, look, fault))
        return made[-1]

    yield make
    for watchdog in made:
        watchdog.stop()


def test_it_looks_when_a_phase_takes_too_long(make):
    looks, looked = [], threading.Event()

    def look(phase):
        looks.append(phase)
        looked.set()

    make(look).enter("a::b", "setup")
    assert looked.wait(LONG)
    assert (looks[0].nodeid, looks[0].when) == ("a::b", "setup")


def test_it_does_not_look_as_long_as_phases_are_short(make):
    looks = []
    watchdog = make(looks.append, patience=LONG)
    watchdog.enter("a::b", "setup")
    watchdog.enter("a::b", "call")
    assert watchdog._step() <= LONG
    watchdog.leave()
    assert watchdog._step() == LONG
    assert looks == []


def test_a_test_begins_with_its_set_up(make):
    watchdog = make(patience=LONG)
    watchdog.enter("a::b", "setup")
    setup = watchdog.phase
    watchdog.enter("a::b", "call")
    call = watchdog.phase
    assert setup.began_at == setup.test_began_at == call.test_began_at <= call.began_at
    watchdog.enter("a::b", "setup")  # run again by a plugin for flaky tests
    assert watchdog.phase.test_began_at > setup.test_began_at
    watchdog.leave()
    assert watchdog.phase is None


def test_it_goes_on_after_an_error(make):
    faults, looks, enough = [], [], threading.Event()

    def look(_phase):
        looks.append(1)
        if len(looks) == 3:
            enough.set()
        raise OSError

    make(look, fault=faults.append).enter("a::b", "call")
    assert enough.wait(LONG)
    assert set(faults) == {"the look for lock waits"}


def test_there_is_no_thread_before_the_first_phase_and_none_after_the_end(make):
    watchdog = make(patience=LONG)
    assert not watchdog.is_running
    watchdog.enter("a::b", "setup")
    assert watchdog.is_running
    thread = watchdog._thread
    assert thread.is_alive
    watchdog.stop()
    assert not thread.is_alive
    watchdog.enter("a::c", "setup")
    assert not watchdog.is_running


FORKS = """
import os, threading
from pytest_pgleak.hangs.watchdog import Watchdog

watchdog = Watchdog(30.0, print, print)
watchdog.enter("a::b", "setup")
assert threading.active_count() == 1, "nobody is to count it"
child = os.fork()
if child == 0:
    watchdog.enter("a::b", "call")
    assert watchdog.is_running
    watchdog.stop()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert not watchdog.is_running
watchdog.enter("a::b", "call")
assert watchdog.is_running
watchdog.stop()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_finds_no_thread_and_the_next_phase_has_one_again():
    # In a process of its own, for xdist has threads as well.
    command = [sys.executable, "-W", "always", "-c", FORKS]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    # From 3.12 on Python warns of a fork beside a thread.
    assert "multi-threaded" not in done.stderr
