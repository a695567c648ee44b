"""``pgleak_schema``: what the databases of the fixtures have in them, and what is said when it cannot be made."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pytest_pgleak.database_schema.source import apply_schema
from pytest_pgleak.servers import ServerError

Run = Callable[..., pytest.RunResult]

SCHEMA = """
-- visits; of people
create table visits (id serial primary key, note text default 'a;b');
insert into visits (note) values ('seeded');
create function visitors() returns bigint language sql begin atomic; select count(*) from visits; end;
"""
TESTS = """
    import psycopg, psycopg_pool, pytest

    pytestmark = pytest.mark.pgleak

    def count(dsn):
        with psycopg.connect(dsn) as conn:
            return conn.execute("select visitors()").fetchone()[0]

    def insert(dsn):
        with psycopg.connect(dsn) as conn:
            conn.execute("insert into visits default values")

    @pytest.fixture(scope="session")
    def pool(pgleak_dsn):
        with psycopg_pool.ConnectionPool(pgleak_dsn, min_size=1, open=False) as pool:
            pool.wait()
            yield pool

    def test_worker(pool, pgleak_dsn):
        insert(pgleak_dsn)
        assert count(pgleak_dsn) == 2

    @pytest.mark.parametrize("number", range(2))
    def test_fresh(pool, pgleak_dsn, pgleak_fresh_dsn, number):
        assert pgleak_fresh_dsn != pgleak_dsn
        assert count(pgleak_fresh_dsn) == 1
        insert(pgleak_fresh_dsn)
        assert count(pgleak_fresh_dsn) == 2

    def test_worker_again(pool, pgleak_dsn):
        assert count(pgleak_dsn) == 2
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    def write_and_run(schema: str, *args: str, tests: str = TESTS) -> pytest.RunResult:
        pytester.makeini(f"[pytest]\npythonpath = .\npgleak_schema = {schema}\n")
        pytester.makepyfile(test_it=textwrap.dedent(tests))
        result = pytester.runpytest_subprocess(f"--pgleak-dsn={server_dsn}", "-p", "no:pytest_asyncio.plugin", *args)
        assert "internal error" not in result.stdout.str()
        return result

    return write_and_run


def databases(server_dsn: str) -> set[str]:
    with psycopg.connect(server_dsn) as conn:
        return {name for (name,) in conn.execute("select datname from pg_database where datname like 'pgleak%'")}


def test_a_file(run: Run, pytester: pytest.Pytester, server_dsn: str) -> None:
    before = databases(server_dsn)
    (pytester.path / "schema.sql").write_text(SCHEMA)
    run("schema.sql").assert_outcomes(passed=4)
    assert databases(server_dsn) <= before


@pytest.mark.parametrize(("kind", "workers"), [("def", 1), ("async def", 2)])
def test_a_callable(run: Run, pytester: pytest.Pytester, kind: str, workers: int) -> None:
    (pytester.path / "app").mkdir()
    (pytester.path / "app" / "db.py").write_text(
        f"import os, psycopg\nSCHEMA = {SCHEMA!r}\n{kind} create(dsn):\n"
        "    os.mkdir('called-by-' + os.environ.get('PYTEST_XDIST_WORKER', 'main'))  # once\n"
        "    with psycopg.connect(dsn) as conn:\n        conn.execute(SCHEMA)\n"
    )
    args = [] if workers == 1 else [f"-n{workers}", "--dist=each"]
    run("app.db:create", *args).assert_outcomes(passed=4 * workers)
    assert len(list(pytester.path.glob("called-by-*"))) == workers


def test_a_refused_statement(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path / "schema.sql").write_text("create table a (id int);\n\ncreate table b (\n    id itn\n);\n")
    result = run("schema.sql")
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(
        [
            'pgleak_dsn: schema.sql:3: ERROR:  type "itn" does not exist',
            "*    create table b (",
            "*        id itn",
            "*    )",
        ]
    )
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("missing.sql", "pgleak_dsn: pgleak_schema = missing.sql: there is no file */missing.sql, and it is not *"),
        ("nothing.at.all:create", "pgleak_dsn: pgleak_schema = nothing.at.all:create: nothing.at.all cannot be imp*"),
        ("app:missing", "pgleak_dsn: pgleak_schema = app:missing: module 'app' has no attribute 'missing'"),
        ("app:NUMBER", "pgleak_dsn: pgleak_schema = app:NUMBER: it is a int, and not callable with a DSN."),
        ("app:leaks", "*What pgleak_schema names has left a connection to it open*"),
        ("copy.sql", "pgleak_dsn: pgleak_schema = copy.sql: line 1: the data of COPY*"),
    ],
)
def test_what_cannot_be_meant(run: Run, pytester: pytest.Pytester, schema: str, expected: str) -> None:
    (pytester.path / "app.py").write_text(
        "import psycopg\nNUMBER = 1\nKEPT = []\ndef leaks(dsn):\n    KEPT.append(psycopg.connect(dsn))\n"
    )
    (pytester.path / "copy.sql").write_text("copy a from stdin;\n1\n\\.\n")
    result = run(schema)
    result.stdout.fnmatch_lines([expected])
    assert "Traceback" not in result.stdout.str()


def test_a_callable_that_raises(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path / "app.py").write_text("def create(dsn):\n    raise ValueError('the tables are gone')\n")
    result = run("app:create")
    result.stdout.fnmatch_lines(
        [
            "pgleak_dsn: pgleak_schema = app:create failed.",
            '*  File "*app.py", line 2, in create',
            "*    raise ValueError('the tables are gone')",
            "*ValueError: the tables are gone",
        ]
    )
    assert "source.py" not in result.stdout.str()


@pytest.mark.parametrize("password", ["hunter2secret", "p@ss/w0rd%"])
def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, password: str) -> None:
    (tmp_path / "app_of_this_test.py").write_text("def create(dsn):\n    raise ValueError(dsn.replace('x', 'y', 1))\n")
    monkeypatch.syspath_prepend(tmp_path)
    dsn = f"postgresql://x:{quote(password, safe='')}@localhost/app"
    with pytest.raises(ServerError) as caught:
        apply_schema("app_of_this_test:create", tmp_path, dsn)
    sys.modules.pop("app_of_this_test")
    assert "ValueError: postgresql://y:***@localhost/app" in str(caught.value)
    assert password not in str(caught.value)
    assert quote(password, safe="") not in str(caught.value)


def test_a_leak_in_a_fresh_database_is_not_hidden_by_its_end(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path / "schema.sql").write_text(SCHEMA)
    result = run(
        "schema.sql",
        tests="""
        import psycopg, pytest

        KEPT = []

        @pytest.mark.pgleak
        def test_it(pgleak_fresh_dsn):
            KEPT.append(psycopg.connect(pgleak_fresh_dsn))
            KEPT[-1].execute("insert into visits default values")
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*", "  server *pid * an uncommitted write is held*"])


def test_a_backend_that_takes_long_to_exit_holds_nobody_up(run: Run, server_dsn: str) -> None:
    before = databases(server_dsn)
    # DROP DATABASE waits for it, in steps of 100 ms, and gives up after 5 s.
    result = run(
        "",
        tests="""
        import os, signal, psycopg

        PIDS = []

        def test_its_backend_does_not_exit(pgleak_fresh_dsn):
            conn = psycopg.connect(pgleak_fresh_dsn)
            PIDS.append(conn.info.backend_pid)
            os.kill(PIDS[0], signal.SIGSTOP)
            conn.close()

        def test_now_it_does(pgleak_fresh_dsn):
            os.kill(PIDS[0], signal.SIGCONT)
            psycopg.connect(pgleak_fresh_dsn).close()
        """,
    )
    result.assert_outcomes(passed=2)
    assert "clean up" not in result.stdout.str()
    assert databases(server_dsn) <= before


def test_a_database_that_could_not_be_dropped_is_tried_again_at_the_end(run: Run, server_dsn: str) -> None:
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute("create role maker login createdb")
    as_maker = make_conninfo(server_dsn, user="maker")
    before = databases(server_dsn)
    tests = f"""
        import psycopg.pq
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        HELD = []

        def test_a_superuser_is_in_it(pgleak_fresh_dsn):
            dbname = conninfo_to_dict(pgleak_fresh_dsn)["dbname"]
            HELD.append(psycopg.pq.PGconn.connect(make_conninfo({server_dsn!r}, dbname=dbname).encode()))

        def test_the_next(pgleak_fresh_dsn):
            assert HELD[0].status == psycopg.pq.ConnStatus.OK

        def test_the_last():
            KEEP or HELD[0].finish()
    """
    try:
        result = run("", f"--pgleak-dsn={as_maker}", tests=tests.replace("KEEP", "False"))
        result.assert_outcomes(passed=3)
        assert "clean up" not in result.stdout.str()
        assert databases(server_dsn) <= before
        result = run("", f"--pgleak-dsn={as_maker}", tests=tests.replace("KEEP", "True"))
        [left] = databases(server_dsn) - before
        result.stdout.fnmatch_lines([f"pgleak: could not clean up: cannot drop the database '{left}': ERROR: *"])
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as conn:
            for name in databases(server_dsn) - before:
                conn.execute(f"drop database {name} with (force)".encode())
            conn.execute("drop role maker")


def test_a_clone_of_a_database_that_is_in_use(run: Run) -> None:
    # One of the two tests: PostgreSQL waits for five seconds each time.
    result = run(
        "", "-k", "not (fresh and 1)", tests=TESTS.replace("insert(pgleak_dsn)", "pass").replace("== 2", "!= 0")
    )
    result.stdout.fnmatch_lines(["*something keeps a connection to pgleak_dsn.", "Let pgleak make the schema*"])
