"""Which checkouts wait for each other."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
from builders import CALL, FIXTURE, LIFESPAN, OTHER, code, moment, nested_checkout, stack

from pytest_pgleak.nesting import is_for_a_test, is_same_flow
from pytest_pgleak.requests import Request


class Task:
    """Stands where an asyncio task stands."""


MAIN, CHILD, SIBLING = Task(), Task(), Task()
ROOT = "/usr/lib/python3.11/asyncio/events.py"
PACKAGES = "/venv/lib/python3.11/site-packages"
OF_USER = stack(("work", "/project/app/db.py", 7), ("_run", ROOT, 80))
OF_STARLETTE = stack(
    ("endpoint", "/project/app/api.py", 7),
    ("coro", f"{PACKAGES}/starlette/middleware/base.py", 120),
    ("_run", ROOT, 80),
)
OF_ANYIO_FOR_STARLETTE = (
    *OF_STARLETTE[:2],
    (code("_run_coro", f"{PACKAGES}/anyio/_core/_tasks.py"), 3),
    OF_STARLETTE[2],
)
OF_ANYIO_FOR_USER = (OF_USER[0], (code("_run_coro", f"{PACKAGES}/anyio/_core/_tasks.py"), 3), OF_USER[1])
BELOW_A_TEST = (*OF_USER, *stack(("__call__", f"{PACKAGES}/starlette/applications.py", 100), ("run", "/x/run.py", 1)))


def request():
    one = Request(1, "GET", "/")
    one.task = weakref.ref(MAIN)
    return one


HERE = request()


def during(task=MAIN, thread="MainThread", where=OF_USER, asked=HERE):
    return moment(where=where, request=asked, task=task and weakref.ref(task), thread=thread)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (during(), during(), True),
        # The thread pool of a sync dependency, of a sync endpoint: the main task waits for them.
        (during(None, "AnyIO worker thread"), during(), True),
        (during(), during(None, "AnyIO worker thread"), True),
        (during(None, "worker 1"), during(None, "worker 2"), True),
        # What gather() starts.
        (during(CHILD), during(SIBLING), False),
        (during(), during(CHILD), False),
        (during(CHILD), during(), False),
        (during(CHILD), during(CHILD), True),
        (during(), during(CHILD, where=OF_ANYIO_FOR_USER), False),
        (during(), during(CHILD, where=BELOW_A_TEST), False),
        # What a web framework starts: it waits for that.
        (during(), during(CHILD, where=OF_STARLETTE), True),
        (during(None, "AnyIO worker thread"), during(CHILD, where=OF_STARLETTE), True),
        (during(CHILD, where=OF_STARLETTE), during(SIBLING, where=OF_ANYIO_FOR_STARLETTE), True),
        # Another request.
        (during(), during(asked=request()), False),
        (during(), during(asked=None), False),
        (during(asked=None), during(), False),
    ],
)
def test_in_a_request(first, second, expected):
    assert is_same_flow(first, second) is expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (moment(), moment(), True),
        (moment(), moment(thread="Thread-1"), False),
        (moment(thread="Thread-1"), moment(thread="Thread-1"), True),
        (moment(task=weakref.ref(MAIN)), moment(task=weakref.ref(MAIN)), True),
        (moment(task=weakref.ref(MAIN)), moment(task=weakref.ref(CHILD)), False),
        (moment(), moment(task=weakref.ref(MAIN)), False),
        # An earlier test has leaked it, a fixture or the lifespan holds it: nobody here waits for that.
        (moment(OTHER), moment(CALL), False),
        (moment(FIXTURE), moment(CALL), False),
        (moment(LIFESPAN), moment(CALL), False),
        (moment(FIXTURE), moment(FIXTURE), True),
    ],
)
def test_outside_of_a_request(first, second, expected):
    assert is_same_flow(first, second) is expected


def test_what_a_fixture_takes_is_for_a_test():
    assert is_for_a_test(moment(FIXTURE))
    assert not is_for_a_test(moment(CALL))
    assert not is_for_a_test(moment(FIXTURE, request=HERE))


def test_a_loop_makes_one_mistake():
    one = nested_checkout()
    assert one.is_like(nested_checkout(serial=12, held=13, first=moment(at=7.0), second=moment(at=8.0)))


@pytest.mark.parametrize(
    "other",
    [
        nested_checkout(pool=21),
        nested_checkout(second=moment(OTHER, at=3.0)),
        nested_checkout(second=moment(at=3.0, request=HERE)),
        nested_checkout(second=moment(at=3.0, where=OF_USER)),
        nested_checkout(first=moment(at=2.0, where=OF_USER)),
    ],
)
def test_another_line_or_request_makes_another(other):
    assert not nested_checkout().is_like(other)
    assert other.is_like(replace(other, serial=99))
