import os
import unittest
from unittest import mock

import psycopg
import tasks

KEPT = []


def setUpModule():
    with tasks.connect() as conn:
        conn.execute("create table task (title text)")


def tearDownModule():
    with tasks.connect() as conn:
        conn.execute("set local lock_timeout = '5s'")
        conn.execute("truncate task")


class OwnConnection(unittest.TestCase):
    def setUp(self):
        self.conn = tasks.connect()

    def tearDown(self):
        self.conn.rollback()
        self.conn.execute("delete from task")
        self.conn.commit()
        self.conn.close()

    def test_add(self):
        tasks.add(self.conn, "sweep")
        self.assertEqual(tasks.titles(self.conn), ["sweep"])

    def test_empty(self):
        self.assertEqual(tasks.titles(self.conn), [])

    def test_error(self):
        with self.assertRaises(psycopg.errors.UndefinedTable):
            self.conn.execute("select * from nothing")

    def test_two(self):
        for title in ("sweep", "wash"):
            with self.subTest(title):
                tasks.add(self.conn, title)

    @unittest.skip("not today")
    def test_skipped(self):
        tasks.export()

    @unittest.expectedFailure
    def test_expected_failure(self):
        self.assertEqual(tasks.titles(self.conn), ["sweep"])

    def test_export(self):
        self.assertEqual(tasks.export(), [])


class ClassConnection(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = tasks.Store()

    @classmethod
    def tearDownClass(cls):
        cls.store.close()

    def tearDown(self):
        self.store.conn.rollback()

    def test_uncommitted(self):
        self.store.conn.execute("insert into task (title) values ('sweep')")
        self.assertEqual(tasks.titles(self.store.conn), ["sweep"])

    def test_empty(self):
        self.assertEqual(tasks.titles(self.store.conn), [])


class ForgottenByClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = tasks.Store()

    def test_one(self):
        self.store.conn.rollback()

    def test_two(self):
        self.store.conn.rollback()


class Cleanups(unittest.TestCase):
    def setUp(self):
        self.store = tasks.Store()
        self.addCleanup(self.store.close)

    def test_add(self):
        tasks.add(self.store.conn, "sweep")

    def test_another(self):
        other = tasks.connect()
        self.addCleanup(other.close)
        self.assertEqual(tasks.titles(other), tasks.titles(self.store.conn))

    def test_entered(self):
        conn = self.enterContext(tasks.connect())
        self.assertEqual(conn.execute("select 1").fetchone(), (1,))


class ForgottenBySetUp(unittest.TestCase):
    def setUp(self):
        self.conn = tasks.connect()

    def test_read(self):
        self.conn.rollback()


class Mocked(unittest.TestCase):
    def test_connect(self):
        with mock.patch("psycopg.connect") as connect:
            connect.return_value.execute.return_value = [("sweep",)]
            self.assertEqual(tasks.export(), ["sweep"])


class Asynchronous(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)

    async def asyncTearDown(self):
        await self.conn.close()

    async def test_read(self):
        await tasks.async_titles(self.conn)

    async def test_own(self):
        async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]) as conn:
            await tasks.async_titles(conn)

    async def test_async_cleanup(self):
        conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"])
        self.addAsyncCleanup(conn.close)
        await tasks.async_titles(conn)

    async def test_export(self):
        await tasks.async_export()

    async def test_kept(self):
        KEPT.append(await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]))
