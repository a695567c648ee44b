from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import pytest

from pytest_pgleak.budget.sampler import Sampler

PATIENCE = 30.0
"""Seconds; a step takes some milliseconds to come."""


class Steps:
    """Counts, and lets a test wait for the next one."""

    def __init__(self, trouble=None):
        self.number = 0
        self.trouble = trouble
        self.faults = []
        self._done = threading.Semaphore(0)
        self.sampler = Sampler(self.step, self.faults.append)

    def step(self):
        self.number += 1
        self._done.release()
        if self.trouble is not None:
            raise self.trouble

    def wait(self):
        assert self._done.acquire(timeout=PATIENCE)


def tasks():
    """The threads of this process as the system counts them; None where it does not say."""
    path = Path("/proc/self/task")
    return len(list(path.iterdir())) if path.exists() else None


@pytest.fixture
def steps():
    steps = Steps()
    yield steps
    steps.sampler.stop()


def test_it_goes_on_until_it_is_stopped(steps):
    before = tasks()
    steps.sampler.start()
    steps.wait()
    steps.wait()
    steps.sampler.stop()
    assert tasks() == before
    number = steps.number
    steps.sampler.stop()
    assert steps.number == number


def test_it_can_be_started_again(steps):
    before = tasks()
    for _ in range(3):
        steps.sampler.start()
        steps.wait()
        steps.sampler.stop()
    assert tasks() == before


def test_a_fault_ends_it_and_is_told():
    steps = Steps(RuntimeError("x"))
    steps.sampler.start()
    steps.wait()
    steps.sampler.stop()
    assert steps.number == 1
    assert steps.faults == ["counting connections"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_it_is_not_there_while_the_process_forks(steps):
    others = threading.active_count()
    steps.sampler.start()
    steps.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # "This process is multi-threaded, use of fork() may …"
        pid = os.fork()
        if pid == 0:
            os._exit(0 if tasks() in (None, 1) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        steps.wait()
        assert threading.active_count() == others, "nobody is to count it"
        steps.sampler.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_start_it(steps):
    before = tasks()
    steps.sampler.start()
    steps.sampler.stop()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert tasks() == before
