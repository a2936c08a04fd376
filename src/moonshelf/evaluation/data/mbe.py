"""MBE, MBE2.0 and MBE3.0: the benchmarks of the MOON papers, one row a (query, product) of the test split.

A row has `id` and the product as `doc_title`, `doc_image` (a web address), `doc_industry_name`,
`doc_cate1_name` … `doc_cate4_name` and `doc_attributes` (`name:value,,name:value!!!value`), as public code
reads MBE; the other two are taken to keep that. How the query's columns are called is not documented where
we could read: several names are tried. Without them the three directions towards multimodal products have no
truth, and only a product's own title and photo can be matched.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moonshelf import attributes, images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.data.hub import first_columns, pick
from moonshelf.evaluation.data.views import (
    DIRECTIONS,
    Dataset,
    Split,
    attribute_sets,
    directions,
    label_of,
    labelling,
    stems,
)  # fmt: skip
from moonshelf.evaluation.tasks import Task
from moonshelf.product import ImageRef, Product

LEVELS = ("doc_industry_name", "doc_cate1_name", "doc_cate2_name", "doc_cate3_name", "doc_cate4_name")
QUERY_TEXT = ("query_title", "query_text", "query")
QUERY_IMAGE = ("query_image", "query_img", "query_image_url")
LEAST = 30  # products that must state an attribute for it to be scored
MOST_VALUES = 100  # an attribute of more values is a name or a number, and no choice


def mbe(
    name: str,
    folder: Path,
    limit: int | None = None,
    fit_rows: int = 0,
    fetcher: images.Fetcher | None = None,
) -> Dataset:
    """Retrieval in five directions, five levels of the category, and each attribute."""
    split = Split(folder)
    files = split.find("**/*test*.jsonl", "**/*test*.json", "**/*test*.parquet")
    columns = first_columns(split.path(files[0]))
    for needed in ("id", "doc_title", "doc_image"):
        pick(files[0], columns, (needed,))
    given = split.read(files, limit, fields={"doc_title": "title", "doc_image": "images"})
    products = split.usable([_product(p, folder, split.problems) for p in given], fetcher)
    tasks = _retrieval(name, split, files, columns, products, fetcher)
    for level, called in enumerate(("industry", "category 1", "category 2", "category 3", "category 4")):
        tasks += labelling(name, called, "category", level, products, products)
    tasks += _attributes(name, products)
    if not tasks:
        raise UserError(f"nothing of {folder.name} can be scored: it has no pictures here and no labels")
    asked = [c for c in (*QUERY_TEXT, *QUERY_IMAGE) if c in columns]
    note = "labels are those of the scored rows; of an attribute, products with one value"
    note += "; words of the labels dropped where hidden"
    dataset = Dataset(name, "see `moonshelf datasets`", note, tasks, [p.title for p in products if p.title])
    dataset = replace(dataset, files=split.files, problems=split.problems)
    if not asked:
        tried = ", ".join((*QUERY_TEXT, *QUERY_IMAGE))
        for direction in list(DIRECTIONS)[:3]:
            dataset.not_run[direction] = f"there is no column of queries ({tried})"
    return dataset


def _product(given: Product, folder: Path, problems: list[Problem]) -> Product:
    extra = given.extra
    path = tuple(name for level in LEVELS if (name := extra.get(level, "").strip()))
    held: dict[str, str] = {}
    for pair in extra.get("doc_attributes", "").split(",,"):
        key, colon, value = pair.partition(":")
        if (
            colon and key.strip() and value.strip() and "!!!" not in value
        ):  # of several values none is the one
            held[key.strip()] = value.strip()
        elif pair.strip() and not colon:
            reason = f"the pair {pair[:40]!r} has no colon: not used"
            problems.append(Problem(given.id, "doc_attributes", reason, given.id, fatal=False))
    return Product(
        id=given.id, title=given.title, images=_local(given.images, folder), category=path, attributes=held
    )


def _local(refs: Sequence[ImageRef], folder: Path) -> tuple[ImageRef, ...]:
    """A picture of the same file name below `images/`, where there is one, in place of an address."""
    found = []
    for ref in refs:
        local = folder / "images" / Path((ref.url or "").split("?")[0]).name
        found.append(ImageRef(path=str(local)) if ref.url and local.is_file() else ref)
    return tuple(found)


def _retrieval(
    name: str,
    split: Split,
    files: list[str],
    columns: list[str],
    products: list[Product],
    fetcher: images.Fetcher | None,
) -> list[Task]:
    text = next((c for c in QUERY_TEXT if c in columns), None)
    image = next((c for c in QUERY_IMAGE if c in columns), None)
    # rows that show one product are one candidate: whichever comes first is right
    keys = [json.dumps([p.title, *(i.name for i in p.images)], ensure_ascii=False) for p in products]
    of_row = {p.id: key for p, key in zip(products, keys, strict=True)}
    distinct: dict[str, Product] = {}
    for key, product in zip(keys, products, strict=True):
        distinct.setdefault(key, product)
    corpus, corpus_keys = list(distinct.values()), list(distinct)
    if text is None and image is None:
        own: list[Mapping[str, float]] = [{key: 1.0} for key in corpus_keys]
        which = {direction: DIRECTIONS[direction] for direction in ("text → image", "image → text")}
        return directions(name, corpus, corpus, own, which=which, keys=corpus_keys, problems=split.problems)
    fields = {"id": "id"} | ({text: "title"} if text else {}) | ({image: "images"} if image else {})
    asked = split.read(files, keep=lambda p: p.id in of_row, fields=fields)
    shown = [
        Product(id=q.id, title=q.title if text else "", images=_local(q.images if image else (), split.root))
        for q in asked
    ]
    relevant: list[Mapping[str, float]] = [{of_row[q.id]: 1.0} for q in shown]
    queries = split.usable(shown, fetcher)
    return directions(name, queries, corpus, relevant, keys=corpus_keys, problems=split.problems)


def _attributes(name: str, products: list[Product]) -> list[Task]:
    tasks: list[Task] = []
    scored: list[str] = []
    counts = Counter(key for p in products for key in attributes.canonical(p.attributes))
    for key, number in counts.most_common():
        values = {label_of(p, key) for p in products} - {""}
        if number >= LEAST and 2 <= len(values) <= MOST_VALUES:
            tasks += labelling(name, key, key, -1, products, products, hide=stems(values))
            scored.append(key)
    return tasks + attribute_sets(name, products, scored)
