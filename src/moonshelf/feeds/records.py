"""Records with named values (a JSON object, a Parquet row, a line of a table) to products.

Takes the columns of `moonshelf.product`, common synonyms of them, and the shapes in which data sets keep
pictures: a path, an address, bytes, or a mapping with `bytes`, `path` or `url`. Attributes may be a
mapping, a JSON object in a string, or columns of their own; brand and price are lifted out of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from moonshelf.attributes import fold
from moonshelf.errors import UserError
from moonshelf.feeds import shapes, values
from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.build import PRICE_IN, Draft, plan_columns

_MAX_PLANS = 1_000
_BRAND = ("brand", "brand name", "brand from title")


class RecordReader:
    """Turns the records of one feed into rows; the meaning of the columns is worked out once per header."""

    def __init__(self, source: Source, columns: list[str] | None = None, *, html: bool = True) -> None:
        self.source, self.html = source, html
        self._plans: dict[tuple[str, ...], dict[str, str]] = {}
        # Tables have one header; whether it has an id at all is then a matter of the file, not of the row.
        self.columns = columns
        plan = plan_columns(columns, source.fields) if columns is not None else {}
        targets = set(plan.values())
        if columns is not None and not targets & {"id", "title", "description", "images", "additional"}:
            shown = ", ".join(name[:40] for name in columns[:8]) + (", …" if len(columns) > 8 else "")
            raise UserError(
                f"{source.name} has no column that names a product ({shown}): call them id, title, image, …, "
                "or say which is which with `fields`."
            )
        self.numbered = columns is not None and "id" not in targets
        # A table of pictures that names the product of each: many rows share the id, so rows are counted.
        id_column = next((name for name, target in plan.items() if target == "id"), "")
        self.photos = (
            fold(id_column) == "product id"
            and "images" in targets
            and not targets & {"title", "description", "price", "gtin"}
        )

    def plan(self, record: Mapping[str, Any]) -> dict[str, str]:
        names = tuple(record)
        plan = self._plans.get(names)
        if plan is None:
            fields = self.source.fields
            if self.columns is None:  # each record of JSONL has its own names
                fields = {name: target for name, target in fields.items() if name in record}
            plan = plan_columns(names, fields)
            # The language first: texts in several languages ask for it.
            plan = dict(sorted(plan.items(), key=lambda item: item[1] != "language"))
            if len(self._plans) < _MAX_PLANS:
                self._plans[names] = plan
        return plan

    def row(self, number: int, record: Mapping[str, Any]) -> Row:
        draft = Draft(self.source, number)
        later: list[Any] = []
        for name, target in self.plan(record).items():
            value = record[name]
            if value is None or value == "":
                continue
            if target == "images":
                self._images(draft, value)
            elif target == "additional":
                later.append(value)
            elif target == "attributes":
                _attributes(draft, value)
            elif target == "attribute":
                draft.attribute(name, value)
            elif target == "extra":
                _extra(draft, name, value)
            elif target == "price in":
                draft.price(value, fold(name)[-3:].upper())
            elif target == "id" and self.photos:
                draft.set("group_id", value)
                draft.set("id", f"{values.as_text(value).strip()}#{number}")
            else:
                draft.set(target, value, html=self.html)
        for value in later:
            self._images(draft, value, "alternate" if draft.images else None)
        if later and draft.images and draft.images[0].role is None:
            draft.images[0] = draft.images[0].model_copy(update={"role": "main"})
        if self.numbered:
            draft.set("id", f"{self.source.path.stem[:100]}#{number}")
        _roles(draft, record)
        if "category" not in draft.values:
            for name, text in list(draft.extra.items()):
                if fold(name) in ("google product category", "fb product category"):
                    draft.set("category", text)
        return draft.finish()

    def _images(self, draft: Draft, value: Any, role: str | None = None) -> None:
        draft.image_text(value, role)
        names = [
            picture.name for picture in shapes.pictures(value) if isinstance(picture.value, bytes | bytearray)
        ]
        if any(names):  # an ImageRef with bytes has no name: keep it beside the picture
            draft.extra["image_names"] = json.dumps(names, ensure_ascii=False)


def _attributes(draft: Draft, value: Any) -> None:
    found = shapes.attributes(value)
    if found is None:
        draft.attribute("attributes", value)
        return
    for name, content in found.items():
        folded = fold(name)
        priced = PRICE_IN.fullmatch(folded)
        if (priced or folded == "price") and "price" not in draft.values:
            draft.price(content, priced[1].upper() if priced else None)
        elif folded.endswith("price") or re.search(r"\bprice [a-z]{3}$", folded):
            draft.put(name, content)
        elif folded in _BRAND and isinstance(content, str):
            if draft.values.get("brand", content) == content:
                draft.set("brand", content)
            else:
                draft.attribute(name, content)
        else:
            draft.attribute(name, content)


def _extra(draft: Draft, name: str, value: Any) -> None:
    if name == "extra" and isinstance(value, Mapping):
        for key, content in value.items():
            draft.put(str(key), content)
    else:
        draft.put(name, value)


def _roles(draft: Draft, record: Mapping[str, Any]) -> None:
    """Roles of named pictures where the table says which is the main one and which show variants.

    Reads `main_image` (a path) and `variants` (JSON: a list of objects with `image_paths`). A picture of
    another variant than the main one is a `variant`; of the same, `back` if its name says so, else
    `alternate`.
    """
    main = record.get("main_image")
    if not isinstance(main, str) or "image_names" not in draft.extra:
        return
    names = [name.rsplit("/", 1)[-1] for name in json.loads(draft.extra["image_names"])]
    if len(names) != len(draft.images):
        return
    main = main.rsplit("/", 1)[-1]
    groups: list[set[str]] = []
    try:
        for variant in json.loads(values.as_text(record.get("variants")) or "[]"):
            groups.append({str(path).rsplit("/", 1)[-1] for path in variant["image_paths"]})
    except (ValueError, TypeError, KeyError, RecursionError):
        groups = []
    other = set().union(*(group for group in groups if main not in group))
    for index, (name, ref) in enumerate(zip(names, draft.images, strict=True)):
        if name == main:
            role = "main"
        elif name in other:
            role = "variant"
        else:
            role = "back" if re.search(r"[_-]back\b", name) else "alternate"
        draft.images[index] = ref.model_copy(update={"role": role})
