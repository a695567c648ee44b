"""What the files say of given bugs. Whether real runs make valid ones is tests/test_reports.py's question."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser

import pytest
from schemas import ROOT, check_report, check_sarif

from pytest_pgleak.kinds import KINDS
from pytest_pgleak.reporting import Reported
from pytest_pgleak.reports import html_report, json_report, sarif_report
from pytest_pgleak.reports.bugs import bugs_of
from pytest_pgleak.reports.report import DOCUMENTATION, Report, SourceTree

NODEID = "tests/test_a.py::test_it"


@pytest.fixture
def tree(tmp_path):
    for name in ("app/my db.py", "app/db.py", "tests/test_a.py"):
        (tmp_path / "backend" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "backend" / name).write_text("")
    (tmp_path / "outside.py").write_text("")
    return SourceTree(tmp_path / "backend", tmp_path)


def entry(lineno=14, *, kind="connection-dropped", file="app/db.py", function="get_conn", nodeid=NODEID, **more):
    at = {"file": file, "lineno": lineno, "function": function} if file else {}
    facts = {"detail": (f"[{kind}] …",), "fix": "close it", "fails": True, **at, **more}
    return Reported(kind, f"{file}:{lineno} in {function}", nodeid, **facts)


def report(tree, *entries, notes=(), mode="fail", exitstatus=1):
    return Report(bugs_of(entries), list(notes), mode, exitstatus, tree)


def sarif(tree, *entries, **more):
    return check_sarif(sarif_report.render(report(tree, *entries, **more)))


def fingerprints(tree, *entries):
    return [each["partialFingerprints"]["pgleakKindFileFunction/v1"] for each in sarif(tree, *entries)["results"]]


# JSON


def test_a_bug_in_json(tree):
    end = {"ended_file": "app/api.py", "ended_lineno": 3, "ended_function": "add"}
    request = {"method": "GET", "route": "/visit/", "status": 200}
    both = [entry(owner="fixture 'db' (module scope)", **end, **request) for _ in range(2)]
    found = check_report(json_report.render(report(tree, *both, entry(fails=False), notes=["Look."])))
    assert found["totals"] == {"bugs": 2, "leaks": 2, "warnings": 1}
    assert found["notes"] == ["Look."]
    assert found["bugs"][0] == {
        "kind": "connection-dropped",
        "level": "fail",
        "headline": "connection opened and never closed",
        "place": "app/db.py:14 in get_conn, ended at app/api.py:3 in add",
        "origin": {"file": "app/db.py", "line": 14, "function": "get_conn"},
        "ended_at": {"file": "app/api.py", "line": 3, "function": "add"},
        "owner": "fixture 'db' (module scope)",
        "count": 2,
        "tests": [NODEID],
        "request": request,
        "text": ["[connection-dropped] …"],
        "fix": "close it",
        "allow": '@pytest.mark.pgleak(allow=["connection-dropped"])',
    }
    assert found["bugs"][1]["level"] == "warn"


def test_what_is_not_known_is_null_in_json(tree):
    (bug,) = check_report(json_report.render(report(tree, entry(file="", nodeid=""))))["bugs"]
    assert (bug["origin"], bug["ended_at"], bug["owner"], bug["request"], bug["tests"]) == (None, None, None, None, [])


def test_nothing_found_in_json(tree):
    found = check_report(json_report.render(report(tree, mode="off", exitstatus=5)))
    assert (found["bugs"], found["mode"], found["exitstatus"]) == ([], "off", 5)


# SARIF


def test_the_rules_are_the_kinds(tree):
    rules = sarif(tree)["tool"]["driver"]["rules"]
    assert {rule["id"]: rule["defaultConfiguration"]["level"] for rule in rules} == {
        code: "warning" if kind.level == "warn" else "error" for code, kind in KINDS.items()
    }
    assert rules[0]["name"] == "ConnectionNotClosed"
    assert all(f"docs/kinds/{rule['id']}.md" in rule["help"]["text"] for rule in rules)


def test_the_documentation_is_where_the_package_says():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls["Documentation"] == DOCUMENTATION


def test_a_bug_in_sarif(tree):
    (result,) = sarif(tree, entry(), entry())["results"]
    assert (result["ruleId"], result["level"], result["occurrenceCount"]) == ("connection-dropped", "error", 2)
    assert result["message"]["text"] == (
        f"Connection opened and never closed. Found 2 times, in {NODEID}. To fix it, close it."
    )
    assert result["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "backend/app/db.py", "uriBaseId": "%SRCROOT%"},
                "region": {"startLine": 14},
            },
            "logicalLocations": [{"name": "get_conn", "kind": "function"}],
        }
    ]
    assert result["properties"] == {"tests": [NODEID]}


def test_a_warning_in_sarif(tree):
    assert sarif(tree, entry(fails=False))["results"][0]["level"] == "warning"


def test_a_uri_is_escaped(tree):
    (result,) = sarif(tree, entry(file="app/my db.py"))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "backend/app/my%20db.py"


def test_braces_are_no_arguments(tree):
    (result,) = sarif(tree, entry(nodeid="tests/test_a.py::test_it[{0}]"))["results"]
    assert "test_it[{{0}}]" in result["message"]["text"]


def test_the_line_that_ended_it(tree):
    end = {"ended_file": "tests/test_a.py", "ended_lineno": 3, "ended_function": "add"}
    (related,) = sarif(tree, entry(**end))["results"][0]["relatedLocations"]
    assert related["physicalLocation"]["region"] == {"startLine": 3}


@pytest.mark.parametrize("file", ["", "site-packages/app.py", "../../outside.py"])
def test_the_test_stands_in_for_code_that_is_elsewhere(tree, file):
    (location,) = sarif(tree, entry(file=file))["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "backend/tests/test_a.py"


def test_what_has_no_place_is_a_notification(tree):
    run = sarif(tree, entry(file="", nodeid=""), entry(), notes=["Look."], exitstatus=2)
    assert len(run["results"]) == 1
    (invocation,) = run["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 2)
    lost, note = invocation["toolExecutionNotifications"]
    assert (lost["level"], lost["associatedRule"]["id"]) == ("error", "connection-dropped")
    assert (note["level"], note["message"]["text"]) == ("note", "Look.")


def test_fingerprints_do_not_know_the_line(tree):
    assert fingerprints(tree, entry(14)) == fingerprints(tree, entry(99))


@pytest.mark.parametrize(
    "other", [{"kind": "pool-not-closed"}, {"file": "app/my db.py"}, {"function": "other"}, {"file": ""}]
)
def test_fingerprints_know_kind_file_and_function(tree, other):
    assert fingerprints(tree, entry()) != fingerprints(tree, entry(**other))


def test_bugs_of_one_function_have_fingerprints_of_their_own(tree):
    two = [entry(14), entry(20), entry(20)]
    often, once = fingerprints(tree, *two)
    assert {often.rpartition(":")[2], once.rpartition(":")[2]} == {"1", "2"}
    # Whichever is more frequent, the upper one is the first.
    assert fingerprints(tree, *two, entry(14), entry(14)) == [once, often]


# HTML


class Page(HTMLParser):
    """The texts of a page by tag, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self._open = {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def text(self, tag):
        return " ".join(" ".join(self.texts.get(tag, [])).split())


def page(tree, *entries, **more):
    return Page(html_report.render(report(tree, *entries, **more)))


def test_a_page(tree):
    shown = page(tree, entry(), entry(), entry(20, fails=False), notes=["Look."])
    assert "2 leaks and 1 warning from 2 lines of code." in shown.text("p")
    assert shown.text("code").startswith("app/db.py:14 in get_conn app/db.py:20 in get_conn")
    assert shown.text("pre") == "[connection-dropped] … [connection-dropped] …"
    assert "Look." in shown.text("li")


def test_a_page_loads_nothing(tree):
    tags = page(tree, entry(), notes=["Look."]).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert all(value.startswith("#") for _, attrs in tags for name, value in attrs.items() if name in ("href", "src"))
    assert "url(" not in html_report.render(report(tree, entry()))


def test_everything_in_a_page_is_escaped(tree):
    evil = "<script>alert('&')</script>"
    more = {"owner": evil, "detail": (evil,), "function": evil, "nodeid": f"tests/test_a.py::test[{evil}]"}
    shown = page(tree, entry(**more), notes=[evil])
    assert "script" not in {tag for tag, _ in shown.tags}
    assert evil in shown.text("pre")
    assert evil in shown.text("code")
    assert evil in shown.text("li")


@pytest.mark.parametrize(("mode", "expected"), [("fail", "Nothing was found."), ("off", "pgleak was off in this run")])
def test_an_empty_page(tree, mode, expected):
    assert expected in page(tree, mode=mode).text("p")


# Where files are


def test_the_repository_is_where_git_is(tmp_path):
    (tmp_path / "repository" / "backend").mkdir(parents=True)
    (tmp_path / "repository" / ".git").write_text("gitdir: …")  # a worktree
    root = tmp_path / "repository" / "backend"
    assert SourceTree.of(root, {"GITHUB_WORKSPACE": str(tmp_path)}).top == tmp_path / "repository"


def test_else_it_is_githubs_workspace(tmp_path):
    root = tmp_path / "backend"
    assert SourceTree.of(root, {"GITHUB_WORKSPACE": str(tmp_path)}).top == tmp_path
    assert SourceTree.of(root, {"GITHUB_WORKSPACE": "/nowhere"}).top == root
    assert SourceTree.of(root, {}).top == root


def test_paths_of_the_repository(tree):
    assert tree.path("app/db.py") == "backend/app/db.py"
    inner = SourceTree(tree.root, tree.root)
    assert [inner.path(file) for file in ("", "app", "app/none.py", "../outside.py")] == [None] * 4
    assert tree.path("../outside.py") == "outside.py"


def test_no_report_has_a_time_or_a_machine_in_it(tree):
    for render in (json_report.render, sarif_report.render, html_report.render):
        text = render(report(tree, entry()))
        assert not re.search(r"\b20\d\d-\d\d", text)
        assert str(tree.top) not in text
        assert text == render(report(tree, entry()))
