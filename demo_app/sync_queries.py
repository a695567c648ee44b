"""The service's SQL for sync connections. As in `demo_app.queries`, nothing here opens, commits or closes."""

from psycopg import Connection
from psycopg.rows import class_row

from demo_app.models import Visit


def insert_visit(conn: Connection) -> Visit:
    """Record a visit, now, and return it."""
    with conn.cursor(row_factory=class_row(Visit)) as cur:
        cur.execute("insert into visits (timestamp) values (now()) returning id, timestamp")
        visit = cur.fetchone()
    assert visit is not None
    return visit


def select_visits(conn: Connection) -> list[Visit]:
    """Return all visits, oldest first."""
    with conn.cursor(row_factory=class_row(Visit)) as cur:
        cur.execute("select id, timestamp from visits order by id")
        return cur.fetchall()


def select_visit(conn: Connection, visit_id: int) -> Visit | None:
    """Return one visit, or None where there is none of that id."""
    with conn.cursor(row_factory=class_row(Visit)) as cur:
        cur.execute("select id, timestamp from visits where id = %s", [visit_id])
        return cur.fetchone()
