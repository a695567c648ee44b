from blog.main import count_users, rename, report
from blog.models import User
from sqlalchemy import select


def test_version(real_client):
    assert real_client.get("/version").json()


def test_add_and_read(real_client):
    assert real_client.post("/users/lem").status_code == 201
    assert real_client.post("/users/lem").status_code == 409
    assert real_client.get("/users/lem").status_code == 200
    assert real_client.get("/users/nobody").status_code == 404


def test_delete(real_client):
    real_client.post("/users/lem")
    assert real_client.delete("/users/lem").status_code == 200


def test_count(lem):
    assert count_users() == 1


def test_report(lem):
    assert report() == ["lem"]


def test_rename(lem):
    rename("lem", "stanislaw")


def test_names(lem, session):
    assert session.scalars(select(User.name)).all() == ["lem"]
