"""Run the demo: `python -m demo_app.run_demo`, from the directory that holds `demo_app`.

The correct applications must pass. The leaky ones must fail, each with exactly the finding that
`demo_app.expected` names. The exit status is 0 if both is so, and 1 otherwise.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo_app.expected import EXPECTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_pgleak.findings import Finding

DEMO = Path(__file__).parent


class Collector:
    """A pytest plugin that remembers what pytest-pgleak found, and how each test was reported."""

    def __init__(self) -> None:
        self.found: defaultdict[str, list[str]] = defaultdict(list)
        self.reported: defaultdict[str, list[str]] = defaultdict(list)
        self.text: defaultdict[str, str] = defaultdict(str)

    def pytest_pgleak_findings(self, item: pytest.Item, findings: Sequence[Finding]) -> None:
        """Remember the kinds of one test's findings (called once per checkpoint of a test)."""
        self.found[application(item.nodeid)] += [finding.kind for finding in findings]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember how a test went: FAILED in the test itself, ERROR in its set-up or teardown."""
        name = application(report.nodeid)
        if report.failed:
            self.reported[name].append("FAILED" if report.when == "call" else "ERROR")
            self.text[name] += report.longreprtext
        elif report.when == "call":
            self.reported[name].append("passed")


def application(nodeid: str) -> str:
    """Return the name of the application that a test is parametrized with."""
    return nodeid.partition("[")[2].rstrip("]")


def run_correct() -> bool:
    """Run the correct half in a process of its own; return whether all of it passed."""
    print("The correct applications: all of these pass.\n", flush=True)
    arguments = ["-p", "no:randomly", "-c", str(DEMO / "pytest.ini"), str(DEMO / "tests" / "test_correct.py")]
    process = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False)  # noqa: S603 (nobody's input)
    return process.returncode == 0


def run_leaky() -> Collector:
    """Run the leaky half in this process, and return what was found."""
    print("\nThe leaky applications: all of these fail, each for the one line that it lacks.\n", flush=True)
    collector = Collector()
    arguments = ["-p", "no:randomly", "-c", str(DEMO / "pytest.ini"), "-rN", str(DEMO / "tests" / "test_leaky.py")]
    pytest.main(arguments, plugins=[collector])
    return collector


def compare(collector: Collector) -> bool:
    """Print what was expected beside what was found; return whether they are the same.

    The failure must also name the kind, so that a test that failed for another reason does not count.
    """
    names = sorted({*EXPECTED, *collector.found, *collector.reported})
    width = max(map(len, names))
    print(f"\n{'application':{width}}  {'expected':24}{'found':24}reported")
    same = True
    for name in names:
        expected, found = EXPECTED.get(name, ""), collector.found[name]
        right = found == [expected] and f"[{expected}]" in collector.text[name]
        same = same and right
        reported = ", ".join(collector.reported[name]) or "not run"
        remark = "" if right else "  ← differs"
        print(f"{name:{width}}  {expected or '-':24}{', '.join(found) or '-':24}{reported}{remark}")
    return same


def main() -> int:
    """Run both halves and return the exit status."""
    passed = run_correct()
    same = compare(run_leaky())
    if not passed:
        print("\nA correct application was accused, or does not work: see the first half.")
    if not same:
        print("\nWhat was found in the leaky applications is not what was expected.")
    if passed and same:
        print(f"\nAs expected: nothing in the correct applications, {len(EXPECTED)} leaks in the leaky ones.")
    return 0 if passed and same else 1


if __name__ == "__main__":
    sys.exit(main())
