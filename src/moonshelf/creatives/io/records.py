"""From what a stranger wrote to campaigns and pairs: one draft a record, as `feeds.build` does for products.

A draft cleans texts with the feeds' own functions (encodings, control characters, caps) and collects
problems. What is set aside: a row without a usable id, a campaign in which fewer than two creatives are left,
an id that was there before. A creative is left out of its campaign, with a problem that costs only itself,
if its counts are impossible or its image is missing, damaged or outside the data's folder.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moonshelf import images
from moonshelf.creatives.schema import Campaign, Creative, Known, Pair
from moonshelf.errors import Problem
from moonshelf.feeds import values
from moonshelf.feeds.base import MAX_TITLE, Source
from moonshelf.feeds.build import Draft
from moonshelf.product import MAX_ID, ImageRef

MAX_QUERIES = 50  # of one interest
MAX_CREATIVES = 500  # of one campaign: pairs grow with the square
MAX_COUNT = 10**12  # impressions; more are a mistake
_WHOLE = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(?:\.0+)?")
Model = TypeVar("Model", bound=BaseModel)


class Refused(Exception):
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

    def draft(self, number: int | str) -> CreativeDraft:
        return CreativeDraft(self, number)


class CreativeDraft:
    """One campaign or pair in the making. `problems` holds what was mended or left out on the way."""

    def __init__(self, reading: Reading, number: int | str) -> None:
        self.reading, self.number = reading, number
        self._draft = Draft(reading.source, number)

    @property
    def problems(self) -> list[Problem]:
        return self._draft.problems

    def warn(self, name: str, reason: str) -> None:
        self._draft.warn(name, reason)

    def text(self, name: str, value: Any, limit: int = MAX_TITLE) -> str:
        """Any value as clean text, cut at `limit` with a warning."""
        return self._draft.cleaned(name, value, limit)

    def queries(self, value: Any) -> tuple[str, ...]:
        """An interest: a list, or a text whose parts are separated by bars, semicolons or line ends."""
        parts = value if isinstance(value, list | tuple) else re.split(r"[|;\n]", values.as_text(value))
        texts = (self.text("interest", part) for part in parts[: 10 * MAX_QUERIES])
        queries = tuple(dict.fromkeys(text for text in texts if text))
        if len(queries) > MAX_QUERIES:
            self.warn("interest", f"only the first {MAX_QUERIES} queries were kept")
        return queries[:MAX_QUERIES]

    def mapping(self, name: str, value: Any) -> dict[str, str]:
        """Facts or exposure: names and texts."""
        if value is None or value == "":
            return {}
        if not isinstance(value, Mapping):
            self.warn(name, "not names and values, so it was left out")
            return {}
        pairs = (
            (self.text(name, key, 100), self.text(name, text)) for key, text in list(value.items())[:100]
        )
        return {key: text for key, text in pairs if key}  # an empty fact is one: "claims nothing"

    def image(self, value: Any) -> ImageRef:
        """Reference from a path, an address, bytes, or a mapping of one of them. Raises Refused."""
        if isinstance(value, Mapping):
            if value.get("data") is not None:
                return ImageRef(data=_decoded(value["data"]))
            value = value.get("path") or value.get("url")
        if isinstance(value, bytes):
            return ImageRef(data=value)
        if not isinstance(value, str) or not value.strip():
            raise Refused("image", "there is no image")
        if not valid_text(value):
            raise Refused("image", "the reference is not valid text")
        try:
            return self.reading.source.image(value)
        except ValueError as error:
            raise Refused("image", str(error)) from None

    def creative(self, name: Any, image: Any, **more: Any) -> Creative:
        """A creative from raw values; its image is read once where that is asked. Raises Refused."""
        ref = self.image(image)
        digest = self._read(ref)
        if (said := more.pop("sha256", "")) and digest and said != digest:
            self.warn("sha256", "the image is not the one that the hash was taken of")
        shown, clicks = (count(more.pop(key, None), key) for key in ("impressions", "clicks"))
        if (shown is None) != (clicks is None):
            self.warn("clicks", "impressions and clicks are only of use together: both were left out")
            shown = clicks = None
        text = self.text("text", more.pop("text", None))
        facts = self.mapping("facts", more.pop("facts", None))
        given = {"impressions": shown, "clicks": clicks, "text": text, "facts": facts, "sha256": digest}
        given |= self._known(more.pop("known", None), more.pop("known_otherwise", None))
        return checked(Creative, id=plain_id(name), image=ref, **given)

    def _known(self, by_question: Any, otherwise: Any) -> dict[str, Any]:
        """The truth of a drawn creative, of which nothing is kept if a part of it cannot be read."""
        try:
            known = {str(key): Known(**one) for key, one in (by_question or {}).items()}
            return {"known": known, "known_otherwise": tuple(Known(**one) for one in otherwise or ())}
        except (AttributeError, TypeError, ValidationError):
            self.warn("known", "not a worth and a reason for each question, so it was left out")
            return {}

    def _read(self, ref: ImageRef) -> str:
        """SHA-256 of an image that is on this machine, after a look at its header."""
        if not self.reading.check_images or ref.url is not None:
            return ""
        try:
            data = images.read_bytes(ref, root=self.reading.source.images_root if ref.path else None)
            images.probe(data)
        except images.ImageError as error:
            raise Refused("image", str(error)) from None
        return hashlib.sha256(data).hexdigest()

    def creatives(self, rows: Iterable[Mapping[str, Any]]) -> tuple[list[Creative], list[int]]:
        """Those of one campaign that can be used, and their places among `rows`."""
        found: list[Creative] = []
        places: list[int] = []
        ids: set[str] = set()
        for place, row in enumerate(rows):
            if place >= MAX_CREATIVES:
                self.warn("creatives", f"only the first {MAX_CREATIVES} creatives were kept")
                break
            try:
                if not isinstance(row, Mapping):
                    raise Refused("creatives", "it is no object with an image")
                fields = {key: value for key, value in row.items() if key in CREATIVE_FIELDS}
                made = self.creative(
                    fields.pop("id", None) or str(place + 1), fields.pop("image", None), **fields
                )
                if made.id in ids:
                    raise Refused("id", "another creative of the campaign has that id")
            except Refused as error:
                name = values.as_text(row.get("id"))[:40] if isinstance(row, Mapping) else ""
                self.warn(
                    "creatives", f"creative {name or place + 1} was left out: {error.field}: {error.reason}"
                )
                continue
            ids.add(made.id)
            found.append(made)
            places.append(place)
        return found, places

    def shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a campaign and a pair share, cleaned."""
        return {
            "title": self.text("title", row.get("title")),
            "category": values.category(row.get("category") or ()),
            "interest": self.queries(row.get("interest") or ()),
            "other_interests": tuple(map(self.queries, _listed(row.get("other_interests")))),
            "exposure": self.mapping("exposure", row.get("exposure")),
            "source": self.text("source", row.get("source"), 200),
        }

    def campaign(
        self, id: Any, product_id: Any, creatives: Sequence[Creative], **more: Any
    ) -> list[Campaign | Problem]:
        """The outcome of the record: its warnings, then a campaign or why there is none."""
        if len(creatives) < 2:
            return self.set_aside(
                "creatives", f"{len(creatives)} usable creatives: two make a comparison", id
            )
        return self._finish(Campaign, id, product_id, creatives=tuple(creatives), **more)

    def pair(self, id: Any, product_id: Any, a: Creative, b: Creative, **more: Any) -> list[Pair | Problem]:
        """The same for a pair."""
        return self._finish(Pair, id, product_id, a=a, b=b, **more)

    def _finish(self, kind: type[Model], id: Any, product_id: Any, **fields: Any) -> list[Any]:
        name = plain_id(id)
        product = self.text("product_id", product_id, MAX_ID) or name
        try:
            made = checked(kind, id=name, product_id=product, **fields)
            if (before := self.reading.seen.get(made.id)) is not None:  # type: ignore[attr-defined]
                raise Refused("id", f"row {before} has the same id")
        except Refused as error:
            return self.set_aside(error.field, error.reason, name)
        self.reading.seen[made.id] = self.number  # type: ignore[attr-defined]
        return [*(replace(problem, id=made.id) for problem in self.problems), made]  # type: ignore[attr-defined]

    def set_aside(self, name: str, reason: str, id: Any = None) -> list[Any]:
        """The outcome of a record that cannot be used."""
        shown = "".join(c if c.isprintable() else "?" for c in values.as_text(id)[:100]) or None
        fatal = Problem(self.number, name, reason, shown, fatal=True)
        return [*(replace(problem, id=shown) for problem in self.problems), fatal]


CREATIVE_FIELDS = frozenset(Creative.model_fields)


def checked(kind: type[Model], **fields: Any) -> Model:
    """A model from values that may not fit. Raises Refused with the first reason."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else "row"
        raise Refused(where, first["msg"].removeprefix("Value error, ")) from None


def plain_id(value: Any) -> str:
    """An id as text; bytes that were no UTF-8 become letters, all else is left to the model's own check."""
    text = values.as_text(value)
    return text if text.isascii() else values.clean(text)[0]


def valid_text(value: str) -> bool:
    """Whether a text can be written again: no bytes that were no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def count(value: Any, name: str) -> int | None:
    """A number of impressions or clicks, None where nothing is written. Raises Refused.

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
        raise Refused(name, f"{shown!r} is not a whole number")
    if not 0 <= number <= MAX_COUNT:
        raise Refused(
            name, "the number is negative" if number < 0 else f"more than {MAX_COUNT:,} is a mistake"
        )
    return int(number)


def _listed(value: Any) -> Sequence[Any]:
    return value[:MAX_QUERIES] if isinstance(value, list | tuple) else ()


def _decoded(value: Any) -> bytes:
    import base64
    import binascii

    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise Refused("image", "the image's data is not base64") from None
