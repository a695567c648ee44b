import os

import psycopg2
import psycopg2.errors
import psycopg2.extras
from psycopg2.pool import ThreadedConnectionPool


def connect():
    return psycopg2.connect(os.environ["DATABASE_URL"])


def create_tables():
    conn = connect()
    with conn, conn.cursor() as cursor:
        cursor.execute("create table if not exists stock (article text primary key, number int not null)")
    conn.close()


def add(conn, article, number):
    with conn, conn.cursor() as cursor:
        cursor.execute("insert into stock values (%s, %s)", (article, number))


def number_of(conn, article):
    with conn.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute("select number from stock where article = %s", (article,))
        row = cursor.fetchone()
    return row and row["number"]


def count_articles():
    """Believes that ``with`` closes the connection."""
    with connect() as conn, conn.cursor() as cursor:
        cursor.execute("select count(*) from stock")
        return cursor.fetchone()[0]


def rename(old, new):
    """Closes without a commit."""
    conn = connect()
    conn.cursor().execute("update stock set article = %s where article = %s", (new, old))
    conn.close()


class Stock:
    def __init__(self):
        self.pool = ThreadedConnectionPool(1, 3, os.environ["DATABASE_URL"])

    def total(self):
        conn = self.pool.getconn()
        try:
            with conn, conn.cursor() as cursor:
                cursor.execute("select coalesce(sum(number), 0) from stock")
                return cursor.fetchone()[0]
        finally:
            self.pool.putconn(conn)

    def take(self, article):
        conn = self.pool.getconn()
        with conn, conn.cursor() as cursor:
            cursor.execute("update stock set number = number - 1 where article = %s returning number", (article,))
            if cursor.rowcount == 0:
                raise KeyError(article)
        self.pool.putconn(conn)

    def close(self):
        self.pool.closeall()
