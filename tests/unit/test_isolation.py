from __future__ import annotations

import functools
from contextlib import asynccontextmanager, contextmanager

import pytest
from builders import code
from fastapi import FastAPI

from pytest_pgleak.isolation import finishes_prepared, is_installed, keeps_transaction, rolls_back


def calls_rollback(conn):
    yield conn
    conn.rollback()


async def awaits_rollback(conn):
    yield conn
    await conn.rollback()


def forces_rollback(conn):
    with conn.transaction(force_rollback=True):
        yield conn


def forces_rollback_among_others(conn):
    with conn.transaction(savepoint_name="s", force_rollback=True):
        yield conn


def raises_rollback(psycopg, conn):
    with conn.transaction():
        yield conn
        raise psycopg.Rollback


@contextmanager
def rollback_after(conn):
    yield conn
    conn.execute("ROLLBACK")


def uses_a_helper(conn):
    with rollback_after(conn):
        yield conn


def rolls_back_inside(conn):
    def undo():
        conn.rollback()

    yield conn
    undo()


def deep_inside(conn):
    def outer():
        def inner():
            return conn.rollback()

        return inner

    yield conn
    outer()()


@contextmanager
def decorated(conn):
    yield conn
    conn.rollback()


@asynccontextmanager
async def decorated_async(conn):
    yield conn
    await conn.rollback()


class Isolation:
    def method(self, conn):
        yield conn
        conn.rollback()


def commits(conn):
    yield conn
    conn.commit()


def only_talks_about_it(conn):
    """Hands out a connection; a rollback is left to the test."""
    yield conn


def says_so_in_a_message(conn, log):
    yield conn
    log("no rollback here")


def builds_an_application(conn):
    app = FastAPI()

    async def get_conn():
        yield conn
        await conn.rollback()

    yield app, get_conn


class CallableWithoutCode:
    def __call__(self):
        return None


@pytest.mark.parametrize(
    "function",
    [
        calls_rollback,
        awaits_rollback,
        forces_rollback,
        forces_rollback_among_others,
        raises_rollback,
        uses_a_helper,
        rolls_back_inside,
        deep_inside,
        decorated,
        decorated_async,
        Isolation().method,
        functools.partial(calls_rollback, None),
        functools.partial(functools.partial(calls_rollback), None),
    ],
)
def test_a_fixture_that_rolls_back(function):
    assert rolls_back(function)


@pytest.mark.parametrize(
    "function",
    [
        commits,
        only_talks_about_it,
        says_so_in_a_message,
        builds_an_application,
        CallableWithoutCode(),
        len,
        functools.partial(len),
    ],
)
def test_a_fixture_that_does_not(function):
    assert not rolls_back(function)


def with_file(filename):
    def function():
        return None

    function.__code__ = code("function", filename).replace(co_freevars=())
    return function


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("/project/conftest.py", False),
        ("/venv/lib/python3.12/site-packages/pytest_postgresql/factories/client.py", True),
        ("/usr/lib/python3/dist-packages/pytest_postgresql/factories/client.py", True),
    ],
)
def test_a_fixture_from_an_installed_package(filename, expected):
    function = with_file(filename)
    assert is_installed(function) is expected
    assert is_installed(functools.partial(function)) is expected


def test_what_has_no_code_is_nobodys():
    assert not is_installed(len)
    assert not is_installed(CallableWithoutCode())


def test_a_wrapper_of_a_package_around_the_users_fixture_is_the_users():
    user = with_file("/project/conftest.py")
    wrapper = with_file("/venv/lib/python3.12/site-packages/pytest_asyncio/plugin.py")
    wrapper.__wrapped__ = user
    assert not is_installed(wrapper)


def recovers_by_method(conn):
    yield
    for xid in conn.tpc_recover():
        conn.tpc_rollback(xid)


async def recovers_by_sql(conn, gid):
    yield
    await conn.execute(f"ROLLBACK  PREPARED '{gid}'")


def recover_all(conn, gids):
    for gid in gids:
        conn.tpc_commit(gid)


def recovers_by_a_helper(conn):
    yield
    recover_all(conn, [])


def only_prepares(conn):
    conn.tpc_begin("x")
    conn.tpc_prepare()
    yield
    conn.rollback()


@pytest.mark.parametrize("function", [recovers_by_method, recovers_by_sql, recovers_by_a_helper])
def test_a_fixture_that_finishes_prepared_transactions(function):
    assert finishes_prepared(function)


@pytest.mark.parametrize("function", [only_prepares, calls_rollback, len, CallableWithoutCode()])
def test_a_fixture_that_finishes_none(function):
    assert not finishes_prepared(function)


def begins_in_sql(conn):
    conn.execute("  BEGIN isolation level serializable")
    yield conn


def begins_by_name(engine):
    connection = engine.connect()
    connection.begin()
    yield connection


def opens_a_block(conn):
    with conn.transaction():
        yield conn


def only_selects(conn):
    conn.execute("select 'begin'")
    yield conn


@pytest.mark.parametrize(
    ("function", "expected"),
    [(begins_in_sql, True), (begins_by_name, True), (opens_a_block, True), (only_selects, False)],
)
def test_a_transaction_that_is_kept_on_purpose(function, expected):
    assert keeps_transaction(function) is expected
