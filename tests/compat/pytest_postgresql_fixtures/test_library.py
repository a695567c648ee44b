import threading

import psycopg
import pytest
from library import Repository, add_book, books_of


def test_bare_database(postgresql):
    postgresql.execute("create table t (x int)")
    postgresql.execute("insert into t values (1)")
    assert postgresql.execute("select count(*) from t").fetchone() == (1,)


def test_fresh_each_time(postgresql):
    with pytest.raises(psycopg.errors.UndefinedTable):
        postgresql.execute("select * from t")


def test_schema_is_loaded(library_db):
    assert library_db.execute("select name from author").fetchall() == [("Lem",)]


def test_no_books(library_db):
    assert books_of(library_db, "Lem") == []


def test_add_a_book(library_db):
    add_book(library_db, "Lem", "Solaris")
    assert books_of(library_db, "Lem") == ["Solaris"]


def test_block(library_db):
    with library_db.transaction():
        library_db.execute("insert into author (name) values ('Verne')")
    with library_db.cursor() as cursor:
        cursor.execute("select count(*) from author")


def test_repository(library_db, repository):
    add_book(library_db, "Lem", "Solaris")
    assert repository.count() == 1


def test_two_connections(library_db, conninfo):
    with psycopg.connect(conninfo, autocommit=True) as other:
        add_book(library_db, "Lem", "Solaris")
        assert books_of(other, "Lem") == ["Solaris"]


def test_in_a_thread(conninfo):
    def work():
        with psycopg.connect(conninfo) as conn:
            add_book(conn, "Lem", "Eden")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


# The fixture terminates all that is still connected, so the server never tells.
def test_forgotten_repository(conninfo):
    repository = Repository(conninfo)
    assert repository.count() == 0


KEPT = []


def test_kept_repository(conninfo):
    KEPT.append(Repository(conninfo))
    assert KEPT[0].count() == 0


def test_after_it(library_db):
    assert books_of(library_db, "Lem") == []
