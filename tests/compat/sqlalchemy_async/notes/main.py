import asyncio
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from notes.database import Database, Note


@asynccontextmanager
async def lifespan(app):
    app.state.database = Database(pool_size=4)
    yield
    await app.state.database.close()


app = FastAPI(lifespan=lifespan)


async def get_session(request: Request):
    async with request.app.state.database.session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


@app.post("/notes/{text}", status_code=201)
async def add_note(text: str, session: Session):
    session.add(Note(text=text))
    try:
        await session.commit()
    except IntegrityError:
        await session.rollback()
        raise HTTPException(409) from None


@app.get("/notes")
async def all_notes(session: Session):
    return (await session.scalars(select(Note.text).order_by(Note.text))).all()


@app.put("/notes/{text}/{new}")
async def change_note(text: str, new: str, session: Session):
    note = await session.scalar(select(Note).where(Note.text == text))
    if note is None:
        raise HTTPException(404)
    note.text = new
    # No commit.
    await session.flush()


@app.get("/count")
async def count(request: Request):
    session = request.app.state.database.session()
    return await session.scalar(select(func.count()).select_from(Note))


@app.get("/both")
async def both(request: Request):
    async def one():
        async with request.app.state.database.session() as session:
            return await session.scalar(select(func.count()).select_from(Note))

    return await asyncio.gather(one(), one())


watching = []


async def watch(database):
    """Keeps its connection."""
    conn = await database.engine.connect()
    await conn.execute(select(func.count()).select_from(Note))
    watching.append(conn)
