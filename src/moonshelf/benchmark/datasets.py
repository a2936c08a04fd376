"""Data sets as lists of tasks: one small adapter each, registered by name.

An adapter reads with `moonshelf.feeds`, and builds products that hold only what its view shows: never the
category, the attributes or the brand, so no prompt can see the answer. Labels, and the sample that fitted
classifiers learn from, come from the training split alone. `limit` takes a seeded sample of the
validation rows, in file order, and so makes galleries smaller: figures of different limits do not compare.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeVar

from moonshelf import attributes
from moonshelf.benchmark.tasks import BOTH, IMAGE, TEXT, Fit, Labelling, Retrieval, Task
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import read_feed
from moonshelf.product import Product

if TYPE_CHECKING:
    from moonshelf.sampleshop import Shop

T = TypeVar("T")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_STOP = frozenset(("a", "and", "for", "free", "in", "items", "of", "on", "or", "the", "with"))

# A label alone, and in a context: their mean did as well as the better of the two with MiniLM on the
# fashion training split (colour .78 against .65 and .78, leaf .77 against .74 and .78, 600 titles).
TEMPLATES = {"category": ("{}", "a product in {}"), "colour": ("{}", "{} clothing or shoes")}


@dataclass
class Dataset:
    """Tasks with what a reader of their figures must know."""

    name: str
    licence: str
    note: str
    tasks: list[Task]
    corpus: list[str]  # unlabelled texts, for peers that count words
    files: dict[str, str] = field(default_factory=dict)  # path under the data folder -> SHA-256
    problems: list[Problem] = field(default_factory=list)


class Split:
    """Reads the feeds of one data set below `root`, and remembers their hashes and problems."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, str] = {}
        self.problems: list[Problem] = []

    def read(self, name: str, limit: int | None = None, seed: int = 0) -> list[Product]:
        path = self.root / name
        if not path.is_file():
            raise UserError(
                f"there is no {name} in the data folder {self.root.name}: name another with --data"
            )
        with path.open("rb") as file:
            self.files[name] = hashlib.file_digest(file, "sha256").hexdigest()
        products: list[Product] = []
        for row in read_feed(path):
            if isinstance(row, Product):
                products.append(row)
            elif row.fatal:
                self.problems.append(row)
        return sample(products, limit, seed)


def sample(rows: Sequence[T], limit: int | None, seed: int = 0) -> list[T]:
    """A seeded sample of at most `limit` rows, in their order; None takes all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(Random(seed).sample(range(len(rows)), limit))]


def view(product: Product, *, text: bool, image: bool, hide: frozenset[str] = frozenset()) -> Product:
    """The product as a task shows it: texts, pictures or both, and nothing else. `hide` drops words."""
    title, description = (product.title, product.description) if text else ("", "")
    if text and hide:  # a title of nothing but hidden words becomes a word that says nothing
        title, description = without(title, hide) or "product", without(description, hide)
    images = product.images if image else ()
    return Product(id=product.id, title=title, description=description, images=images)


VIEWS = {"image": IMAGE, "text": TEXT, "image + text": BOTH}
HIDDEN = {"text, hidden": TEXT, "image + text, hidden": BOTH}  # colour and category words dropped


def _views(products: Sequence[Product], name: str, hide: frozenset[str] = frozenset()) -> list[Product]:
    shown = {**VIEWS, **HIDDEN}[name]
    drop = hide if name in HIDDEN else frozenset()
    return [view(p, text="text" in shown, image="image" in shown, hide=drop) for p in products]


def stems(labels: Sequence[str]) -> frozenset[str]:
    """Stems of the words of labels and of the labels as one word (`tshirt`, `flipflop`), to be hidden."""
    found = set()
    for label in labels:
        words = [_stem(word) for word in _WORD.findall(label) if word.lower() not in _STOP]
        found.update(words)
        found.add(_stem("".join(_WORD.findall(label))))
    return frozenset(found)


def without(text: str, hidden: frozenset[str]) -> str:
    """`text` without the words whose stem is hidden; pairs such as `T-Shirt` are also looked up as one."""
    previous = None
    while text != previous:  # what is dropped can bring a pair together
        previous, text = text, _drop(text, hidden)
    return text


def _drop(text: str, hidden: frozenset[str]) -> str:
    words = list(_WORD.finditer(text))
    drop = {i for i, word in enumerate(words) if _hides(word[0], hidden)}
    for i in range(len(words) - 1):
        if _stem(words[i][0] + words[i + 1][0]) in hidden:
            drop |= {i, i + 1}
    pieces, end = [], 0
    for i in sorted(drop):
        pieces.append(text[end : words[i].start()])
        end = words[i].end()
    pieces.append(text[end:])
    return " ".join(part for part in " ".join(pieces).split() if _WORD.search(part))


def _hides(word: str, hidden: frozenset[str]) -> bool:
    return _stem(word) in hidden or _stem(attributes.normalise_value("colour", word)) in hidden


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word.lower())
    if re.search(r"(ch|sh|x|ss)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


# ---- the shared data sets --------------------------------------------------------------------------


def fashion(data: Path, limit: int | None = None, fit_rows: int = 2000) -> Dataset:
    """Studio photos with real titles: retrieval by group, three category levels, colour."""
    split = Split(data)
    products = split.read("fashion_products/validation-clear.parquet", limit)
    train = split.read("fashion_products/train-clear.parquet")
    groups = [p.group_id or p.id for p in products]
    photos, titles = _views(products, "image"), _views(products, "text")
    same = [{group: 1.0} for group in groups]
    tasks: list[Task] = [
        Retrieval("fashion", "title → photo", "text", titles, photos, groups, same, groups, TEXT, IMAGE),
        Retrieval("fashion", "photo → title", "image", photos, titles, groups, same, groups, IMAGE, TEXT),
    ]
    colours = [attributes.canonical(p.attributes).get("colour", "") for p in train]
    hide = stems([name for p in train for name in p.category] + [c for c in colours if c])
    fit = sample(train, fit_rows)
    for name, key, level in (
        ("top category", "category", 0),
        ("middle category", "category", 1),
        ("leaf category", "category", -1),
        ("colour", "colour", -1),
    ):
        tasks += _labelling("fashion", name, key, level, products, train, fit, hide)
    note = (
        "a hit is any item of the query's group; labels come from the training split, and others count as "
        "errors; hidden: colour and category words dropped from the title"
    )
    return Dataset(
        "fashion", "believed MIT, photos the brands'", note, tasks, [p.title for p in train], split.files,
        split.problems,
    )  # fmt: skip


def grocery(data: Path, limit: int | None = None, fit_rows: int = 0) -> Dataset:
    """Phone photos taken in shops, searched in a catalogue of one clean shot per product."""
    split = Split(data)
    catalogue = split.read("grocery/catalogue.parquet")
    photos = split.read("grocery/photos-validation.parquet", limit)
    queries, keys = _views(photos, "image"), [p.id for p in catalogue]
    wanted = [p.group_id or "" for p in photos]
    same = [{product: 1.0} for product in wanted]
    tasks: list[Task] = [
        Retrieval(
            "grocery", f"phone photo → catalogue {what}", "image", queries, _views(catalogue, name), keys,
            same, wanted, IMAGE, VIEWS[name], ("R@1", "R@5"),
        )
        for what, name in (("photo", "image"), ("title", "text"), ("photo + title", "image + text"))
    ]  # fmt: skip
    note = "exactly one catalogue product is right; intervals resample products"
    texts = [p.title for p in catalogue]
    return Dataset("grocery", "MIT", note, tasks, texts, split.files, split.problems)


def luma(data: Path, limit: int | None = None, fit_rows: int = 0) -> Dataset:
    """Alternate and back views, searched among the main photos of all colour variants."""
    split = Split(data)
    queries: list[Product] = []
    gallery: list[Product] = []
    for product in split.read("luma/products.parquet"):
        firsts = _first_photos(product)
        for number, ref in enumerate(product.images):
            name = f"{product.id}/main" if ref.role == "main" else f"{product.id}/{number}"
            one = Product(id=name, images=(ref,), group_id=product.id)
            if ref.role == "main" or number in firsts:
                gallery.append(one)
            elif ref.role in ("alternate", "back"):
                queries.append(one)
    mains = {p.id for p in gallery}
    shown = {p.images[0].data for p in gallery}  # one back view is the main photo of another product
    queries = [q for q in queries if f"{q.group_id}/main" in mains and q.images[0].data not in shown]
    queries = sample(queries, limit)
    groups = [q.group_id or "" for q in queries]
    exact = [{f"{group}/main": 1.0} for group in groups]
    anywhere = [{p.id: 1.0 for p in gallery if p.group_id == group} for group in groups]
    keys = [p.id for p in gallery]
    tasks: list[Task] = [
        Retrieval(
            "luma", name, "image", queries, gallery, keys, relevant, groups, IMAGE, IMAGE, ("R@1", "R@5")
        )
        for name, relevant in (("other view → main photo", exact), ("other view → any variant", anywhere))
    ]
    note = "main photo: the same cut in another colour is wrong; any variant: it is right"
    return Dataset("luma", "OSL-3.0 / AFL-3.0", note, tasks, [], split.files, split.problems)


def _first_photos(product: Product) -> set[int]:
    """Positions of the first photo of each colour variant; the reader keeps their names in `extra`."""
    names = [name.rsplit("/", 1)[-1] for name in json.loads(product.extra.get("image_names", "[]"))]
    found: set[int] = set()
    for variant in json.loads(product.extra.get("variants", "[]")):
        own = [str(path).rsplit("/", 1)[-1] for path in variant["image_paths"]]
        found.update(names.index(name) for name in own[:1] if name in names)
    return found


def flipkart(data: Path, limit: int | None = None, fit_rows: int = 2000) -> Dataset:
    """Seven balanced departments."""
    split = Split(data)
    products = split.read("flipkart/validation.parquet", limit)
    train = split.read("flipkart/train.parquet")
    fit = sample(train, fit_rows)
    tasks = _labelling("flipkart", "department", "category", 0, products, train, fit, frozenset())
    note = "titles alone, without the long descriptions, unless the model's prompt reads those"
    texts = [p.title for p in train]
    return Dataset("flipkart", "believed CC BY-SA 4.0", note, tasks, texts, split.files, split.problems)


def _labelling(
    dataset: str,
    name: str,
    key: str,
    level: int,
    products: Sequence[Product],
    train: Sequence[Product],
    fit: Sequence[Product],
    hide: frozenset[str],
) -> list[Task]:
    """One task a view; the hidden views only where there are words to hide."""

    def label(product: Product) -> str:
        if key != "category":
            return attributes.canonical(product.attributes).get(key, "")
        return product.category[level] if product.category else ""

    known, taught = [p for p in products if label(p)], [p for p in fit if label(p)]
    counts = Counter(label(p) for p in train if label(p))
    whole = Labelling(
        dataset, name, "image", known, [label(p) for p in known], sorted(counts),
        [p.group_id or p.id for p in known], BOTH, key, level, TEMPLATES[key], counts.most_common(1)[0][0],
    )  # fmt: skip
    tasks: list[Task] = []
    for shown, reads in {**VIEWS, **(HIDDEN if hide else {})}.items():
        fitted = None
        if taught and shown in VIEWS:
            fitted = Fit(_views(taught, shown, hide), [label(p) for p in taught])
        views = _views(known, shown, hide)
        tasks.append(replace(whole, view=shown, products=views, reads=reads, fit=fitted))
    return tasks


# ---- the sample shop -------------------------------------------------------------------------------


def sample_shop(
    data: Path | None = None, limit: int | None = None, fit_rows: int = 0, shop: Shop | None = None
) -> Dataset:
    """The drawn shop: graded queries, and every attribute by reading.

    `limit` is its number of products, 120 by default; `shop` is one that was drawn already.
    """
    from moonshelf.sampleshop import make_shop

    shop = shop or make_shop(n_products=limit or 120)
    gallery = [view(p, text=True, image=True) for p in shop.products]
    keys, tasks = [p.id for p in gallery], list[Task]()
    for modality, name, reads in (
        ("text", "text → product", TEXT),
        ("image", "photo → product", IMAGE),
        ("composed", "photo + text → product", BOTH),
    ):
        asked = [q for q in shop.queries if q.modality == modality and 3 in q.relevance.values()]
        if asked:
            queries = [Product(id=q.id, title=q.text, images=(q.image,) if q.image else ()) for q in asked]
            grades = [{key: float(grade) for key, grade in q.relevance.items()} for q in asked]
            tasks.append(
                Retrieval(
                    "sampleshop", name, modality, queries, gallery, keys, grades, [q.id for q in asked],
                    reads, BOTH, ("nDCG@10", "R@1"), hit_gain=3.0,
                )
            )  # fmt: skip
    truths = [shop.truth[p.id] for p in shop.products]
    counts = Counter(key for truth in truths for key in truth.attributes)
    columns: list[tuple[str, list[str]]] = [("category", [truth.category[-1] for truth in truths])]
    columns += [
        (key, [t.attributes.get(key, "") for t in truths]) for key, n in counts.most_common() if n >= 10
    ]
    for key, values in columns:
        rows = [i for i, value in enumerate(values) if value]
        labels = sorted({values[i] for i in rows})
        if len(labels) < 2:
            continue
        compared = key in ("category", "colour")
        for shown in ("image", "image + text"):
            tasks.append(
                Labelling(
                    "sampleshop", key, shown, _views([shop.products[i] for i in rows], shown),
                    [values[i] for i in rows], labels, [truths[i].group for i in rows], VIEWS[shown], key,
                    methods=("label similarity", "rationale") if compared else ("rationale",),
                )
            )  # fmt: skip
    note = (
        f"drawn with seed {shop.seed}; nDCG over grades 0 to 3, R@1 asks for grade 3; attributes are those "
        "that the main photo shows"
    )
    return Dataset(
        "sampleshop", "Apache-2.0, drawn by the package", note, tasks, [p.title for p in shop.products]
    )


Adapter = Callable[..., Dataset]
DATASETS: dict[str, Adapter] = {
    "fashion": fashion, "grocery": grocery, "luma": luma, "flipkart": flipkart, "sampleshop": sample_shop,
}  # fmt: skip
SUITES: dict[str, tuple[str, ...]] = {
    "validation": ("fashion", "grocery", "luma", "flipkart"),
    "sampleshop": ("sampleshop",),
}
