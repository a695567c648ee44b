"""What pytest shows: FAILED, ERROR at teardown, a section beside another error, the summary, the settings."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

CONFTEST = """
    import psycopg, psycopg_pool, pytest

    KEPT = []

    @pytest.fixture
    def forgets(pgleak_dsn):
        KEPT.append(psycopg.connect(pgleak_dsn))
        yield KEPT[-1]
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    """Write an inner suite and run it in a process of its own."""

    def write_and_run(source: str, *args: str, conftest: str = CONFTEST) -> pytest.RunResult:
        pytester.makeconftest(textwrap.dedent(conftest))
        header = "import gc, psycopg, psycopg_pool, pytest\nfrom conftest import KEPT\n" if conftest == CONFTEST else ""
        pytester.makepyfile(test_it=header + textwrap.dedent(source))
        return pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}", *args
        )

    return write_and_run


LEAKY = """
    @pytest.mark.pgleak
    def test_leak(pgleak_dsn):
        psycopg.connect(pgleak_dsn).execute("create table if not exists t (a int)")
"""


def test_a_leak_of_the_test_fails_it(run: Run) -> None:
    result = run(LEAKY)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ test_leak _*",
            "[[]connection-dropped] connection opened and never closed",
            "  opened    test_it.py:6 in test_leak",
            '                psycopg.connect(pgleak_dsn).execute("create table if not exists t (a int)")',
            "  server    pid *, idle in transaction, xid *: an uncommitted write was lost",
            "  last sql  create table if not exists t (a int)",
            "  ended     garbage-collected; nothing called close()",
            "  fix       use `with psycopg.connect(…) as conn:`, or close it in a `finally:`",
            '  allow     @pytest.mark.pgleak(allow=["connection-dropped"])',
            "*= pgleak: 1 leak from 1 line of code =*",
            "   1 × [[]connection-dropped] test_it.py:6 in test_leak",
            "*test_it.py::test_leak",
            "FAILED test_it.py::test_leak - pgleak: connection-dropped at*",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_a_leak_of_a_fixture_is_an_error_at_teardown(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(forgets):
            pass
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_it*",
            "[[]connection-not-closed] connection opened and still open",
            "  opened    conftest.py:* in forgets",
            "  owner     fixture 'forgets' (function scope)",
            "  ended     it did not: fixture 'forgets' (function scope) ended and the connection is still open",
            "  fix       put the `yield` inside `with psycopg.connect(…) as conn:`",
        ]
    )


def test_both_in_one_test(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(forgets, pgleak_dsn):
            psycopg.connect(pgleak_dsn)
        """
    )
    result.assert_outcomes(failed=1, errors=1)


def test_a_failing_test_keeps_its_own_error(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak(grace=0.05)
        def test_it(pgleak_dsn):
            conn = psycopg.connect(pgleak_dsn)
            assert 1 == 2
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E       assert 1 == 2", "*pgleak also found*", "[[]connection-not-closed]*", "FAILED*assert 1 == 2"]
    )


def test_a_failing_teardown_keeps_its_own_error(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def breaks(forgets):
            yield
            raise RuntimeError("my own trouble")

        @pytest.mark.pgleak(grace=0.05)
        def test_it(breaks):
            pass
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E *RuntimeError: my own trouble", "*pgleak also found*", "[[]connection-not-closed]*"]
    )


def test_skip_and_xfail(run: Run) -> None:
    result = run(
        """
        pytestmark = pytest.mark.pgleak(grace=0.05)

        def test_skips(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
            pytest.skip("not today")

        @pytest.mark.xfail
        def test_xfails(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
            assert 0

        @pytest.mark.xfail(strict=True)
        def test_leak_is_the_expected_failure(pgleak_dsn):
            psycopg.connect(pgleak_dsn)

        @pytest.mark.skip
        def test_skipped_by_mark(pgleak_dsn):
            psycopg.connect(pgleak_dsn)

        @pytest.mark.xfail(strict=True)
        def test_clean_xpass_is_still_strict(pgleak_dsn):
            psycopg.connect(pgleak_dsn).close()
        """
    )
    result.assert_outcomes(skipped=2, xfailed=2, failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*"])


def test_one_bug_is_one_entry_in_the_summary(run: Run) -> None:
    result = run(
        """
        def helper(dsn):
            return psycopg.connect(dsn)

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(12))
        def test_it(pgleak_dsn, number):
            helper(pgleak_dsn)

        @pytest.mark.pgleak
        def test_other(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
        """
    )
    result.assert_outcomes(failed=13)
    result.stdout.fnmatch_lines(
        [
            "*pgleak: 13 leaks from 2 lines of code*",
            "  12 × [[]connection-dropped] test_it.py:5 in helper",
            "*… and 9 more tests",
            "   1 × [[]connection-dropped] test_it.py:14 in test_other",
        ]
    )


def test_the_same_line_many_times_in_one_test_is_told_once(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_it(pgleak_dsn):
            for _ in range(5):
                psycopg.connect(pgleak_dsn)
        """
    )
    result.stdout.fnmatch_lines(["[[]connection-dropped] connection opened and never closed (5 times)"])
    assert result.stdout.str().count("  allow     ") == 1


def test_unmarked_tests_are_not_checked(run: Run) -> None:
    result = run(LEAKY.replace("@pytest.mark.pgleak", ""))
    result.assert_outcomes(passed=1)
    assert "pgleak:" not in result.stdout.str()


def test_select_all(run: Run) -> None:
    run(LEAKY.replace("@pytest.mark.pgleak", ""), "--pgleak-select=all").assert_outcomes(failed=1)


def test_mode_warn(run: Run) -> None:
    result = run(
        LEAKY.replace("psycopg.connect", "KEPT.append(c := psycopg.connect(pgleak_dsn)); (lambda _: c)"),
        "--pgleak-mode=warn",
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*pgleak: 1 warning from 1 line of code*", "*connection-not-closed*(warning)"])


def test_mode_off(run: Run) -> None:
    result = run(LEAKY, "--pgleak-mode=off")
    result.assert_outcomes(passed=1)
    assert "pgleak:" not in result.stdout.str()


@pytest.mark.usefixtures("all_plugins")
def test_disabled_plugin(run: Run) -> None:
    result = run(LEAKY.replace("pgleak_dsn", "tmp_path"), "-p", "no:pgleak")
    # Without the plugin its option is unknown: nothing else may break.
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_levels(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npgleak_levels =\n  connection-dropped = warn\n")
    run(LEAKY).assert_outcomes(passed=1)
    pytester.makeini("[pytest]\npgleak_levels =\n  connection-dropped = off\n")
    result = run(LEAKY)
    result.assert_outcomes(passed=1)
    assert "connection-dropped" not in result.stdout.str()


def test_ignore_rules(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\npgleak_ignore =\n  connection-dropped test_*.py::test_leak\n  pool-not-closed app/*::get_pool\n"
    )
    result = run(LEAKY)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*pgleak_ignore: no finding matched `pool-not-closed app/*::get_pool`*"])
    assert "matched `connection-dropped" not in result.stdout.str()


def test_allow(run: Run) -> None:
    run(LEAKY.replace("mark.pgleak", "mark.pgleak(allow=['connection-dropped'])")).assert_outcomes(passed=1)
    run(LEAKY.replace("mark.pgleak", "mark.pgleak(allow=['pool-not-closed'])")).assert_outcomes(failed=1)


def test_the_nearest_marker_wins(run: Run) -> None:
    result = run(
        """
        pytestmark = pytest.mark.pgleak(allow=["connection-dropped"])

        def test_module_marker(pgleak_dsn):
            psycopg.connect(pgleak_dsn)

        @pytest.mark.pgleak
        def test_own_marker(pgleak_dsn):
            psycopg.connect(pgleak_dsn)
        """
    )
    result.assert_outcomes(passed=1, failed=1)


def test_ignore_hook(run: Run) -> None:
    hook = (
        CONFTEST
        + """
    def pytest_pgleak_ignore(finding, item):
        assert item.name == "test_leak"
        return finding.origin.function == "test_leak"
    """
    )
    run("import psycopg, pytest\n" + textwrap.dedent(LEAKY), conftest=hook).assert_outcomes(passed=1)


def test_colour_on_a_terminal_only(run: Run) -> None:
    red = "\x1b[31m"
    assert red not in run(LEAKY, "--color=no").stdout.str()
    coloured = run(LEAKY, "--color=yes").stdout.str()
    line = next(line for line in coloured.splitlines() if "[connection-dropped] connection opened" in line)
    assert red in line


def test_junit_xml_is_plain(run: Run, pytester: pytest.Pytester) -> None:
    run(LEAKY, "--junitxml=out.xml", "--color=yes")
    text = (pytester.path / "out.xml").read_text(encoding="utf-8")
    assert "[connection-dropped] connection opened and never closed" in text
    assert "\x1b" not in text
    assert "#x1B" not in text


def test_header(run: Run) -> None:
    result = run(LEAKY)
    result.stdout.fnmatch_lines(["collected 1 item", "pgleak: 1 of 1 tests checked; server: * --pgleak-dsn *"])


def test_healed_for_the_next_test(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="session", autouse=True)
        def table(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("create table t (a int)")

        @pytest.mark.pgleak
        def test_1_leaks_a_lock(pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            KEPT[-1].execute("insert into t values (1)")

        @pytest.mark.pgleak
        def test_2_needs_the_table(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                conn.execute("set lock_timeout = '2s'")
                conn.execute("truncate t")
                assert conn.execute(
                    "select count(*) from pg_stat_activity where datname = current_database()"
                ).fetchone() == (1,)

        @pytest.fixture(scope="session")
        def pool(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=1, timeout=2, open=False) as pool:
                yield pool

        @pytest.mark.pgleak
        def test_3_leaks_the_only_slot(pool):
            KEPT.append(pool.getconn())

        @pytest.mark.pgleak
        def test_4_needs_the_slot(pool):
            with pool.connection() as conn:
                conn.execute("select 1")
        """
    )
    result.assert_outcomes(passed=2, failed=2)


def test_a_session_pool_used_by_fifty_tests_is_accused_nowhere(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="session")
        def pool(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=4, open=False) as pool:
                yield pool

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(50))
        def test_it(pool, number):
            with pool.connection() as one, pool.connection() as two:
                one.execute("select 1")
                two.execute("select 1")
        """
    )
    result.assert_outcomes(passed=50)
    assert "pgleak: 1 leak" not in result.stdout.str()


def test_a_module_fixture_that_forgets_is_accused_once_at_its_own_end(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def module_connection(pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            yield KEPT[-1]

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(5))
        def test_it(module_connection, number):
            module_connection.execute("select 1")
            module_connection.commit()
        """
    )
    result.assert_outcomes(passed=5, errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_it[[]4]*", "  owner     fixture 'module_connection' (module scope)"]
    )


def test_a_fixture_of_checked_tests_that_ends_with_an_unchecked_one(run: Run) -> None:
    result = run(
        """
        @pytest.fixture(scope="module")
        def module_connection(pgleak_dsn):
            KEPT.append(psycopg.connect(pgleak_dsn))
            yield KEPT[-1]

        @pytest.mark.pgleak
        def test_checked(module_connection):
            pass

        def test_unchecked(module_connection):
            pass
        """
    )
    result.assert_outcomes(passed=2, errors=1)


def test_what_import_left_is_told_at_the_end_as_a_warning(run: Run, server_dsn: str) -> None:
    result = run(
        f"""
        GLOBAL = psycopg.connect({server_dsn!r})

        @pytest.mark.pgleak
        def test_it():
            GLOBAL.execute("select 1")
            GLOBAL.commit()
        """
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*connection-not-closed] test_it.py:4 in <module>  by the process (module global test_it.GLOBAL)  (warning)"]
    )


def test_untracked_backend_is_a_warning(run: Run) -> None:
    result = run(
        """
        import subprocess, sys, time

        @pytest.mark.pgleak(grace=0.05)
        def test_it(pgleak_dsn):
            code = f"import psycopg, time; c = psycopg.connect({pgleak_dsn!r}, application_name='child');"
            code += "print('ready', flush=True); time.sleep(30)"
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            process.stdout.readline()
            KEPT.append(process)

        @pytest.mark.pgleak(grace=0.05)
        def test_not_charged_again(pgleak_dsn):
            pass

        def test_end():
            KEPT[0].kill()
            KEPT[0].wait()
            KEPT[0].stdout.close()
        """
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*pgleak: 1 warning from 1 line*", "   1 × [[]untracked-backend]*(warning)"])


def test_untracked_backend_can_be_made_to_fail(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npgleak_levels =\n  untracked-backend = fail\n")
    result = run(
        """
        from psycopg import pq

        @pytest.mark.pgleak(grace=0.05)
        def test_it(pgleak_dsn):
            dsn = psycopg.conninfo.make_conninfo(pgleak_dsn, application_name="another driver")
            KEPT.append(pq.PGconn.connect(dsn.encode()))

        @pytest.mark.pgleak(grace=0.05)
        def test_clean(pgleak_dsn):
            dsn = psycopg.conninfo.make_conninfo(pgleak_dsn, application_name="another driver")
            pq.PGconn.connect(dsn.encode()).finish()
        """
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "[[]untracked-backend] a new backend that nothing in this process opened",
            "  server    pid *, database pgleak_*, application_name 'another driver', from *, idle*",
        ]
    )


def test_no_leaks_block_and_findings(run: Run) -> None:
    result = run(
        """
        @pytest.mark.pgleak
        def test_block(pgleak, pgleak_dsn):
            with pgleak.no_leaks():
                psycopg.connect(pgleak_dsn).close()
            with pytest.raises(pytest.fail.Exception, match="connection-dropped"):
                with pgleak.no_leaks():
                    psycopg.connect(pgleak_dsn)

        @pytest.mark.pgleak
        async def test_block_async(pgleak, pgleak_dsn):
            async with pgleak.no_leaks():
                async with await psycopg.AsyncConnection.connect(pgleak_dsn) as conn:
                    await conn.execute("select 1")
            with pytest.raises(pytest.fail.Exception, match="connection-dropped"):
                async with pgleak.no_leaks():
                    await psycopg.AsyncConnection.connect(pgleak_dsn)

        @pytest.mark.pgleak
        def test_findings(pgleak, pgleak_dsn):
            conn = psycopg.connect(pgleak_dsn)
            assert [c.facts.backend_pid for c in pgleak.connections] == [conn.info.backend_pid]
            assert [finding.kind for finding in pgleak.findings()] == ["connection-not-closed"]
            conn.close()
            assert pgleak.findings() == ()
            assert pgleak.connections == ()
        """
    )
    result.assert_outcomes(passed=3)


def test_without_any_configuration_the_observer_derives_itself(run: Run, server_dsn: str) -> None:
    result = run(
        f"""
        DSN = {server_dsn!r}

        @pytest.mark.pgleak
        def test_open():
            KEPT.append(psycopg.connect(DSN))
            KEPT[-1].execute("create temporary table t (a int)")

        @pytest.mark.pgleak
        def test_dropped():
            psycopg.connect(DSN).execute("create temporary table t (a int)")
        """,
        "--pgleak-dsn=host=/nowhere",
    )
    result.assert_outcomes(failed=2)
    assert result.stdout.str().count("idle in transaction") == 2
    result.stdout.fnmatch_lines(["pgleak: 2 of 2 tests checked; server: the application's own"])
    # It is not the plugin's database, and nobody allowed to terminate anything in it.
    assert "terminat" not in result.stdout.str()


def test_fresh_database(run: Run) -> None:
    result = run(
        """
        NAMES = []

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", [1, 2])
        def test_it(pgleak_fresh_dsn, pgleak_dsn, number):
            NAMES.append(psycopg.conninfo.conninfo_to_dict(pgleak_fresh_dsn)["dbname"])
            with psycopg.connect(pgleak_fresh_dsn) as conn:
                conn.execute("create table only_here (a int)")

        @pytest.mark.pgleak
        def test_leak_in_a_fresh_database(pgleak_fresh_dsn):
            KEPT.append(psycopg.connect(pgleak_fresh_dsn))

        def test_dropped(pgleak_dsn):
            with psycopg.connect(pgleak_dsn) as conn:
                left = conn.execute("select datname from pg_database where datname like 'pgleak_fresh%'").fetchall()
            assert len(set(NAMES)) == 2
            assert not set(NAMES) & {name for name, in left}
        """
    )
    result.assert_outcomes(passed=3, failed=1)


def test_unittest_classes(run: Run) -> None:
    result = run(
        """
        import os, unittest

        @pytest.fixture(scope="session", autouse=True)
        def dsn(pgleak_dsn):
            os.environ["DSN"] = pgleak_dsn

        @pytest.mark.pgleak
        class TestThings(unittest.TestCase):
            def setUp(self):
                self.conn = psycopg.connect(os.environ["DSN"])

            def tearDown(self):
                self.conn.close()

            def test_clean(self):
                self.conn.execute("select 1")

            def test_leak(self):
                psycopg.connect(os.environ["DSN"])

        @pytest.mark.pgleak
        class TestAsync(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self):
                self.conn = await psycopg.AsyncConnection.connect(os.environ["DSN"])

            async def asyncTearDown(self):
                await self.conn.close()

            async def test_clean(self):
                await self.conn.execute("select 1")

            async def test_leak(self):
                await psycopg.AsyncConnection.connect(os.environ["DSN"])
        """
    )
    result.assert_outcomes(passed=2, failed=2)


def test_what_is_watched_stays_as_it_is(run: Run) -> None:
    result = run(
        """
        import weakref

        @pytest.mark.pgleak(allow=["connection-dropped"])
        def test_resource_warning_and_lifetime(pgleak_dsn):
            conn = psycopg.connect(pgleak_dsn)
            assert type(conn) is psycopg.Connection
            reference = weakref.ref(conn)
            with pytest.warns(ResourceWarning, match="was deleted while still open"):
                del conn
            assert reference() is None

        @pytest.mark.pgleak
        def test_exceptions(pgleak_dsn):
            with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, max_size=1, open=False) as pool:
                with pool.connection():
                    with pytest.raises(psycopg_pool.PoolTimeout) as caught:
                        pool.getconn(timeout=0.01)
                assert "couldn't get a connection after 0.01 sec" in str(caught.value)
            with pytest.raises(psycopg_pool.PoolClosed):
                pool.getconn()
        """
    )
    result.assert_outcomes(passed=2)
