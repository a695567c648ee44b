import pytest


def test_add(client):
    number = client.post("/tickets/one").json()
    assert client.get(f"/tickets/{number}").json() == "one"
    assert client.get("/tickets/0").status_code == 404


def test_done(client):
    number = client.post("/tickets/one").json()
    assert client.put(f"/tickets/{number}/done").status_code == 200


@pytest.mark.parametrize("number", range(5))
def test_many(client, number):
    for _ in range(number):
        client.post(f"/tickets/{number}")


def test_rolled_back(conn):
    conn.execute("insert into ticket (title) values ('one')")
    assert conn.execute("select count(*) from ticket").fetchone() == (1,)


def test_from_the_pool(pool):
    with pool.connection() as one:
        one.execute("select 1")


def test_the_sessions_connection(admin):
    assert admin.execute("select count(*) from ticket").fetchone() == (0,)


def test_search(client):
    number = client.post("/tickets/one").json()
    assert client.get("/search", params={"title": "one"}).json() == number


def test_search_for_nothing(client):
    assert client.get("/search", params={"title": "nothing"}).status_code == 404


def test_copy(client):
    number = client.post("/tickets/one").json()
    assert client.get(f"/tickets/{number}/copy").json() > number


def test_timeout(client):
    assert client.put("/timeout").status_code == 200
