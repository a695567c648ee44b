"""The leak is the fixture's, once, however many tests use it."""

import pytest


@pytest.mark.parametrize("number", range(6))
def test_watched(client, watcher, number):
    client.post("/tickets/one")
    assert watcher.execute("select 1").fetchone() == (1,)


def test_last(client):
    assert client.get("/tickets/0").status_code == 404
