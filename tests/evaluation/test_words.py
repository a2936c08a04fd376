"""BM25 as vectors: its inner products rank exactly as BM25 does."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.evaluation.contract import TEXT
from moonshelf.evaluation.encoders.lexical import K1, B, Bm25, TfIdf, fit_words
from moonshelf.evaluation.tasks import Retrieval
from moonshelf.product import Product

pytest.importorskip("sklearn")

TITLES = [
    "red leather shoe for men", "red red shoe", "blue cotton shirt, size 5", "lamp",
    "oak table and oak chair", "leather belt", "shirt of blue linen with a red collar and a pocket",
]  # fmt: skip
QUERIES = ["red shoe", "leather", "blue shirt size 5", "oak oak", "red zeppelin", "zeppelin"]


def products(texts):
    return [Product(id=f"p{i}", title=text) for i, text in enumerate(texts)]


def vectors(encoder, texts):
    return encoder.encode(products(texts)).vectors.astype(float)


def by_definition(query, title, texts):
    """BM25 (Lucene) of one pair, counted out in words."""
    texts = [text.lower().replace(",", "").split() for text in texts]
    length = np.mean([len(text) for text in texts])
    words, total = title.lower().replace(",", "").split(), 0.0
    for word, times in Counter(query.split()).items():
        n = sum(word in text for text in texts)
        if n:
            idf = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            tf = words.count(word)
            total += times * idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * len(words) / length))
    return total


def test_scores_are_bm25_times_a_constant_of_the_query():
    encoder = Bm25()
    encoder.fit(TITLES)
    scores = vectors(encoder.queries, QUERIES) @ vectors(encoder, TITLES).T
    wanted = np.array([[by_definition(query, title, TITLES) for title in TITLES] for query in QUERIES])
    for got, want in zip(scores[:-1], wanted[:-1], strict=True):
        np.testing.assert_allclose(got / got.max(), want / want.max(), atol=1e-6)
    assert not scores[-1].any()  # a word that nobody has


def test_the_ranking_is_that_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    encoder = Bm25()
    encoder.fit(TITLES)
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    split = [text.lower().replace(",", "").split() for text in TITLES]
    index.index(split, show_progress=False)
    ours = vectors(encoder.queries, QUERIES[:-1]) @ vectors(encoder, TITLES).T
    for query, got in zip(QUERIES, ours, strict=False):
        known = [word for word in query.split() if any(word in text for text in split)]
        want = index.get_scores(known)
        np.testing.assert_allclose(got / got.max(), want / want.max(), atol=1e-5)


def test_both_sides_pass_the_gate_for_unit_vectors():
    encoder = Bm25()
    encoder.fit(TITLES)
    # the longest text that a prompt lets through, of the rarest words
    hard = [" ".join(f"{c}{d}" for c in "abcdefghijklm" for d in "0123456789"), "lamp " * 100, "?"]
    encoder.fit([*TITLES, hard[0]])
    for side, texts in ((encoder, [*TITLES, *hard]), (encoder.queries, QUERIES[:-1])):
        np.testing.assert_allclose(np.linalg.norm(vectors(side, texts), axis=1), 1, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab cd", min_size=1, max_size=30), min_size=2, max_size=8))
def test_any_texts_rank_as_by_definition(texts):
    texts = [text for text in texts if text.split()]
    if not texts:
        return
    encoder = Bm25()
    encoder.fit(texts)
    query = texts[0]
    got = vectors(encoder.queries, [query])[0] @ vectors(encoder, texts).T
    want = np.array([by_definition(query, title, texts) for title in texts])
    np.testing.assert_allclose(got / got.max(), want / want.max(), atol=1e-5)


def test_the_collection_that_is_searched_gives_the_statistics():
    corpus = products(TITLES)
    task = Retrieval(
        "d", "t", "text", corpus[:1], corpus, [p.id for p in corpus], [{"p0": 1.0}], ["c"], TEXT, TEXT
    )
    data = SimpleNamespace(tasks=[task], texts=["other words"])
    fitted, wanted = Bm25(), Bm25()
    fit_words(fitted, data)
    wanted.fit(TITLES)
    assert fitted.fingerprint == wanted.fingerprint
    assert fitted.queries.fingerprint != fitted.fingerprint
    counted = TfIdf()
    fit_words(counted, data)
    assert "other" in counted._words.vocabulary_
    fit_words(fitted, SimpleNamespace(tasks=[], texts=["other words"]))
    assert fitted.fingerprint != wanted.fingerprint
