import psycopg
import pytest
from conftest import ADMIN
from psycopg.conninfo import conninfo_to_dict
from service import count_with_sqlalchemy


def test_add(service):
    service.add("start")
    assert service.count() == 1


def test_nothing_is_left(service):
    assert service.count() == 0


def test_over_sqlalchemy(service, dsn):
    service.add("start")
    assert count_with_sqlalchemy(dsn) == 1


def test_lost_connection(service):
    service.add("start")
    with psycopg.connect(ADMIN, autocommit=True) as admin:
        name = conninfo_to_dict(service.dsn)["dbname"]
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
    with pytest.raises(psycopg.OperationalError):
        service.count()
    service.pool.check()
    assert service.count() == 1


def test_terminated_by_the_test(dsn):
    with psycopg.connect(ADMIN, autocommit=True) as admin, psycopg.connect(dsn) as conn:
        admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.errors.AdminShutdown):
            conn.execute("select 1")


def test_dropped_under_the_application(service):
    with psycopg.connect(ADMIN, autocommit=True) as admin:
        name = conninfo_to_dict(service.dsn)["dbname"]
        admin.execute(f"drop database {name} with (force)")
        admin.execute(f"create database {name}")


def test_unstopped(unstopped):
    assert unstopped.count() == 0


def test_unclosed(conn):
    assert conn.execute("select count(*) from event").fetchone() == (0,)


def test_peek(service):
    assert service.peek() == []


def test_lock(service):
    service.lock()


def test_after_all_that(service):
    assert service.count() == 0
