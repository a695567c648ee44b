from __future__ import annotations

import pytest

from pytest_pgleak.reporting import Reported
from pytest_pgleak.reports.junit import Properties

OWN = ("ticket", "SHOP-7")


def entry(lineno=14, kind="connection-dropped", owner=""):
    at = {"file": "app/db.py", "lineno": lineno, "function": "f"}
    return Reported(kind, f"/app/db.py:{lineno} in f", "n", True, owner, **at)


def report(when, outcome="passed"):
    return pytest.TestReport("n", ("n", 1, "n"), {}, outcome, None, when, user_properties=[OWN])


def reports(*phases):
    """The properties that each report of one test ends up with."""
    properties = Properties()
    shown = []
    for when, outcome, *entries in phases:
        one = report(when, outcome)
        properties.complete(one, entries)
        assert one.user_properties[0] == OWN
        shown.append(one.user_properties[1:])
    return shown


FOUND = ("pgleak.connection-dropped", "app/db.py:14 in f")
OTHER = ("pgleak.pool-not-closed", "app/db.py:3 in f")


def test_the_last_report_has_them_all():
    phases = [("setup", "passed"), ("call", "failed", entry()), ("teardown", "passed")]
    assert reports(*phases) == [[], [FOUND], [FOUND]]


def test_each_phase():
    other = entry(3, "pool-not-closed")
    phases = [("setup", "passed", entry()), ("call", "passed"), ("teardown", "failed", other)]
    assert reports(*phases) == [[FOUND], [FOUND], [FOUND, OTHER]]
    phases = [("setup", "failed", entry()), ("teardown", "failed", other)]
    assert reports(*phases) == [[FOUND], [FOUND, OTHER]]


def test_the_same_line_once():
    phases = [("setup", "passed"), ("call", "passed", entry(), entry()), ("teardown", "passed", entry())]
    assert reports(*phases) == [[], [FOUND], [FOUND]]


def test_two_testcases_share_nothing():
    # pytest's junitxml writes two when both fail.
    others = [entry(3, "pool-not-closed", owner) for owner in ("fixture 'a'", "fixture 'b'")]
    phases = [("setup", "passed"), ("call", "failed", entry()), ("teardown", "failed", *others)]
    assert reports(*phases) == [[], [FOUND], [OTHER]]
