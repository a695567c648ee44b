import asyncio

from notes.main import app, watch
from sqlalchemy import text


async def test_add_and_read(real_client):
    await real_client.post("/notes/milk")
    assert (await real_client.post("/notes/milk")).status_code == 409
    assert (await real_client.get("/notes")).json() == ["milk"]


async def test_many_at_once(real_client):
    await asyncio.gather(*(real_client.post(f"/notes/{number}") for number in range(8)))
    assert len((await real_client.get("/notes")).json()) == 8
    assert (await real_client.get("/both")).json() == [8, 8]


async def test_change(real_client):
    await real_client.post("/notes/milk")
    assert (await real_client.put("/notes/milk/bread")).status_code == 200


async def test_no_such_note(real_client):
    assert (await real_client.put("/notes/milk/bread")).status_code == 404


async def test_count(real_client):
    assert (await real_client.get("/count")).json() == 0


async def test_watch(real_client):
    await watch(app.state.database)


async def test_engine(async_engine):
    async with async_engine.connect() as conn:
        assert await conn.scalar(text("select 1")) == 1


async def test_undisposed(undisposed):
    async with undisposed.session() as session:
        assert await session.scalar(text("select 1")) == 1
