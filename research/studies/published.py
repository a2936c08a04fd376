"""Layouts of published data sets of creatives, made into our own form. None of them ships with us.

    python -m research.studies.published FILE --out DATA/published

The folder, with the images copied into it, is what `moonshelf creative rank | evaluate` and recipes take.

- CreativePair (Creative4U) is not released. Rows are read as a third party's note describes them: image_a,
  image_b, product_title, query, label; optionally a rationale and the answers Q1 … Q10.
- CreativeRanking (Alimama, Tianchi 93585): lines `item id, image, day, impressions, clicks` between tabs,
  without a header. Taken from the code that was published with it, which reads such lists; the data set
  itself has not been seen. Days are added up; there are no titles.
- CAIG (JD): an object of lists of creatives with `creative_image_hash`, `exp_impression_cnt` and
  `exp_click_cnt`, as its filter writes and reads it; and its evaluation rows, two images side by side with
  the `target` left or right. Taken from its code; the files have not been seen.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moonshelf import images
from moonshelf.creatives.io.readers import Item, Numbered, grouped, read_json, read_jsonl, write_campaigns
from moonshelf.creatives.io.records import Reading, RowBuilder, RowRejected, rejected
from moonshelf.creatives.schema import ASPECTS, KEYS, AspectAnswer, Assessment
from moonshelf.creatives.show import show_problems
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.detect import check_path
from moonshelf.feeds.dialects.jsonl import numbered, parse_object
from research.script import app_of, start

_LABELS = {
    "a": "A", "image_a": "A", "a>b": "A", "b": "B", "image_b": "B", "a<b": "B", "b>a": "B",
    "tie": "tie", "a=b": "tie", "equal": "tie",
}  # fmt: skip
_ANSWERS = {
    "a": "A>B", "a>b": "A>B", "b<a": "A>B", "b": "A<B", "a<b": "A<B", "b>a": "A<B", "a=b": "A=B",
    "tie": "A=B", "equal": "A=B", "yes": "yes", "no": "no", "true": "yes", "false": "no",
}  # fmt: skip
_SIDES = {"left": "A", "right": "B"}
_PRODUCT = re.compile(r"product\s+'(.{1,2000}?)'", re.DOTALL)


def main(
    source: Annotated[Path, typer.Argument(help="File of one of these layouts.")],
    out: Annotated[Path, typer.Option(help="Folder for campaigns or pairs of our own form.")],
) -> None:
    """Make a published set of creatives into our own form."""
    rows = list(read_published(source))
    problems = [row for row in rows if isinstance(row, Problem)]
    show_problems(problems, Console(stderr=True))
    written = write_campaigns(out, (row for row in rows if not isinstance(row, Problem)))
    print(f"{written:,} campaigns and pairs written to {out}")


def read_published(path: str | os.PathLike[str]) -> Iterator[Item]:
    """Campaigns and pairs of a file of one of these layouts; a problem stands where its row would.

    Raises UserError for what cannot be read at all.
    """
    reading = Reading(Source(check_path(path)))
    for item in _rows(reading):
        if isinstance(item, Problem):
            yield item
            continue
        number, record = item
        row = RowBuilder(reading, number)
        try:
            record = record if "creatives" in record else translate(row, record)
        except RowRejected as error:
            yield rejected(number, error, record.get("id"))
            continue
        yield from row.problems
        yield from reading.build(number, record)


def _rows(reading: Reading) -> Iterator[Numbered]:
    lines = (line for _, line in islice(numbered(reading.source), 1))
    first = next((line for line in lines if isinstance(line, str)), "")
    if is_list_row(first):
        return grouped(reading, list_rows(reading), "CreativeRanking")
    if isinstance(parse_object(1, first), dict) and not is_grouped(first):
        return read_jsonl(reading)
    try:
        data = json.loads(reading.source.read_document().decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError):
        raise UserError(f"{reading.source.name} is none of the published layouts.") from None
    if isinstance(data, dict) and data and all(isinstance(value, list) for value in data.values()):
        return read_groups(data)
    return read_json(reading)


def translate(row: RowBuilder, record: Mapping[str, Any]) -> dict[str, Any]:
    """A pair of one of these layouts in our own form. Raises RowRejected for what is none."""
    if "image_a" in record and "image_b" in record:
        return _creative_pair(row, record)
    if "image" in record and values.as_text(record.get("target")) in _SIDES:
        return _side_by_side(row, record)
    raise RowRejected("row", "neither image_a and image_b, nor an image with its target")


# ---- CreativePair ------------------------------------------------------------------------------------


def _creative_pair(row: RowBuilder, record: Mapping[str, Any]) -> dict[str, Any]:
    """Without a product id, rows of one title are one product."""
    title = values.as_text(record.get("product_title", record.get("title")))
    label = _LABELS.get(values.as_text(record.get("label")).strip().lower())
    if label is None and record.get("label") not in (None, ""):
        raise RowRejected("label", f"{values.as_text(record['label'])[:20]!r} is none of A, B and tie")
    name = record.get("id") or _digest(title, str(record["image_a"]), str(record["image_b"]))
    return {
        "id": name,
        "product_id": record.get("product_id") or (_digest(title) if title else name),
        "title": title,
        "interest": record.get("query", record.get("queries", record.get("interest"))),
        "category": record.get("category"),
        "source": "CreativePair layout",
        "a": {"image": record["image_a"]},
        "b": {"image": record["image_b"]},
        "label": label,
        "assessment": _assessment(row, record, label),
        "rationale": record.get("rationale", record.get("reasoning")),
    }


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _assessment(row: RowBuilder, record: Mapping[str, Any], label: str | None) -> Assessment | None:
    """The protocol's answers, by number (Q1 …) or by our keys; None unless all nine are there and fit."""
    given = record.get("questions")
    if not isinstance(given, Mapping):
        given = {key: value for key, value in record.items() if re.fullmatch(r"[Qq]\d+", key)}
    answers = {str(k).lower(): _ANSWERS.get(values.as_text(v).strip().lower()) for k, v in given.items()}
    found = []
    for number, key in enumerate(KEYS, 1) if given else ():
        answer = answers.get(f"q{number}", answers.get(key))
        if answer is None or (key in ASPECTS) == (answer in ("yes", "no")):
            row.warn("questions", f"question {number} ({key}) is not answered: all were left out")
            return None
        found.append(AspectAnswer(question=key, answer=answer))  # type: ignore[arg-type]
    verdict = {"A>B": "A", "A<B": "B"}.get(answers.get(f"q{len(KEYS) + 1}") or "")
    if verdict and label in ("A", "B") and verdict != label:
        row.warn("questions", "the verdict is not the label, which counts")
        verdict = label
    return Assessment(findings=tuple(found), verdict=verdict) if found else None  # type: ignore[arg-type]


# ---- CreativeRanking ---------------------------------------------------------------------------------


def is_list_row(line: str) -> bool:
    """Whether a line is item, image, day, impressions and clicks between tabs."""
    cells = line.strip("\r\n").split("\t")
    return len(cells) == 5 and all(cell.strip().isascii() and cell.strip().isdigit() for cell in cells[2:])


def list_rows(reading: Reading) -> Iterator[Numbered]:
    """Rows of a list of CreativeRanking, as of a table with these columns.

    Images are looked for in `images/` beside the list where there is such a folder.
    """
    beside = "images/" if (Path(reading.source.images_root) / "images").is_dir() else ""
    for number, line in numbered(reading.source):
        if isinstance(line, Row):
            yield from line.problems
            continue
        cells = [values.clean(cell)[0] for cell in line.rstrip("\n").split("\t")]
        if len(cells) != 5:
            why = f"{len(cells)} cells between tabs, not item, image, day, impressions, clicks"
            yield rejected(number, RowRejected("row", why), cells[0])
            continue
        item, image, day, shown, clicks = cells
        about = {"product_id": item, "image": beside + image, "day": day}
        yield number, about | {"impressions": shown, "clicks": clicks}


# ---- CAIG --------------------------------------------------------------------------------------------


def is_grouped(line: str) -> bool:
    """Whether a whole JSON object is CAIG's: keys to lists of creatives, and nothing else."""
    data = json.loads(line)
    return (
        bool(data)
        and "creatives" not in data
        and all(isinstance(rows, list) and rows and isinstance(rows[0], dict) for rows in data.values())
    )


def read_groups(data: Mapping[str, list[Any]]) -> Iterator[Numbered]:
    """Campaigns of an object of lists; in a filtered file each list is a pair."""
    for number, (key, rows) in enumerate(data.items(), 1):
        product = next((row["item_id"] for row in rows if isinstance(row, dict) and row.get("item_id")), key)
        creatives = [_caig(row) for row in rows]
        yield number, {"id": key, "product_id": product, "creatives": creatives, "source": "CAIG layout"}


def _caig(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    image = values.as_text(row.get("creative_image_hash") or row.get("image"))
    return {
        "id": row.get("creative_id") or Path(image).stem,
        "image": image,
        "impressions": row.get("exp_impression_cnt"),
        "clicks": row.get("exp_click_cnt"),
    }


def _side_by_side(row: RowBuilder, record: Mapping[str, Any]) -> dict[str, Any]:
    """A pair from one picture that shows two creatives side by side; A is the left half."""
    ref = row.reading.image(record["image"])
    try:
        picture = images.load(ref, root=row.reading.root(ref))
    except images.ImageError as error:
        raise RowRejected("image", str(error)) from None
    middle = picture.width // 2
    if middle < 1:
        raise RowRejected("image", "it is too narrow to show two creatives")
    sides = {}
    for side, name, left in (("a", "left", 0), ("b", "right", middle)):
        file = io.BytesIO()
        picture.crop((left, 0, left + middle, picture.height)).save(file, "PNG")
        sides[side] = {"id": name, "image": file.getvalue()}
    asked = values.as_text(record.get("question"))
    turns = record.get("conversations")
    if not asked and isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
        asked = values.as_text(turns[0].get("value"))
    product = _PRODUCT.search(asked[:10_000])
    name = record.get("id") or values.as_text(record["image"])
    return {
        "id": name,
        "product_id": values.as_text(name).rsplit("_", 1)[0],  # its ids are product_number
        **sides,
        "title": product[1] if product else "",
        "exposure": {key: record[key] for key in ("left_ctr", "right_ctr") if key in record},
        "label": _SIDES[record["target"]],
        "source": "CAIG layout",
    }


if __name__ == "__main__":
    start(app_of(main))
