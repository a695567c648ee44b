"""Which of PgBouncer's clients a connection is, and which backend serves it. Pure.

What cannot be told for certain is not told: an address that is translated between the two is nobody's.
"""

from __future__ import annotations

from pytest_pgleak.activity import Backend
from pytest_pgleak.libraries.addresses import process_of
from pytest_pgleak.pgbouncer.rows import Address, Client, Console, ServerConnection
from pytest_pgleak.pgbouncer.through import Through


def clients_of(console: Console, address: Address, database: str) -> tuple[Client, ...]:
    """Return the clients that may be the other end of a connection of this process.

    Over a Unix socket all connections of a process are the same to PgBouncer.

    Args:
        console: What the console says.
        address: The connection's own end.
        database: Its database, by the name that the application uses.
    """
    return tuple(client for client in console.clients if client.address == address and client.database == database)


def the_one(clients: tuple[Client, ...], *, in_transaction: bool = False) -> Client | None:
    """Return the only client that a connection may be; None where there are several.

    Args:
        clients: What `clients_of` returns.
        in_transaction: Whether the connection is in a transaction: then it has a server connection to itself.
    """
    found = [client for client in clients if client.link] if in_transaction else clients
    return found[0] if len(found) == 1 else None


def one_of_pool(console: Console, clients: tuple[Client, ...]) -> Client | None:
    """Return one of several clients if all of them are in the same pool."""
    pools = {pool_of(console, client) for client in clients}
    return clients[0] if len(pools) == 1 else None


def pool_of(console: Console, client: Client) -> tuple[str, str]:
    """Return database and user of the pool that a client gets its server connections from."""
    return client.database, (console.forced_users or {}).get(client.database) or client.user


def server_of(console: Console, client: Client) -> ServerConnection | None:
    """Return the server connection that a client has at this moment; None for none."""
    if not client.link:
        return None
    found = [server for server in console.servers if server.ptr == client.link and server.link == client.ptr]
    return found[0] if len(found) == 1 and found[0].pid else None


def through(console: Console, client: Client) -> Through:
    """Show a client."""
    assert client.address is not None
    host, port = client.address
    server = server_of(console, client)
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Through(
        name if process_of(host) is None else f"{host} (Unix socket)",
        (console.modes or {}).get(pool_of(console, client), ""),
        server.pid if server is not None else None,
        client.state == "waiting",
    )


def is_backend_of(backend: Backend, server: ServerConnection, console: Console) -> bool:
    """Tell whether a row of ``pg_stat_activity`` is the other end of a server connection.

    The pid alone does not say so: it may be that of another server.
    """
    name = (console.databases or {}).get(server.database) or server.database
    if backend.pid != server.pid or backend.datname != name:
        return False
    if server.local is None:
        return backend.client_port in (None, -1)
    # Not the address: it may be translated on its way. A port that is translated says nothing, and nothing is told.
    return backend.client_port == server.local[1]


def servers_of(console: Console, client: Client) -> tuple[ServerConnection, ...]:
    """Return the server connections of the pool of a client."""
    return tuple(server for server in console.servers if (server.database, server.user) == pool_of(console, client))


def idle_in_pool_of(console: Console, client: Client) -> tuple[ServerConnection, ...]:
    """Return the server connections that the next client of a pool may be given."""
    return tuple(
        server for server in servers_of(console, client) if not server.link and server.state in ("idle", "used")
    )


def is_own(backend: Backend, console: Console) -> bool:
    """Tell whether a backend may serve PgBouncer itself: then nobody is to be accused of it.

    Either sign is enough. While it logs in, PgBouncer does not know the pid yet.
    """
    pids = {server.pid for server in console.servers}
    ports = {server.local[1] for server in console.servers if server.local is not None}
    return backend.pid in pids or backend.client_port in ports
