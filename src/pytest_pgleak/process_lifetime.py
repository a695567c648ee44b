"""What lives as long as the process: opened at import, or on first use, and kept in a global variable.

Whoever came first has merely triggered it. Later tests use it, too, so it is neither the leak of that test nor to be
closed after it; it is told once, at the end of the session. What a test or a fixture opens in its own code stays its
own, in a global variable or not; so does what a fixture has opened that has something in it that closes.
"""

from __future__ import annotations

import atexit
import dis
import gc
import re
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pytest_pgleak.findings import Finding
from pytest_pgleak.fixture_owners import FixtureOwners
from pytest_pgleak.frames import RawStack, is_user_code, user_frames
from pytest_pgleak.guardians import is_closing, lifespan_functions, shuts_down
from pytest_pgleak.isolation import code_of, nested_codes
from pytest_pgleak.module_globals import thread_local_near, variable_holding
from pytest_pgleak.owners import Owner
from pytest_pgleak.ownership import Ownership
from pytest_pgleak.views import View
from pytest_pgleak.xunit_style import is_xunit

if TYPE_CHECKING:
    import pytest

_SUBJECTS: Final = ("connection", "checkout", "pool")
_TRIGGERS: Final = ("call", "block", "fixture")
_STORES: Final = ("STORE_ATTR", "STORE_GLOBAL")
_ANYIOS_THREAD: Final = "AnyIO worker thread"  # runs sync endpoints and dependencies; ends with its event loop
_SETS: Final = "setattr"  # monkeypatch's, or the built-in one


class ProcessLifetime:
    """Tells what belongs to the process rather than to whoever happened to be at work.

    Args:
        ownership: Knows the owners, and which applications have run a lifespan.
        fixtures: Know the functions of fixtures.
    """

    def __init__(self, ownership: Ownership, fixtures: FixtureOwners) -> None:
        self._ownership = ownership
        self._fixtures = fixtures

    def owner_of(self, finding: Finding, view: View, item: pytest.Item | None) -> Owner | None:
        """Return the process as the owner of something that is still open, where it is a global variable's.

        Args:
            finding: About a connection, a checkout or a pool.
            view: The ledger as it was judged.
            item: The test; None where it runs in another process.
        """
        if finding.subject not in _SUBJECTS or finding.owner.what not in _TRIGGERS:
            return None
        stack = opening_stack(finding, view)
        if _went_with_a_clients_thread(finding):
            variable = thread_local_near(stack)
            return None if variable is None else self._ownership.process(variable)
        if not finding.can_heal:
            return None
        own = self._own_codes(finding, item)
        if not self._is_only_triggered(finding, stack, own):
            return None
        process = self._named(finding, stack)
        return None if process is None or _stores(own, process.variable or "") else process

    def at_the_end(self, findings: Iterable[Finding], view: View, config: pytest.Config | None) -> tuple[Finding, ...]:
        """Name the variables of what the session left, and leave out what is going to be closed yet.

        Args:
            findings: What is still there at the end of the session.
            view: The ledger as it was judged.
            config: pytest's config; None in another process.
        """
        named = []
        for finding in findings:
            if finding.owner.what == "session" and finding.subject in _SUBJECTS and finding.can_heal:
                owner = self._named(finding, opening_stack(finding, view))
                named.append(finding if owner is None else replace(finding, owner=owner))
            else:
                named.append(finding)
        if config is not None and _closes_when_unconfigured(config):
            return tuple(finding for finding in named if finding.subject not in _SUBJECTS or not finding.can_heal)
        closed = _with_a_closing_method(target for each in named if (target := target_of(each)) is not None)
        return tuple(each for each in named if id(target_of(each)) not in closed and not _closes_at_exit(each.owner))

    def _named(self, finding: Finding, stack: RawStack) -> Owner | None:
        if (target := target_of(finding)) is None:
            return None
        is_pool = finding.subject == "pool"
        variable = variable_holding(target, stack, is_pool=is_pool, is_lifespans=self._is_lifespans)
        return None if variable is None else self._ownership.process(variable)

    def _own_codes(self, finding: Finding, item: pytest.Item | None) -> set[types.CodeType]:
        """Return the code of the test or of the fixture at work, and of the test's class."""
        if finding.owner.what == "fixture":
            return self._fixtures.codes_of(finding.owner) | _class_codes(item)
        code = code_of(getattr(item, "obj", None))
        return (set() if code is None else nested_codes(code)) | _class_codes(item)

    def _is_only_triggered(self, finding: Finding, stack: RawStack, own: set[types.CodeType]) -> bool:
        frames = user_frames(stack)
        if any(frame.function == "<module>" for frame in frames):
            return True  # by an import
        closes = is_xunit(finding.owner) or self._fixtures.test_function(finding.owner, lambda each: shuts_down([each]))
        if finding.owner.what == "fixture" and finding.request is None and closes:
            return False
        origin = next((code for code, _ in stack if is_user_code(code.co_filename)), None)
        return bool(frames) and origin not in own

    def _is_lifespans(self, app: Any) -> bool:
        return self._ownership.has_run_lifespan(app) and any(
            is_user_code(code.co_filename)
            for function in lifespan_functions(app)
            if (code := code_of(function)) is not None
        )


def _went_with_a_clients_thread(finding: Finding) -> bool:
    """Tell whether the end of a test's client has ended the thread in which something was kept.

    In a server such threads live on. Whether the client is a fixture's, and ends later, makes no difference.
    """
    is_clients = finding.thread == _ANYIOS_THREAD and finding.with_thread and finding.subject == "connection"
    return is_clients and finding.transaction_status == "IDLE"


def target_of(finding: Finding) -> Any:
    """Return the connection or the pool of a finding, if it is still there."""
    facts = finding.pool.facts if finding.subject == "pool" and finding.pool is not None else finding.connection
    return None if facts is None else facts.reference()


def pool_around(finding: Finding) -> tuple[object, ...]:
    """Return the pool of a checkout: it may know whom it has lent a connection to, and cannot give it back for him."""
    if finding.subject != "checkout" or finding.pool is None:
        return ()
    facts = finding.pool.facts
    pool = facts.reference()
    return () if pool is None else (facts.library.itself(pool),)


def opening_stack(finding: Finding, view: View) -> RawStack:
    """Return the whole stack with which the thing of a finding was opened, or checked out."""
    if finding.subject == "pool":
        pool = view.pools.get(finding.serial)
        return pool.opened.stack if pool is not None and pool.opened is not None else ()
    connection = next((c for c in view.connections if c.serial == finding.serial), None)
    return connection.held.stack if connection is not None else ()


def _stores(codes: Iterable[types.CodeType], variable: str) -> bool:
    """Tell whether some code itself puts something into a variable, or into one of that name."""
    names = set(re.findall(r"\w+", variable))
    return any(
        (step.opname in _STORES and step.argval in names)
        or (
            step.opname == "LOAD_CONST"
            and isinstance(step.argval, str)
            and step.argval in names
            and _SETS in code.co_names
        )
        for code in codes
        for step in dis.get_instructions(code)
    )


def _class_codes(item: pytest.Item | None) -> set[types.CodeType]:
    """Return the code of a test class, set-up and tear-down of xunit style included."""
    classes = getattr(getattr(item, "cls", None), "__mro__", ())
    members = (getattr(each, "__func__", each) for base in classes for each in list(vars(base).values()))
    return {code for each in members if (code := getattr(each, "__code__", None)) and is_user_code(code.co_filename)}


def _closes_when_unconfigured(config: pytest.Config) -> bool:
    """Tell whether a conftest.py closes something when pytest ends, which is later than any report."""
    functions = (each.function for each in config.pluginmanager.hook.pytest_unconfigure.get_hookimpls())
    return shuts_down(each for each in functions if _is_users_function(each))


def _with_a_closing_method(targets: Iterable[Any]) -> set[int]:
    """Return the ids of those whose ``close`` is kept by somebody: ``atexit.register(pool.close)``."""
    found = list(targets)
    if not found:
        return set()
    methods = (each for each in gc.get_referrers(*found) if isinstance(each, types.MethodType))
    return {id(method.__self__) for method in methods if is_closing(method.__name__)}


def _closes_at_exit(owner: Owner) -> bool:
    """Tell whether the module of a variable works with ``atexit``, and has a function that closes."""
    values = list(vars(_module_of(owner.variable or "")).values())
    if not any(value is atexit or value is atexit.register for value in values):
        return False
    return shuts_down(value for value in values if isinstance(value, types.FunctionType))


def _module_of(variable: str) -> types.ModuleType:
    name = variable
    while name and name not in sys.modules:
        name = name.rpartition(".")[0]
    return sys.modules[name] if name else types.ModuleType("")


def _is_users_function(function: Callable[..., Any]) -> bool:
    code = code_of(function)
    return code is not None and is_user_code(code.co_filename)
