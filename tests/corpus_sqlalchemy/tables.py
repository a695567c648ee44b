"""What the modules of this corpus share: a mapped table, and URLs for every driver."""

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SYNC = ("psycopg", "psycopg2")
ASYNC = ("psycopg", "asyncpg")


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def url_of(dsn, driver):
    given = conninfo_to_dict(dsn)
    query = {"host": given["host"], "port": str(given.get("port", 5432))}
    return URL.create(
        f"postgresql+{driver}",
        username=given.get("user"),
        password=given.get("password"),
        database=given["dbname"],
        query=query,
    )
