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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moonshelf import images
from moonshelf.creatives.schema import Assessment, Campaign, Creative, Known, Pair
from moonshelf.errors import Problem
from moonshelf.feeds import values
from moonshelf.feeds.base import MAX_TITLE, Source
from moonshelf.feeds.build import Draft
from moonshelf.product import MAX_ID, ImageRef

MAX_QUERIES = 50  # of one interest
MAX_CREATIVES = 500  # of one campaign: pairs grow with the square
MAX_COUNT = 10**12  # impressions; more are a mistake
_WHOLE = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:\.0+)?")
_FIELDS = frozenset(Creative.model_fields)
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
    check_images: bool = True  # read each image once, for its hash and its header
    seen: dict[str, int | str] = field(default_factory=dict)

    def image(self, value: Any) -> ImageRef:
        """Reference from a path, an address, bytes, or a mapping of one of them. Raises RowRejected."""
        try:
            if isinstance(value, Mapping):
                if (data := value.get("data")) is not None:
                    return ImageRef(
                        data=data if isinstance(data, bytes) else base64.b64decode(data, validate=True)
                    )
                value = value.get("path") or value.get("url")
            if isinstance(value, bytes):
                return ImageRef(data=value)
            if not isinstance(value, str) or not value.strip():
                raise RowRejected("image", "there is no image")
            return self.source.image(value)
        except ValueError as error:
            encoded = isinstance(value, Mapping)
            raise RowRejected("image", "the image's data is not base64" if encoded else str(error)) from None
        except TypeError:
            raise RowRejected("image", "the image's data is not base64") from None

    def root(self, ref: ImageRef) -> str | None:
        """The folder that a picture may not lie outside of."""
        return self.source.images_root if ref.path else None

    def build(self, number: int | str, record: Mapping[str, Any], translate: Translate) -> list[Any]:
        """The campaign or pair of a record, after its warnings; or why there is none.

        `translate` makes a record of our own form of one in another layout.
        """
        row = RowBuilder(self, number)
        name = record.get("id") or (record.get("product_id") if "creatives" in record else None)
        try:
            if "creatives" not in record and not ("a" in record and "b" in record):
                record = translate(row, record)
                name = record.get("id")
            made = row.campaign(name, record) if "creatives" in record else row.pair(name, record)
            if (before := self.seen.get(made.id)) is not None:
                raise RowRejected("id", f"row {before} has the same id")
        except RowRejected as error:
            fatal = rejected(number, error, name)
            return [*(replace(problem, id=fatal.id) for problem in row.problems), fatal]
        self.seen[made.id] = number
        return [*(replace(problem, id=made.id) for problem in row.problems), made]


class RowBuilder:
    """One campaign or pair in the making. `problems` holds what was mended or left out on the way."""

    def __init__(self, reading: Reading, number: int | str) -> None:
        self.reading = reading
        self._draft = Draft(reading.source, number)
        self.warn, self.problems = self._draft.warn, self._draft.problems

    def text(self, name: str, value: Any, limit: int = MAX_TITLE) -> str:
        """Any value as clean text, cut at `limit` with a warning."""
        return self._draft.cleaned(name, value, limit)

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
        return checked(
            Campaign,
            **self._shown(name, record),
            creatives=tuple(found.values()),
            true_rates=tuple(rates[place] for place in found) if rates else None,
        )

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
                assessment = checked(Assessment, **assessment)
            except (RowRejected, TypeError):
                self.warn("assessment", "it does not answer the protocol, so it was left out")
                assessment = None
        rates = self._rates(record, 2, "not two rates between 0 and 1")
        return checked(
            Pair,
            **self._shown(name, record),
            **sides,
            label=record.get("label"),
            assessment=assessment,
            true_rates=tuple(rates) if rates else None,
            rationale=self.text("rationale", record.get("rationale"), 10_000),
        )

    def creative(self, row: Any, name: str) -> Creative:
        """A creative from raw values; its image is read once where that is asked."""
        if not isinstance(row, Mapping):
            raise RowRejected("image", "it is no object with an image")
        fields = {key: value for key, value in row.items() if key in _FIELDS}
        ref = self.reading.image(fields.pop("image", None))
        digest = self._digest(ref)
        if (said := fields.pop("sha256", "")) and digest and said != digest:
            self.warn("sha256", "the image is not the one that the hash was taken of")
        shown, clicks = (count(fields.pop(key, None), key) for key in ("impressions", "clicks"))
        if (shown is None) != (clicks is None):
            self.warn("clicks", "impressions and clicks are only of use together: both were left out")
            shown = clicks = None
        return checked(
            Creative,
            id=plain_id(fields.get("id") or name),
            image=ref,
            sha256=digest,
            impressions=shown,
            clicks=clicks,
            text=self.text("text", fields.get("text")),
            facts=self._mapping("facts", fields.get("facts")),
            **self._known(fields.get("known"), fields.get("known_otherwise")),
        )

    def _digest(self, ref: ImageRef) -> str:
        """SHA-256 of an image that is on this machine, after a look at its header."""
        if not self.reading.check_images or ref.url is not None:
            return ""
        try:
            data = images.read_bytes(ref, root=self.reading.root(ref))
            images.probe(data)
        except images.ImageError as error:
            raise RowRejected("image", str(error)) from None
        return hashlib.sha256(data).hexdigest()

    def _known(self, by_question: Any, otherwise: Any) -> dict[str, Any]:
        """The truth of a drawn creative, of which nothing is kept if a part of it cannot be read."""
        try:
            known = {str(key): Known(**one) for key, one in (by_question or {}).items()}
            return {"known": known, "known_otherwise": tuple(Known(**one) for one in otherwise or ())}
        except (AttributeError, TypeError, ValidationError):
            self.warn("known", "not a worth and a reason for each question, so it was left out")
            return {}

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

    def _rates(self, record: Mapping[str, Any], number: int, why: str) -> list[float] | None:
        rates = record.get("true_rates")
        if rates is None:
            return None
        fit = isinstance(rates, list) and len(rates) == number and all(map(_is_rate, rates))
        if not fit:
            self.warn("true_rates", f"{why}, so they were left out")
        return rates if fit else None


Translate = Callable[[RowBuilder, Mapping[str, Any]], dict[str, Any]]


def rejected(number: int | str, error: RowRejected, id: Any) -> Problem:
    """The problem of a record that cannot be used."""
    shown = "".join(c if c.isprintable() else "?" for c in values.as_text(id)[:100]) or None
    return Problem(number, error.field, error.reason, shown, fatal=True)


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
    number: float | int | None = None
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value.strip()[:40]) if value.isascii() else None
        number = int(match[1].replace(",", "")) if match else None
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = value
    if number is None or number != int(number):
        shown = "".join(c if c.isprintable() else "?" for c in values.as_text(value)[:20]) or "NaN"
        raise RowRejected(name, f"{shown!r} is not a whole number")
    if not 0 <= number <= MAX_COUNT:
        raise RowRejected(
            name, "the number is negative" if number < 0 else f"more than {MAX_COUNT:,} is a mistake"
        )
    return int(number)
