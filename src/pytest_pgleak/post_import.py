"""Call back when a module has been imported, and cost nothing when it never is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class PostImportHook(MetaPathFinder):
    """Calls functions with modules, at once where they are imported already, else right after their import."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callable[[ModuleType], None]]] = {}
        self._finding: set[str] = set()

    def add(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        """Call a function with a module.

        Args:
            name: The module's full name.
            callback: The function.
        """
        if (module := sys.modules.get(name)) is not None:
            callback(module)
        else:
            self._callbacks.setdefault(name, []).append(callback)

    def install(self) -> None:
        """Start to watch."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def uninstall(self) -> None:
        """Stop to watch. Harmless when not installed."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module as the other finders do, and wrap its loader."""
        if fullname not in self._callbacks or fullname in self._finding:
            return None
        self._finding.add(fullname)
        try:
            spec = _find_elsewhere(self, fullname, path, target)
        finally:
            self._finding.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, self._imported)
        return spec

    def _imported(self, module: ModuleType) -> None:
        # Only now: finding a spec is no import, and an import may fail and be tried again.
        for callback in self._callbacks.pop(module.__name__, ()):
            callback(module)


def _find_elsewhere(
    hook: MetaPathFinder, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if finder is hook:
            continue
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is not None and (spec := find_spec(fullname, path, target)) is not None:
            return spec  # type: ignore[no-any-return]  # finders are duck-typed
    return None


class _CallingLoader(Loader):
    def __init__(self, loader: Loader, callback: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._callback = callback

    def __getattr__(self, name: str) -> object:
        # importlib.resources, pkgutil and tracebacks ask loaders for more than the two methods below.
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: nobody should ever meet this one.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._callback(module)


def is_importable(name: str) -> bool:
    """Tell whether a top-level module could be imported, without importing it."""
    return name in sys.modules or importlib.util.find_spec(name) is not None
