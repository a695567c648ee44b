"""The baseline: made, compared with, brought up to date. With real leaks, and a real pytest around them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_pgleak.baseline.extent import Extent
from pytest_pgleak.baseline.keys import Key
from pytest_pgleak.baseline.text import to_text

Run = Callable[..., pytest.RunResult]

APP = """
    import psycopg
    from psycopg_pool import ConnectionPool

    KEPT = []

    def get_conn(dsn):
        return psycopg.connect(dsn)

    class Repository:
        def keep(self, dsn):
            KEPT.append(psycopg.connect(dsn))
"""
TESTS = """
    import app, pytest

    def test_drops(pgleak_dsn):
        app.get_conn(pgleak_dsn)

    @pytest.mark.parametrize("number", range(3))
    def test_keeps(pgleak_dsn, number):
        app.Repository().keep(pgleak_dsn)
"""
FIXTURE = """
    import app, psycopg, pytest

    @pytest.fixture(scope="module")
    def forgets(pgleak_dsn):
        app.KEPT.append(psycopg.connect(pgleak_dsn))
        yield app.KEPT[-1]

    def test_fixture(forgets):
        pass
"""
NAME = "pgleak-baseline.json"
MESSAGE = "no longer found, remove from pgleak-baseline.json with --pgleak-baseline-update:"


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    """Run pytest on what is in the directory, all tests checked."""
    pytester.makeini(
        "[pytest]\npythonpath = .\npgleak_select = all\npgleak_grace = 0.05\n"
        "asyncio_default_fixture_loop_scope = function\nmarkers =\n  slow\n"
    )

    def run_pytest(*args: str, baseline: str = f"--pgleak-baseline={NAME}") -> pytest.RunResult:
        given = [baseline] if baseline else []
        return pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", *given, *args)

    return run_pytest


def write(pytester: pytest.Pytester, **files: str) -> None:
    for name, source in files.items():
        path = pytester.path / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")


def edit(pytester: pytest.Pytester, name: str, old: str, new: str) -> None:
    path = pytester.path / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def listed(pytester: pytest.Pytester, name: str = NAME) -> list[str]:
    """What the file lists, one string each."""
    known = json.loads((pytester.path / name).read_text(encoding="utf-8"))["known"]
    return [
        f"{entry['kind']} {entry['file']}::{entry['function']}"
        if "file" in entry
        else f"{entry['kind']} {entry['source']}"
        for entry in known
    ]


def told(result: pytest.RunResult) -> list[str]:
    """What the end of the run says, without the section's title."""
    lines: list[str] = result.stdout.lines
    start = next(
        (number for number, line in enumerate(lines) if line.startswith("=") and " pgleak" in line), len(lines)
    )
    return [line for line in lines[start + 1 :] if line and not line.startswith("=")]


def test_from_the_first_run_to_the_last_leak(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS, tests__test_fixture=FIXTURE)

    # There is none: it is made, and nothing fails.
    result = run()
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            f"pgleak: baseline {NAME} does not exist: what this run finds is written into it and fails nothing",
            f"pgleak: baseline written to {NAME}: 5 known findings from 3 lines of code. They fail no test; *",
        ]
    )
    assert listed(pytester) == [
        "connection-not-closed app.py::Repository.keep",
        "connection-dropped app.py::get_conn",
        "connection-not-closed tests/test_fixture.py::forgets",
    ]
    first = (pytester.path / NAME).read_text(encoding="utf-8")
    assert '"tests": ["tests/test_it.py::test_keeps"]}' in first

    # What is known does not fail, and is one line; it is known wherever the line has gone.
    edit(pytester, "app.py", "import psycopg\n", "import psycopg\n\n# one line\n# and another\n")
    result = run()
    result.assert_outcomes(passed=5)
    assert told(result) == [f"pgleak: 5 known findings from 3 lines of code are in {NAME}"]
    assert (pytester.path / NAME).read_text(encoding="utf-8") == first

    # More of the same is known, too. What is new fails, and is the only thing that is shown.
    edit(pytester, "tests/test_it.py", "range(3)", "range(4)")
    write(
        pytester,
        tests__test_new="""
        import app, psycopg

        def test_new(pgleak_dsn):
            app.KEPT.append(psycopg.connect(pgleak_dsn))
        """,
    )
    result = run()
    result.assert_outcomes(passed=6, failed=1)
    assert told(result)[:3] == [
        "   1 × [connection-not-closed] tests/test_new.py:5 in test_new",
        "         tests/test_new.py::test_new",
        f"pgleak: 6 known findings from 3 lines of code are in {NAME}",
    ]
    assert (pytester.path / NAME).read_text(encoding="utf-8") == first
    (pytester.path / "tests" / "test_new.py").unlink()

    # A function with another name is another function.
    edit(pytester, "app.py", "def get_conn", "def get_connection")
    edit(pytester, "tests/test_it.py", "get_conn(", "get_connection(")
    result = run()
    result.assert_outcomes(passed=5, failed=1)
    assert "[connection-dropped] app.py:11 in get_connection" in result.stdout.str()
    # … and whether the old one is gone is said when its test has passed.
    assert MESSAGE not in result.stdout.str()
    edit(pytester, "app.py", "def get_connection", "def get_conn")
    edit(pytester, "tests/test_it.py", "get_connection(", "get_conn(")

    # What is fixed is named.
    edit(pytester, "app.py", "return psycopg.connect(dsn)", "psycopg.connect(dsn).close()")
    result = run()
    result.assert_outcomes(passed=6)
    assert told(result) == [
        f"pgleak: 5 known findings from 2 lines of code are in {NAME}",
        f"pgleak: {MESSAGE}",
        "          [connection-dropped] app.py in get_conn",
    ]
    assert (pytester.path / NAME).read_text(encoding="utf-8") == first

    # Not by a part of the tests, though, and such a part removes nothing.
    result = run("-k", "test_drops")
    assert told(result) == []
    result = run("-k", "test_drops", "--pgleak-baseline-update")
    assert told(result) == [
        f"pgleak: baseline {NAME} is up to date: 3 kept",
        f"pgleak: nothing was removed from {NAME}, for this was no complete run: -k was given",
    ]
    assert (pytester.path / NAME).read_text(encoding="utf-8") == first

    # All of them do.
    result = run("--pgleak-baseline-update")
    result.assert_outcomes(passed=6)
    assert told(result) == [
        f"pgleak: baseline {NAME} updated: 0 added, 1 removed, 2 kept",
        f"pgleak: removed from {NAME}:",
        "          [connection-dropped] app.py in get_conn",
    ]
    after = (pytester.path / NAME).read_text(encoding="utf-8").splitlines()
    (gone,) = (line for line in first.splitlines() if line not in after)
    assert gone.startswith('    {"kind": "connection-dropped", "file": "app.py", "function": "get_conn"')
    edit(pytester, "app.py", "psycopg.connect(dsn).close()", "return psycopg.connect(dsn)")
    run().assert_outcomes(passed=5, failed=1)


def test_an_update_accepts_what_is_new(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS)
    (pytester.path / NAME).write_text(to_text({}, Extent((".",), "all")), encoding="utf-8")
    run().assert_outcomes(failed=4)
    result = run("--pgleak-baseline-update")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            f"pgleak: baseline {NAME} is brought up to date: what this run finds is written into it and fails nothing",
            f"pgleak: baseline {NAME} updated: 2 added, 0 removed, 0 kept",
            f"pgleak: added to {NAME}:",
            "          [[]connection-not-closed] app.py in Repository.keep",
            "          [[]connection-dropped] app.py in get_conn",
        ]
    )
    run().assert_outcomes(passed=4)


def test_it_is_made_by_an_update_too(pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(pytester, app=APP, tests__test_it=TESTS)
    # Where nobody reads the output, that is the only way.
    monkeypatch.setenv("CI", "true")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --pgleak-baseline: {NAME} does not exist. On a CI server * give --pgleak-baseline-update."]
    )
    result = run("--pgleak-baseline-update")
    result.assert_outcomes(passed=4)
    assert told(result)[0].startswith(f"pgleak: baseline written to {NAME}: 4 known findings from 2 lines of code.")
    result = run()
    result.assert_outcomes(passed=4)
    assert told(result) == [f"pgleak: 4 known findings from 2 lines of code are in {NAME}"]


def test_what_is_known_is_healed_all_the_same(pytester: pytest.Pytester, run: Run) -> None:
    write(
        pytester,
        app=APP,
        tests__test_it="""
        import app, psycopg, pytest

        @pytest.fixture(scope="session", autouse=True)
        def table(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("create table t (a int)")

        def test_1_leaks_a_lock(pgleak_dsn):
            app.Repository().keep(pgleak_dsn)
            app.KEPT[-1].execute("insert into t values (1)")

        def test_2_needs_the_table(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("set lock_timeout = '2s'")
                conn.execute("truncate t")
        """,
    )
    for _ in ("created", "compared"):
        run().assert_outcomes(passed=2)


def test_the_kinds_that_have_no_line_of_their_own(pytester: pytest.Pytester, run: Run) -> None:
    write(
        pytester,
        app=APP,
        tests__test_it="""
        import app, psycopg, pytest
        from psycopg import pq

        OTHERS = []

        def other_driver(dsn, name):
            dsn = psycopg.conninfo.make_conninfo(dsn, application_name=name)
            OTHERS.append(pq.PGconn.connect(dsn.encode()))

        @pytest.mark.parametrize("number", [1, 2])
        def test_backend(pgleak_dsn, number):
            other_driver(pgleak_dsn, f"worker-{number}")

        @pytest.mark.pgleak(max_connections=1)
        def test_too_many(pgleak_dsn):
            with psycopg.connect(pgleak_dsn), psycopg.connect(pgleak_dsn):
                pass
        """,
    )
    run().assert_outcomes(passed=3)
    assert listed(pytester) == [
        "too-many-connections test tests/test_it.py::test_too_many",
        "untracked-backend application_name 'worker-#'",
    ]
    result = run()
    assert told(result) == [f"pgleak: 3 known findings from 2 lines of code are in {NAME}"]
    edit(pytester, "tests/test_it.py", "worker-{number}", "metrics")
    result = run()
    assert "2 × [untracked-backend] pid" in result.stdout.str() or "[untracked-backend]" in result.stdout.str()


def test_writes_that_are_lost_in_one_place_and_written_in_two(pytester: pytest.Pytester, run: Run) -> None:
    write(
        pytester,
        app="""
        import psycopg

        def save(conn):
            conn.execute("create table if not exists t (a int)")
            conn.execute("insert into t values (1)")

        def careless(dsn):
            conn = psycopg.connect(dsn)
            save(conn)
            conn.close()

        def as_careless(dsn):
            conn = psycopg.connect(dsn)
            save(conn)
            conn.close()
        """,
        tests__test_it="""
        import app

        def test_one(pgleak_dsn):
            app.careless(pgleak_dsn)
        """,
    )
    run().assert_outcomes(passed=1)
    assert '"ended_in": "app.py::careless"' in (pytester.path / NAME).read_text(encoding="utf-8")
    run().assert_outcomes(passed=1)
    # The same function writes, but it is somebody else who loses it.
    edit(pytester, "tests/test_it.py", "app.careless", "app.as_careless")
    run().assert_outcomes(failed=1)


def test_levels_rules_and_the_marker_come_first(pytester: pytest.Pytester, run: Run) -> None:
    write(
        pytester,
        app=APP,
        tests__test_it=TESTS + "\n\n    pytestmark = pytest.mark.pgleak(allow='connection-dropped')\n",
    )
    run().assert_outcomes(passed=4)
    assert listed(pytester) == ["connection-not-closed app.py::Repository.keep"]
    # A kind that is off was not looked for.
    off = ("-o", "pgleak_levels=connection-not-closed = off")
    result = run(*off)
    result.assert_outcomes(passed=4)
    assert told(result) == []
    assert "1 kept" in run(*off, "--pgleak-baseline-update").stdout.str()
    assert listed(pytester) == ["connection-not-closed app.py::Repository.keep"]
    # What a rule ignores is not known any more: one of the two is enough.
    result = run("-o", "pgleak_ignore=connection-not-closed app.py::keep")
    assert told(result) == [f"pgleak: {MESSAGE}", "          [connection-not-closed] app.py in Repository.keep"]


def test_mode_warn(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS)
    run("-k", "test_keeps", "--pgleak-mode=warn").assert_outcomes(passed=3)
    assert listed(pytester) == ["connection-not-closed app.py::Repository.keep"]
    result = run("--pgleak-mode=warn")
    result.assert_outcomes(passed=4)
    assert told(result)[0] == "   1 × [connection-dropped] app.py:8 in get_conn  (warning)"
    assert told(result)[-1] == f"pgleak: 3 known findings from 1 line of code are in {NAME}"
    run().assert_outcomes(passed=3, failed=1)


def test_a_test_that_fails_by_itself(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS)
    run().assert_outcomes(passed=4)
    edit(pytester, "tests/test_it.py", "app.get_conn(pgleak_dsn)", "app.get_conn(pgleak_dsn); assert 0")
    result = run()
    result.assert_outcomes(passed=3, failed=1)
    assert "pgleak also found" not in result.stdout.str()
    assert told(result)[0] == f"pgleak: 4 known findings from 2 lines of code are in {NAME}"


def test_with_xdist(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS, tests__test_fixture=FIXTURE)
    result = run("-n2")
    result.assert_outcomes(passed=5)
    assert told(result)[0].startswith(f"pgleak: baseline written to {NAME}: 5 known findings from 3 lines of code.")
    by_workers = (pytester.path / NAME).read_text(encoding="utf-8")
    assert [path.name for path in pytester.path.glob("*.json")] == [NAME]
    assert list(pytester.path.glob(".pgleak*")) == []
    (pytester.path / NAME).unlink()
    run()
    assert (pytester.path / NAME).read_text(encoding="utf-8") == by_workers

    edit(pytester, "app.py", "return psycopg.connect(dsn)", "psycopg.connect(dsn).close()")
    write(
        pytester,
        tests__test_new="import app\ndef test_new(pgleak_dsn): app.KEPT.append(app.psycopg.connect(pgleak_dsn))\n",
    )
    result = run("-n2")
    result.assert_outcomes(passed=5, failed=1)
    assert told(result)[2:5] == [
        f"pgleak: 4 known findings from 2 lines of code are in {NAME}",
        f"pgleak: {MESSAGE}",
        "          [connection-dropped] app.py in get_conn",
    ]
    result = run("-n2", "-k", "not test_keeps", "--pgleak-baseline-update")
    assert f"pgleak: baseline {NAME} updated: 1 added, 0 removed, 3 kept" in told(result)
    result = run("-n2", "--pgleak-baseline-update")
    assert f"pgleak: baseline {NAME} updated: 0 added, 1 removed, 3 kept" in told(result)
    run("-n2").assert_outcomes(passed=6)


def test_a_crashed_worker(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS)
    run().assert_outcomes(passed=4)
    write(pytester, tests__test_crash="import os\ndef test_crash(): os._exit(7)\n")
    edit(pytester, "app.py", "return psycopg.connect(dsn)", "psycopg.connect(dsn).close()")
    for use in ((), ("--pgleak-baseline-update",)):
        result = run("-n1", *use)
        result.assert_outcomes(passed=4, failed=1)
        assert MESSAGE not in result.stdout.str()
    assert f"pgleak: nothing was removed from {NAME}, for this was no complete run: worker gw0 crashed" in told(result)
    assert "connection-dropped app.py::get_conn" in listed(pytester)


# What follows needs no server: a baseline lists leaks that are there no more, and runs may say so, or may not.

STALE = Key("connection-dropped", "app.py", "get_conn")
OF_SESSION = Key("connection-not-closed", "app.py", "<module>")
TWO = "tests/test_two.py::test_two"
PLAIN: dict[str, Any] = {
    "tests__test_one": "def test_one(): pass\n",
    "tests__test_two": "import pytest\n\n@pytest.mark.slow\ndef test_two(): pass\n\ndef test_three(): pass\n",
}


def stale(pytester: pytest.Pytester, made_from: Extent | None = None, **files: str) -> None:
    """A suite without a leak, and a baseline that lists two."""
    write(pytester, **(PLAIN | files))
    text = to_text({STALE: (TWO,), OF_SESSION: ()}, made_from or Extent(("tests",), "all"))
    (pytester.path / NAME).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("args", [(), ("tests/test_two.py", "tests", "--ff", "--maxfail=3"), ("-n1",)])
def test_a_complete_run(pytester: pytest.Pytester, run: Run, args: tuple[str, ...]) -> None:
    stale(pytester)
    result = run(*args)
    assert result.ret == 0
    assert told(result) == [f"pgleak: {MESSAGE}", f"          {OF_SESSION.describe()}", f"          {STALE.describe()}"]
    assert len(listed(pytester)) == 2
    run(*args, "--pgleak-baseline-update")
    assert listed(pytester) == []


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("-k", "test_two or test_three"), "-k was given"),
        (("-m", "slow"), "-m was given"),
        (("tests/test_two.py",), "it did not run tests"),
        (("tests/test_two.py::test_two",), "it did not run tests"),
        (("--deselect", "tests/test_one.py::test_one"), "--deselect was given"),
        (("--ignore", "tests/test_one.py"), "--ignore was given"),
        (("--ignore-glob", "*one.py"), "--ignore-glob was given"),
        (("--lf",), "--lf was given"),
        (("--stepwise",), "--stepwise was given"),
        (("--collect-only",), "--collect-only was given"),
        (("--setup-only",), "--setup-only was given"),
        (("--setup-plan",), "--setup-plan was given"),
        (("--pgleak-select=marked",), "--pgleak-select=marked"),
        (("-n1", "-k", "two"), "-k was given"),
    ],
)
def test_a_partial_run(pytester: pytest.Pytester, run: Run, args: tuple[str, ...], why: str) -> None:
    stale(pytester)
    result = run(*args, "--pgleak-baseline-update")
    assert told(result)[-1] == f"pgleak: nothing was removed from {NAME}, for this was no complete run: {why}"
    assert len(listed(pytester)) == 2


@pytest.mark.parametrize("args", [("-k", "test_two"), ("tests/test_two.py",), ("-n1", "-m", "slow")])
def test_a_partial_run_names_nothing(pytester: pytest.Pytester, run: Run, args: tuple[str, ...]) -> None:
    stale(pytester)
    assert told(run(*args)) == []


@pytest.mark.parametrize(
    ("files", "args", "why"),
    [
        ({"tests__test_zero": "def test_zero(): raise KeyboardInterrupt\n"}, (), "it was stopped"),
        ({"tests__test_x": "def test_x(): assert 0\n"}, ("-x",), "it was stopped"),
        ({"tests__test_x": "def test_x(): assert 0\n"}, ("-n1", "--maxfail=1"), "it was stopped"),
        ({"tests__test_x": "import pytest\ndef test_x(): pytest.exit('enough')\n"}, (), "it was stopped"),
        ({"tests__test_x": "1 / 0\n"}, ("--continue-on-collection-errors",), "tests/test_x.py could not be collected"),
        ({"tests__test_x": "1 / 0\n"}, (), "it was stopped"),
        ({"tests__test_x": "1 / 0\n"}, ("-n1", "--continue-on-collection-errors"), "tests/test_x.py could not be *"),
        ({"tests__test_one": "", "tests__test_two": ""}, (), "no tests were run"),
        (
            {
                "conftest": "def pytest_collection_modifyitems(config, items):\n"
                "    config.hook.pytest_deselected(items=[items.pop(0)])\n"
            },
            (),
            "1 tests were deselected",
        ),
        (
            {
                "conftest": "def pytest_collection_modifyitems(config, items):\n"
                "    config.hook.pytest_deselected(items=[items.pop(0)])\n"
            },
            ("-n1",),
            "1 tests were deselected",
        ),
    ],
)
def test_a_run_that_did_not_get_through(
    pytester: pytest.Pytester, run: Run, files: dict[str, str], args: tuple[str, ...], why: str
) -> None:
    stale(pytester, **files)
    result = run(*args, "--pgleak-baseline-update")
    result.stdout.fnmatch_lines([f"pgleak: nothing was removed from {NAME}, for this was no complete run: {why}"])
    assert len(listed(pytester)) == 2


@pytest.mark.parametrize(
    ("two", "decided"),
    [
        ("@pytest.mark.skip\ndef test_two(): pass", False),
        ("def test_two(): pytest.skip('not here')", False),
        ("def test_two(): assert 0", False),
        ("@pytest.fixture\ndef broken(): assert 0\ndef test_two(broken): pass", False),
        ("@pytest.fixture\ndef broken():\n    yield\n    assert 0\ndef test_two(broken): pass", False),
        ("@pytest.mark.parametrize('n', [1, 2])\ndef test_two(n):\n    if n == 2: pytest.skip()", False),
        ("pytest.skip(allow_module_level=True)\ndef test_two(): pass", False),
        ("@pytest.mark.xfail(run=False)\ndef test_two(): pass", False),
        ("@pytest.mark.xfail\ndef test_two(): assert 0", True),
        ("@pytest.mark.parametrize('n', [1, 2])\ndef test_two(n): pass", True),
        ("def test_renamed(): pass", True),
        (None, True),
    ],
)
def test_the_test_on_record(pytester: pytest.Pytester, run: Run, two: str | None, decided: bool) -> None:
    stale(pytester, tests__test_two=f"import pytest\n{two}\n")
    if two is None:
        (pytester.path / "tests" / "test_two.py").unlink()
    result = run("--pgleak-baseline-update")
    # What the session had left needs no test, and the run was complete.
    assert listed(pytester) == ([] if decided else ["connection-dropped app.py::get_conn"])
    assert ("did not run to its end" in result.stdout.str()) is not decided


@pytest.mark.parametrize("two", ["def test_two(): pytest.skip()", "pytest.skip(allow_module_level=True)\n# test_two"])
def test_the_test_on_record_with_xdist(pytester: pytest.Pytester, run: Run, two: str) -> None:
    stale(pytester, tests__test_two=f"import pytest\n{two}\n")
    assert told(run("-n1")) == [f"pgleak: {MESSAGE}", f"          {OF_SESSION.describe()}"]


def test_tests_that_a_conftest_throws_away_without_a_word(pytester: pytest.Pytester, run: Run) -> None:
    stale(pytester, conftest="def pytest_collection_modifyitems(items):\n    items[:] = items[:1]\n")
    assert STALE.describe() not in run().stdout.str()
    run("--pgleak-baseline-update")
    assert listed(pytester) == ["connection-dropped app.py::get_conn"]


def test_a_directory_with_another_name(pytester: pytest.Pytester, run: Run) -> None:
    stale(pytester, Extent(("tests/old/deep", "tests/test_two.py"), "all"))
    # What was in it may be anywhere now.
    assert told(run("tests/test_two.py")) == []
    assert OF_SESSION.describe() in run("tests").stdout.str()


def test_a_fault_of_the_plugin(pytester: pytest.Pytester, run: Run) -> None:
    conftest = """
    import pytest
    from pytest_pgleak.checkpoints import Judge

    @pytest.fixture(autouse=True)
    def broken(monkeypatch):
        # Not a mock of what is watched: the plugin itself is broken on purpose.
        def settling(self, checkpoint):
            raise LookupError("a fault inside the plugin")
        monkeypatch.setattr(Judge, "settling", settling)
    """
    for args in ((), ("-n1",)):
        stale(pytester, conftest=conftest)
        result = run(*args, "--pgleak-baseline-update")
        result.stdout.fnmatch_lines([f"pgleak: nothing was removed from {NAME}, *: internal error in the check of *"])
        assert len(listed(pytester)) == 2


def test_options_that_are_always_given(pytester: pytest.Pytester, run: Run) -> None:
    always = ("-m", "not slow", "--ignore=tests/test_two.py")
    stale(pytester, Extent(("tests",), "all", {"-m": ("not slow",), "--ignore": ("tests/test_two.py",)}))
    assert OF_SESSION.describe() in run(*always).stdout.str()
    # With fewer options more was run.
    assert OF_SESSION.describe() in run(*always[:2]).stdout.str()
    assert OF_SESSION.describe() in run().stdout.str()
    assert MESSAGE not in run("-m", "slow").stdout.str()
    assert MESSAGE not in run(*always, "-k", "one").stdout.str()


def test_mode_off(pytester: pytest.Pytester, run: Run) -> None:
    stale(pytester)
    result = run("--pgleak-mode=off")
    assert "pgleak:" not in result.stdout.str()
    result = run("--pgleak-mode=off", "--pgleak-baseline-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --pgleak-baseline-update: pgleak_mode is off, and nothing would be found"])
    (pytester.path / NAME).unlink()
    assert run("--pgleak-mode=off").ret == 0
    assert not (pytester.path / NAME).exists()


@pytest.mark.parametrize("args", [("-x",), ("--collect-only",), ("-k", "nothing")])
def test_a_run_that_was_stopped_makes_none(pytester: pytest.Pytester, run: Run, args: tuple[str, ...]) -> None:
    write(pytester, tests__test_one="def test_one(): assert 0\ndef test_two(): pass\n")
    result = run(*args)
    result.stdout.fnmatch_lines([f"pgleak: no baseline was written to {NAME}, for this was no complete run: *"])
    assert not (pytester.path / NAME).exists()


def test_a_part_of_the_suite_may_have_one(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, **PLAIN)
    result = run("tests/test_one.py", "-m", "not slow")
    assert told(result) == [
        f"pgleak: baseline written to {NAME}: nothing was found, so whatever is found from now on fails"
    ]
    assert '"made_from": {"args": ["tests/test_one.py"], "select": "all", "-m": ["not slow"]}' in (
        pytester.path / NAME
    ).read_text(encoding="utf-8")


def test_where_the_file_is(pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(pytester, **PLAIN)
    pytester.mkdir("sub")
    ini = pytester.path / "tox.ini"
    ini.write_text(ini.read_text() + "\npgleak_baseline = from-ini.json\n")
    monkeypatch.chdir(pytester.path / "sub")
    # In the ini file it is relative to the root directory, on the command line to where pytest was started.
    pytester.runpytest_subprocess("../tests")
    assert (pytester.path / "from-ini.json").is_file()
    pytester.runpytest_subprocess("../tests", "--pgleak-baseline=given.json")
    assert (pytester.path / "sub" / "given.json").is_file()
    made_from = json.loads((pytester.path / "sub" / "given.json").read_text())["made_from"]
    assert made_from["args"] == ["tests"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", f"--pgleak-baseline: {NAME}: it is no JSON: *Repair it, or delete it and write it anew with *"),
        ("<<<<<<< HEAD\n", f"--pgleak-baseline: {NAME}: line 1: a merge conflict is not resolved. Keep *"),
        ("{}", f"--pgleak-baseline: {NAME}: it is no baseline of pytest-pgleak. Give the name of another file."),
        (b"\xff\xfe", f"--pgleak-baseline: {NAME}: it is no baseline of pytest-pgleak. Give the name of another file."),
        ('{"version": 9, "known": []}', f"--pgleak-baseline: {NAME}: it has version 9, * Upgrade pytest-pgleak."),
    ],
)
def test_a_file_that_is_none(pytester: pytest.Pytester, run: Run, content: str | bytes, expected: str) -> None:
    write(pytester, **PLAIN)
    before = content.encode() if isinstance(content, str) else content
    (pytester.path / NAME).write_bytes(before)
    # It is not overwritten either.
    result = run("-n1", "--pgleak-baseline-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {expected}"])
    assert "Traceback" not in result.stderr.str()
    assert (pytester.path / NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("--pgleak-baseline-update", "--pgleak-baseline-update: which file? Give --pgleak-baseline=FILE, or set *"),
        ("--pgleak-baseline=tests", "--pgleak-baseline: tests: it is a directory. Give the name of a file."),
        ("--pgleak-baseline=no/b.json", "--pgleak-baseline: no/b.json: its directory does not exist. Make it first."),
        ("--pgleak-baseline=tests/test_one.py", "--pgleak-baseline: tests/test_one.py: it is no JSON: *"),
    ],
)
def test_a_name_that_cannot_be_meant(pytester: pytest.Pytester, run: Run, baseline: str, expected: str) -> None:
    write(pytester, **PLAIN)
    result = run(baseline=baseline)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {expected}"])
    assert (pytester.path / "tests" / "test_one.py").read_text() == PLAIN["tests__test_one"]


@pytest.mark.parametrize("workers", [(), ("-n1",)])
def test_a_file_that_cannot_be_written(pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
    directory = pytester.mkdir("ci")
    write(pytester, tests__test_one=f"import pathlib\ndef test_one(): pathlib.Path({str(directory)!r}).rmdir()\n")
    result = run(*workers, baseline="--pgleak-baseline=ci/b.json")
    result.assert_outcomes(passed=1)
    assert told(result) == ["pgleak: the baseline could not be written to ci/b.json: No such file or directory"]
    # Everything was accepted, and nobody will know.
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("baseline", "used"), [("", False), (f"--pgleak-baseline={NAME}", True)])
def test_nothing_of_it_is_loaded_where_it_is_not_used(
    pytester: pytest.Pytester, run: Run, baseline: str, used: bool
) -> None:
    write(
        pytester,
        tests__test_one=f"""
        import sys, psycopg, pytest

        @pytest.mark.parametrize("name", ["file", "run", "text", "compare"])
        def test_one(pgleak_dsn, name):
            psycopg.connect(pgleak_dsn).close()
            assert (f"pytest_pgleak.baseline.{{name}}" in sys.modules) is {used}
        """,
    )
    run(baseline=baseline).assert_outcomes(passed=4)


def test_the_file_is_read_once_before_the_first_test(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, app=APP, tests__test_it=TESTS)
    run().assert_outcomes(passed=4)
    (pytester.path / "conftest.py").write_text(
        f"from pathlib import Path\ndef pytest_collection_finish(): Path({NAME!r}).unlink()\n"
    )
    run().assert_outcomes(passed=4)
    assert not Path(pytester.path / NAME).exists()
