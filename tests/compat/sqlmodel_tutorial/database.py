import os

from sqlmodel import Session, create_engine

engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))


def get_session():
    with Session(engine) as session:
        yield session
