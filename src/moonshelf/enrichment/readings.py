"""What the model reads in the products of a feed, kept line by line, so that a stopped run goes on.

A product with a title and a picture is read three times: both, its title alone, its picture alone. So it is
known where a value comes from, and what the picture says beside the record. A line of `readings.jsonl` is
made again where text, pictures, model or taxonomy changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from moonshelf import images
from moonshelf.attributes import canonical_key, normalise_value
from moonshelf.catalogue.rows import RowRejected, prepare_row
from moonshelf.enrichment.categories import Categoriser
from moonshelf.errors import Problem
from moonshelf.model.confidence import log_odds
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import read_rationale

_CHUNK = 32  # products between two writes


@dataclass
class Reading:
    """What was read of one product. `views`: both, title, picture -> canonical key -> (value, its log-odds);
    `evidence` is that of the candidates for its category, see `categories`."""

    id: str
    digest: str  # of all that decides what is read
    views: dict[str, dict[str, tuple[str, float]]] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)
    evidence: list[list[float]] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The view that shows most."""
        return next((view for view in ("both", "title") if view in self.views), "picture")


class Reader:
    """Reads products with a model; their categories too, if it has a categoriser."""

    def __init__(
        self, model: MoonModel, file: Path, categoriser: Categoriser | None = None, *,
        root: str | None = None, fetcher: images.Fetcher | None = None,
    ) -> None:  # fmt: skip
        self.model, self.file, self.categoriser = model, file, categoriser
        self.root, self.fetcher = root, fetcher
        # The least confidence of the model's prompt would hide what is calibrated here.
        self.spec = model.prompt.model_copy(update={"least_confidence": 0.0, "calibration": (1.0, 0.0)})
        names = f" {categoriser.k} {categoriser.taxonomy.digest}" if categoriser else ""
        self.stamp, self.computed = model.fingerprint + names, 0
        self.noted: list[Problem] = []  # pictures that were left out
        self.done = {one.id: one for one in _stored(file)}

    def read(self, products: Iterable[Product]) -> Iterator[Reading | Problem]:
        """One reading a product, in order, those of an earlier run among them, or why there is none."""
        stream = iter(products)
        with open(self.file, "a", encoding="utf-8") as out:
            while chunk := list(islice(stream, _CHUNK)):
                found: dict[str, Reading | Problem] = {}
                fresh = [seen for product in chunk if (seen := self._prepare(product, found)) is not None]
                self._fill(fresh, found)
                for seen in fresh:
                    out.write(json.dumps(vars(found[seen.id]), ensure_ascii=False) + "\n")
                out.flush()
                yield from self.noted
                yield from (found[product.id] for product in chunk)
                self.noted = []

    def _prepare(self, product: Product, found: dict[str, Reading | Problem]) -> Product | None:
        """The product as it is to be read, None if that was done or cannot be."""
        try:
            row = prepare_row(
                product, self.spec, "on", None, root=self.root, fetcher=self.fetcher, allow_text_only=True
            )
        except RowRejected as error:
            found[product.id] = Problem(product.id, error.field, error.reason, product.id)
            return None
        why = (Problem(product.id, "images", text, product.id, fatal=False) for text in row.warnings)
        self.noted.extend(why)
        digest, known = f"{row.row['content_hash']} {self.stamp}", self.done.get(product.id)
        if known and known.digest == digest:
            found[product.id] = known
            return None
        found[product.id] = Reading(product.id, digest)
        return row.product

    def _fill(self, fresh: list[Product], found: dict[str, Reading | Problem]) -> None:
        if not fresh:
            return
        shown = [(found[one.id], name, seen) for one in fresh for name, seen in self._views(one)]
        own, self.model.prompt = self.model.prompt, self.spec
        try:
            read = self.model.encode([seen for _, _, seen in shown], reason="on", on_error="report")
        finally:
            self.model.prompt = own
        for n, place in enumerate(read.row_index.tolist()):
            one, name, _ = shown[place]
            pairs = zip((read_rationale(read.rationales[n]) or {}).items(), read.confidence[n], strict=False)
            assert isinstance(one, Reading)
            one.views[name] = {
                canonical_key(key): (normalise_value(key, value), round(log_odds(math.log(sure)), 4))
                for (key, value), sure in pairs
            }
        if self.categoriser:
            for product, (ids, seen) in zip(fresh, self.categoriser.evidence(fresh), strict=True):
                one = found[product.id]
                assert isinstance(one, Reading)
                one.candidates, one.evidence = ids, np.round(seen, 4).tolist()
        self.computed += len(fresh)

    def _views(self, product: Product) -> Iterator[tuple[str, Product]]:
        text = self.spec.text_of(product)
        if text and product.images:
            yield "both", product
        if text:
            yield "title", product.model_copy(update={"images": ()})
        if product.images:
            yield "picture", Product(id=product.id, images=product.images)


def _stored(file: Path) -> Iterator[Reading]:
    """Readings of an earlier run; a line that was cut off is left out."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with suppress(ValueError, TypeError):
            yield Reading(**json.loads(line))
