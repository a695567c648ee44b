"""The application as it is, with its own engine; and fixtures that forget theirs."""

import pytest
from conftest import TEST_URL
from database import engine
from fastapi.testclient import TestClient
from main import app
from models import Hero
from sqlmodel import Session, SQLModel, create_engine, delete


@pytest.fixture
def real_client():
    with TestClient(app) as client:
        yield client
    with Session(engine) as session:
        session.exec(delete(Hero))
        session.commit()


@pytest.fixture
def undisposed_session():
    engine = create_engine(TEST_URL)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


def test_create_and_read(real_client):
    hero = real_client.post("/heroes/", json={"name": "Deadpond", "secret_name": "Dive Wilson"}).json()
    assert real_client.get(f"/heroes/{hero['id']}").json() == hero


def test_birthday(real_client):
    hero = real_client.post("/heroes/", json={"name": "Deadpond", "secret_name": "Dive Wilson", "age": 30}).json()
    assert real_client.post(f"/heroes/{hero['id']}/birthday").status_code == 200
    assert real_client.get(f"/heroes/{hero['id']}").json()["age"] == 31


def test_nobodys_birthday(real_client):
    assert real_client.post("/heroes/0/birthday").status_code == 404


def test_oldest(real_client):
    real_client.post("/heroes/", json={"name": "Deadpond", "secret_name": "Dive Wilson", "age": 30})
    assert real_client.get("/oldest").json() == "Deadpond"


def test_own_engine(undisposed_session):
    undisposed_session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
    undisposed_session.commit()
