"""Suites of unittest's and of xunit style: what their teardown ends, or closes, is no leak of a test."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

Run = Callable[[str], pytest.RunResult]

HEADER = """
    import unittest
    import psycopg, pytest

    DSN = {}

    def connect():
        return psycopg.connect(DSN["dsn"])

    @pytest.fixture(scope="session", autouse=True)
    def address(pgleak_dsn):
        DSN["dsn"] = pgleak_dsn
        with psycopg.connect(pgleak_dsn) as conn:
            conn.execute("create table if not exists item (name text)")
        with psycopg.connect(pgleak_dsn) as DSN["shared"]:
            yield

    def write(conn):
        conn.execute("insert into item values ('a')")
"""


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    def write_and_run(source: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=textwrap.dedent(HEADER) + textwrap.dedent(source))
        options = ("-p", "no:cacheprovider", f"--pgleak-dsn={server_dsn}", "--pgleak-select=all", "-W", "ignore")
        return pytester.runpytest_subprocess(*options, "-o", "pgleak_grace=0.1")

    return write_and_run


def entries(result: pytest.RunResult) -> list[str]:
    """What the summary names, without line numbers."""
    return sorted(line.partition("[")[2].partition("  by")[0] for line in result.outlines if " × [" in line)


def test_transactions_that_a_teardown_rolls_back(run: Run) -> None:
    result = run(
        """
        class TestClass(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.conn = connect()

            @classmethod
            def tearDownClass(cls):
                cls.conn.rollback()
                cls.conn.close()

            def test_one(self): write(self.conn)
            def test_two(self): write(self.conn)

        class TestCleanup(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.conn = connect()
                cls.addClassCleanup(cls.conn.close)
                cls.addClassCleanup(cls.conn.rollback)

            def test_one(self): write(self.conn)

        class TestSavepoint(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.conn = connect()

            @classmethod
            def tearDownClass(cls):
                cls.conn.close()

            def setUp(self): self.conn.execute("savepoint test")
            def tearDown(self): self.conn.execute("rollback to test")
            def test_one(self): write(self.conn)

        class Isolated(unittest.TestCase):
            @classmethod
            def tearDownClass(cls):
                DSN["shared"].rollback()
                super().tearDownClass()

        class TestShared(Isolated):
            @classmethod
            def tearDownClass(cls):
                super().tearDownClass()

            def test_one(self): write(DSN["shared"])
            def test_two(self): write(DSN["shared"])

        class TestXunit:
            @classmethod
            def setup_class(cls):
                cls.conn = connect()

            @classmethod
            def teardown_class(cls):
                cls.conn.rollback()
                cls.conn.close()

            def test_one(self): write(self.conn)
            def test_two(self): write(self.conn)

        def setup_module():
            global conn
            conn = connect()

        def teardown_module():
            conn.rollback()
            conn.close()

        def test_one(): write(conn)
        def test_two(): write(conn)
        """
    )
    result.assert_outcomes(passed=10)
    assert entries(result) == []


def test_transactions_that_nobody_ends(run: Run) -> None:
    result = run(
        """
        class TestClass(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.conn = connect()

            @classmethod
            def tearDownClass(cls):
                cls.conn.close()

            def test_one(self): write(self.conn)

        class TestShared(unittest.TestCase):
            def test_one(self): write(DSN["shared"])

        def teardown_module():
            connect().rollback()  # of another one

        class TestOther(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.conn = connect()

            @classmethod
            def tearDownClass(cls):
                cls.conn.close()

            def test_two(self): write(self.conn)
        """
    )
    assert result.parseoutcomes() == {"failed": 3, "errors": 1}
    assert entries(result) == [
        "connection-dropped] test_it.py:7 in connect",
        "transaction-left-open] test_it.py:14 in address",
        "transaction-left-open] test_it.py:7 in connect",
        "transaction-left-open] test_it.py:7 in connect",
    ]


def test_what_the_first_test_opens_and_the_class_closes(run: Run) -> None:
    result = run(
        """
        class Lazy:
            conn = None

            @classmethod
            def get(cls):
                if cls.conn is None:
                    cls.conn = connect()
                return cls.conn

            def test_one(self): assert not self.get().closed
            def test_two(self): assert not self.get().closed

        class TestClass(Lazy, unittest.TestCase):
            @classmethod
            def tearDownClass(cls): cls.conn.close()

        class TestXunit(Lazy):
            @classmethod
            def teardown_class(cls): cls.conn.close()

        class TestMany(unittest.TestCase):
            @classmethod
            def setUpClass(cls): cls.conns = []

            @classmethod
            def tearDownClass(cls):
                for conn in cls.conns:
                    conn.close()

            def test_one(self): self.conns.append(connect())
            def test_two(self): self.conns.append(connect())
        """
    )
    result.assert_outcomes(passed=6)
    assert entries(result) == []


def test_what_the_class_only_forgets(run: Run) -> None:
    result = run(
        """
        class TestClass(unittest.TestCase):
            @classmethod
            def tearDownClass(cls): cls.conn = None

            def test_one(self): type(self).conn = connect()
        """
    )
    assert result.parseoutcomes() == {"failed": 1}
    assert entries(result) == ["connection-not-closed] test_it.py:7 in connect"]
    result.stdout.fnmatch_lines(["*called by test_it.py:* in TestClass.test_one"])


def test_a_stack_that_has_nothing_of_the_users_own(pytester: pytest.Pytester, server_dsn: str) -> None:
    """The script ``pytest`` is outermost then, and nobody's code."""
    package = pytester.path / "site-packages"
    package.mkdir()
    (package / "installed.py").write_text(
        "import unittest, psycopg\n"
        "class Base(unittest.TestCase):\n"
        "    @classmethod\n"
        "    def setUpClass(cls):\n"
        f"        cls.conn = psycopg.connect({server_dsn!r})\n",
        encoding="utf-8",
    )
    pytester.makepyfile(
        """
        import sys
        sys.path.insert(0, "site-packages")
        from installed import Base

        class TestIt(Base):
            def test_it(self): pass
        """
    )
    options = ("-p", "no:cacheprovider", f"--pgleak-dsn={server_dsn}", "--pgleak-select=all", "-W", "ignore")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["  opened    site-packages/installed.py:5 in Base.setUpClass*"])


def test_the_texts_name_the_users_own_functions(run: Run) -> None:
    result = run(
        """
        from psycopg_pool import ConnectionPool

        KEPT = []

        class TestClass(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.conn = connect()
                KEPT.append(cls.conn)

            def test_one(self): write(self.conn)

        class TestXunit:
            def setup_method(self):
                self.pool = ConnectionPool(DSN["dsn"], min_size=1, open=True)
                KEPT.append(self.pool)

            def test_one(self): pass

        def setup_module():
            KEPT.append(connect())
        """
    )
    assert result.parseoutcomes() == {"failed": 1, "errors": 2, "passed": 1}
    result.stdout.fnmatch_lines_random(
        [
            "  owner     setUpClass or tearDownClass of TestClass",
            "  fix       call `conn.close()` in `tearDownClass`",
            "  fix       call `conn.rollback()` in `tearDown`; or open it with `autocommit=True`; *",
            "  ended     it did not: setup_method or teardown_method of TestXunit ended and the pool is still open*",
            "  fix       close it in `teardown_method`",
            "  ended     it did not: setup_module or teardown_module of test_it ended and the connection is still open",
            "  fix       call `conn.close()` in `teardown_module`",
        ]
    )


def test_what_a_teardown_function_of_a_module_closes(run: Run) -> None:
    result = run(
        """
        KEPT = {}
        conn = None

        def teardown_function(function):
            if conn is not None and "forgets" not in function.__name__:
                conn.close()
            for each in KEPT.values():
                each.close()

        def test_of_a_variable():
            global conn
            conn = connect()
            write(conn)
            conn.commit()

        def test_of_a_dictionary():
            KEPT["conn"] = connect()

        def test_that_keeps_it_elsewhere():
            test_that_keeps_it_elsewhere.conn = connect()

        def test_that_it_forgets():
            global conn
            conn = connect()
        """
    )
    result.assert_outcomes(passed=3, failed=1, errors=1)
    assert entries(result) == ["connection-not-closed] test_it.py:7 in connect"] * 2
    assert {line.split(" - ")[0] for line in result.outlines if line.startswith(("FAILED", "ERROR "))} == {
        "FAILED test_it.py::test_that_keeps_it_elsewhere",
        "ERROR test_it.py::test_that_it_forgets",
    }


def test_a_prepared_transaction_that_a_teardown_function_finishes(run: Run) -> None:
    result = run(
        """
        def teardown_function(function):
            with psycopg.connect(DSN["dsn"], autocommit=True) as conn:
                conn.execute("rollback prepared 'of a module'")

        def test_it():
            with connect() as conn:
                write(conn)
                conn.execute("prepare transaction 'of a module'")
        """
    )
    result.assert_outcomes(passed=1)
