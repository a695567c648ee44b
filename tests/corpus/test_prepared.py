"""Two-phase commit: who prepares has to finish, on whatever connection. By psycopg's methods and by SQL."""

import asyncio
import contextlib
import itertools
import subprocess
import sys

import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.testclient import TestClient
from psycopg import sql

pytestmark = pytest.mark.pgleak(grace=0.1)
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('x')"
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def db(dsn):
    with psycopg.connect(dsn) as conn:
        most = conn.execute("show max_prepared_transactions").fetchone()[0]
    if most == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    return dsn


@pytest.fixture
def gid():
    return f"it's {next(NUMBERS)}"


def prepare(conn, gid):
    conn.tpc_begin(gid)
    conn.execute(INSERT)
    conn.tpc_prepare()


async def prepare_async(conn, gid):
    await conn.tpc_begin(gid)
    await conn.execute(INSERT)
    await conn.tpc_prepare()


# -- in the test body -------------------------------------------------------------------------------------------------


@expect("prepared-transaction")
def test_closed_before_it_was_finished(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)


@expect("prepared-transaction")
async def test_closed_before_it_was_finished_async(db, gid):
    conn = await psycopg.AsyncConnection.connect(db)
    await prepare_async(conn, gid)
    await conn.close()


@expect("connection-dropped", "prepared-transaction")
def test_both_mistakes(db, gid):
    prepare(psycopg.connect(db), gid)


@expect("prepared-transaction", "prepared-transaction")
def test_two_of_three(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        for number in range(3):
            prepare(conn, f"{gid}/{number}")
            if number == 1:
                conn.tpc_commit()
            conn._tpc = None  # as after `close()`; another connection would do, too


@expect("prepared-transaction")
def test_something_fails_in_between(db, gid):
    with pytest.raises(ZeroDivisionError), psycopg.connect(db) as conn:
        prepare(conn, gid)
        1 / 0  # noqa: B018


@expect("prepared-transaction")
def test_with_an_xid_of_three_parts(db):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, conn.xid(7, "global'1", "branch\\1"))


def test_committed(db, gid):
    with psycopg.connect(db) as conn:
        prepare(conn, gid)
        conn.tpc_commit()


def test_rolled_back(db, gid):
    with psycopg.connect(db) as conn:
        prepare(conn, gid)
        conn.tpc_rollback()


async def test_committed_async(db, gid):
    async with await psycopg.AsyncConnection.connect(db) as conn:
        await prepare_async(conn, gid)
        await conn.tpc_commit()


def test_committed_in_one_phase(db, gid):
    with psycopg.connect(db) as conn:
        conn.tpc_begin(gid)
        conn.execute(INSERT)
        conn.tpc_commit()


def test_recovered_by_another_connection(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)
    with psycopg.connect(db) as conn:
        for xid in conn.tpc_recover():
            if xid.database == conn.info.dbname:
                conn.tpc_rollback(xid)


def test_recovered_by_another_process(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)
    code = "import sys, psycopg; psycopg.connect(sys.argv[1]).tpc_rollback(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, db, gid], check=True)


def test_a_gid_is_used_again(db, gid):
    with psycopg.connect(db) as conn:
        for _ in range(3):
            prepare(conn, gid)
            conn.tpc_commit()


@expect("prepared-transaction")
def test_a_gid_is_used_again_and_left(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)
        conn.tpc_commit()
        prepare(conn, gid)


def test_refused(db, gid):
    with psycopg.connect(db) as conn:
        conn.tpc_begin(gid)
        conn.execute("create temporary table t (a int)")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            conn.tpc_prepare()
        conn._tpc = None
        conn.rollback()


def test_a_failed_transaction_is_rolled_back_by_prepare(db):
    with psycopg.connect(db) as conn:
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            conn.execute("insert into nowhere values (1)")
        conn.execute("prepare transaction 'failed'")


@pytest.mark.pgleak(allow=["prepared-transaction"])
def test_allowed(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)


def test_what_an_earlier_test_left_is_not_this_ones(db):
    with psycopg.connect(db) as conn:
        left = conn.execute("select gid from pg_prepared_xacts where database = current_database()").fetchall()
        assert left
        conn.commit()
        conn.execute(INSERT)


# -- by SQL -----------------------------------------------------------------------------------------------------------


@expect("prepared-transaction")
def test_statement(db):
    with psycopg.connect(db) as conn:
        conn.execute(INSERT)
        conn.execute("PREPARE TRANSACTION 'it''s'")


@expect("prepared-transaction")
async def test_statement_async(db):
    async with await psycopg.AsyncConnection.connect(db) as conn:
        await conn.execute(INSERT)
        await conn.execute(b"prepare transaction 'bytes'")


@expect("prepared-transaction")
def test_composed_statement(db):
    with psycopg.connect(db) as conn:
        conn.execute(INSERT)
        conn.execute(sql.SQL("PREPARE TRANSACTION {}").format(r"it's a \ gid"))


@expect("prepared-transaction")
def test_client_side_parameters(db, gid):
    with psycopg.connect(db, cursor_factory=psycopg.ClientCursor) as conn:
        conn.execute(INSERT)
        conn.execute("prepare transaction %s", [gid])


@expect("prepared-transaction")
def test_all_in_one_statement(db):
    with psycopg.connect(db, autocommit=True) as conn:
        conn.execute(f"begin; {INSERT}; prepare transaction 'three'")


def test_statement_finished(db):
    with psycopg.connect(db, autocommit=True) as conn:
        conn.execute("begin")
        conn.execute(INSERT)
        conn.execute("prepare transaction 'done'")
        conn.execute("commit prepared 'done'")


def test_statement_finished_elsewhere(db):
    with psycopg.connect(db) as conn:
        conn.execute(INSERT)
        conn.execute("prepare transaction 'done'")
    with psycopg.connect(db, autocommit=True) as other:
        other.execute("rollback prepared 'done'")


def test_only_text(db):
    with psycopg.connect(db) as conn:
        conn.execute("insert into item(name) values ('prepare transaction ''x''')")
        conn.execute("prepare plan as select 1")
        conn.execute("deallocate plan")


# -- pools, fixtures, requests ----------------------------------------------------------------------------------------


@expect("prepared-transaction")
def test_on_a_pooled_connection(db, gid):
    with psycopg_pool.ConnectionPool(db, min_size=1, open=False) as pool:
        pool.wait()
        conn = pool.getconn()
        prepare(conn, gid)
        pool.putconn(conn)


@pytest.fixture
def leaves(db, gid):
    yield
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)


@expect("prepared-transaction")
def test_left_by_a_fixture(leaves):
    pass


@pytest.fixture
def leaves_at_once(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)


@expect("prepared-transaction")
def test_left_by_the_set_up_of_a_fixture(leaves_at_once):
    pass


@pytest.fixture
def finishes(db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)
        yield
        conn.tpc_rollback()


def test_finished_by_its_fixture(finishes):
    pass


@pytest.fixture
def recovers(db):
    yield
    with psycopg.connect(db, autocommit=True) as conn:
        rows = conn.execute("select gid from pg_prepared_xacts where database = current_database()").fetchall()
        for (gid,) in rows:
            conn.execute(sql.SQL("ROLLBACK PREPARED {}").format(gid))


def test_finished_by_the_teardown_of_the_test(recovers, db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)


@pytest.fixture
def recovers_nothing():
    yield
    if False:
        psycopg.connect("").tpc_rollback("x")


@expect("prepared-transaction")
def test_not_finished_by_the_teardown_after_all(recovers_nothing, db, gid):
    with contextlib.closing(psycopg.connect(db)) as conn:
        prepare(conn, gid)


class TestMethods:
    def teardown_method(self):
        with psycopg.connect(self.db, autocommit=True) as conn:
            conn.execute("rollback prepared 'of a class'")

    def test_finished_by_the_teardown_method(self, db):
        self.db = db
        with contextlib.closing(psycopg.connect(db)) as conn:
            prepare(conn, "of a class")


@pytest.fixture(scope="module")
def conn(db):
    with psycopg.connect(db) as conn:
        yield conn


@expect("prepared-transaction")
def test_on_a_fixtures_connection(conn, gid):
    prepare(conn, gid)
    conn._tpc = None


def test_on_a_fixtures_connection_and_finished(conn, gid):
    prepare(conn, gid)
    conn.tpc_commit()


@expect("prepared-transaction")
def test_by_another_process(db):
    code = "import sys, psycopg; c = psycopg.connect(sys.argv[1]); c.tpc_begin('sub'); c.tpc_prepare()"
    subprocess.run([sys.executable, "-c", code, db], check=True)


def create_app(dsn):
    app = FastAPI()

    async def get_conn():
        conn = await psycopg.AsyncConnection.connect(dsn)
        try:
            yield conn
        finally:
            await conn.close()

    @app.post("/leaky/{gid}")
    async def leaky(gid: str, conn=Depends(get_conn)):
        await prepare_async(conn, gid)

    @app.post("/clean/{gid}")
    async def clean(gid: str, conn=Depends(get_conn)):
        await prepare_async(conn, gid)
        await conn.tpc_commit()

    @app.post("/sync/{gid}")
    def sync(gid: str):
        with contextlib.closing(psycopg.connect(dsn)) as conn:
            prepare(conn, gid)

    async def finish(gid):
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await asyncio.sleep(0.02)
            await conn.tpc_commit(gid)

    @app.post("/background/{gid}")
    async def background(gid: str, tasks: BackgroundTasks, conn=Depends(get_conn)):
        await prepare_async(conn, gid)
        tasks.add_task(finish, gid)

    @app.post("/task/{gid}")
    async def task(gid: str, request: Request, conn=Depends(get_conn)):
        await prepare_async(conn, gid)
        request.app.state.task = asyncio.create_task(finish(gid))

    return app


@pytest.fixture(scope="session")
def pgleak_app(db):
    return create_app(db)


@expect("prepared-transaction")
async def test_request(pgleak_client):
    assert (await pgleak_client.post("/leaky/a")).status_code == 200


async def test_request_clean(pgleak_client):
    assert (await pgleak_client.post("/clean/a")).status_code == 200


@expect("prepared-transaction")
def test_request_of_the_test_client(pgleak_app):
    with TestClient(pgleak_app) as client:
        assert client.post("/sync/b").status_code == 200


def test_request_of_the_test_client_clean(pgleak_app):
    with TestClient(pgleak_app) as client:
        assert client.post("/clean/b").status_code == 200


@pytest.mark.pgleak(grace=5)
async def test_finished_in_the_background(pgleak_client):
    assert (await pgleak_client.post("/background/c")).status_code == 200


@pytest.mark.pgleak(grace=5)
async def test_finished_a_little_later(pgleak_app):
    transport = httpx.ASGITransport(app=pgleak_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/task/d")).status_code == 200
