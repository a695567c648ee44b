"""--pgleak-report, GitHub's annotations and JUnit's properties, as real runs make them."""

from __future__ import annotations

import json
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest
from schemas import check_report, check_sarif

Run = Callable[..., pytest.RunResult]

CONFTEST = """
    import psycopg, pytest
    from fastapi import Depends, FastAPI

    KEPT = []

    @pytest.fixture
    def forgets(pgleak_dsn):
        KEPT.append(psycopg.connect(pgleak_dsn))

    @pytest.fixture
    def pgleak_app(pgleak_dsn):
        app = FastAPI()

        async def get_conn():
            return await psycopg.AsyncConnection.connect(pgleak_dsn)  # postgresql://ada:s3cr3t@db/shop

        @app.get("/visit/{visit}")
        async def show_visit(visit: int, conn=Depends(get_conn)):
            await conn.execute("select 1")

        return app
"""

SUITE = """
    import psycopg, psycopg_pool, pytest

    pytestmark = pytest.mark.pgleak

    def connect(dsn):
        return psycopg.connect(dsn)

    @pytest.mark.parametrize("number", range(4))
    def test_dropped(pgleak_dsn, number):
        connect(pgleak_dsn)

    async def test_request(pgleak_client):
        assert (await pgleak_client.get("/visit/7?token=s3cr3t")).status_code == 200

    def test_fixture(forgets):
        pass

    def test_nested(pgleak_dsn):
        with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=2, open=True) as pool, pool.connection():
            with pool.connection():
                pass

    def test_clean(pgleak_dsn):
        connect(pgleak_dsn).close()
"""
FOUND = {
    ("connection-dropped", "test_it.py:6 in connect", 4),
    ("connection-dropped", "conftest.py:15 in get_conn", 1),
    ("connection-not-closed", "conftest.py:8 in forgets", 1),
    ("nested-checkout", "test_it.py:20 in test_nested", 1),
}


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    """Write an inner suite and run it in a process of its own."""

    def write_and_run(source: str, *args: str, conftest: str = CONFTEST) -> pytest.RunResult:
        pytester.makeini("[pytest]\n")
        pytester.makeconftest(textwrap.dedent(conftest))
        pytester.makepyfile(test_it=textwrap.dedent(source))
        return pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}", *args
        )

    return write_and_run


def found_in(report):
    return {(bug["kind"], bug["place"].partition(", ")[0], bug["count"]) for bug in report["bugs"]}


def output_of(result: pytest.RunResult) -> str:
    return result.stdout.str() + result.stderr.str()


# Files


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_report_in_each_format(run: Run, pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    names = ["out/leaks.json", "leaks.sarif", "leaks.html"]
    result = run(SUITE, *(f"--pgleak-report={name}" for name in names), *workers)
    result.assert_outcomes(passed=3, failed=5, errors=1)
    texts = {name: (pytester.path / name).read_text(encoding="utf-8") for name in names}
    for name, text in texts.items():
        result.stdout.fnmatch_lines([f"pgleak: report written to {name}"])
        assert str(pytester.path) not in text
        assert "s3cr3t" not in text

    report = check_report(texts["out/leaks.json"])
    assert found_in(report) == FOUND
    assert report["totals"] == {"bugs": 4, "leaks": 6, "warnings": 1}
    assert (report["mode"], report["exitstatus"], report["notes"]) == ("fail", 1, [])
    assert [bug["count"] for bug in report["bugs"]] == [4, 1, 1, 1]
    assert [bug["level"] for bug in report["bugs"]] == ["fail", "fail", "fail", "warn"]
    often = report["bugs"][0]
    assert sorted(often["tests"]) == [f"test_it.py::test_dropped[{number}]" for number in range(4)]
    assert often["text"][:2] == [
        "[connection-dropped] connection opened and never closed",
        "  opened    test_it.py:6 in connect",
    ]
    by_place = {bug["origin"]["function"]: bug for bug in report["bugs"]}
    assert by_place["get_conn"]["request"] == {"method": "GET", "route": "/visit/{visit}", "status": 200}
    assert by_place["forgets"]["owner"] == "fixture 'forgets' (function scope)"

    results = check_sarif(texts["leaks.sarif"])["results"]
    assert {(each["ruleId"], each["occurrenceCount"]) for each in results} == {(kind, n) for kind, _, n in FOUND}
    assert all(place in texts["leaks.html"] for _, place, _ in FOUND)


def test_a_bug_and_its_correction(run: Run, pytester: pytest.Pytester) -> None:
    source = """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_it(pgleak_dsn):
            psycopg.connect(pgleak_dsn){}
    """
    for ending, count in (("", 1), (".close()", 0)):
        result = run(source.format(ending), "--pgleak-report=leaks.json")
        assert len(check_report((pytester.path / "leaks.json").read_text())["bugs"]) == count
        assert ("pgleak: 1 leak" in result.stdout.str()) == bool(count)


@pytest.mark.parametrize(
    ("source", "args", "mode", "status"),
    [
        ("def test_it(): pass", (), "fail", 0),
        (SUITE, ("--pgleak-mode=off", "-k", "clean or dropped"), "off", 0),
        (SUITE, ("--pgleak-mode=warn", "-k", "clean"), "warn", 0),
        (SUITE, ("-k", "nothing"), "fail", 5),
        (SUITE, ("--collect-only",), "fail", 0),
    ],
    ids=["nothing marked", "off", "clean", "no tests", "collect only"],
)
def test_the_files_are_there_when_nothing_was_found(
    run: Run, pytester: pytest.Pytester, source: str, args: tuple[str, ...], mode: str, status: int
) -> None:
    names = ["leaks.json", "leaks.sarif", "leaks.html"]
    result = run(source, *(f"--pgleak-report={name}" for name in names), *args)
    assert result.ret == status
    report = check_report((pytester.path / "leaks.json").read_text())
    assert (report["bugs"], report["mode"], report["exitstatus"]) == ([], mode, status)
    assert check_sarif((pytester.path / "leaks.sarif").read_text())["results"] == []
    result.stdout.fnmatch_lines([f"pgleak: report written to {name}" for name in names])
    assert "= pgleak" not in result.stdout.str()


def test_what_the_session_left_and_notes(run: Run, pytester: pytest.Pytester, server_dsn: str) -> None:
    conftest = f"""
        import psycopg
        AT_IMPORT = psycopg.connect({server_dsn!r})
    """
    source = """
        import psycopg, pytest

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(4))
        def test_it(pgleak_dsn, number):
            psycopg.connect(pgleak_dsn).close()
    """
    ignore = "pgleak_ignore=pool-not-closed app/*.py"
    for workers, count in (((), 1), (("-n", "2"), 2)):
        names = ["leaks.json", "leaks.sarif"]
        result = run(source, *(f"--pgleak-report={name}" for name in names), "-o", ignore, *workers, conftest=conftest)
        result.assert_outcomes(passed=4)
        report = check_report((pytester.path / "leaks.json").read_text())
        (bug,) = report["bugs"]
        assert (bug["kind"], bug["level"], bug["count"], bug["tests"]) == ("connection-not-closed", "warn", count, [])
        assert bug["owner"] == "the process (module global conftest.AT_IMPORT)"
        assert [note.partition(":")[0] for note in report["notes"]] == ["pgleak_ignore"]
        run_ = check_sarif((pytester.path / "leaks.sarif").read_text())
        assert len(run_["results"]) == len(run_["invocations"][0]["toolExecutionNotifications"]) == 1


def test_a_worker_that_crashed(run: Run, pytester: pytest.Pytester) -> None:
    source = """
        import os, time, psycopg, pytest

        pytestmark = pytest.mark.pgleak

        @pytest.mark.parametrize("number", range(6))
        def test_dropped(pgleak_dsn, number):
            psycopg.connect(pgleak_dsn)

        def test_crash(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
            time.sleep(1)
            os._exit(3)
    """
    run(source, "-n", "2", "--pgleak-report=leaks.json").stdout.fnmatch_lines(["*node down*"])
    report = check_report((pytester.path / "leaks.json").read_text())
    assert found_in(report) == {("connection-dropped", "test_it.py:7 in test_dropped", 6)}
    assert report["bugs"][0]["text"]


def test_an_interrupted_run_says_so(run: Run, pytester: pytest.Pytester) -> None:
    source = """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_it(pgleak_dsn):
            psycopg.connect(pgleak_dsn)

        def test_interrupted():
            raise KeyboardInterrupt
    """
    run(source, "--pgleak-report=leaks.json", "--pgleak-report=leaks.sarif")
    report = check_report((pytester.path / "leaks.json").read_text())
    assert (len(report["bugs"]), report["exitstatus"]) == (1, 2)
    assert not check_sarif((pytester.path / "leaks.sarif").read_text())["invocations"][0]["executionSuccessful"]


def test_from_another_directory_in_a_larger_repository(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = pytester.path
    (repository / ".git").mkdir()
    backend = pytester.mkdir("backend")
    (backend / "here").mkdir()
    monkeypatch.setattr(pytester, "_path", backend)
    monkeypatch.chdir(backend / "here")
    run(SUITE, str(backend), "-k", "dropped", "--pgleak-report=leaks.json", "--pgleak-report=../leaks.sarif")
    report = check_report((backend / "here" / "leaks.json").read_text())
    assert report["bugs"][0]["origin"]["file"] == "test_it.py"
    location = check_sarif((backend / "leaks.sarif").read_text())["results"][0]["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "backend/test_it.py"


def test_code_outside_of_the_root_directory(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path.parent / "elsewhere.py").write_text(
        "import psycopg\ndef connect(dsn):\n    return psycopg.connect(dsn)\n"
    )
    source = """
        import sys; sys.path.insert(0, "..")
        import pytest
        from elsewhere import connect

        @pytest.mark.pgleak
        def test_it(pgleak_dsn):
            connect(pgleak_dsn)
    """
    names = ["leaks.json", "leaks.sarif", "leaks.html"]
    run(source, *(f"--pgleak-report={name}" for name in names)).assert_outcomes(failed=1)
    (bug,) = check_report((pytester.path / "leaks.json").read_text())["bugs"]
    assert bug["place"] == "../elsewhere.py:3 in connect"
    assert bug["text"][1] == "  opened    ../elsewhere.py:3 in connect"
    (result,) = check_sarif((pytester.path / "leaks.sarif").read_text())["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "test_it.py"
    assert not [name for name in names if str(pytester.path.parent) in (pytester.path / name).read_text()]


# Bad input


@pytest.mark.parametrize(
    ("path", "expected", "workers"),
    [
        ("leaks.xml", "expected a file that ends in .json, .sarif or .html", ()),
        ("leaks.xml", "expected a file that ends in .json, .sarif or .html", ("-n", "2")),
        ("taken.json", "it cannot be written: it is a directory; give the path of a file that can", ()),
        ("conftest.py/leaks.json", "it cannot be written: conftest.py is no directory; give the path of a file", ()),
    ],
)
def test_a_path_that_cannot_be_meant(
    run: Run, pytester: pytest.Pytester, path: str, expected: str, workers: tuple[str, ...]
) -> None:
    pytester.mkdir("taken.json")
    result = run(SUITE, f"--pgleak-report={path}", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = output_of(result)
    assert text.count(f"--pgleak-report={path}: {expected}") == 1
    assert "Traceback" not in text


def test_html_without_jinja2(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(hides_jinja2="import sys; sys.modules['jinja2'] = None")
    result = run(SUITE, "-p", "hides_jinja2", "--pgleak-report=leaks.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert '--pgleak-report=leaks.html: HTML needs Jinja2: pip install "pytest-pgleak[html]"' in output_of(result)
    assert "Traceback" not in output_of(result)
    result = run(SUITE, "-p", "hides_jinja2", "--pgleak-report=leaks.json", "-k", "clean")
    result.assert_outcomes(passed=1, deselected=7)


def test_what_cannot_be_written_in_the_end_fails_nothing(run: Run, pytester: pytest.Pytester) -> None:
    source = """
        import pathlib

        def test_it():
            pathlib.Path("leaks.json").mkdir()
    """
    result = run(source, "--pgleak-report=leaks.json", "--pgleak-report=leaks.sarif", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["pgleak: --pgleak-report=leaks.json: it could not be written: Is a directory"])
    assert (pytester.path / "leaks.sarif").exists()
    # As pytest's junitxml: with -q only the trouble is told.
    assert "report written to" not in result.stdout.str()


# GitHub


def annotations_of(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("::")]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_annotations(run: Run, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    shown = annotations_of(run(SUITE, *workers))
    assert len(shown) == 4
    assert shown[0].startswith(
        "::error file=test_it.py,line=6,title=pgleak%3A connection-dropped::"
        "[connection-dropped] connection opened and never closed%0A  opened    test_it.py:6 in connect%0A"
    )
    assert "Found 4 times, first in test_it.py::test_dropped[" in shown[0]
    assert shown[-1].startswith("::warning file=test_it.py,line=20,title=pgleak%3A nested-checkout::")


def test_no_annotations_if_nothing_was_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run(SUITE, "-k", "clean", "--pgleak-report=leaks.json")
    assert annotations_of(result) == []
    assert "annotations" not in result.stdout.str().partition("collected")[2]


@pytest.mark.parametrize("value", [None, "false"])
def test_no_annotations_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value:
        monkeypatch.setenv("GITHUB_ACTIONS", value)
    result = run(SUITE, "-k", "dropped")
    result.assert_outcomes(failed=4, deselected=4)
    assert annotations_of(result) == []


def test_as_many_annotations_as_github_keeps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    connects = "\n".join("    psycopg.connect(dsn)" for _ in range(12))
    source = (
        f"import psycopg, pytest\n@pytest.mark.pgleak\ndef test_it(pgleak_dsn):\n    dsn = pgleak_dsn\n{connects}\n"
    )
    result = run(source)
    assert len(annotations_of(result)) == 10
    result.stdout.fnmatch_lines(["pgleak: 2 more bugs have no annotation: GitHub keeps 10 errors and 10 warnings of *"])


# JUnit

JUNIT = """
    import psycopg, pytest

    pytestmark = pytest.mark.pgleak

    @pytest.fixture(autouse=True)
    def ticket(record_property):
        record_property("ticket", "SHOP-7")

    @pytest.fixture
    def breaks(pgleak_dsn):
        psycopg.connect(pgleak_dsn)
        raise LookupError

    def test_call(pgleak_dsn):
        for _ in range(2):
            psycopg.connect(pgleak_dsn)

    def test_teardown(forgets, record_property):
        record_property("pgleak.own", "mine")

    def test_both(forgets, pgleak_dsn):
        psycopg.connect(pgleak_dsn)

    def test_setup(breaks):
        pass

    def test_clean(pgleak_dsn):
        psycopg.connect(pgleak_dsn).close()
"""


@pytest.mark.parametrize(
    ("workers", "mode"), [((), "fail"), (("-n", "2"), "fail"), ((), "warn")], ids=["one process", "two workers", "warn"]
)
def test_junit(run: Run, pytester: pytest.Pytester, workers: tuple[str, ...], mode: str) -> None:
    run(JUNIT, "--junit-xml=junit.xml", f"--pgleak-mode={mode}", *workers)
    cases: dict[str, list[list[tuple[str, str]]]] = {}
    for case in ET.parse(pytester.path / "junit.xml").iter("testcase"):
        properties = [(each.attrib["name"], each.attrib["value"]) for each in case.iter("property")]
        cases.setdefault(case.attrib["name"], []).append(properties)
    ticket = ("ticket", "SHOP-7")
    forgets = ("pgleak.connection-not-closed", "conftest.py:8 in forgets")
    both = ("pgleak.connection-dropped", "test_it.py:22 in test_both")
    assert cases == {
        "test_call": [[ticket, ("pgleak.connection-dropped", "test_it.py:16 in test_call")]],
        "test_teardown": [[ticket, ("pgleak.own", "mine"), forgets]],
        # Where call and teardown fail, pytest's junitxml writes two testcases.
        "test_both": [[ticket, both], [ticket, forgets]] if mode == "fail" else [[ticket, both, forgets]],
        "test_setup": [[ticket, ("pgleak.connection-dropped", "test_it.py:11 in breaks")]],
        "test_clean": [[ticket]],
    }


def test_the_users_own_properties_are_left_alone(run: Run) -> None:
    conftest = """
        import pytest

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            assert item.user_properties == []
            return report
    """
    source = """
        import psycopg, pytest

        @pytest.mark.pgleak
        def test_it(pgleak_dsn, request):
            psycopg.connect(pgleak_dsn)
    """
    result = run(source, conftest=conftest)
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in output_of(result)


def test_reports_do_not_need_the_terminal(run: Run, pytester: pytest.Pytester) -> None:
    run(SUITE, "-k", "dropped", "-p", "no:terminal", "--pgleak-report=leaks.json")
    assert json.loads((pytester.path / "leaks.json").read_text())["totals"]["leaks"] == 4
