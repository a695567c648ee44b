import pytest
import stock


@pytest.fixture(scope="session", autouse=True)
def tables():
    stock.create_tables()


@pytest.fixture
def conn():
    conn = stock.connect()
    yield conn
    conn.rollback()
    with conn, conn.cursor() as cursor:
        cursor.execute("delete from stock")
    conn.close()


@pytest.fixture
def shared(conn):
    shared = stock.Stock()
    yield shared
    shared.close()


@pytest.fixture
def unclosed(conn):
    return stock.Stock()
