from __future__ import annotations

import asyncio
import sysconfig
import threading
from pathlib import Path

import pytest
from builders import code

import pytest_pgleak
from pytest_pgleak.frames import Frame, capture, is_thread_ending, is_user_code, origin, user_frames

PACKAGE = Path(pytest_pgleak.__file__).parent
STDLIB = Path(sysconfig.get_paths()["stdlib"])
PURELIB = Path(sysconfig.get_paths()["purelib"])

APP = "/project/app/db.py"
CONFTEST = "/project/tests/conftest.py"
PSYCOPG = "/venv/lib/python3.12/site-packages/psycopg/connection_async.py"
STARLETTE = "/venv/lib/python3.12/site-packages/starlette/routing.py"
PYTEST = "/venv/lib/python3.12/site-packages/_pytest/python.py"
INSTALLED_APP = "/venv/lib/python3.12/site-packages/shop/db.py"
SINGLE_FILE = "/venv/lib/python3.12/site-packages/shop.py"


def at(filename, function="get_conn", lineno=14, generator=False):
    return (code(function, filename, generator), lineno)


def names(frames):
    return [(frame.filename, frame.function) for frame in frames]


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (APP, True),
        (CONFTEST, True),
        ("app/db.py", True),
        (__file__, True),
        ("C:\\project\\app\\db.py", True),
        ("<string>", False),
        ("<frozen importlib._bootstrap>", False),
        ("<stdin>", False),
        (PSYCOPG, False),
        (PYTEST, False),
        ("/usr/lib/python3/dist-packages/psycopg/cursor.py", False),
        (asyncio.__file__, False),
        (str(STDLIB / "contextlib.py"), False),
        (str(PURELIB / "fastapi" / "routing.py"), False),
        (pytest.__file__, False),
        (str(PACKAGE / "tracking.py"), False),
        (str(PACKAGE / "servers" / "start.py"), False),
    ],
)
def test_what_is_the_users_code(filename, expected):
    assert is_user_code(filename) is expected


@pytest.mark.parametrize(
    "filename",
    [str(PACKAGE) + "_demo/app.py", str(PACKAGE) + ".py", str(STDLIB) + "_project/app.py"],
)
def test_a_neighbour_whose_name_only_begins_alike_is_the_users(filename):
    assert is_user_code(filename)


def test_the_origin_is_the_innermost_frame_of_the_user():
    stack = (at(PSYCOPG, "connect"), at(APP, "get_conn", 14), at(STARLETTE, "app"), at(CONFTEST, "client"))
    assert origin(stack) == Frame(APP, 14, "get_conn")


def test_the_frames_of_the_user_leave_out_the_installed_ones_between():
    stack = (at(PSYCOPG, "connect"), at(APP), at(STARLETTE, "app"), at(CONFTEST, "client"), at(PYTEST, "call"))
    assert names(user_frames(stack)) == [(APP, "get_conn"), (CONFTEST, "client")]


def test_they_end_where_pytest_called():
    stack = (at(APP), at(PYTEST, "pytest_pyfunc_call"), at("/project/run_tests.py", "main"))
    assert names(user_frames(stack)) == [(APP, "get_conn")]


def test_they_end_where_the_client_called_the_application():
    stack = (at(APP), at(STARLETTE, "app"), at(str(PACKAGE / "asgi.py"), "call"), at(CONFTEST, "test_visit"))
    assert names(user_frames(stack)) == [(APP, "get_conn")]


def test_pytest_inside_of_the_drivers_frames_ends_nothing():
    stack = (at(PYTEST, "innermost"), at(APP), at(PYTEST, "pytest_pyfunc_call"))
    assert names(user_frames(stack)) == [(APP, "get_conn")]


def test_an_application_tested_from_its_wheel_stands_in():
    stack = (at(PSYCOPG), at(INSTALLED_APP, "shop.get"), at(STARLETTE), at(SINGLE_FILE, "run"), at(PYTEST))
    assert names(user_frames(stack)) == [(INSTALLED_APP, "shop.get"), (SINGLE_FILE, "run")]
    assert origin(stack) == Frame(INSTALLED_APP, 14, "shop.get")


GUNICORN = tuple(at(str(PURELIB / package / "worker.py")) for package in ("uvicorn_worker", "gunicorn", "hypercorn"))


@pytest.mark.parametrize(
    "stack", [(), (at(PSYCOPG), at(STARLETTE), at(PYTEST)), (at("<string>"),), (at(PSYCOPG), *GUNICORN)]
)
def test_there_may_be_no_frame_at_all(stack):
    assert origin(stack) is None
    assert user_frames(stack) == ()


@pytest.mark.parametrize(
    ("qualname", "shown"),
    [
        ("get_conn", "get_conn"),
        ("Repository.save", "Repository.save"),
        ("create_app.<locals>.get_conn", "get_conn"),
        ("create_app.<locals>.Repository.save", "Repository.save"),
        ("a.<locals>.b.<locals>.<lambda>", "<lambda>"),
        ("<module>", "<module>"),
    ],
)
def test_the_function_is_named_with_its_class(qualname, shown):
    assert origin((at(APP, qualname),)).function == shown


class Dependencies:
    def plain(self):
        return capture()

    def generator(self):
        yield capture()

    async def coroutine(self):
        return capture()

    async def async_generator(self):
        yield capture()


async def drive():
    dependencies = Dependencies()
    return await dependencies.coroutine(), await anext(dependencies.async_generator())


def test_a_generator_is_told_from_a_function():
    plain, generated = Dependencies().plain(), next(Dependencies().generator())
    awaited, async_generated = asyncio.run(drive())
    assert [origin(stack).is_generator for stack in (plain, generated, awaited, async_generated)] == [
        False,
        True,
        False,
        True,
    ]
    assert origin(generated).function == "Dependencies.generator"


def test_a_capture_begins_at_the_caller_and_can_leave_out_more():
    def inner(depth):
        return capture(depth)

    assert [own.co_name for own, _ in inner(1)[:2]] == [
        "inner",
        "test_a_capture_begins_at_the_caller_and_can_leave_out_more",
    ]
    assert inner(2)[0][0] is inner(1)[1][0]


def test_a_capture_holds_no_frame_and_is_not_endless():
    def recurse(depth):
        return capture() if depth == 0 else recurse(depth - 1)

    stack = recurse(300)
    assert 50 <= len(stack) <= 300
    assert {type(part) for entry in stack for part in entry} == {type(recurse.__code__), int}


def of_the_package(filename, source, **names):
    """Run a piece of source as if it stood in a file of the package; return its names."""
    exec(compile(source, str(PACKAGE / filename), "exec"), names)
    return names


def dying(told):
    source = "class Dying:\n    def __del__(self): told.append(is_thread_ending())"
    return of_the_package("tracking.py", source, told=told, is_thread_ending=is_thread_ending)["Dying"]


def test_what_goes_with_its_thread():
    told, local = [], threading.local()
    made = dying(told)

    def keep():
        local.value = made()

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    assert told == [True]


def test_what_the_users_code_lets_go_of():
    told = []
    value = dying(told)()
    del value
    assert told == [False]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("def settling(look): look()", True, id="a look has kept it a little longer"),
        pytest.param("def settling(look):\n    cycle.clear()", False, id="the collector finds it"),
    ],
)
def test_what_a_look_of_pgleaks_own_lets_go_of(source, expected):
    told = []
    cycle = [dying(told)()]
    look = of_the_package("checkpoints.py", "def look(): cycle.pop()", cycle=cycle)["look"]
    of_the_package("settling.py", source, cycle=cycle)["settling"](look)
    assert told == [expected]


def test_what_a_wrapper_of_pgleaks_lets_go_of():
    told = []
    cycle = [dying(told)()]
    of_the_package("asgi.py", "def call(): cycle.pop()", cycle=cycle)["call"]()
    assert told == [False]
