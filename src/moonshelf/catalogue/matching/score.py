"""How likely two records are one article: trees over `evidence.features`, fitted on seven public sets.

`model.json` holds what `python -m research.studies.matching` fits: gradient-boosted trees in which evidence
works in one direction only, and the line (Platt, 1999) that turns their sum into a probability. The line is
fitted on predictions for sets that the trees had not seen, since a new pair of lists is such a set.

What those sets do not hold is decided by rule, above the trees: GTINs, and values that make another variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moonshelf.catalogue.matching.evidence import FEATURES, Evidence
from moonshelf.files import read_json

SURE, UNSURE, NEVER = 0.99, 0.49, 0.02  # one GTIN; another size or pack beside looks alike; two GTINs

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class Trees(NamedTuple):
    """Nodes of all trees in one row; a leaf points to itself, `roots` are the trees' first nodes."""

    feature: Places
    threshold: Floats  # a value up to it goes left
    left: Places
    right: Places
    value: Floats  # of leaves
    roots: Places
    depth: int
    start: float
    line: tuple[float, float]

    @classmethod
    def of(cls, held: Mapping[str, Any]) -> Trees:
        """Raises ValueError if they were fitted on other features than these."""
        if held["features"] != list(FEATURES):
            raise ValueError("the model was fitted on other features: fit it again")
        arrays: dict[str, Any] = {name: np.array(held[name]) for name in cls._fields[:6]}
        return cls(**arrays, depth=held["depth"], start=held["start"], line=tuple(held["line"]))

    def sums(self, rows: ArrayLike) -> Floats:
        """(n,) log-odds of (n, features), before the line."""
        found = np.asarray(rows, np.float64).reshape(-1, len(FEATURES))
        at = np.tile(self.roots, (len(found), 1))
        each = np.arange(len(found))[:, None]
        for _ in range(self.depth):
            at = np.where(found[each, self.feature[at]] <= self.threshold[at], self.left[at], self.right[at])
        return self.start + self.value[at].sum(axis=1)

    def probability(self, rows: ArrayLike) -> Floats:
        """(n,) of (n, features): the chance that each pair is one article, before the rules."""
        slope, offset = self.line
        return 1 / (1 + np.exp(-(slope * self.sums(rows) + offset)))


@cache
def trees() -> Trees:
    """The packaged model."""
    return Trees.of(read_json(Path(__file__).with_name("model.json")))


def ruled(score: float, found: Evidence) -> float:
    """The score under the rules: a GTIN that both have, or two that differ, and another size or pack."""
    gtin = found.identifiers.get("gtin")
    if gtin == "different":
        return min(score, NEVER)
    if found.conflicts or found.differ.keys() & {"size", "capacity"}:
        return min(score, UNSURE)
    return SURE + (1 - SURE) * score if gtin == "same" else score  # titles still choose among several
