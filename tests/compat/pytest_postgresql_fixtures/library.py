import psycopg
from psycopg.rows import dict_row


def books_of(conn, name):
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("select title from book join author on author.id = book.author where name = %s", [name])
        return [row["title"] for row in cursor]


def add_book(conn, name, title):
    conn.execute("insert into book (author, title) select id, %s from author where name = %s", [title, name])
    conn.commit()


class Repository:
    """Opens a connection of its own when it is first needed."""

    def __init__(self, conninfo):
        self._conninfo = conninfo
        self._conn = None

    @property
    def conn(self):
        if self._conn is None:
            self._conn = psycopg.connect(self._conninfo)
        return self._conn

    def count(self):
        return self.conn.execute("select count(*) from book").fetchone()[0]

    def close(self):
        if self._conn is not None:
            self._conn.close()
