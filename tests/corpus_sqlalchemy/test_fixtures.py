"""Fixtures: of every scope, with and without a transaction around the test, and module-level engines."""

import contextlib

import pytest
import pytest_asyncio
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool
from tables import Item, url_of

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
not_closed = expect("pool-not-closed")
lost = expect("write-lost")

KEPT = []
INSERT = text("insert into entry(name) values ('x')")


# -- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def forgetful_engine(url):
    return create_engine(url)


@not_closed
def test_engine_never_disposed(forgetful_engine):
    with Session(forgetful_engine) as session:
        session.scalars(select(Item)).first()


def test_engine_never_used(forgetful_engine):
    pass


@pytest.fixture
def null_engine(url):
    return create_engine(url, poolclass=NullPool)


def test_null_pool(null_engine):
    with Session(null_engine) as session:
        session.scalars(select(Item)).first()


@pytest.fixture(scope="class")
def class_engine(dsn):
    engine = create_engine(url_of(dsn, "psycopg"))
    with engine.connect() as conn:
        conn.execute(text("select 1"))
    yield engine


@not_closed
class TestEngineOfAClass:
    def test_it(self, class_engine):
        with Session(class_engine) as session:
            session.scalars(select(Item)).first()


@pytest.fixture(scope="session")
def session_engine(dsn):
    engine = create_engine(url_of(dsn, "psycopg2"))
    yield engine
    engine.dispose()


def test_lazily_opened_by_the_first_test(session_engine):
    with Session(session_engine) as session:
        session.scalars(select(Item)).first()


def test_the_pool_grows(session_engine):
    session = Session(session_engine)
    session.scalars(select(Item)).first()
    session.close()


@not_returned
def test_leak_from_the_session_engine(session_engine):
    session = Session(session_engine)
    session.scalars(select(Item)).first()
    KEPT.append(session)


@pytest.fixture
def disposes_by_finalizer(url, request):
    engine = create_engine(url)
    request.addfinalizer(engine.dispose)
    return engine


def test_disposed_by_finalizer(disposes_by_finalizer):
    with Session(disposes_by_finalizer) as session:
        session.scalars(select(Item)).first()


def test_own_finalizers(url, request):
    engine = create_engine(url)
    session = Session(engine)
    request.addfinalizer(engine.dispose)
    request.addfinalizer(session.close)
    session.scalars(select(Item)).first()


# -- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def closes(engine):
    with Session(engine) as session:
        yield session


def test_fixture_closes(closes):
    closes.scalars(select(Item)).first()


def test_fixture_closes_with_a_write(closes):
    # Whoever writes in it knows that it will be gone: that is how such tests are isolated.
    closes.add(Item(name="x"))
    closes.flush()


def test_fixture_closes_after_commit(closes):
    closes.add(Item(name="x"))
    closes.commit()


@pytest.fixture
def rolls_back(engine):
    session = Session(engine)
    yield session
    session.rollback()
    session.close()


def test_fixture_rolls_back(rolls_back):
    rolls_back.add(Item(name="x"))
    rolls_back.flush()


@pytest.fixture
def only_rolls_back(engine):
    session = Session(engine)
    yield session
    session.rollback()


def test_fixture_only_rolls_back(only_rolls_back):
    # rollback() gives the connection back as close() does.
    only_rolls_back.add(Item(name="x"))
    only_rolls_back.flush()


@pytest.fixture
def returns_session(engine):
    session = Session(engine)
    session.scalars(select(Item)).first()
    KEPT.append(session)
    return session


@not_returned
def test_fixture_returns_session(returns_session):
    returns_session.scalars(select(Item)).first()


@pytest.fixture
def yields_and_forgets(engine):
    session = Session(engine)
    session.scalars(select(Item)).first()
    KEPT.append(session)
    yield session


@not_returned
def test_fixture_yields_and_forgets(yields_and_forgets):
    pass


@pytest.fixture
def lazy_and_forgotten(engine):
    session = Session(engine)
    KEPT.append(session)
    return session


@not_returned
def test_the_test_is_the_one_that_uses_it(lazy_and_forgotten):
    lazy_and_forgotten.scalars(select(Item)).first()


@pytest.fixture
def arranges(engine):
    with Session(engine) as session, session.begin():
        session.add(Item(name="arranged"))


def test_arranged(arranges, engine):
    with Session(engine) as session:
        assert session.scalars(select(Item).where(Item.name == "arranged")).all()


@pytest.fixture
def make_session(engine):
    sessions = []

    def make():
        sessions.append(Session(engine))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def test_factory_fixture(make_session):
    make_session().scalars(select(Item)).first()


@pytest.fixture
def exit_stack():
    with contextlib.ExitStack() as stack:
        yield stack


def test_exit_stack(exit_stack, engine):
    session = exit_stack.enter_context(Session(engine))
    session.scalars(select(Item)).first()


@pytest.fixture
def factory(engine):
    return sessionmaker(engine)


@not_returned
def test_sessionmaker_of_a_fixture(factory):
    session = factory()
    session.scalars(select(Item)).first()
    KEPT.append(session)


@pytest.fixture
def registry(engine):
    registry = scoped_session(sessionmaker(engine))
    yield registry
    registry.remove()


def test_scoped_session_of_a_fixture(registry):
    registry.add(Item(name="x"))
    registry.flush()


@pytest.fixture(scope="module")
def module_session(dsn):
    engine = create_engine(url_of(dsn, "psycopg"))
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_module_session_committed(module_session):
    module_session.add(Item(name="x"))
    module_session.commit()


def test_module_session_read_and_rolled_back(module_session):
    module_session.scalars(select(Item)).first()
    module_session.rollback()


@pytest.fixture(scope="class")
def class_session(dsn):
    engine = create_engine(url_of(dsn, "psycopg"))
    with Session(engine) as session:
        yield session
    engine.dispose()


class TestSessionOfAClass:
    # A session begins by itself, with the first thing that is read: by design, and for whoever will close it.
    def test_left_open(self, class_session):
        class_session.add(Item(name="x"))
        class_session.flush()

    def test_goes_on(self, class_session):
        class_session.scalars(select(Item)).first()


@pytest.fixture(scope="class")
def class_connection(dsn):
    engine = create_engine(url_of(dsn, "psycopg"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@expect("transaction-left-open")
class TestConnectionOfAClass:
    def test_left_open(self, class_connection):
        class_connection.execute(INSERT)


@pytest.fixture
def session_on_class_connection(class_connection):
    session = sessionmaker()(bind=class_connection)
    yield session
    session.close()


class TestSessionOnAConnectionOfAClass:
    def test_ended_by_close(self, session_on_class_connection):
        session_on_class_connection.add(Item(name="x"))
        session_on_class_connection.flush()


class TestConnectionOfAClassCommitted:
    def test_committed(self, class_connection):
        class_connection.execute(INSERT)
        class_connection.commit()


@pytest.fixture(scope="class")
def class_session_that_rolls_back(dsn):
    engine = create_engine(url_of(dsn, "psycopg"))
    session = Session(engine)
    yield session
    session.rollback()
    session.close()
    engine.dispose()


@pytest.fixture
def each_rolled_back(class_session_that_rolls_back):
    yield class_session_that_rolls_back
    class_session_that_rolls_back.rollback()


class TestSessionOfAClassThatIsRolledBack:
    def test_one(self, each_rolled_back):
        each_rolled_back.add(Item(name="x"))
        each_rolled_back.flush()

    def test_two(self, each_rolled_back):
        each_rolled_back.scalars(select(Item)).first()


# -- a transaction around the test ------------------------------------------------------------------------------------


@pytest.fixture(params=["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"])
def isolated(engine, request):
    connection = engine.connect()
    transaction = connection.begin()
    session = Session(bind=connection, join_transaction_mode=request.param)
    yield session
    session.close()
    if transaction.is_active:
        transaction.rollback()
    connection.close()


def test_isolated_and_committed(isolated):
    isolated.add(Item(name="x"))
    isolated.commit()
    isolated.scalars(select(Item)).first()


def test_isolated_and_not_committed(isolated):
    isolated.add(Item(name="x"))
    isolated.flush()


def test_isolated_and_rolled_back(isolated):
    isolated.add(Item(name="x"))
    isolated.rollback()


@pytest.fixture
def isolated_in_with(engine):
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()


def test_isolated_in_with(isolated_in_with):
    isolated_in_with.add(Item(name="x"))
    isolated_in_with.commit()


@pytest.fixture
def isolated_as_in_1_3(engine):
    # The recipe from before there was join_transaction_mode.
    connection = engine.connect()
    transaction = connection.begin()
    session = sessionmaker(bind=connection)()
    session.begin_nested()

    @event.listens_for(session, "after_transaction_end")
    def restart(session, ended):
        if ended.nested and not ended._parent.nested:
            session.begin_nested()

    yield session
    session.close()
    transaction.rollback()
    connection.close()


def test_isolated_as_in_1_3(isolated_as_in_1_3):
    isolated_as_in_1_3.add(Item(name="x"))
    isolated_as_in_1_3.commit()


@pytest.fixture(scope="module")
def module_connection(dsn):
    engine = create_engine(url_of(dsn, "psycopg2"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def isolated_on_module_connection(module_connection):
    transaction = module_connection.begin()
    session = Session(bind=module_connection, join_transaction_mode="create_savepoint")
    yield session
    session.close()
    transaction.rollback()


def test_isolated_on_module_connection(isolated_on_module_connection):
    isolated_on_module_connection.add(Item(name="x"))
    isolated_on_module_connection.commit()


def test_isolated_on_module_connection_again(isolated_on_module_connection):
    isolated_on_module_connection.scalars(select(Item)).first()


@pytest.fixture(scope="module")
def module_transaction(module_connection):
    transaction = module_connection.begin()
    yield module_connection
    transaction.rollback()


def test_transaction_of_the_module(module_transaction):
    with Session(module_transaction, join_transaction_mode="create_savepoint") as session:
        session.add(Item(name="x"))
        session.commit()


@pytest.fixture
def never_closes_the_connection(engine):
    connection = engine.connect()
    transaction = connection.begin()
    KEPT.append(connection)
    yield Session(connection, join_transaction_mode="create_savepoint")
    transaction.rollback()


@not_returned
def test_connection_of_isolation_never_closed(never_closes_the_connection):
    never_closes_the_connection.add(Item(name="x"))
    never_closes_the_connection.commit()


# -- async ------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def async_isolated(async_engine):
    async with async_engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        await transaction.rollback()


@pytest.mark.asyncio
async def test_async_isolated(async_isolated):
    async_isolated.add(Item(name="x"))
    await async_isolated.commit()
    await async_isolated.scalars(select(Item))


@pytest_asyncio.fixture
async def async_closes(async_engine):
    async with async_sessionmaker(async_engine, expire_on_commit=False)() as session:
        yield session


@pytest.mark.asyncio
async def test_async_fixture_closes(async_closes):
    async_closes.add(Item(name="x"))
    await async_closes.flush()


@pytest_asyncio.fixture
async def async_forgets(async_engine):
    session = AsyncSession(async_engine)
    await session.scalars(select(Item))
    KEPT.append(session)
    return session


@not_returned
@pytest.mark.asyncio
async def test_async_fixture_forgets(async_forgets):
    pass


@pytest_asyncio.fixture
async def async_engine_forgotten(async_url):
    engine = create_async_engine(async_url)
    async with engine.connect() as conn:
        await conn.execute(text("select 1"))
    KEPT.append(engine)
    return engine


@not_closed
@pytest.mark.asyncio
async def test_async_engine_forgotten(async_engine_forgotten):
    pass


@pytest.fixture
def made_outside_of_the_loop(async_url):
    return create_async_engine(async_url, poolclass=NullPool)


@pytest.mark.asyncio
async def test_made_outside_of_the_loop(made_outside_of_the_loop):
    async with AsyncSession(made_outside_of_the_loop) as session:
        await session.scalars(select(Item))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def async_module_engine(dsn):
    engine = create_async_engine(url_of(dsn, "asyncpg"))
    yield engine
    await engine.dispose()


@pytest.mark.asyncio(loop_scope="module")
async def test_async_module_engine(async_module_engine):
    async with AsyncSession(async_module_engine) as session, session.begin():
        session.add(Item(name="x"))


@pytest.mark.asyncio(loop_scope="module")
async def test_async_module_engine_again(async_module_engine):
    async with async_module_engine.begin() as conn:
        await conn.execute(INSERT)


# -- an engine of the module ------------------------------------------------------------------------------------------

LATER = {}


def session_of_the_application():
    return LATER["factory"]()


@pytest.fixture(scope="session", autouse=True)
def _application(dsn):
    engine = create_engine(url_of(dsn, "psycopg"))
    LATER["factory"] = sessionmaker(engine)
    yield
    engine.dispose()


def test_session_of_the_application():
    with session_of_the_application() as session:
        session.scalars(select(Item)).first()


@not_returned
def test_session_of_the_application_kept():
    session = session_of_the_application()
    session.scalars(select(Item)).first()
    KEPT.append(session)


@lost
def test_session_of_the_application_without_commit():
    with session_of_the_application() as session:
        session.add(Item(name="x"))
        session.flush()
