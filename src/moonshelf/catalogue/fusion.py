"""How the nearest vectors and the best full-text matches become one list, and how much vectors count in it.

A row's score is (1 - w) · words + w · vectors: BM25 by the best of the list, cosines from 0, the last of
the list, to 1, the first. This convex combination (Bruch, Gai and Ingber, 2023) lets what words are sure of
stay ahead of a list of vectors that is hardly better than chance; ranks do not.

`measure` finds w without labels. It asks a few words of a product's title, leaves that product out, and
judges what is found by the words of its record that were not asked: its other words, category, attributes.
So neither list is asked for what it is judged by. Simulated queries of this kind are old (Azzopardi et al.,
2007) and lean either way by a catalogue's titles, so the weight leaves SAFE only as far as the measurement
says beyond its standard error. Where vectors do no better than those of another query they weigh 0, and only
order what words leave even.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.errors import UserError
from moonshelf.model.encoders.base import asking
from moonshelf.product import Product

if TYPE_CHECKING:
    from moonshelf.catalogue.store import Store
    from moonshelf.catalogue.vector_index import VectorIndex
    from moonshelf.model.encoders.base import Encoder

DEPTH = 100  # entries of each list that take part in the fusion
SAFE = 0.2  # weight of the vectors where nothing was measured
PICTURED = 0.5  # their least weight where the query has a picture, which words do not see
LITTLE = 0.5  # of the words' agreement: vectors that reach less know little
MEASURED, SET = "measured", "as it was set"
MIN_ROWS = 100
_QUERIES, _FEWEST, _DRAWN = 200, 64, 2_000
_SECONDS, _BATCH = 10.0, 32  # of the model; `_FEWEST` are asked even by a slow one
GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_WORD = re.compile(r"[^\W\d_]{2,}")

Ranked = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Fusion:
    """The vectors' weight in fused lists, 0 to 1, and where it is from. Agreements, 0 to 1, are means."""

    weight: float
    why: str  # MEASURED, SET, or why there is no measurement
    queries: int = 0
    words: float = 0.0
    vectors: float = 0.0
    fused: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, record: Any) -> Fusion | None:
        """What an index says of itself; None of an index that does not say it, or nothing usable."""
        try:
            found = cls(**(record or {})["fusion"])
            return found if 0 <= found.weight <= 1 else None
        except (KeyError, TypeError):
            return None

    @property
    def knows_little(self) -> bool:
        return self.why == MEASURED and self.weight <= SAFE and self.vectors < LITTLE * self.words

    def __str__(self) -> str:
        weights = f"vectors weigh {self.weight:g} in search, words {1 - self.weight:g}"
        if self.why != MEASURED:
            return f"{weights} ({self.why})."
        found = (
            f"agreement {self.words:.2f} by words, {self.vectors:.2f} by vectors, {self.fused:.2f} by both"
        )
        little = "the vectors know little of these products: search goes by words; "
        return f"{little if self.knows_little else ''}{weights} ({self.queries} queries: {found})."


def fuse(
    by_vector: Ranked, by_text: Ranked, weight: float, named: Collection[int] = ()
) -> list[tuple[int, float]]:
    """(key, score) of all keys of two ranked lists, best first; ties in order of the vectors, then of key.

    Keys that the query has `named`, by an identifier, come before all others, in the lists or not.
    """
    known = set(named)
    best = max((score for key, score in by_text if key not in known), default=0.0)
    words = {key: score / best for key, score in by_text if best > 0} | dict.fromkeys(named, 1.0)
    last = by_vector[min(len(by_vector), DEPTH) - 1][1] if by_vector else 0.0
    span = by_vector[0][1] - last if by_vector else 0.0
    vectors = {key: max(0.0, (score - last) / span) if span > 0 else 1.0 for key, score in by_vector}
    places = {key: place for place, (key, _) in enumerate(by_vector)}
    scores = {
        key: (1 - weight) * words.get(key, 0.0) + weight * vectors.get(key, 0.0) + 2.0 * (key in known)
        for key in {**words, **vectors}
    }
    return sorted(scores.items(), key=lambda hit: (-hit[1], places.get(hit[0], len(places)), hit[0]))


def measure(store: Store, index: VectorIndex, load: Callable[[], Encoder]) -> Fusion:
    """The weight for a catalogue, by queries drawn from its titles; SAFE, with the reason, where there are
    too few. `load` gives the model, for vectors of queries: those stored are of products."""
    rng, keys = np.random.default_rng(0), index.keys
    if len(keys) < MIN_ROWS:
        return Fusion(SAFE, f"not measured, as there are fewer than {MIN_ROWS} products")
    drawn = rng.choice(keys, min(_DRAWN, len(keys)), replace=False).tolist()
    records = _records(store, drawn)
    asked = [query for key in drawn if key in records and (query := _query(key, records[key], rng))][
        :_QUERIES
    ]
    if len(asked) < _FEWEST:
        return Fusion(SAFE, "not measured, as too few titles have four words")
    try:
        vectors = _vectors(load(), [text for _, text in asked])
    except (UserError, OSError) as error:
        return Fusion(SAFE, f"not measured, as the model cannot be had: {str(error).rstrip('.')}")
    if not np.isfinite(vectors).all():
        return Fusion(SAFE, "not measured, as the model gave a vector that is not finite")
    asked = asked[: len(vectors)]
    by_text = [store.full_text(text, DEPTH + 1) or [] for _, text in asked]
    near, found = (
        [
            [hit for hit in ranked if hit[0] != key][:DEPTH]
            for (key, _), ranked in zip(asked, lists, strict=True)
        ]
        for lists in (index.search(vectors, DEPTH + 1), by_text)
    )
    another = [*near[1:], near[0]]  # the vectors' list of another query
    orders = [
        [[key for key, _ in fuse(ours, words, weight)[:10]] for weight in GRID]
        + [[key for key, _ in theirs[:10]]]
        for ours, words, theirs in zip(near, found, another, strict=True)
    ]
    records |= _records(store, {key for some in orders for order in some for key in order} - records.keys())
    rarity = _rarity([records[key] for key in drawn if key in records])
    agreed = np.array(
        [
            _agreement(records[key][1] - set(text.split()), some, records, rarity)
            for (key, text), some in zip(asked, orders, strict=True)
        ]
    )
    return _choose(agreed[:, :-1], agreed[:, -1])


def _choose(agreed: np.ndarray, chance: np.ndarray) -> Fusion:
    """By agreements (queries, weights) and those of vectors of other queries (queries,)."""
    mean = agreed.mean(axis=0)
    place = 0
    if _error(above := agreed[:, -1] - chance) * 2 < above.mean():
        best = int(mean.argmax())
        near = [i for i in range(len(GRID)) if mean[best] - mean[i] <= _error(agreed[:, best] - agreed[:, i])]
        place = min(near, key=lambda i: abs(GRID[i] - SAFE))
    words, vectors, fused = (round(float(mean[i]), 4) for i in (0, -1, place))
    return Fusion(GRID[place], MEASURED, len(agreed), words, vectors, fused)


def _error(differences: np.ndarray) -> float:
    return float(differences.std() / math.sqrt(len(differences)))


def _records(store: Store, keys: Collection[int]) -> dict[int, tuple[list[str], set[str]]]:
    """The words of the titles, in order, and of the whole records."""
    found = {}
    for row in store.rows(keys, ["key", "title", "category", "attributes"]).to_pylist():
        more = " ".join([row["category"] or "", *json.loads(row["attributes"] or "{}").values()])
        title = _words(row["title"] or "")
        found[row["key"]] = title, {*title, *_words(more)}
    return found


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(_WORD.findall(text.lower())))


def _query(key: int, record: tuple[list[str], set[str]], rng: np.random.Generator) -> tuple[int, str] | None:
    """One to three words of a title, at most half of it; None of titles below four words."""
    title = record[0]
    if len(title) < 4:
        return None
    count = min(int(rng.choice((1, 2, 2, 3))), len(title) // 2)
    return key, " ".join(title[i] for i in sorted(rng.choice(len(title), count, replace=False)))


def _vectors(model: Encoder, texts: list[str]) -> np.ndarray:
    """(n, dim) of the first texts, all that the model has time for."""
    parts: list[np.ndarray] = []
    started = time.perf_counter()
    for start in range(0, len(texts), _BATCH):
        if start >= _FEWEST and time.perf_counter() - started > _SECONDS:
            break
        queries = [Product(id=str(i), title=text) for i, text in enumerate(texts[start : start + _BATCH])]
        parts.append(np.asarray(asking(model).encode(queries, reason="off").vectors, np.float32))
    return np.concatenate(parts)


def _rarity(records: list[tuple[list[str], set[str]]]) -> Callable[[str], float]:
    counts = Counter(word for _, words in records for word in words)
    return lambda word: math.log(1 + len(records) / max(1, counts[word]))


def _agreement(
    wanted: set[str],
    orders: list[list[int]],
    records: dict[int, tuple[list[str], set[str]]],
    rarity: Callable[[str], float],
) -> list[float]:
    """nDCG@10 of each order, where a row's gain is its share of the wanted words, by their rarity."""
    weights = {word: rarity(word) for word in wanted}
    gains = {
        key: sum(weights[word] for word in wanted & records[key][1]) if key in records else 0.0
        for order in orders
        for key in order
    }
    ideal = _gained(sorted(gains.values(), reverse=True)[:10])
    return [_gained([gains[key] for key in order]) / ideal if ideal else 0.0 for order in orders]


def _gained(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
