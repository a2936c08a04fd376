"""Exports of shop systems: how they are recognised, and what in them is not said by the names of columns.

Most of an export is read by the names that every table may have. What differs is data, `[[shops]]` of
`vocabulary.toml`: names that mean something else there, how categories are written, and how lines that belong
to one product are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from moonshelf.feeds import shapes, values
from moonshelf.feeds.columns import simple
from moonshelf.feeds.vocabulary import WORDS, by_word

Cells = Mapping[str, str]  # of one line, by `columns.simple` of the columns' names


@dataclass(frozen=True)
class Shop:
    """What is particular about one system's export; `vocabulary.toml` says what each field means."""

    name: str
    marks: list[str]
    least: int = 1
    together: list[list[str]] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    several: str = ""
    levels: str = ">"
    root: str = ""
    parent: str = ""
    child_if: dict[str, Any] | None = None
    parent_if: dict[str, Any] | None = None
    names: list[str] = field(default_factory=list)
    members: str = ""
    grouped: bool = False
    slashed: bool = False
    numbered: bool = False
    lines: dict[str, list[str]] = field(default_factory=dict)
    kind: str = ""
    variant: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    images: str = ""
    media: str = ""

    @cached_property
    def fills(self) -> dict[str, str]:
        """Column -> what it fills here."""
        return by_word(self.columns)

    def opened(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record, with what its columns of the kind `record` hold as columns of their own."""
        inside: dict[str, Any] = {}
        if "record" not in self.columns:
            return record
        for name in [name for name in record if self.fills.get(simple(name)) == "record"]:
            inside |= shapes.attributes(record[name]) or {}
        return {**inside, **record} if inside else record

    @cached_property
    def _columns(self) -> dict[str, str]:
        return by_word(self.lines)

    def paths(self, text: str) -> list[list[str]]:
        """The categories of a cell, each from its root to its leaf."""
        if not self.name:
            return values.paths(text)
        paths = []
        for cell in re.split(rf"(?<!\\){re.escape(self.several)}", text) if self.several else [text]:
            levels = "/" if cell.strip().startswith("/") else self.levels
            names = [name.replace("\\,", ",").strip() for name in cell.split(levels)]
            paths.append([name for name in names if name and name.lower() != self.root])
        return [path for path in paths if path]

    # ---- exports in which each line is a product; the parent's line comes before its variants' ----------

    def called(self, cells: Cells) -> list[str]:
        """Names by which variants call this line, if it can be a parent."""
        return (
            [cells[name] for name in self.names if cells.get(name)] if _holds(cells, self.parent_if) else []
        )

    def parent_of(self, cells: Cells) -> str:
        """The name of a variant's parent, or ""."""
        name = cells.get(self.parent, "").removeprefix("id:") if _holds(cells, self.child_if) else ""
        return "" if name in ("0", *(cells.get(own) for own in self.names)) else name

    def members_of(self, cells: Cells) -> list[str]:
        """Ids of a line's variants, which may come before it."""
        return re.findall(r"(?:^|\|)sku=([^,|]+)", cells.get(self.members, ""))

    # ---- exports in which several lines make one product ------------------------------------------------

    def line(self, cells: Cells, used: set[str]) -> dict[str, str]:
        """Cells of one line under the names of `lines`, `used` gets the columns that they are from.

        A line that begins a product has a cell `starts`, and `parent` where its variants are lines below it.
        """
        if not self.kind:  # Shopify: each column is a cell of its own
            own: dict[str, str] = {}
            for column, cell in cells.items():
                if (name := self._columns.get(column)) and name not in own:
                    own[name] = cell
                    used.add(column)
            return own
        lines = dict(self.lines)
        if sale := lines.pop("sale", None):
            on_sale = _first(cells, ["on sale"], used).lower() if "on sale" in cells else "yes"
            if on_sale in ("yes", "true") and cells.get(sale[0], "").strip("0.,"):
                lines["price"] = sale
        known = {name: _first(cells, columns, used) for name, columns in lines.items()}
        if self.images:
            names = [self.images.format(n) for n in range(1, 31)]
            known["image"] = "|".join(cell for name in names if (cell := _first(cells, [name], used)))
        elif self.media:
            known["image"] = "|".join(map(self._addressed, known["image"].split(";")))
        options = self._options(cells, used)
        kind = self._kind_of(cells, used)
        if kind == "product":
            return known | options | {"starts": "yes", "parent": "" if self.kind == "title" else "yes"}
        known["variant image"] = re.sub(r"^[^=|:/]*=(?=http)", "", known["image"])  # Red=https://…
        line = {name: known[name] for name in self.variant.get(kind, ()) if name in known}
        return line | (options if "options" in self.variant.get(kind, ()) else {})

    def _kind_of(self, cells: Cells, used: set[str]) -> str:
        """What a line is: `product`, `variant`, or what else the export calls it."""
        said = _first(cells, [self.kind], used).lower()
        if self.kind == "title":
            return "product" if said else "variant"
        if self.kind == "relationship":  # eBay's older reports only leave the title out
            bare = _first(cells, self.options["columns"], used) and not cells.get("title")
            return "variant" if said == "variation" or bare else "product"
        return said

    def _options(self, cells: Cells, used: set[str]) -> dict[str, str]:
        """Names and values of up to three options."""
        found: list[tuple[str, str]] = []
        if "columns" in self.options:
            text = _first(cells, self.options["columns"], used)
            found = next((f for p in self.options["patterns"] if (f := re.findall(p, text))), [])
        elif self.options:
            for n in (1, 2, 3):
                values = [name.format(n) for name in self.options["value"]]
                found.append(
                    (_first(cells, [self.options["name"].format(n)], used), _first(cells, values, used))
                )
        return {
            f"option{n} {part}": re.sub(r"(^|;)#[0-9a-fA-F]{3,8}:", r"\1", text.strip())  # Wix's colours
            for n, pair in enumerate(found[:3], 1)
            for part, text in zip(("name", "value"), pair, strict=True)
        }

    def _addressed(self, name: str) -> str:
        """The address of a picture that is named by its file."""
        return self.media + name if re.fullmatch(r"[\w.~%-]+~mv2[\w.~%-]*\.\w{3,4}", name) else name


NO_SHOP = Shop("", [])  # any other feed
SHOPS = tuple(Shop(**entry) for entry in WORDS["shops"])
SHOPIFY = Shop(**WORDS["shopify"])


def recognise(names: Iterable[str]) -> Shop:
    """The shop whose export has these columns, else NO_SHOP."""
    have = {simple(name) for name in names}
    found = [
        (len(have.intersection(shop.marks)), shop)
        for shop in SHOPS
        if len(have.intersection(shop.marks)) >= shop.least or any(map(have.issuperset, shop.together))
    ]
    return max(found, key=lambda item: item[0])[1] if found else NO_SHOP


def by_name(cells: Mapping[str, str]) -> dict[str, str]:
    """Cells by the simple names of their columns; of two columns of one name the first that is filled."""
    named: dict[str, str] = {}
    for name, cell in cells.items():
        if not named.get(simple(name)):
            named[simple(name)] = cell.strip()
    return named


def _holds(cells: Cells, condition: dict[str, Any] | None) -> bool:
    return condition is None or condition["holds"] in _first(cells, condition["columns"]).lower()


def _first(cells: Cells, columns: Iterable[str], used: set[str] | None = None) -> str:
    """The first cell that is filled."""
    for name in columns:
        if used is not None:
            used.add(name)
        if cell := cells.get(name, ""):
            return cell
    return ""
