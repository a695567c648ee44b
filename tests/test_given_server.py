"""A server that the user names: over TLS, as roles that may more or less, by a service file, by PG* variables."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pytest_pgleak.servers import ServerError, ServerRequest, plan, start

PASSWORD = secrets.token_hex(8)
SUITE = """
    import psycopg, pytest

    KEPT = []

    @pytest.mark.pgleak
    def test_clean(pgleak_dsn, pgleak_fresh_dsn):
        names = set()
        for dsn in (pgleak_dsn, pgleak_fresh_dsn):
            with psycopg.connect(dsn) as conn:
                names.add(conn.info.dbname)
                is_encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
                assert conn.execute(is_encrypted).fetchone() == (True,)
        assert len(names) == 2

    @pytest.mark.pgleak
    def test_leaks(pgleak_dsn):
        KEPT.append(psycopg.connect(pgleak_dsn))
        KEPT[-1].execute("select 1")
"""


@dataclass(frozen=True)
class Encrypted:
    """A server that speaks TLS only.

    Attributes:
        dsn: The superuser's, without anything about TLS.
        certificate: Its own, which it has signed itself.
    """

    dsn: str
    certificate: Path


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here, to make a certificate")
    try:
        server = start(plan(ServerRequest("local", tcp=True)))
    except ServerError as error:
        pytest.skip(f"no local server here: {str(error).splitlines()[0]}")
    try:
        yield Encrypted(server.dsn, encrypt(server.dsn, tmp_path_factory.mktemp("certificate") / "root.crt"))
    finally:
        server.stop()


def encrypt(dsn: str, copy: Path) -> Path:
    with psycopg.connect(dsn, autocommit=True) as conn:
        [data] = conn.execute("show data_directory").fetchone()
        [hba] = conn.execute("show hba_file").fetchone()
        certificate, key = Path(data, "server.crt"), Path(data, "server.key")
        made = f"-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -out {certificate} -keyout {key}"
        subject = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
        command = f"openssl req -new -x509 -nodes {made} {subject}"
        subprocess.run(command.split(), check=True, capture_output=True)
        owner = Path(data).stat()
        for path in (certificate, key):
            path.chmod(0o600)
            os.chown(path, owner.st_uid, owner.st_gid)
        shutil.copyfile(certificate, copy)
        try:
            conn.execute("alter system set ssl = on")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("the local server was built without TLS")
        Path(hba).write_text(Path(hba).read_text().replace("host all", "hostssl all"))
        for role, attributes in (("creator", "createdb"), ("nobody_much", "")):
            conn.execute(f"create role {role} login {attributes} password '{PASSWORD}'")
        conn.execute("select pg_reload_conf()")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # the server reloads when it finds the time
        try:
            psycopg.connect(make_conninfo(dsn, sslmode="disable")).close()
        except psycopg.OperationalError:
            break
        time.sleep(0.02)
    return copy


@pytest.mark.parametrize("way", ["require", "verify-full, a role with CREATEDB", "service file", "PG* variables"])
def test_over_tls(
    way: str, encrypted: Encrypted, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parameters = conninfo_to_dict(encrypted.dsn, host="localhost")
    checked = {"sslmode": "verify-full", "sslrootcert": str(encrypted.certificate)}
    if way == "require":
        dsn = f"{encrypted.dsn}?sslmode=require"
    elif way.startswith("verify-full"):
        dsn = make_conninfo(**parameters | checked | {"user": "creator", "password": PASSWORD})
    elif way == "service file":
        lines = [f"{key}={value}" for key, value in (parameters | checked).items()]
        (tmp_path / "services").write_text("\n".join(["[tests]", *lines]) + "\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        dsn = "service=tests"
    else:
        for key, value in (parameters | checked).items():
            name = {"dbname": "DATABASE"}.get(key, key.upper())
            monkeypatch.setenv(f"PG{name}", str(value))
        dsn = "postgresql://"
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={dsn}")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*", "  server *pid * idle in transaction*"])
    text = result.stdout.str() + result.stderr.str()
    assert [line for line in result.outlines if line.startswith("pgleak: ")][1:] == []  # the first is the header
    assert str(parameters["password"]) not in text
    assert PASSWORD not in text
    with psycopg.connect(make_conninfo(encrypted.dsn, host="localhost")) as conn:
        assert conn.execute("select datname from pg_database where datname like 'pgleak%'").fetchall() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sslmode": "verify-full", "sslrootcert": "/etc/hostname"}, "/etc/hostname"),
        (
            {"sslmode": "verify-full", "sslrootcert": "OURS", "host": "127.0.0.1"},
            'does not match host name "127.0.0.1"',
        ),
        ({"sslmode": "disable"}, "no encryption"),
    ],
    ids=["unreadable certificate", "other host", "no TLS"],
)
def test_tls_that_fails(change: dict[str, str], expected: str, encrypted: Encrypted) -> None:
    change = {key: str(encrypted.certificate) if value == "OURS" else value for key, value in change.items()}
    with pytest.raises(ServerError) as caught:
        start(plan(ServerRequest(dsn=make_conninfo(encrypted.dsn, **{"host": "localhost", **change}))))
    assert expected in str(caught.value)
    assert "the server of --pgleak-dsn" in str(caught.value)
    assert str(conninfo_to_dict(encrypted.dsn)["password"]) not in str(caught.value)


def test_a_role_without_createdb(encrypted: Encrypted, pytester: pytest.Pytester) -> None:
    dsn = make_conninfo(encrypted.dsn, user="nobody_much", password=PASSWORD, sslmode="require")
    pytester.makepyfile(
        SUITE
        + """
    def test_which(pgleak_dsn):
        with psycopg.connect(pgleak_dsn) as conn:
            assert conn.info.dbname == "postgres"
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:pytest_asyncio.plugin", f"--pgleak-dsn={dsn}")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["pgleak_fresh_dsn: *permission denied*", "*ALTER ROLE * CREATEDB*"])
    result.stdout.fnmatch_lines(["[[]connection-not-closed]*", "  server *pid * idle in transaction*"])
    result.stdout.fnmatch_lines(["pgleak: *may not create databases (CREATEDB)*"])
    assert PASSWORD not in result.stdout.str()
