"""Run the demo as it runs in production: `python -m demo_app.run_live`, from the directory that holds `demo_app`.

The correct applications, served by two workers of uvicorn, must pass. The leaky ones must fail with the same findings
as in process: of the same kinds, from the same lines, in the same requests. The exit status is 0 if both is so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent


def run(module: str, *arguments: str, workers: int = 1) -> int:
    """Run the tests of one module in a process of its own and return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-c", str(DEMO / "pytest.ini"), *arguments]
    environment = {**os.environ, "DEMO_WORKERS": str(workers)}
    command.append(str(DEMO / "tests" / f"{module}.py"))
    return subprocess.run(command, check=False, env=environment).returncode  # noqa: S603 (nobody's input)


def found_in(report: Path) -> dict[str, dict[str, Any]]:
    """Return the bugs of a JSON report by the lines that they come from, each with what both runs must agree on."""
    bugs = json.loads(report.read_text(encoding="utf-8"))["bugs"]
    return {
        bug["place"]: {name: bug[name] for name in ("kind", "origin", "ended_at", "owner", "request")} for bug in bugs
    }


def compare(in_process: dict[str, dict[str, Any]], live: dict[str, dict[str, Any]]) -> bool:
    """Print what was found in process beside what was found in the worker; return whether it is the same."""
    places = sorted({*in_process, *live})
    width = max(map(len, places))
    print(f"\n{'line':{width}}  {'in process':24}served")
    for place in places:
        kinds = [found[place]["kind"] if place in found else "-" for found in (in_process, live)]
        remark = "" if in_process.get(place) == live.get(place) else f"  ← {in_process.get(place)} {live.get(place)}"
        print(f"{place:{width}}  {kinds[0]:24}{kinds[1]}{remark}")
    return in_process == live


def main() -> int:
    """Run both halves and return the exit status."""
    print("The correct applications, served by two workers of uvicorn: all of these pass.\n", flush=True)
    passed = run("test_live_correct", workers=2) == 0
    print("\nThe leaky applications: all of these fail, in process and served.\n", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        reports = [Path(directory) / "in_process.json", Path(directory) / "live.json"]
        for module, report in zip(("test_leaky", "test_live_leaky"), reports, strict=True):
            run(module, "-q", "-rN", "--tb=no", "--show-capture=no", f"--pgleak-report={report}")
        in_process, live = (found_in(report) for report in reports)
    same = compare(_as_served(in_process), live)
    if not passed:
        print("\nA correct application was accused, or does not work: see the first half.")
    if not same:
        print("\nWhat was found in the worker is not what was found in process.")
    if passed and same:
        print(
            f"\nAs expected: nothing in the correct applications, {len(live)} leaks in the leaky ones, served or not."
        )
    return 0 if passed and same else 1


def _as_served(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Take out the one thing that differs by nature: which fixture has run the application's lifespan."""
    for bug in found.values():
        if bug["owner"] is not None:
            bug["owner"] = bug["owner"].partition(" run by ")[0]
    return found


if __name__ == "__main__":
    sys.exit(main())
