"""``max_connections``: what is open at once, of the test, its requests, fixtures and processes; and of nobody else."""

import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import httpx
import psycopg
import psycopg_pool
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

pytestmark = pytest.mark.pgleak
expect = pytest.mark.expect
over = expect("too-many-connections")


def at_most(number):
    return pytest.mark.pgleak(max_connections=number)


def open_at_once(dsn, number):
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(psycopg.connect(dsn))


async def open_at_once_async(dsn, number):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))


# -- in the test body -------------------------------------------------------------------------------------------------


@at_most(2)
def test_exactly(dsn):
    open_at_once(dsn, 2)


@over
@at_most(2)
def test_one_more(dsn):
    open_at_once(dsn, 3)


@at_most(2)
async def test_exactly_async(dsn):
    await open_at_once_async(dsn, 2)


@over
@at_most(2)
async def test_one_more_async(dsn):
    await open_at_once_async(dsn, 3)


@at_most(1)
def test_one_after_the_other(dsn):
    for _ in range(10):
        open_at_once(dsn, 1)


@at_most(0)
def test_none():
    pass


@over
@at_most(0)
def test_one_is_more_than_none(dsn):
    open_at_once(dsn, 1)


@over
@at_most(1)
def test_found_once_however_often(dsn):
    for _ in range(5):
        open_at_once(dsn, 2)


@expect("connection-dropped", "connection-dropped", "too-many-connections")
@at_most(1)
def test_beside_a_leak(dsn):
    first, second = psycopg.connect(dsn), psycopg.connect(dsn)
    del first, second


@expect("connection-dropped", "connection-dropped")
@at_most(1)
def test_a_dropped_one_is_open_no_longer(dsn):
    psycopg.connect(dsn)
    psycopg.connect(dsn)


@at_most(1)
def test_a_failed_attempt_is_none(dsn):
    with psycopg.connect(dsn), pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn, dbname="there_is_no_such_database")


@pytest.mark.pgleak(max_connections=1, allow=["too-many-connections"])
def test_allowed(dsn):
    open_at_once(dsn, 2)


@pytest.mark.pgleak
def test_without_a_number(dsn):
    open_at_once(dsn, 5)


@over
@at_most(3)
def test_threads(dsn):
    barrier = threading.Barrier(4)

    def work():
        with psycopg.connect(dsn):
            barrier.wait(30)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@over
@at_most(3)
async def test_tasks(dsn):
    ready = asyncio.Barrier(4)

    async def work():
        async with await psycopg.AsyncConnection.connect(dsn):
            await ready.wait()

    await asyncio.gather(*(work() for _ in range(4)))


@at_most(2)
def test_terminated_by_the_server(dsn):
    with psycopg.connect(dsn, autocommit=True) as admin:
        broken = psycopg.connect(dsn)
        admin.execute("select pg_terminate_backend(%s)", [broken.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            broken.execute("select 1")
        broken.close()
        open_at_once(dsn, 1)


# -- pools ------------------------------------------------------------------------------------------------------------


@over
@at_most(3)
def test_idle_members_count(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=4, open=False) as pool:
        pool.wait()


@at_most(4)
def test_idle_members_fit(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=4, open=False) as pool:
        pool.wait()
        with pool.connection() as conn:
            conn.execute("select 1")


@over
@at_most(3)
async def test_idle_members_count_async(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=4, open=False) as pool:
        await pool.wait()


async def together(pool, number):
    ready = asyncio.Barrier(number)

    async def work():
        async with pool.connection():
            await ready.wait()

    await asyncio.gather(*(work() for _ in range(number)))


@over
@at_most(2)
async def test_a_pool_grows(dsn):
    async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=3, open=False) as pool:
        await together(pool, 3)


@at_most(2)
async def test_a_null_pool(dsn):
    async with psycopg_pool.AsyncNullConnectionPool(dsn, max_size=4, open=False) as pool:
        for _ in range(5):
            await together(pool, 2)


@over
@at_most(4)
def test_a_pool_and_a_connection(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=4, open=False) as pool:
        pool.wait()
        open_at_once(dsn, 1)


@at_most(4)
def test_two_pools_one_after_the_other(dsn):
    for _ in range(2):
        with psycopg_pool.ConnectionPool(dsn, min_size=4, open=False) as pool:
            pool.wait()


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(dsn):
    with psycopg_pool.ConnectionPool(dsn, min_size=3, max_size=3, open=False, name="three") as pool:
        pool.wait()
        yield pool


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn) as conn:
        yield conn


@at_most(3)
def test_a_fixture_fits(three):
    with three.connection():
        pass


@over
@at_most(2)
def test_a_fixture_alone_is_too_much(three):
    pass


@over
@at_most(3)
def test_a_fixture_and_a_connection(three, dsn):
    open_at_once(dsn, 1)


@at_most(4)
def test_two_fixtures_fit(three, conn):
    pass


@over
@at_most(3)
def test_two_fixtures(three, conn):
    pass


@at_most(1)
def test_a_fixture_that_is_only_still_alive(dsn):
    open_at_once(dsn, 1)


@over
@at_most(3)
def test_a_fixture_by_name(request, dsn):
    request.getfixturevalue("three")
    open_at_once(dsn, 1)


@pytest.fixture
def by_name(request):
    return request.getfixturevalue("three")


@over
@at_most(2)
def test_a_fixture_by_name_of_another(by_name):
    pass


@pytest.fixture
def briefly(dsn):
    open_at_once(dsn, 3)


@at_most(1)
def test_what_a_fixture_had_open_before(briefly, dsn):
    open_at_once(dsn, 1)


@pytest.fixture(scope="module")
def listener(dsn):
    stop, ready = threading.Event(), threading.Event()

    def listen():
        while not stop.is_set():
            with psycopg.connect(dsn):
                ready.set()
                stop.wait(0.005)

    thread = threading.Thread(target=listen)
    thread.start()
    ready.wait(30)
    yield
    stop.set()
    thread.join()


def test_the_listener_is_there(listener):
    pass


@at_most(1)
def test_the_listener_of_another_test_goes_on(dsn):
    for _ in range(10):
        open_at_once(dsn, 1)


# -- requests ---------------------------------------------------------------------------------------------------------


def create_app(dsn):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=2, max_size=2, open=False) as pool:
            await pool.wait()
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan)

    async def get_conn():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            yield conn

    @app.get("/pooled")
    async def pooled():
        async with app.state.pool.connection() as conn:
            await conn.execute("select 1")

    @app.get("/direct")
    async def direct(conn=Depends(get_conn)):
        await conn.execute("select pg_sleep(0.2)")

    @app.get("/sync")
    def sync():
        with psycopg.connect(dsn) as conn:
            conn.execute("select 1")

    return app


@pytest.fixture(scope="session")
def pgleak_app(dsn):
    return create_app(dsn)


@at_most(2)
async def test_requests_from_a_pool(pgleak_client):
    for response in await asyncio.gather(*(pgleak_client.get("/pooled") for _ in range(5))):
        assert response.status_code == 200


@over
@at_most(1)
async def test_the_pool_of_the_lifespan(pgleak_client):
    assert (await pgleak_client.get("/pooled")).status_code == 200


@over
@at_most(4)
async def test_requests_at_once(pgleak_client):
    for response in await asyncio.gather(*(pgleak_client.get("/direct") for _ in range(3))):
        assert response.status_code == 200


@at_most(3)
async def test_requests_one_by_one(pgleak_client):
    for _ in range(2):
        assert (await pgleak_client.get("/direct")).status_code == 200


@over
@at_most(2)
def test_test_client(pgleak_app):
    with TestClient(pgleak_app) as client:
        assert client.get("/sync").status_code == 200


@at_most(3)
def test_test_client_clean(pgleak_app):
    with TestClient(pgleak_app) as client:
        assert client.get("/sync").status_code == 200
        assert client.get("/pooled").status_code == 200


@over
@at_most(1)
async def test_a_transport_without_a_lifespan(pgleak_app):
    transport = httpx.ASGITransport(app=pgleak_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await asyncio.gather(client.get("/direct"), client.get("/direct"))


@at_most(3)
def test_the_sync_client(pgleak_sync_client):
    assert pgleak_sync_client.get("/sync").status_code == 200


# -- other processes --------------------------------------------------------------------------------------------------

WORKER = """
import os, sys, psycopg
conns = [psycopg.connect(sys.argv[1], application_name=f"worker {os.getpid()}") for _ in range(int(sys.argv[2]))]
print("connected", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def worker(dsn, number):
    command = [sys.executable, "-c", WORKER, dsn, str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "connected\n"
        yield
        time.sleep(0.3)  # to be seen from here, too
        process.stdin.close()
    wait_until_gone(dsn, process)


def wait_until_gone(dsn, process):
    # A backend outlives its client by some milliseconds, and on a busy machine by more than the grace.
    with psycopg.connect(dsn, dbname="postgres", autocommit=True) as conn:
        sql = "select count(*) from pg_stat_activity where application_name = %s"
        while conn.execute(sql, [f"worker {process.pid}"]).fetchone()[0]:
            time.sleep(0.01)


@over
@at_most(3)
def test_the_connections_of_workers(dsn):
    with worker(dsn, 2), worker(dsn, 2):
        pass


@at_most(4)
def test_the_connections_of_workers_fit(dsn):
    with worker(dsn, 2), worker(dsn, 2):
        pass


@over
@at_most(2)
async def test_a_worker_and_this_process(dsn):
    with worker(dsn, 2):
        async with await psycopg.AsyncConnection.connect(dsn):
            await asyncio.sleep(0.3)


@at_most(2)
def test_workers_one_after_the_other(dsn):
    for _ in range(2):
        with worker(dsn, 2):
            pass


@pytest.fixture
def workers(dsn):
    with worker(dsn, 3):
        yield


@at_most(1)
def test_what_was_there_before(workers, dsn):
    open_at_once(dsn, 1)


def work(dsn, ready, go_on):
    name = f"worker {os.getpid()}"
    with psycopg.connect(dsn, application_name=name), psycopg.connect(dsn, application_name=name):
        ready.release()
        go_on.wait(30)


@over
@at_most(3)
@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_forked_workers(dsn):
    context = multiprocessing.get_context("fork")
    ready, go_on = context.Semaphore(0), context.Event()
    processes = [context.Process(target=work, args=(dsn, ready, go_on)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=30)
    time.sleep(0.3)
    go_on.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        wait_until_gone(dsn, process)
