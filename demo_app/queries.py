"""The service's SQL. Nothing here opens, commits or closes: that is up to the application that calls it."""

from psycopg import AsyncConnection
from psycopg.rows import class_row

from demo_app.models import Visit


async def insert_visit(conn: AsyncConnection) -> Visit:
    """Record a visit, now, and return it."""
    async with conn.cursor(row_factory=class_row(Visit)) as cur:
        await cur.execute("insert into visits (timestamp) values (now()) returning id, timestamp")
        visit = await cur.fetchone()
    assert visit is not None
    return visit


async def refer_visit(conn: AsyncConnection, visit_id: int, referrer: int) -> None:
    """Note from which visit another one came."""
    await conn.execute("update visits set referrer = %s where id = %s", [referrer, visit_id])


async def select_visits(conn: AsyncConnection) -> list[Visit]:
    """Return all visits, oldest first."""
    async with conn.cursor(row_factory=class_row(Visit)) as cur:
        await cur.execute("select id, timestamp from visits order by id")
        return await cur.fetchall()


async def select_visit(conn: AsyncConnection, visit_id: int) -> Visit | None:
    """Return one visit, or None where there is none of that id."""
    async with conn.cursor(row_factory=class_row(Visit)) as cur:
        await cur.execute("select id, timestamp from visits where id = %s", [visit_id])
        return await cur.fetchone()


async def delete_visit(conn: AsyncConnection, visit_id: int) -> None:
    """Forget one visit."""
    await conn.execute("delete from visits where id = %s", [visit_id])
