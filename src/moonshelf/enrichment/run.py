"""`moonshelf enrich`: a feed with holes in, what could fill them out; the feed itself is never touched.

Read downwards: `enrich` has every product read (`readings`, resumable), fits how sure that is on rows that
state an attribute, and goes through the feed again to write suggestions, conflicts, gaps and the supplement.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from moonshelf import images
from moonshelf.attributes import canonical, canonical_key, fold
from moonshelf.catalogue import feedback
from moonshelf.enrichment.categories import CANDIDATES, LEAST, Categoriser
from moonshelf.enrichment.readings import Reader, Reading
from moonshelf.enrichment.suggestions import Calibration, Suggested, asked, claims, conflicts
from moonshelf.enrichment.supplement import TABLES, Supplement
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import open_feed, started, write_jsonl
from moonshelf.feeds.columns import fields_of
from moonshelf.feeds.text import Table
from moonshelf.files import write_atomic, write_json
from moonshelf.identifiers import is_placeholder
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

ACCEPT_ABOVE, REJECTED = 0.8, "none"  # the latter is a person's verdict that there is no such value
SUGGESTIONS, CONFLICTS = feedback.SUGGESTIONS, "conflicts.jsonl"
OURS = ("supplemental.", "filled.", SUGGESTIONS)
CATEGORY_COLUMNS = {"google product category", "product category"}  # folded


@dataclass(frozen=True)
class Options:
    """What is to be filled, and from which confidence on. `only` are names of attributes, or `category`."""

    only: tuple[str, ...] = ()
    accept_above: float = ACCEPT_ABOVE
    least: float = LEAST  # of a category
    k: int = CANDIDATES
    dialect: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)  # how the feed is read: `feeds.read_feed`
    catalogue: Path | None = None  # whose feedback counts, and whose page lists the suggestions


def enrich(
    feed: str | Path, out: str | Path, model: Callable[[], MoonModel], taxonomy: Taxonomy | None = None, *,
    options: Options | None = None, fetcher: images.Fetcher | None = None,
    progress: Callable[[int, float | None], None] = lambda rows, share: None,
) -> dict[str, Any]:  # fmt: skip
    """Suggest values for the empty attributes of a feed and write them into the folder `out`.

    A run that was stopped goes on when it is started again. `model` loads the model, after the feed and the
    folder were found usable. Raises UserError if they are not, or for a category without a taxonomy.

    Returns what `report.json` holds: numbers, how confidence was calibrated, notes, and `gaps`: category ->
    attribute -> in how many products it is filled, missing, and fillable.
    """
    feed, out, options = Path(feed), Path(out), options or Options()
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder with -o; the feed itself is never written.")
    if out.resolve() == feed.resolve().parent and feed.name.startswith(OURS):
        raise UserError(f"{feed.name} is what `enrich` writes into {out}: name another folder with -o.")
    if "category" in options.only and taxonomy is None:
        raise UserError("a category needs the list that it is taken from: give --taxonomy.")
    dialect, source = open_feed(feed, options.dialect, **options.reading)
    rows = started(dialect, source)
    run = Run(model(), taxonomy, options, out)
    run.root = source.images_root
    run.own_category = dialect in TABLES and taxonomy_column_alone(Table(source).header)
    reader = Reader(
        run.model, out / "readings.jsonl", run.categoriser, root=source.images_root, fetcher=fetcher
    )
    rejected = 0
    with open(out / "rejects.jsonl", "w", encoding="utf-8") as rejects:

        def reject(problem: Problem) -> None:
            nonlocal rejected
            rejected += problem.fatal
            rejects.write(json.dumps(problem.as_dict(), ensure_ascii=False) + "\n")

        for item in reader.read(_products(rows, reject)):
            if isinstance(item, Problem):
                reject(item)
            else:
                run.readings[item.id] = item
            progress(len(run.readings), source.progress())

    def again() -> Iterator[Product]:  # only readings are kept in memory
        return _products(started(*open_feed(feed, dialect, **options.reading)), lambda problem: None)

    run.fit(again())
    if dialect == "shopify" and taxonomy is None:
        run.notes.append("Shopify's metafields take the taxonomy's values only: give --taxonomy")
    accepted = (one for product in again() for one in run.suggest(product)[1] if one.accepted)
    supplement = Supplement(out, dialect, source, accepted, taxonomy)
    counts = {"products": len(run.readings), "rejected": rejected, "read_now": reader.computed}
    record = {"feed": feed.name, "dialect": dialect, "model": run.model.fingerprint, **counts}
    record |= run.write(again(), supplement)
    write_json(out / "report.json", record)
    return record


def _products(rows: Iterable[Any], reject: Callable[[Problem], None]) -> Iterator[Product]:
    """Products, each id once; what is wrong with others is said."""
    seen: set[str] = set()
    for row in rows:
        for problem in row.problems:
            reject(problem)
        if row.product is not None and row.product.id in seen:
            reject(Problem(row.number, "id", "an earlier row has this id", row.product.id))
        elif row.product is not None:
            seen.add(row.product.id)
            yield row.product


def taxonomy_column_alone(header: Iterable[str]) -> bool:
    """Whether what a table calls a product's category is that of a taxonomy, and not the shop's own."""
    names = {fold(column) for column in header if "category" in fields_of([column])}
    return bool(names) and names <= CATEGORY_COLUMNS


class Run:
    """What a run knows: how sure readings are, and what people have said before."""

    def __init__(self, model: MoonModel, taxonomy: Taxonomy | None, options: Options, out: Path) -> None:
        self.model, self.taxonomy, self.options, self.out = model, taxonomy, options, out
        self.only = {canonical_key(name) for name in options.only}
        self.said = feedback.verdicts(options.catalogue) if options.catalogue else {}
        out.mkdir(parents=True, exist_ok=True)
        self.categoriser = Categoriser(model, taxonomy, k=options.k, cache=out) if taxonomy else None
        self.calibration = Calibration(model.prompt.calibration)
        self.readings: dict[str, Reading] = {}
        self.notes: list[str] = []
        self.own_category = False  # of the feed: its category column is the taxonomy's
        self.root = "."  # of its pictures

    def fit(self, products: Iterable[Product]) -> None:
        """The confidence of values, on rows that state them."""
        pairs = []
        for product in products:
            if reading := self.readings.get(product.id):
                id = self.taxonomy.known(product.category, product.extra) if self.taxonomy else None
                stated = canonical(product.attributes)
                for claim in claims(product, reading, self.taxonomy, id):
                    if claim.name in stated:
                        pairs.append((product.id, claim, stated[claim.name] == claim.value))
        self.calibration.fit(pairs)
        if not self.calibration.fitted:
            self.notes.append(
                f"only {len(pairs)} values of the feed can be compared with what the model reads, so its own "
                "calibration is used"
            )

    def suggest(self, product: Product) -> tuple[str | None, list[Suggested]]:
        """The product's category, and a value for each attribute that is empty."""
        if (reading := self.readings.get(product.id)) is None:
            return None, []
        id, found, taxonomy = None, list[Suggested](), self.taxonomy
        if taxonomy and self.categoriser and not (id := taxonomy.known(product.category, product.extra)):
            seen = np.array(reading.evidence).reshape(-1, 3)
            best = self.categoriser.decide(reading.candidates, seen, self.options.least)
            id = best.id if best else None
            if best and not self._has_category(product):
                text, sure = taxonomy.text(best.id), best.confidence
                found.append(
                    Suggested(product.id, "category", text, reading.shown, sure, False, None, text, id)
                )
        filled = _filled(product)
        for name, value, source, evidence in claims(product, reading, taxonomy, id):
            if name not in filled:
                allowed = taxonomy.snap(id, name, value) if taxonomy and id else (None,) * 3
                sure = self.calibration.of(name, evidence)
                found.append(Suggested(product.id, name, value, source, sure, False, *allowed))
        return id, [one for one in found if (not self.only or one.name in self.only) and self._judge(one)]

    def _has_category(self, product: Product) -> bool:
        """Whether the feed has something in the place of a taxonomy's category, even if it is not known."""
        there = {fold(name) for name in product.extra} & {"category id", *CATEGORY_COLUMNS}
        shop = product.extra.get("type", "")  # Shopify's own; its reader takes it where there is no category
        return bool(there) or (self.own_category and product.category not in ((), (shop,)))

    def _judge(self, one: Suggested) -> bool:
        """Whether a suggestion stands: what a person has said of it counts, else its confidence decides."""
        one.model, one.confidence = self.model.fingerprint, round(one.confidence, 4)
        said = self.said.get((one.id, one.name))
        if verdict := said.verdict if said else "":
            if verdict != one.value:  # the taxonomy's word belongs to what was suggested
                one.attribute = one.allowed = one.allowed_id = None
            one.value, one.source, one.confidence = verdict, "person", 1.0
        one.accepted = one.confidence >= self.options.accept_above
        return verdict != REJECTED

    def write(self, products: Iterable[Product], supplement: Supplement) -> dict[str, Any]:
        """Everything but the readings (the next run writes it anew); returns its part of the report."""
        gaps = defaultdict[str, dict[str, Counter[str]]](lambda: defaultdict(Counter))
        counts, names, numbers = Counter(suggested=0, accepted=0, conflicts=0), set[str](), Counter[str]()

        def filled(listed: TextIO, differing: TextIO) -> Iterator[Product]:
            for product in products:
                id, found = self.suggest(product)
                accepted = {one.name: one for one in found if one.accepted}
                differ = conflicts(product, self.readings[product.id]) if product.id in self.readings else []
                counts.update(suggested=len(found), accepted=len(accepted), conflicts=len(differ))
                names.update(one.name for one in found)
                listed.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found)
                differing.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in differ)
                number = product.extra.get("category_id")
                if number and self.taxonomy and number not in self.taxonomy.paths:
                    numbers[number] += 1
                shown = self.taxonomy.text(id) if self.taxonomy and id else " > ".join(product.category)
                for name in asked(self.taxonomy, id):
                    count, there = gaps[shown or "(no category)"][name], name in _filled(product)
                    count.update(filled=int(there), missing=int(not there), fillable=int(name in accepted))
                if accepted:
                    supplement.write(product, list(accepted.values()))
                path = accepted.pop("category", None)
                more: dict[str, Any] = {}
                if path and not product.category:
                    more["category"] = tuple(path.value.split(" > "))
                values = {name: one.value for name, one in accepted.items()}
                # Pictures are named from the feed's own folder: nothing outside of it may be read.
                more["images"] = tuple(
                    ref.model_copy(update={"path": str(self.out / os.path.relpath(ref.path, self.root))})
                    if ref.path else ref
                    for ref in product.images
                )  # fmt: skip
                yield product.model_copy(update={"attributes": {**values, **product.attributes}, **more})

        out = self.out
        with (
            open(out / SUGGESTIONS, "w", encoding="utf-8") as listed,
            open(out / CONFLICTS, "w", encoding="utf-8") as differing,
        ):
            write_jsonl(filled(listed, differing), out / "filled.jsonl")
        supplement.file.close()
        if self.options.catalogue:
            write_atomic(self.options.catalogue / SUGGESTIONS, (out / SUGGESTIONS).read_bytes())
        if numbers and self.taxonomy:
            self.notes.append(
                f"{numbers.total():,} categories are numbers that {self.taxonomy.name} does not have, "
                f"such as {min(numbers)}: give the file of the taxonomy that they are of"
            )
        if unknown := self.only - names:
            self.notes.append(f"nothing was suggested for {', '.join(sorted(unknown))}")
        one = self.calibration
        return {
            **counts, "supplemental": supplement.path.name, "supplemental_rows": supplement.rows,
            "gaps": gaps,
            "calibration": {"fitted_on": one.fitted, "error": one.error, "table": one.table},
            "notes": self.notes,
        }  # fmt: skip


def _filled(product: Product) -> set[str]:
    """Canonical keys of the attributes that say something."""
    return {name for name, value in canonical(product.attributes).items() if not is_placeholder(value)}
