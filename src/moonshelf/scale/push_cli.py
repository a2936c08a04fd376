"""`moonshelf store push`: a catalogue's vectors into a vector database."""

from __future__ import annotations

from typing import Annotated

import typer

from moonshelf.catalogue.store_cli import Folder
from moonshelf.shell import Json, print_json, say


def push(
    folder: Folder,
    to: Annotated[str, typer.Option(help="qdrant or milvus.")],
    url: Annotated[str, typer.Option(help="Address of the server; a path is the client's local mode.")],
    collection: Annotated[str, typer.Option(help="Becomes a copy: other rows in it are deleted.")],
    json: Json = False,
) -> None:
    """Copy vectors, ids and what is filtered by into a collection of a vector database.

    Only tested against the clients' local modes. Keys: QDRANT_API_KEY and MILVUS_TOKEN in the environment.
    """
    from moonshelf.catalogue.store import Store
    from moonshelf.scale import vector_databases

    store = Store.open(folder)
    done = vector_databases.push(
        store, vector_databases.connect(to, url, collection, store.manifest.dim), say
    )
    if json:
        print_json(done.as_dict())
        return
    print(
        f"{done.written:,} products written to {collection}, {done.deleted:,} deleted; it holds "
        f"{done.rows:,}."
    )
