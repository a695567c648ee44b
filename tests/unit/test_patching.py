from __future__ import annotations

import subprocess
import sys
import textwrap

import psycopg
import psycopg_pool
import pytest

from pytest_pgleak.background import Background
from pytest_pgleak.ledger import Ledger
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.patching import Patch, Patches
from pytest_pgleak.psycopg_internals import connection_patches, pool_patches
from pytest_pgleak.tasks import EventLoops
from pytest_pgleak.tracking import Tracker

CLASSES = (
    psycopg.BaseConnection,
    psycopg.Connection,
    psycopg.AsyncConnection,
    psycopg_pool.ConnectionPool,
    psycopg_pool.AsyncConnectionPool,
    psycopg_pool.NullConnectionPool,
    psycopg_pool.AsyncNullConnectionPool,
)


def tracker():
    return Tracker(Ledger().record, Ownership(Background(EventLoops())), lambda *_: None, lambda: True, print)


def attributes(classes=CLASSES):
    return {(cls, name): value for cls in classes for name, value in vars(cls).items()}


def changed(before, after):
    return {key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)}


def depth(function):
    return 0 if function is None else 1 + depth(getattr(function, "__wrapped__", None))


@pytest.fixture
def base():
    class Base:
        def close(self):
            return "base"

    return Base


@pytest.fixture
def heir(base):
    class Heir(base):
        pass

    return Heir


def twice(original):
    return lambda self: original(self) * 2


def test_on_wraps_and_off_puts_the_original_back(base):
    original = vars(base)["close"]
    patch = Patch(base, "close", twice)
    assert base().close() == "base"
    patch.on()
    assert base().close() == "basebase"
    patch.off()
    assert vars(base)["close"] is original


def test_on_and_off_any_number_of_times(base):
    original = vars(base)["close"]
    patch = Patch(base, "close", twice)
    patch.off()
    for _ in range(3):
        patch.on()
        patch.on()
        assert patch.is_on
        assert base().close() == "basebase"
        patch.off()
        patch.off()
        assert not patch.is_on
        assert vars(base)["close"] is original


def test_an_inherited_attribute_is_not_left_behind_on_the_heir(base, heir):
    patch = Patch(heir, "close", twice)
    patch.on()
    assert (heir().close(), base().close()) == ("basebase", "base")
    patch.off()
    assert "close" not in vars(heir)
    assert heir().close() == "base"


def test_a_static_method_comes_back_as_what_it_was():
    class Holder:
        @staticmethod
        def make():
            return "made"

    original = vars(Holder)["make"]
    patch = Patch(Holder, "make", lambda make: staticmethod(lambda: make() * 2))
    patch.on()
    assert Holder.make() == "mademade"
    patch.off()
    assert vars(Holder)["make"] is original


def test_an_attribute_that_is_not_there(base):
    patch = Patch(base, "shut", twice)
    with pytest.raises(AttributeError, match="shut"):
        patch.on()
    assert not patch.is_on
    patch.off()
    assert "shut" not in vars(base)


def test_a_wrap_that_fails_changes_nothing(base):
    original = vars(base)["close"]

    def broken(_original):
        raise RuntimeError("no wrapper today")

    patch = Patch(base, "close", broken)
    with pytest.raises(RuntimeError):
        patch.on()
    assert not patch.is_on
    assert vars(base)["close"] is original


def test_what_somebody_else_has_put_there_meanwhile_stays(base):
    patch = Patch(base, "close", twice)
    patch.on()
    wrapper = vars(base)["close"]

    def foreign(self):
        return "foreign " + wrapper(self)

    base.close = foreign
    patch.off()
    assert vars(base)["close"] is foreign
    assert not patch.is_on
    assert base().close() == "foreign basebase"


def test_what_somebody_else_has_taken_away_meanwhile_stays_away(base, heir):
    patch = Patch(heir, "close", twice)
    patch.on()
    del heir.close
    patch.off()
    assert "close" not in vars(heir)


def test_several_are_taken_off_in_the_reverse_order(base):
    original = vars(base)["close"]
    patches = Patches(Patch(base, "close", twice), Patch(base, "close", twice))
    patches.on()
    patches.on()
    assert base().close() == "base" * 4
    patches.off()
    patches.off()
    assert vars(base)["close"] is original


def test_where_one_cannot_be_put_on_none_is(base, heir):
    before = attributes((base, heir))
    patches = Patches(Patch(base, "close", twice), Patch(heir, "close", twice), Patch(base, "shut", twice))
    with pytest.raises(AttributeError):
        patches.on()
    assert changed(before, attributes((base, heir))) == set()


def test_a_patch_says_what_it_is(base):
    patch = Patch(base, "close", twice)
    assert repr(patch).endswith("Base.close off>")
    patch.on()
    assert repr(patch).endswith("Base.close on>")


@pytest.mark.parametrize(
    "make", [lambda: connection_patches(psycopg, tracker()), lambda: pool_patches(psycopg_pool, tracker())]
)
def test_psycopg_is_as_it_was_after_off(make):
    before = attributes()
    patches = make()
    assert changed(before, attributes()) == set(), "making patches changes nothing"
    patches.on()
    touched = changed(before, attributes())
    assert touched
    patches.on()
    wrapped = attributes()
    for key in touched:
        # The plugin that runs these tests may have put a wrapper of its own below.
        assert depth(wrapped[key]) == 1 + depth(before.get(key) or getattr(*key)), key
    patches.off()
    patches.off()
    assert changed(before, attributes()) == set()


def test_only_what_the_module_lists_is_touched():
    before = attributes()
    both = (connection_patches(psycopg, tracker()), pool_patches(psycopg_pool, tracker()))
    for patches in both:
        patches.on()
    touched = {(cls.__name__, name) for cls, name in changed(before, attributes())}
    for patches in both:
        patches.off()
    pool_methods = {"__init__", "open", "close", "_connect", "getconn", "putconn", "wait"}
    assert touched - {("BaseConnection", "_connect_gen")} == {
        ("BaseConnection", "__init__"),
        ("BaseConnection", "__del__"),
        ("Connection", "close"),
        ("AsyncConnection", "close"),
        ("Connection", "wait"),
        ("AsyncConnection", "wait"),
        *(("ConnectionPool", name) for name in pool_methods),
        *(("AsyncConnectionPool", name) for name in pool_methods),
        ("NullConnectionPool", "wait"),
        ("AsyncNullConnectionPool", "wait"),
    }


def test_a_psycopg_that_looks_different_is_left_alone():
    class BaseConnection:
        pass

    class Module:
        pass

    Module.BaseConnection = BaseConnection
    before = attributes((BaseConnection,))
    with pytest.raises(AttributeError):
        connection_patches(Module, tracker()).on()
    assert changed(before, attributes((BaseConnection,))) == set()


def test_a_pool_that_looks_different_is_left_alone():
    class ConnectionPool:
        closed = True

        def open(self):
            pass

    class Module:
        pass

    Module.ConnectionPool = Module.AsyncConnectionPool = ConnectionPool
    before = attributes((ConnectionPool,))
    with pytest.raises(AttributeError):
        pool_patches(Module, tracker()).on()
    assert changed(before, attributes((ConnectionPool,))) == set()


def test_a_whole_session_puts_everything_back(tmp_path):
    """With the plugin itself: on at the first import, off when pytest is done."""
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import psycopg, psycopg_pool, pytest

            @pytest.mark.pgleak
            def test_it():
                for cls in (psycopg.BaseConnection, psycopg_pool.ConnectionPool):
                    assert hasattr(cls.__init__, "__wrapped__")
        """)
    )
    script = textwrap.dedent("""
        import sys
        import pytest, psycopg, psycopg_pool, starlette.applications

        classes = (
            psycopg.BaseConnection, psycopg.Connection, psycopg.AsyncConnection,
            psycopg_pool.ConnectionPool, psycopg_pool.AsyncConnectionPool, starlette.applications.Starlette,
        )
        before = {(cls, name): value for cls in classes for name, value in vars(cls).items()}
        finders = list(sys.meta_path)
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "pytest_pgleak.plugin", sys.argv[1]])
        after = {(cls, name): value for cls in classes for name, value in vars(cls).items()}
        changed = [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]
        assert not changed, changed
        left = [finder for finder in sys.meta_path if type(finder).__module__.startswith("pytest_pgleak")]
        assert not left, left
        sys.exit(code)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
