from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import itertools
import sys
from importlib.machinery import SourceFileLoader

import pytest

from pytest_pgleak.post_import import PostImportHook, is_importable

_numbers = itertools.count(1)


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The name of a package with a resource and a submodule that can be imported, and never was."""
    name = f"pgleak_watched_{next(_numbers)}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(
        "import importlib.resources\n"
        "value = 1\n"
        "loader_while_executing = type(__loader__).__name__, type(__spec__.loader).__name__\n"
        "text_while_executing = importlib.resources.files(__name__).joinpath('data.txt').read_text()\n"
    )
    (package / "data.txt").write_text("data")
    (package / "part.py").write_text("value = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]
    assert sys.meta_path == before


@pytest.fixture
def calls():
    return []


@pytest.fixture
def watch(calls):
    hooks = []

    def watch(*names):
        hook = PostImportHook()
        hook.install()
        for each in names:
            hook.add(each, calls.append)
        hooks.append(hook)
        return hook

    yield watch
    for hook in hooks:
        hook.uninstall()


def test_a_module_that_is_imported_later(name, watch, calls):
    watch(name)
    assert calls == []
    module = importlib.import_module(name)
    assert calls == [module]
    assert module.value == 1


def test_the_module_is_complete_when_it_is_handed_over(name):
    values = []
    hook = PostImportHook()
    hook.add(name, lambda module: values.append((module.value, sys.modules[name] is module)))
    hook.install()
    try:
        importlib.import_module(name)
    finally:
        hook.uninstall()
    assert values == [(1, True)]


def test_a_module_that_was_imported_before_is_handed_over_at_once(name, watch, calls):
    module = importlib.import_module(name)
    watch(name)
    assert calls == [module]


def test_a_module_that_never_is_imported(name, watch, calls):
    watch(name, "pgleak_that_does_not_exist")
    with pytest.raises(ModuleNotFoundError, match="pgleak_that_does_not_exist"):
        importlib.import_module("pgleak_that_does_not_exist")
    assert calls == []


def test_it_happens_once(name, watch, calls):
    watch(name)
    module = importlib.import_module(name)
    importlib.import_module(name)
    importlib.reload(module)
    assert len(calls) == 1


def test_a_submodule_is_watched_by_its_full_name(name, watch, calls):
    watch(f"{name}.part")
    importlib.import_module(name)
    assert calls == []
    part = importlib.import_module(f"{name}.part")
    assert calls == [part]
    assert part.value == 2


def test_other_modules_are_none_of_its_business(name, watch, calls):
    hook = watch(name)
    assert hook.find_spec("json", None) is None
    assert hook.find_spec(f"{name}.part", None) is None
    assert calls == []


def test_the_module_keeps_its_own_loader(name, watch):
    watch(name)
    module = importlib.import_module(name)
    assert type(module.__loader__) is SourceFileLoader
    assert module.__spec__.loader is module.__loader__
    assert module.loader_while_executing == ("SourceFileLoader", "SourceFileLoader")
    assert module.__spec__.origin == module.__file__
    assert module.__loader__.get_source(name).startswith("import importlib")


def test_resources_can_be_read_during_and_after_the_import(name, watch):
    watch(name)
    module = importlib.import_module(name)
    assert module.text_while_executing == "data"
    assert importlib.resources.files(name).joinpath("data.txt").read_text() == "data"


def test_asking_whether_it_is_there_is_no_import(name, watch, calls):
    """`importlib.util.find_spec()` is how libraries ask for an optional dependency."""
    watch(name)
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader.get_source(name).startswith("import importlib")
    assert is_importable(name)
    assert calls == []
    module = importlib.import_module(name)
    assert calls == [module]


def test_an_import_that_failed_may_succeed_later(name, watch, calls, tmp_path):
    broken = tmp_path / name / "part.py"
    broken.write_text("raise ImportError('not today')\n")
    watch(f"{name}.part")
    with pytest.raises(ImportError, match="not today"):
        importlib.import_module(f"{name}.part")
    assert calls == []
    broken.write_text("value = 'at the second attempt'\n")
    importlib.invalidate_caches()
    part = importlib.import_module(f"{name}.part")
    assert calls == [part]


def test_two_hooks_see_the_same_import(name, watch, calls):
    """A run of pytest inside of a run of pytest."""
    watch(name)
    watch(name)
    module = importlib.import_module(name)
    assert calls == [module, module]
    assert type(module.__loader__) is SourceFileLoader
    assert module.__spec__.loader is module.__loader__


def test_after_uninstall_nothing_is_watched(name, watch, calls):
    hook = watch(name)
    hook.uninstall()
    hook.uninstall()
    importlib.import_module(name)
    assert calls == []


def test_uninstall_without_install():
    PostImportHook().uninstall()


def test_what_can_be_imported(name):
    assert is_importable("json")
    assert is_importable(name)
    assert name not in sys.modules
    assert not is_importable("pgleak_that_does_not_exist")
