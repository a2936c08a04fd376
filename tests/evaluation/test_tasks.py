"""Tasks give the right figure for encoders whose figure is known, and a reason where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation_fakes import FakeEncoder, words_vector
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT, Vectors, check_vectors, why_not
from moonshelf.evaluation.tasks import Fit, Labelling, Retrieval, says
from moonshelf.product import Product

NAMES = ["red shoe", "blue shoe", "green lamp", "white mug"]


def direct(encoder, products):
    return encoder.encode(products)


def by_title(product: Product) -> np.ndarray:
    return words_vector(product.title)


def products(titles=NAMES, prefix="p"):
    return [Product(id=f"{prefix}{i}", title=title) for i, title in enumerate(titles)]


def retrieval(queries, corpus, relevant, **more):
    keys = [p.id for p in corpus]
    clusters = [q.id for q in queries]
    return Retrieval("toy", "a → b", "text", queries, corpus, keys, relevant, clusters, TEXT, TEXT, **more)


def test_retrieval_counts_hits_by_key_and_states_corpus_and_chance():
    corpus = products()
    queries = products(["red", "lamp", "mug", "blue"], "q")
    relevant = [{"p0": 1.0}, {"p2": 1.0}, {"p1": 1.0}, {"p0": 1.0, "p1": 1.0}]  # the third is never found
    at_1, at_2 = retrieval(queries, corpus, relevant, metrics=("R@1", "R@2")).run(
        FakeEncoder(by_title), direct
    )
    assert at_1.value == 0.75
    assert (at_1.n, at_1.clusters, at_1.corpus) == (4, 4, 4)
    assert at_1.chance == pytest.approx((0.25 * 3 + 0.5) / 4)
    assert at_1.low < at_1.value < at_1.high
    assert at_2.value == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)  # one of three tied places remains


def test_grades_count_in_ndcg_and_only_the_best_in_hits():
    corpus = products()
    task = retrieval(
        products(["red shoe"], "q"),
        corpus,
        [{"p0": 1.0, "p1": 3.0}],
        metrics=("nDCG@10", "R@1"),
        hit_gain=3.0,
    )
    ndcg, hit = task.run(FakeEncoder(by_title), direct)
    assert ndcg.value == pytest.approx((1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3)))
    assert hit.value == 0.0
    assert hit.low is None  # one cluster says nothing about the spread


def test_a_long_query_list_is_scored_in_blocks(monkeypatch):
    monkeypatch.setattr("moonshelf.evaluation.statistics.metrics.SCORES", 30)
    titles = [f"word{i} thing" for i in range(10)]
    queries, corpus = products(titles, "q"), products(titles)
    relevant = [{f"p{i}": 1.0} for i in range(10)]
    [hit] = retrieval(queries, corpus, relevant, metrics=("R@1",)).run(FakeEncoder(by_title), direct)
    assert hit.value == 1.0 and hit.n == 10


def test_what_could_not_be_encoded_is_a_miss_and_not_left_out():
    corpus, queries = products(), products(prefix="q")
    relevant = [{f"p{i}": 1.0} for i in range(4)]
    lost_query = FakeEncoder(by_title, broken=frozenset({"q0"}))
    lost_item = FakeEncoder(by_title, broken=frozenset({"p1"}))
    task = retrieval(queries, corpus, relevant, metrics=("R@1",))
    for encoder in (lost_query, lost_item):
        [hit] = task.run(encoder, direct)
        assert (hit.value, hit.n) == (0.75, 4)


def test_truth_that_is_not_in_the_corpus_is_named():
    task = retrieval(products(prefix="q"), products(), [{"p0": 1.0}, {"gone": 1.0}, {}, {"p1": 1.0}])
    with pytest.raises(UserError, match="query q1 of toy"):
        task.run(FakeEncoder(by_title), direct)
    with pytest.raises(UserError, match="empty corpus"):
        retrieval(products(prefix="q"), [], [{}] * 4)


@pytest.mark.parametrize(
    ("reads", "one_space", "query", "corpus", "reason"),
    [
        (BOTH, True, TEXT, IMAGE, None),
        (TEXT, False, TEXT, IMAGE, "does not read image"),
        (BOTH, False, TEXT, IMAGE, "no common space"),
        (BOTH, False, IMAGE, BOTH, None),
        (TEXT, False, BOTH, TEXT, None),
        (IMAGE, False, IMAGE, TEXT, "does not read text"),
    ],
)
def test_who_can_compare_what(reads, one_space, query, corpus, reason):
    encoder = FakeEncoder(by_title, reads=reads, one_space=one_space)
    answer = why_not(encoder, query, corpus)
    assert answer is None if reason is None else reason in (answer or "")


def labelling(**more):
    settings = {
        "products": products(["a red one", "the blue", "red red", "no such"]),
        "truth": ["red", "blue", "blue", "mauve"],
        "labels": ["blue", "red"],
        "clusters": ["a", "b", "c", "d"],
        "reads": TEXT,
        "key": "colour",
        "commonest": "blue",
        "metrics": ("accuracy",),
        **more,
    }
    return Labelling("toy", "colour", "text", **settings)


def test_labels_by_similarity_count_unknown_truth_as_an_error():
    task = labelling(methods=("zero-shot classification",))
    [result] = task.run(FakeEncoder(by_title), direct)
    assert result.value == 0.5  # right, right, wrong, not a label
    assert (result.chance, result.constant, result.corpus) == (0.5, 0.5, 2)


def test_a_label_is_the_mean_of_its_templates():
    vectors = labelling(templates=("{}", "{} thing")).label_vectors(FakeEncoder(by_title), direct)
    red = words_vector("red").astype(float) + words_vector("red thing")
    np.testing.assert_allclose(vectors[1], red / np.linalg.norm(red), atol=1e-6)


def test_fitted_classifiers_learn_from_their_own_products_only():
    fit = Fit(
        products(["a one", "one of a", "the such", "such no", "red"], "t"),
        ["red", "red", "blue", "blue", "mauve"],
    )
    # "red red" touches no word that was fitted (mauve is no label): both classifiers are tied there
    task = labelling(fit=fit, truth=["red", "blue", "blue", "blue"])
    similar, _, neighbours, centroid = task.run(FakeEncoder(by_title), direct)
    assert centroid.value == neighbours.value == pytest.approx(3.5 / 4)
    assert "4 training products" in neighbours.note and similar.note == ""
    assert similar.value == pytest.approx(2.5 / 4)


def test_reading_needs_a_valid_rationale_and_compares_normalised_values():
    texts = iter(
        [
            "<think>category: a > b; color: RED</think>",
            "<think>colour: navy</think>",
            "broken",
            "<think>category: a</think>",
        ]
    )
    encoder = FakeEncoder(by_title, writes=True, rationale=lambda product: next(texts))
    task = labelling(truth=["red", "navy blue", "blue", "blue"], methods=("rationale",))
    [result] = task.run(encoder, direct)
    assert result.value == 0.5
    assert "50.0% of the rationales name it; 75.0% keep their format" in result.note
    [silent] = task.run(FakeEncoder(by_title), direct)
    assert silent.value is None and "no rationale" in silent.note


def test_category_levels_are_read_from_the_written_path():
    text = "<think>category: apparel > topwear > t-shirts; colour: red</think>"
    assert says(text, "category", "T-Shirts")
    assert says(text, "category", "Topwear", level=1)
    assert says("<think>category: topwear > t-shirts</think>", "category", "Tshirts") is False
    assert not says(text, "category", "Topwear")  # a higher level is not the leaf
    assert not says(text, "category", "Footwear", level=0)
    assert not says("colour red", "colour", "red")  # not in the format


def vectors(array, ok=None):
    array = np.asarray(array, np.float32)
    n = len(array)
    return Vectors(array, np.ones(n, bool) if ok is None else ok, [""] * n, np.ones(n, bool))


def test_the_gate_lets_unit_vectors_through_and_names_what_is_wrong():
    fake = FakeEncoder(by_title)
    eye = np.eye(3)
    check_vectors(fake, vectors(eye))
    check_vectors(fake, vectors([*eye, [0, 0, 0]]), allow_zero=True)
    for wrong, message in (
        ([[1, 0], [np.nan, 1]], "not finite"),
        ([[1, 0], [0, 2]], "length 2 instead of 1"),
        ([[1, 0], [0, 0]], "length 0 instead of 1"),
        ([[0, 1], [0, 1]], "one vector for 2 products"),
    ):
        with pytest.raises(UserError, match=message):
            check_vectors(fake, vectors(wrong))
    with pytest.raises(UserError, match="encode none"):
        check_vectors(fake, vectors(eye, np.zeros(3, bool)))


def test_one_label_is_nothing_to_choose():
    with pytest.raises(UserError, match="nothing to choose"):
        labelling(labels=["red"])
