import psycopg
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text


class Service:
    def __init__(self, dsn):
        self.dsn = dsn
        self.pool = None

    def start(self):
        self.pool = ConnectionPool(self.dsn, min_size=1, max_size=3, open=True, timeout=5)
        self.pool.wait()

    def stop(self):
        self.pool.close()

    def add(self, name):
        with self.pool.connection() as conn:
            conn.execute("insert into event (name) values (%s)", [name])

    def count(self):
        with self.pool.connection() as conn:
            return conn.execute("select count(*) from event").fetchone()[0]

    def peek(self):
        conn = psycopg.connect(self.dsn)
        return conn.execute("select name from event").fetchall()

    def lock(self):
        conn = self.pool.getconn()
        conn.execute("lock table event in share mode")
        return conn


def count_with_sqlalchemy(dsn):
    engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as conn:
        number = conn.scalar(text("select count(*) from event"))
    engine.dispose()
    return number
