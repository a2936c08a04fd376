"""MBE, MBE2.0 and MBE3.0: the benchmarks of the MOON papers, one row a (query, product) of the test split.

A row has `id` and the product as `doc_title`, `doc_image` (a web address), `doc_industry_name`,
`doc_cate1_name` … `doc_cate4_name` and `doc_attributes` (`name:value,,name:value!!!value`), as public code
reads MBE; the other two are taken to keep that. How the query's columns are called is not documented where
we could read: several names are tried. Without them the three directions towards multimodal products have no
truth, and only a product's own title and photo can be matched. Attributes are scored as those of any feed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from moonshelf import images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.data.dataset import ACROSS, WITHIN, Dataset
from moonshelf.evaluation.data.hub import first_columns, pick
from moonshelf.evaluation.data.own_feed import score_attributes
from moonshelf.product import ImageRef, Product

LEVELS = ("doc_industry_name", "doc_cate1_name", "doc_cate2_name", "doc_cate3_name", "doc_cate4_name")
QUERY_TEXT = ("query_title", "query_text", "query")
QUERY_IMAGE = ("query_image", "query_img", "query_image_url")


def mbe(
    name: str,
    folder: Path,
    limit: int | None = None,
    fit_rows: int = 0,
    fetcher: images.Fetcher | None = None,
) -> Dataset:
    """Retrieval in five directions, five levels of the category, and each attribute."""
    dataset = Dataset(name, folder)
    files = dataset.find("**/*test*.jsonl", "**/*test*.json", "**/*test*.parquet")
    columns = first_columns(dataset.path(files[0]))
    for needed in ("id", "doc_title", "doc_image"):
        pick(files[0], columns, (needed,))
    given = dataset.read(files, limit, fields={"doc_title": "title", "doc_image": "images"})
    products = dataset.usable([_product(p, dataset) for p in given], fetcher)
    dataset.texts = [p.title for p in products if p.title]
    _retrieval(dataset, files, columns, products, fetcher)
    for level, called in enumerate(("industry", "category 1", "category 2", "category 3", "category 4")):
        dataset.labelling(called, "category", level, products)
    score_attributes(dataset, products)
    if not dataset.tasks:
        raise UserError(f"nothing of {folder.name} can be scored: it has no pictures here and no labels")
    dataset.note = "labels are those of the scored rows; of an attribute, products with one value"
    dataset.note += "; words of the labels dropped where hidden"
    return dataset


def _product(given: Product, dataset: Dataset) -> Product:
    extra = given.extra
    path = tuple(name for level in LEVELS if (name := extra.get(level, "").strip()))
    held: dict[str, str] = {}
    for pair in extra.get("doc_attributes", "").split(",,"):
        key, colon, value = (part.strip() for part in pair.partition(":"))
        if key and value and "!!!" not in value:  # of several values none is the one
            held[key] = value
        elif key and not colon:
            reason = f"the pair {pair[:40]!r} has no colon: not used"
            dataset.problems.append(Problem(given.id, "doc_attributes", reason, given.id, fatal=False))
    return Product(
        id=given.id, title=given.title, images=_local(given.images, dataset.root), category=path,
        attributes=held,
    )  # fmt: skip


def _local(refs: Sequence[ImageRef], folder: Path) -> tuple[ImageRef, ...]:
    """A picture of the same file name below `images/`, where there is one, in place of an address."""
    found = []
    for ref in refs:
        local = folder / "images" / Path((ref.url or "").split("?")[0]).name
        found.append(ImageRef(path=str(local)) if ref.url and local.is_file() else ref)
    return tuple(found)


def _retrieval(
    dataset: Dataset,
    files: list[str],
    columns: list[str],
    products: list[Product],
    fetcher: images.Fetcher | None,
) -> None:
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
        reason = f"there is no column of queries ({', '.join((*QUERY_TEXT, *QUERY_IMAGE))})"
        dataset.not_run.update(dict.fromkeys(WITHIN, reason))
        dataset.retrieval(corpus, corpus, [{key: 1.0} for key in corpus_keys], ACROSS, corpus_keys)
        return
    fields = {"id": "id"} | ({text: "title"} if text else {}) | ({image: "images"} if image else {})
    asked = dataset.read(files, keep=lambda p: p.id in of_row, fields=fields)
    shown = [
        Product(
            id=q.id, title=q.title if text else "", images=_local(q.images if image else (), dataset.root)
        )
        for q in asked
    ]
    queries, relevant = dataset.usable(shown, fetcher), [{of_row[q.id]: 1.0} for q in shown]
    dataset.retrieval(queries, corpus, relevant, keys=corpus_keys)
