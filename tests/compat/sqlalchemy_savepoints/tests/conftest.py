"""As in SQLAlchemy's documentation: "Joining a Session into an External Transaction"."""

import pytest
from blog.database import Base, SessionLocal, engine, get_db
from blog.main import app
from blog.models import User
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session


@pytest.fixture(scope="session")
def tables():
    Base.metadata.create_all(engine)


@pytest.fixture
def connection(tables):
    connection = engine.connect()
    transaction = connection.begin()
    yield connection
    transaction.rollback()
    connection.close()


@pytest.fixture
def session(connection):
    session = Session(bind=connection, join_transaction_mode="create_savepoint")
    yield session
    session.close()


@pytest.fixture
def client(session):
    app.dependency_overrides[get_db] = lambda: session
    yield TestClient(app)
    app.dependency_overrides.clear()


@pytest.fixture
def real_client(tables):
    """Without the override: what it writes is deleted afterwards."""
    yield TestClient(app)
    with SessionLocal.begin() as session:
        for user in session.query(User):
            session.delete(user)


@pytest.fixture
def lem(tables):
    with SessionLocal.begin() as session:
        session.add(User(name="lem"))
    yield "lem"
    with SessionLocal.begin() as session:
        session.query(User).delete()
