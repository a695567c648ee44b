"""SQLModel, as its documentation writes it."""

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from sqlmodel import Field, Session, SQLModel, create_engine, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.pool import StaticPool

pytestmark = [pytest.mark.pgleak, pytest.mark.filterwarnings("ignore")]
expect = pytest.mark.expect
not_returned = expect("connection-not-returned")
lost = expect("write-lost")

KEPT = []


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str


@pytest.fixture(autouse=True)
def _tables(engine):
    SQLModel.metadata.create_all(engine)


def test_session(engine):
    with Session(engine) as session:
        session.add(Hero(name="Deadpond"))
        session.commit()
        hero = session.exec(select(Hero)).first()
        session.refresh(hero)


@lost
def test_session_without_commit(engine):
    with Session(engine) as session:
        session.add(Hero(name="Deadpond"))
        session.exec(select(Hero)).all()


@not_returned
def test_session_kept(engine):
    session = Session(engine)
    session.exec(select(Hero)).all()
    KEPT.append(session)


@expect("pool-not-closed")
def test_engine_never_disposed(url):
    engine = create_engine(url)
    with Session(engine) as session:
        session.exec(select(Hero)).all()
    KEPT.append(engine)


@pytest.mark.asyncio
async def test_async_session(async_engine):
    async with AsyncSession(async_engine) as session:
        session.add(Hero(name="Deadpond"))
        await session.commit()
        (await session.exec(select(Hero))).all()


@lost
@pytest.mark.asyncio
async def test_async_session_without_commit(async_engine):
    async with AsyncSession(async_engine) as session:
        session.add(Hero(name="Deadpond"))
        await session.flush()


@not_returned
@pytest.mark.asyncio
async def test_async_session_kept(async_engine):
    session = AsyncSession(async_engine)
    await session.exec(select(Hero))
    KEPT.append(session)


@pytest.mark.asyncio
async def test_error_leaves_the_async_session(async_engine):
    with pytest.raises(ZeroDivisionError):
        async with AsyncSession(async_engine) as session:
            session.add(Hero(name="Deadpond"))
            await session.flush()
            raise ZeroDivisionError


def get_session():
    raise NotImplementedError


app = FastAPI()


@app.post("/heroes/")
def create_hero(hero: Hero, session: Session = Depends(get_session)):
    session.add(hero)
    session.commit()
    session.refresh(hero)
    return hero


@app.get("/heroes/{hero_id}")
def read_hero(hero_id: int, session: Session = Depends(get_session)):
    hero = session.get(Hero, hero_id)
    if hero is None:
        raise HTTPException(404)
    return hero


@app.post("/forgotten/")
def forgotten(hero: Hero, session: Session = Depends(get_session)):
    session.add(hero)
    session.flush()
    return {"id": hero.id}


@pytest.fixture(name="session")
def session_fixture(url):
    # As the tutorial's fixture, on another database than sqlite.
    engine = create_engine(url, poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture(name="client")
def client_fixture(session):
    app.dependency_overrides[get_session] = lambda: session
    yield TestClient(app)
    app.dependency_overrides.clear()


def test_of_the_tutorial(session, client):
    hero = client.post("/heroes/", json={"name": "Deadpond"}).json()
    assert client.get(f"/heroes/{hero['id']}").status_code == 200
    assert client.get("/heroes/-1").status_code == 404


def test_write_in_the_session_of_the_test(client):
    client.post("/forgotten/", json={"name": "Deadpond"})


@pytest.fixture
def real_client(engine):
    def in_with():
        with Session(engine) as session:
            yield session

    app.dependency_overrides[get_session] = in_with
    yield TestClient(app)
    app.dependency_overrides.clear()


def test_real_dependency(real_client):
    hero = real_client.post("/heroes/", json={"name": "Deadpond"}).json()
    assert real_client.get(f"/heroes/{hero['id']}").status_code == 200
    assert real_client.get("/heroes/-1").status_code == 404


@lost
def test_write_that_nobody_commits(real_client):
    assert real_client.post("/forgotten/", json={"name": "Deadpond"}).status_code == 200


@pytest.fixture
def forgetful_client(engine):
    app.dependency_overrides[get_session] = lambda: Session(engine)
    yield TestClient(app)
    app.dependency_overrides.clear()


@not_returned
def test_dependency_that_returns_it(forgetful_client):
    assert forgetful_client.get("/heroes/-1").status_code == 404
