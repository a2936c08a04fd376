"""Single products: what each needs, what a commit leaves in the store, and who may write when."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, picture, product, table

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue import commits as commits_module
from moonshelf.catalogue.commits import Writer
from moonshelf.catalogue.manifest import Locked, Manifest, writing
from moonshelf.catalogue.rows import PreparedRow, RowRejected, build_row, prepare_row
from moonshelf.catalogue.store import Store
from moonshelf.errors import UserError
from moonshelf.product import ImageRef, Product


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def shelf(tmp_path: Path, model: FakeModel) -> Catalogue:
    """Ten products, embedded from a feed."""
    catalogue = Catalogue.create(tmp_path / "shelf", model)
    catalogue.embed([product(i) for i in range(10)])
    return catalogue


def drafts(model: FakeModel, writer: Writer, *products: Product, **options: Any) -> list[PreparedRow]:
    known = writer.store.hashes([p.id for p in products])
    return [prepare_row(p, model.prompt, "off", known.get(p.id), **options) for p in products]


def read(model: FakeModel, one: PreparedRow) -> dict[str, Any]:
    out = model.encode([one.product])
    return build_row(
        one, out.vectors[0], out.weights[0], out.rationales[0], bool(out.valid[0]), int(out.tokens[0])
    )


def upsert(model: FakeModel, writer: Writer, *products: Product):
    found = drafts(model, writer, *products)
    rows = [read(model, one) for one in found if one.state in ("new", "changed")]
    return writer.commit(rows, [one for one in found if one.state == "metadata"])


def test_upserts_leave_what_a_feed_of_the_same_products_would(shelf, model, tmp_path):
    writer = Writer(shelf.store)
    after = [
        product(0, title="a new title"),
        product(1, price=99.0),
        product(2),
        product(3, images=(ImageRef(data=picture((1, 2, 3))),)),
        product(10),
    ]
    assert [one.state for one in drafts(model, writer, *after)] == [
        "changed",
        "metadata",
        "unchanged",
        "changed",
        "new",
    ]
    done = upsert(model, writer, *after)
    assert (done.new, done.changed, done.metadata, done.stale) == (1, 2, 1, ())
    reference = Catalogue.create(tmp_path / "reference", FakeModel())
    reference.embed([*after, *[product(i) for i in range(4, 10)]])
    assert table(shelf.folder) == table(reference.folder)
    assert shelf.embed([*after, *[product(i) for i in range(4, 10)]]).unchanged == 11


def test_what_cannot_be_stored_is_refused_and_broken_pictures_are_told(shelf, model):
    writer = Writer(shelf.store)
    broken, good = ImageRef(data=picture(form="JPEG")[:200]), ImageRef(data=picture())
    for bad, name, words in (
        (
            product(0, images=(broken,)),
            "images",
            "no picture can be used.*; the version embedded earlier stays",
        ),
        (Product(id="new", images=(broken,)), "images", "no picture can be used"),
        (Product(id="new"), "row", "neither a picture nor a title"),
        (Product(id="new", title="half a pair \ud800"), "row", "Unicode"),
        (product(1, images=(ImageRef(url="https://example.org/a.png"),)), "images", "no picture"),
    ):
        with pytest.raises(RowRejected, match=words) as error:
            drafts(model, writer, bad)
        assert error.value.field == name
    [one] = drafts(model, writer, product(20, images=(broken, good)))
    assert [ref.data for ref in one.product.images] == [good.data]
    assert len(one.warnings) == 1 and "left out" in one.warnings[0] and one.row["pictures"] == 1
    [one] = drafts(model, writer, product(21, images=(broken,)), allow_text_only=True)
    assert one.product.images == () and one.row["thumbnail"] is None


def test_a_vector_that_is_not_of_unit_length_is_refused(shelf, model):
    [one] = drafts(model, Writer(shelf.store), product(11))
    for vector in (np.full(model.dim, np.nan), np.zeros(model.dim), np.ones(model.dim)):
        with pytest.raises(RowRejected, match="of length") as error:
            build_row(one, vector, (1, 0, 0), "", True, 0)
        assert error.value.field == "vector"


def test_the_last_of_one_id_wins_and_none_is_there_twice(shelf, model):
    writer = Writer(shelf.store)
    first, second = (drafts(model, writer, product(30, title=t))[0] for t in ("first", "second"))
    assert writer.commit([read(model, first), read(model, second)]).new == 1
    assert table(shelf.folder)["p30"]["title"] == "second"
    again = replace(first, state="new")  # drafted before another request stored the same id
    assert writer.commit([read(model, again)]).changed == 1
    assert table(shelf.folder)["p30"]["title"] == "first"


def test_a_new_price_never_meets_a_vector_of_another_title(shelf, model):
    writer = Writer(shelf.store)
    [price] = drafts(model, writer, product(4, price=5.5))
    assert price.state == "metadata"
    upsert(model, writer, product(4, title="another title"))
    done = writer.commit(metadata=[price])
    assert done.stale == ("p4",) and done.metadata == 0
    assert table(shelf.folder)["p4"]["title"] == "another title"
    writer.commit(removed=["p4"])
    assert writer.commit(metadata=[price]).stale == ("p4",) and "p4" not in table(shelf.folder)


def test_removals_say_what_was_there(shelf, model):
    writer = Writer(shelf.store)
    assert writer.commit(removed=["p1", "nobody", "p1", "\ud800"]).removed == ("p1",)
    assert "p1" not in table(shelf.folder) and len(shelf) == 9
    assert writer.commit().removed == ()


def test_a_commit_waits_for_another_writer_and_then_says_so(shelf, model):
    writer = Writer(shelf.store)
    [one] = drafts(model, writer, product(40))
    row = read(model, one)
    with writing(shelf.folder), pytest.raises(Locked, match="is writing to"):
        writer.commit([row], wait=0.05)
    assert "p40" not in table(shelf.folder)
    inside, release = threading.Event(), threading.Event()

    def hold() -> None:
        with writing(shelf.folder):
            inside.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)
    threading.Timer(0.2, release.set).start()
    assert writer.commit([row], wait=30).new == 1
    holder.join()


def test_threads_that_write_the_same_ids_lose_and_double_nothing(shelf, model):
    """Each thread has a writer and a store of its own, as processes would."""
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            own, writer = FakeModel(), Writer(Store.open(shelf.folder), compact_after=3)
            for i in range(4):
                shared = product(100 + i, title=f"from thread {thread}")
                mine = product(1000 + 100 * thread + i)
                found = drafts(own, writer, shared, mine)
                rows = [read(own, one) for one in found if one.state in ("new", "changed")]
                writer.commit(rows, wait=60)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    rows = table(shelf.folder)  # fails if an id is there twice
    assert len(rows) == 10 + 4 + 12


def test_files_are_joined_every_so_many_commits(shelf, model, monkeypatch):
    monkeypatch.setattr(commits_module, "COMPACT_AFTER", 3)
    shelf.store.manifest.write(shelf.folder, keep_days=0.0)
    shelf = Catalogue.open(shelf.folder, model)
    writer, versions = Writer(shelf.store, compact_after=5), shelf.folder / "products.lance" / "_versions"
    most = 0
    for i in range(12):
        upsert(model, writer, product(0, title=f"title {i}"))
        most = max(most, len(list(versions.glob("*.manifest"))))
    assert most <= 8 and table(shelf.folder)["p0"]["title"] == "title 11"
    later = Writer(shelf.store, compact_after=0)
    for i in range(commits_module.COMPACT_AFTER):
        assert not later.due
        upsert(model, later, product(0, price=float(i) + 0.5))
    assert later.due and later.commits == commits_module.COMPACT_AFTER
    later.compact()
    assert not later.due and later.commits == 0 and len(list(versions.glob("*.manifest"))) <= 2


def test_a_folder_embedded_anew_with_another_model_is_not_written_to(shelf, model):
    writer = Writer(shelf.store)
    [one] = drafts(model, writer, product(50))
    Manifest.read(shelf.folder).write(shelf.folder, fingerprint="fake-2")
    with pytest.raises(UserError, match="another model"):
        writer.commit([read(model, one)])
