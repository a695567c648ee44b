from models import Hero
from sqlmodel import select


def test_create_hero(client):
    response = client.post("/heroes/", json={"name": "Deadpond", "secret_name": "Dive Wilson"})
    assert response.status_code == 200
    assert response.json()["age"] is None
    assert response.json()["id"] is not None


def test_create_hero_incomplete(client):
    assert client.post("/heroes/", json={"name": "Deadpond"}).status_code == 422


def test_read_heroes(session, client):
    session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
    session.add(Hero(name="Rusty-Man", secret_name="Tommy Sharp", age=48))
    session.commit()
    assert [hero["name"] for hero in client.get("/heroes/").json()] == ["Deadpond", "Rusty-Man"]


def test_read_hero(session, client):
    hero = Hero(name="Deadpond", secret_name="Dive Wilson")
    session.add(hero)
    session.commit()
    assert client.get(f"/heroes/{hero.id}").json()["name"] == "Deadpond"


def test_update_hero(session, client):
    hero = Hero(name="Deadpond", secret_name="Dive Wilson")
    session.add(hero)
    session.commit()
    assert client.patch(f"/heroes/{hero.id}", json={"name": "Deadpuddle"}).json()["name"] == "Deadpuddle"


def test_delete_hero(session, client):
    hero = Hero(name="Deadpond", secret_name="Dive Wilson")
    session.add(hero)
    session.commit()
    assert client.delete(f"/heroes/{hero.id}").status_code == 200
    assert session.exec(select(Hero)).all() == []


def test_no_such_hero(client):
    assert client.get("/heroes/1").status_code == 404
    assert client.delete("/heroes/1").status_code == 404


def test_session_only(session):
    session.add(Hero(name="Deadpond", secret_name="Dive Wilson"))
    session.flush()
    assert session.exec(select(Hero.name)).one() == "Deadpond"
