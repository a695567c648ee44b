"""Nothing is lost here, however it ends: reading, retries, tests that isolate themselves. No findings at all."""

import asyncio
import threading

import psycopg
import psycopg_pool
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect

INSERT = "insert into item(name) values ('x')"


@pytest.fixture(scope="session")
def db(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute(
            """
            create table if not exists tag (id serial primary key, name text unique);
            create table if not exists stock (id int primary key, amount int check (amount >= 0));
            create table if not exists child (stock int references stock);
            insert into tag(name) values ('known') on conflict do nothing;
            insert into stock values (1, 10), (2, 10) on conflict do nothing;
            create or replace function total() returns bigint language plpgsql as
                'begin return (select sum(amount) from stock); end';
            """
        )
    return dsn


@pytest.fixture(scope="module")
def pool(db):
    with psycopg_pool.ConnectionPool(db, min_size=1, max_size=4, open=False) as pool:
        pool.wait()
        yield pool


# -- read-only, however it ends ---------------------------------------------------------------------------------------


def select(conn):
    conn.execute("select 1").fetchone()


def select_many_times(conn):
    for _ in range(4):
        conn.execute("select count(*) from stock").fetchone()


def select_for_update(conn):
    assert conn.execute("select * from stock where id = 1 for update").rowcount == 1


def select_for_share(conn):
    assert conn.execute("select * from stock where id = 1 for key share").rowcount == 1


def select_for_update_skip_locked(conn):
    conn.execute("select * from stock order by id for update skip locked limit 1").fetchone()


def next_value(conn):
    for _ in range(40):  # every 32nd writes to the log
        conn.execute("select nextval('tag_id_seq')").fetchone()


def next_value_in_a_savepoint(conn):
    conn.execute("select 1")
    with conn.transaction(force_rollback=True):
        next_value(conn)


def next_value_and_for_update(conn):
    next_value(conn)
    select_for_update(conn)


def set_value(conn):
    conn.execute("select setval('tag_id_seq', 1000)")


def update_of_nothing(conn):
    assert conn.execute("update stock set amount = 1 where id = -1").rowcount == 0


def delete_of_nothing(conn):
    assert conn.execute("delete from stock where id = -1").rowcount == 0


def insert_of_nothing(conn):
    assert conn.execute("insert into stock select * from stock where false").rowcount == 0


def insert_on_conflict_do_nothing(conn):
    assert conn.execute("insert into stock values (1, 1) on conflict do nothing").rowcount == 0


def insert_refused(conn):
    try:
        conn.execute("insert into stock values (1, 1)")
    except psycopg.errors.UniqueViolation:
        pass


def update_refused(conn):
    try:
        conn.execute("update stock set amount = -1")
    except psycopg.errors.CheckViolation:
        pass


def foreign_key_refused(conn):
    try:
        conn.execute("insert into child values (-1)")
    except psycopg.errors.ForeignKeyViolation:
        pass


def many_refused(conn):
    try:
        conn.cursor().executemany("insert into stock values (%s, 1)", [[1], [2]])
    except psycopg.errors.UniqueViolation:
        pass


def insert_refused_in_a_savepoint(conn):
    conn.execute("select 1")
    try:
        with conn.transaction():
            conn.execute("insert into stock values (1, 1)")
    except psycopg.errors.UniqueViolation:
        pass


def insert_refused_in_a_savepoint_then_reading(conn):
    insert_refused_in_a_savepoint(conn)
    select_many_times(conn)


def insert_refused_in_a_savepoint_in_sql(conn):
    conn.execute("savepoint a")
    insert_refused(conn)
    conn.execute("rollback to savepoint a")
    conn.execute("release savepoint a")


def insert_rolled_back_to_a_savepoint(conn):
    conn.execute("savepoint a")
    conn.execute(INSERT)
    conn.execute("select 1")
    conn.execute("rollback to savepoint a")


def insert_in_a_savepoint_left_by_rollback(conn):
    conn.execute("select 1")
    with conn.transaction() as block:
        conn.execute(INSERT)
        conn.execute("select 1")
        raise psycopg.Rollback(block)


def temporary_table(conn):
    """It goes with the session, whatever becomes of the transaction."""
    conn.execute("create temporary table scratch (a int) on commit drop")
    conn.execute("insert into scratch values (1)")
    conn.execute("select * from scratch").fetchone()


def explain_analyze(conn):
    conn.execute("explain select * from stock").fetchall()


def lock_table(conn):
    conn.execute("lock table stock in share row exclusive mode")
    conn.execute("select 1")


def advisory_lock(conn):
    conn.execute("select pg_advisory_xact_lock(42)")


def set_local(conn):
    conn.execute("set local work_mem = '8MB'")


def function(conn):
    conn.execute("select total()").fetchone()


def copy_out(conn):
    with conn.cursor() as cur, cur.copy("copy stock to stdout") as copy:
        assert len(list(copy)) >= 2


def stream(conn):
    with conn.cursor() as cur:
        assert len(list(cur.stream("select generate_series(1, 3)"))) == 3


def stream_left_early(conn):
    with conn.cursor() as cur:
        rows = cur.stream("select generate_series(1, 100000)")
        next(rows)
        rows.close()


def server_cursor(conn):
    with conn.cursor("rows") as cur:
        cur.execute("select generate_series(1, 3)")
        cur.fetchall()


def with_hold_cursor(conn):
    with conn.cursor("rows", withhold=True) as cur:
        cur.execute("select generate_series(1, 3)")
        cur.fetchone()


def pipeline(conn):
    with conn.pipeline():
        conn.execute("select 1")
        conn.execute("select 2")


def pipeline_that_fails(conn):
    try:
        with conn.pipeline():
            conn.execute("select 1")
            conn.execute("select 1 / 0")
            conn.execute("select 2")
    except psycopg.Error:
        pass


def notify(conn):
    conn.execute("listen channel")


def statement_that_fails(conn):
    try:
        conn.execute("select no_such_column")
    except psycopg.Error:
        pass


def written_and_committed_before(conn):
    conn.execute(INSERT)
    conn.commit()
    conn.execute("select 1")


def written_and_rolled_back_before(conn):
    conn.execute(INSERT)
    conn.rollback()
    conn.execute("select 1")


def nothing(conn):
    pass


_FIRST = list(globals()).index("select")
READING = [value for value in list(globals().values())[_FIRST:] if callable(value)]

# In these, a `putconn` finds nothing open.
IDLE = [nothing]


@pytest.mark.parametrize("read", READING)
def test_closed(db, read):
    conn = psycopg.connect(db)
    read_unless_rolled_back(conn, read)
    conn.close()


def read_unless_rolled_back(conn, read):
    try:
        read(conn)
    except psycopg.Rollback:
        pytest.fail("it left its block")


@pytest.mark.parametrize("read", READING)
def test_committed_or_not(db, read):
    with psycopg.connect(db) as conn:
        read(conn)


@pytest.mark.parametrize("read", READING)
def test_with_the_pool(pool, read):
    with pool.connection() as conn:
        read(conn)
        conn.execute("unlisten *") if conn.info.transaction_status.name == "INTRANS" else None


@pytest.mark.parametrize(
    "read", [read if read in IDLE else pytest.param(read, marks=expect("returned-in-transaction")) for read in READING]
)
def test_given_back(db, read):
    with psycopg_pool.ConnectionPool(db, min_size=1, open=False) as pool:
        conn = pool.getconn()
        read(conn)
        pool.putconn(conn)


@pytest.mark.parametrize("read", [read for read in READING if read is not written_and_rolled_back_before])
def test_in_a_request(db, read):
    app = FastAPI()

    @app.get("/")
    def endpoint():
        conn = psycopg.connect(db)
        read(conn)
        conn.close()

    assert TestClient(app).get("/").status_code == 200


@pytest.mark.parametrize("read", [read for read in READING if read is not written_and_rolled_back_before])
def test_in_a_request_and_rolled_back(db, read):
    app = FastAPI()

    @app.get("/")
    def endpoint():
        conn = psycopg.connect(db)
        read(conn)
        conn.rollback()
        conn.close()

    assert TestClient(app).get("/").status_code == 200


# -- tests that isolate themselves ------------------------------------------------------------------------------------


class Repository:
    def __init__(self, conn):
        self.conn = conn

    def add(self, name="x"):
        self.conn.execute("insert into item(name) values (%s)", [name])

    def count(self):
        return self.conn.execute("select count(*) from item").fetchone()[0]


def application(get_conn):
    app = FastAPI()

    @app.post("/{how}")
    def write(how: str, conn=Depends(get_conn)):
        Repository(conn).add()
        if how == "refused":
            raise HTTPException(409)
        if how == "rolled-back":
            conn.rollback()
        if how == "swallowed":
            try:
                conn.execute("insert into stock values (1, 1)")
            except psycopg.errors.UniqueViolation:
                conn.rollback()
        if how == "savepoint":
            with conn.transaction():
                Repository(conn).add()
        if how == "reading":
            Repository(conn).count()
        return {}

    return app


WAYS = ["written", "refused", "rolled-back", "swallowed", "savepoint", "reading"]


def never():
    raise AssertionError("it is overridden")


@pytest.fixture
def rolled_back(db):
    conn = psycopg.connect(db)
    yield conn
    conn.rollback()
    conn.close()


@pytest.fixture
def forced(db):
    with psycopg.connect(db, autocommit=True) as conn, conn.transaction(force_rollback=True):
        yield conn


@pytest.fixture
def forced_and_nested(db):
    with psycopg.connect(db) as conn, conn.transaction(force_rollback=True), conn.transaction():
        yield conn


@pytest.fixture
def left_by_rollback(db):
    with psycopg.connect(db) as conn, conn.transaction() as block:
        yield conn
        raise psycopg.Rollback(block)


@pytest.fixture
def in_sql(db):
    with psycopg.connect(db, autocommit=True) as conn:
        conn.execute("begin")
        yield conn
        conn.execute("rollback")


@pytest.fixture
def of_a_pool(pool):
    with pool.connection() as conn:
        yield conn
        conn.rollback()


@pytest.fixture
def of_a_pool_by_hand(pool):
    conn = pool.getconn()
    yield conn
    conn.rollback()
    pool.putconn(conn)


@pytest.fixture
def with_a_finalizer(db, request):
    conn = psycopg.connect(db)

    def finish():
        conn.rollback()
        conn.close()

    request.addfinalizer(finish)
    return conn


@pytest.fixture(scope="module")
def of_the_module(db):
    with psycopg.connect(db) as conn:
        yield conn


@pytest.fixture
def of_the_module_rolled_back(of_the_module):
    yield of_the_module
    of_the_module.rollback()


@pytest.fixture
async def asynchronous(db):
    conn = await psycopg.AsyncConnection.connect(db)
    yield conn
    await conn.rollback()
    await conn.close()


ISOLATING = [
    "rolled_back",
    "forced",
    "forced_and_nested",
    "left_by_rollback",
    "in_sql",
    "of_a_pool",
    "of_a_pool_by_hand",
    "with_a_finalizer",
    "of_the_module_rolled_back",
]
# Inside `conn.transaction()` psycopg forbids rollback().
BLOCKS = ("forced", "forced_and_nested", "left_by_rollback")


def isolated(test):
    cases = [
        (fixture, way)
        for fixture in ISOLATING
        for way in WAYS
        if not (fixture in BLOCKS and way in ("rolled-back", "swallowed"))
    ]
    return pytest.mark.parametrize(("fixture", "how"), cases)(test)


@isolated
def test_isolated_by_a_fixture(request, fixture, how):
    conn = request.getfixturevalue(fixture)
    app = application(never)
    app.dependency_overrides[never] = lambda: conn
    with TestClient(app) as client:
        assert client.post(f"/{how}").status_code == (409 if how == "refused" else 200)


@isolated
def test_isolated_by_a_fixture_through_a_generator(request, fixture, how):
    conn = request.getfixturevalue(fixture)

    def override():
        yield conn

    app = application(never)
    app.dependency_overrides[never] = override
    assert TestClient(app).post(f"/{how}").status_code == (409 if how == "refused" else 200)


@pytest.mark.parametrize("fixture", ISOLATING)
def test_isolated_repository(request, fixture):
    repository = Repository(request.getfixturevalue(fixture))
    before = repository.count()
    repository.add()
    assert repository.count() == before + 1


@pytest.mark.anyio
async def test_isolated_async(asynchronous):
    await asynchronous.execute(INSERT)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("how", ["written", "refused", "savepoint", "reading"])
def test_isolated_by_the_test_itself(db, how):
    """A connection that the test lends to its requests, and rolls back."""
    conn = psycopg.connect(db)
    app = application(never)
    app.dependency_overrides[never] = lambda: conn
    TestClient(app).post(f"/{how}")
    conn.rollback()
    conn.close()


@pytest.mark.parametrize("how", ["written", "refused", "savepoint", "reading"])
def test_isolated_by_an_override(db, how):
    def override():
        conn = psycopg.connect(db)
        try:
            yield conn
        finally:
            conn.rollback()
            conn.close()

    def forced():
        with psycopg.connect(db) as conn, conn.transaction(force_rollback=True):
            yield conn

    app = application(never)
    for each in [override, forced]:
        app.dependency_overrides[never] = each
        TestClient(app).post(f"/{how}")


def test_repository_called_directly_and_rolled_back(db):
    with psycopg.connect(db) as conn:
        Repository(conn).add()
        assert Repository(conn).count() > 0
        conn.rollback()


async def test_async_repository_called_directly_and_rolled_back(db):
    async with await psycopg.AsyncConnection.connect(db) as conn:
        await conn.execute(INSERT)
        await conn.rollback()


@pytest.fixture(autouse=True)
def cleaned(db):
    """As many suites do it."""
    yield
    with psycopg.connect(db) as conn:
        conn.execute("delete from child")


class TestXunit:
    def setup_method(self):
        self.conn = None

    def teardown_method(self):
        if self.conn is not None:
            self.conn.rollback()
            self.conn.close()

    def test_rolled_back_by_the_class(self, db):
        self.conn = psycopg.connect(db)
        Repository(self.conn).add()


class TestLazyDatabase:
    """A database object of a fixture that connects when a test asks, and rolls back at the end."""

    @pytest.fixture
    def database(self, db):
        class Database:
            conn = None

            def connection(self):
                self.conn = self.conn or psycopg.connect(db)
                return self.conn

        database = Database()
        yield database
        if database.conn is not None:
            database.conn.rollback()
            database.conn.close()

    def test_it(self, database):
        Repository(database.connection()).add()

    def test_through_the_application(self, database):
        app = application(never)
        app.dependency_overrides[never] = database.connection
        assert TestClient(app).post("/written").status_code == 200


def test_pool_of_a_fixture_that_is_rolled_back(db, monkeypatch):
    """The application's own pool hands out one connection, in a transaction that is rolled back."""

    class OneConnection:
        def __init__(self, conn):
            self.conn = conn

        def getconn(self):
            return self.conn

        def putconn(self, conn):
            assert conn is self.conn

    with psycopg.connect(db, autocommit=True) as conn, conn.transaction(force_rollback=True):
        pool = OneConnection(conn)

        def get_conn():
            conn = pool.getconn()
            try:
                with conn.transaction():
                    yield conn
            finally:
                pool.putconn(conn)

        assert TestClient(application(get_conn)).post("/written").status_code == 200


# -- exceptions that somebody is told of ------------------------------------------------------------------------------


def service(db, how):
    conn = psycopg.connect(db)
    try:
        conn.execute(INSERT)
        if how == "refused":
            conn.execute("insert into stock values (1, 1)")
        if how == "raised":
            raise LookupError("no such thing")
        conn.commit()
    finally:
        conn.close()


def pooled_service(pool, how):
    with pool.connection() as conn:
        conn.execute(INSERT)
        if how == "refused":
            conn.execute("insert into stock values (1, 1)")
        if how == "raised":
            raise LookupError("no such thing")


async def async_service(db, how):
    conn = await psycopg.AsyncConnection.connect(db)
    try:
        await conn.execute(INSERT)
        if how == "refused":
            await conn.execute("insert into stock values (1, 1)")
        if how == "raised":
            raise LookupError("no such thing")
        await conn.commit()
    finally:
        await conn.close()


ERRORS = (LookupError, psycopg.errors.UniqueViolation)


@pytest.mark.parametrize("how", ["refused", "raised"])
def test_the_test_expects_it(db, how):
    with pytest.raises(ERRORS):
        service(db, how)


@pytest.mark.parametrize("how", ["refused", "raised"])
def test_the_test_expects_it_of_a_pool(pool, how):
    with pytest.raises(ERRORS):
        pooled_service(pool, how)


@pytest.mark.parametrize("how", ["refused", "raised"])
async def test_the_test_expects_it_async(db, how):
    with pytest.raises(ERRORS):
        await async_service(db, how)


@pytest.mark.parametrize("how", ["refused", "raised"])
def test_the_test_catches_it(db, how):
    try:
        service(db, how)
    except ERRORS:
        return
    raise AssertionError


@pytest.mark.parametrize("how", ["refused", "raised"])
def test_a_commit_in_a_finally(db, how):
    """The server answers ROLLBACK, but the exception is on its way."""

    def commits_anyway():
        conn = psycopg.connect(db)
        try:
            conn.execute(INSERT)
            conn.execute("insert into stock values (1, 1)")
        finally:
            conn.commit()
            conn.close()

    with pytest.raises(psycopg.errors.UniqueViolation):
        commits_anyway()


@pytest.mark.parametrize("how", ["refused", "raised"])
def test_in_a_request_the_client_is_told(db, how):
    app = FastAPI()

    @app.post("/")
    def write():
        try:
            service(db, how)
        except ERRORS:
            raise HTTPException(409) from None

    @app.post("/crash")
    def crash():
        service(db, how)

    client = TestClient(app, raise_server_exceptions=False)
    assert client.post("/").status_code == 409
    assert client.post("/crash").status_code == 500
    with pytest.raises(ERRORS):
        TestClient(app).post("/crash")


@expect("write-lost")
def test_what_somebody_further_out_handles_is_another_exception(db):
    """A cache that misses: the exception has nothing to do with the forgotten commit."""
    cache = {}
    try:
        cache["key"]
    except KeyError:
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        conn.close()


def test_and_its_twin_commits(db):
    cache = {}
    try:
        cache["key"]
    except KeyError:
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        conn.commit()
        conn.close()


# -- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["rollback", "block"])
def test_a_retry_succeeds(db, end):
    app = FastAPI()

    @app.post("/")
    def write():
        with psycopg.connect(db) as conn:
            for attempt in range(3):
                try:
                    if end == "block":
                        with conn.transaction():
                            attempted(conn, attempt)
                    else:
                        attempted(conn, attempt)
                    break
                except psycopg.errors.UniqueViolation:
                    conn.rollback()
        return {}

    def attempted(conn, attempt):
        conn.execute(INSERT)
        if attempt < 2:
            conn.execute("insert into stock values (1, 1)")

    assert TestClient(app).post("/").status_code == 200


async def test_a_retry_on_another_connection_succeeds(db):
    app = FastAPI()

    @app.post("/")
    async def write():
        for attempt in range(3):
            try:
                async with await psycopg.AsyncConnection.connect(db) as conn:
                    await conn.execute(INSERT)
                    if attempt < 2:
                        raise LookupError
                return {}
            except LookupError:
                await asyncio.sleep(0)

    assert TestClient(app).post("/").status_code == 200


@pytest.mark.parametrize("swallowed", ["further out", "here"])
def test_a_retry_closes_what_it_gives_up(db, swallowed):
    app = FastAPI()

    def attempted(number):
        conn = psycopg.connect(db)
        try:
            conn.execute(INSERT)
            if number < 2:
                try:
                    conn.execute("insert into stock values (1, 1)")
                except psycopg.errors.UniqueViolation:
                    if swallowed == "here":
                        return False
                    raise
            conn.commit()
            return True
        finally:
            conn.close()

    @app.post("/")
    def write():
        for number in range(3):
            try:
                if attempted(number):
                    return
            except psycopg.errors.UniqueViolation:
                continue

    assert TestClient(app).post("/").status_code == 200


def test_an_outbox_remembers_what_was_rolled_back(db):
    """A second connection that commits later: whatever was to be told has been told."""
    app = FastAPI()

    @app.post("/")
    def write():
        with psycopg.connect(db) as conn:
            conn.execute(INSERT)
            conn.rollback()
        with psycopg.connect(db) as other:
            other.execute("insert into tag(name) values ('failure') on conflict (name) do update set name = 'failure'")

    assert TestClient(app).post("/").status_code == 200


# -- others -----------------------------------------------------------------------------------------------------------


def test_idle_connections(db, pool):
    conn = psycopg.connect(db)
    conn.close()
    conn.close()
    pool.putconn(pool.getconn())


def test_terminated_in_a_transaction(db):
    """The server has ended it, and the client learns of it."""
    with psycopg.connect(db, autocommit=True) as admin:
        conn = psycopg.connect(db)
        conn.execute(INSERT)
        admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")
        conn.close()


def test_background_thread_that_commits(db):
    def work():
        with psycopg.connect(db) as conn:
            conn.execute(INSERT)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_notifications(db):
    with psycopg.connect(db, autocommit=True) as conn:
        conn.execute("listen a_channel")
        with psycopg.connect(db, autocommit=True) as other:
            other.execute("notify a_channel")
        assert len(list(conn.notifies(timeout=1, stop_after=1))) == 1


def test_interrupted_transaction_block(db):
    with psycopg.connect(db, autocommit=True) as conn:
        with pytest.raises(psycopg.errors.QueryCanceled):
            with conn.transaction():
                conn.execute(INSERT)
                timer = threading.Timer(0.1, conn.cancel)
                timer.start()
                conn.execute("select pg_sleep(20)")
        timer.join()
