"""Records with named values (a JSON object, a Parquet row, a line of a table) to products.

Takes the columns of `moonshelf.product`, common synonyms of them, and the shapes in which data sets keep
pictures: a path, an address, bytes, or a mapping with `bytes`, `path` or `url`. Attributes may be a
mapping, a JSON object in a string, or columns of their own; brand and price are lifted out of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from moonshelf.attributes import fold
from moonshelf.errors import UserError
from moonshelf.feeds import shapes, values
from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.build import Draft
from moonshelf.feeds.columns import Column, Plan, kept, plan_columns, price_column, simple
from moonshelf.feeds.dialects.shops import NO_SHOP, Shop, by_name
from moonshelf.feeds.text import Cells
from moonshelf.identifiers import is_placeholder
from moonshelf.product import MAX_ID, Product

_MAX_PLANS = 1_000
_MAX_PARENTS = 10_000  # lines whose variants may still come
_BRAND = ("brand", "brand name", "brand from title")


class RecordReader:
    """Turns the records of one feed into rows; the meaning of the columns is worked out once per header.

    A table passes its header as `columns`, and the source says what was chosen among them. Records of JSON
    and XML have their own names each, and a choice is said with the first record that needs it.
    """

    def __init__(self, source: Source, columns: list[str] | None = None, shop: Shop = NO_SHOP) -> None:
        self.source, self.shop = source, shop
        self.groups: dict[str, str] = {}  # id of a variant -> its parent's, where the shop's export tells
        self._parents: dict[str, Product] = {}
        self._unseen = set(source.fields) if columns is None else set()
        self._plans: dict[tuple[str, ...], Plan] = {}
        if shop.name:
            source.say("columns", f"read as an export of {shop.name}")
        # Tables have one header; whether it has an id at all is then a matter of the file, not of the row.
        self._header: Plan | None = None
        self._names = frozenset(columns or ())
        self.numbered = self.photos = False
        if columns is not None:
            self._header = self._planned(columns, source.fields)
            self._read_header(columns, self._header)

    def _read_header(self, columns: list[str], plan: Plan) -> None:
        if not plan.fields & {"id", "title", "description", "images", "additional"}:
            shown = ", ".join(name[:40] for name in columns[:8]) + (", …" if len(columns) > 8 else "")
            raise UserError(
                f"{self.source.name} has no column that names a product ({shown}): call them id, title, "
                "image, …, or say which is which, such as --map title=COLUMN (`fields` from Python)."
            )
        self.numbered = "id" not in plan.fields
        # A table of pictures that names the product of each: many rows share the id, so rows are counted.
        id_column = next((column for column in plan.columns if column.field == "id"), None)
        self.photos = (
            id_column is not None
            and fold(id_column.name) == "product id"
            and "images" in plan.fields
            and not plan.fields & {"title", "description", "price", "gtin"}
        )
        if self.numbered:
            self.source.say("id", "there is no id column: rows are numbered")
        if plan.unused:
            self.source.say("columns", kept(plan.unused))

    def plan(self, record: Mapping[str, Any]) -> Plan:
        if self._header is not None and self._names.issuperset(record):
            return self._header
        names = tuple(record)
        plan = self._plans.get(names)
        if plan is None:
            there = {*names, *map(fold, names)}
            fields = {n: field for n, field in self.source.fields.items() if there & {n, fold(n)}}
            self._unseen -= fields.keys()
            plan = self._planned(names, fields)
            if len(self._plans) < _MAX_PLANS:
                self._plans[names] = plan
        return plan

    def _planned(self, names: Iterable[str], fields: Mapping[str, str]) -> Plan:
        plan = plan_columns(names, fields, self.shop.fills, currency=self.source.currency)
        for text in plan.notes:
            self.source.say("columns", text)
        return plan

    def rows(self, items: Iterable[tuple[int, Mapping[str, Any] | Row]]) -> Iterator[Row]:
        """Rows of numbered records, and of what was none, with what is to say about the whole feed."""
        yield from self.source.take_notes()
        for number, record in items:
            yield record if isinstance(record, Row) else self.row(number, record)
        yield from self.ending()

    def ending(self) -> Iterator[Row]:
        """What is to say when all records of JSON or XML are read: columns that were named and never seen."""
        for name in sorted(self._unseen):
            self.source.say("columns", f"no record has the column {name!r} that was mapped")
        yield from self.source.take_notes()

    def row(self, number: int, record: Mapping[str, Any]) -> Row:
        draft = Draft(self.source, number, self.shop.paths)
        if isinstance(record, Cells) and record.warning:
            draft.problems.append(record.warning)
        record = self.shop.opened(record) if self._header is None else record
        plan = self.plan(record)
        for said in self.source.take_notes() if self._header is None else ():
            draft.warn(said.problems[0].field, said.problems[0].reason)
        later: list[Any] = []
        for column in plan.columns:
            value = record.get(column.name)
            if not _is_blank(value):
                self._fill(draft, column, value, later, record)
        for value in later:
            self._images(draft, value, "alternate" if draft.images else None)
        if later and draft.images and draft.images[0].role is None:
            draft.images[0] = draft.images[0].model_copy(update={"role": "main"})
        others = (c for c in plan.columns if c.field == "extra" and c.currency)
        other = next((c.currency for c in others if not _is_blank(record.get(c.name))), None)
        if other and "price" not in draft.values:
            draft.warn("price", f"there is a price in {other}, but not in the one taken")
        self._identify(draft, plan, record)
        _roles(draft, record)
        _keep_rest(draft, plan, record)
        row = self._as_variant(draft, self.shop, record) if self.shop.name else draft.finish()
        row.raw = (record,)
        return row

    def _as_variant(self, draft: Draft, shop: Shop, record: Mapping[str, Any]) -> Row:
        """The row of a shop's export: a variant has what it does not say itself from its parent's line."""
        cells = by_name({name: values.as_text(value) for name, value in record.items()})
        if group := self.groups.get(draft.values.get("id", "")):
            draft.values.setdefault("group_id", group)
        names, called = shop.called(cells), shop.parent_of(cells)
        if called:
            draft.values["group_id"] = called
            if parent := self._parents.get(called):
                draft.values["group_id"] = parent.group_id or called
                for field in ("title", "description", "category", "brand"):
                    draft.values.setdefault(field, getattr(parent, field))
                draft.attributes = {**parent.attributes, **draft.attributes}
                draft.images = draft.images or list(parent.images)
        elif names and shop.grouped:
            draft.values.setdefault("group_id", names[0])
        row = draft.finish()
        if row.product is not None:
            for name in names:
                self._parents[name] = row.product
            while len(self._parents) > _MAX_PARENTS:
                del self._parents[next(iter(self._parents))]
        return row

    def _fill(
        self, draft: Draft, column: Column, value: Any, later: list[Any], record: Mapping[str, Any]
    ) -> None:
        """One cell that is not blank; of several columns for one field, the first has it."""
        field = column.field
        if field == "images":
            if not draft.images:
                self._images(draft, value)
            elif isinstance(value, str) and value.strip().lower().startswith(("http:", "https:")):
                later.append(value)
            else:
                draft.put(column.name, value)
        elif field == "additional":
            later.append(value)
        elif field == "attributes":
            detail = isinstance(value, str) and fold(column.name) == "product detail"
            _attributes(draft, values.details(value) if detail else value)
        elif field == "attribute":
            name = simple(column.name) if "#" in column.name else column.name  # of a template's key
            draft.attribute(values.as_text(record.get(column.named_by or "")) or name, value)
        elif field in ("name", "record"):
            pass  # of the attribute in another column; what a record holds has columns of its own
        elif field == "extra":
            whole = column.name != "extra" or not isinstance(value, Mapping)
            for key, content in ({column.name: value} if whole else value).items():
                draft.put(str(key), content)
        elif field in draft.values:
            draft.put(column.name, value)
        elif field == "price":
            draft.price(value, column.currency)
        elif field == "id" and self.photos:
            draft.set("group_id", value)
            draft.set("id", f"{values.as_text(value).strip()}#{draft.row}")
        else:
            if isinstance(value, str) and fold(column.name).startswith("structured "):
                value = re.sub(r'^(trained_algorithmic_media|default):\s*"?|"?\s*$', "", value)
            draft.set(field, value)
            if field in draft.values and column.language:
                draft.values.setdefault("language", column.language)

    def _identify(self, draft: Draft, plan: Plan, record: Mapping[str, Any]) -> None:
        """Says where the id is from if its column is blank; without any, the GTIN or the link serves."""
        if self.numbered:
            draft.set("id", f"{self.source.path.stem[:100]}#{draft.row}")
        elif "id" in draft.values:
            columns = [column for column in plan.columns if column.field == "id"]
            filled = [column for column in columns if _may_be_id(record.get(column.name))]
            if filled and filled[0] is not columns[0]:
                draft.warn("id", f"'{columns[0].name}' is blank: '{filled[0].name}' serves as the id")
        else:
            for name in ("gtin", "link"):
                if 0 < len(draft.values.get(name) or "") <= MAX_ID:
                    draft.values["id"] = draft.values[name]
                    draft.warn("id", f"there is no id: the {name} serves")
                    return
            if self.shop.numbered:
                draft.set("id", f"{self.source.path.stem[:100]}#{draft.row}")
                draft.warn("id", "there is no id: the number of the row serves")

    def _images(self, draft: Draft, value: Any, role: str | None = None) -> None:
        held = shapes.pictures(value)
        for picture in held if self.shop.slashed else ():
            if isinstance(picture.value, str):
                picture.value = re.sub(r"(^|[,;|]\s*)/(?!/)", r"\1", picture.value)
        draft.pictures(held, role)
        names = [picture.name for picture in held if isinstance(picture.value, bytes | bytearray)]
        if any(names):  # an ImageRef with bytes has no name: keep it beside the picture
            draft.extra["image_names"] = values.clean(json.dumps(names, ensure_ascii=False))[0]


def _may_be_id(value: Any) -> bool:
    text = values.as_text(value).strip()
    return text.isdigit() or not is_placeholder(text)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _attributes(draft: Draft, value: Any) -> None:
    found = (values.assigned(value) if isinstance(value, str) else None) or shapes.attributes(value)
    if found is None:
        draft.attribute("attributes", value)
        return
    for name, content in found.items():
        folded, priced = fold(name), price_column(name)
        if priced and priced[0] == 0 and "price" not in draft.values:
            draft.price(content, priced[1])
        elif priced or folded.endswith("price"):
            draft.put(name, content)
        elif folded in _BRAND and isinstance(content, str):
            if draft.values.get("brand", content) == content:
                draft.set("brand", content)
            else:
                draft.attribute(name, content)
        else:
            draft.attribute(name, content)


def _keep_rest(draft: Draft, plan: Plan, record: Mapping[str, Any]) -> None:
    """Lists and mappings of which a field took only a part stay whole in `extra`."""
    held: str | None = None
    for column in plan.columns:
        value = record.get(column.name)
        if column.field == "extra" or isinstance(value, int | float):
            continue
        value = shapes.opened(value)
        if isinstance(value, list | tuple | Mapping):
            held = draft.held() if held is None else held
            if any(word not in held for word in shapes.leaves(value)):
                draft.put(column.name, value)


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
    other: set[str] = set()
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        for variant in json.loads(values.as_text(record.get("variants")) or "[]"):
            group = {str(path).rsplit("/", 1)[-1] for path in variant["image_paths"]}
            other |= group if main not in group else set()
    for index, (name, ref) in enumerate(zip(names, draft.images, strict=True)):
        role = "back" if re.search(r"[_-]back\b", name) else "alternate"
        role = "main" if name == main else "variant" if name in other else role
        draft.images[index] = ref.model_copy(update={"role": role})
