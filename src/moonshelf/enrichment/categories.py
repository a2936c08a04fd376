"""The category of a product: candidates by words and vectors, the best by the model's likelihood.

    p(c) = softmax over candidates of   a log p(name of c | product) + b words(c) + d cosine(c)

`words` is BM25 over the categories' own names, divided by the product's best, less a little for each word of
the categories above that the product does not have: of equal names the plainest, no `Baby Clothing > Shirts`
where nobody spoke of babies. `cosine` is that of product and name. Names that the title uses of another
thing (`cotton` of a shirt) are no candidates. What is suggested is the deepest category that holds, with all
below it, at least the share that is asked for; where not even a root does, nothing is. So a doubt between two
sandals still gives `Shoes`.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from moonshelf.catalogue.overview import leaf_form
from moonshelf.enrichment.likelihood import log_likelihoods
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.files import write_atomic
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product

CANDIDATES, LEAST = 20, 0.5
WEIGHTS = np.array([0.19, 1.7, 10.0])  # a, b, d: `research.studies.enrichment --fit`, on training splits
# of the second starter; those of the fourth (0.10, 4.6, 12.2) are no better on both validation splits
_RANKS = 20  # reciprocal ranks of words and vectors are 1 / (20 + rank); ours
_CLEARLY, _FOREIGN = 1.5, 10.0  # when words are of another language, and what they count then; ours
_UNSAID = 0.06  # a word: enough to tell equal names apart; 0.15 was no better on both validation splits
_PHRASES = re.compile(r"[^\w\s'&-]|\b(?:and|by|for|from|in|of|on|to|with)\b")
_PIECES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class Suggestion(NamedTuple):
    """A category, the probability of it and all below, and the likeliest single candidates."""

    id: str
    confidence: float
    candidates: list[tuple[str, float]]


class Categoriser:
    """Suggests categories of one taxonomy; its names are embedded once for a model and kept in `cache`.

    The model reads the names of `taxonomy`; words are looked up in those of `also` too: the same ids in other
    languages.
    """

    def __init__(
        self, model: MoonModel, taxonomy: Taxonomy, *, also: Sequence[Taxonomy] = (), k: int = CANDIDATES,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.model, self.taxonomy, self.k, self.weights = model, taxonomy, k, WEIGHTS
        self.ids = list(taxonomy.paths)
        self.words = [Words([one.paths[id][-1] for id in self.ids]) for one in (taxonomy, *also)]
        self.above = [
            {word for step in path[:-1] for word in _pieces(step)} - set(_pieces(path[-1]))
            for path in taxonomy.paths.values()
        ]
        self.named = defaultdict[tuple[str, ...], list[int]](list)  # places of a name's words
        for place, id in enumerate(self.ids):
            self.named[tuple(_pieces(taxonomy.paths[id][-1]))].append(place)
        stuff = (value for key in ("color", "fabric", "material") for value in taxonomy.values(key))
        self.stuff = {tuple(_pieces(value)) for value in stuff}
        self.vectors = _name_vectors(model, [taxonomy.paths[id][-1] for id in self.ids], cache)

    def evidence(self, products: Sequence[Product]) -> list[tuple[list[str], np.ndarray]]:
        """For each product the ids of its candidates and (k, 3) float64: log-likelihood, words, cosine."""
        encoded = self.model.encode(products, on_error="report")
        cosine = np.zeros((len(products), len(self.ids)), np.float32)
        cosine[encoded.row_index] = encoded.vectors @ self.vectors.T
        spoken = [self.model.prompt.text_of(one) for one in products]
        words = np.stack([self._words(text) for text in spoken])
        fused = sum(
            1 / (_RANKS + (-one).argsort(1, kind="stable").argsort(1)) * (one != 0) for one in (words, cosine)
        )
        for n, product in enumerate(products):
            fused[n, self._modifiers(product.title or "")] = -1  # no candidates
        order = np.argsort(-fused, 1, kind="stable")[:, : self.k]
        places = [row[fused[n, row] >= 0] for n, row in enumerate(order)]
        for n, (row, said) in enumerate(zip(places, map(set, map(_pieces, spoken)), strict=True)):
            words[n, row] -= _UNSAID * np.array([len(self.above[at] - said) for at in row])
        texts = [[self.taxonomy.paths[self.ids[at]][-1].lower() for at in row] for row in places]
        likely = log_likelihoods(self.model, products, texts)
        return [
            ([self.ids[at] for at in row[: len(seen)]], np.stack([seen, words[n, row], cosine[n, row]], 1))
            if len(seen) else ([], np.zeros((0, 3)))
            for n, (row, seen) in enumerate(zip(places, likely, strict=True))
        ]  # fmt: skip

    def _words(self, text: str) -> np.ndarray:
        """BM25 of each name, the best 1; more where the text speaks a language that the model does not."""
        own, *others = (one.scores(text) for one in self.words)
        other = max(others, key=lambda one: float(one.max()), default=own)
        foreign = other.max() > _CLEARLY * own.max()
        return (_FOREIGN * other if foreign else own) / max(1e-9, float((other if foreign else own).max()))

    def _modifiers(self, title: str) -> list[int]:
        """Places of names that only say of what kind the thing is: of `Silver water bottle` water, silver.

        Such is a name right before another or at its start (an English compound ends with the thing),
        and one that is a colour or material too, where a phrase has any other.
        """
        heads, others = set[int](), set[int]()
        for phrase in map(_pieces, _PHRASES.split(title.casefold())):
            ends = range(1, len(phrase) + 1)
            spans = [
                (i, j) for j in ends for i in range(max(0, j - 5), j) if tuple(phrase[i:j]) in self.named
            ]
            nouns = [(i, j) for i, j in spans if tuple(phrase[i:j]) not in self.stuff]
            for i, j in spans:
                name = tuple(phrase[i:j])
                kind = bool(nouns) if name in self.stuff else any(i <= k <= j < m for k, m in nouns)
                (others if kind else heads).update(self.named[name])
        return list(others - heads)

    def suggest(self, products: Sequence[Product], least: float = LEAST) -> list[Suggestion | None]:
        """One suggestion a product, None where none is likely enough or the product cannot be read."""
        return [self.decide(ids, seen, least) for ids, seen in self.evidence(products)]

    def decide(self, ids: list[str], seen: np.ndarray, least: float = LEAST) -> Suggestion | None:
        """The suggestion that evidence leads to: see the module."""
        share = dict(zip(ids, softmax(seen @ self.weights).tolist() if ids else (), strict=True))
        held = defaultdict[str, float](float)
        for id, part in share.items():
            for parent in self.taxonomy.parents(id):
                held[parent] += part
        best = None
        while True:  # down from the root, where most of the probability is
            below = [id for id in held if self.taxonomy.parents(id)[:-1][-1:] == ([best] if best else [])]
            likeliest = max(below, key=lambda id: held[id], default=None)
            if likeliest is None or held[likeliest] < max(least, share.get(best or "", 0.0)):
                break
            best = likeliest
        near = sorted(share.items(), key=lambda one: -one[1])[:5]
        return Suggestion(best, min(held[best], 1.0), near) if best else None


class Words:
    """BM25 over short texts, without case and plural; Japanese and Chinese by letters.

    >>> Words(["Running Shoes", "Table Lamps"]).scores("a red lamp").argmax()
    np.int64(1)
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        counted = [Counter(_pieces(text)) for text in texts]
        lengths = np.array([one.total() for one in counted], float)
        found = defaultdict[str, list[tuple[int, int]]](list)
        for place, one in enumerate(counted):
            for word, times in one.items():
                found[word].append((place, times))
        self.n, norm = len(texts), k1 * (1 - b + b * lengths / max(1.0, lengths.mean()))
        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, pairs in found.items():
            places, times = np.array(pairs).T
            idf = math.log1p((self.n - len(pairs) + 0.5) / (len(pairs) + 0.5))
            self.weights[word] = places, idf * times * (k1 + 1) / (times + norm[places])

    def scores(self, text: str) -> np.ndarray:
        """(n,) float64: the score of each text."""
        found = np.zeros(self.n)
        for word in set(_pieces(text)) & self.weights.keys():
            places, weights = self.weights[word]
            found[places] += weights
        return found


def _pieces(text: str) -> list[str]:
    return _PIECES.findall(leaf_form(text))


def _name_vectors(model: MoonModel, names: Sequence[str], cache: Path | None) -> np.ndarray:
    """(n, dim) float32 of names, from the cache where this model has embedded them before."""
    digest = hashlib.sha256("\n".join([model.fingerprint, *names]).encode()).hexdigest()[:24]
    file = cache / f"names-{digest}.npy" if cache else None
    if file and file.is_file():
        return np.load(file, allow_pickle=False)
    place = {name: n for n, name in enumerate(dict.fromkeys(names))}
    encoded = model.encode([Product(id=str(n), title=name) for name, n in place.items()])
    vectors = encoded.vectors[[place[name] for name in names]]
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, vectors)
        write_atomic(file, content.getvalue())
    return vectors
