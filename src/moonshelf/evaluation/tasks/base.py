"""What every task shares: its name, the head of its figures, and what an encoder that cannot do it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Encode, Encoder, Result, Vectors
from moonshelf.evaluation.record import Head, Kind, Predictions
from moonshelf.evaluation.statistics.scoring import figures
from moonshelf.product import Product

Kept = list[Predictions | Result]


@dataclass(frozen=True)
class BaseTask:
    """A question to an encoder. Subclasses hold products as it may see them, and the truth beside them."""

    dataset: str
    name: str
    view: str  # what the query or the product shows: image, text, both …

    def run(self, encoder: Encoder, encode: Encode) -> list[Result]:
        """The figures of one encoder."""
        return figures(self.predict(encoder, encode))

    def predict(self, encoder: Encoder, encode: Encode) -> Kept:
        """What is kept of every row, by method; for what the encoder cannot do, results that say why."""
        raise NotImplementedError

    def head(
        self, method: str, kind: Kind, encoder: Encoder, metrics: Sequence[str], corpus: int = 0, **more: Any
    ) -> Head:
        names = (self.dataset, self.name, self.view, method, encoder.name)
        return Head(*names, kind, tuple(metrics), corpus, **more)

    def unable(
        self, method: str, metrics: Sequence[str], encoder: Encoder, why: str, n: int, corpus: int = 0
    ) -> list[Result]:
        """Results without a value, of an encoder that cannot do it."""
        names = (self.dataset, self.name, self.view, method)
        return [Result(*names, m, encoder.name, None, n=n, corpus=corpus, note=why) for m in metrics]

    def check(self, what: str, products: Sequence[Product], empty: str) -> None:
        """Raises UserError where there are none, or two share an id: predictions could not be told apart."""
        if not products:
            raise UserError(f"the task {self.dataset} {self.name} {empty}")
        seen: set[str] = set()
        for product in products:
            if product.id in seen:
                raise UserError(
                    f"the {what} of {self.dataset} {self.name} hold the id {product.id} twice: "
                    "give each its own"
                )
            seen.add(product.id)


def common(products: Sequence[Product], clusters: Sequence[str], out: Vectors) -> dict[str, list[Any]]:
    """The columns that every file of predictions has."""
    return {
        "id": [product.id for product in products], "cluster": list(clusters), "ok": out.ok.tolist(),
        "text": [words(product) for product in products],
    }  # fmt: skip


def words(product: Product) -> str:
    """The words that a product shows, in one line."""
    return " ".join(f"{product.title} {product.description}".split())
