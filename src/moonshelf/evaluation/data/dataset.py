"""A data set: reads its files with `moonshelf.feeds`, remembers what they were, and makes tasks of products.

An adapter is a function that fills a `Dataset`: it reads products and calls the methods that make tasks.
`limit` takes a seeded sample of the rows to be scored, in file order, and so makes corpora smaller:
figures of different limits do not compare.

An encoder sees products that hold only what their view shows: never the category, the attributes or the
brand, so no prompt can see the answer; `stems` and `without` drop words that would tell it. A product takes
part in a view only if it has what the view shows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

from moonshelf import attributes, images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.tasks import AttributeSets, Fit, Labelling, Matching, Retrieval, Task
from moonshelf.evaluation.tasks.matching import same_product_pairs
from moonshelf.feeds import read_feed
from moonshelf.product import ImageRef, Product

T = TypeVar("T")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # scripts that put no space around words
_STOP = frozenset(("a", "and", "for", "free", "in", "items", "of", "on", "or", "the", "with"))

# A label alone, and in a context: their mean did as well as the better of the two with MiniLM on the
# fashion training split (colour .78 against .65 and .78, leaf .77 against .74 and .78, 600 titles).
TEMPLATES = {"category": ("{}", "a product in {}"), "colour": ("{}", "{} clothing or shoes")}
VIEWS = {"image": IMAGE, "text": TEXT, "image + text": BOTH}
HIDDEN = {"text, hidden": TEXT, "image + text, hidden": BOTH}  # words that tell the answer dropped
Grades = Mapping[str, float]
METRICS = ("R@1", "R@10", "MRR", "mAP")
# Direction -> what the query shows, and what the corpus shows.
DIRECTIONS = {
    "image → multimodal": (IMAGE, BOTH),
    "text → multimodal": (TEXT, BOTH),
    "multimodal → multimodal": (BOTH, BOTH),
    "text → image": (TEXT, IMAGE),
    "image → text": (IMAGE, TEXT),
}
WITHIN, ACROSS = list(DIRECTIONS)[:3], list(DIRECTIONS)[3:]
_VIEW_OF = {reads: name for name, reads in VIEWS.items()}


class Dataset:
    """Tasks with what a reader of their figures must know; files are read from below `root`."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        self.name, self.root = name, root or Path()
        self.licence = ""
        self.note = ""
        self.tasks: list[Task] = []
        self.texts: list[str] = []  # unlabelled texts, for baselines that count words
        self.files: dict[str, str] = {}  # path under the data folder -> SHA-256
        self.problems: list[Problem] = []
        self.not_run: dict[str, str] = {}  # task that the data cannot give -> why
        self.training: list[Product] = []  # the training split, for baselines that learn

    # ---- reading -----------------------------------------------------------------------------------------

    def find(self, *patterns: str) -> list[str]:
        """Names of the files of the first pattern that has any, in order. Raises UserError if none has."""
        for pattern in patterns:
            if found := sorted(path for path in self.root.glob(pattern) if path.is_file()):
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
        *,
        keep: Callable[[Product], bool] | None = None,
        repeated: Literal["problem", "first", "all"] = "problem",
        **reading: Any,
    ) -> list[Product]:
        """Products of a feed, or of one in several files; of those that `keep` takes, a sample of `limit`.

        Where ids are `repeated`, the first row counts and the others are problems, unless a data set is
        known to have a row for each of several facts about a product. `reading` are options of `read_feed`.
        """
        products: list[Product] = []
        seen: set[str] = set()
        for name in (names,) if isinstance(names, str) else names:
            path = self.path(name)
            for row in read_feed(path, **reading):
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
        return sample(products, limit)

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
                    refs.append(_held(ref, fetcher))
                except images.ImageError as error:
                    reason = str(error)
                    if error.code == "remote_off":
                        reason += ": allow it with --download"
            if reason and not refs:
                self.problems.append(Problem(product.id, "images", reason, product.id, fatal=False))
            done.append(product.model_copy(update={"images": tuple(refs)}))
        return done

    # ---- making tasks ------------------------------------------------------------------------------------

    def labelling(
        self,
        name: str,
        key: str,
        level: int,
        products: Sequence[Product],
        train: Sequence[Product] | None = None,
        fit: Sequence[Product] = (),
        hide: frozenset[str] = frozenset(),
    ) -> bool:
        """One task a view, with the labels of `train`; the hidden views only where there are words to hide.

        A view with fewer than two labels or without products gives no task; whether any did is told. Without
        `train`, as for a catalogue, labels are those of the products, and the commonest is not reported,
        because it is not known beforehand.
        """
        counts = Counter(x for p in (products if train is None else train) if (x := label_of(p, key, level)))
        labelled = [(p, x) for p in products if (x := label_of(p, key, level))] if len(counts) > 1 else []
        taught = [p for p in fit if label_of(p, key, level)]
        made = len(self.tasks)
        for shown, reads in {**VIEWS, **(HIDDEN if hide else {})}.items():
            known = [(p, x) for p, x in labelled if shows(p, reads)]
            fitted = [p for p in taught if shows(p, reads)] if shown in VIEWS else []
            fit_on = Fit(views(fitted, shown), [label_of(p, key, level) for p in fitted]) if fitted else None
            if known:
                self.tasks.append(Labelling(
                    self.name, name, shown, views([p for p, _ in known], shown, hide), [x for _, x in known],
                    sorted(counts), [p.group_id or p.id for p, _ in known], reads, key, level,
                    TEMPLATES.get(key, ("{}",)), None if train is None else counts.most_common(1)[0][0],
                    fit_on,
                ))  # fmt: skip
        return len(self.tasks) > made

    def retrieval(
        self,
        queries: Sequence[Product],
        corpus: Sequence[Product],
        relevant: Sequence[Grades],
        which: Iterable[str] | Mapping[str, tuple[frozenset[str], frozenset[str]]] = DIRECTIONS,
        keys: Sequence[str] | None = None,
        metrics: tuple[str, ...] = METRICS,
        hit_gain: float = 0.0,
        say: bool = True,
    ) -> None:
        """Retrieval in each direction, from what queries show to what the corpus shows, with those that have
        it.

        `relevant` maps keys of the corpus (ids by default) to gains; a query without any in the corpus of a
        direction is rejected there, with a problem if `say`. A direction with no query left is left out.
        """
        keys = keys if keys is not None else [p.id for p in corpus]
        for name in which:
            asks, finds = (which if isinstance(which, Mapping) else DIRECTIONS)[name]
            # a product without a picture still is a candidate where pictures and texts are searched together
            held = [i for i, p in enumerate(corpus) if finds == BOTH or shows(p, finds)]
            there = {keys[i] for i in held}
            rows = []
            for i, query in enumerate(queries):
                if not held or not shows(query, asks):
                    continue
                if any(gain > 0 and key in there for key, gain in relevant[i].items()):
                    rows.append(i)
                elif say:
                    reason = f"no relevant product in the corpus of {name}: the query is rejected"
                    self.problems.append(Problem(query.id, "truth", reason, query.id))
            if rows:
                asked = [queries[i] for i in rows]
                self.tasks.append(Retrieval(
                    self.name, name, _VIEW_OF[asks], views(asked, _VIEW_OF[asks]),
                    views([corpus[i] for i in held], _VIEW_OF[finds]), [keys[i] for i in held],
                    [relevant[i] for i in rows], [q.group_id or q.id for q in asked], asks, finds, metrics,
                    hit_gain,
                ))  # fmt: skip

    def within_groups(self, products: Sequence[Product]) -> None:
        """The first of each group asks for its others, which are searched for among all that do not ask."""
        sizes = Counter(p.group_id for p in products if p.group_id)
        first: dict[str, Product] = {}
        for product in products:
            if product.group_id and sizes[product.group_id] > 1:
                first.setdefault(product.group_id, product)
        asking = {q.id for q in first.values()}
        corpus = [p for p in products if p.id not in asking]
        relevant, keys = [{group: 1.0} for group in first], [group_of(p) for p in corpus]
        self.retrieval(list(first.values()), corpus, relevant, WITHIN, keys, say=False)

    def same_product(self, products: Sequence[Product], kinds: Sequence[str] | None = None) -> None:
        """Pairs of one group against pairs of two, of one kind (the leaf category) if there are any."""
        kinds = kinds if kinds is not None else [label_of(p, "category") for p in products]
        for shown, reads in VIEWS.items():
            rows = [i for i, p in enumerate(products) if shows(p, reads)]
            known = [products[i] for i in rows]
            pairs, same, clusters = same_product_pairs([group_of(p) for p in known], [kinds[i] for i in rows])
            if len(set(same)) == 2:
                told = (views(known, shown), pairs, same, clusters, reads)
                self.tasks.append(Matching(self.name, "product matching", shown, *told))

    def attribute_sets(
        self, products: Sequence[Product], keys: Collection[str], shown_as: Iterable[str] = VIEWS
    ) -> None:
        """All attributes of `keys` that a product states, read from its rationale together; a task a view."""
        stated = [(p, {key: x for key in keys if (x := label_of(p, key))}) for p in products]
        for shown in shown_as:
            known = [(p, truth) for p, truth in stated if truth and shows(p, VIEWS[shown])]
            if known:
                self.tasks.append(AttributeSets(
                    self.name, "all attributes", shown, views([p for p, _ in known], shown),
                    [truth for _, truth in known], [p.group_id or p.id for p, _ in known], VIEWS[shown],
                ))  # fmt: skip


def _held(ref: ImageRef, fetcher: images.Fetcher | None) -> ImageRef:
    if ref.url is not None:
        return ImageRef(data=images.read_bytes(ref, fetcher=fetcher), role=ref.role)
    if ref.path is not None and not os.path.isfile(ref.path):
        raise images.ImageError("missing", f"there is no picture {Path(ref.path).name}")
    return ref


def corpus_of(ids: Iterable[str], wanted: Collection[str], limit: int | None) -> set[str]:
    """Ids of a corpus: all, or everything wanted and a seeded sample of the rest, `limit` together."""
    every = list(dict.fromkeys(ids))
    if limit is None:
        return set(every)
    rest = [name for name in every if name not in wanted]
    return set(wanted).intersection(every) | set(sample(rest, max(0, limit - len(wanted))))


# ---- views --------------------------------------------------------------------------------------------


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


def readable(product: Product, reads: frozenset[str]) -> Product:
    """The product without what an encoder that `reads` so much does not see."""
    less: dict[str, Any] = {} if "image" in reads else {"images": ()}
    less |= {} if "text" in reads else {"title": "", "description": ""}
    return product.model_copy(update=less) if any(getattr(product, name) for name in less) else product


def shows(product: Product, reads: frozenset[str]) -> bool:
    """Whether a product has all of `reads`."""
    has_text = bool(product.title or product.description)
    return ("image" not in reads or bool(product.images)) and ("text" not in reads or has_text)


def stems(labels: Iterable[str]) -> frozenset[str]:
    """Stems of the words of labels and of the labels as one word (`tshirt`, `flipflop`), to be hidden."""
    found = set()
    for words in map(_WORD.findall, labels):
        found |= {_stem(word) for word in words if word.lower() not in _STOP} | {_stem("".join(words))}
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
    for i in sorted(drop, reverse=True):  # from the end, so that places before stay
        text = f"{text[: words[i].start()]} {text[words[i].end() :]}"
    return " ".join(part for part in text.split() if _WORD.search(part))


def _hides(word: str, hidden: frozenset[str]) -> bool:
    return _stem(word) in hidden or _stem(attributes.normalise_value("colour", word)) in hidden


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word.lower())
    if re.search(r"(ch|sh|x|ss)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def label_of(product: Product, key: str, level: int = -1) -> str:
    """The category name at a level of the path, or the normalised value of an attribute; "" if none."""
    if key != "category":
        return attributes.canonical(product.attributes).get(key, "")
    if level == -1:
        return product.category[-1] if product.category else ""
    return product.category[level] if level < len(product.category) else ""


def group_of(product: Product) -> str:
    """What products that are one for a shopper share; a product without group is one of its own."""
    return product.group_id or f"alone: {product.id}"


def sample(rows: Sequence[T], limit: int | None, seed: int = 0) -> list[T]:
    """A seeded sample of at most `limit` rows, in their order; None takes all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(Random(seed).sample(range(len(rows)), limit))]
