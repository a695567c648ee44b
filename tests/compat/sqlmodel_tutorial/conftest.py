"""As in the tutorial "Test Applications with FastAPI and SQLModel"."""

import os

import pytest
from database import get_session
from fastapi.testclient import TestClient
from main import app
from sqlmodel import Session, SQLModel, create_engine

TEST_URL = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg2://")


@pytest.fixture(name="session")
def session_fixture():
    engine = create_engine(TEST_URL)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    SQLModel.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture(name="client")
def client_fixture(session: Session):
    def get_session_override():
        return session

    app.dependency_overrides[get_session] = get_session_override
    client = TestClient(app)
    yield client
    app.dependency_overrides.clear()
