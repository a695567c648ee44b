"""asyncpg, psycopg2 and SQLAlchemy through a real PgBouncer in transaction mode."""

from __future__ import annotations

import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

sys.path.insert(0, str(Path(__file__).parents[1]))
from pgbouncers import needs_pgbouncer, pgbouncer

for _name in ("asyncpg", "psycopg2", "sqlalchemy"):
    pytest.importorskip(_name, reason=f"{_name} is not installed; make compat runs this where it is")

pytestmark = needs_pgbouncer

ASYNCPG = """
    import asyncpg, os, pytest
    pytestmark = pytest.mark.pgleak
    KEPT = []

    def connect(**more):
        return asyncpg.connect(os.environ["APP_DSN"], **more)

    async def test_kept():
        conn = await connect(statement_cache_size=0)
        await conn.transaction().start()
        await conn.execute("insert into visits values (1)")
        KEPT.append(conn)

    async def test_lost():
        conn = await connect(statement_cache_size=0)
        await conn.transaction().start()
        await conn.execute("insert into visits values (1)")
        await conn.close()

    async def test_setting():
        conn = await connect(statement_cache_size=0)
        await conn.execute("set work_mem = '77MB'")
        await conn.close()

    async def test_prepared():
        conn = await connect()
        await conn.fetch("select count(*) from visits where id = $1", 1)
        await conn.close()

    async def test_clean():
        conn = await connect(statement_cache_size=0)
        async with conn.transaction():
            await conn.execute("set local work_mem = '77MB'")
            await conn.fetch("select count(*) from visits where id = $1", 1)
        await conn.close()
"""
PSYCOPG2 = """
    import contextlib, os, psycopg2, pytest
    pytestmark = pytest.mark.pgleak
    KEPT = []

    def connect():
        return psycopg2.connect(os.environ["APP_DSN"])

    def test_kept():
        KEPT.append(connect())
        KEPT[-1].cursor().execute("insert into visits values (1)")

    def test_lost():
        with contextlib.closing(connect()) as conn:
            conn.cursor().execute("insert into visits values (1)")

    def test_setting():
        with contextlib.closing(connect()) as conn, conn:
            conn.cursor().execute("set work_mem = '77MB'")

    def test_clean():
        with contextlib.closing(connect()) as conn, conn:
            conn.cursor().execute("set local work_mem = '77MB'")
            conn.cursor().execute("insert into visits values (1)")
"""
SQLALCHEMY = """
    import os, pytest, sqlalchemy
    from sqlalchemy.orm import Session
    pytestmark = pytest.mark.pgleak
    KEPT = []

    @pytest.fixture(scope="module")
    def engine():
        engine = sqlalchemy.create_engine(
            os.environ["APP_URL"], poolclass=sqlalchemy.NullPool, connect_args={"prepare_threshold": None}
        )
        yield engine
        while KEPT:
            KEPT.pop().close()
        engine.dispose()

    def test_kept(engine):
        KEPT.append(engine.connect())
        KEPT[-1].execute(sqlalchemy.text("insert into visits values (1)"))

    def test_setting(engine):
        with Session(engine) as session:
            session.execute(sqlalchemy.text("set work_mem = '77MB'"))
            session.commit()

    def test_clean(engine):
        with Session(engine) as session:
            session.execute(sqlalchemy.text("set local work_mem = '77MB'"))
            session.execute(sqlalchemy.text("insert into visits values (1)"))
            session.commit()
"""
SQLALCHEMY_ASYNCPG = """
    import os, pytest, sqlalchemy, uuid
    from sqlalchemy.ext.asyncio import create_async_engine
    pytestmark = pytest.mark.pgleak

    async def select(**more):
        url = os.environ["APP_URL"].replace("+psycopg", "+asyncpg")
        engine = create_async_engine(url, poolclass=sqlalchemy.NullPool, connect_args=more)
        async with engine.begin() as conn:
            await conn.execute(sqlalchemy.text("select count(*) from visits where id = :id"), {"id": 1})
        await engine.dispose()

    async def test_prepared():
        await select()

    async def test_clean():
        await select(statement_cache_size=0, prepared_statement_cache_size=0)

    async def test_clean_by_names_of_its_own():
        await select(
            statement_cache_size=0,
            prepared_statement_cache_size=0,
            prepared_statement_name_func=lambda: f"__own_{uuid.uuid4()}__",
        )
"""
SERVED = "  server    pid *, idle in transaction*"
CLIENT = "  pgbouncer client 127.0.0.1:*, in transaction mode; it has a server connection to itself (pid *)"
SETTING = ["[[]session-state]*", "  left      setting work_mem = 78848kB*"]
LOST = ["[[]write-lost]*", "  server    pid *, 1 transaction (xid *) that wrote visits: rolled back"]
PREPARED = [
    *("[[]session-state]*", "  prepared  *", "  left      prepared statement __asyncpg_stmt_*"),
    "  fix       connect with `statement_cache_size=0`, *",
]


@pytest.fixture(scope="module")
def database(server_dsn: str) -> Iterator[str]:
    name = f"app_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(server_dsn, dbname=name) as conn:
            conn.execute("create table visits (id int)")
        yield make_conninfo(server_dsn, dbname=name)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    ("source", "passed", "told"),
    [
        (
            ASYNCPG,
            1,
            {
                "kept": ["[[]connection-not-closed]*", SERVED, CLIENT],
                "lost": LOST,
                "setting": SETTING,
                "prepared": PREPARED,
            },
        ),
        (PSYCOPG2, 1, {"kept": ["[[]connection-not-closed]*", SERVED, CLIENT], "lost": LOST, "setting": SETTING}),
        (SQLALCHEMY, 1, {"kept": ["[[]connection-not-returned]*", SERVED, CLIENT], "setting": SETTING}),
        (SQLALCHEMY_ASYNCPG, 2, {"prepared": PREPARED}),
    ],
    ids=["asyncpg", "psycopg2", "sqlalchemy", "sqlalchemy-asyncpg"],
)
def test_through_pgbouncer(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    source: str,
    passed: int,
    told: dict[str, list[str]],
) -> None:
    pytester.makepyfile(test_it=textwrap.dedent(source))
    with pgbouncer(database, "transaction") as address:
        parts = conninfo_to_dict(address)
        url = f"://{parts['user']}@127.0.0.1:{parts['port']}/{conninfo_to_dict(database)['dbname']}"
        monkeypatch.setenv("APP_DSN", f"postgresql{url}")
        monkeypatch.setenv("APP_URL", f"postgresql+psycopg{url}")
        console = make_conninfo(address, user="admin", dbname="pgbouncer")
        options = ("-p", "no:cacheprovider", "-o", "pgleak_grace=0.2", "-o", "pgleak_terminate=true")
        result = pytester.runpytest_subprocess(*options, f"--pgleak-dsn={database}", f"--pgleak-pgbouncer={console}")
    assert "internal error" not in result.stdout.str()
    result.assert_outcomes(passed=passed, failed=len(told))
    lines = result.stdout.lines
    for test, expected in told.items():
        start = next(number for number, line in enumerate(lines) if line.strip("_ ") == f"test_{test}")
        pytest.LineMatcher(lines[start:]).fnmatch_lines(expected)
