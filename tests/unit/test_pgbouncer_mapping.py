from __future__ import annotations

from dataclasses import replace

import pytest
from builders import backend

from pytest_pgleak.pgbouncer.mapping import clients_of, is_backend_of, is_own, one_of_pool, server_of, the_one, through
from pytest_pgleak.pgbouncer.rows import Client, Console, ServerConnection, read

ADDRESS = ("127.0.0.1", 43308)
CLIENT = Client("0xc1", ADDRESS, "app", "web", "active", "0x51")
SERVER = ServerConnection("0x51", 4711, "app", "web", "active", "0xc1", ("10.0.0.5", 50000))
CONSOLE = Console((CLIENT,), (SERVER,), {("app", "web"): "transaction"}, {"app": "app_db"})
FORCED = replace(CONSOLE, modes={("app", "postgres"): "session"}, forced_users={"app": "postgres"})
ROW = backend(4711, datname="app_db", client_addr="10.0.0.5", client_port=50000)


def with_client(**changes):
    return replace(CONSOLE, clients=(replace(CLIENT, **changes),))


def test_what_the_console_shows_is_read_by_the_names_of_its_columns():
    # As PgBouncer 1.18 shows it; a column that nobody knows may stand anywhere.
    shown = {
        "clients": (
            {"new": "x", "ptr": "0xc1", "addr": "127.0.0.1", "port": "43308", "database": "app", "user": "web"}
            | {"state": "active", "link": "0x51"},
            {"ptr": "0xc2", "addr": "unix", "port": "6432", "database": "app", "user": "web", "link": None},
            {"ptr": "0xc3", "addr": "::ffff:10.0.0.1", "port": "5", "database": "app", "user": "web"},
            {"ptr": "0xc4", "addr": "fe80::1%eth0", "port": "6", "database": "app", "user": "web"},
        ),
        "servers": (
            {"ptr": "0x51", "addr": "10.0.0.9", "port": "5432", "local_addr": "10.0.0.5", "local_port": "50000"}
            | {"database": "app", "user": "web", "state": "active", "link": "0xc1", "remote_pid": "4711"},
            {"ptr": "0x52", "addr": "unix", "local_addr": "unix", "local_port": "6432", "remote_pid": "4712"}
            | {"database": "app", "user": "web", "state": "idle", "link": ""},
        ),
        "pools": ({"database": "app", "user": "web", "pool_mode": "transaction"},),
        "databases": (
            {"name": "app", "database": "app_db", "force_user": None},
            {"name": "other", "database": "other", "force_user": "postgres"},
        ),
    }
    seen = read(shown)
    assert seen.clients[0] == CLIENT
    assert [client.address for client in seen.clients[1:]] == [None, ("10.0.0.1", 5), ("fe80::1", 6)]
    assert seen.servers == (SERVER, ServerConnection("0x52", 4712, "app", "web", "idle"))
    assert (seen.modes, seen.databases) == (CONSOLE.modes, {"app": "app_db", "other": "other"})
    assert seen.forced_users == {"other": "postgres"}


@pytest.mark.parametrize(
    ("console", "found"),
    [
        (CONSOLE, True),
        (with_client(address=("10.0.0.7", 43308)), False),  # translated on its way
        (with_client(address=("127.0.0.1", 43309)), False),
        (with_client(address=None), False),
        (with_client(database="other"), False),
        (replace(CONSOLE, clients=(CLIENT, replace(CLIENT, ptr="0xc9"))), False),  # two look alike: neither
        (Console(), False),
    ],
)
def test_a_client_is_known_by_its_address_and_its_database(console, found):
    assert (the_one(clients_of(console, ADDRESS, "app")) is not None) == found


@pytest.mark.parametrize(
    ("server", "pid"),
    [
        (SERVER, 4711),
        (replace(SERVER, link=""), None),  # it was given back between the two commands
        (replace(SERVER, link="0xc2"), None),
        (replace(SERVER, ptr="0x59"), None),
        (replace(SERVER, pid=0), None),  # it is not logged in yet
    ],
)
def test_a_server_connection_is_known_by_its_link_and_back(server, pid):
    console = replace(CONSOLE, servers=(server,))
    assert (found.pid if (found := server_of(console, CLIENT)) else None) == pid
    assert through(console, CLIENT).server_pid == pid


def test_a_client_without_a_server_connection():
    assert server_of(CONSOLE, replace(CLIENT, link="")) is None
    assert through(CONSOLE, replace(CLIENT, link="", state="waiting")).is_waiting


def test_how_a_client_is_shown():
    assert through(CONSOLE, CLIENT).client == "127.0.0.1:43308"
    assert through(CONSOLE, replace(CLIENT, address=("fe80::1", 5))).client == "[fe80::1]:5"
    assert through(CONSOLE, CLIENT).pool_mode == "transaction"
    assert through(CONSOLE, replace(CLIENT, user="other")).pool_mode == ""
    assert through(FORCED, CLIENT).pool_mode == "session"


@pytest.mark.parametrize(
    ("row", "server", "is_it"),
    [
        (ROW, SERVER, True),
        (replace(ROW, client_addr="192.168.0.1"), SERVER, True),  # translated
        (replace(ROW, pid=4712), SERVER, False),
        (replace(ROW, client_port=50001), SERVER, False),  # the same pid on another server
        (replace(ROW, datname="app"), SERVER, False),
        (replace(ROW, client_port=-1), SERVER, False),
        (replace(ROW, client_port=-1), replace(SERVER, local=None), True),
        (ROW, replace(SERVER, local=None), False),
    ],
)
def test_a_backend_is_not_known_by_its_pid_alone(row, server, is_it):
    assert is_backend_of(row, server, CONSOLE) == is_it


@pytest.mark.parametrize(
    ("row", "is_it"),
    [
        (ROW, True),
        (replace(ROW, pid=9), True),  # it logs in, and PgBouncer does not know its pid yet
        (replace(ROW, client_port=-1), True),
        (replace(ROW, pid=9, client_port=-1), False),
        (replace(ROW, pid=9, client_port=50001), False),
    ],
)
def test_nobody_is_accused_of_what_may_be_pgbouncers_own(row, is_it):
    assert is_own(row, CONSOLE) == is_it


def test_over_a_unix_socket_a_client_is_known_by_its_process():
    shown = {"addr": "unix", "port": "6432", "database": "app", "user": "web", "remote_pid": "4713"}
    rows = ({**shown, "ptr": "0xc1", "link": "0x51"}, {**shown, "ptr": "0xc2"}, {**shown, "remote_pid": "4714"})
    console = replace(CONSOLE, clients=read({"clients": rows, "servers": ()}).clients)
    of_process = clients_of(console, ("process 4713", 6432), "app")
    assert [client.ptr for client in of_process] == ["0xc1", "0xc2"]
    # Which of them a connection is can be told only while it is in a transaction, and the other is not.
    assert the_one(of_process) is None
    assert the_one(of_process, in_transaction=True) == of_process[0]
    assert the_one((of_process[0], replace(of_process[1], link="0x52")), in_transaction=True) is None
    assert one_of_pool(console, of_process) == of_process[0]
    assert one_of_pool(console, (of_process[0], replace(of_process[1], user="other"))) is None
    assert through(console, of_process[0]).client == "process 4713 (Unix socket)"
