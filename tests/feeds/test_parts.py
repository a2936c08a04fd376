"""A feed in parts is the feed: the same rows under the same numbers, whoever reads which part."""

from __future__ import annotations

from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonshelf.errors import Problem, UserError
from moonshelf.feeds import parts as module
from moonshelf.feeds import read_feed, read_rows, write_jsonl
from moonshelf.feeds.parts import cut
from moonshelf.product import Product


def table(n: int = 10, first: int = 0) -> pa.Table:
    prices = ["about 20" if i == 3 else f"{i} EUR" for i in range(first, first + n)]
    ids = [None if i == 5 else f"p{i}" for i in range(first, first + n)]
    return pa.table({"id": ids, "title": [f"thing {i}" for i in range(first, first + n)], "price": prices})


def joined(parts: list[module.Part]) -> list[tuple[object, Product | Problem]]:
    return [(number, item) for part in parts for number, _, item in part.read()]


def whole(path: Path) -> list[tuple[object, Product | Problem]]:
    rows = []
    for row in read_rows(path):
        rows += [(row.number, problem) for problem in row.problems]
        rows += [(row.number, row.product)] if row.product is not None else []
    return rows


def test_row_groups_are_the_parts_of_a_parquet_table(tmp_path: Path) -> None:
    path = tmp_path / "feed.parquet"
    pq.write_table(table(), path, row_group_size=4)
    parts = cut(path)
    assert len(parts) == 3 and joined(parts) == whole(path)
    shares = [share for part in parts for _, share, _ in part.read()]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_table_without_ids_is_numbered_through(tmp_path: Path) -> None:
    path = tmp_path / "feed.parquet"
    pq.write_table(table().drop_columns(["id", "price"]), path, row_group_size=4)
    assert joined(cut(path)) == whole(path)
    assert [item.id for _, item in joined(cut(path)) if isinstance(item, Product)][-1] == "feed#10"


def test_a_folder_of_parquet_files_names_file_and_row(tmp_path: Path) -> None:
    for i in range(3):
        pq.write_table(table(4, 4 * i), tmp_path / f"part-{i}.parquet")
    rows = joined(cut(tmp_path))
    products = [item.id for _, item in rows if isinstance(item, Product)]
    assert products == [f"p{i}" for i in range(12) if i != 5]
    [(number, problem)] = [(n, x) for n, x in rows if isinstance(x, Problem) and x.fatal]
    assert number == problem.row == "part-1.parquet:2" and problem.field == "id"
    assert joined(cut(tmp_path.as_uri())) == rows  # as an address, the way object storage is named
    assert all(part.everywhere for part in cut(tmp_path.as_uri())) and not cut(tmp_path)[0].everywhere


def test_several_files_need_ids(tmp_path: Path) -> None:
    for i in range(2):
        pq.write_table(table().drop_columns(["id"]), tmp_path / f"{i}.parquet")
    with pytest.raises(UserError, match="one of several files and has no column with an id"):
        joined(cut(tmp_path))


def test_ranges_of_a_lance_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LANCE_ROWS", 4)
    lance = lancedb.connect(tmp_path).create_table("shop", table())
    path = tmp_path / "feed.parquet"
    pq.write_table(table(), path)
    parts = cut(tmp_path / "shop.lance")
    lance.add(table(5, 50))  # after it was cut: another version, which nobody asked for
    assert len(parts) == 3 and joined(parts) == whole(path)


def test_streams_and_products_in_memory_are_one_part(tmp_path: Path) -> None:
    products = [Product(id=f"p{i}", title="thing") for i in range(5)]
    path = tmp_path / "feed.jsonl"
    write_jsonl(products, path)
    [part] = cut(path)
    assert [item for _, item in joined([part])] == list(read_feed(path)) == products
    assert part.root == str(tmp_path) and not part.everywhere
    [held] = cut(iter(products))
    assert held.everywhere and joined([held]) == list(enumerate(products, 1))


def test_what_cannot_be_read_is_said_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    pq.write_table(table(0), tmp_path / "none.parquet")
    for address, words in (
        (tmp_path / "bad.parquet", "cannot be read as Parquet"),
        (tmp_path / "none.parquet", "holds no records"),
        (tmp_path / "gone.lance", "cannot be read as a Lance table"),
        ("file:///nowhere/at/all", "cannot be read as Parquet"),
        (tmp_path / "gone.csv", "gone.csv"),
    ):
        with pytest.raises(UserError, match=words):
            cut(address)
