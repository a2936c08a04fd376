"""JSON: our own form in lines, which round-trips, and anybody's objects with named values.

A record that is a `Product` as it stands (its field names and types) is taken as it stands, apart from the
caps and clean-up that every feed gets; anything else goes through the mapping of names in `records`. In
our form pictures are paths relative to the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moonshelf.feeds.base import MAX_RECORD, FeedBroken, Row, Source, broken_off, rejected
from moonshelf.feeds.build import Draft
from moonshelf.feeds.dialects import json_stream
from moonshelf.feeds.dialects.shops import NO_SHOP, recognise
from moonshelf.feeds.records import RecordReader
from moonshelf.feeds.text import Decoder, lines_of
from moonshelf.product import ImageRef, Product

_SUFFIXES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"RIFF", ".webp"))


def read(source: Source) -> Iterator[Row]:
    """Rows of JSON lines, an array, objects, or a wrapper of them; empty lines do not count."""
    reader: RecordReader | None = None
    for number, record in json_stream.records(source):
        if isinstance(record, Row):
            yield record
        else:
            if reader is None:  # the first record tells whose export it is
                shop = recognise(record)
                reader = RecordReader(source, shop=NO_SHOP if shop.lines else shop)
                yield from source.take_notes()
            ours = None if source.fields else _of_ours(record)
            yield reader.row(number, record) if ours is None else _own(source, number, record, ours)
    yield from (reader or RecordReader(source)).ending()


def numbered(source: Source) -> Iterator[tuple[int, str | Row]]:
    """Lines that are not empty with their numbers, or why one, or all that would follow, was not read."""
    number = 0
    try:
        with source.open() as file:
            decoder = Decoder(file.peek(), source)
            for line in lines_of(decoder.text(file), decoder):
                if line is not None and not line.strip():
                    continue
                number += 1
                long = f"the line is longer than {MAX_RECORD // 2**20} MiB"
                yield number, rejected(number, "row", long) if line is None else line
    except FeedBroken as error:
        yield number + 1, broken_off(number + 1, error)


def parse_object(number: int, line: str) -> dict[str, Any] | Row:
    """The object of a line, or the row that says why there is none."""
    try:
        record = json.loads(line)
    except RecursionError:
        return rejected(number, "row", "the JSON is nested too deeply")
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            return rejected(number, "row", f"not JSON: {error.msg} at character {error.pos + 1}")
        return rejected(number, "row", "not JSON: a number is too long")
    if not isinstance(record, dict):
        return rejected(number, "row", f"not a JSON object but {type(record).__name__}")
    return record


def _of_ours(record: Mapping[str, Any]) -> Product | None:
    """The product, if every value has the name and JSON type that `write_jsonl` gives it."""
    lists = {name: tuple(value) for name, value in record.items() if isinstance(value, list)}
    try:
        return Product.model_validate({**record, **lists}, strict=True) if "id" in record else None
    except ValidationError:
        return None


def _own(source: Source, number: int, record: Mapping[str, Any], product: Product) -> Row:
    draft = Draft(source, number)
    for name in record:
        value = getattr(product, name)
        if name == "images":
            for ref in value:
                try:
                    draft.image(source.image(ref.path or ref.url, ref.role), once=False)
                except ValueError as error:
                    draft.warn("images", str(error))
        elif name in ("attributes", "extra"):
            add = draft.put if name == "extra" else partial(draft.attribute, html=False)
            for key, content in value.items():
                add(key, content)
        elif name == "category":
            draft.values[name] = tuple(text for part in value if (text := draft.cleaned(name, part)))
        elif name == "availability":
            draft.values[name] = draft.cleaned(name, value)
        else:
            draft.set(name, value, html=False)
    row = draft.finish()
    row.raw = (record,)
    return row


def write_jsonl(products: Iterable[Product], path: str | os.PathLike[str], *, images: str = "images") -> int:
    """Writes products as JSON lines that `read_feed` reads back; returns how many.

    Pictures held in memory are written to the folder `images` beside the file, named by their content;
    paths are stored relative to the file, so that the folder can be moved as a whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for product in products:
            record = product.model_dump(exclude_defaults=True, exclude={"images"})
            record["id"] = product.id
            if product.images:
                record["images"] = [_write_image(ref, path.parent, images) for ref in product.images]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_image(ref: ImageRef, folder: Path, images: str) -> dict[str, str]:
    if ref.url is not None:
        item = {"url": ref.url}
    elif ref.path is not None:
        item = {"path": os.path.relpath(ref.path, folder).replace(os.sep, "/")}
    else:
        item = {"path": store_image(ref.data or b"", folder, images)}
    if ref.role:
        item["role"] = ref.role
    return item


def store_image(data: bytes, folder: Path, images: str) -> str:
    """Writes a picture below `folder`, named by its content; returns the path from there, with slashes."""
    suffix = next((suffix for magic, suffix in _SUFFIXES if data.startswith(magic)), ".img")
    name = hashlib.sha256(data).hexdigest()[:24] + suffix
    target = folder / images / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return f"{images}/{name}"
