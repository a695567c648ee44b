"""A driver that looks different from those that are known: one clear note, and nothing else changes."""

from __future__ import annotations

import pytest

LATER_ASYNCPG = """
__version__ = "9.9.0"

class connection:
    class Connection:
        def __init__(self): ...
        def close(self): return "closed"

class pool:
    class Pool: ...
"""
LATER_PSYCOPG2 = """
__version__ = "9.9.0"

class extensions:
    class connection:
        def close(self): return "closed"
    class cursor: ...

def connect(): return extensions.connection()
"""
LATER_POOLS = """
class AbstractConnectionPool:
    def take(self): return "taken"
"""


@pytest.mark.parametrize(
    ("package", "module", "source", "use"),
    [
        ("asyncpg", "asyncpg", LATER_ASYNCPG, "asyncpg.connection.Connection().close() == 'closed'"),
        ("psycopg2", "psycopg2", LATER_PSYCOPG2, "psycopg2.connect().close() == 'closed'"),
        ("psycopg2", "psycopg2.pool", LATER_POOLS, "psycopg2.pool.AbstractConnectionPool().take() == 'taken'"),
    ],
)
def test_one_note(pytester: pytest.Pytester, package: str, module: str, source: str, use: str) -> None:
    directory = pytester.mkpydir(package)
    name = module.removeprefix(package).removeprefix(".") or "__init__"
    (directory / f"{name}.py").write_text(source, encoding="utf-8")
    pytester.makepyfile(
        test_it=f"""
        import {module}
        import pytest

        @pytest.mark.pgleak
        def test_one():
            assert {use}

        def test_two():
            assert {use}
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_ADDOPTS", "")  # another plugin may have imported the real one
        result = pytester.runpytest_subprocess("-p", "pytest_pgleak.plugin", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    output = result.stdout.str()
    assert "internal error" not in output
    notes = [
        line for line in output.splitlines() if "looks different from the versions that pytest-pgleak knows" in line
    ]
    [note] = [line for line in notes if line.startswith(f"pgleak: {module} ")]
    assert "it is not watched, and leaks through it are not found" in note
    assert f"pin {package} to a version that it was tested with" in note
