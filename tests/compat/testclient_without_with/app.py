import os
from contextlib import asynccontextmanager

import psycopg
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse

started = []


@asynccontextmanager
async def lifespan(app):
    started.append(app)  # not by a client that is not entered
    yield


app = FastAPI(lifespan=lifespan)


def connect():
    return psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"])


async def get_conn():
    async with await connect() as conn:
        yield conn


def get_sync_conn():
    conn = psycopg.connect(os.environ["DATABASE_URL"])
    try:
        yield conn
    finally:
        conn.close()


async def returned_conn():
    return await connect()


@app.post("/words/{word}", status_code=201)
async def add(word: str, conn=Depends(get_conn)):
    try:
        await conn.execute("insert into word values (%s)", [word])
    except psycopg.errors.UniqueViolation:
        raise HTTPException(409) from None


@app.get("/words")
async def words(conn=Depends(get_conn)):
    cursor = await conn.execute("select word from word order by word")
    return [word for (word,) in await cursor.fetchall()]


@app.get("/count")
def count(conn=Depends(get_sync_conn)):
    return conn.execute("select count(*) from word").fetchone()[0]


@app.get("/stream")
async def stream(conn=Depends(get_conn)):
    async def lines():
        async with conn.cursor() as cursor:
            async for (word,) in cursor.stream("select word from word order by word"):
                yield word + "\n"

    return StreamingResponse(lines())


async def log(word):
    async with await connect() as conn:
        await conn.execute("insert into word values (%s)", [word])


@app.get("/log/{word}")
async def log_later(word: str, tasks: BackgroundTasks):
    tasks.add_task(log, word)


@app.websocket("/echo")
async def echo(websocket: WebSocket, conn=Depends(get_conn)):
    await websocket.accept()
    word = await websocket.receive_text()
    cursor = await conn.execute("select %s", [word])
    await websocket.send_text((await cursor.fetchone())[0])
    await websocket.close()


@app.delete("/words/{word}")
async def remove(word: str, conn=Depends(returned_conn)):
    await conn.execute("delete from word where word = %s", [word])


@app.put("/words/{word}/{new}")
def change(word: str, new: str, conn=Depends(get_sync_conn)):
    # No commit; get_sync_conn() closes.
    conn.execute("update word set word = %s where word = %s", [new, word])


@app.get("/fails")
async def fails():
    conn = await connect()
    await conn.execute("select * from nothing")
    await conn.close()
