"""From what a stranger wrote to campaigns and pairs, as `feeds.build` does it for products.

Every reader gives records of our own form; `Reading.build` makes a campaign or a pair of one, cleans its
texts with the feeds' own functions (encodings, control characters, caps) and collects problems. Rejected is a
record without a usable id, a campaign in which fewer than two creatives are left, an id that was there
before. A creative is left out of its campaign, with a problem that costs only itself, if its counts are
impossible or its image is missing, damaged or outside the data's folder.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moonshelf import images
from moonshelf.creatives.schema import Assessment, Campaign, Creative, Known, Pair
from moonshelf.errors import Problem
from moonshelf.feeds import values
from moonshelf.feeds.base import MAX_TITLE, Source
from moonshelf.feeds.build import Draft
from moonshelf.plaintext import shown
from moonshelf.product import MAX_ID, ImageRef

MAX_QUERIES = 50  # of one interest
MAX_CREATIVES = 500  # of one campaign: pairs grow with the square
MAX_COUNT = 10**12  # impressions; more are a mistake
_WHOLE = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:\.0+)?")
Model = TypeVar("Model", bound=BaseModel)


class RowRejected(Exception):
    """A row or a creative cannot be used: the field and a reason that fits into a `Problem`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.field, self.reason = name, reason


@dataclass
class Reading:
    """One file of creatives being read: where its images are, and the ids that were there."""

    source: Source
    seen: dict[str, int | str] = field(default_factory=dict)

    def image(self, value: Any) -> ImageRef:
        """Reference from a path, an address, bytes, or a mapping of one of them. Raises RowRejected."""
        if isinstance(value, Mapping) and (data := value.get("data")) is not None:
            try:
                return ImageRef(
                    data=data if isinstance(data, bytes) else base64.b64decode(data, validate=True)
                )
            except (ValueError, TypeError):
                raise RowRejected("image", "the image's data is not base64") from None
        if isinstance(value, Mapping):
            value = value.get("path") or value.get("url")
        try:
            if isinstance(value, bytes):
                return ImageRef(data=value)
            if isinstance(value, str) and value.strip():
                return self.source.image(value)
        except ValueError as error:
            raise RowRejected("image", str(error)) from None
        raise RowRejected("image", "there is no image")

    def root(self, ref: ImageRef) -> str | None:
        """The folder that a picture may not lie outside of."""
        return self.source.images_root if ref.path else None

    def build(self, number: int | str, record: Mapping[str, Any]) -> list[Any]:
        """The campaign or pair of a record, after its warnings; or why there is none."""
        row = RowBuilder(self, number)
        name = record.get("id") or (record.get("product_id") if "creatives" in record else None)
        try:
            if "creatives" not in record and not ("a" in record and "b" in record):
                raise RowRejected("row", "neither a campaign (creatives) nor a pair (a and b)")
            made = row.campaign(name, record) if "creatives" in record else row.pair(name, record)
            if (before := self.seen.get(made.id)) is not None:
                raise RowRejected("id", f"row {before} has the same id")
        except RowRejected as error:
            fatal = rejected(number, error, name)
            return [*(replace(problem, id=fatal.id) for problem in row.problems), fatal]
        self.seen[made.id] = number
        return [*(replace(problem, id=made.id) for problem in row.problems), made]


class RowBuilder(Draft):
    """One campaign or pair in the making. `problems` holds what was mended or left out on the way."""

    def __init__(self, reading: Reading, number: int | str) -> None:
        super().__init__(reading.source, number)
        self.reading = reading

    def text(self, name: str, value: Any, limit: int = MAX_TITLE) -> str:
        """Any value as clean text, cut at `limit` with a warning."""
        return self.cleaned(name, value, limit)

    def campaign(self, name: Any, record: Mapping[str, Any]) -> Campaign:
        """Raises RowRejected, as all that follows."""
        rows = record["creatives"]
        if not isinstance(rows, list):
            raise RowRejected("creatives", "not a list")
        if len(rows) > MAX_CREATIVES:
            self.warn("creatives", f"only the first {MAX_CREATIVES} creatives were kept")
        found: dict[int, Creative] = {}  # by place
        for place, row in enumerate(rows[:MAX_CREATIVES]):
            try:
                made = self.creative(row, str(place + 1))
                if made.id in {one.id for one in found.values()}:
                    raise RowRejected("id", "another creative of the campaign has that id")
                found[place] = made
            except RowRejected as error:
                told = values.as_text(row.get("id"))[:40] if isinstance(row, Mapping) else ""
                self.warn(
                    "creatives", f"creative {told or place + 1} was left out: {error.field}: {error.reason}"
                )
        if len(found) < 2:
            raise RowRejected("creatives", f"{len(found)} usable creatives: two make a comparison")
        rates = self._rates(record, len(rows), "not one rate between 0 and 1 a creative")
        kept = tuple(rates[place] for place in found) if rates else None
        about = self._shown(name, record)
        return checked(Campaign, creatives=tuple(found.values()), true_rates=kept, **about)

    def pair(self, name: Any, record: Mapping[str, Any]) -> Pair:
        sides = {}
        for side in ("a", "b"):
            try:
                sides[side] = self.creative(record[side], side)
            except RowRejected as error:
                raise RowRejected(f"{side}.{error.field}", error.reason) from None
        assessment = record.get("assessment")
        if assessment is not None and not isinstance(assessment, Assessment):
            try:
                assessment = Assessment(**assessment)
            except (ValidationError, TypeError):
                self.warn("assessment", "it does not answer the protocol, so it was left out")
                assessment = None
        return checked(
            Pair,
            label=record.get("label"),
            assessment=assessment,
            true_rates=self._rates(record, 2, "not two rates between 0 and 1"),
            rationale=self.text("rationale", record.get("rationale"), 10_000),
            **sides,
            **self._shown(name, record),
        )

    def creative(self, row: Any, name: str) -> Creative:
        """A creative from raw values; its image is read once, for its hash and its header."""
        if not isinstance(row, Mapping):
            raise RowRejected("image", "it is no object with an image")
        ref, digest = self.reading.image(row.get("image")), ""
        if ref.url is None:
            try:
                data = images.read_bytes(ref, root=self.reading.root(ref))
                images.probe(data)
            except images.ImageError as error:
                raise RowRejected("image", str(error)) from None
            digest = hashlib.sha256(data).hexdigest()
            if row.get("sha256") not in (None, "", digest):
                self.warn("sha256", "the image is not the one that the hash was taken of")
        views, clicks = (count(row.get(key), key) for key in ("impressions", "clicks"))
        if (views is None) != (clicks is None):
            self.warn("clicks", "impressions and clicks are only of use together: both were left out")
            views = clicks = None
        try:  # the truth of a drawn one, of which nothing is kept if a part of it cannot be read
            known = {str(key): Known(**one) for key, one in (row.get("known") or {}).items()}
            otherwise = tuple(Known(**one) for one in row.get("known_otherwise") or ())
        except (AttributeError, TypeError, ValidationError):
            self.warn("known", "not a worth and a reason for each question, so it was left out")
            known, otherwise = {}, ()
        return checked(
            Creative,
            id=plain_id(row.get("id") or name),
            image=ref,
            sha256=digest,
            impressions=views,
            clicks=clicks,
            text=self.text("text", row.get("text")),
            facts=self._mapping("facts", row.get("facts")),
            known=known,
            known_otherwise=otherwise,
        )

    def _shown(self, name: Any, record: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a campaign and a pair share, cleaned."""
        others = record.get("other_interests")
        id = plain_id(name)
        return {
            "id": id,
            "product_id": self.text("product_id", record.get("product_id"), MAX_ID) or id,
            "title": self.text("title", record.get("title")),
            "category": values.category(record.get("category") or ()),
            "interest": self._queries(record.get("interest") or ()),
            "other_interests": tuple(
                map(self._queries, others[:MAX_QUERIES] if isinstance(others, list | tuple) else ())
            ),
            "exposure": self._mapping("exposure", record.get("exposure")),
            "source": self.text("source", record.get("source"), 200),
        }

    def _queries(self, value: Any) -> tuple[str, ...]:
        """An interest: a list, or a text whose parts are separated by bars, semicolons or line ends."""
        parts = value if isinstance(value, list | tuple) else re.split(r"[|;\n]", values.as_text(value))
        texts = (self.text("interest", part) for part in parts[: 10 * MAX_QUERIES])
        queries = tuple(dict.fromkeys(text for text in texts if text))
        if len(queries) > MAX_QUERIES:
            self.warn("interest", f"only the first {MAX_QUERIES} queries were kept")
        return queries[:MAX_QUERIES]

    def _mapping(self, name: str, value: Any) -> dict[str, str]:
        """Facts or exposure: names and texts."""
        if value is None or value == "":
            return {}
        if not isinstance(value, Mapping):
            self.warn(name, "not names and values, so it was left out")
            return {}
        items = list(value.items())[:100]
        pairs = ((self.text(name, key, 100), self.text(name, text)) for key, text in items)
        return {key: text for key, text in pairs if key}  # an empty fact is one: "claims nothing"

    def _rates(self, record: Mapping[str, Any], number: int, why: str) -> tuple[float, ...] | None:
        rates = record.get("true_rates")
        if isinstance(rates, list) and len(rates) == number and all(map(_is_rate, rates)):
            return tuple(rates)
        if rates is not None:
            self.warn("true_rates", f"{why}, so they were left out")
        return None


def rejected(number: int | str, error: RowRejected, id: Any) -> Problem:
    """The problem of a record that cannot be used."""
    return Problem(number, error.field, error.reason, shown(values.as_text(id), 100) or None, fatal=True)


def checked(kind: type[Model], **fields: Any) -> Model:
    """A model from values that may not fit. Raises RowRejected with the first reason."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else "row"
        raise RowRejected(where, first["msg"].removeprefix("Value error, ")) from None


def plain_id(value: Any) -> str:
    """An id as text; bytes that were no UTF-8 become letters, all else is left to the model's own check."""
    text = values.as_text(value)
    return text if text.isascii() else values.clean(text)[0]


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def count(value: Any, name: str) -> int | None:
    """A number of impressions or clicks, None where nothing is written. Raises RowRejected.

    Takes whole numbers, also as floats and as text with commas between the thousands.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number: float = math.nan
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value.strip()[:40]) if value.isascii() else None
        number = int(match[1].replace(",", "")) if match else math.nan
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = value
    if number != number // 1:
        raise RowRejected(name, f"{shown(values.as_text(value), 20) or 'NaN'!r} is not a whole number")
    if not 0 <= number <= MAX_COUNT:
        raise RowRejected(
            name, "the number is negative" if number < 0 else f"more than {MAX_COUNT:,} is a mistake"
        )
    return int(number)
