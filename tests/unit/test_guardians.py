from __future__ import annotations

import contextlib
import functools
import sys

import pytest

from pytest_pgleak.guardians import is_held, opened_inside, shuts_down


class Target:
    """What is looked for."""


class Holder:
    def __init__(self, held=None):
        self.held = held

    def close(self):
        self.held = None


def suspended(target):
    def generate():
        local = [target]
        yield local

    generator = generate()
    next(generator)
    return generator


def closing_over(target):
    def close():
        return target

    return close


def stack_of(target):
    stack = contextlib.ExitStack()
    stack.callback(print, target)
    return stack


HOLDERS = {
    "itself": lambda target: target,
    "list": lambda target: [target],
    "dict": lambda target: {"conn": target},
    "attribute": Holder,
    "attributes as a dictionary": lambda target: vars(Holder(Holder(target))),
    "bound method": lambda target: Holder(target).close,
    "partial": lambda target: functools.partial(print, target),
    "closure": closing_over,
    "suspended generator": suspended,
    "exit stack": stack_of,
    "deep": lambda target: [{"a": (Holder([Holder(target)]),)}],
}


@pytest.mark.parametrize("name", HOLDERS)
def test_held(name):
    target = Target()
    assert is_held(target, [HOLDERS[name](target)])
    assert not is_held(Target(), [HOLDERS[name](target)])


def named(target):
    yield target


def test_a_variable_of_the_function_itself_may_be_left_out():
    target = Target()
    generator = named(target)
    next(generator)
    assert is_held(target, [generator])
    assert not is_held(target, [functools.partial(print, generator)], not_in=named.__code__)
    assert is_held(target, [generator, [target]], not_in=named.__code__)
    assert is_held(target, [suspended(target)], not_in=suspended.__code__)


def test_modules_and_globals_hold_nothing():
    target = Target()
    sys.modules[__name__].GLOBAL = target
    try:
        assert not is_held(target, [sys.modules[__name__], test_held, Target])
    finally:
        del sys.modules[__name__].GLOBAL


def test_frameworks_are_closed_books(request):
    target = Target()
    request.node.somewhere = target
    assert not is_held(target, [request.node, request])


def factory(target):
    def connect():
        return [(sys._getframe().f_code, 1)]

    yield connect


def test_opened_inside():
    connect = next(factory(None))
    assert opened_inside(tuple(connect()), factory)
    assert not opened_inside(tuple(connect()), suspended)
    assert not opened_inside(((factory.__code__, 1),), factory), "the fixture's own line is its set-up"


def test_shuts_down():
    def closes(pool):
        yield
        pool.close()

    def does_not(pool):
        yield pool

    assert shuts_down([does_not, closes])
    assert not shuts_down([does_not, print])
