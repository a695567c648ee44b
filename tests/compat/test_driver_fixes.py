"""The code in a fix does what the fix says: it is put together to a program here, and run."""

from __future__ import annotations

import asyncio
import textwrap

import pytest

from pytest_pgleak.libraries.asyncpg_words import ASYNCPG
from pytest_pgleak.libraries.library import is_block
from pytest_pgleak.libraries.psycopg2_words import PSYCOPG2

INSERT = "insert into words values (1)"
SETUP = "create temporary table if not exists words (a int)"


def program(template, words):
    """Fill in a library's words: `<take>` stands for what takes a connection of a pool, and so on."""
    for name in words.__slots__:
        template = template.replace(f"<{name}>", getattr(words, name).replace("…", "dsn"))
    return textwrap.dedent(template)


def run(source, name, **known):
    exec(compile(source, "<fix>", "exec"), known)
    return known[name]


def test_asyncpg(server_dsn):
    asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed; make compat runs this where it is")
    source = program(
        """
        async def use(dsn):
            conn = await asyncpg.connect(dsn)
            try:
                await conn.execute(SETUP)
                <transaction>
                    await conn.execute(INSERT)
                    try:
                        <savepoint>
                            await conn.execute("select 1/0")
                    except asyncpg.DivisionByZeroError:
                        pass
                transaction = conn.transaction()
                await transaction.start()
                await conn.execute(INSERT)
                <rollback>
                kept = await conn.fetchval("select count(*) from words")
            finally:
                <close>
            <open_pool>
                <take>
                    <writing>
                        await conn.execute("select 1")
                conn = await pool.acquire()
                idle_before = pool.get_idle_size()
                <give_back>
                idle_after = pool.get_idle_size()
            return kept, idle_after - idle_before, pool.is_closing(), conn is not None
        """,
        ASYNCPG.words("Connection", True),
    )
    use = run(source, "use", asyncpg=asyncpg, SETUP=SETUP, INSERT=INSERT)
    assert asyncio.run(use(server_dsn)) == (1, 1, True, True)


def test_asyncpg_has_nothing_better(server_dsn):
    asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed; make compat runs this where it is")
    # Where the words are empty: no block closes a connection, nothing is called commit() on it.
    connection = asyncpg.Connection
    assert not any(hasattr(connection, name) for name in ("__aenter__", "__enter__", "aclose", "commit"))
    words = ASYNCPG.words("Connection", True)
    assert (words.open, words.commit) == ("", "")


def test_psycopg2(server_dsn):
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed; make compat runs this where it is")
    import psycopg2
    import psycopg2.pool

    source = program(
        """
        import contextlib

        def use(dsn):
            counts = []
            <open>
                conn.cursor().execute(SETUP)
                conn.cursor().execute(INSERT)
                <commit>
                conn.cursor().execute(INSERT)
                <rollback>
                cursor = conn.cursor()
                cursor.execute("select count(*) from words")
                counts.append(cursor.fetchone()[0])
            counts.append(conn.closed)
            conn = psycopg2.connect(dsn)
            <close>
            counts.append(conn.closed)
            pool = psycopg2.pool.ThreadedConnectionPool(1, 1, dsn)
            try:
                for _ in range(2):
                    conn = pool.getconn()
                    try:
                        <transaction>
                            conn.cursor().execute("select 1")
                    finally:
                        <give_back>
            finally:
                <open_pool>
            return *counts, pool.closed
        """,
        PSYCOPG2.words("connection", False),
    )
    assert run(source, "use", psycopg2=psycopg2, SETUP=SETUP, INSERT=INSERT)(server_dsn) == (1, 1, 1, True)


def test_psycopg2_has_nothing_better(server_dsn):
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed; make compat runs this where it is")
    import psycopg2
    import psycopg2.pool

    words = PSYCOPG2.words("connection", False)
    assert not hasattr(psycopg2.pool.AbstractConnectionPool, "__enter__")
    assert not is_block(words.open_pool)
    assert words.take == ""
    with psycopg2.connect(server_dsn) as conn:
        pass
    assert not conn.closed  # what the caution says
    conn.close()
