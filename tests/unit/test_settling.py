from __future__ import annotations

import gc
import itertools
import time
from types import SimpleNamespace

import anyio
import pytest
from builders import finding

from pytest_pgleak import settling as module
from pytest_pgleak.settling import settle, settle_async, settling
from pytest_pgleak.views import Ending

OPEN = finding("connection-not-closed", ending=Ending.OPEN)
STILL_OPEN = finding("connection-not-closed", ending=Ending.OPEN, serial=11)
DROPPED = finding("connection-dropped", ending=Ending.DROPPED)


class Clock:
    """Time that passes by waiting only."""

    def __init__(self):
        self.now = 1000.0
        self.pauses = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    @property
    def waited(self):
        return self.now - 1000.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "Clock", clock)
    return clock


@pytest.fixture
def collections(monkeypatch):
    ran = []
    monkeypatch.setattr(module, "gc", SimpleNamespace(collect=lambda: ran.append(1)))
    return ran


def looks(*results):
    """Look after look; the last result stays."""
    number = itertools.count()

    def look():
        look.count = next(number) + 1
        return results[min(look.count, len(results)) - 1]

    return look


def test_what_is_clean_at_once_costs_one_look(clock, collections):
    look = looks(())
    assert settle(settling(look, 0.5)) == ()
    assert (look.count, clock.pauses, collections) == (1, [], [])


def test_what_cannot_heal_is_not_waited_for(clock, collections):
    look = looks((DROPPED,))
    assert settle(settling(look, 0.5)) == (DROPPED,)
    assert (look.count, clock.pauses, collections) == (1, [], [])


def test_a_late_release_is_no_finding(clock):
    look = looks((OPEN,), (OPEN,), ())
    assert settle(settling(look, 0.5)) == ()
    assert look.count == 3
    assert clock.waited < 0.01


def test_only_what_heals_goes_away(clock):
    assert settle(settling(looks((OPEN, STILL_OPEN), (STILL_OPEN,)), 0.5)) == (STILL_OPEN,)


def test_what_is_dropped_while_one_waits_is_final(clock):
    look = looks((OPEN,), (DROPPED,))
    assert settle(settling(look, 0.5)) == (DROPPED,)
    assert look.count == 2


def test_one_that_can_heal_keeps_it_waiting_for_all(clock):
    look = looks((DROPPED, OPEN), (DROPPED,))
    assert settle(settling(look, 0.5)) == (DROPPED,)


@pytest.mark.parametrize("grace", [0.0, 0.001, 0.1, 0.5])
def test_it_waits_no_longer_than_the_grace(clock, grace):
    look = looks((OPEN,))
    assert settle(settling(look, grace)) == (OPEN,)
    assert clock.waited == pytest.approx(grace)


def test_it_looks_a_bounded_number_of_times(clock):
    look = looks((OPEN,))
    assert settle(settling(look, 1e6)) == (OPEN,)
    assert look.count < 100
    assert clock.waited < 10


def test_slow_looks_take_as_much_again_and_no_more(clock):
    def look():
        clock.now += 0.2
        return (OPEN,)

    settle(settling(look, 0.5))
    assert clock.waited <= 1.4, "the first look, twice the grace, and the look that was begun in it"


def test_what_heals_while_a_busy_machine_looks_is_no_finding(clock):
    results = looks(*[(OPEN,)] * 7, ())

    def look():
        clock.now += 0.1
        return results()

    assert settle(settling(look, 0.5)) == ()


def test_the_pauses_grow_and_stay_short(clock):
    settle(settling(looks((OPEN,)), 0.5))
    assert clock.pauses[0] <= 0.001
    assert clock.pauses[:-1] == sorted(clock.pauses[:-1])
    assert max(clock.pauses) <= 0.05


def test_no_grace_is_no_wait(clock):
    look = looks((OPEN,), ())
    assert settle(settling(look, 0.0)) == (OPEN,)
    assert clock.pauses == []


def test_the_garbage_collector_runs_once_and_its_work_is_looked_at(clock, collections):
    settle(settling(looks((OPEN,)), 0.5))
    assert collections == [1]

    def look():
        return (DROPPED,) if len(collections) > 1 else (OPEN,)

    assert settle(settling(look, 0.5)) == (DROPPED,)


def test_what_only_a_cycle_holds_is_dropped(clock):
    class Cycle:
        def __init__(self, alive):
            self.myself = self
            self.alive = alive

        def __del__(self):
            self.alive.clear()

    alive = [1]
    gc.collect()
    Cycle(alive)
    assert settle(settling(lambda: (OPEN,) if alive else (DROPPED,), 0.5)) == (DROPPED,)


def test_a_clean_look_is_not_the_last_while_something_is_at_work(clock):
    busy = iter([True, True, False])
    look = looks((), (), ())
    assert settle(settling(look, 0.5, lambda: next(busy))) == ()
    assert look.count == 3
    assert clock.waited < 0.05


def test_what_it_opens_meanwhile_is_found(clock):
    assert settle(settling(looks((), (), (OPEN,)), 0.5, lambda: True)) == (OPEN,)


def test_a_task_that_never_rests_does_not_hold_up_for_long(clock):
    assert settle(settling(looks(()), 0.5, lambda: True)) == ()
    assert 0.04 <= clock.waited <= 0.06


def test_whoever_is_still_busy_after_something_has_healed_is_waited_for(clock):
    """The backend of a connection that is being opened is a finding for a moment, and then another one is lost."""
    look = looks((OPEN,), (), (DROPPED,))
    busy = iter([True, True, False])
    assert settle(settling(look, 0.5, lambda: next(busy))) == (DROPPED,)
    assert look.count == 3


def test_being_busy_does_not_outlast_the_grace(clock):
    settle(settling(looks(()), 0.01, lambda: True))
    assert clock.waited <= 0.0125
    clock.now = 1000.0
    settle(settling(looks(()), 0.0, lambda: True))
    assert clock.waited == 0.0


def test_what_is_found_at_once_waits_for_nobody(clock):
    settle(settling(looks((DROPPED,)), 0.5, lambda: True, lambda: True))
    assert clock.waited == 0.0


def test_a_connection_that_is_being_opened_is_waited_for(clock):
    opening = iter([True] * 200 + [False] * 2)
    found = settle(
        settling(lambda: (DROPPED,) if clock.waited > 0.3 else (), 0.5, lambda: False, lambda: next(opening))
    )
    assert found == (DROPPED,)


def test_the_last_look_comes_after_the_last_question(clock):
    # It is opened right after the first look, and nothing is being opened any more when that is asked.
    answers, opened = iter([True, False]), []

    def is_connecting():
        answer = next(answers)
        if not answer:
            opened.append(1)
        return answer

    assert settle(settling(lambda: (DROPPED,) if opened else (), 0.5, lambda: False, is_connecting)) == (DROPPED,)


@pytest.mark.parametrize("backend", ["asyncio"])
def test_in_an_event_loop_the_others_go_on_meanwhile(backend):
    async def main():
        is_open = True

        async def release():
            nonlocal is_open
            await anyio.sleep(0.01)
            is_open = False

        async with anyio.create_task_group() as group:
            group.start_soon(release)
            return await settle_async(settling(lambda: (OPEN,) if is_open else (), 5.0))

    assert anyio.run(main, backend=backend) == ()


def test_it_really_sleeps():
    started_at = time.monotonic()
    assert settle(settling(looks((OPEN,)), 0.05)) == (OPEN,)
    assert time.monotonic() - started_at >= 0.05
