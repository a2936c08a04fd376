"""`moonshelf store`: what a catalogue's rows have been, where they lie, and copies of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moonshelf.cli.console import print_json, say
from moonshelf.cli.options import CatalogueFolder, Json

if TYPE_CHECKING:
    from moonshelf.catalogue.store import Store

app = typer.Typer(
    help="Versions of a catalogue's rows, where they are kept, copies of them in a vector database.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _open(folder: Path) -> Store:
    from moonshelf.catalogue.store import Store

    return Store.open(folder)


@app.command()
def versions(folder: CatalogueFolder, json: Json = False) -> None:
    """List the states of the rows that can be gone back to, the newest first."""
    store = _open(folder)
    found = store.versions()
    if json:
        print_json({"keep_days": store.manifest.keep_days, "versions": [one.as_dict() for one in found]})
        return
    for one in found:
        print(f"{one.number:>7}  {one.time:%Y-%m-%d %H:%M:%S}  {one.rows:>12,} products")
    if store.manifest.keep_days == 0:
        say(f"earlier ones go at every compaction; keep them with: moonshelf store keep {folder} --days 7")


@app.command()
def rollback(
    folder: CatalogueFolder,
    version: Annotated[int, typer.Argument(help="Number from `moonshelf store versions`.")],
) -> None:
    """Make an earlier version of the rows the newest; it can be undone in the same way."""
    from moonshelf.catalogue.manifest import writing

    store = _open(folder)
    with writing(folder):
        before, rows = store.version, len(store)
        store.rollback(version)
    print(
        f"{folder} is as it was in version {version}: {len(store):,} products; before, in version {before}, "
        f"{rows:,}. Reasoning mode: {store.manifest.reason}. The vector index catches up when it is next "
        "loaded."
    )


@app.command()
def keep(
    folder: CatalogueFolder, days: Annotated[float, typer.Option(min=0, help="0 keeps none but the newest.")]
) -> None:
    """Say how long versions of the rows outlive compaction; each costs disk for what was rewritten since."""
    from moonshelf.catalogue.manifest import writing

    _open(folder)
    with writing(folder):
        _open(folder).manifest.write(folder, keep_days=days)
    print(f"versions of the last {days:g} days are kept" if days else "only the newest version is kept")


@app.command()
def compact(folder: CatalogueFolder) -> None:
    """Join small files, bring the full-text index up to date, and drop versions that are too old to keep."""
    from moonshelf.catalogue.manifest import writing

    _open(folder)
    with writing(folder):
        store = _open(folder)
        before = len(store.versions())
        store.compact()
    print(f"{len(store):,} products compacted; {len(store.versions())} versions left of {before}")


@app.command()
def move(
    folder: CatalogueFolder,
    place: Annotated[str, typer.Argument(help="s3://, gs://, az:// or file:// address, or a folder.")],
) -> None:
    """Keep the rows at another place, such as a bucket; the folder keeps manifest, lock and index.

    Rows are copied and counted before the folder points to them. The former copy stays until you delete it.
    """
    from moonshelf.catalogue.manifest import remember_place, writing

    _open(folder)
    place = place if "://" in place else str(Path(place).resolve())
    with writing(folder):
        store = _open(folder)
        text = store.has_full_text
        store.copy_to(place)
        remember_place(place)
        store.manifest.write(folder, place=place)
        moved = _open(folder)
        if text:
            moved.index_text()
    print(f"{len(moved):,} products of {folder} are kept in {place} from now on.")
    say(f"the former copy is no longer read; delete it when you are sure: {store.place}")


@app.command()
def push(
    folder: CatalogueFolder,
    to: Annotated[str, typer.Option(help="postgres, opensearch, elasticsearch or qdrant.")],
    url: Annotated[str, typer.Option(help="Address of the server; a path is Qdrant's local mode.")],
    collection: Annotated[str, typer.Option(help="Becomes a copy: other rows in it are deleted.")],
    json: Json = False,
) -> None:
    """Make a collection, table or index of a database a copy of the catalogue.

    Only what differs is written, so a run that was stopped goes on. Passwords and keys come from the
    environment: PGPASSWORD, OPENSEARCH_USER and OPENSEARCH_PASSWORD, ELASTIC_API_KEY, QDRANT_API_KEY.
    """
    from moonshelf.feeds.show import counting
    from moonshelf.scale import vector_databases

    store = _open(folder)
    remote = vector_databases.connect(to, url, collection, store.manifest.dim)
    with counting(collection) as progress:
        done = vector_databases.push(store, remote, progress)
    if json:
        print_json(done._asdict())
        return
    print(
        f"{done.written:,} products written to {collection}, {done.unchanged:,} were there, {done.deleted:,} "
        f"deleted; it holds {done.rows:,}, as the catalogue does."
    )
