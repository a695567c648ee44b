from concurrent.futures import ThreadPoolExecutor


def test_no_items(client):
    assert client.get("/items").json() == []


def test_add_an_item(client):
    assert client.post("/items", json={"name": "spoon", "price": 3}).status_code == 201
    assert client.get("/items").json() == ["spoon"]
    assert client.get("/items/spoon").json() == 3


def test_add_it_twice(client):
    client.post("/items", json={"name": "spoon", "price": 3})
    assert client.post("/items", json={"name": "spoon", "price": 4}).status_code == 409
    assert client.get("/items/spoon").json() == 3


def test_no_such_item(client):
    assert client.get("/items/fork").status_code == 404


def test_many_at_once(client):
    with ThreadPoolExecutor(5) as executor:
        answers = executor.map(lambda number: client.post("/items", json={"name": f"n{number}", "price": 1}), range(10))
    assert {answer.status_code for answer in answers} == {201}
    assert len(client.get("/items").json()) == 10


def test_visit(client, reader):
    client.get("/visit/spoon")
    assert reader.execute("select what from audit").fetchall() == [("spoon",)]


def test_change_a_price(client):
    client.post("/items", json={"name": "spoon", "price": 3})
    assert client.put("/items/spoon", params={"price": 5}).status_code == 200


def test_report_of_nothing(client):
    assert client.get("/report").json() == "nothing to report"


def test_report(client):
    client.post("/items", json={"name": "spoon", "price": 3})
    assert client.get("/report").json() == 3


def test_import(client):
    assert client.post("/import", json={"name": "spoon", "price": 3}).status_code == 200


def test_admin(admin):
    assert admin.execute("select count(*) from item").fetchone() == (0,)
