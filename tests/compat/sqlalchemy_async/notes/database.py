import os

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{os.environ['DRIVER']}")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


class Database:
    """Made by the lifespan of the application."""

    def __init__(self, **options):
        self.engine = create_async_engine(URL, **options)
        self.session = async_sessionmaker(self.engine, expire_on_commit=False)

    async def close(self):
        await self.engine.dispose()
