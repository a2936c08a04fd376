"""From what was read to what is suggested: values for empty attributes, their sources, and how sure they are.

    c = sigmoid(w . x),   x = log-odds of the value, does the title give it, does the picture alone,
                              is it a word of the title, 1, and which attribute it is

w is fitted, with a ridge, on one half of the rows of the feed that state the attribute (which the model does
not see); the reliability table is of the other half. With fewer than `FEWEST` to fit on the model's own
calibration stands in, and the report says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from moonshelf.attributes import canonical, canonical_key, normalise_value
from moonshelf.catalogue.overview import IN_TITLES, differ
from moonshelf.enrichment.readings import Reading
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.product import Product

ASKED = (
    "colour",
    "material",
    "pattern",
    "gender",
    "age group",
    "size",
)  # where no schema says what is wanted
FEWEST = 40
_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


@dataclass
class Suggested:
    """A value for an empty attribute (`name` is its canonical key, or `category`)."""

    id: str
    name: str
    value: str
    source: str  # title, picture, both; person, where somebody has said so
    confidence: float
    accepted: bool = False
    attribute: str | None = None  # of the category's schema; its own word for the value, with its id
    allowed: str | None = None
    allowed_id: str | None = None
    model: str = ""  # fingerprint


class Claim(NamedTuple):
    """A value that could be suggested, and what speaks for it."""

    name: str
    value: str
    source: str
    evidence: tuple[float, ...]  # (5,): see the module


def claims(
    product: Product, reading: Reading, taxonomy: Taxonomy | None, category: str | None
) -> list[Claim]:
    """All values that the model, or one word of the title, gives for the attributes of a product."""
    title, found = normalise_value("", product.title), dict(reading.views.get(reading.shown, {}))
    for name in sorted({*IN_TITLES, *asked(taxonomy, category)} - found.keys()):
        if word := named(title, name, taxonomy, category):
            found[name] = word, 0.0
    by_title, by_picture = (
        {k: v[0] for k, v in reading.views.get(one, {}).items()} for one in ("title", "picture")
    )
    result = []
    for name, (value, odds) in found.items():
        literal = bool(re.search(rf"\b{re.escape(value)}\b", title))
        told, seen = literal or by_title.get(name) == value, by_picture.get(name) == value
        source = "both" if told == seen else "picture" if seen else "title"  # neither alone: both together
        if name != "category":
            result.append(Claim(name, value, source, (odds, float(told), float(seen), float(literal), 1.0)))
    return result


def asked(taxonomy: Taxonomy | None, category: str | None) -> list[str]:
    """Canonical keys of the attributes that a product of a category should have."""
    schema = taxonomy.attributes(category) if taxonomy and category else []
    return [canonical_key(name.replace("_", " ")) for name in schema] or list(ASKED)


def named(title: str, name: str, taxonomy: Taxonomy | None = None, category: str | None = None) -> str | None:
    """The one value of an attribute that a title in lower case names, if it names one and no other.

    >>> named("red cotton shirt", "colour"), named("red and blue shirt", "colour")
    ('red', None)
    """
    attribute = taxonomy.attribute_of(category, name) if taxonomy and category else None
    words = (
        list(taxonomy.values(attribute)) if taxonomy and attribute else IN_TITLES.get(name, "").split(", ")
    )
    known = sorted({normalise_value(name, word) for word in words if len(word) > 2}, key=len, reverse=True)
    hits = set(re.findall(rf"\b(?:{'|'.join(map(re.escape, known))})\b", title)) if known else set()
    return hits.pop() if len(hits) == 1 else None


def conflicts(product: Product, reading: Reading) -> list[dict[str, Any]]:
    """Where the record, or else its title, says one thing and the picture alone another."""
    record, title, found = canonical(product.attributes), normalise_value("", product.title), []
    for name, (seen, odds) in reading.views.get("picture", {}).items():
        said = record.get(name) or (named(title, name) if name in IN_TITLES else None)
        if name in IN_TITLES and said and differ(name, said, seen):
            where = "attribute" if name in record else "title"
            sure = round(float(expit(odds)), 4)  # as the model has it: conflicts are not calibrated
            one = {"id": product.id, "name": name, "feed": said, "said_by": where, "picture": seen}
            found.append({**one, "confidence": sure})
    return found


class Calibration:
    """Confidence of claims, fitted on those whose truth the feed states."""

    def __init__(self, own: tuple[float, float]) -> None:
        self.weights = np.array([own[0], 0.0, 0.0, 0.0, own[1]])  # the model's own, until there is a fit
        self.offsets: dict[str, float] = {}
        self.fitted, self.table = 0, list[dict[str, float]]()

    def of(self, name: str, evidence: tuple[float, ...]) -> float:
        """The confidence of a claim, 0 to 1."""
        return float(expit(np.dot(self.weights, evidence) + self.offsets.get(name, 0.0)))

    @staticmethod
    def held_out(id: str) -> bool:
        """Whether a product is of the half that nothing is fitted on."""
        return hashlib.sha256(id.encode(errors="replace")).digest()[0] % 2 == 1

    def fit(self, known: Sequence[tuple[str, Claim, bool]]) -> None:
        """Fit on one half of (id of the product, claim, is it right) and fill `table` from the other."""
        halves: tuple[list[tuple[Claim, bool]], ...] = ([], [])
        for id, claim, right in known:  # by product, so that its attributes are in one half
            halves[self.held_out(id)].append((claim, right))
        if len(halves[0]) >= FEWEST and len({right for _, right in halves[0]}) == 2:
            names = sorted({claim.name for claim, _ in halves[0]})
            x = np.array([[*c.evidence, *(float(c.name == name) for name in names)] for c, _ in halves[0]])
            weights = _logistic(x, np.array([right for _, right in halves[0]], float))
            self.weights, self.fitted = weights[:5], len(x)
            self.offsets = dict(zip(names, weights[5:].tolist(), strict=True))
        self.table = reliability(
            [(self.of(claim.name, claim.evidence), float(right)) for claim, right in halves[1]]
        )

    @property
    def error(self) -> float | None:
        """Expected calibration error of the table: distance of confidence and share that is right."""
        total = sum(one["count"] for one in self.table)
        gaps = (one["count"] * abs(one["confidence"] - one["right"]) for one in self.table)
        return sum(gaps) / total if total else None


def reliability(pairs: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """Bins of (confidence, 1 if right else 0) that hold any: bounds, count, mean confidence, share right."""
    found, values = [], np.array(pairs).reshape(-1, 2)
    places = np.clip(np.searchsorted(_BINS, values[:, 0], "right") - 1, 0, len(_BINS) - 2)
    for place in np.unique(places).tolist():
        sure, right = values[places == place].mean(0).tolist()
        count = int((places == place).sum())
        bounds = {"from": _BINS[place], "to": _BINS[place + 1]}
        found.append({**bounds, "count": count, "confidence": round(sure, 4), "right": round(right, 4)})
    return found


def _logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights (d,) of logistic regression of y (n,), 0 or 1, on x (n, d), with a ridge of 1/2."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        score = x @ weights
        value = np.logaddexp(0, score).sum() - y @ score + 0.25 * weights @ weights
        return float(value), x.T @ (expit(score) - y) + 0.5 * weights

    return np.asarray(minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x)
