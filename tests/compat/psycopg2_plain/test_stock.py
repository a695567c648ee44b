from concurrent.futures import ThreadPoolExecutor

import psycopg2
import psycopg2.errors
import pytest
import stock


def test_add(conn):
    stock.add(conn, "nail", 100)
    assert stock.number_of(conn, "nail") == 100


def test_twice(conn):
    stock.add(conn, "nail", 100)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        stock.add(conn, "nail", 100)
    assert stock.number_of(conn, "screw") is None


def test_named_cursor(conn):
    stock.add(conn, "nail", 100)
    with conn.cursor("all") as cursor:
        cursor.execute("select article from stock")
        assert list(cursor) == [("nail",)]


def test_uncommitted(conn):
    conn.cursor().execute("insert into stock values ('nail', 1)")
    assert stock.number_of(conn, "nail") == 1


def test_autocommit():
    conn = stock.connect()
    conn.autocommit = True
    assert stock.number_of(conn, "nail") is None
    conn.close()


def test_count(conn):
    assert stock.count_articles() == 0


def test_rename(conn):
    stock.add(conn, "nail", 100)
    stock.rename("nail", "screw")


def test_total(conn, shared):
    stock.add(conn, "nail", 100)
    with ThreadPoolExecutor(2) as executor:
        assert set(executor.map(lambda _: shared.total(), range(10))) == {100}


def test_take(conn, shared):
    stock.add(conn, "nail", 100)
    shared.take("nail")
    assert shared.total() == 99


def test_take_what_is_not_there(shared):
    with pytest.raises(KeyError):
        shared.take("nail")


def test_unclosed(unclosed):
    assert unclosed.total() == 0
