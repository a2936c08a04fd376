"""What adapters of data sets share: reading with `moonshelf.feeds`, views of a product, tasks from labels.

An encoder sees products that hold only what their view shows: never the category, the attributes or the
brand, so no prompt can see the answer. A product takes part in a view only if it has what the view shows.
`limit` takes a seeded sample of the rows to be scored, in file order, and so makes corpora smaller:
figures of different limits do not compare.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

from moonshelf import attributes, images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.tasks import (
    BOTH,
    IMAGE,
    TEXT,
    AttributeSets,
    Fit,
    Labelling,
    Matching,
    Retrieval,
    Task,
    same_product_pairs,
)  # fmt: skip
from moonshelf.feeds import read_feed
from moonshelf.product import ImageRef, Product

T = TypeVar("T")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # scripts that put no space around words
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
    texts: list[str]  # unlabelled texts, for baselines that count words
    files: dict[str, str] = field(default_factory=dict)  # path under the data folder -> SHA-256
    problems: list[Problem] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # task that the data cannot give -> why
    training: list[Product] = field(default_factory=list)  # the training split, for baselines that learn


class Split:
    """Reads the files of one data set below `root`, and remembers their hashes and problems."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, str] = {}
        self.problems: list[Problem] = []

    def find(self, *patterns: str) -> list[str]:
        """Names of the files of the first pattern that has any, in order. Raises UserError if none has."""
        for pattern in patterns:
            found = sorted(path for path in self.root.glob(pattern) if path.is_file())
            if found:
                return [path.relative_to(self.root).as_posix() for path in found]
        raise UserError(
            f"there is no {' or '.join(patterns)} in the folder {self.root.name}: is it the whole data set?"
        )

    def path(self, name: str) -> Path:
        """A file below the root, hashed. Raises UserError if it is missing."""
        path = self.root / name
        if not path.is_file():
            raise UserError(
                f"there is no {name} in the data folder {self.root.name}: name another with --data"
            )
        if name not in self.files:
            with path.open("rb") as file:
                self.files[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return path

    def read(
        self,
        names: str | Sequence[str],
        limit: int | None = None,
        seed: int = 0,
        *,
        keep: Callable[[Product], bool] | None = None,
        repeated: Literal["problem", "first", "all"] = "problem",
        dialect: str | None = None,
        fields: Mapping[str, str] | None = None,
        images_root: Path | None = None,
        encoding: str | None = None,
        currency: str | None = None,
    ) -> list[Product]:
        """Products of a feed, or of one in several files; of those that `keep` takes, a sample of `limit`.

        Where ids are `repeated`, the first row counts and the others are problems, unless a data set is
        known to have a row for each of several facts about a product.
        """
        products: list[Product] = []
        seen: set[str] = set()
        for name in (names,) if isinstance(names, str) else names:
            path = self.path(name)
            how: dict[str, Any] = {"encoding": encoding, "currency": currency, "images_root": images_root}
            for row in read_feed(path, dialect, fields=fields, **how):
                if isinstance(row, Problem):
                    if row.fatal:
                        self.problems.append(row)
                elif keep is None or keep(row):
                    if repeated == "all" or row.id not in seen:
                        products.append(row)
                    elif repeated == "problem":
                        reason = f"a second row of {path.name} has this id: the first is used"
                        self.problems.append(Problem(name, "id", reason, row.id))
                    seen.add(row.id)
        return sample(products, limit, seed)

    def usable(self, products: Iterable[Product], fetcher: images.Fetcher | None = None) -> list[Product]:
        """The products with the pictures that can be read: in the feed, on disk, or fetched.

        A product without any keeps its text, and a problem says why. Pictures are not decoded here.
        """
        done = []
        for product in products:
            refs: list[ImageRef] = []
            reason = ""
            for ref in product.images:
                try:
                    refs.append(_read(ref, fetcher))
                except images.ImageError as error:
                    reason = str(error)
                    if error.code == "remote_off":
                        reason += ": allow it with --download"
            if reason and not refs:
                self.problems.append(Problem(product.id, "images", reason, product.id, fatal=False))
            done.append(product.model_copy(update={"images": tuple(refs)}))
        return done


def _read(ref: ImageRef, fetcher: images.Fetcher | None) -> ImageRef:
    if ref.url is not None:
        return ImageRef(data=images.read_bytes(ref, fetcher=fetcher), role=ref.role)
    if ref.path is not None and not os.path.isfile(ref.path):
        raise images.ImageError("missing", f"there is no picture {Path(ref.path).name}")
    return ref


def corpus_of(ids: Iterable[str], wanted: Collection[str], limit: int | None, seed: int = 0) -> set[str]:
    """Ids of a corpus: all, or everything wanted and a seeded sample of the rest, `limit` together."""
    every = list(dict.fromkeys(ids))
    if limit is None:
        return set(every)
    rest = [name for name in every if name not in wanted]
    return set(wanted).intersection(every) | set(sample(rest, max(0, limit - len(wanted)), seed))


def sample(rows: Sequence[T], limit: int | None, seed: int = 0) -> list[T]:
    """A seeded sample of at most `limit` rows, in their order; None takes all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(Random(seed).sample(range(len(rows)), limit))]


# ---- views -----------------------------------------------------------------------------------------

VIEWS = {"image": IMAGE, "text": TEXT, "image + text": BOTH}
HIDDEN = {"text, hidden": TEXT, "image + text, hidden": BOTH}  # words that tell the answer dropped


def view(product: Product, *, text: bool, image: bool, hide: frozenset[str] = frozenset()) -> Product:
    """The product as a task shows it: texts, pictures or both, and nothing else. `hide` drops words."""
    title, description = (product.title, product.description) if text else ("", "")
    if text and hide:  # a title of nothing but hidden words becomes a word that says nothing
        title, description = without(title, hide) or "product", without(description, hide)
    return Product(
        id=product.id, title=title, description=description, images=product.images if image else ()
    )


def views(products: Sequence[Product], name: str, hide: frozenset[str] = frozenset()) -> list[Product]:
    """The products in one of `VIEWS` or `HIDDEN`."""
    shown = {**VIEWS, **HIDDEN}[name]
    drop = hide if name in HIDDEN else frozenset()
    return [view(p, text="text" in shown, image="image" in shown, hide=drop) for p in products]


def shows(product: Product, reads: frozenset[str]) -> bool:
    """Whether a product has all of `reads`."""
    has_text = bool(product.title or product.description)
    return ("image" not in reads or bool(product.images)) and ("text" not in reads or has_text)


def stems(labels: Iterable[str]) -> frozenset[str]:
    """Stems of the words of labels and of the labels as one word (`tshirt`, `flipflop`), to be hidden."""
    found = set()
    for label in labels:
        words = [_stem(word) for word in _WORD.findall(label) if word.lower() not in _STOP]
        found.update(words)
        found.add(_stem("".join(_WORD.findall(label))))
    return frozenset(found - {""})


def without(text: str, hidden: frozenset[str]) -> str:
    """`text` without the words whose stem is hidden; pairs such as `T-Shirt` are also looked up as one.

    Stems of scripts without spaces between words are dropped wherever they stand.
    """
    if _UNSPACED.search(text):
        for stem in sorted((s for s in hidden if _UNSPACED.search(s)), key=len, reverse=True):
            text = text.replace(stem, " ")
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


# ---- tasks -----------------------------------------------------------------------------------------


def labelling(
    dataset: str,
    name: str,
    key: str,
    level: int,
    products: Sequence[Product],
    train: Sequence[Product],
    fit: Sequence[Product] = (),
    hide: frozenset[str] = frozenset(),
) -> list[Task]:
    """One task a view, with the labels of `train`; the hidden views only where there are words to hide.

    A view with fewer than two labels or without products gives no task. Where `train` is `products`, as for
    a catalogue without a training split, the commonest label is not known beforehand and not reported.
    """

    def label(product: Product) -> str:
        return label_of(product, key, level)

    counts = Counter(label(p) for p in train if label(p))
    if len(counts) < 2:
        return []
    commonest = None if train is products else counts.most_common(1)[0][0]
    tasks: list[Task] = []
    for shown, reads in {**VIEWS, **(HIDDEN if hide else {})}.items():
        known = [p for p in products if label(p) and shows(p, reads)]
        taught = [p for p in fit if label(p) and shows(p, reads)]
        if not known:
            continue
        fitted = None
        if taught and shown in VIEWS:
            fitted = Fit(views(taught, shown, hide), [label(p) for p in taught])
        tasks.append(
            Labelling(
                dataset, name, shown, views(known, shown, hide), [label(p) for p in known], sorted(counts),
                [p.group_id or p.id for p in known], reads, key, level, TEMPLATES.get(key, ("{}",)),
                commonest, fitted,
            )
        )  # fmt: skip
    return tasks


def label_of(product: Product, key: str, level: int = -1) -> str:
    """The category name at a level of the path, or the normalised value of an attribute; "" if none."""
    if key != "category":
        return attributes.canonical(product.attributes).get(key, "")
    if level == -1:
        return product.category[-1] if product.category else ""
    return product.category[level] if level < len(product.category) else ""


DIRECTIONS = {
    "image → multimodal": (IMAGE, BOTH),
    "text → multimodal": (TEXT, BOTH),
    "multimodal → multimodal": (BOTH, BOTH),
    "text → image": (TEXT, IMAGE),
    "image → text": (IMAGE, TEXT),
}
_VIEW_OF = {reads: name for name, reads in VIEWS.items()}


def directions(
    dataset: str,
    queries: Sequence[Product],
    corpus: Sequence[Product],
    relevant: Sequence[Mapping[str, float]],
    *,
    which: Mapping[str, tuple[frozenset[str], frozenset[str]]] = DIRECTIONS,
    keys: Sequence[str] | None = None,
    metrics: tuple[str, ...] = ("R@1", "R@10", "MRR", "mAP"),
    problems: list[Problem] | None = None,
) -> list[Task]:
    """Retrieval in each direction, from what queries show to what the corpus shows, with those that have it.

    `relevant` maps keys of the corpus (ids by default) to gains; a query without any in the corpus of a
    direction is set aside there, with a problem. A direction with no query left is left out.
    """
    tasks: list[Task] = []
    keys = keys if keys is not None else [p.id for p in corpus]
    for name, (asks, finds) in which.items():
        # a product without a picture still is a candidate where pictures and texts are searched together
        held = [i for i, p in enumerate(corpus) if finds == BOTH or shows(p, finds)]
        if not held:
            continue
        there = {keys[i] for i in held}
        rows = []
        for i, query in enumerate(queries):
            if not shows(query, asks):
                continue
            if any(gain > 0 and key in there for key, gain in relevant[i].items()):
                rows.append(i)
            elif problems is not None:
                reason = f"no relevant product in the corpus of {name}: the query is set aside"
                problems.append(Problem(query.id, "truth", reason, query.id))
        if not rows:
            continue
        tasks.append(
            Retrieval(
                dataset, name, _VIEW_OF[asks], views([queries[i] for i in rows], _VIEW_OF[asks]),
                views([corpus[i] for i in held], _VIEW_OF[finds]), [keys[i] for i in held],
                [relevant[i] for i in rows], [queries[i].group_id or queries[i].id for i in rows],
                asks, finds, metrics,
            )
        )  # fmt: skip
    return tasks


WITHIN = {name: DIRECTIONS[name] for name in list(DIRECTIONS)[:3]}


def within_groups(dataset: str, products: Sequence[Product]) -> list[Task]:
    """The first of each group asks for its others, which are searched for among all that do not ask."""
    sizes = Counter(p.group_id for p in products if p.group_id)
    first: dict[str, Product] = {}
    for product in products:
        if product.group_id and sizes[product.group_id] > 1:
            first.setdefault(product.group_id, product)
    asking = {q.id for q in first.values()}
    corpus = [p for p in products if p.id not in asking]
    relevant: list[Mapping[str, float]] = [{group: 1.0} for group in first]
    keys = [group_of(p) for p in corpus]
    return directions(dataset, list(first.values()), corpus, relevant, which=WITHIN, keys=keys)


def group_of(product: Product) -> str:
    """What products that are one for a shopper share; a product without group is one of its own."""
    return product.group_id or f"alone: {product.id}"


def same_product(dataset: str, products: Sequence[Product], kinds: Sequence[str] | None = None) -> list[Task]:
    """Pairs of one group against pairs of two, of one kind (the leaf category) if there are any."""
    kinds = kinds if kinds is not None else [label_of(p, "category") for p in products]
    tasks: list[Task] = []
    for shown, reads in VIEWS.items():
        rows = [i for i, p in enumerate(products) if shows(p, reads)]
        pairs, same, clusters = same_product_pairs(
            [group_of(products[i]) for i in rows], [kinds[i] for i in rows]
        )
        if len(set(same)) == 2:
            known = views([products[i] for i in rows], shown)
            tasks.append(Matching(dataset, "product matching", shown, known, pairs, same, clusters, reads))
    return tasks


def attribute_sets(
    dataset: str, products: Sequence[Product], keys: Collection[str], shown_as: Iterable[str] = VIEWS
) -> list[Task]:
    """All attributes of `keys` that a product states, read from its rationale together; one task a view."""
    tasks: list[Task] = []
    for shown in shown_as if keys else ():
        reads = VIEWS[shown]
        known = [p for p in products if shows(p, reads) and any(label_of(p, key) for key in keys)]
        if known:
            truth = [{key: label for key in keys if (label := label_of(p, key))} for p in known]
            groups = [p.group_id or p.id for p in known]
            tasks.append(
                AttributeSets(dataset, "all attributes", shown, views(known, shown), truth, groups, reads)
            )
    return tasks
