"""Loaded beside a suite with ``-p``: writes down how its tests ended and what the plugin found, for the outer suite.

It works the same whether the plugin is there or not.
"""

import json
import os
from pathlib import Path

import pytest


class Recorder:
    def __init__(self, root):
        self.root = root
        self.outcomes = {}
        self.found = {}
        self.when = "session"
        self.warnings = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self):
        self.when = "setup"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self):
        self.when = "call"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self):
        self.when = "teardown"

    def pytest_runtest_logreport(self, report):
        self.outcomes.setdefault(report.nodeid, {})[report.when] = report.outcome

    @pytest.hookimpl(optionalhook=True)
    def pytest_pgleak_findings(self, item, findings):
        nodeid = "" if item is None else item.nodeid
        when = "session" if item is None else self.when
        self.found.setdefault(nodeid, []).extend((when, *self.describe(finding)) for finding in findings)

    def describe(self, finding):
        place = "?"
        if finding.origin is not None:
            path = Path(finding.origin.filename)
            file = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name
            place = f"{file}::{finding.origin.function}"
        owner = "the process" if finding.owner.what in ("session", "process") else finding.owner.describe()
        return finding.kind, f"{finding.kind} {place} {owner}"

    def pytest_warning_recorded(self, warning_message, nodeid):
        # When the garbage collector runs is nobody's promise, so what it warns of cannot be compared.
        if warning_message.category.__name__ not in ("ResourceWarning", "PytestUnraisableExceptionWarning"):
            self.warnings.append((nodeid, warning_message.category.__name__))

    def pytest_unconfigure(self):
        result = {"outcomes": self.outcomes, "found": self.found, "warnings": sorted(self.warnings)}
        Path(os.environ["COMPAT_RESULT"]).write_text(json.dumps(result), encoding="utf-8")


def pytest_configure(config):
    config.pluginmanager.register(Recorder(config.rootpath))
