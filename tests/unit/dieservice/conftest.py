from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.supervise.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres") / "data")
    server.start()
    yield server.url
    server.close()
