"""Creatives from files: our own JSON lines, tables, and folders of pictures.

`read_creatives` tells by the content which it is. Our own form is one campaign or pair a line, as
`Campaign` and `Pair` name their fields; an image is a path relative to the file, a web address, or base64
under `data`. A table has one row a creative, and rows of one product and interest are one campaign; rows
that repeat a creative (days, say) are added up. A folder holds the creatives of one product; subfolders are
products of their own. Whatever cannot be used becomes a `Problem` and never stops the rest. Layouts of
published sets are made into our own form by `research/studies/published.py`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from moonshelf import images
from moonshelf.creatives.io.records import Reading, RowRejected, count, plain_id, rejected
from moonshelf.creatives.schema import Campaign, Creative, Pair
from moonshelf.creatives.words import read
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import FeedBroken, Row, Source
from moonshelf.feeds.columns import one_each, ranked
from moonshelf.feeds.detect import check_path, detect
from moonshelf.feeds.dialects import folder, jsonl, parquet
from moonshelf.feeds.text import Table

Item = Campaign | Pair | Problem
Numbered = Problem | tuple[int | str, dict[str, Any]]  # a record with its number
FILE = "campaigns.jsonl"  # of our own form, in a folder
_CONTEXT = ("audience", "country", "device", "language", "placement", "platform", "region", "slot")
COLUMNS: dict[str, list[str]] = read("columns") | {name: [name] for name in _CONTEXT}


def read_creatives(path: str | os.PathLike[str]) -> Iterator[Item]:
    """Campaigns and pairs of a file or folder, streamed; a problem stands where its row would.

    Paths of images are resolved against the file's folder, and may not leave it. Each local image is read
    once: its hash goes into the creative, and one that is missing or no image leaves its campaign. Raises
    UserError, before the first row, for what cannot be read at all.
    """
    place = check_path(path)
    if place.is_dir() and (place / FILE).is_file():
        place = place / FILE
    reader = FORMATS[sniff(place)]
    reading = Reading(Source(place))
    rows = chain.from_iterable(
        [item] if isinstance(item, Problem) else reading.build(*item) for item in reader(reading)
    )
    first = next(rows, None)  # so that an unusable file raises here and not in the caller's loop
    if first is None:
        raise UserError(f"{place.name} holds no creatives.")
    return chain((first,), rows)


def sniff(path: Path) -> str:
    """Name of the format, a key of `FORMATS`. Raises UserError if it is none."""
    if path.is_dir():
        tables = (".jsonl", ".json", ".csv", ".tsv")
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in tables)
        if files and next(folder.walk(str(path)), None) is None:
            raise UserError(f"{path} holds no pictures: name one of its files, such as {files[0]}.")
        return "images"
    kind = detect(path)
    return kind if kind in ("parquet", "jsonl", "json") else "csv"


# ---- JSON --------------------------------------------------------------------------------------------


def _parsed(number: int, line: str | Row) -> Iterator[Numbered]:
    record = line if isinstance(line, Row) else jsonl.parse_object(number, line)
    if isinstance(record, Row):
        yield from record.problems
    else:
        yield number, record


def read_jsonl(reading: Reading) -> Iterator[Numbered]:
    """Our own rows, one a line."""
    for number, line in jsonl.numbered(reading.source):
        yield from _parsed(number, line)


def read_parquet(reading: Reading) -> Iterator[Numbered]:
    """Our own rows with their pictures inside: `record` is the JSON, `images` are its creatives' in order."""
    with parquet.opened(reading.source) as file:
        types = {field.name: str(field.type) for field in file.schema_arrow}
        if types.get("record") != "string" or not types.get("images", "").startswith("list<"):
            raise UserError(f"{reading.source.name} is Parquet, but has no columns record and images.")
        for number, row in parquet.numbered(reading.source, file, 32, ["record", "images"]):
            for item in _parsed(number, row if isinstance(row, Row) else row["record"] or ""):
                if not isinstance(item, Problem) and not isinstance(row, Row):
                    for creative, data in zip(_creatives_of(item[1]), row["images"] or (), strict=False):
                        creative["image"] = data
                yield item


def _creatives_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The creatives of a campaign's or a pair's record that can be given a picture, in order."""
    rows = record.get("creatives") if "creatives" in record else [record.get("a"), record.get("b")]
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def read_json(reading: Reading) -> Iterator[Numbered]:
    """A JSON file: an array of such rows, or a single one."""
    try:
        data = json.loads(reading.source.read_document().decode("utf-8-sig", "surrogateescape"))
    except (FeedBroken, ValueError, RecursionError):
        raise UserError(f"{reading.source.name} is not valid JSON.") from None
    for number, record in enumerate(data if isinstance(data, list) else [data], 1):
        if isinstance(record, dict):
            yield number, record
        else:
            yield Problem(number, "row", f"not a JSON object but {type(record).__name__}")


# ---- tables and pictures -----------------------------------------------------------------------------


def table_rows(reading: Reading) -> Iterator[Numbered]:
    """Rows of a table of creatives, by what its columns fill."""
    table = Table(reading.source)
    plan = one_each(table.header, ranked(COLUMNS))
    if "image" not in plan:
        raise UserError(
            f"{reading.source.name} has no column of images: a table of creatives has the columns "
            "product_id, title, interest, image, impressions, clicks, of which only image is needed."
        )
    for number, record in table:
        if isinstance(record, Row):
            yield from record.problems
        else:
            yield number, {role: record.get(column, "").strip() for role, column in plan.items()}


def grouped(reading: Reading, rows: Iterator[Numbered], source: str) -> Iterator[Numbered]:
    """Rows of creatives by product, campaign, interest and context in the order of their coming.

    They are held in memory until the end, for nothing says that they are sorted.
    """
    groups: dict[tuple[str, ...], tuple[int | str, dict[str, Any], set[str]]] = {}
    names: Counter[str] = Counter()
    for item in rows:
        if isinstance(item, Problem):
            yield item
            continue
        number, row = item
        # Without a product all rows of a title are one, or else those of the file.
        product = (row.get("product_id") or row.get("title") or reading.source.path.stem)[:200]
        key = (product, *(row.get(role, "") for role in ("campaign", "interest", *_CONTEXT)))
        try:
            image = reading.image(row.get("image"))
            if key not in groups:
                name = row.get("campaign") or product
                names[name] += 1
                about: dict[str, Any] = {role: row.get(role) for role in ("title", "interest", "category")}
                about |= {"id": name if names[name] == 1 else f"{name}#{names[name]}", "product_id": product}
                about["exposure"] = {role: row[role] for role in _CONTEXT if role in row}
                groups[key] = number, about | {"source": source, "creatives": {}}, set()
            _, about, days = groups[key]
            _add(about["creatives"], row, image.path or image.url or "")
            if "day" in row:
                days.add(row["day"])
                about["exposure"]["days"] = str(len(days))
        except RowRejected as error:
            yield rejected(number, error, row.get("id") or row.get("product_id"))
    for number, about, _ in groups.values():
        yield number, about | {"creatives": list(about["creatives"].values())}


def _add(creatives: dict[str, dict[str, Any]], row: dict[str, str], image: str) -> None:
    """A creative of a campaign, or more counts of one. Raises RowRejected if its name is another image's."""
    name = plain_id(row.get("id") or Path(image).stem).strip()
    shown, clicks = (count(row.get(key), key) for key in ("impressions", "clicks"))
    if shown is not None and clicks is not None and clicks > shown:
        raise RowRejected("clicks", f"{clicks} clicks are more than {shown} impressions")
    known = creatives.setdefault(name, {"id": name, "image": image, "text": row.get("text", "")})
    if known["image"] != image:
        raise RowRejected("id", f"creative {name[:40]!r} has another image in an earlier row")
    for key, value in (("impressions", shown), ("clicks", clicks)):
        if value is not None:
            known[key] = known.get(key, 0) + value


def read_folder(reading: Reading) -> Iterator[Numbered]:
    """One campaign a folder with pictures in it; links to folders are not followed."""
    root = reading.source.path
    found: dict[tuple[str, ...], list[str]] = {}
    for path, parts in folder.walk(str(root)):
        found.setdefault(parts, []).append(path)
    if not found:
        raise UserError(f"{root.name} holds no pictures ({', '.join(folder.SUFFIXES)}).")
    for number, (parts, paths) in enumerate(found.items(), 1):
        stems = Counter(Path(path).stem for path in paths)
        rows = [  # a.png beside a.jpg
            {"id": Path(path).stem if stems[Path(path).stem] == 1 else Path(path).name, "image": path}
            for path in paths
        ]
        name = values.clean("/".join(parts) or root.name)[0] or "creatives"
        source = values.clean(root.name)[0]
        yield number, {"id": name, "product_id": name, "creatives": rows, "source": source}


FORMATS: dict[str, Callable[[Reading], Iterator[Numbered]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "csv": lambda reading: grouped(reading, table_rows(reading), reading.source.name),
    "images": read_folder,
}


# ---- writing -----------------------------------------------------------------------------------------


def write_campaigns(place: str | os.PathLike[str], rows: Iterable[Campaign | Pair]) -> int:
    """Writes campaigns or pairs into a folder, with their images, as `read_creatives` reads them back.

    Images are copied below `images/`, named by their content, so that the folder can be moved as a whole;
    web addresses stay what they are. Returns the number of rows. Raises UserError for an image that cannot
    be read; what was written before stays.
    """
    target = Path(place)
    target.mkdir(parents=True, exist_ok=True)
    number = 0
    with open(target / FILE, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            record = row.model_dump(mode="python", exclude_defaults=True, exclude={"creatives", "a", "b"})
            record |= {"id": row.id, "product_id": row.product_id}
            if isinstance(row, Campaign):
                record["creatives"] = [_creative_record(one, target) for one in row.creatives]
            else:
                record |= {"a": _creative_record(row.a, target), "b": _creative_record(row.b, target)}
                if row.assessment is not None:
                    record["assessment"] = row.assessment.model_dump(exclude_defaults=True)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            number += 1
    return number


def _creative_record(creative: Creative, folder: Path) -> dict[str, Any]:
    record = creative.model_dump(exclude_defaults=True, exclude={"image"}) | {"id": creative.id}
    if creative.image.url is not None:
        return record | {"image": {"url": creative.image.url}}
    try:
        data = images.read_bytes(creative.image)
    except images.ImageError as error:
        raise UserError(f"the image of creative {creative.id} cannot be written: {error}.") from None
    return record | {"image": {"path": jsonl.store_image(data, folder, "images")}}
