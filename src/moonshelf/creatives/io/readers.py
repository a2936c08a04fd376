"""Creatives from files: our own JSON lines, tables, folders of pictures, and the layouts of published sets.

`read_creatives` tells by the content which it is. Our own form is one campaign or pair a line, as
`Campaign` and `Pair` name their fields; an image is a path relative to the file, a web address, or base64
under `data`. A table has one row a creative, and rows of one product and interest are one campaign; rows
that repeat a creative (days, say) are added up. A folder holds the creatives of one product; subfolders are
products of their own. Whatever cannot be used becomes a `Problem` and never stops the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from moonshelf import images
from moonshelf.attributes import fold
from moonshelf.creatives.io import published
from moonshelf.creatives.io.records import (
    CREATIVE_FIELDS,
    CreativeDraft,
    Reading,
    Refused,
    checked,
    count,
    plain_id,
)
from moonshelf.creatives.schema import Assessment, Campaign, Creative, Pair
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import folder, parquet, values
from moonshelf.feeds.base import FeedBroken, Row, Source
from moonshelf.feeds.detect import check_path
from moonshelf.feeds.encodings import encoding_of
from moonshelf.feeds.jsonl import numbered, parse_object, store_image
from moonshelf.feeds.text import Table, split_header
from moonshelf.product import ImageRef

Item = Campaign | Pair | Problem
FILE = "campaigns.jsonl"  # of our own form, in a folder
_HEAD = 1 << 16
# Column of a table -> names that exports use for it, folded; the first that is there is taken.
COLUMNS: dict[str, tuple[str, ...]] = {
    "product_id": ("product id", "item id", "offer id", "sku", "parent id", "product", "item"),
    "campaign": ("campaign id", "campaign", "ad group id", "adgroup id", "ad group", "campaign name"),
    "id": ("creative id", "asset id", "ad id", "creative", "ad", "variant", "variant id", "id"),
    "title": ("title", "product title", "product name", "item name", "name"),
    "interest": (
        "interest", "query", "queries", "search term", "search terms", "keyword", "keywords", "search query",
    ),
    "image": (
        "image", "image path", "image file", "image link", "image url", "creative image", "asset path",
        "file", "filename", "file name", "path", "img", "picture", "photo",
    ),
    "impressions": (
        "impressions", "impr", "impr.", "views", "pv", "shown", "exposures", "exp impression cnt",
    ),
    "clicks": ("clicks", "click", "clk", "link clicks", "exp click cnt"),
    "category": ("category", "category path", "product category", "product type"),
    "text": ("overlay text", "overlay", "text"),
}  # fmt: skip
_CONTEXT = frozenset(("slot", "placement", "audience", "device", "country", "language", "region", "platform"))


def read_creatives(
    path: str | os.PathLike[str],
    *,
    images_root: str | os.PathLike[str] | None = None,
    check_images: bool = True,
) -> Iterator[Item]:
    """Campaigns and pairs of a file or folder, streamed; a problem stands where its row would.

    Paths of images are resolved against `images_root`, by default the file's folder, and may not leave it.
    `check_images` reads each local image once: its hash goes into the creative, and one that is missing or
    no image leaves its campaign. Raises UserError, before the first row, for what cannot be read at all.
    """
    place = check_path(path)
    if place.is_dir() and (place / FILE).is_file():
        place = place / FILE
    reader = FORMATS[sniff(place)]
    source = Source(place, check_path(images_root) if images_root is not None else None)
    rows = reader(Reading(source, check_images))
    first = next(rows, None)  # so that an unusable file raises here and not in the caller's loop
    if first is None:
        raise UserError(f"{source.name} holds no creatives.")
    return chain((first,), rows)


def sniff(path: Path) -> str:
    """Name of the format, a key of `FORMATS`. Raises UserError if it is none."""
    if path.is_dir():
        files = sorted(
            e.name for e in path.iterdir() if e.suffix.lower() in (".jsonl", ".json", ".csv", ".tsv")
        )
        if files and next(folder.walk(str(path)), None) is None:
            raise UserError(f"{path} holds no pictures: name one of its files, such as {files[0]}.")
        return "images"
    try:
        with Source(path).open() as file:
            head = file.read(_HEAD)
    except (FeedBroken, OSError) as error:
        raise UserError(f"{path.name} cannot be read: {error}.") from None
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:2] in (b"\xff\xd8", b"\x89P", b"GI", b"PK", b"%P"):
        raise UserError(
            f"{path.name} is no table of creatives: name a CSV or JSONL file, or a folder of pictures."
        )
    text = head.decode(encoding_of(head), "replace").lstrip("\ufeff \t\r\n")
    if text[:1] in ("{", "["):
        return "jsonl" if text[0] == "{" and _whole(text.split("\n", 1)[0]) else "json"
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path.name} is empty.")
    if published.is_list_row(lines[0]):
        return "creative-ranking"
    names = {fold(cell) for cell in split_header(lines[0])[1]}
    if not names.intersection(COLUMNS["image"]):
        raise UserError(
            f"{path.name} has no column of images: a table of creatives has the columns product_id, title, "
            "interest, image, impressions, clicks, of which only image is needed."
        )
    return "csv"


def _whole(line: str) -> bool:
    """Whether a line is an object of its own, and not the first line of one."""
    try:
        return isinstance(json.loads(line), dict) and not published.is_grouped(line)
    except (ValueError, RecursionError):
        return line.rstrip().endswith("}")  # a broken row of JSON lines


# ------------------------------------------------------------------------------------------ JSON


def read_jsonl(reading: Reading) -> Iterator[Item]:
    """Our own rows, and those of published sets that are written one a line."""
    for number, line in numbered(reading.source):
        record = line if isinstance(line, Row) else parse_object(number, line)
        if isinstance(record, Row):
            yield from record.problems
        else:
            yield from _record(reading, number, record)


def read_parquet(reading: Reading) -> Iterator[Item]:
    """Our own rows with their pictures inside: `record` is the JSON, `images` are its creatives' in order."""
    with parquet.opened(reading.source) as file:
        types = {field.name: str(field.type) for field in file.schema_arrow}
        if types.get("record") != "string" or not types.get("images", "").startswith("list<"):
            raise UserError(f"{reading.source.name} is Parquet, but has no columns record and images.")
        for number, row in parquet.numbered(reading.source, file, 32, ["record", "images"]):
            if isinstance(row, Row):
                yield from row.problems
                continue
            record = parse_object(number, row["record"] or "")
            if isinstance(record, Row):
                yield from record.problems
                continue
            for creative, data in zip(_creatives_of(record), row["images"] or (), strict=False):
                creative["image"] = data
            yield from _record(reading, number, record)


def _creatives_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The creatives of a campaign's or a pair's record that can be given a picture, in order."""
    rows = record.get("creatives") if "creatives" in record else [record.get("a"), record.get("b")]
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def read_json(reading: Reading) -> Iterator[Item]:
    """A JSON file: an array of such rows, or CAIG's object of lists."""
    try:
        data = json.loads(reading.source.read_document().decode("utf-8-sig", "surrogateescape"))
    except (FeedBroken, ValueError, RecursionError):
        raise UserError(f"{reading.source.name} is not valid JSON.") from None
    if isinstance(data, dict) and data and all(isinstance(value, list) for value in data.values()):
        yield from published.read_groups(reading, data)
        return
    for number, record in enumerate(data if isinstance(data, list) else [data], 1):
        if isinstance(record, dict):
            yield from _record(reading, number, record)
        else:
            yield Problem(number, "row", f"not a JSON object but {type(record).__name__}")


def _record(reading: Reading, number: int, record: dict[str, Any]) -> list[Any]:
    draft = reading.draft(number)
    if "creatives" in record:
        return _own_campaign(draft, record)
    if "a" in record and "b" in record:
        return _own_pair(draft, record)
    if published.is_pair_row(record):
        return published.pair_row(draft, record)
    if published.is_sides_row(record):
        return published.sides_row(draft, record)
    return draft.set_aside("row", "neither a campaign (creatives) nor a pair (a and b, image_a and image_b)")


def _own_campaign(draft: CreativeDraft, record: dict[str, Any]) -> list[Any]:
    rows = record["creatives"]
    if not isinstance(rows, list):
        return draft.set_aside("creatives", "not a list", record.get("id"))
    found, places = draft.creatives(rows)
    rates = record.get("true_rates")
    if rates is not None and not _are_rates(rates, len(rows)):
        draft.warn("true_rates", "not one rate between 0 and 1 a creative, so they were left out")
        rates = None
    more = draft.shown(record) | {"true_rates": tuple(rates[i] for i in places) if rates else None}
    name = record.get("id") or record.get("product_id")
    return draft.campaign(name, record.get("product_id"), found, **more)


def _are_rates(value: Any, number: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == number
        and all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1 for x in value)
    )


def _own_pair(draft: CreativeDraft, record: dict[str, Any]) -> list[Any]:
    sides = {}
    for side in ("a", "b"):
        row = record[side]
        try:
            if not isinstance(row, dict):
                raise Refused("image", "it is no object with an image")
            fields = {key: value for key, value in row.items() if key in CREATIVE_FIELDS}
            sides[side] = draft.creative(fields.pop("id", side), fields.pop("image", None), **fields)
        except Refused as error:
            return draft.set_aside(f"{side}.{error.field}", error.reason, record.get("id"))
    assessment = None
    if record.get("assessment") is not None:
        try:
            assessment = checked(Assessment, **record["assessment"])
        except (Refused, TypeError):
            draft.warn("assessment", "it does not answer the protocol, so it was left out")
    rates = record.get("true_rates")
    if rates is not None and not _are_rates(rates, 2):
        draft.warn("true_rates", "not two rates between 0 and 1, so they were left out")
        rates = None
    more = draft.shown(record) | {
        "assessment": assessment,
        "label": record.get("label"),
        "true_rates": tuple(rates) if rates else None,
        "rationale": draft.text("rationale", record.get("rationale"), 10_000),
    }
    return draft.pair(record.get("id"), record.get("product_id"), sides["a"], sides["b"], **more)


def write_campaigns(place: str | os.PathLike[str], rows: Iterable[Campaign | Pair], name: str = FILE) -> int:
    """Writes campaigns or pairs into a folder, with their images, as `read_creatives` reads them back.

    Images are copied below `images/`, named by their content, so that the folder can be moved as a whole;
    web addresses stay what they are. Returns the number of rows. Raises UserError for an image that cannot
    be read; what was written before stays.
    """
    target = Path(place)
    target.mkdir(parents=True, exist_ok=True)
    number = 0
    with open(target / name, "w", encoding="utf-8", newline="\n") as file:
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
    return record | {"image": {"path": store_image(data, folder, "images")}}


# ------------------------------------------------------------------------------------------ tables


class _Group:
    """Rows of a table that are one campaign."""

    def __init__(self, number: int, row: dict[str, str]) -> None:
        self.number, self.first = number, row
        self.creatives: dict[str, dict[str, Any]] = {}

    def add(self, name: str, image: ImageRef, row: dict[str, str]) -> bool:
        """A creative, or more counts of one; False if its name is another image's. Raises Refused."""
        counts = {key: count(row.get(key), key) for key in ("impressions", "clicks")}
        shown, clicks = counts["impressions"], counts["clicks"]
        if shown is not None and clicks is not None and clicks > shown:
            raise Refused("clicks", f"{clicks} clicks are more than {shown} impressions")
        known = self.creatives.setdefault(name, {"id": name, "image": image, "text": row.get("text", "")})
        if known["image"] != image:
            return False
        for key, value in counts.items():
            if value is not None:
                known[key] = known.get(key, 0) + value
        return True


def read_table(reading: Reading) -> Iterator[Item]:
    """Rows of creatives, grouped by product, campaign, interest and context in the order of their coming."""
    table = Table(reading.source)
    plan = _plan(table.header)
    groups: dict[tuple[str, ...], _Group] = {}
    for record in table:
        if record.fatal is not None:
            yield Problem(record.number, "row", record.fatal)
            continue
        row = {target: record.cells.get(column, "") for target, column in plan.items()}
        draft = reading.draft(record.number)
        try:
            image = draft.image(row.get("image"))
            name = plain_id(row.get("id") or Path(image.name).stem).strip()
            context = (row.get(target, "").strip() for target in ("campaign", "interest", *sorted(_CONTEXT)))
            key = (_product(row, reading.source), *context)
            group = groups.setdefault(key, _Group(record.number, row))
            if not group.add(name, image, row):
                raise Refused("id", f"creative {name[:40]!r} has another image in an earlier row")
        except Refused as error:
            yield from draft.set_aside(error.field, error.reason, row.get("id"))
    ids: dict[str, int] = {}
    for key, group in groups.items():
        draft = reading.draft(group.number)
        found, _ = draft.creatives(_at(group.creatives.values()))
        name = group.first.get("campaign", "").strip() or key[0]
        ids[name] = ids.get(name, 0) + 1
        exposure = {target: group.first[target] for target in plan if target in _CONTEXT}
        more = draft.shown(dict(group.first) | {"exposure": exposure, "source": reading.source.name})
        yield from draft.campaign(name if ids[name] == 1 else f"{name}#{ids[name]}", key[0], found, **more)


def _at(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Creatives whose image has been resolved already, as a path or an address again."""
    for row in rows:
        yield row | {"image": row["image"].path or row["image"].url}


def _plan(header: list[str]) -> dict[str, str]:
    """Field -> column of the table."""
    folded = {fold(name): name for name in reversed(header)}
    plan: dict[str, str] = {}
    for target, names in COLUMNS.items():
        column = next((folded[name] for name in names if name in folded), None)
        if column is not None and column not in plan.values():
            plan[target] = column
    return plan | {name: column for name, column in folded.items() if name in _CONTEXT}


def _product(row: dict[str, str], source: Source) -> str:
    """Id of the product: its own, or its title, or the file where neither is there: then all are one."""
    return (row.get("product_id", "").strip() or row.get("title", "").strip() or source.path.stem)[:200]


# ------------------------------------------------------------------------------------------ pictures


def read_folder(reading: Reading) -> Iterator[Item]:
    """One campaign a folder with pictures in it; links to folders are not followed."""
    root = reading.source.path
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path, parts in folder.walk(str(root)):
        name = os.path.splitext(os.path.basename(path))[0]
        found.setdefault(parts, []).append({"id": name, "image": path})
    if not found:
        raise UserError(f"{root.name} holds no pictures ({', '.join(folder.SUFFIXES)}).")
    for number, (parts, rows) in enumerate(found.items(), 1):
        names = [row["id"] for row in rows]
        for row in rows:  # a.png beside a.jpg
            row["id"] = row["id"] if names.count(row["id"]) == 1 else os.path.basename(row["image"])
        draft = reading.draft(number)
        creatives, _ = draft.creatives(rows)
        name = values.clean("/".join(parts) or root.name)[0] or "creatives"
        yield from draft.campaign(name, name, creatives, source=values.clean(root.name)[0])


FORMATS: dict[str, Callable[[Reading], Iterator[Any]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "csv": read_table,
    "images": read_folder,
    "creative-ranking": published.read_list,
}
