import pytest
from blog.models import Post, User
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError


def test_add_a_user(client, session):
    assert client.post("/users/lem").status_code == 201
    assert session.scalars(select(User.name)).all() == ["lem"]


def test_nobody_is_there(client):
    assert client.get("/users/lem").status_code == 404


def test_twice(client):
    client.post("/users/lem")
    assert client.post("/users/lem").status_code == 409
    assert client.get("/users/lem").json() == {"name": "lem", "posts": []}


def test_posts(client):
    client.post("/users/lem")
    client.post("/users/lem/posts/one")
    client.post("/users/lem/posts/two")
    assert client.get("/users/lem").json()["posts"] == ["one", "two"]


def test_no_commit_in_the_test(session):
    session.add(User(name="lem", posts=[Post(title="one")]))
    session.flush()
    assert session.scalar(select(func.count()).select_from(Post)) == 1


def test_rollback_in_the_test(session):
    session.add(User(name="lem"))
    session.commit()
    session.add(User(name="lem"))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert session.scalar(select(func.count()).select_from(User)) == 1


def test_savepoint(session):
    with session.begin_nested():
        session.add(User(name="lem"))
    session.commit()


@pytest.mark.parametrize("number", range(3))
def test_many(client, number):
    assert client.post(f"/users/lem{number}").status_code == 201
