"""Baselines that count words: TF-IDF and BM25, after the statistics of a data set's texts.

TF-IDF takes the data set's unlabelled text (its training titles, or the corpus where there is no training
split). BM25 is defined by the collection that is searched, so it takes the texts of all corpora, and the
former only where no corpus shows text. BM25 here is what Lucene computes (k1 1.2, b 0.75), on lower-case
words without stop words or stems, as an inner product of two different vectors: a document holds its
weights, a query its counts. Both are of unit length, so that the same search and the same gate take them:
a document is filled up to length 1 in one more dimension, which is 0 in every query. So a score is BM25
divided by a constant of the query, and the ranking is exactly that of BM25.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.evaluation.contract import TEXT, Vectors
from moonshelf.evaluation.tasks.retrieval import Retrieval
from moonshelf.model.encoders.stock import need
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from moonshelf.evaluation.data.dataset import Dataset

K1, B = 1.2, 0.75
MAX_TFIDF, MAX_WORDS = 8192, 32768  # the commonest; rarer ones are no columns, so their matches do not count


class CountedWords:
    """What both share: words of a collection, counted by scikit-learn. `fit` comes before `encode`."""

    name: str
    reads, one_space, writes, cheap = TEXT, False, False, True

    def __init__(self, prompt: PromptSpec | None = None) -> None:
        need(self.name, "sklearn")
        self.prompt = prompt or PromptSpec()
        self.fingerprint = ""
        self._words: Any = None

    def texts_of(self, products: Sequence[Product]) -> list[str]:
        return [self.prompt.text_of(product) for product in products]

    def weights(self, texts: Sequence[str]) -> np.ndarray:
        """(n, words): what each text holds of each known word."""
        if self._words is None:
            raise ValueError("fit the words of a collection before encoding")
        return self._words.transform(texts).toarray()

    def _name(self, settings: object, texts: Sequence[str]) -> str:
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return f"{self.name}|scikit-learn {version('scikit-learn')}|{settings}|{digest}"


class TfIdf(CountedWords):
    """Words weighted by TF-IDF (scikit-learn, sublinear counts); a text without known words is zero."""

    name = "tfidf"

    def fit(self, texts: Sequence[str]) -> None:
        """Document frequencies of `texts`; called once a data set."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(sublinear_tf=True, max_features=MAX_TFIDF, dtype=np.float32)
        self._words.fit(texts)
        self.fingerprint = self._name(MAX_TFIDF, texts)

    def encode(self, products: Sequence[Product]) -> Vectors:
        return Vectors(self.weights(self.texts_of(products)).astype(np.float32))


class Bm25(CountedWords):
    """BM25 over the words of a collection. `encode` is for documents, `queries.encode` for queries."""

    name = "bm25"

    def __init__(self, prompt: PromptSpec | None = None) -> None:
        super().__init__(prompt)
        self.queries = Bm25Queries(self)

    def fit(self, texts: Sequence[str]) -> None:
        """Document frequencies and the mean length of `texts`; called once a data set."""
        from sklearn.feature_extraction.text import CountVectorizer

        self._words = CountVectorizer(token_pattern=r"(?u)\b\w+\b", max_features=MAX_WORDS, dtype=np.float64)
        counts = self._words.fit_transform(texts)
        frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
        self._idf = np.log1p((counts.shape[0] - frequency + 0.5) / (frequency + 0.5))
        self._length = max(1.0, float(self._n_words(texts).mean()))
        # No text that the prompt lets through is longer: a word and a space take two characters.
        most = self.prompt.max_text_chars // 2 + 1
        self._scale = math.sqrt(most) * (K1 + 1) * float(self._idf.max())
        self.fingerprint = self._name(f"{MAX_WORDS}, k1 {K1}, b {B}", texts)

    def encode(self, products: Sequence[Product]) -> Vectors:
        texts = self.texts_of(products)
        counts, length = self.weights(texts), self._n_words(texts)[:, None]
        weights = self._idf * counts * (K1 + 1) / (counts + K1 * (1 - B + B * length / self._length))
        vectors = np.zeros((len(texts), weights.shape[1] + 1))
        vectors[:, :-1] = weights / self._scale
        vectors[:, -1] = np.sqrt(np.maximum(0.0, 1.0 - (vectors**2).sum(axis=1)))
        return Vectors(vectors.astype(np.float32))

    def _n_words(self, texts: Sequence[str]) -> np.ndarray:
        words = self._words.build_analyzer()
        return np.array([len(words(text)) for text in texts])


class Bm25Queries:
    """The query side of BM25: counts of words as a unit vector; a text without known words is zero."""

    name, reads, one_space, writes, cheap = "bm25", TEXT, False, False, True

    def __init__(self, documents: Bm25) -> None:
        self.documents = documents

    @property
    def fingerprint(self) -> str:
        return self.documents.fingerprint + "|query"

    def encode(self, products: Sequence[Product]) -> Vectors:
        counts = self.documents.weights(self.documents.texts_of(products))
        norm = np.linalg.norm(counts, axis=1, keepdims=True)
        unit = counts / np.where(norm > 0, norm, 1.0)
        return Vectors(np.pad(unit, ((0, 0), (0, 1))).astype(np.float32))


def fit_words(encoder: object, dataset: Dataset) -> None:
    """Give an encoder that counts words the texts of a data set; any other is left as it is."""
    if isinstance(encoder, Bm25):
        corpora = [t.corpus for t in dataset.tasks if isinstance(t, Retrieval) and "text" in t.corpus_reads]
        texts = dict.fromkeys(encoder.prompt.text_of(product) for one in corpora for product in one)
        collection = [text for text in texts if text]
        encoder.fit(collection or dataset.texts or ["product"])
    elif isinstance(encoder, TfIdf):
        encoder.fit(dataset.texts or ["product"])
