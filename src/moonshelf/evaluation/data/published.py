"""Published data sets of products, read in the layout in which their authors or the hub give them.

Each function takes the folder of one data set (see `hub.locate`) and gives its evaluation split as tasks.
They were written from the data sets' documentation and from public code that reads them; `datasets` says
which were ever run on the real files. `limit` caps the queries; the corpus then keeps everything relevant
to them and is filled up with a sample to the same number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from moonshelf import attributes, images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.data.hub import pick, table
from moonshelf.evaluation.data.views import (
    DIRECTIONS,
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
from moonshelf.evaluation.tasks import BOTH, IMAGE, TEXT, Labelling, Retrieval, Task
from moonshelf.product import ImageRef, Product

Fetcher = images.Fetcher | None
IMAGE_TO_IMAGE = {"image → image": (IMAGE, IMAGE)}


# ---- a table of queries, one of candidates, and which answer which ------------------------------------


def _ranking(
    split: Split, part: str, limit: int | None, mbeir: str
) -> tuple[list[Product], list[Product], list[Mapping[str, float]]]:
    """Queries, candidates and relevance: from three Parquet tables, or from M-BEIR's own files."""
    if (split.root / "query" / "test").is_dir():
        fields = {"qid": "id", "query_txt": "title", "query_img_path": "images"}
        asked = [f"query/test/mbeir_{mbeir}_test.jsonl"]
        pool = [f"cand_pool/local/mbeir_{mbeir}_cand_pool.jsonl"]
        found = {"did": "id", "txt": "title", "img_path": "images"}
        truth = _read_qrels(split, f"qrels/test/mbeir_{mbeir}_test_qrels.txt")
        ids: Iterable[str] = _ids(split.path(pool[0]), "did")
        root: Path | None = split.root
    else:
        fields, found, root = {}, {}, None
        asked = split.find(f"{part}query-*.parquet", f"{part}query/*.parquet")
        pool = split.find(f"{part}texts-*.parquet", f"{part}texts/*.parquet")
        truth = {}
        columns = {
            "query": ("query-id", "query_id"), "item": ("texts-id", "corpus_id"), "score": ("score",)
        }  # fmt: skip
        for name in split.find(f"{part}qrels-*.parquet", f"{part}qrels/*.parquet"):
            for row in table(split.path(name), columns):
                truth.setdefault(str(row["query"]), {})[str(row["item"])] = _gain(name, row["score"])
        ids = (str(row["id"]) for name in pool for row in table(split.path(name), {"id": ("id",)}))
    has_truth = {query for query, gains in truth.items() if any(gains.values())}
    queries = split.read(asked, limit, keep=lambda p: p.id in has_truth, fields=fields, images_root=root)
    if not queries:
        raise UserError(f"no query of {split.root.name}/{asked[0]} has a relevant candidate: is it complete?")
    wanted = {item for query in queries for item, gain in truth[query.id].items() if gain > 0}
    chosen = corpus_of(ids, wanted, limit)
    corpus = split.read(pool, keep=lambda p: p.id in chosen, fields=found, images_root=root)
    if not corpus:
        why = split.problems[-1].reason if split.problems else "it has none of those that the truth names"
        raise UserError(f"no candidate of {split.root.name}/{pool[0]} can be used: {why}")
    return split.usable(queries), split.usable(corpus), [truth[query.id] for query in queries]


def _ids(path: Path, name: str) -> Iterator[str]:
    """Ids of a file of JSON lines; the reader of the feed says what is wrong with the others."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield str(json.loads(line)[name])
            except (ValueError, TypeError, KeyError):
                continue


def _read_qrels(split: Split, name: str) -> dict[str, dict[str, float]]:
    truth: dict[str, dict[str, float]] = {}
    for number, line in enumerate(split.path(name).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if len(parts) < 4:
            split.problems.append(Problem(number, "qrels", f"a line of {name} has fewer than 4 columns"))
            continue
        truth.setdefault(parts[0], {})[parts[2]] = _gain(name, parts[3])
    return truth


def _gain(name: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise UserError(f"{name} has the relevance {str(value)[:40]!r} where a number is expected") from None


def _ranked(
    name: str, split: Split, licence: str, note: str, tasks: Sequence[Task], products: Sequence[Product] = ()
) -> Dataset:
    if not tasks:
        why = split.problems[-1].reason if split.problems else "no query has what is searched for"
        raise UserError(f"nothing of {split.root.name} can be scored: {why}")
    texts = [p.title for p in products if p.title]
    return Dataset(name, licence, note, list(tasks), texts, split.files, split.problems)


def fashion200k(
    folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Descriptions to photos and back, the two tasks of M-BEIR."""
    split = Split(folder)
    tasks: list[Task] = []
    texts: list[Product] = []
    for part, direction in (("task0", "text → image"), ("task3", "image → text")):
        queries, corpus, relevant = _ranking(split, f"{part}/", limit, f"fashion200k_{part}")
        which = {direction: DIRECTIONS[direction]}
        tasks += directions("fashion200k", queries, corpus, relevant, which=which, problems=split.problems)
        texts += queries if part == "task0" else corpus
    note = "each direction has its own queries and corpus"
    return _ranked("fashion200k", split, "not stated", note, tasks, texts)


def fashioniq(folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None) -> Dataset:
    """A photo and what should be different about it, to the photo of that garment."""
    split = Split(folder)
    queries, corpus, relevant = _ranking(split, "", limit, "fashioniq_task7")
    which = {"photo + change → photo": (BOTH, IMAGE)}
    tasks = directions(
        "fashioniq", queries, corpus, relevant, which=which, metrics=("R@1", "R@10", "R@50"),
        problems=split.problems,
    )  # fmt: skip
    note = "one pool of all three garments, where the paper's has one for each; the photo asked with is in it"
    return _ranked("fashioniq", split, "CDLA-Permissive-1.0, photos excepted", note, tasks, queries)


def online_products(
    folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Stanford Online Products: other photos of the product that a photo shows."""
    split = Split(folder)
    if (folder / "Ebay_test.txt").is_file():
        queries, corpus = _ebay(split, limit)
        relevant: list[Mapping[str, float]] = [{q.group_id or "": 1.0} for q in queries]
        keys = [p.group_id or "" for p in corpus]
    else:
        queries, corpus, relevant = _ranking(split, "", limit, "")
        own = {q.id for q in queries}
        same = {image.data for q in queries for image in q.images if image.data}
        corpus = [p for p in corpus if p.id not in own and not any(i.data in same for i in p.images)]
        keys = [p.id for p in corpus]
    if not corpus:
        raise UserError(f"every photo of {folder.name} is a query: nothing is left to be found")
    tasks = directions(
        "sop", queries, corpus, relevant, which=IMAGE_TO_IMAGE, keys=keys, metrics=("R@1", "R@10"),
        problems=split.problems,
    )  # fmt: skip
    departments = labelling("sop", "department", "category", 0, queries, queries)
    note = (
        "photos that are queries are not in the corpus, where the paper lets each photo search all others: "
        "figures do not compare with published ones"
    )
    return _ranked("sop", split, "for research, see its LICENSE file", note, [*tasks, *departments])


def _ebay(split: Split, limit: int | None) -> tuple[list[Product], list[Product]]:
    """The test photos as the authors list them: the first of each product asks for its others."""
    photos: dict[str, list[Product]] = {}
    lines = split.path("Ebay_test.txt").read_text(encoding="utf-8").splitlines()
    if lines[:1] != ["image_id class_id super_class_id path"]:
        raise UserError("Ebay_test.txt does not begin with the header of Stanford Online Products")
    for number, line in enumerate(lines[1:], 1):
        cells = line.split()
        if len(cells) != 4:
            split.problems.append(Problem(number, "row", f"{len(cells)} columns where 4 are expected"))
            continue
        path = cells[3]
        try:
            ref = ImageRef(path=images.resolve_path(path, split.root))
        except images.ImageError as error:
            split.problems.append(Problem(number, "path", str(error), cells[0]))
            continue
        department = path.split("/")[0].removesuffix("_final").replace("_", " ")
        photo = Product(id=cells[0], images=(ref,), group_id=cells[1], category=(department,))
        photos.setdefault(cells[1], []).append(photo)
    queries = sample([group[0] for group in photos.values() if len(group) > 1], limit)
    asked = {q.group_id for q in queries}
    rest = [p for group in photos.values() for p in group[1:]]
    chosen = corpus_of((p.id for p in rest), [p.id for p in rest if p.group_id in asked], limit)
    return split.usable(queries), split.usable([p for p in rest if p.id in chosen])


# ---- Marqo ---------------------------------------------------------------------------------------------


def marqo(
    name: str, folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None
) -> Dataset:
    """Titles to their photos, and search terms to the photos that were found for them."""
    split = Split(folder)
    files = split.find("data/*.parquet", "*.parquet")
    terms: dict[str, set[str]] = {}
    ids: dict[str, None] = {}
    asked = ("query",) if "query" in _columns(split.path(files[0])) else ("item_ID",)
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


def _columns(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{path.name} is not a readable Parquet file") from None


# ---- ESCI ----------------------------------------------------------------------------------------------

GRADES = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}  # the gains of the challenge's own nDCG


def esci(folder: Path, limit: int | None = None, fit_rows: int = 0, fetcher: Fetcher = None) -> Dataset:
    """Shoppers' queries of the US test split, ranked by exact, substitute, complement, irrelevant."""
    split = Split(folder)
    joined = not list(folder.glob("**/shopping_queries_dataset_examples.parquet"))
    if joined:  # one table for each split, products and judgements together
        examples = products = split.find("data/test-*.parquet", "test-*.parquet")
    else:
        examples = split.find("**/shopping_queries_dataset_examples.parquet")
        products = split.find("**/shopping_queries_dataset_products.parquet")
    columns = {
        name: (name,) for name in ("query", "query_id", "product_id", "product_locale", "small_version")
    } | {"label": ("esci_label",)}
    where: dict[str, object] = {"product_locale": "us", "small_version": 1}
    if not joined:
        columns["split"], where["split"] = ("split",), "test"
    queries: dict[str, Product] = {}
    grades: dict[str, dict[str, float]] = {}
    for name in examples:
        for number, row in enumerate(table(split.path(name), columns, where=where), 1):
            id, label = str(row["query_id"]), str(row["label"])[:1].upper()
            if label not in GRADES or not row["query"]:
                reason = f"the label {row['label']!r} is none of E, S, C, I, or the query is empty"
                split.problems.append(Problem(number, "esci_label", reason, id))
                continue
            queries.setdefault(id, Product(id=id, title=str(row["query"])))
            grades.setdefault(id, {})[str(row["product_id"])] = GRADES[label]
    for id in [id for id, judged in grades.items() if max(judged.values()) < 1.0]:
        split.problems.append(Problem(id, "esci_label", "no product is an exact match: set aside", id))
        del queries[id]
    if not queries:
        raise UserError(f"no query of {folder.name} has an exact match among its judged products")
    asked = sample(list(queries.values()), limit)
    judged = {item for query in asked for item in grades[query.id]}
    found = split.read(
        products,
        keep=lambda p: p.id in judged and p.extra.get("product_locale", "us") == "us",
        repeated="first" if joined else "problem",
    )
    there = {p.id for p in found}
    relevant = [{item: g for item, g in grades[q.id].items() if g > 0 and item in there} for q in asked]
    rows = [i for i, wanted in enumerate(relevant) if max(wanted.values(), default=0.0) >= 1.0]
    for i in sorted(set(range(len(asked))) - set(rows)):
        reason = "none of its exact matches is in the table of products: set aside"
        split.problems.append(Problem(asked[i].id, "product_id", reason, asked[i].id))
    if not rows:
        raise UserError(f"no exact match of {folder.name} is in its table of products: is it complete?")
    task = Retrieval(
        "esci", "query → product", "text", [asked[i] for i in rows], views(found, "text"),
        [p.id for p in found], [relevant[i] for i in rows], [asked[i].id for i in rows], TEXT, TEXT,
        ("nDCG@10", "MRR", "R@1", "R@10"), hit_gain=1.0,
    )  # fmt: skip
    note = (
        "gains 1, 0.1, 0.01, 0; ranked among the judged products of all queries, where the challenge ranks "
        "each query's own list: harder, and no published figure compares; hits are exact matches"
    )
    return Dataset("esci", "Apache-2.0", note, [task], [p.title for p in found], split.files, split.problems)


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
