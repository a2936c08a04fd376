"""Hard negatives for records: for each product of a feed, others of its category that a model finds near.

Every product is embedded as the catalogue embeds it, and once more by its picture alone and by its text
alone. Neighbours come from the whole records (`score`), first those of the same leaf of the category tree,
then of each level above while a product still lacks some. A neighbour is no negative if it is, or may be,
the same thing: one group, title (numbers apart), identifier or picture, or the same category and visible
attributes.

Margins (named as in sentence-transformers' `mine_hard_negatives`) compare like with like (ours): vectors of
two whole records often lie nearer to each other than a picture lies to its own title (both hold words),
so the own pair picture/title (`positive_score`) is held against the two crossed pairs, this picture with
that title and the reverse (`cross_score`, their mean). A crossed pair above the own one, less the margin,
is more likely a second right answer than a negative, or one that the model cannot judge.

Memory: three vectors a product (3 KB at 256 dimensions). The file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moonshelf import __version__, images
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import DIALECTS, open_feed
from moonshelf.files import write_atomic
from moonshelf.identifiers import is_makerless, is_placeholder, is_placeholder_gtin
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import clean_text
from moonshelf.training.sources.nearest import MiningSettings, Negatives, Records, Search
from moonshelf.training.sources.pairs import Item, facts_of

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel

FORMAT = 1
_SHOWN = 20  # problems kept; all are counted
_NUMBER = re.compile(r"\b\d+([.,/x]\d+)*[a-z]{0,2}\b")  # with a unit or without

Feed = str | Path | Iterable[Product | Problem]


@dataclass
class MineReport:
    """What was mined. `excluded` counts neighbours by why they were passed over, each at its first reason."""

    products: int = 0
    mined: int = 0  # products with at least one negative
    short: int = 0  # products with fewer than asked for, those with none included
    pairs: int = 0
    levels: dict[int, int] = field(default_factory=dict)  # shared steps of the category path -> pairs
    excluded: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first few
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    mean_score: float | None = None
    mean_cross_score: float | None = None
    mean_positive_score: float | None = None

    def as_dict(self) -> dict[str, Any]:
        levels = {str(level): n for level, n in sorted(self.levels.items(), reverse=True)}
        problems = [problem.as_dict() for problem in self.problems]
        return {**vars(self), "levels": levels, "excluded": dict(self.excluded), "problems": problems}

    def lines(self) -> list[str]:
        """The report for people."""
        found = [f"{self.pairs:,} negatives for {self.mined:,} of {self.products:,} products."]
        if self.levels:
            steps = ", ".join(
                f"{n:,} share {level} steps" if level else f"{n:,} none"
                for level, n in sorted(self.levels.items(), reverse=True)
            )
            found.append(f"Of the category path, {steps}.")
        if self.mean_score is not None:
            found.append(f"Mean cosine of the pairs {self.mean_score:.3f}.")
        if self.mean_cross_score is not None and self.mean_positive_score is not None:
            found.append(
                f"Picture and title: {self.mean_positive_score:.3f} within the product, "
                f"{self.mean_cross_score:.3f} across the pair."
            )
        if self.excluded:
            why = ", ".join(f"{reason} {n:,}" for reason, n in self.excluded.most_common())
            found.append(f"Neighbours passed over: {why}.")
        if self.rejected:
            first = self.problems[0]
            found.append(f"{self.rejected:,} rows rejected; the first: row {first.row}, {first.reason}.")
        return found + self.notes


def mine(
    feed: Feed,
    out: str | Path,
    model: MoonModel,
    settings: MiningSettings | None = None,
    *,
    model_name: str = "",
    dialect: str | None = None,
    images_root: str | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int, float | None], None] | None = None,
    **how: Any,
) -> MineReport:
    """Mine hard negatives for a feed (a path, or products and problems) into the Parquet file `out`.

    `how` is how the feed is read: `fields`, `encoding` and `currency` of `feeds.read_feed`.

    Columns: `id`, `negative_id`, `score`, `cross_score`, `positive_score` (float32, null where a product
    lacks picture or text, or where no margin is asked for) and `category_level` (int32); the rows of one
    product are together, hardest first. The schema's metadata holds the model's fingerprint, the feed's hash
    and the settings. Raises UserError if no product of the feed can be embedded.
    """
    settings, out = settings or MiningSettings(), Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file, such as {out / 'negatives.parquet'}.")
    rows, share, root = _rows(feed, dialect, images_root, how)
    report = MineReport(fingerprint=model.fingerprint)
    reading = _Reading(model, settings, rows, root, report)
    records = reading.run(batch_tokens, lambda n: progress(n, share()) if progress else None)
    search = Search(records, settings)
    found, report.excluded = search.run(), search.excluded
    _summarise(found, records, settings, report)
    _write(out, _table(found, records), {
        "format": FORMAT,
        "kind": "hard negatives",
        "model": model_name,
        "fingerprint": model.fingerprint,
        "feed": Path(feed).name if isinstance(feed, str | Path) else None,
        "feed_sha256": _file_hash(feed),
        "settings": asdict(settings),
        "products": report.products,
        "moonshelf": __version__,
    })  # fmt: skip
    return report


# ---- what training reads ---------------------------------------------------------------------------


@dataclass
class Mined:
    """A file of negatives: `negatives` of each product by id, hardest first, and where they come from."""

    negatives: dict[str, tuple[str, ...]]
    info: dict[str, Any]
    notes: list[str]


def load_negatives(path: str | Path, fingerprint: str | None = None) -> Mined:
    """Read what `mine` wrote. Raises UserError if it did not write the file.

    Where `fingerprint` is given and another model mined the file, that is a note, since training goes on from
    the model that mined.
    """
    path = Path(path)
    try:
        table = pq.read_table(path, columns=["id", "negative_id"])
        info = json.loads((table.schema.metadata or {}).get(b"moonshelf", b"{}"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: make it with `moonshelf mine FEED -o {path}`.") from None
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{path} is not a readable file of negatives.") from None
    if info.get("kind") != "hard negatives" or info.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of `moonshelf mine`: mine again.")
    notes = []
    if fingerprint is not None and info.get("fingerprint") != fingerprint:
        what = f"{path.name} was mined with model {info.get('fingerprint')}, not with {fingerprint}"
        notes.append(f"{what}: its negatives are those of that model.")
    found: dict[str, list[str]] = defaultdict(list)
    for batch in table.to_batches(max_chunksize=65536):
        for id, negative in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            found[id].append(negative)
    return Mined({id: tuple(negatives) for id, negatives in found.items()}, info, notes)


def negatives_of(items: Sequence[Item], negatives: dict[str, tuple[str, ...]]) -> dict[str, tuple[Item, ...]]:
    """The mined negatives of each item as items, by item id: all looks of each, hardest record first.

    What is the same to the trainer (`Item.same`) is left out even if the feed's grouping has changed since.
    """
    looks: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        looks[item.product].append(item)
    result = {}
    for item in items:
        mined = (look for id in negatives.get(item.product, ()) for look in looks.get(id, ()))
        if chosen := tuple(look for look in mined if not item.same(look)):
            result[item.id] = chosen
    return result


# ---- reading and embedding -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What the search needs of one product besides its vectors."""

    id: str
    path: tuple[str, ...]
    keys: dict[str, Hashable | None]
    pictures: tuple[bytes, ...]


class _Reading:
    """One pass over the feed. `_views` runs in the engine's reading thread, `run` in the caller's."""

    def __init__(
        self, model: MoonModel, settings: MiningSettings, rows: Iterator[tuple[int | str, Product | Problem]],
        root: str | None, report: MineReport,
    ) -> None:  # fmt: skip
        self.model, self.settings, self.rows, self.root, self.report = model, settings, rows, root, report
        self.facts: list[_Facts] = []
        self.numbers: list[int | str] = []  # of the rows, as `facts`
        self.views: list[tuple[int, str]] = []  # what each product passed to the model is: place, view
        self.seen: set[str] = set()
        self.lock = threading.Lock()  # both threads report

    def run(self, batch_tokens: int, progress: Callable[[int], None]) -> Records:
        found: dict[str, dict[int, np.ndarray]] = {"whole": {}, "picture": {}, "title": {}}
        how: Any = self.settings.reason
        parts = self.model.encode_iter(self._views(), how, batch_tokens=batch_tokens, on_error="report")
        for part in parts:
            for problem in part.problems:
                place, view = self.views[int(problem.row) - 1]
                if view == "whole":
                    self._rejected(Problem(self.numbers[place], problem.field, problem.reason, problem.id))
            for row, vector in zip(part.row_index, np.asarray(part.vectors, np.float32), strict=True):
                place, view = self.views[int(row)]
                if abs(float(np.linalg.norm(vector)) - 1) < 1e-2:  # NaN fails too
                    found[view][place] = vector
                elif view == "whole":
                    reason = "the model gave a vector that is not of unit length"
                    self._rejected(Problem(self.numbers[place], "vector", reason, self.facts[place].id))
            progress(len(found["whole"]))
        return self._records(found)

    def _views(self) -> Iterator[Product]:
        """Each product as it is and, for the margins, its picture alone and its text alone."""
        for number, row in self.rows:
            if isinstance(row, Problem):
                if row.fatal:
                    self._rejected(row)
                continue
            if row.id in self.seen:
                self._rejected(Problem(number, "id", "the id came before: the first row stays", row.id))
                continue
            self.seen.add(row.id)
            try:
                refs = tuple(
                    ImageRef(data=images.read_bytes(ref, root=self.root if ref.path else None), role=ref.role)
                    for ref in row.images[: self.model.prompt.max_images]
                )
            except images.ImageError as error:
                self._rejected(Problem(number, "images", str(error), row.id))
                continue
            product, place = row.model_copy(update={"images": refs}), len(self.facts)
            self.facts.append(_facts(product))
            self.numbers.append(number)
            views = [("whole", product)]
            if self.settings.own_pair and refs and self.model.prompt.text_of(product):
                views.append(("picture", Product(id=product.id, images=refs)))
                views.append(("title", product.model_copy(update={"images": ()})))
            elif self.settings.own_pair:
                views.append(("picture" if refs else "title", product))
            for view, shown in views:
                self.views.append((place, view))
                yield shown

    def _rejected(self, problem: Problem) -> None:
        with self.lock:
            self.report.rejected += 1
            if len(self.report.problems) < _SHOWN:
                self.report.problems.append(problem)

    def _records(self, found: dict[str, dict[int, np.ndarray]]) -> Records:
        places = sorted(found["whole"])
        if not places:
            why = f"; the first: {self.report.problems[0].reason}" if self.report.problems else ""
            raise UserError(f"no product of the feed can be embedded{why}.")
        facts = [self.facts[place] for place in places]
        nothing = np.full(self.model.dim, np.nan, np.float32)

        def gather(view: str) -> np.ndarray:
            mine = found.pop(view)
            return np.stack([mine.get(place, nothing) for place in places])

        vectors = gather("whole")
        pictures = titles = None
        positive = np.full(len(places), np.nan, np.float32)
        if self.settings.own_pair:
            pictures, titles = gather("picture"), gather("title")
            positive = np.einsum("nd,nd->n", pictures, titles)
        same = {name: _codes(f.keys.get(name) for f in facts) for name in facts[0].keys}
        same["picture"] = _picture_codes([f.pictures for f in facts])
        weakest = same.pop("attributes")
        if not self.settings.identical_attributes:
            same["attributes"] = weakest  # the last reason
        return Records(
            [f.id for f in facts], [f.path for f in facts], same, vectors, pictures, titles, positive
        )


def _facts(product: Product) -> _Facts:
    path = tuple(clean_text(step).casefold() for step in product.category)
    gtin = (product.gtin or "").zfill(14)
    brand, mpn = (clean_text(text or "").casefold() for text in (product.brand, product.mpn))
    visible = tuple(sorted(facts_of(product).items()))
    return _Facts(
        product.id,
        path,
        {
            "group": product.group_id or product.id,
            "title": _name(product.title),
            "gtin": None if is_placeholder_gtin(gtin) else gtin,
            "mpn": None if is_makerless(brand) or is_placeholder(mpn) else (brand, mpn),
            "attributes": (path, visible) if visible else None,
        },
        tuple({hashlib.sha256(ref.data or b"").digest() for ref in product.images}),
    )


def _name(title: str) -> str | None:
    """The title without its numbers: `Yoga Strap 6 foot` and `Yoga Strap 8 foot` are sizes of one thing that
    no picture tells apart. Codes that begin with a letter stay: they often name a model.
    """
    title = clean_text(title).casefold()
    return " ".join(_NUMBER.sub(" ", title).split()) or title or None


def _codes(values: Iterable[Hashable | None]) -> np.ndarray:
    """(n, 1) int64: equal for equal values, unique for None."""
    known: dict[Hashable, int] = {}
    codes = [-1 - row if v is None else known.setdefault(v, len(known)) for row, v in enumerate(values)]
    return np.array(codes, np.int64)[:, None]


def _picture_codes(pictures: Sequence[tuple[bytes, ...]]) -> np.ndarray:
    """(n, slots) int64 codes of those pictures that several products have."""
    counts = Counter(chain.from_iterable(pictures))
    known = {digest: code for code, (digest, n) in enumerate(counts.items()) if n > 1}
    shared = [[known[digest] for digest in digests if digest in known] for digests in pictures]
    codes = -1 - np.arange(len(pictures) * max(map(len, shared)), dtype=np.int64).reshape(len(pictures), -1)
    for row, own in enumerate(shared):
        codes[row, : len(own)] = own
    return codes


# ---- saying and writing ----------------------------------------------------------------------------


def _summarise(found: Negatives, records: Records, settings: MiningSettings, report: MineReport) -> None:
    n = report.products = len(records.ids)
    each = np.bincount(found.row, minlength=n)
    report.mined, report.pairs = int((each > 0).sum()), len(found.row)
    report.short = int((each < settings.num_negatives).sum())
    report.levels = dict(Counter(found.level.tolist()))
    report.excluded = +report.excluded  # without zeros
    if report.pairs:
        report.mean_score = round(float(found.score.mean()), 4)
    if np.isfinite(found.cross_score).any():
        report.mean_cross_score = round(float(np.nanmean(found.cross_score)), 4)
        report.mean_positive_score = round(float(np.nanmean(records.positive)), 4)
    bare = sum(not path for path in records.paths)
    if n == 1:
        report.notes.append("The feed holds one usable product, so there is nothing to be its negative.")
    elif bare == n:
        report.notes.append("The feed has no categories: negatives come from the whole feed.")
    elif bare:
        report.notes.append(f"{bare:,} products have no category: theirs come from the whole feed.")
    if settings.own_pair and (lacking := int(np.isnan(records.positive).sum())):
        report.notes.append(f"{lacking:,} products lack a picture or text, so no margin applies to them.")
    if report.short and n > 1:
        report.notes.append(
            f"{report.short:,} products have fewer than {settings.num_negatives} negatives, "
            f"{n - report.mined:,} of them none."
        )


def _table(found: Negatives, records: Records) -> pa.Table:
    ids = np.array(records.ids, dtype=object)

    def numbers(column: np.ndarray) -> pa.Array:
        return pa.array(column.astype(np.float32), from_pandas=True)  # NaN becomes null

    return pa.table({
        "id": pa.array(ids[found.row], pa.string()),
        "negative_id": pa.array(ids[found.place], pa.string()),
        "score": numbers(found.score),
        "cross_score": numbers(found.cross_score),
        "positive_score": numbers(records.positive[found.row]),
        "category_level": pa.array(found.level, pa.int32()),
    })  # fmt: skip


def _write(out: Path, table: pa.Table, info: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    described = table.replace_schema_metadata({"moonshelf": json.dumps(info, ensure_ascii=False)})
    whole = pa.BufferOutputStream()
    pq.write_table(described, whole, compression="zstd")
    write_atomic(out, whole.getvalue().to_pybytes())


def _rows(
    feed: Feed, dialect: str | None, images_root: str | None, how: Mapping[str, Any]
) -> tuple[Iterator[tuple[int | str, Product | Problem]], Callable[[], float | None], str | None]:
    """(number, product or problem) of each row, the share read so far, and the folder of the pictures."""
    if not isinstance(feed, str | Path):
        return ((number, row) for number, row in enumerate(feed, 1)), lambda: None, None
    name, source = open_feed(feed, dialect, images_root=images_root, **how)
    rows = DIALECTS[name](source)
    flat = (
        (row.number, outcome)
        for row in rows
        for outcome in (*row.problems, row.product)
        if outcome is not None
    )
    return flat, source.progress, source.images_root


def _file_hash(feed: Feed) -> str | None:
    if not isinstance(feed, str | Path) or not Path(feed).is_file():
        return None
    with open(feed, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
