"""The baseline as text: JSON with one finding a line, sorted, so that it can be read, compared and merged. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.keys import Key
from pytest_pgleak.baseline.known import Known
from pytest_pgleak.kinds import KINDS

VERSION: Final = 1
ABOUT: Final = (
    "Leaks that pytest-pgleak knows of and that fail no test. To let one fail again, remove its line."
    " To bring the file up to date, run all tests with --pgleak-baseline-update."
)

_ANEW: Final = "Repair it, or delete it and write it anew with --pgleak-baseline-update."
_FIELDS: Final = ("kind", "file", "function", "ended_in", "source")
_CONFLICT: Final = re.compile(r"^(<{7}|={7}|>{7}|\|{7})( |$)", re.MULTILINE)


class BaselineError(Exception):
    """A text that is no baseline; the message says what is wrong and what to do."""


def to_text(known: Known, made_from: Extent) -> str:
    """Write a baseline."""
    head = {"about": ABOUT, "version": VERSION, "made_from": _of_extent(made_from)}
    lines = [f"  {_json(name)}: {_json(value)}," for name, value in head.items()]
    entries = [f"    {_json(_of_entry(key, known[key]))}" for key in sorted(known, key=lambda key: key.order)]
    listed = "[\n" + ",\n".join(entries) + "\n  ]" if entries else "[]"
    return "\n".join(["{", *lines, f'  "known": {listed}', "}", ""])


def from_text(text: str) -> tuple[Known, Extent]:
    """Read a baseline.

    Returns:
        What is known, and what run it was made from. Twins, as a merge may leave them, are one.

    Raises:
        BaselineError: It is none.
    """
    if (conflict := _CONFLICT.search(text)) is not None:
        line = text.count("\n", 0, conflict.start()) + 1
        raise BaselineError(f"line {line}: a merge conflict is not resolved. Keep the findings of both sides.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"it is no JSON: {error}. {_ANEW}") from None
    if not isinstance(content, dict) or not isinstance(content.get("known"), list) or not _is_version(content):
        raise BaselineError("it is no baseline of pytest-pgleak. Give the name of another file.")
    if content["version"] > VERSION:
        raise BaselineError(
            f"it has version {content['version']}, and this pytest-pgleak reads version {VERSION} only."
            " Upgrade pytest-pgleak."
        )
    known: dict[Key, tuple[str, ...]] = {}
    for number, entry in enumerate(content["known"], 1):
        key, tests = _entry(entry, f"finding {number}")
        known[key] = tuple(sorted({*known.get(key, ()), *tests}))
    return known, _extent(content.get("made_from"))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _of_entry(key: Key, tests: tuple[str, ...]) -> dict[str, object]:
    fields = {name: text for name in _FIELDS if (text := getattr(key, name))}
    return {**fields, "tests": list(tests)} if tests else {**fields}


def _of_extent(extent: Extent) -> dict[str, object]:
    options = {name: list(values) for name, values in extent.options.items()}
    return {"args": list(extent.args), "select": extent.select, **options}


def _is_version(content: dict[str, Any]) -> bool:
    version = content.get("version")
    return isinstance(version, int) and not isinstance(version, bool) and version >= 1


def _entry(entry: object, where: str) -> tuple[Key, tuple[str, ...]]:
    if not isinstance(entry, dict):
        raise BaselineError(f"{where} is no JSON object: {_json(entry)}. {_ANEW}")
    fields = dict(entry)
    tests = _strings(fields.pop("tests", []), f"{where}: tests")
    for name, text in fields.items():
        if name not in _FIELDS or not isinstance(text, str):
            raise BaselineError(f"{where}: {_json(name)}: {_json(text)} cannot be meant. {_ANEW}")
    key = Key(**{"kind": "", **fields})
    if key.kind not in KINDS:
        raise BaselineError(
            f"{where} has the kind {_json(key.kind)}, which this pytest-pgleak does not know."
            " Upgrade pytest-pgleak, or remove the line."
        )
    if bool(key.file and key.function) is bool(key.source):
        raise BaselineError(f"{where} must have a file and a function, or else a source: {_json(entry)}. {_ANEW}")
    return key, tests


def _extent(made_from: object) -> Extent:
    if not isinstance(made_from, dict) or made_from.get("select") not in ("marked", "all"):
        raise BaselineError(f"made_from cannot be meant: {_json(made_from)}. {_ANEW}")
    options = {
        name: _strings(values, f"made_from: {name}")
        for name, values in made_from.items()
        if name not in ("args", "select")
    }
    return Extent(_strings(made_from.get("args"), "made_from: args"), made_from["select"], options)


def _strings(values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BaselineError(f"{where}: expected a list of strings, got {_json(values)}. {_ANEW}")
    return tuple(values)
