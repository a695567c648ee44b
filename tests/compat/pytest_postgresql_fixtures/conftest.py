from pathlib import Path

import pytest
from library import Repository
from pytest_postgresql import factories

# The server runs already: --postgresql-host and --postgresql-port.
loaded = factories.postgresql_noproc(load=[Path(__file__).parent / "schema.sql"])
library_db = factories.postgresql("loaded")


@pytest.fixture
def conninfo(library_db):
    return library_db.info.dsn


@pytest.fixture
def repository(conninfo):
    repository = Repository(conninfo)
    yield repository
    repository.close()
