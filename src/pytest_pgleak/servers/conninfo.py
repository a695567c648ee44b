"""Reading and changing libpq connection strings, without libpq: nothing here shows or loses a password.

libpq's own parser is no help for showing one: it needs psycopg, and its complaint about a malformed string quotes the
string, password and all. The grammar followed is that of ``conninfo_parse`` and ``conninfo_uri_parse_options`` in
PostgreSQL's ``src/interfaces/libpq/fe-connect.c``
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING).
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_URI = re.compile(r"(postgres(?:ql)?://)(.*)", re.DOTALL)
_SHOWN = ("service", "host", "hostaddr", "port", "user", "dbname")
_PAIR = re.compile(
    r"""\s* ([^\s=]+) \s*=\s*
        (?: '((?:\\.|[^'\\])*)' | ((?!')(?:\\.|[^\s\\])*) )""",
    re.VERBOSE | re.DOTALL,
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d*))?")


def parse(dsn: str) -> dict[str, str]:
    """The parameters of a connection string in either form; of a repeated one the last counts, as in libpq.

    Raises:
        ValueError: If it is malformed, or a reserved character in its password (``@``, ``/``) makes it ambiguous. The
            message does not quote it.
    """
    uri = _URI.fullmatch(dsn)
    found = _parse_uri(uri[2]) if uri else _parse_pairs(dsn)
    if "@" in found.get("host", ""):
        raise ValueError("the host contains an @")
    return found


def redacted(dsn: str) -> str:
    """Where `dsn` leads, such as ``host=db port=5432 user=app dbname=test``; empty if that cannot be told safely.

    Only parameters that are known to be harmless are shown, the rest is left out.
    """
    try:
        found = parse(dsn)
    except ValueError:
        return ""
    return " ".join(f"{key}={_quoted(found[key])}" for key in _SHOWN if found.get(key))


def with_dbname(dsn: str, dbname: str) -> str:
    """`dsn` with another database; its form (URI or keywords) and all its other parameters stay.

    Raises:
        ValueError: If `dsn` is malformed.
    """
    uri = _URI.fullmatch(dsn)
    if uri is None:
        changed = _parse_pairs(dsn) | {"dbname": dbname}
        return " ".join(f"{key}={_quoted(value)}" for key, value in changed.items())
    userinfo, hosts, _, query = _split_uri(uri[2])
    # A dbname among the parameters would override the path.
    parameters = "&".join(part for part in query.split("&") if part and unquote(part.partition("=")[0]) != "dbname")
    return f"{uri[1]}{userinfo}{hosts}/{quote(dbname, safe='')}" + (f"?{parameters}" if parameters else "")


def with_default(dsn: str, key: str, value: str) -> str:
    """`dsn` with the parameter `key`, unless it has it already.

    Raises:
        ValueError: If `dsn` is malformed.
    """
    if key in parse(dsn):
        return dsn
    if not _URI.fullmatch(dsn):
        return f"{dsn} {key}={_quoted(value)}"
    return f"{dsn}{'&' if '?' in _after_userinfo(dsn) else '?'}{key}={quote(value, safe='')}"


def socket_uri(directory: str, port: int = 5432) -> str:
    """The superuser's URI for a server of ours that listens on a socket in `directory`.

    A URI and not keywords, because SQLAlchemy and asyncpg read it too.
    """
    return f"postgresql://postgres@/postgres?host={quote(directory, safe='/')}&port={port}"


def _parse_pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    text = text.rstrip()
    while position < len(text):
        pair = _PAIR.match(text, position)
        if pair is None:
            raise ValueError("it is not made of keyword=value pairs")
        value = pair[3] if pair[2] is None else pair[2]
        found[pair[1]] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        position = pair.end()
    return found


def _parse_uri(body: str) -> dict[str, str]:
    userinfo, hosts, path, query = _split_uri(body)
    if "@" in path or "@" in hosts:
        raise ValueError("it has an @ after its host")
    user, _, password = userinfo.removesuffix("@").partition(":")
    names, ports = _split_hosts(hosts)
    values = {"user": user, "password": password, "host": names, "port": ports, "dbname": path.removeprefix("/")}
    found = {key: unquote(value) for key, value in values.items() if value}
    for parameter in filter(None, query.split("&")):
        key, equals, value = parameter.partition("=")
        if not equals:
            raise ValueError("a parameter of the URI has no value")
        found[unquote(key)] = unquote(value)
    return found


def _split_uri(body: str) -> tuple[str, str, str, str]:
    """What follows the scheme, as user information with its @, hosts, path with its slash, parameters."""
    # libpq ends the user information at the first @ or slash: a question mark belongs to it, a second @ does not.
    userinfo = found[0] if (found := re.match(r"[^@/]*@", body)) else ""
    rest, _, query = body[len(userinfo) :].partition("?")
    hosts, slash, path = rest.partition("/")
    return userinfo, hosts, slash + path, query


def _after_userinfo(dsn: str) -> str:
    return re.sub(r"^\w+://(?:[^@/]*@)?", "", dsn)


def _split_hosts(hosts: str) -> tuple[str, str]:
    """The names and the ports of ``one:1,two:2``, each as libpq's comma-separated list."""
    pairs = [_HOST.fullmatch(host) for host in hosts.split(",")]
    if None in pairs:
        raise ValueError("a port of the URI is no number")
    names = [pair[1].strip("[]") for pair in pairs if pair]
    ports = [pair[2] or "" for pair in pairs if pair]
    return ",".join(names), ",".join(ports) if any(ports) else ""


def _quoted(value: str) -> str:
    if value and not re.search(r"[\s'\\]", value):
        return value
    return "'" + re.sub(r"(['\\])", r"\\\1", value) + "'"
