"""Through what a global variable may hold a connection, so that it counts as one that keeps it on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import queue
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque, namedtuple

import pytest
from builders import HERE, code

from pytest_pgleak.module_globals import variable_holding


class Target:
    """What is looked for."""


class Holder:
    def __init__(self, held=None):
        self.held = held

    def close(self):
        self.held = None


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


class Proxy:
    """Answers for what it stands for, and opens that only to do so: must not be asked anything."""

    def __getattribute__(self, name):
        raise AssertionError(name)


def closing_over(target):
    def get():
        return target

    return get


def with_default(target):
    def get(cache=target):
        return cache

    return get


def with_attribute(target):
    def get():
        return get.pool

    get.pool = target
    return get


def decorated(target):
    return functools.wraps(Holder)(closing_over(target))


def cached(target, maxsize=128):
    @functools.lru_cache(maxsize)
    def get(_name):
        return target

    get("main")
    return get


def users_class(target):
    # Its module must be one of the user's own: that is looked up by name.
    return type("Database", (), {"conn": target, "__module__": "app_of_test"})


def suspended(target):
    def generate():
        local = target
        yield local

    generator = generate()
    next(generator)
    return generator


class Local(threading.local):
    conn = None


def in_thread_local(target, local):
    local.conn = target
    return local


def in_context(target):
    variable = contextvars.ContextVar("conn")
    variable.set(target)
    return variable


def in_context_of_a_task(target):
    variable = contextvars.ContextVar("conn")

    async def main():
        variable.set(target)

    asyncio.run(main())
    return variable


def in_queue(target, waiting):
    waiting.put_nowait(target)
    return waiting


def in_dead_thread(target):
    threads = [threading.Thread(target=print, args=("",)) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    return {threads[0]: target, threads[1]: Target()}


def stack_of(target):
    stack = contextlib.ExitStack()
    stack.push(target.close)
    return stack


NAMES = namedtuple("NAMES", "pool")

KEEPS = {
    "itself": (lambda target: target, ""),
    "attribute": (Holder, ".held"),
    "attribute of an attribute": (lambda target: Holder(Holder(target)), ".held.held"),
    "slot": (Slotted, ""),
    "namespace": (lambda target: types.SimpleNamespace(pool=target), ".pool"),
    "tuple": (lambda target: ("engine", target), "[1]"),
    "named tuple": (NAMES, "[0]"),
    "class": (users_class, ".conn"),
    "closure": (closing_over, ""),
    "default": (with_default, ""),
    "attribute of a function": (with_attribute, ".pool"),
    "decorated": (decorated, ""),
    "bound method": (lambda target: Holder(target).close, ".held"),
    "partial": (lambda target: functools.partial(print, target), ""),
    "lru_cache": (cached, "()"),
    "lru_cache without a limit": (lambda target: cached(target, None), "()"),
    "the only one in a dictionary": (lambda target: {"main": target, "debug": True, "other": Holder()}, "[…]"),
    "ordered dictionary": (lambda target: OrderedDict(main=target), "[…]"),
    "one for each thread": (lambda target: {threading.get_ident(): target, 1: Target()}, "[…]"),
    "one for each thread object": (lambda target: {threading.current_thread(): target, 1: Target()}, "[…]"),
    "thread-local": (lambda target: in_thread_local(target, threading.local()), ".conn"),
    "thread-local of its own class": (lambda target: in_thread_local(target, Local()), ".conn"),
    "context variable": (in_context, ".get()"),
    "queue": (lambda target: in_queue(target, queue.Queue()), "[…]"),
    "stack": (lambda target: in_queue(target, queue.LifoQueue()), "[…]"),
    "simple queue": (lambda target: in_queue(target, queue.SimpleQueue()), "[…]"),
    "queue of asyncio's": (lambda target: in_queue(target, asyncio.Queue()), "[…]"),
}

FORGETS = {
    "list": lambda target: [target],
    "set": lambda target: {target},
    "deque": lambda target: deque([target]),
    "list in an attribute": lambda target: Holder([target]),
    "list in a closure": lambda target: closing_over([target]),
    "tuple in a list": lambda target: [(target,)],
    "one of several in a dictionary": lambda target: {1: Target(), 2: target},
    "one of several objects in a dictionary": lambda target: {1: Holder(), 2: Holder(target)},
    "suspended generator": suspended,
    "dead thread": in_dead_thread,
    "list in a thread-local": lambda target: in_thread_local([target], threading.local()),
    "context variable of a task": in_context_of_a_task,
    "empty context variable": lambda target: contextvars.ContextVar("conn"),
    "weak": lambda target: weakref.WeakValueDictionary(main=target),
    "exit stack": lambda target: stack_of(Holder(target)),
    "future": lambda target: _future(target),
    "somebody else": lambda target: Holder(),
    "proxy": lambda target: Proxy(),
}


def _future(target):
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_result(target)
    loop.close()
    return future


@pytest.fixture
def module(monkeypatch, tmp_path):
    made = types.ModuleType("app_of_test")
    made.__file__ = str(tmp_path / "app_of_test.py")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.mark.parametrize("how", KEEPS)
def test_a_name_that_keeps_it(how, module):
    keep, step = KEEPS[how]
    target = Target()
    module.kept = keep(target)
    assert variable_holding(target, HERE, is_pool=False) == f"app_of_test.kept{step}"


@pytest.mark.parametrize("how", FORGETS)
def test_a_name_that_does_not(how, module):
    target = Target()
    module.kept = FORGETS[how](target)
    assert variable_holding(target, HERE, is_pool=False) is None


def test_any_number_of_pools_by_name(module):
    target = Target()
    module.pools = {"one": Target(), "two": target}
    assert variable_holding(target, HERE, is_pool=True) == "app_of_test.pools[…]"
    module.pools = {"one": [target]}
    assert variable_holding(target, HERE, is_pool=True) is None


def test_an_attribute_of_a_class_from_a_package(module):
    target = Target()
    module.threading_ = type("Thread", (), {"conn": target, "__module__": "email.mime"})
    assert variable_holding(target, HERE, is_pool=True) is None


@pytest.mark.parametrize("local", [threading.local(), Local()])
def test_what_is_local_to_another_thread(local, module):
    target = Target()
    module.kept = local
    ready, end = threading.Event(), threading.Event()

    def work():
        local.conn = target
        ready.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    assert variable_holding(target, HERE, is_pool=False) == "app_of_test.kept.conn"
    end.set()
    thread.join()
    assert variable_holding(target, HERE, is_pool=False) is None


def test_a_context_variable_inside_an_event_loop(module):
    target = Target()
    module.kept = in_context(target)

    async def main():
        return variable_holding(target, HERE, is_pool=False)

    assert asyncio.run(main()) is None


def test_an_application_that_is_installed(monkeypatch):
    target = Target()
    stack = ((code("get_pool", "/venv/lib/python3.12/site-packages/app_wheel/db.py"), 3),)
    for name, file in (("app_wheel", "db.py"), ("other_wheel", "db.py")):
        made = types.ModuleType(f"{name}.db")
        made.__file__ = f"/venv/lib/python3.12/site-packages/{name}/{file}"
        monkeypatch.setitem(sys.modules, made.__name__, made)
    sys.modules["other_wheel.db"].pool = target
    assert variable_holding(target, stack, is_pool=True) is None
    sys.modules["app_wheel.db"].pool = target
    assert variable_holding(target, stack, is_pool=True) == "app_wheel.db.pool"
    del sys.modules["app_wheel.db"].pool
    sys.modules["app_wheel.db"].Db = type("Db", (), {"pool": target, "__module__": "app_wheel.db"})
    assert variable_holding(target, stack, is_pool=True) == "app_wheel.db.Db.pool"


def test_it_looks_at_no_more_than_so_many_objects(module):
    target = Target()
    chain = target
    for _ in range(30_000):
        chain = Holder(chain)
    module.kept = chain
    assert variable_holding(target, HERE, is_pool=False) is None
    while isinstance(module.kept, Holder):  # or freeing it would recurse as deeply
        module.kept = module.kept.held
