"""FastAPI on sync sessions, on psycopg and on psycopg2."""

import threading
from contextlib import contextmanager, suppress

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from tables import Item

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")


def build(engine):
    app = FastAPI()
    app.state.engine = engine
    SessionLocal = sessionmaker(engine)
    Registry = scoped_session(SessionLocal)

    # -- dependencies

    def finally_close():
        db = SessionLocal()
        try:
            yield db
        finally:
            db.close()

    def in_with():
        with SessionLocal() as db:
            yield db

    def in_begin():
        with SessionLocal.begin() as db:
            yield db

    def commits():
        db = SessionLocal()
        try:
            yield db
            db.commit()
        except Exception:
            db.rollback()
            raise
        finally:
            db.close()

    def without_finally():
        db = SessionLocal()
        yield db
        db.close()

    def returned():
        return SessionLocal()

    def returned_and_kept():
        KEPT.append(SessionLocal())
        return KEPT[-1]

    def left_generator():
        for db in finally_close():
            return db

    def removed():
        try:
            yield Registry
        finally:
            Registry.remove()

    def not_removed():
        yield Registry

    def connection():
        with engine.connect() as conn:
            yield conn

    def connection_returned():
        return engine.connect()

    def swallows():
        with SessionLocal() as db:
            with suppress(Exception):
                yield db

    names = ("app", "engine", "SessionLocal", "Registry", "names")
    for name, dependency in [(name, it) for name, it in locals().items() if name not in names]:

        def add(name, dependency):
            @app.post(f"/{name}/commit")
            def commit(db=Depends(dependency)):
                db.execute(INSERT)
                db.commit()
                return {}

            @app.post(f"/{name}/flush")
            def flush(db=Depends(dependency)):
                db.execute(INSERT)
                return {}

            @app.get(f"/{name}/read")
            def read(db=Depends(dependency)):
                return db.scalar(text("select 1"))

            @app.post(f"/{name}/404")
            def refuse(db=Depends(dependency)):
                db.execute(INSERT)
                raise HTTPException(404)

            @app.post(f"/{name}/500")
            def boom(db=Depends(dependency)):
                db.execute(INSERT)
                raise RuntimeError("boom")

        add(name, dependency)

    # -- endpoints

    @app.get("/endpoint/with")
    def endpoint_with():
        with SessionLocal() as db:
            return db.scalar(text("select 1"))

    @app.get("/endpoint/early")
    def endpoint_early(stop: bool = True):
        db = SessionLocal()
        found = db.scalar(text("select 1"))
        if stop:
            return found
        db.close()

    @app.get("/endpoint/kept")
    def endpoint_kept():
        db = SessionLocal()
        KEPT.append(db)
        return db.scalar(text("select 1"))

    @app.get("/endpoint/boom")
    def endpoint_boom():
        db = SessionLocal()
        KEPT.append(db)
        db.scalar(text("select 1"))
        raise RuntimeError("boom")

    @app.post("/endpoint/rollback")
    def endpoint_rollback(db: Session = Depends(finally_close)):
        db.add(Item(name="x"))
        db.flush()
        db.rollback()
        return {}

    @app.post("/endpoint/rollback/409")
    def endpoint_rollback_409(db: Session = Depends(finally_close)):
        db.add(Item(name="x"))
        db.flush()
        db.rollback()
        raise HTTPException(409)

    @app.post("/endpoint/duplicate")
    def endpoint_duplicate(db: Session = Depends(finally_close)):
        db.add(Item(name=None))
        try:
            db.commit()
        except IntegrityError:
            db.rollback()
        return {}

    @app.post("/endpoint/duplicate/after")
    def endpoint_duplicate_after(db: Session = Depends(finally_close)):
        db.add(Item(name="x"))
        db.flush()
        db.add(Item(name=None))
        try:
            db.commit()
        except IntegrityError:
            db.rollback()
        return {}

    @app.post("/endpoint/duplicate/savepoint")
    def endpoint_duplicate_savepoint(db: Session = Depends(finally_close)):
        db.add(Item(name="x"))
        db.flush()
        with suppress(IntegrityError), db.begin_nested():
            db.add(Item(name=None))
        db.commit()
        return {}

    @app.post("/endpoint/retry")
    def endpoint_retry():
        for attempt in range(2):
            with suppress(ZeroDivisionError), SessionLocal.begin() as db:
                db.add(Item(name="x"))
                db.flush()
                _ = 1 / attempt
        return {}

    @app.post("/endpoint/swallowed")
    def endpoint_swallowed():
        with suppress(ZeroDivisionError), SessionLocal.begin() as db:
            db.add(Item(name="x"))
            db.flush()
            _ = 1 / 0
        return {}

    @app.post("/endpoint/swallowed/close")
    def endpoint_swallowed_close():
        with suppress(ZeroDivisionError), SessionLocal() as db:
            db.add(Item(name="x"))
            db.flush()
            _ = 1 / 0
        return {}

    @app.post("/endpoint/timeout")
    def endpoint_timeout(db: Session = Depends(commits)):
        db.execute(INSERT)
        with suppress(OperationalError):
            db.execute(text("set local statement_timeout = 50"))
            db.execute(text("select pg_sleep(5)"))
        return {}

    @app.get("/endpoint/expired")
    def endpoint_expired(db: Session = Depends(finally_close)):
        item = Item(name="x")
        db.add(item)
        db.commit()
        return {"name": item.name}

    @app.get("/endpoint/two")
    def endpoint_two(db: Session = Depends(finally_close)):
        db.scalar(text("select 1"))
        with SessionLocal() as other:
            return other.scalar(text("select 1"))

    @app.get("/endpoint/two/dependencies")
    def endpoint_two_dependencies(db: Session = Depends(finally_close), other: Session = Depends(in_with)):
        return db.scalar(text("select 1")) + other.scalar(text("select 1"))

    @app.get("/endpoint/shared")
    def endpoint_shared(db: Session = Depends(finally_close), same: Session = Depends(finally_close)):
        assert db is same
        return db.scalar(text("select 1"))

    @app.get("/endpoint/thread")
    def endpoint_thread():
        def work():
            db = SessionLocal()
            db.scalar(text("select 1"))
            KEPT.append(db)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return {}

    def job_that_closes():
        with SessionLocal.begin() as db:
            db.execute(INSERT)

    def job_that_forgets():
        db = SessionLocal()
        db.execute(text("select 1"))
        KEPT.append(db)

    def job_without_commit():
        with SessionLocal() as db:
            db.execute(INSERT)

    @app.post("/background/closes")
    def background_closes(tasks: BackgroundTasks):
        tasks.add_task(job_that_closes)

    @app.post("/background/forgets")
    def background_forgets(tasks: BackgroundTasks):
        tasks.add_task(job_that_forgets)

    @app.post("/background/without-commit")
    def background_without_commit(tasks: BackgroundTasks):
        tasks.add_task(job_without_commit)

    @app.post("/background/uses-the-sessions")
    def background_uses_the_session(tasks: BackgroundTasks, db: Session = Depends(finally_close)):
        def use():
            # The dependency closes it after this (FastAPI 0.118 and later).
            db.scalar(text("select 1"))

        tasks.add_task(use)

    @app.get("/stream")
    def stream():
        def rows():
            with SessionLocal() as db:
                for row in db.execute(text("select generate_series(1, 5)").execution_options(yield_per=1)):
                    yield f"{row[0]}\n"

        return StreamingResponse(rows())

    @app.get("/stream/dependency")
    def stream_dependency(db: Session = Depends(finally_close)):
        rows = db.execute(text("select generate_series(1, 5)"))
        return StreamingResponse(f"{row[0]}\n" for row in rows)

    @app.middleware("http")
    async def session_of_the_request(request: Request, call_next):
        mode = request.query_params.get("middleware")
        if mode is None:
            return await call_next(request)
        db = request.state.db = SessionLocal()
        response = await call_next(request)
        if mode == "close":
            db.close()
        else:
            KEPT.append(db)
        return response

    @app.get("/state")
    def state(request: Request):
        return request.state.db.scalar(text("select 1"))

    @contextmanager
    def session_scope():
        db = SessionLocal()
        try:
            yield db
            db.commit()
        except BaseException:
            db.rollback()
            raise
        finally:
            db.close()

    @app.post("/scope")
    def scope():
        with session_scope() as db:
            db.execute(INSERT)

    @app.post("/scope/404")
    def scope_404():
        with session_scope() as db:
            db.execute(INSERT)
            raise HTTPException(404)

    return app


@pytest.fixture
def app(engine):
    return build(engine)


@pytest.fixture
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


CLEAN = (
    *(f"{name}/{what}" for name in ("finally_close", "in_with") for what in ("commit", "read", "404", "500")),
    *(f"{name}/{what}" for name in ("commits", "in_begin") for what in ("flush", "read", "404", "500")),
    *(f"{name}/{what}" for name in ("without_finally", "removed", "connection") for what in ("commit", "read")),
    "returned/commit",
    "commits/commit",
    "not_removed/commit",
    "endpoint/with",
    "endpoint/rollback/409",
    "endpoint/duplicate",
    "endpoint/duplicate/savepoint",
    "endpoint/retry",
    "endpoint/expired",
    "endpoint/shared",
    "background/closes",
    "background/uses-the-sessions",
    "stream",
    "stream/dependency",
    "state?middleware=close",
    "scope",
    "scope/404",
)
LOST = (
    "finally_close/flush",
    "in_with/flush",
    "without_finally/flush",
    "removed/flush",
    "connection/flush",
    "endpoint/rollback",
    "endpoint/duplicate/after",
    "endpoint/swallowed",
    "endpoint/swallowed/close",
    "endpoint/timeout",
    "background/without-commit",
)
NOT_RETURNED = (
    "returned/read",
    "returned/flush",
    "returned_and_kept/read",
    "returned_and_kept/404",
    "connection_returned/commit",
    "without_finally/404",
    "without_finally/500",
    "not_removed/read",
    "endpoint/early",
    "endpoint/kept",
    "endpoint/boom",
    "endpoint/thread",
    "background/forgets",
    "state?middleware=keep",
)
NESTED = ("endpoint/two", "endpoint/two/dependencies")


def get_or_post(client, path):
    response = client.post(f"/{path}")
    return client.get(f"/{path}") if response.status_code == 405 else response


@pytest.mark.parametrize("path", CLEAN)
def test_clean(client, path):
    get_or_post(client, path)


@lost
@pytest.mark.parametrize("path", LOST)
def test_lost(client, path):
    assert get_or_post(client, path).status_code == 200


@not_returned
@pytest.mark.parametrize("path", NOT_RETURNED)
def test_not_returned(client, path):
    get_or_post(client, path)


@expect("nested-checkout")
@pytest.mark.parametrize("path", NESTED)
def test_nested(client, path):
    get_or_post(client, path)


@lost
def test_left_generator(client):
    # The caller leaves the generator, so its `finally` runs at once; the session goes on, and begins again.
    get_or_post(client, "left_generator/commit")
    get_or_post(client, "swallows/500")
    get_or_post(client, "swallows/flush")


@pytest.mark.pgleak(commit="before-response")
@expect("commit-after-response")
@pytest.mark.parametrize("name", ["commits", "in_begin"])
def test_commit_after_response(client, name):
    get_or_post(client, f"{name}/flush")


@pytest.mark.pgleak(commit="before-response")
def test_commit_before_response(client):
    get_or_post(client, "finally_close/commit")


@pytest.mark.parametrize("client_of", [lambda app: TestClient(app)], ids=["without with"])
def test_without_with(app, client_of):
    client_of(app).post("/finally_close/commit")


def test_client_of_the_plugin(app, pgleak_sync_client):
    pgleak_sync_client.post("/finally_close/commit")


@pytest.fixture
def pgleak_app(app):
    return app


# -- the database of the test in the place of the application's --------------------------------------------------------


@pytest.fixture
def db(engine):
    connection = engine.connect()
    transaction = connection.begin()
    session = Session(bind=connection, join_transaction_mode="create_savepoint")
    yield session
    session.close()
    transaction.rollback()
    connection.close()


def get_db():
    raise NotImplementedError


def application_with_get_db():
    app = FastAPI()

    @app.post("/commit")
    def commit(db: Session = Depends(get_db)):
        db.add(Item(name="x"))
        db.commit()
        return {}

    @app.post("/flush")
    def flush(db: Session = Depends(get_db)):
        db.add(Item(name="x"))
        db.flush()
        return {}

    @app.post("/rollback")
    def rollback(db: Session = Depends(get_db)):
        db.add(Item(name="x"))
        db.flush()
        db.rollback()
        return {}

    return app


@pytest.mark.parametrize("path", ["commit", "flush"])
def test_overridden(db, path):
    app = application_with_get_db()
    app.dependency_overrides[get_db] = lambda: db
    with TestClient(app) as client:
        assert client.post(f"/{path}").status_code == 200
    assert db.scalars(select(Item)).all()


def test_overridden_by_a_generator(db):
    def override():
        yield db

    app = application_with_get_db()
    app.dependency_overrides[get_db] = override
    with TestClient(app) as client:
        client.post("/commit")


def test_overridden_by_a_session_of_the_test(engine):
    app = application_with_get_db()
    with Session(engine) as session:
        app.dependency_overrides[get_db] = lambda: session
        with TestClient(app) as client:
            client.post("/flush")


def test_overridden_and_rolled_back_by_the_override(engine):
    def override():
        with Session(engine) as session:
            yield session
            session.rollback()

    app = application_with_get_db()
    app.dependency_overrides[get_db] = override
    with TestClient(app) as client:
        client.post("/flush")


@pytest.fixture
def plain_db(engine):
    with Session(engine) as session:
        yield session


def test_overridden_by_a_plain_session(plain_db):
    app = application_with_get_db()
    app.dependency_overrides[get_db] = lambda: plain_db
    with TestClient(app) as client:
        client.post("/flush")
        client.post("/commit")


# -- the engine of the application --------------------------------------------------------------------------------------


@expect("pool-not-closed")
def test_engine_in_each_request(url):
    app = FastAPI()

    @app.get("/")
    def read():
        engine = create_engine(url)
        KEPT.append(engine)
        with engine.connect() as conn:
            return conn.scalar(text("select 1"))

    TestClient(app).get("/")


def lifespan_app(url, dispose):
    @contextmanager
    def noop():
        yield

    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def lifespan(app):
        app.state.engine = create_engine(url)
        KEPT.append(app.state.engine)
        yield
        if dispose:
            app.state.engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    def read(request: Request):
        with Session(request.app.state.engine) as db:
            return db.scalar(text("select 1"))

    return app


def test_engine_of_the_lifespan(url):
    with TestClient(lifespan_app(url, True)) as client:
        client.get("/")


@expect("pool-not-closed")
def test_engine_of_the_lifespan_never_disposed(url):
    with TestClient(lifespan_app(url, False)) as client:
        client.get("/")


# -- no ASGI: a registry and a teardown function, as Flask-SQLAlchemy has ------------------------------------------------


def wsgi_request(registry, view, teardown):
    try:
        view()
        return 200
    except LookupError:
        return 404
    finally:
        if teardown:
            registry.remove()


def test_teardown_removes(engine):
    registry = scoped_session(sessionmaker(engine))

    def view():
        registry.execute(INSERT)
        registry.commit()

    def read():
        registry.scalar(text("select 1"))

    wsgi_request(registry, view, True)
    wsgi_request(registry, read, True)


@not_returned
def test_teardown_forgotten(engine):
    registry = scoped_session(sessionmaker(engine))
    wsgi_request(registry, lambda: registry.scalar(text("select 1")), False)
    KEPT.append(registry)


@lost
def test_teardown_removes_what_nobody_committed(engine):
    registry = scoped_session(sessionmaker(engine))
    wsgi_request(registry, lambda: registry.execute(INSERT), True)
