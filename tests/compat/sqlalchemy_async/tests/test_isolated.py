import pytest
from notes.database import Note
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError


async def test_add(client, session):
    assert (await client.post("/notes/milk")).status_code == 201
    assert (await session.scalars(select(Note.text))).all() == ["milk"]


async def test_empty(client):
    assert (await client.get("/notes")).json() == []


async def test_twice(client):
    await client.post("/notes/milk")
    assert (await client.post("/notes/milk")).status_code == 409
    assert (await client.get("/notes")).json() == ["milk"]


async def test_change_does_not_need_a_commit_here(client):
    await client.post("/notes/milk")
    await client.put("/notes/milk/bread")
    assert (await client.get("/notes")).json() == ["bread"]


async def test_flush_only(session):
    session.add(Note(text="milk"))
    await session.flush()
    assert await session.scalar(select(func.count()).select_from(Note)) == 1


async def test_rollback(session):
    session.add(Note(text="milk"))
    await session.commit()
    session.add(Note(text="milk"))
    with pytest.raises(IntegrityError):
        await session.commit()
    await session.rollback()
    assert await session.scalar(select(func.count()).select_from(Note)) == 1


async def test_savepoint(session):
    async with session.begin_nested():
        session.add(Note(text="milk"))
    await session.commit()
