"""What a later run must not lose: what the model wrote, products that a feed forgot, and the way back."""

from __future__ import annotations

import errno
import gzip
import io
import json
from pathlib import Path

import pytest
from fake_model import FakeModel, product, table
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.commits import Writer
from moonshelf.catalogue.manifest import Manifest, writing
from moonshelf.catalogue.rows import prepare_row
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import base
from moonshelf.product import Product

FULL = "id,title\n1,Red mug\n2,Blue mug\n3,Desk lamp\n4,Oak chair\n"


def shelf(folder: Path) -> Catalogue:
    return Catalogue.create(folder / "shelf", FakeModel())


def titles(catalogue: Catalogue) -> dict[str, str]:
    return {id: row["title"] for id, row in table(catalogue.folder).items()}


def written(catalogue: Catalogue) -> int:
    return sum(bool(row["rationale"]) for row in table(catalogue.folder).values())


# ------------------------------------------------------------------------------------- rationales


def test_the_folders_mode_holds_until_another_is_named(tmp_path):
    ours = shelf(tmp_path)
    feed = [product(i) for i in range(5)]
    ours.embed(feed, reason="on")
    assert ours.embed(feed).unchanged == 5 and written(ours) == 5
    assert ours.embed([*feed, product(5)]).new == 1 and written(ours) == 6
    assert ours.embed(feed, reason="off", allow_removals=True).changed == 5 and written(ours) == 0
    assert ours.embed(feed).unchanged == 5 and Manifest.read(ours.folder).reason == "off"


def test_going_back_takes_the_mode_back(tmp_path):
    ours = shelf(tmp_path)
    feed = [product(i) for i in range(5)]
    ours.embed(feed, reason="on")
    report = ours.embed(feed, reason="off")
    assert written(ours) == 0
    with writing(ours.folder):
        Store.open(ours.folder).rollback(report.before)
    assert written(ours) == 5
    assert shelf(tmp_path).embed(feed).unchanged == 5 and written(ours) == 5


def test_a_service_of_the_mode_that_was_writes_nothing(tmp_path):
    ours = shelf(tmp_path)
    ours.embed([product(0)])
    writer = Writer(Store.open(ours.folder))
    ours.embed([product(0)], reason="on")
    one = prepare_row(product(1), FakeModel().prompt, "off", None)
    with pytest.raises(UserError, match="mode on now"):
        writer.commit(metadata=[one])
    assert written(ours) == 1


def test_rows_whose_versions_are_gone_are_not_overwritten(tmp_path):
    ours = shelf(tmp_path)
    ours.embed([product(0)], reason="on")
    rows = ours.folder / "products.lance"
    (rows / "_versions").rename(tmp_path / "aside")
    with pytest.raises(UserError, match="damaged"):
        shelf(tmp_path).embed([product(0)])
    (tmp_path / "aside").rename(rows / "_versions")
    assert written(ours) == 1


# --------------------------------------------------------------------------------------- removals


def cut_gzip(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)[:-12]


BROKEN = {  # name of the file: what a transfer that broke off has left of four products, 1 to 4
    "quoted.csv": b'id,title\n1,Red mug\n2,"Blue m',
    "quoted_lines.csv": b'id,title,description\n1,Red mug,x\n2,Blue mug,"one\ntwo',
    "cells.csv": b"id,title,price\n1,Red mug,3\n2,Bl",
    "gz.csv.gz": cut_gzip(FULL.replace("Oak chair", "Oak chair " + "".join(map(chr, range(33, 126)))) * 3),
    "lines.jsonl": b'{"id": "1", "title": "Red mug"}\n{"id": "2", "ti',
    "gz.jsonl.gz": cut_gzip(
        "".join(json.dumps({"id": str(i), "title": f"mug {i}"}) + "\n" for i in range(99))
    ),
    "array.json": b'[{"id": "1", "title": "Red mug"},\n{"id": "2", "ti',
    "items.xml": b'<rss xmlns:g="http://base.google.com/ns/1.0"><channel><item><g:id>1</g:id>'
    b"<title>Red mug</title></item><item><g:id>2</g:id>",
    "between.xml": b'<rss xmlns:g="http://base.google.com/ns/1.0"><channel><item><g:id>1</g:id>'
    b"<title>Red mug</title></item>",
    "shop.csv": b'Handle,Title,Vendor,Variant SKU,Body (HTML)\n1,Red mug,Ours,1,x\n2,Blue mug,Ours,2,"text',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_feed_that_broke_off_removes_nothing(tmp_path, name):
    ours = shelf(tmp_path)
    ours.embed([Product(id=str(i), title=title) for i, title in enumerate("abcd", 1)], reason="on")
    (tmp_path / name).write_bytes(BROKEN[name])
    try:
        report = ours.embed(tmp_path / name, max_removed=1.0)
    except UserError:
        pass  # the sentence says so
    else:
        assert report.unlisted and not report.removed, "the count says so"
    assert set(titles(ours)) >= {"1", "2", "3", "4"} and written(ours) >= 4


def test_a_disk_that_fails_while_a_feed_is_read(tmp_path, monkeypatch):
    ours = shelf(tmp_path)
    (tmp_path / "feed.csv").write_text(FULL)
    ours.embed(tmp_path / "feed.csv")

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() and size > 2:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(min(size, 30) if size > 2 else size)

    plain = base.Source.open
    monkeypatch.setattr(
        base.Source,
        "open",
        lambda source: io.BufferedReader(base.Unpacked(Failing(plain(source).read()), 0, "feed.csv"), 64),
    )
    with pytest.raises(UserError, match="Input/output error"):
        ours.embed(tmp_path / "feed.csv", allow_removals=True)
    assert len(titles(ours)) == 4


def test_a_folder_of_pictures_of_which_a_part_cannot_be_read(tmp_path, monkeypatch):
    from fake_model import picture

    from moonshelf.feeds.dialects import folder

    for name in ("mugs/a.png", "mugs/b.png", "hats/c.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(picture())
    ours = shelf(tmp_path)
    assert ours.embed(tmp_path / "pictures").new == 3
    scan = folder.os.scandir

    def refuse(path):
        if str(path).endswith("mugs"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folder.os, "scandir", refuse)
    with pytest.raises(UserError, match="mugs"):
        ours.embed(tmp_path / "pictures", allow_removals=True)
    assert len(titles(ours)) == 3


@pytest.mark.parametrize(
    ("there", "gone", "asks"),
    [
        (12, 12, True), (12, 11, True), (12, 6, True), (12, 5, False), (4, 3, True), (4, 1, False),
        (2, 1, True), (1, 1, True), (60, 9, False), (60, 10, True), (100, 10, False), (100, 11, True),
    ],
)  # fmt: skip
def test_many_removals_ask(tmp_path, there, gone, asks):
    """More than a tenth and at least ten rows; in a small catalogue half of it, which ten would not see."""
    ours = shelf(tmp_path)
    all_of_them = [Product(id=str(i), title=f"mug {i}") for i in range(there)]
    ours.embed(all_of_them, reason="on")
    left = [*all_of_them[gone:], Product(id="new", title="new")]
    if asks:
        with pytest.raises(UserError, match=rf"lists {gone} of the {there} products .*--allow-removals"):
            ours.embed(left)
        assert len(titles(ours)) == there + 1, "none was removed, and what is new is stored"
        assert json.loads((ours.folder / "run.json").read_text())["report"]["unlisted"] == gone
        assert ours.embed(left, allow_removals=True).removed == gone
    else:
        assert ours.embed(left).removed == gone
    assert len(titles(ours)) == there - gone + 1


def test_another_share_may_be_named(tmp_path):
    ours = shelf(tmp_path)
    ours.embed([Product(id=str(i), title="mug") for i in range(40)])
    assert ours.embed([Product(id=str(i), title="mug") for i in range(22)], max_removed=0.5).removed == 18
    with pytest.raises(UserError, match="between 0 and 1"):
        ours.embed([product(0)], max_removed=2.0)


def test_a_row_that_nobody_can_name_keeps_what_is_not_listed(tmp_path):
    ours = shelf(tmp_path)
    ours.embed([product(i) for i in range(30)])
    rows = [*[product(i) for i in range(28)], Problem(29, "row", "it has 7 cells, the header 5")]
    report = ours.embed(rows)
    assert (report.removed, report.unlisted, report.rows) == (0, 2, 30)
    assert ours.embed(rows, allow_removals=True).removed == 2
    # A row without any id cannot be a product that has one.
    assert ours.embed([*rows[:27], Problem(28, "id", "the id is missing")]).removed == 1


@settings(max_examples=15, deadline=None)
@given(there=st.integers(1, 40), listed=st.sets(st.integers(0, 60)), unread=st.booleans(), end=st.booleans())
def test_no_run_loses_more_than_its_share(tmp_path_factory, there, listed, unread, end):
    ours = shelf(tmp_path_factory.mktemp("any"))
    ours.embed([Product(id=str(i), title="mug") for i in range(there)], reason="on")
    rows = [Product(id=str(i), title="mug") for i in sorted(listed)]
    rows += [Problem(0, "row", "unreadable")] * unread + [Problem(0, "file", "cut off")] * end
    try:
        report = ours.embed(rows)
    except UserError:
        assert set(titles(ours)) >= {str(i) for i in range(there)}
    else:
        gone = there - len(listed & set(range(there)))
        assert report.removed == (0 if unread or end else gone)
        assert (report.removed < max(10, there / 10 + 1) and 2 * report.removed < there) or not report.removed


# --------------------------------------------------------------------------------------- versions


def test_the_last_versions_are_there_without_having_been_kept(tmp_path):
    ours = shelf(tmp_path)
    ours.embed([product(i) for i in range(30)], reason="on")
    ours.index()
    before = table(ours.folder)
    report = ours.embed([product(3, title="the only row")], allow_removals=True)
    ours.index()
    ours.embed([product(3, title="another day")])
    with writing(ours.folder):
        Store.open(ours.folder).rollback(report.before)
    assert table(ours.folder) == before


@pytest.mark.parametrize("days", [None, 7.0])
def test_the_state_that_the_days_began_with_stays(tmp_path, days):
    """A catalogue that nobody touched for a month can still go back to how it was all that time."""
    import os
    import time

    ours = shelf(tmp_path)
    ours.embed([product(i) for i in range(12)])
    Manifest.read(ours.folder).write(ours.folder, keep_days=days)
    month = time.time() - 30 * 86_400
    versions = ours.folder / "products.lance" / "_versions"
    with pytest.MonkeyPatch.context() as patch:  # Lance looks at its own times, which are of today
        pruned = []
        patch.setattr(Store, "_optimize", lambda store, keep: pruned.append(keep))
        for file in versions.glob("*.manifest"):
            os.utime(file, (month, month))
        ours.embed([product(0)], allow_removals=True)
    assert pruned and all(keep.days in (29, 30) for keep in pruned)


def test_versions_are_dropped_where_they_take_too_much(tmp_path, monkeypatch):
    from moonshelf.catalogue import store as store_module

    monkeypatch.setattr(store_module, "_LITTLE", 1)
    ours = shelf(tmp_path)
    ours.embed([product(i) for i in range(60)])
    sizes = []
    for price in range(12):
        ours.embed([product(i, price=float(price)) for i in range(60)], shard_rows=20)
        sizes.append(sum(file.stat().st_size for file in ours.folder.rglob("*") if file.is_file()))
    assert max(sizes) < 8 * store_module.Store.open(ours.folder)._table.stats()["total_bytes"]
    assert 1 <= len(Store.open(ours.folder).versions()) < 40
