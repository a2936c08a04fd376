"""Exports in which several lines make one product: Shopify's, and those of shops that have `lines`.

Lines of one handle are variants, or only add a picture. What a shopper sees are *looks*: a shirt in red and
in blue are two, a red shirt in S, M and L is one. So every look becomes one `Product`: `group_id` is the
handle, title, description and pictures are inherited, the look's own pictures come first and pictures of
other looks are left out. Variants that differ only in options such as size share one product, with
`size: "S, M, L"`, the lowest price, and all of their cells as JSON in `extra["variants"]`; six equal vectors
would only crowd the result. The id is the handle, or `handle:red` where there are several looks: unlike SKUs
it is never blank, and stays when a size sells out.

Lines of one handle have to follow each other, as the shops write them; then the file streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count

from moonshelf.attributes import canonical_key, fold
from moonshelf.errors import UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import Row, Source, rejected
from moonshelf.feeds.build import Draft
from moonshelf.feeds.columns import forced_fields, kept, simple
from moonshelf.feeds.dialects.shops import SHOPIFY, Shop, by_name
from moonshelf.feeds.text import Cells, Table
from moonshelf.feeds.vocabulary import WORDS

MAX_LINES = 5_000  # of one handle; Shopify itself allows 2,048 variants
_PRODUCT = WORDS["variants"]["product"]
_NOT_OF_VARIANTS = frozenset((
    "handle", "parent", "starts", "type", "image", "position", *_PRODUCT,
))  # fmt: skip
_FIELDS = {"id": "handle", "images": "image", "gtin": "barcode"}  # of `Product` -> what a line calls them
# Metafields of Shopify, and eBay's item specifics.
_ATTRIBUTE = re.compile(r"(.{1,100}?) \(product\.metafields\.[^)]*\)|[Cc]:(.{1,100})")


@dataclass(slots=True)
class Line:
    """One line of the file with its known cells."""

    number: int
    cells: Cells
    known: dict[str, str]
    unknown: dict[str, str]

    def get(self, name: str) -> str:
        return self.known.get(name, "").strip()

    @property
    def handle(self) -> str:
        return self.get("handle") or _slug(self.get("title"))

    @property
    def amount(self) -> float | str:
        """The price, or why there is none."""
        try:
            return values.price(self.get("price"))[0]
        except ValueError as error:
            return str(error)

    def is_variant(self) -> bool:
        return any(map(self.get, ("option1 value", "option2 value", "sku", "price", "barcode")))


def read(source: Source, table: Table, shop: Shop) -> Iterator[Row]:
    """Rows of a shop's export, one per look. Raises UserError if Shopify's has no handle and no title."""
    forced = forced_fields(table.header, source.fields)
    names = {simple(name) for name in table.header} | {"title"} & set(forced.values())
    if (
        shop is SHOPIFY
        and names.isdisjoint(("handle", "url handle", "title"))
        and "id" not in forced.values()
    ):
        raise UserError(f"{source.name} has neither a handle nor a title column: is it a Shopify export?")
    action = re.search(r"Currency=([A-Z]{3})", " ".join(table.header))  # in eBay's first column
    ever: set[str] = set()  # columns that some line used
    if shop is not SHOPIFY:
        source.say("columns", f"read as an export of {shop.name}")

    def line(number: int, record: Cells) -> Line:
        used: set[str] = set()
        cells = by_name({name: cell for name, cell in record.items() if name not in forced})
        known = shop.line(cells, used)
        if shop is not SHOPIFY:
            used.add("currency")
            known.setdefault("currency", cells.get("currency") or (action[1] if action else ""))
        known |= {_FIELDS.get(field, field): record.get(name, "") for name, field in forced.items()}
        unknown = {
            name: cell
            for name, cell in record.items()
            if cell.strip() and name not in forced and simple(name) not in used
        }
        ever.update(used)
        return Line(number, record, known, unknown)

    yield from source.take_notes()
    group: list[Line] = []
    unread: list[Row] = []  # lines among them
    unused: dict[str, None] = {}
    for number, record in table:
        if isinstance(record, Row):
            if group and len(unread) < MAX_LINES:
                unread.append(record)
            else:
                yield record
            continue
        one = line(number, record)
        unused |= dict.fromkeys(one.unknown)
        same = group and (not one.handle or one.handle == group[0].handle) and not one.get("starts")
        if same and len(group) < MAX_LINES:
            group.append(one)
            continue
        yield from _rows(source, shop, group, unread)
        group, unread = [one] if one.handle else [], []
        if not one.handle:
            yield rejected(number, "id", "the handle is missing")
    yield from _rows(source, shop, group, unread)
    if left := [name for name in unused if shop is SHOPIFY or simple(name) not in ever]:
        source.say("columns", kept(left))
    yield from source.take_notes()


def _rows(source: Source, shop: Shop, group: list[Line], rows: list[Row]) -> Iterator[Row]:
    """Rows of one handle: a row per look, and one per line that is rejected."""
    if not group:
        return
    first = group[0]
    variants: list[Line] = []
    added = 0  # lines that only add a picture
    for line in group:
        if line is not first and not line.is_variant():
            added += 1
        elif isinstance(why := line.amount, str) and why.startswith("negative"):
            rows.append(rejected(line.number, "price", why, first.handle[:100]))
        else:
            variants.append(line)
    if first.get("parent") and len(variants) > 1:  # its variants are the lines below it
        variants.remove(first)
        added += 1
        for line in variants:
            line.known["price"] = line.get("price") or first.get("price")
    gallery = _gallery(group)
    options = [next((name for line in group if (name := line.get(f"option{n} name"))), "") for n in (1, 2, 3)]
    looks = _looks(variants, options)
    own = {
        key: [image for line in lines if (image := line.get("variant image"))] for key, lines in looks.items()
    }
    used: set[str] = set()
    for key, lines in looks.items():
        draft = Draft(source, lines[0].number, shop.paths)
        draft.problems += [line.cells.warning for line in lines if line.cells.warning]
        draft.set("id", _id(first.handle, key if len(looks) > 1 else (), used))
        draft.set("group_id", first.handle)
        others = {image for other, images in own.items() if other != key for image in images}
        pictures = [*own[key], *(image for image in gallery if image not in others)]
        for image in dict.fromkeys(pictures):
            draft.image_text(image, "alternate" if draft.images else "main")
        _fill(draft, first, lines, options)
        if first.get("parent") and len(looks) == 1 and "gtin" not in draft.values:
            draft.gtin(first.get("barcode"))
        if "title" not in draft.values:
            draft.warn("title", "there is no title: lines of one handle have to follow each other")
        row = draft.finish()
        row.records = len(lines)
        row.raw = [line.cells for line in ([first, *lines] if lines[0] is not first else lines)]
        rows.append(row)
    rows.sort(key=lambda row: int(row.number))
    rows[0].records += added
    yield from rows


def _gallery(lines: list[Line]) -> list[str]:
    """Pictures of the product in the order of their positions, then of the file."""

    def place(line: Line) -> float:
        position = line.get("position")
        return float(position) if re.fullmatch(r"[0-9]{1,5}", position) else float("inf")

    return list(dict.fromkeys(image for line in sorted(lines, key=place) if (image := line.get("image"))))


def _looks(variants: list[Line], options: list[str]) -> dict[tuple[str, ...], list[Line]]:
    """Variants by what they look like: the values of all options but sizes.

    If variants of equal values have different pictures of their own, the sizes look different after all
    (a pack of one and of five) and count.
    """

    def key(line: Line, with_sizes: bool) -> tuple[str, ...]:
        return tuple(
            value
            for n, name in enumerate(options, 1)
            if (value := line.get(f"option{n} value"))
            and value.lower() != "default title"
            and (with_sizes or fold(name) not in WORDS["variants"]["sizes"])
        )

    coarse: dict[tuple[str, ...], list[Line]] = {}
    for line in variants:
        coarse.setdefault(key(line, False), []).append(line)
    looks: dict[tuple[str, ...], list[Line]] = {}
    for name, lines in coarse.items():
        images = {line.get("variant image") for line in lines} - {""}
        for line in lines:
            looks.setdefault(key(line, True) if len(images) > 1 else name, []).append(line)
    return looks


def _slug(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:100]


def _id(handle: str, key: tuple[str, ...], used: set[str]) -> str:
    base = ":".join((handle, *(slug for part in key if (slug := _slug(part)))))
    id = next(id for id in chain([base], (f"{base}:{n}" for n in count(2))) if id not in used)
    used.add(id)
    return id


def _fill(draft: Draft, first: Line, lines: list[Line], options: list[str]) -> None:
    """Everything but id and pictures: the product's cells from its first line, the look's from its own."""
    for name in _PRODUCT:
        draft.set(name, first.get(name))
    if "category" not in draft.values:
        draft.set("category", first.get("type"))
    for name in ("gender", "age_group"):
        draft.attribute(name, first.get(name))
    for n, name in enumerate(options, 1):
        found = dict.fromkeys(value for line in lines if (value := line.get(f"option{n} value")))
        found.pop("Default Title", None)
        draft.attribute(name or f"option {n}", ", ".join(found))
    prices: list[tuple[float, str]] = []
    for line in lines:
        if isinstance(amount := line.amount, float):
            prices.append((amount, line.get("price")))
        else:
            draft.price(line.get("price"))  # warns, unless the cell is empty
    if prices:
        lowest, highest = min(prices), max(prices)
        draft.price(lowest[1])
        if highest[0] > lowest[0]:
            draft.put("highest_price", highest[0])
    for line in lines:
        if len(lines) == 1:
            draft.gtin(line.get("barcode"))
            draft.put("sku", line.get("sku"))
        elif barcode := line.get("barcode"):
            try:
                values.gtin(barcode)
            except ValueError as error:
                draft.warn("gtin", str(error))
    if len(lines) > 1:
        described = [
            {n: cell.strip() for n, cell in line.known.items() if cell.strip() and n not in _NOT_OF_VARIANTS}
            | {name: cell.strip() for name, cell in line.unknown.items()}
            for line in lines
        ]
        text = json.dumps(described, ensure_ascii=False)
        draft.extra["variants"] = draft.cleaned("variants", text, 200_000)
    for name, cell in first.unknown.items():
        match = _ATTRIBUTE.fullmatch(name)
        attribute = (match[1] or match[2]) if match else ""
        # Metafields speak of the product, options of the variant: of two colours the option's is right.
        if attribute and canonical_key(attribute) not in {canonical_key(key) for key in draft.attributes}:
            draft.attribute(attribute, cell)
        else:
            draft.put(name, cell)
    draft.put("type", first.get("type"))
