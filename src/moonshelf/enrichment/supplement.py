"""Supplemental feeds: accepted values in the dialect of the feed that lacks them, by id, and nothing else.

Merchant (XML feeds too) gets TSV, Meta CSV, with the columns that they know; Shopify a CSV with the category
and metafields, which take the taxonomy's own values; another table its own columns' names; all else JSON
lines. Shopify empties what an import leaves blank, so there what the feed holds is repeated; elsewhere a
blank cell changes nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from moonshelf.attributes import canonical_key
from moonshelf.enrichment.suggestions import Suggested
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.feeds.base import Source
from moonshelf.feeds.columns import plan_columns
from moonshelf.feeds.text import Table
from moonshelf.product import Product

# Our keys -> the columns of Merchant and Meta.
_CHANNEL = {
    "id": "id", "colour": "color", "material": "material", "pattern": "pattern", "gender": "gender",
    "age group": "age_group", "size": "size",
}  # fmt: skip
_GENDERS = {"men": "male", "boys": "male", "women": "female", "girls": "female"}
CHANNELS = ("merchant", "merchant-xml", "meta")
TABLES = {"merchant": "tsv", "merchant-xml": "tsv", "meta": "csv", "shopify": "csv", "csv": "csv"}


class Supplement:
    """One file of accepted values, whose columns follow from all that is accepted; then rows are streamed."""

    def __init__(
        self,
        folder: Path,
        dialect: str,
        source: Source,
        accepted: Iterable[Suggested],
        taxonomy: Taxonomy | None,
    ) -> None:
        # Google's channels take Google's categories.
        self.google = taxonomy.google if taxonomy and dialect in CHANNELS else {}
        self.dialect, self.column = dialect, taxonomy.column if taxonomy else "category"
        self.column = "google_product_category" if self.google else self.column
        self.path = folder / f"supplemental.{TABLES.get(dialect, 'jsonl')}"
        names = sorted({name for one in accepted if (name := self._name(one))})
        self.columns = self._columns(source, names) if dialect in TABLES else {}
        self.file = open(self.path, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed by the caller
        self.table = csv.writer(self.file, "excel-tab" if self.path.suffix == ".tsv" else "excel")
        self.rows, self._written = 0, set[str]()
        if self.columns:
            self.table.writerow(self.columns.values())

    def _name(self, one: Suggested) -> str:
        """What a value fills: in Shopify's an attribute of the category's schema, or nothing."""
        return (one.attribute or "") if self.dialect == "shopify" and one.name != "category" else one.name

    def _columns(self, source: Source, names: list[str]) -> dict[str, str]:
        """What may be written, `id` and `category` among it -> column."""
        known = {name: _CHANNEL[name] for name in ("id", *names) if name in _CHANNEL}
        if self.dialect == "shopify":
            fields = {name: _metafield(name) for name in names}
            return {"id": "Handle", "title": "Title", **fields, "category": "Product Category"}
        if self.dialect == "csv":
            header = Table(source).header
            own = {canonical_key(column): column for column in reversed(header)}
            id = next((c.name for c in plan_columns(header, source.fields).columns if c.field == "id"), "id")
            known = {"id": id, **{name: own.get(name, name) for name in names}}
        return known | ({"category": self.column} if "category" in names else {})

    def write(self, product: Product, accepted: list[Suggested]) -> None:
        """A product's values, none of which the feed has."""
        values = {name: self._value(one) for one in accepted if (name := self._name(one))}
        if not self.columns:
            path = {self.column: values.pop("category")} if "category" in values else {}
            record = {"id": product.id, **path, "attributes": values}
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.rows += 1
            return
        cells = {**values, "id": product.id}
        if self.dialect == "shopify":
            cells = {**self._there(product), **values, "id": product.group_id or product.id}
        # A further look of one of Shopify's products has the same metafields.
        if any(map(values.get, self.columns)) and not (
            self.dialect == "shopify" and cells["id"] in self._written
        ):
            self._written.add(cells["id"])
            self.table.writerow([cells.get(name, "") for name in self.columns])
            self.rows += 1

    def _there(self, product: Product) -> dict[str, str]:
        """What Shopify's export holds in these columns."""
        held = {canonical_key(name): value for name, value in product.attributes.items()}
        cells = {n: product.extra.get(c) or held.get(canonical_key(n), "") for n, c in self.columns.items()}
        path = () if product.category == (product.extra.get("type"),) else product.category
        return {**cells, "title": product.title, "category": " > ".join(path)}

    def _value(self, one: Suggested) -> str:
        """A value as the dialect writes it."""
        if one.name == "category":
            return self.google.get(one.allowed_id or "", "" if self.google else one.value)
        if self.dialect == "shopify":
            return (one.allowed or "").lower().replace(" ", "-")
        return _GENDERS.get(one.value, one.value) if self.dialect in CHANNELS else one.value


def _metafield(attribute: str) -> str:
    key = "color-pattern" if attribute == "color" else attribute.replace("_", "-")
    return f"{attribute.replace('_', ' ').capitalize()} (product.metafields.shopify.{key})"
