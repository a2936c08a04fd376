"""Titles with what can be read from them, for a writer that shall know more than the shops it was shown.

Real titles whose category is known, with the visible attributes that stand in the title word for word; and
titles put together from the taxonomy's names and values in the orders that shops use. What does not stand in
a title is not in its rationale, so that the writer learns to copy and to be silent. Validation splits are not
read; templates and shares are ours.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from moonshelf.attributes import canonical
from moonshelf.product import Product
from moonshelf.prompts import write_rationale
from moonshelf.training.sources.pairs import facts_of

KEYS = {
    "colour": ("Color",),
    "pattern": ("Pattern",),
    "material": ("Material", "Fabric", "Furniture/Fixture material", "Jewelry material"),
    "shape": ("Shape",),
    "gender": ("Target gender",),
    "style": ("Style",),
    "neckline": ("Neckline",),
    "sleeve": ("Sleeve length type",),
}
WORN = ("gender", "neckline", "sleeve")  # of clothes alone
OFTEN = {"colour": 0.6, "material": 0.3}
# {c} category, {v} values, {b} a brand, {n} a number, a size or an advertiser's word
ORDERS = (
    "{b} {v} {c}", "{v} {c}", "{b} {c} - {v}", "{c}, {v}", "{b} {c} in {v}", "{v} {c} {n}", "{b} {n} {v} {c}",
    "{c} {v} | {b}", "{v} {c} by {b}", "{b} {c} ({v}) {n}", "{c}",
)  # fmt: skip
NOISE = (
    "set of 2", "pack of 3", "new", "2024", "large", "10 cm", "500 ml", "size M", "XL", "free delivery",
    "30x40", "for home", "gift", "premium", "A4", "1 kg", "best seller", "#12", "150W", "mk ii",
)  # fmt: skip
PLURALS = {"ches": "ch", "shes": "sh", "xes": "x", "sses": "ss", "ies": "y", "s": ""}


def taxonomy_names(path: Path) -> list[str]:
    """Names of one of the taxonomy's lists, as `gid : name` lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split(" : ", 1)[1].strip() for line in lines if " : " in line and line[0] != "#"]


def taxonomy_values(folder: Path) -> dict[str, list[str]]:
    """Values by the attribute's name."""
    values: dict[str, list[str]] = defaultdict(list)
    for name in taxonomy_names(folder / "attribute_values.en.txt"):
        if found := re.fullmatch(r"(.*?)\s*\[(.*)\]", name):
            values[found[2]].append(found[1])
    return values


def readings(data: Path, seed: int = 0, copies: int = 4) -> Iterator[tuple[str, str]]:
    """(title, rationale) pairs: real ones, then `copies` of every category of the taxonomy."""
    rng = random.Random(seed)
    brands = _brands(data)
    yield from _real(data)
    yield from _made(data / "taxonomy", brands, rng, copies)


def _rows(data: Path) -> Iterator[dict[str, Any]]:
    for path in (data / "text/titles.parquet", *sorted((data / "attributes").glob("*-train.parquet"))):
        yield from pq.read_table(path).to_pylist()


def _brands(data: Path) -> list[str]:
    found = set()
    for row in _rows(data):
        stated = canonical({k: _one(v) for k, v in json.loads(row["attributes"] or "{}").items()})
        if 2 < len(brand := stated.get("brand", "")) < 20:
            found.add(brand)
    return sorted(found)


def _one(value: Any) -> str:
    return str(value[0] if isinstance(value, list) and value else value)


def _real(data: Path) -> Iterator[tuple[str, str]]:
    for row in _rows(data):
        category = row.get("category") or ""
        title = re.sub(r"\s+", " ", row["title"] or "").strip()
        if not title or category in ("", "electronics - general"):
            continue
        stated = {k: _one(v) for k, v in json.loads(row["attributes"] or "{}").items()}
        facts = facts_of(Product(id="t", title=title, attributes=stated))
        said = {key: value for key, value in facts.items() if value in title.lower()}
        yield title, write_rationale((category,), said)


def _made(folder: Path, brands: list[str], rng: random.Random, copies: int) -> Iterator[tuple[str, str]]:
    by_name = taxonomy_values(folder)
    values = {
        key: [v.lower() for name in names for v in by_name[name] if _plain(v)] for key, names in KEYS.items()
    }
    for path in taxonomy_names(folder / "categories.en.txt"):
        steps = path.lower().split(" > ")
        for _ in range(copies):
            yield _title(steps, values, brands, rng)


def _title(
    steps: list[str], values: Mapping[str, list[str]], brands: list[str], rng: random.Random
) -> tuple[str, str]:
    keys = [key for key in KEYS if key not in WORN or steps[0].startswith("apparel")]
    stated = {key: rng.choice(values[key]) for key in keys if rng.random() < OFTEN.get(key, 0.12)}
    words = list(stated.values())
    if rng.random() < 0.5:
        rng.shuffle(words)
    title = rng.choice(ORDERS).format(
        c=_singular(steps[-1], rng), v=" ".join(words), b=rng.choice(brands), n=rng.choice(NOISE)
    )
    title = re.sub(r"\s+", " ", title).strip(" -,|")
    if rng.random() < 0.25:
        title = f"{title} {rng.choice(NOISE)}"
    said = canonical({key: value for key, value in stated.items() if value in title})
    return title, write_rationale(tuple(steps[:1] + steps[-1:] if len(steps) > 1 else steps), said)


def _plain(value: str) -> bool:
    return len(value) < 24 and value.lower() != "other" and not re.search(r"[/(]", value)


def _singular(name: str, rng: random.Random) -> str:
    """A shop writes one thing, a taxonomy names many."""
    if rng.random() < 0.4 or not name.endswith("s") or name.endswith(("ss", "us", "is")):
        return name
    for plural, one in (
        ("ches", "ch"),
        ("shes", "sh"),
        ("xes", "x"),
        ("sses", "ss"),
        ("ies", "y"),
        ("s", ""),
    ):
        if name.endswith(plural):
            return name[: -len(plural)] + one
    return name
