"""The documentation names what is there, and what it links to is there. The pasted output is `docs/examples.py`'s."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from pytest_pgleak import fixtures, hookspecs, options
from pytest_pgleak.kinds import KINDS
from pytest_pgleak.reports.json_report import SCHEMA
from pytest_pgleak.settings import MARKER_KEYWORDS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "pytest_pgleak"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

FIXTURES = [name for name in vars(fixtures) if name.startswith("pgleak")]
HOOKS = [name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("pytest_pgleak_")]
INI = [name for name, _, _ in options.INI]
COMMAND_LINE = sorted(set(re.findall(r'"(--pgleak-[a-z-]+)"', inspect.getsource(options))))
MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "supervisor_main.py")
)


def without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_there_is_something_to_document():
    assert FIXTURES
    assert HOOKS
    assert COMMAND_LINE


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.code)
def test_each_kind_has_a_page_that_starts_as_its_failure_does(kind):
    page = (ROOT / "docs" / "kinds" / f"{kind.code}.md").read_text(encoding="utf-8")
    title = f"[{kind.code}] {kind.headline}"
    assert page.splitlines()[0] == f"# {title}"
    # … and shows a real failure of that kind.
    assert re.search(rf"^```text\n{re.escape(title)}( \(\d+ times\))?$", page, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.code)
def test_the_index_of_kinds_is_complete(kind):
    index = (ROOT / "docs" / "kinds" / "README.md").read_text(encoding="utf-8")
    assert f"| [`[{kind.code}] {kind.headline}`]({kind.code}.md) | {kind.level} |" in index


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.code)
def test_the_readme_tells_the_level_of_each_kind(kind):
    row = rf"^\| \[`{kind.code}`\]\(docs/kinds/{kind.code}\.md\) \|.*\| {kind.level} \|$"
    assert re.search(row, README, re.MULTILINE)


@pytest.mark.parametrize("name", [*FIXTURES, *INI, *COMMAND_LINE, *MARKER_KEYWORDS])
def test_the_readme_has_it_in_a_table(name):
    assert re.search(rf"^\|.*`{re.escape(name)}`", README, re.MULTILINE)


@pytest.mark.parametrize("name", HOOKS)
def test_the_readme_has_each_hook_with_its_arguments(name):
    arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
    assert f"| `{name}({arguments})` |" in README


def fields_of(schema):
    """The names of all fields that a JSON Schema describes."""
    if not isinstance(schema, dict):
        return set()
    return {*schema.get("properties", {})}.union(*map(fields_of, schema.values()))


def test_the_page_on_reports_has_each_field():
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    fields = fields_of(schema)
    assert {"schema", "tests", "function", "status"} <= fields
    assert {name for name in fields if not re.search(rf"^\|.*`{name}`", page, re.MULTILINE)} == set()
    assert schema["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize("name", MODULES)
def test_the_map_has_each_module(name):
    assert re.search(rf"^\|.*`{re.escape(name)}`", ARCHITECTURE, re.MULTILINE)


def test_the_pure_core_is_a_list_of_modules():
    names = re.search(r"^```pure-core\n(.*?)^```$", ARCHITECTURE, re.DOTALL | re.MULTILINE)[1].split()
    assert "find" in names
    assert [name for name in names if not (SOURCE / f"{name}.py").is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        known = anchors(file.read_text(encoding="utf-8")) if anchor and file.is_file() else set()
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in known):
            broken.append(target)
    assert broken == []
