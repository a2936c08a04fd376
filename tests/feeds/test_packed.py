# ruff: noqa: E501
"""Compressed feeds: what is read, what is refused in one sentence, and that a bomb costs little."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import helpers as h
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonshelf.errors import UserError
from moonshelf.feeds import detect, read_feed
from moonshelf.feeds.parts import cut

TABLE = b"id,title\n1,a\n2,b\n"


def zst(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        entry = tarfile.TarInfo("feed.csv")
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, zst, bz2.compress, lambda data: zipped({"t.parquet": data})])
def test_a_packed_parquet_table_is_one_part(tmp_path: Path, pack) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": ["1", "2"], "title": ["a", "b"]}), out, row_group_size=1)
    path = h.write(tmp_path / "t.parquet.packed", pack(out.getvalue()))
    assert detect(path) == "parquet"
    assert [product.id for product in h.products(path)] == ["1", "2"]
    (part,) = cut(path)
    assert [number for number, _, _ in part.read()] == [1, 2]


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, zst, lambda data: zipped({"feed.csv": data})], ids=str
)
def test_a_bomb_is_left_where_it_grows(tmp_path: Path, pack) -> None:
    rows = TABLE + b"3," + b"c" * (80 * 2**20)
    path = h.write(tmp_path / "bomb", pack(rows))
    assert path.stat().st_size < 2**20
    try:
        said = [problem.reason for problem in h.problems(path, "csv")]
    except UserError as error:
        said = [str(error)]
    assert any("expands more than 300 times" in one for one in said), said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped({"a.csv": TABLE, "b.csv": TABLE}), "holds 2 feeds ('a.csv', 'b.csv'): unpack it and name one"),
        (zipped({"a.jpg": b"x", "b.jpg": b"x"}), "holds no feed"),
        (zipped({}), "holds no feed"),
        (zipped({"a.csv": TABLE}, zipfile.ZIP_LZMA), "is packed in a way that is not read"),
        (zipped({"a.csv": TABLE}, zipfile.ZIP_BZIP2), "is packed in a way that is not read"),
        (zipped({"[Content_Types].xml": b"<a/>", "xl/workbook.xml": b"<b/>"}), "is a spreadsheet"),
        (zipped({f"{n}.csv": b"" for n in range(30_000)}), "damaged, cut off or holds too many files"),
        (zipped({"a.csv": TABLE})[:60], "damaged, cut off or holds too many files"),
        (gzip.compress(gzip.compress(TABLE)), "packed twice: unpack it first"),
        (tar(TABLE), "an archive that is not read"),
        (b"\xfd7zXZ\0rest of it", "an archive that is not read"),
        (bz2.compress(TABLE)[:-9], "damaged or cut off"),
        (zst(TABLE * 50)[:-6], "damaged or cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    path = h.write(tmp_path / "feed.packed", data)
    with pytest.raises(UserError) as error:
        list(read_feed(path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_zip_with_a_password(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.csv": TABLE}, zipfile.ZIP_STORED))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1  # the flag of encryption
    with pytest.raises(UserError, match="needs a password"):
        list(read_feed(h.write(tmp_path / "feed.zip", bytes(data))))


def test_a_cut_stream_keeps_what_came_before(tmp_path: Path) -> None:
    lines = b"".join(b'{"id": "%d", "title": "%s"}\n' % (n, bytes([97 + n % 26]) * 40) for n in range(40_000))
    packed = bz2.compress(lines)
    rows = h.rows(h.write(tmp_path / "cut.jsonl.bz2", packed[: int(len(packed) * 0.9)]))
    assert rows[-1].fatal and rows[-1].problems[-1].field == "file"
    assert sum(row.product is not None for row in rows) > 1_000
