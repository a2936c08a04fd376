"""Published data sets of products that mteb does not have, in the layout of their authors or of the hub.

Those that mteb has are in `mteb_sets`. Each function takes the folder of one data set (see `hub.locate`) and
gives its evaluation split as tasks. They were written from the data sets' documentation and from public code
that reads them; `registry` says which were ever run on the real files. `limit` caps the queries; the corpus
then keeps everything relevant to them and is filled up with a sample to the same number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from moonshelf import attributes, images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.data.hub import first_columns, pick, table
from moonshelf.evaluation.data.views import (
    HIDDEN,
    TEMPLATES,
    Dataset,
    Split,
    corpus_of,
    directions,
    label_of,
    labelling,
    sample,
    shows,
    views,
)  # fmt: skip
from moonshelf.evaluation.tasks import BOTH, IMAGE, TEXT, Labelling, Task
from moonshelf.product import ImageRef, Product

Fetcher = images.Fetcher | None


def _ranked(
    name: str, split: Split, licence: str, note: str, tasks: Sequence[Task], products: Sequence[Product] = ()
) -> Dataset:
    if not tasks:
        why = split.problems[-1].reason if split.problems else "no query has what is searched for"
        raise UserError(f"nothing of {split.root.name} can be scored: {why}")
    texts = [p.title for p in products if p.title]
    return Dataset(name, licence, note, list(tasks), texts, split.files, split.problems)


# ---- Marqo ---------------------------------------------------------------------------------------------


def marqo(
    name: str, folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Titles to their photos, and search terms to the photos that were found for them."""
    split = Split(folder)
    files = split.find("data/*.parquet", "*.parquet")
    terms: dict[str, set[str]] = {}
    ids: dict[str, None] = {}
    asked = ("query",) if "query" in first_columns(split.path(files[0])) else ("item_ID",)
    for file in files:
        for row in table(split.path(file), {"item": ("item_ID",), "term": asked, "title": ("title",)}):
            if row["item"] is None:
                continue  # the reader of the feed sets it aside
            ids[str(row["item"])] = None
            if asked == ("query",) and row["term"]:
                terms.setdefault(str(row["term"]), set()).add(str(row["item"]))
    chosen = corpus_of(ids, (), limit)
    items = split.read(files, keep=lambda p: p.id in chosen, fields={"item_ID": "id"}, repeated="first")
    products = split.usable(items)
    own: list[Mapping[str, float]] = [{p.id: 1.0} for p in products]
    figures = ("R@1", "R@10", "MRR", "nDCG@10")
    title = {"title → image": (TEXT, IMAGE), "image → title": (IMAGE, TEXT)}
    tasks = directions(name, products, products, own, which=title, metrics=figures, problems=split.problems)
    held = {p.id for p in products if p.images}
    wanted = {term: found & held for term, found in terms.items() if found & held}
    asking = sample([Product(id=f"term {i}", title=term) for i, term in enumerate(sorted(wanted))], limit)
    relevant: list[Mapping[str, float]] = [dict.fromkeys(wanted[q.title], 1.0) for q in asking]
    search = {"search term → image": (TEXT, IMAGE), "search term → multimodal": (TEXT, BOTH)}
    tasks += directions(name, asking, products, relevant, which=search, metrics=figures)
    note = "a title is no shopper's query; what was found for a term counts as relevant, and nothing else"
    return _ranked(name, split, "none stated for the data", note, tasks, products)


# ---- ImplicitAVE ---------------------------------------------------------------------------------------

_TAG = re.compile(r"^\s*\[[^\]]*\]\s*")  # [Title] before the text


def implicit_ave(
    folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Attribute values that the title does not say, in the words of the annotators."""
    split = Split(folder)
    names = split.find("**/evaluation_data/texts/*_annotated_final.tsv", "**/*_annotated_final.tsv")
    options: list[dict[str, list[str]]] = []
    texts = (folder / names[0]).parent
    for path in sorted([*texts.glob("options_*.json"), *texts.parent.glob("options_*.json")]):
        name = path.relative_to(folder).as_posix()
        try:
            options.append(json.loads(split.path(name).read_text(encoding="utf-8")))
        except ValueError:
            raise UserError(f"{name} is not JSON: fetch it again") from None
    needed = ("attribute_names", "attribute_values")
    tasks: list[Task] = []
    titles: list[Product] = []
    for name in names:
        pictures = (folder / name).parent.parent / "images"
        fields = {"id": "id", "images": "images", "texts": "title"}
        rows = split.read(
            name, limit, dialect="csv", fields=fields, repeated="all",
            images_root=pictures if pictures.is_dir() else None,
        )  # fmt: skip
        for row in rows[:1]:
            for column in needed:
                pick(name, list(row.extra), (column,))
        domain = Path(name).name.removesuffix("_annotated_final.tsv").replace("_", " ")
        by_attribute: dict[str, list[Product]] = {}
        for row in split.usable(rows):
            if all(row.extra.get(column) for column in needed):
                row = row.model_copy(update={"title": _TAG.sub("", row.title)})
                by_attribute.setdefault(row.extra["attribute_names"], []).append(row)
                titles.append(row)
            else:
                reason = "the attribute or its value is empty: set aside"
                split.problems.append(Problem(name, "attribute_values", reason, row.id))
        for attribute, products in by_attribute.items():
            tasks += _implicit(domain, attribute, products, options)
    note = "values to choose from are the annotators' options; they checked that titles do not say the value"
    return _ranked("implicitave", split, "not stated", note, tasks, titles)


def _implicit(
    domain: str, attribute: str, products: Sequence[Product], options: Sequence[Mapping[str, list[str]]]
) -> list[Task]:
    key = attributes.canonical_key(attribute)
    written = {p.extra["attribute_values"] for p in products}
    offered = [given[attribute] for given in options if written <= set(given.get(attribute, ()))]
    labels = sorted(
        {attributes.normalise_value(key, v) for v in min(offered, key=len, default=list(written))}
    )
    if len(labels) < 2:
        return []
    tasks: list[Task] = []
    # the words were chosen not to tell: at chance by text alone is right, as where we drop words ourselves
    for shown, reads in {"image": IMAGE, **HIDDEN}.items():
        known = list({p.id: p for p in products if shows(p, reads)}.values())
        if known:
            truth = [attributes.normalise_value(key, p.extra["attribute_values"]) for p in known]
            tasks.append(
                Labelling(
                    "implicitave", f"{domain}: {attribute}", shown, views(known, shown), truth, labels,
                    [p.id for p in known], reads, key, templates=TEMPLATES.get(key, ("{}",)),
                )
            )  # fmt: skip
    return tasks


# ---- M5Product -----------------------------------------------------------------------------------------


def m5product(folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None) -> Dataset:
    """Products with title and photo, searched for others of the same label."""
    split = Split(folder)
    queries = sample(_labelled(split, "query.json"), limit)
    asked = {q.id for q in queries}
    rest = [p for p in _labelled(split, "gallery.json") if p.id not in asked]  # no query finds itself
    wanted = {label_of(q, "category") for q in queries}
    chosen = corpus_of((p.id for p in rest), [p.id for p in rest if label_of(p, "category") in wanted], limit)
    corpus = split.usable([p for p in rest if p.id in chosen], fetcher)
    queries = split.usable(queries, fetcher)
    relevant: list[Mapping[str, float]] = [{label_of(q, "category"): 1.0} for q in queries]
    keys = [label_of(p, "category") for p in corpus]
    tasks = directions("m5product", queries, corpus, relevant, keys=keys, problems=split.problems)
    if not all(key.isdigit() for key in keys):  # a number is no name that a model could know
        tasks += labelling("m5product", "label", "category", -1, queries, queries)
    note = "relevant is what has the query's label"
    return _ranked("m5product", split, "on request, for research", note, tasks, corpus)


def _labelled(split: Split, name: str) -> list[Product]:
    try:
        records = json.loads(split.path(name).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{name} of {split.root.name} is not JSON") from None
    if not isinstance(records, dict):
        raise UserError(f"{name} of {split.root.name} is no mapping of ids to title, label and url")
    products = []
    for number, (id, record) in enumerate(records.items(), 1):
        try:
            label, title, url = str(record["label"]), str(record["title"]), str(record.get("url") or "")
            local = images.resolve_path(f"{id}.jpg", split.root / "images")
            refs = [ImageRef(path=local)] if Path(local).is_file() else [ImageRef(url=url)] if url else []
            products.append(Product(id=id, title=title, images=tuple(refs), category=(label,)))
        except (KeyError, TypeError, AttributeError, ValueError, images.ImageError) as error:
            reason = f"no title, label or usable id ({type(error).__name__}): set aside"
            split.problems.append(Problem(number, "label", reason, str(id)[:100]))
    return products
