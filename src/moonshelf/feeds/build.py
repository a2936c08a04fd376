"""From raw values to a `Product`: one draft per record.

A reader fills a `Draft` and calls `finish`. What is rejected: a record without id, without title,
description and picture, or with a negative price (a corrupt row that would be costly to show). What only
earns a warning: text that was cut or mended, a price that is not understood and a GTIN with a wrong check
digit (both kept in `extra`), pictures that may not be followed. Nothing is dropped: unknown columns go to
`extra`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from pydantic import ValidationError

from moonshelf.errors import Problem
from moonshelf.feeds import shapes, values
from moonshelf.feeds.base import MAX_CELL, MAX_IMAGES, MAX_TEXT, MAX_TITLE, Row, Source
from moonshelf.identifiers import is_placeholder, is_placeholder_gtin
from moonshelf.product import ImageRef, Product

# Beside `id` and `gtin`, which have checks of their own.
_IDENTIFIERS = frozenset(("brand", "mpn", "group_id"))
_LIMITS = {"title": MAX_TITLE, "description": MAX_TEXT}  # characters
Paths: TypeAlias = Callable[[str], list[list[str]]]  # a text's categories, each from its root to its leaf
_IS_PATH = re.compile(r"[>›»|]| / |::")


class Draft:
    """One product in the making: raw values go in, problems are collected, `finish` gives the row."""

    __slots__ = (
        "attributes", "extra", "fatal", "images", "paths", "problems", "row", "seen", "source", "values",
    )  # fmt: skip

    def __init__(self, source: Source, row: int | str, paths: Paths = values.paths) -> None:
        self.source, self.row, self.paths = source, row, paths
        self.values: dict[str, Any] = {}
        self.attributes: dict[str, str] = {}
        self.extra: dict[str, str] = {}
        self.images: list[ImageRef] = []
        self.seen: set[tuple[str | None, str | None]] = set()
        self.problems: list[Problem] = []
        self.fatal: tuple[str, str] | None = None

    def say(self, field: str, reason: str) -> None:
        """A warning that one product bears for the whole feed."""
        if self.source.is_new(reason):
            self.warn(field, reason)

    def warn(self, field: str, reason: str) -> None:
        self.problems.append(Problem(self.row, field, reason, fatal=False))

    def keep(self, field: str, value: Any, reason: str) -> None:
        """A value that is not understood: it is kept in `extra`, and said."""
        self.warn(field, reason)
        self.put(field, value)

    def refuse(self, field: str, reason: str) -> None:
        """The row will be rejected; the first reason is kept."""
        self.fatal = self.fatal or (field, reason)

    def cleaned(self, field: str, value: Any, limit: int = MAX_CELL) -> str:
        text = values.as_text(value)
        if not text:
            return ""
        length = len(text)
        text, mended = values.clean(text[: 2 * limit])
        for reason in mended:
            self.warn(field, reason)
        if len(text) > limit or length > 2 * limit:
            self.warn(field, f"the text has {length} characters and was cut to {limit}")
            text = text[:limit].rstrip()
        return text

    def set(self, field: str, value: Any, *, html: bool = True) -> None:
        """One of the product's own fields from a raw value. Empty values leave what was there.

        `html` tells a stranger's value from our own form's, which is taken as it stands.
        """
        if field == "price":
            return self.price(value)
        if field == "category":
            path = values.category(self.path(value) if html else value)
            if len(path) == 1 and path[0].isdigit():
                self.put("category_id", path[0])  # the number of a taxonomy says nothing to a reader
            elif path:
                self.values[field] = path
            return
        if html:
            value = self.spoken(field, value)
        if field == "gtin":
            return self.gtin(value)
        if field == "id":
            text = values.as_text(value).strip()
            # A table may count from 0.
            if text and (not html or text.isdigit() or not is_placeholder(text)):
                self.values[field] = values.clean(text)[0] if not text.isascii() else text
        elif not (text := self.cleaned(field, value, _LIMITS.get(field, MAX_CELL))):
            return
        elif field == "currency":
            if code := values.currency(text):
                self.values.setdefault(field, code)  # a price that names its own currency knows better
            else:
                self.warn(field, f"the currency {text[:20]!r} is not an ISO 4217 code")
        elif field == "availability":
            self.values[field] = values.availability(text)
        elif field in _IDENTIFIERS and is_placeholder(text):
            self.put(field, text)
        elif html and field in ("title", "description", "brand"):
            self.values[field] = values.plain(text, lines=field == "description")
        else:
            self.values[field] = values.unescape(text) if html and field == "link" else text

    def spoken(self, field: str, value: Any) -> Any:
        """A list or mapping, or a text that prints one, as text in one language; other values as they are."""
        value = shapes.opened(value)
        if not isinstance(value, (list, tuple, dict)):
            return value
        joint = "\n" if field == "description" else ", "
        ids = field in ("id", "group_id")
        found = shapes.spoken(value, self.values.get("language"), joint=joint, ids=ids)
        if found is None:
            self.keep(
                field, value, "a list or mapping of this shape is not understood: it is kept in `extra`"
            )
            return None
        taken = values.clean(found.language or "")[0]  # a tag is text of the feed too
        if taken:
            self.values.setdefault("language", taken.replace("_", "-"))
        others = {values.clean(tag)[0]: text for tag, text in found.others.items()}
        if others:
            listed = ", ".join(sorted(others)[:20])
            said = f"the feed has texts in several languages: {taken} is taken, {listed} are in `extra`"
            self.say("language", said)
        for tag, text in others.items():
            self.put(f"{field} ({tag})", text)
        return found.text

    def path(self, value: Any) -> Any:
        """One path of a category: the longest of a text, the first of a list or mapping."""
        value = shapes.opened(value)
        if not isinstance(value, (list, tuple, dict)):
            paths = self.paths(values.plain(self.cleaned("category", value)))
            best = max(paths, key=len, default=[])
            self.put("other_categories", " | ".join(" > ".join(path) for path in paths if path is not best))
            return best
        paths = shapes.categories(value, self.values.get("language"))
        if not paths:
            self.put("category", value or None)
            return None
        if len(paths) == 1 and len(paths[0]) > 1 and all(map(_IS_PATH.search, paths[0])):
            paths = [[part] for part in paths[0]]  # ["A > B", "A > C"]
        if len(paths) > 1:
            self.put("other_categories", " | ".join(" > ".join(path) for path in paths[1:]))
        return paths[0][0] if len(paths[0]) == 1 else paths[0]

    def money(self, value: Any) -> tuple[Any, str | None]:
        """The amount and currency of a price that is a list or mapping, or a text that prints one."""
        value = shapes.opened(value, numbers=True)
        if not isinstance(value, (list, tuple, dict)):
            return value, None
        found = shapes.money(value)
        if not found:
            return (value, None) if value else (None, None)
        codes = list(dict.fromkeys(one.currency for one in found))
        wanted = self.source.currency if self.source.currency in codes else codes[0]
        if len(codes) > 1:
            self.say("price", f"the feed has prices in {', '.join(map(str, codes))}: {wanted} is taken")
            self.put("other_prices", ", ".join(str(one) for one in found if one.currency != wanted))
        amounts = [one.amount for one in found if one.currency == wanted]
        if len(amounts) > 1:
            self.warn("price", "there are several prices: the lowest is taken")
            self.put("prices", ", ".join(map(str, amounts)))
        return min(amounts, key=_amount), wanted

    def price(self, value: Any, code: str | None = None) -> None:
        value, inner = self.money(value)
        code = inner or code
        if value is None or (isinstance(value, float) and value != value) or not str(value).strip():
            return
        try:
            amount, written = values.price(value, comma=self.source.decimals == {","})
            if isinstance(value, str) and (sign := re.search(r"\d([.,])\d\d?(?!\d)", value)):
                self.source.decimals.add(sign[1])
        except ValueError as error:
            if str(error).startswith("negative"):
                return self.refuse("price", str(error))
            return self.keep("price", value, str(error))
        self.values["price"] = amount
        if code or written:
            self.values["currency"] = written or code

    def gtin(self, value: Any) -> None:
        text = self.cleaned("gtin", value)
        if not text or is_placeholder(text):
            return self.put("gtin", text)
        try:
            digits = values.gtin(text)
            if is_placeholder_gtin(digits):
                raise ValueError(f"GTIN {digits!r} is a filler, not an article's number")
            self.values["gtin"] = digits
        except ValueError as error:
            self.keep("gtin", text, str(error))

    def put(self, name: str, value: Any) -> None:
        """An unknown column, kept as a string."""
        name = self.cleaned("extra", name, 200)
        if name and (text := self.cleaned(name, value)):
            self.extra[name] = text

    def attribute(self, name: str, value: Any, *, html: bool = True) -> None:
        name = self.cleaned("attributes", name, 200)
        if isinstance(value := shapes.opened(value), (list, dict)) and (found := shapes.spoken(value)):
            value = found.text
        if name and (text := self.cleaned(name, value)) and (text := values.plain(text) if html else text):
            self.attributes[name] = text

    def image(self, ref: ImageRef, *, once: bool = True) -> None:
        """Adds a picture; `once` leaves out a path or an address that is there already."""
        key = (ref.path, ref.url)
        if once and ref.data is None:
            if key in self.seen:
                return
            self.seen.add(key)
        if len(self.images) == MAX_IMAGES:
            self.warn("images", f"only the first {MAX_IMAGES} images were kept")
        if len(self.images) <= MAX_IMAGES:  # one more marks that the warning was given
            self.images.append(ref)

    def image_text(self, value: Any, role: str | None = None) -> None:
        """Pictures of a value of any shape: paths, addresses, bytes, or mappings with one of them."""
        self.pictures(shapes.pictures(value), role)

    def pictures(self, found: list[shapes.Picture], role: str | None = None) -> None:
        for picture in found:
            picture.role = values.clean(picture.role)[0] if picture.role else None
            if isinstance(picture.value, (bytes, bytearray)):
                self.image(ImageRef(data=bytes(picture.value), role=picture.role or role))
            elif isinstance(picture.value, str):
                for part in [picture.value] if picture.single else split_images(picture.value):
                    try:
                        self.image(self.source.image(values.unescape(part), picture.role or role))
                    except ValueError as error:
                        self.warn("images", str(error))
            elif picture.value is None:
                self.warn("images", "an image has neither bytes nor a path")
            else:
                self.warn("images", f"an image cannot be read from {type(picture.value).__name__}")

    def held(self) -> str:
        """All text that the product holds so far."""
        fields = map(values.as_text, self.values.values())
        pairs = [text for pair in (*self.attributes.items(), *self.extra.items()) for text in pair]
        pictures = [text for ref in self.images for text in (ref.url, ref.path, ref.role) if text]
        return "\n".join([*fields, *pairs, *pictures])

    def finish(self) -> Row:
        """The row: a product with its warnings, or warnings and one fatal problem."""
        fields = self.values
        id = fields.get("id")
        if "price" in fields and self.source.currency:
            fields.setdefault("currency", self.source.currency)
        if self.fatal is None:
            if not id:
                self.refuse("id", "the id is missing")
            elif not (fields.get("title") or fields.get("description") or self.images):
                self.refuse("title", "there is neither a title, nor a description, nor an image")
        product = None
        if self.fatal is None:
            try:
                images = tuple(self.images[:MAX_IMAGES])
                product = Product(**fields, images=images, attributes=self.attributes, extra=self.extra)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = str(first["loc"][0]) if first["loc"] else "row"
                self.refuse(where, first["msg"].removeprefix("Value error, "))
        id = product.id if product else (str(id)[:100] if id else None)
        problems = [replace(problem, id=id) for problem in self.problems]
        if product is None:
            assert self.fatal is not None
            problems.append(Problem(self.row, *self.fatal, id=id, fatal=True))
        return Row(self.row, product, problems)


def split_images(text: str) -> list[str]:
    """References in one cell. A comma separates only where every part looks like a picture's name."""
    text = text.strip()
    if not text:
        return []
    if isinstance(listed := shapes.opened(text), list):
        return [item.strip() for item in listed if isinstance(item, str) and item.strip()]
    for separator in ("|", "\n", ",", ";", " "):
        if separator in text:
            parts = [part.strip() for part in text.split(separator) if part.strip()]
            if separator in "|\n" or all(map(shapes.is_picture_name, parts)):
                return parts
    return [text]


def _amount(value: Any) -> float:
    try:
        return values.price(value)[0]
    except ValueError:
        return float("inf")
