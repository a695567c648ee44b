import psycopg
import pytest
from app import app, started
from fastapi.testclient import TestClient


def test_add(client):
    assert client.post("/words/one").status_code == 201
    assert client.post("/words/one").status_code == 409
    assert client.get("/words").json() == ["one"]
    assert client.get("/count").json() == 1


def test_empty(client):
    assert client.get("/words").json() == []


def test_stream(client):
    client.post("/words/one")
    client.post("/words/two")
    assert client.get("/stream").text == "one\ntwo\n"


def test_in_the_background(client):
    client.get("/log/one")
    assert client.get("/words").json() == ["one"]


def test_websocket(client):
    with client.websocket_connect("/echo") as websocket:
        websocket.send_text("one")
        assert websocket.receive_text() == "one"


def test_client_of_the_module():
    assert TestClient(app).get("/count").json() == 0


def test_no_lifespan(client):
    client.get("/count")
    assert not started


def test_remove(client):
    client.post("/words/one")
    assert client.delete("/words/one").status_code == 200
    # It was lost.
    assert client.get("/words").json() == ["one"]


def test_change(client):
    client.post("/words/one")
    assert client.put("/words/one/two").status_code == 200


def test_error(forgiving_client):
    assert forgiving_client.get("/fails").status_code == 500


def test_raised_error(client):
    with pytest.raises(psycopg.errors.UndefinedTable):
        client.get("/fails")
