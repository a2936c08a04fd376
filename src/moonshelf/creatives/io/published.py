"""Layouts of published data sets of creatives, read into campaigns and pairs. None of them ships with us.

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
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moonshelf import images
from moonshelf.creatives.io.records import CreativeDraft, Reading, Refused, count
from moonshelf.creatives.schema import KEYS, QUESTIONS, AspectAnswer, Assessment, Creative
from moonshelf.errors import Problem
from moonshelf.feeds import values
from moonshelf.feeds.base import Row
from moonshelf.feeds.jsonl import numbered
from moonshelf.product import ImageRef

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


# ------------------------------------------------------------------------------------------ CreativePair


def is_pair_row(record: Mapping[str, Any]) -> bool:
    return "image_a" in record and "image_b" in record


def pair_row(draft: CreativeDraft, record: Mapping[str, Any]) -> list[Any]:
    """A pair of CreativePair's kind. Without a product id, rows of one title are one product."""
    title = draft.text("title", record.get("product_title", record.get("title")))
    name = record.get("id") or _digest(title, str(record["image_a"]), str(record["image_b"]))
    label = _LABELS.get(values.as_text(record.get("label")).strip().lower())
    if label is None and record.get("label") not in (None, ""):
        return draft.set_aside(
            "label", f"{values.as_text(record['label'])[:20]!r} is none of A, B and tie", name
        )
    sides: list[Creative] = []
    for side in ("a", "b"):
        try:
            sides.append(draft.creative(side, record[f"image_{side}"]))
        except Refused as error:
            return draft.set_aside(f"image_{side}", error.reason, name)
    product = record.get("product_id") or (_digest(title) if title else name)
    interest = record.get("query", record.get("queries", record.get("interest")))
    return draft.pair(
        name,
        product,
        sides[0],
        sides[1],
        title=title,
        interest=draft.queries(interest or ()),
        category=values.category(record.get("category") or ()),
        source="CreativePair layout",
        label=label,
        assessment=_assessment(draft, record, label),
        rationale=draft.text("rationale", record.get("rationale", record.get("reasoning")), 10_000),
    )


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _assessment(draft: CreativeDraft, record: Mapping[str, Any], label: str | None) -> Assessment | None:
    """The protocol's answers, by number (Q1 …) or by our keys; None unless all nine are there and fit."""
    given = record.get("questions")
    given = (
        given
        if isinstance(given, Mapping)
        else {k: v for k, v in record.items() if re.fullmatch(r"[Qq]\d+", k)}
    )
    if not given:
        return None
    answers = {
        str(key).lower(): _ANSWERS.get(values.as_text(value).strip().lower()) for key, value in given.items()
    }
    findings = []
    for number, question in enumerate(QUESTIONS, 1):
        answer = answers.get(f"q{number}", answers.get(question.key))
        if answer is None or question.compares == (answer in ("yes", "no")):
            draft.warn(
                "questions", f"question {number} ({KEYS[number - 1]}) is not answered: all were left out"
            )
            return None
        findings.append(AspectAnswer(question=question.key, answer=answer))  # type: ignore[arg-type]
    verdict = {"A>B": "A", "A<B": "B"}.get(answers.get(f"q{len(QUESTIONS) + 1}") or "")
    if verdict and label in ("A", "B") and verdict != label:
        draft.warn("questions", "the verdict is not the label, which counts")
        verdict = label
    return Assessment(findings=tuple(findings), verdict=verdict)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- CreativeRanking


def is_list_row(line: str) -> bool:
    """Whether a line is item, image, day, impressions and clicks between tabs."""
    cells = line.strip("\r\n").split("\t")
    return len(cells) == 5 and all(cell.strip().isascii() and cell.strip().isdigit() for cell in cells[2:])


def read_list(reading: Reading) -> Iterator[Any]:
    """Campaigns of a list of CreativeRanking: held in memory until the end, for nothing says it is sorted.

    Images are looked for in `images/` beside the list where there is such a folder.
    """
    source = reading.source
    beside = "images/" if (Path(source.images_root) / "images").is_dir() else ""
    items: dict[str, dict[str, list[int]]] = {}
    first: dict[str, int] = {}
    days: dict[str, set[str]] = {}
    for number, line in numbered(source):
        if isinstance(line, Row):
            yield from line.problems
            continue
        cells = line.rstrip("\n").split("\t")
        if len(cells) != 5:
            yield Problem(
                number, "row", f"{len(cells)} cells between tabs, not item, image, day, impressions, clicks"
            )
            continue
        item, image, day = (values.clean(cell)[0] for cell in cells[:3])
        try:
            shown, clicks = count(cells[3], "impressions"), count(cells[4], "clicks")
            if shown is None or clicks is None or clicks > shown:
                raise Refused("clicks", f"{clicks} clicks of {shown} impressions are impossible")
        except Refused as error:
            yield Problem(number, error.field, error.reason, item[:100] or None)
            continue
        first.setdefault(item, number)
        days.setdefault(item, set()).add(day)
        counts = items.setdefault(item, {}).setdefault(image, [0, 0])
        counts[0], counts[1] = counts[0] + shown, counts[1] + clicks
    for item, found in items.items():
        draft = reading.draft(first[item])
        rows = [
            {"id": Path(image).stem[:200], "image": beside + image, "impressions": shown, "clicks": clicks}
            for image, (shown, clicks) in found.items()
        ]
        creatives, _ = draft.creatives(rows)
        exposure = {"days": str(len(days[item]))}
        yield from draft.campaign(item, item, creatives, source="CreativeRanking", exposure=exposure)


# ------------------------------------------------------------------------------------------------ CAIG


def is_grouped(line: str) -> bool:
    """Whether a whole JSON object is CAIG's: keys to lists of creatives, and nothing else."""
    data = json.loads(line)
    return (
        bool(data)
        and "creatives" not in data
        and all(isinstance(rows, list) and rows and isinstance(rows[0], dict) for rows in data.values())
    )


def read_groups(reading: Reading, data: Mapping[str, list[Any]]) -> Iterator[Any]:
    """Campaigns of an object of lists; in a filtered file each list is a pair."""
    for number, (key, rows) in enumerate(data.items(), 1):
        draft = reading.draft(number)
        creatives, _ = draft.creatives([_caig(row) for row in rows])
        product = next((row["item_id"] for row in rows if isinstance(row, dict) and row.get("item_id")), key)
        yield from draft.campaign(key, product, creatives, source="CAIG layout")


def _caig(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        return {}
    image = values.as_text(row.get("creative_image_hash") or row.get("image"))
    return {
        "id": row.get("creative_id") or Path(image).stem,
        "image": image,
        "impressions": row.get("exp_impression_cnt"),
        "clicks": row.get("exp_click_cnt"),
    }


def is_sides_row(record: Mapping[str, Any]) -> bool:
    return "image" in record and values.as_text(record.get("target")) in _SIDES


def sides_row(draft: CreativeDraft, record: Mapping[str, Any]) -> list[Any]:
    """A pair from one picture that shows two creatives side by side; A is the left half."""
    name = record.get("id") or values.as_text(record["image"])
    try:
        whole = draft.image(record["image"])
        picture = images.load(whole, root=draft.reading.source.images_root if whole.path else None)
    except (Refused, images.ImageError) as error:
        return draft.set_aside("image", error.reason if isinstance(error, Refused) else str(error), name)
    middle = picture.width // 2
    if middle < 1:
        return draft.set_aside("image", "it is too narrow to show two creatives", name)
    sides = []
    for side, left in (("left", 0), ("right", middle)):
        file = io.BytesIO()
        picture.crop((left, 0, left + middle, picture.height)).save(file, "PNG")
        data = file.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        sides.append(Creative(id=side, image=ImageRef(data=data), sha256=digest))
    asked = values.as_text(record.get("question"))
    turns = record.get("conversations")
    if not asked and isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
        asked = values.as_text(turns[0].get("value"))
    product = _PRODUCT.search(asked[:10_000])
    rates = {key: record[key] for key in ("left_ctr", "right_ctr") if key in record}
    return draft.pair(
        name,
        values.as_text(name).rsplit("_", 1)[0],  # its ids are product_number
        sides[0],
        sides[1],
        title=draft.text("title", product[1]) if product else "",
        exposure=draft.mapping("rates", rates),
        label=_SIDES[record["target"]],
        source="CAIG layout",
    )
