"""Published data sets of products: tasks of mteb, and what mteb does not have in the layout of its authors.

Each of the first functions takes the folder of one data set (see `locate`) and gives its evaluation split
as tasks. They were written from the data sets' documentation and from public code that reads them; the cards
say which were ever run on the real files. `limit` caps the queries; the corpus then keeps everything relevant
to them and is filled up with a sample to the same number.

Retrieval and reranking tasks of mteb (`--suite mteb:TASK`) it reads from the hub itself, into the hub's own
cache; pictures are taken as files and decoded here. Choices: a reranking task is ranked over what was judged
for all its queries together, which is harder than each query's own list; of a task in which every item
searches the others (`skip_first_result`) mteb alone can tell the figures.

A data set called NAME lies in `DATA/NAME`, file for file as on the hub, so that `hf download OWNER/NAME
--repo-type dataset --local-dir DATA/NAME` puts it there. Nothing is fetched unless asked for; what was once
fetched is used again without the network, and a fetch that was broken off is gone on with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moonshelf import attributes, images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.data.dataset import HIDDEN, TEMPLATES, Dataset, corpus_of, sample, shows, views
from moonshelf.evaluation.tasks import Labelling
from moonshelf.model.encoders.stock import need
from moonshelf.model.files import fetch
from moonshelf.product import ImageRef, Product

Fetcher = images.Fetcher | None
SAFE_FILES = ("*.parquet", "*.json", "*.jsonl", "*.tsv", "*.csv", "*.txt", "*.md", "*.jpg", "*.jpeg", "*.png")
GRADED = ("R@1", "R@10", "MRR", "nDCG@10")


def _done(dataset: Dataset, note: str, products: Sequence[Product] = ()) -> Dataset:
    if not dataset.tasks:
        problems = dataset.problems
        why = problems[-1].reason if problems else "no query has what is searched for"
        raise UserError(f"nothing of {dataset.root.name} can be scored: {why}")
    dataset.note, dataset.texts = note, [p.title for p in products if p.title]
    return dataset


# ---- Marqo ---------------------------------------------------------------------------------------------


def marqo(
    name: str, folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Titles to their photos, and search terms to the photos that were found for them."""
    dataset = Dataset(name, folder)
    files = dataset.find("data/*.parquet", "*.parquet")
    terms: dict[str, set[str]] = {}
    ids: dict[str, None] = {}
    for file in files:
        there = first_columns(dataset.path(file))
        for needed in ("item_ID", "title"):
            pick(file, there, (needed,))
        columns = ["item_ID", *(["query"] if "query" in there else [])]
        for row in pq.read_table(dataset.path(file), columns=columns).to_pylist():
            if row["item_ID"] is None:
                continue  # the reader of the feed sets it aside
            ids[str(row["item_ID"])] = None
            if row.get("query"):
                terms.setdefault(str(row["query"]), set()).add(str(row["item_ID"]))
    chosen = corpus_of(ids, (), limit)
    items = dataset.read(files, keep=lambda p: p.id in chosen, fields={"item_ID": "id"}, repeated="first")
    products = dataset.usable(items)
    title = {"title → image": (TEXT, IMAGE), "image → title": (IMAGE, TEXT)}
    dataset.retrieval(products, products, [{p.id: 1.0} for p in products], title, metrics=GRADED)
    held = {p.id for p in products if p.images}
    wanted = {term: found & held for term, found in terms.items() if found & held}
    asking = sample([Product(id=f"term {i}", title=term) for i, term in enumerate(sorted(wanted))], limit)
    relevant = [dict.fromkeys(wanted[q.title], 1.0) for q in asking]
    search = {"search term → image": (TEXT, IMAGE), "search term → multimodal": (TEXT, BOTH)}
    dataset.retrieval(asking, products, relevant, search, metrics=GRADED, say=False)
    note = "a title is no shopper's query; what was found for a term counts as relevant, and nothing else"
    return _done(dataset, note, products)


# ---- ImplicitAVE ---------------------------------------------------------------------------------------

_TAG = re.compile(r"^\s*\[[^\]]*\]\s*")  # [Title] before the text


def implicit_ave(
    folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Attribute values that the title does not say, in the words of the annotators."""
    dataset = Dataset("implicitave", folder)
    names = dataset.find("**/evaluation_data/texts/*_annotated_final.tsv", "**/*_annotated_final.tsv")
    options: list[dict[str, list[str]]] = []
    texts = (folder / names[0]).parent
    for path in sorted([*texts.glob("options_*.json"), *texts.parent.glob("options_*.json")]):
        name = path.relative_to(folder).as_posix()
        try:
            options.append(json.loads(dataset.path(name).read_text(encoding="utf-8")))
        except ValueError:
            raise UserError(f"{name} is not JSON: fetch it again") from None
    needed = ("attribute_names", "attribute_values")
    titles: list[Product] = []
    for name in names:
        pictures = (folder / name).parent.parent / "images"
        fields = {"id": "id", "images": "images", "texts": "title"}
        rows = dataset.read(
            name, limit, dialect="csv", fields=fields, repeated="all",
            images_root=pictures if pictures.is_dir() else None,
        )  # fmt: skip
        for row in rows[:1]:
            for column in needed:
                pick(name, list(row.extra), (column,))
        domain = Path(name).name.removesuffix("_annotated_final.tsv").replace("_", " ")
        by_attribute: dict[str, list[Product]] = {}
        for row in dataset.usable(rows):
            if all(row.extra.get(column) for column in needed):
                row = row.model_copy(update={"title": _TAG.sub("", row.title)})
                by_attribute.setdefault(row.extra["attribute_names"], []).append(row)
                titles.append(row)
            else:
                reason = "the attribute or its value is empty: rejected"
                dataset.problems.append(Problem(name, "attribute_values", reason, row.id))
        for attribute, products in by_attribute.items():
            _implicit(dataset, f"{domain}: {attribute}", attribute, products, options)
    note = "values to choose from are the annotators' options; they checked that titles do not say the value"
    return _done(dataset, note, titles)


def _implicit(
    dataset: Dataset,
    name: str,
    attribute: str,
    products: Sequence[Product],
    options: Sequence[Mapping[str, list[str]]],
) -> None:
    key = attributes.canonical_key(attribute)
    written = {p.extra["attribute_values"] for p in products}
    offered = [given[attribute] for given in options if written <= set(given.get(attribute, ()))]
    labels = sorted(
        {attributes.normalise_value(key, v) for v in min(offered, key=len, default=list(written))}
    )
    # the words were chosen not to tell: at chance by text alone is right, as where we drop words ourselves
    for shown, reads in {"image": IMAGE, **HIDDEN}.items() if len(labels) > 1 else ():
        known = list({p.id: p for p in products if shows(p, reads)}.values())
        if known:
            truth = [attributes.normalise_value(key, p.extra["attribute_values"]) for p in known]
            dataset.tasks.append(
                Labelling(
                    "implicitave", name, shown, views(known, shown), truth, labels, [p.id for p in known],
                    reads, key, templates=TEMPLATES.get(key, ("{}",)),
                )
            )  # fmt: skip


# ---- tasks of mteb -------------------------------------------------------------------------------------


def mteb_set(name: str, tasks: Sequence[str], limit: int | None = None) -> Dataset:
    """The data set `name` of the named tasks of mteb, `limit` queries and items of each.

    Raises UserError where mteb does not know a task, cannot read it, or ranks nothing in it.
    """
    need(f"mteb:{tasks[0]}", "mteb", package="moonshelf[eval]")
    import mteb

    dataset = Dataset(name)
    for called in tasks:
        try:
            task: Any = mteb.get_task(called)
            if not hasattr(task, "skip_first_result"):
                raise UserError(f"{called} is no retrieval task: name one, or run it with mteb")
            if task.skip_first_result:
                raise UserError(
                    f"in {called} every item searches the others, which mteb alone can score: "
                    f"mteb.evaluate(MoonEncoder(model), mteb.get_tasks(tasks=['{called}']))"
                )
            task.load_data()
        except UserError:
            raise
        except Exception as error:  # of the network and of whatever reads the task
            reason = str(error).strip("'\" \n").splitlines() or [type(error).__name__]
            raise UserError(f"mteb cannot read the task {called}: {reason[0][:300]}") from error
        for subset, splits in task.dataset.items():
            parts = splits[task.metadata.eval_splits[0]]
            where = called if len(task.dataset) == 1 else f"{called}, {subset}"
            _retrieval(dataset, where, parts, limit)
    dataset.note = "as mteb reads it; reranking is over all that was judged, of all queries together"
    return dataset


def _retrieval(dataset: Dataset, task: str, parts: Mapping[str, Any], limit: int | None) -> None:
    truth: dict[str, dict[str, float]] = {
        query: {item: float(gain) for item, gain in judged.items() if gain > 0}
        for query, judged in parts["relevant_docs"].items()
    }
    items = set(parts["corpus"]["id"])
    asked = [one for one in parts["queries"]["id"] if items & truth.get(one, {}).keys()]
    dataset.problems += [
        Problem(one, "truth", "no relevant item in the corpus: rejected", one)
        for one in sorted(set(parts["queries"]["id"]) - set(asked))[:100]
    ]
    asked = sample(asked, limit)
    wanted = {item for one in asked for item in truth[one]}
    queries = _products(parts["queries"], set(asked))
    corpus = _products(parts["corpus"], corpus_of(parts["corpus"]["id"], wanted, limit))
    if not queries:
        raise UserError(f"no query of {task} has a relevant item in its corpus")
    relevant, shown = [truth[query.id] for query in queries], (_shown(queries), _shown(corpus))
    dataset.retrieval(queries, corpus, relevant, {task: shown}, metrics=GRADED)
    dataset.texts += [product.title for product in corpus if product.title]


def _products(table: Any, ids: Collection[str]) -> list[Product]:
    """Rows of a table of mteb with `id` and of `title`, `text`, `image` what there is; pictures as files."""
    import datasets

    table = table.select([row for row, one in enumerate(table["id"]) if one in ids])
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image(decode=False))
    products = []
    for row in table:
        text = " ".join(row[key] for key in ("title", "text") if row.get(key)).strip()
        photo = (row.get("image") or {}).get("bytes")
        refs = (ImageRef(data=photo),) if photo else ()
        products.append(Product(id=str(row["id"]), title=text, images=refs))
    return products


def _shown(products: Sequence[Product]) -> frozenset[str]:
    """What any of the products shows."""
    image = {"image"} if any(p.images for p in products) else set()
    return frozenset(image | ({"text"} if any(p.title for p in products) else set())) or TEXT


# ---- where they lie ----------------------------------------------------------------------------------


def locate(name: str, data: Path | None, address: str, how: str, *, download: bool = False) -> Path:
    """The folder `DATA/NAME`.

    `address` is a data set of the hub, `how` says what to do where there is none. Raises UserError, with what
    to do, if it is not there and may not or cannot be fetched.
    """
    if data is None:
        raise UserError(
            f"the data set {name} is read from the folder {name} of your data: name it with --data"
        )
    folder = data / name
    if _holds_files(folder):
        return folder
    if not address:
        raise UserError(f"there is no {name} in the data folder {data.name}: {how}")
    if not download:
        raise UserError(
            f"there is no {name} in the data folder {data.name}: allow it to be fetched with --download, "
            f"or fetch it yourself with `{_command(address, folder)}`"
        )
    _fetch_data(address, folder)
    return folder


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _command(address: str, folder: Path) -> str:
    repo, _, revision = address.partition("@")
    pinned = f" --revision {revision}" if revision else ""
    return f"hf download {repo} --repo-type dataset{pinned} --local-dir {folder}"


def _fetch_data(address: str, folder: Path) -> None:
    repo, _, revision = address.partition("@")
    part = folder.with_name(folder.name + ".part")  # so that half a data set never passes for a whole one
    patterns = [*SAFE_FILES, *(f"**/{pattern}" for pattern in SAFE_FILES)]
    hint = ": check the connection and your right to read it, or run "
    hint += f"`{_command(address, folder)}` where that works"
    fetch(repo, patterns, hint, repo_type="dataset", revision=revision or None, local_dir=part)
    if not _holds_files(part):
        raise UserError(f"{repo} holds none of the files that are read here ({', '.join(SAFE_FILES[:6])})")
    if folder.is_dir():
        folder.rmdir()  # it was empty
    part.rename(folder)


def pick(file: str, there: Sequence[str], names: Collection[str]) -> str:
    """The first of `names` that is a column of a file. Raises UserError if there is none."""
    for name in names:
        if name in there:
            return name
    shown = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
    raise UserError(
        f"{file} has no column {' or '.join(names)} (it has {shown}): this is not the layout that is read"
    )


def first_columns(path: Path) -> list[str]:
    """Names of the columns of a Parquet file."""
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{path.name} is not a readable Parquet file") from None
