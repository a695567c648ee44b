"""Measure, print the table, write it down."""

from __future__ import annotations

import argparse
import sys

from benchmarks import checks, database, ledger, report, runs, scale, servers

MEASUREMENTS = {
    "check": checks.checked_tests,
    "unchecked": checks.unchecked_tests,
    "import": checks.plugin_import,
    "ledger": ledger.operations,
    "server": servers.start,
    "fresh": database.fresh,
    "long": scale.long_session,
    "backends": scale.many_backends,
    "workers": scale.workers,
}


def main() -> None:
    """Run what the command line names, or everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"only these: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--write", action="store_true", help="write results.json and docs/performance.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.name) - MEASUREMENTS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    if trouble := runs.obstacle():
        print(f"a plain user cannot run this Python, so pytest-postgresql is left out: {trouble}", file=sys.stderr)
    rows = []
    for name, measure in MEASUREMENTS.items():
        if arguments.name and name not in arguments.name:
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        for row in measure():
            print("  " + report.line(row), file=sys.stderr, flush=True)
            rows.append(row)
    print(report.table(rows))
    if arguments.write:
        report.write(rows)


if __name__ == "__main__":
    main()
