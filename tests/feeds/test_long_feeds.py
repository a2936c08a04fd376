"""A feed of a million rows is read and checked in memory that does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 1_000_000
MEASURE = """
import resource, sys
from pathlib import Path
from moonshelf.feeds import read_feed
from moonshelf.feeds.check import check_feed

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux

small, large, how = sys.argv[1:]
def run(path):
    if how == "read":
        return sum(1 for _ in read_feed(path))
    return check_feed(path, decode_images=False).products
run(small)
before = peak()
count = run(large)
print(count, peak() - before)
"""


def write_table(path: Path, rows: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("id\ttitle\tprice\timage_link\n")
        for n in range(rows):
            file.write(f"sku-{n}\tRed mug number {n}\t{n % 90}.99 EUR\thttps://e.example/{n}.jpg\n")


def write_xml(path: Path, rows: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write('<rss xmlns:g="http://base.google.com/ns/1.0"><channel>')
        for n in range(rows):
            file.write(
                f"<item><g:id>sku-{n}</g:id><title>Red mug number {n}</title><g:color>red</g:color></item>\n"
            )
        file.write("</channel></rss>")


def write_parquet(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("title", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 50_000):
            ids = range(start, min(rows, start + 50_000))
            columns = [
                [f"sku-{n}" for n in ids],
                [f"Red mug number {n}" for n in ids],
                [b"x" * 200] * len(ids),
            ]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["read", "check"])
@pytest.mark.parametrize(
    ("name", "write"), [("f.tsv", write_table), ("f.xml", write_xml), ("f.parquet", write_parquet)]
)
def test_a_million_rows_stream(tmp_path: Path, name: str, write: object, how: str) -> None:
    small, large = tmp_path / f"small-{name}", tmp_path / name
    write(small, 20_000)  # type: ignore[operator]
    write(large, ROWS)  # type: ignore[operator]
    command = [sys.executable, "-c", MEASURE, str(small), str(large), how]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800).stdout
    count, growth = out.split()
    assert int(count) == ROWS
    # check keeps 16 bytes an id, and the ids of one chunk
    assert float(growth) < (30 if how == "read" else 90)
