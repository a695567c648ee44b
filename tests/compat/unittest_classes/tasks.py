import os

import psycopg


def connect():
    return psycopg.connect(os.environ["DATABASE_URL"])


def add(conn, title):
    conn.execute("insert into task (title) values (%s)", [title])
    conn.commit()


def titles(conn):
    return [title for (title,) in conn.execute("select title from task order by title")]


def export():
    return titles(connect())


class Store:
    def __init__(self):
        self.conn = connect()

    def close(self):
        self.conn.close()


async def async_titles(conn):
    cursor = await conn.execute("select title from task")
    return [title for (title,) in await cursor.fetchall()]


async def async_export():
    conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"])
    return await async_titles(conn)
