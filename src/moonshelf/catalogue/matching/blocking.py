"""Which pairs are compared at all: those that share an identifier, rare words, or are near as vectors.

Everything is a position in a list of items; for two lists, the second follows the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from moonshelf.catalogue.matching.evidence import Item, Rarity, jaccard
from moonshelf.catalogue.vector_index import VectorIndex
from moonshelf.identifiers import is_placeholder

TITLE_UNLIKE = 0.15  # Jaccard of words
_FEW = 3  # rows that share one article's identifier without a word
_LARGEST_BUCKET = 100  # rows sharing an identifier beyond which it is a mistake of the feed, not evidence
_BLOCK = 1024  # rows that are looked up at a time
_COMMON = 50  # records, or 2 % of them, that a word may be in and still lead from one to another


def by_identifiers(items: list[Item]) -> tuple[set[tuple[int, int]], list[str]]:
    """Pairs of positions that share a GTIN, a brand and part number, or a group.

    An identifier of very many rows, or one article's identifier on rows whose titles have nothing in common,
    is a mistake of the feed: it is erased from `items`.
    """
    buckets: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        if item.gtin:
            buckets["gtin", item.gtin].append(i)
        if item.brand and item.mpn:
            buckets["brand and mpn", item.brand, item.mpn].append(i)
        if item.group:
            buckets["group_id", item.group].append(i)
    candidates: set[tuple[int, int]] = set()
    notes = []
    for (name, *value), places in buckets.items():
        many = len(places) > _LARGEST_BUCKET
        unlike = name != "group_id" and len(places) > _FEW and not many and _unlike(items, places)
        shared = f"{len(places)} products share the {name} {' '.join(value)!r}"
        if many or unlike:
            erased: dict[str, Any] = {name.removeprefix("brand and ").removesuffix("_id"): None}
            for i in places:
                items[i] = replace(items[i], **erased)
            why = "too many to be evidence" if many else "their titles have nothing in common"
            notes.append(f"{shared}: {why}, so it was not used")
            continue
        if name != "group_id" and len(places) > _FEW:
            notes.append(f"{shared}: is it one article?")
        candidates.update(combinations(places, 2))
    return candidates, notes


def _unlike(items: list[Item], places: list[int]) -> bool:
    """Whether titles of these rows share hardly a word, two by two."""
    words = [items[i].words for i in places if items[i].words]
    overlaps = [jaccard(a, b) for a, b in combinations(words, 2)]
    return bool(overlaps) and sum(overlaps) / len(overlaps) < TITLE_UNLIKE


def placeholders(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Notes on values that several rows have where an identifier is missing."""
    columns = ("gtin", "mpn", "group_id")
    found = Counter(
        (name, row[name]) for row in rows for name in columns if row[name] and is_placeholder(row[name])
    )
    return [
        f"{count} products share the {name} {value!r}: it says that there is none, so it was not used"
        for (name, value), count in found.items()
        if count > 1
    ]


def by_words(
    left: Sequence[Item], right: Sequence[Item], rarity: Rarity, k: int
) -> Iterator[tuple[int, int]]:
    """(position in `left`, position in `right`) of the k records with the most rare words in common with each
    of `left`, by the cosine of their rarities; words that are everywhere do not count."""
    from scipy.sparse import csr_matrix

    most = max(_COMMON, (len(left) + len(right)) // 50)
    columns = {word: i for i, word in enumerate(word for word, n in rarity.counts.items() if 1 < n <= most)}

    def matrix(items: Sequence[Item]) -> csr_matrix:
        rows, places, found = [], [], []
        for i, item in enumerate(items):
            known = [word for word in item.words | item.codes if word in columns]
            weights = np.array([rarity(word) for word in known])
            rows += [i] * len(known)
            places += [columns[word] for word in known]
            found += (weights / max(1e-9, float(np.linalg.norm(weights)))).tolist()
        return csr_matrix((found, (rows, places)), (len(items), len(columns)), dtype=np.float32)

    ours, theirs = matrix(left), matrix(right).T.tocsc()
    for start in range(0, len(left), _BLOCK):
        scores = (ours[start : start + _BLOCK] @ theirs).tocsr()
        for i in range(scores.shape[0]):
            part = slice(scores.indptr[i], scores.indptr[i + 1])
            best = np.argsort(-scores.data[part], kind="stable")[:k]
            yield from ((start + i, int(j)) for j in scores.indices[part][best])


def by_vectors(
    vectors: np.ndarray, index: VectorIndex, place: Mapping[int, int], k: int, least: float
) -> Iterator[tuple[int, int]]:
    """(row of `vectors` (n, dim), position of the key in `place`) of the k nearest of `index`, of a cosine of
    at least `least`; keys that `place` does not know are left out."""
    for start in range(0, len(vectors), _BLOCK):
        for i, near in enumerate(index.search(vectors[start : start + _BLOCK], k), start):
            yield from ((i, place[key]) for key, score in near if key in place and score >= least)
