"""The application as a real server: what its workers leave is found as in process."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

APP = """
    import asyncio, os
    from contextlib import asynccontextmanager
    import psycopg
    from fastapi import BackgroundTasks, Depends, FastAPI
    from psycopg_pool import AsyncConnectionPool

    DSN = os.environ["DATABASE_URL"]

    @asynccontextmanager
    async def lifespan(app):
        async with AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    async def returned():
        return await psycopg.AsyncConnection.connect(DSN)

    async def exits_late():
        conn = await psycopg.AsyncConnection.connect(DSN)
        yield conn
        await asyncio.sleep(0.2)
        await conn.close()

    @app.get("/who")
    async def who():
        return os.getpid()

    @app.get("/leak/{number}")
    async def leak(number: int, conn=Depends(returned)):
        await conn.execute("select 1")

    @app.get("/pooled")
    async def pooled():
        async with app.state.pool.connection() as conn:
            await conn.execute("select 1")

    @app.get("/late")
    async def late(conn=Depends(exits_late)):
        await conn.execute("select 1")

    async def works_on():
        await asyncio.sleep(0.8)  # longer than the grace
        await psycopg.AsyncConnection.connect(DSN)

    @app.get("/background")
    async def background(tasks: BackgroundTasks):
        tasks.add_task(works_on)

    @app.get("/name")
    async def name():
        async with await psycopg.AsyncConnection.connect(DSN, application_name="the user's own") as conn:
            return (await (await conn.execute("show application_name")).fetchone())[0]

    class Cached:
        conn = None

    @app.get("/keep")
    async def keep():
        Cached.conn = await psycopg.AsyncConnection.connect(DSN)

    @app.get("/headers")
    async def headers(request: __import__("fastapi").Request):
        return sorted(request.headers)
"""

TESTS = """
    import pytest

    pytestmark = pytest.mark.pgleak

    @pytest.fixture(scope="module", params=COMMANDS)
    def server(request, pgleak_live, pgleak_dsn):
        with pgleak_live("shop:app", command=request.param, env={"DATABASE_URL": pgleak_dsn}) as server:
            yield server

    @pytest.fixture
    def client(server):
        with server.client() as client:
            yield client

    @pytest.fixture
    def visited(client):
        assert client.get("/leak/1").status_code == 200

    def test_all_workers_serve(server, client):
        assert len(server.worker_pids) == server.command.workers
        assert client.get("/who").json() in server.worker_pids

    def test_clean(client):
        assert [client.get(path).status_code for path in ("/pooled", "/late", "/pooled")] == [200, 200, 200]

    async def test_clean_async(server):
        async with server.async_client() as client:
            assert (await client.get("/late")).status_code == 200

    def test_the_application_is_left_as_it_is(client):
        assert client.get("/name").json() == "the user's own"
        assert "x-pytest-pgleak" not in client.get("/headers").json()

    def test_what_the_process_keeps_is_no_leak_of_the_test(client):
        assert client.get("/keep").status_code == 200

    def test_leak(client):
        client.get("/who")
        assert client.get("/leak/7").status_code == 200

    async def test_leak_async(server):
        async with server.async_client() as client:
            assert (await client.get("/leak/8")).status_code == 200

    def test_leak_of_a_background_task(client):
        assert client.get("/background").status_code == 200

    def test_leak_of_a_fixture(visited):
        pass

    def test_a_block(client, pgleak):
        with pytest.raises(pytest.fail.Exception, match="connection-dropped"):
            with pgleak.no_leaks():
                client.get("/leak/1")
        with pgleak.no_leaks():
            client.get("/pooled")

    @pytest.mark.pgleak(allow=["connection-dropped"])
    def test_findings(client, pgleak):
        assert pgleak.findings() == ()
        client.get("/leak/1")
        assert [finding.kind for finding in pgleak.findings()] == ["connection-dropped"]
        assert [finding.kind for finding in pgleak.findings()] == ["connection-dropped"]

    @pytest.mark.pgleak(allow=["connection-dropped"])
    def test_allowed(client):
        assert client.get("/leak/9").status_code == 200
"""

COMMANDS = [
    "uvicorn {app}",
    "uvicorn {app} --workers 2",
    "gunicorn {app} --workers 2",
    "gunicorn {app} --workers 2 --preload",
]


@pytest.fixture
def run(pytester: pytest.Pytester, server_dsn: str) -> Run:
    def write_and_run(source: str, *args: str, app: str = APP, **values: object) -> pytest.RunResult:
        pytester.makepyfile(shop=textwrap.dedent(app))
        head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        pytester.makepyfile(test_it=head + textwrap.dedent(source))
        arguments = ("-p", "no:cacheprovider", "-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={server_dsn}")
        return pytester.runpytest_subprocess(*arguments, *args, timeout=120)

    return write_and_run


def test_what_the_workers_leave_is_found_as_in_process(run: Run) -> None:
    result = run(TESTS, COMMANDS=COMMANDS)
    number = len(COMMANDS)
    result.assert_outcomes(passed=9 * number, failed=3 * number, errors=number)
    output = result.stdout.str()
    for place, count in {
        "shop.py:17 in returned": 2,  # a test and an async test
        "shop.py:17 in returned  by fixture 'visited' (function scope)": 1,
        "shop.py:44 in works_on": 1,
    }.items():
        line = rf"^ +{count * number} × \[connection-dropped\] {re.escape(place)}$"
        assert re.search(line, output, re.MULTILINE), output
    assert output.count("in returned                   dependency of GET /leak/{number} (leak)") == 3 * number
    assert output.count("  request   #2 GET /leak/7 → 200") == number
    # Told at the end, once for each server: it is the process's.
    kept = r"shop.py:\d+ in keep  by the process \(module global shop.Cached.conn\)  \(warning\)"
    assert re.search(rf"^ +{number} × \[connection-not-closed\] {kept}$", output, re.MULTILINE), output
    assert "internal error" not in output


def test_a_server_that_does_not_start_says_why(run: Run) -> None:
    result = run(
        """
        import pytest

        def start(pgleak_live, *args, **options):
            with pgleak_live(*args, **options):
                pass

        def test_raises(pgleak_live):
            start(pgleak_live, "broken:app")

        def test_is_not_there(pgleak_live):
            start(pgleak_live, command="no-such-program {port}")

        def test_hangs(pgleak_live):
            start(pgleak_live, command="python -c 'import time; print(\\"I hang\\"); time.sleep(60)' {port}", timeout=1)

        def test_is_blind(pgleak_live):
            start(pgleak_live, command="python -E -m http.server --bind 127.0.0.1 {port}")

        def test_cannot_be_meant(pgleak_live):
            start(pgleak_live, command="uvicorn shop:app --host 0.0.0.0")

        def test_tells_its_dsn(pgleak_live):
            start(pgleak_live, command="python -c 'exit(\\"no postgresql://me:secret@db/app\\")' {port}")

        def test_has_a_long_tmpdir(pgleak_live, tmp_path, monkeypatch):
            (long := tmp_path / ("long" * 30)).mkdir()
            monkeypatch.setattr("tempfile.tempdir", str(long))
            start(pgleak_live, command="no-such-program {port}")

        def test_is_not_named(pgleak_live_server):
            pass
        """
    )
    result.assert_outcomes(failed=7, errors=1)
    output = result.stdout.str()
    for line in (
        "the live server was started, but it has ended with exit code 127.",
        'Error loading ASGI app. Could not import module "broken".',
        "no-such-program: No such file or directory",
        "the live server was started, but it did not answer within 1 s.",
        "I hang",
        "no Python process of it has reported itself",
        "0.0.0.0 can be reached from other machines",
        "pgleak_live_command has {app} in it: name your application",
    ):
        assert line in output
    assert "no postgresql://me:…@db/app" in output
    assert output.count("no-such-program: No such file") == 2, output
    assert "servers.py" not in output, "a traceback into the plugin"


def test_each_worker_of_xdist_has_a_server_of_its_own(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npgleak_live_command = DATABASE_URL={dsn} uvicorn shop:app")
    result = run(
        """
        import pytest

        @pytest.mark.pgleak
        @pytest.mark.parametrize("number", range(6))
        def test_it(pgleak_live_server, number):
            with pgleak_live_server.client() as client:
                assert client.get(f"/leak/{number}" if number == 4 else "/pooled").status_code == 200
        """,
        "-n2",
    )
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["   1 × [[]connection-dropped] shop.py:17 in returned"])
    result.stdout.no_fnmatch_line("*untracked-backend*")


def test_a_plugin_that_is_off_watches_nothing(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.pgleak
        def test_it(pgleak_live, pgleak_dsn):
            with pgleak_live("shop:app", env={"DATABASE_URL": pgleak_dsn}) as server, server.client() as client:
                assert client.get("/leak/1").status_code == 200
                assert "x-pytest-pgleak" not in client.get("/headers").json()
                assert not server.worker_pids
        """,
        "--pgleak-mode=off",
    )
    result.assert_outcomes(passed=1)


def test_an_application_that_is_not_starlettes(run: Run, pytester: pytest.Pytester) -> None:
    pytester.mkdir("own").joinpath("sitecustomize.py").write_text("import builtins; builtins.OWN = True")
    result = run(
        """
        import pytest

        pytestmark = pytest.mark.pgleak

        @pytest.fixture(scope="module")
        def server(pgleak_live, pgleak_dsn):
            command = "PYTHONPATH=own gunicorn {app} --workers 2 --worker-class sync"
            with pgleak_live("shop:app", command=command, env={"DATABASE_URL": pgleak_dsn}) as server:
                yield server

        def test_clean(server):
            with server.client() as client:
                assert client.get("/clean").text == "True"

        def test_leak(server):
            with server.client() as client:
                assert client.get("/leak").status_code == 200
        """,
        app="""
            import builtins, os, psycopg

            def app(environ, start_response):
                conn = psycopg.connect(os.environ["DATABASE_URL"])
                if environ["PATH_INFO"] == "/clean":
                    conn.close()
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [str(builtins.OWN).encode()]
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*_ test_leak _*", "[[]connection-dropped]*", "  opened    shop.py:4 in app"])


PORTS = """
    import socket
    import pytest

    @pytest.fixture
    def taken(monkeypatch):
        from pytest_pgleak.live import server
        with socket.socket() as somebodys:
            somebodys.bind(("127.0.0.1", 0))
            somebodys.listen()
            ports, free = [somebodys.getsockname()[1]] * TAKEN, server._free_port
            monkeypatch.setattr(server, "_free_port", lambda: ports.pop() if ports else free())
            yield

    @pytest.mark.pgleak
    def test_it(taken, pgleak_live, pgleak_dsn):
        with pgleak_live("shop:app", env={"DATABASE_URL": pgleak_dsn}) as server, server.client() as client:
            assert client.get("/pooled").status_code == 200
"""


def test_a_port_that_somebody_takes_meanwhile(run: Run) -> None:
    run(PORTS, TAKEN=1).assert_outcomes(passed=1)


def test_a_port_that_is_taken_again_and_again(run: Run) -> None:
    result = run(PORTS, TAKEN=9)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the live server was started, but it has ended with exit code *", "*already in use*"])


OUTLIVES = """
    @app.get("/outlives")
    async def outlives():
        await asyncio.sleep(1.5)
        await psycopg.AsyncConnection.connect(DSN)
"""


def test_what_outlives_a_test_that_is_not_checked_is_nobodys(run: Run) -> None:
    result = run(
        """
        import httpx
        import pytest

        @pytest.fixture(scope="module")
        def server(pgleak_live, pgleak_dsn):
            with pgleak_live("shop:app", env={"DATABASE_URL": pgleak_dsn}) as server:
                yield server

        def give_up(server):
            with server.client() as client, pytest.raises(httpx.ReadTimeout):
                client.get("/outlives", timeout=0.1)

        def test_unchecked(server):
            give_up(server)

        @pytest.mark.pgleak
        def test_checked(server):
            server.client().get("/pooled")

        def test_last(server):
            import time
            time.sleep(2.5)
        """,
        app=APP + OUTLIVES,
    )
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*connection-*")
