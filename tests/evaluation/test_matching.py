"""Same-product matching, sets of attributes, and what the tasks keep: figures that are known beforehand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from evaluation_fakes import FakeEncoder, unit, words_vector
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import IMAGE, TEXT
from moonshelf.evaluation.record import Predictions
from moonshelf.evaluation.statistics import scoring
from moonshelf.evaluation.tasks import AttributeSets, Labelling, Matching, Retrieval, same_product_pairs
from moonshelf.evaluation.tasks.matching import second_half
from moonshelf.product import Product


def direct(encoder, products):
    return encoder.encode(products)


def by_title(product: Product) -> np.ndarray:
    return words_vector(product.title)


def by_metric(results):
    return {r.metric: r for r in results}


# ---- matching --------------------------------------------------------------------------------------


def matching(titles, pairs, same, clusters=None):
    products = [Product(id=f"p{i}", title=title) for i, title in enumerate(titles)]
    clusters = clusters or [f"c{i}" for i in range(len(pairs))]
    return Matching("toy", "product matching", "text", products, pairs, same, clusters, TEXT)


def test_pairs_are_judged_on_the_half_that_did_not_choose_the_threshold():
    groups = [f"g{i // 2}" for i in range(80)]
    titles = [f"thing{i // 2} word{i}" for i in range(80)]
    pairs, same, clusters = same_product_pairs(groups, ["all"] * 80, each=3)
    task = matching(titles, pairs, same, clusters)
    found = by_metric(task.run(FakeEncoder(by_title), direct))
    assert found["AP"].value == found["ROC-AUC"].value == found["F1"].value == found["accuracy"].value == 1
    assert found["AP"].chance == pytest.approx(np.mean(same)) and found["ROC-AUC"].chance == 0.5
    held_out = sum(second_half(cluster) for cluster in clusters)
    assert found["F1"].n == held_out < found["AP"].n == len(pairs) == found["AP"].corpus
    assert "thresholds chosen on the other half: F1" in found["F1"].note
    [kept] = task.predict(FakeEncoder(by_title), direct)
    low, high = (
        [s for s, t in zip(kept.columns["score"], kept.columns["same"], strict=True) if t is kind]
        for kind in (False, True)
    )
    threshold = float(found["F1"].note.split("F1 ")[1].split(",")[0])
    assert max(low) < threshold < min(high)


def test_a_matcher_of_nothing_is_at_chance():
    rng = np.random.default_rng(0)
    groups = [f"g{i // 2}" for i in range(200)]
    pairs, same, clusters = same_product_pairs(groups, ["all"] * 200, each=2)
    task = matching([f"t{i}" for i in range(200)], pairs, same, clusters)
    found = by_metric(task.run(FakeEncoder(lambda p: unit(rng.normal(size=8))), direct))
    assert found["ROC-AUC"].at_chance and found["ROC-AUC"].low < 0.5 < found["ROC-AUC"].high
    assert found["AP"].at_chance


def test_a_half_with_one_class_gives_no_threshold_and_says_so():
    names = [f"c{i}" for i in range(40)]
    first, second = (next(n for n in names if second_half(n) is half) for half in (False, True))
    task = matching(["a b", "a b", "c", "d"], [(0, 1), (2, 3)], [True, False], [first, second])
    found = by_metric(task.run(FakeEncoder(by_title), direct))
    assert found["AP"].value == 1 and found["F1"].value is None and "one class only" in found["F1"].note


def test_a_pair_that_cannot_be_encoded_scores_lowest():
    task = matching(["a", "a", "b", "c"], [(0, 1), (2, 3), (0, 2)], [True, False, False])
    [kept] = task.predict(FakeEncoder(by_title, broken=frozenset({"p1"})), direct)
    assert kept.columns["score"][0] == -1 and kept.columns["ok"] == [False, True, True]
    [result, *_] = matching(["a", "b"], [(0, 1), (1, 0)], [True, False]).run(
        FakeEncoder(by_title, reads=IMAGE), direct
    )
    assert result.value is None and "does not read text" in result.note


@pytest.mark.parametrize(
    ("pairs", "same", "clusters", "message"),
    [
        ([], [], [], "it has 0 pairs"),
        ([(0, 1)], [True], ["a"], "toy product matching needs pairs of one product and of two"),
        ([(0, 1), (1, 0)], [False, False], ["a", "b"], "of one product and of two"),
        ([(0, 1), (1, 0)], [False], ["a", "b"], "2 pairs, 1 truths, 2 clusters"),
    ],
)
def test_pairs_that_tell_nothing_are_refused(pairs, same, clusters, message):
    with pytest.raises(UserError, match=message):
        Matching(
            "toy",
            "product matching",
            "text",
            [Product(id=x, title=x) for x in "ab"],
            pairs,
            same,
            clusters,
            TEXT,
        )


def test_drawn_pairs_are_hard_where_they_can_be_and_the_same_twice():
    groups = ["a", "a", "a", "a", "b", "b", "c", "d"]
    kinds = ["shoe", "shoe", "shoe", "shoe", "shoe", "shoe", "shoe", "lamp"]
    pairs, same, clusters = drawn = same_product_pairs(groups, kinds, each=2, most=3)
    assert drawn == same_product_pairs(groups, kinds, each=2, most=3)
    assert sum(same) == 3 + 1  # three of the six pairs of a, the one of b
    for (left, right), truth, cluster in zip(pairs, same, clusters, strict=True):
        assert (groups[left] == groups[right]) is truth and cluster == groups[left]
        assert kinds[right] == "shoe"  # the lamp is never needed
    assert same_product_pairs(["a", "b"], ["x", "x"]) == ([], [], [])


# ---- sets of attributes ----------------------------------------------------------------------------


def sets(truth, rationales):
    products = [Product(id=f"p{i}", title="x") for i in range(len(truth))]
    texts = iter(rationales)
    encoder = FakeEncoder(by_title, writes=True, rationale=lambda product: next(texts))
    task = AttributeSets("toy", "all attributes", "text", products, truth, [p.id for p in products], TEXT)
    return by_metric(task.run(encoder, direct))


def test_attributes_are_compared_as_sets():
    truth = [{"colour": "red", "material": "wool"}, {"colour": "navy blue"}, {"colour": "blue"}]
    found = sets(truth, [
        "<think>color: Red; material: silk; heel: flat</think>",  # one right, one wrong, one not judged
        "<think>colour: navy</think>",
        "broken",
    ])  # fmt: skip
    assert found["precision"].value == found["recall"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["F1"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert "66.7% of the rationales keep their format" in found["F1"].note
    part = sets([{"colour": "red", "material": "wool"}], ["<think>colour: red</think>"])
    assert (part["precision"].value, part["recall"].value) == (1, 0.5)
    assert part["F1"].value == pytest.approx(2 / 3)


def test_sets_need_a_writer_and_a_truth():
    products = [Product(id="a", title="x")]
    task = AttributeSets("toy", "all", "text", products, [{"colour": "red"}], ["a"], TEXT)
    assert {r.note for r in task.run(FakeEncoder(by_title), direct)} == {"it writes no rationale"}
    with pytest.raises(UserError, match="product a of toy all states no attribute"):
        AttributeSets("toy", "all", "text", products, [{}], ["a"], TEXT)
    with pytest.raises(UserError, match="no product with attributes"):
        AttributeSets("toy", "all", "text", [], [], [], TEXT)


# ---- what is kept ----------------------------------------------------------------------------------


def test_reading_is_counted_normalised_and_letter_for_letter():
    texts = iter(
        ["<think>colour: navy</think>", "<think>colour: red</think>", "<think>colour: mauve</think>", ""]
    )
    encoder = FakeEncoder(by_title, writes=True, rationale=lambda product: next(texts))
    products = [Product(id=f"p{i}", title="x") for i in range(4)]
    truth, labels = ["navy blue", "red", "red", "red"], ["navy blue", "red"]
    task = Labelling(
        "toy", "colour", "text", products, truth, labels, "abcd", TEXT, "colour", methods=("rationale",)
    )
    [kept] = task.predict(encoder, direct)
    found = by_metric(scoring.figures([kept]))
    assert (found["accuracy"].value, found["exact"].value) == (0.5, 0.25)
    assert kept.columns["predicted"] == ["navy blue", "red", "mauve", ""]
    assert found["macro recall"].value == pytest.approx((1 + 1 / 3) / 2)
    assert found["macro precision"].value == 1  # mauve is no label of the task: no answer


def test_ids_that_stand_twice_and_labels_that_repeat_are_named():
    twice = [Product(id="a", title="x"), Product(id="a", title="y")]
    once = [Product(id="b", title="x")]
    with pytest.raises(UserError, match="queries of toy r hold the id a twice"):
        Retrieval("toy", "r", "text", twice, once, ["b"], [{"b": 1.0}] * 2, ["a", "b"], TEXT, TEXT)
    with pytest.raises(UserError, match="corpus of toy r hold the id a twice"):
        Retrieval("toy", "r", "text", once, twice, ["a", "b"], [{"a": 1.0}], ["a"], TEXT, TEXT)
    with pytest.raises(UserError, match="products of toy l hold the id a twice"):
        Labelling("toy", "l", "text", twice, ["x", "y"], ["x", "y"], ["a", "b"], TEXT, "colour")
    with pytest.raises(UserError, match="names a label twice"):
        Labelling("toy", "l", "text", once, ["x"], ["x", "y", "x"], ["a"], TEXT, "colour")


def test_a_corpus_of_which_nothing_can_be_encoded_is_an_error():
    query, item = Product(id="q", title="x"), Product(id="g", title="x")
    task = Retrieval("toy", "r", "text", [query], [item], ["g"], [{"g": 1.0}], ["q"], TEXT, TEXT)
    with pytest.raises(UserError, match="nothing of the corpus of toy r"):
        task.run(FakeEncoder(by_title, broken=frozenset({"g"})), direct)
    [*none] = task.run(FakeEncoder(by_title, broken=frozenset({"q"})), direct)
    assert {r.value for r in none} == {0.0}


def test_a_query_side_asks_and_the_other_is_searched():
    class Sided(FakeEncoder):
        queries = FakeEncoder(lambda p: words_vector(p.title.removesuffix("?")), fingerprint="queries")

    names = ["red shoe", "blue lamp"]
    corpus = [Product(id=f"g{i}", title=name) for i, name in enumerate(names)]
    asked = [Product(id=f"q{i}", title=f"{name.split()[1]}?") for i, name in enumerate(names)]
    relevant = [{"g0": 1.0}, {"g1": 1.0}]
    task = Retrieval(
        "toy", "r", "text", asked, corpus, ["g0", "g1"], relevant, ["a", "b"], TEXT, TEXT, ("R@1",)
    )
    [sided], [plain] = task.run(Sided(by_title), direct), task.run(FakeEncoder(by_title), direct)
    assert (sided.value, plain.value) == (1.0, 0.5)


@pytest.mark.slow
def test_ten_thousand_products_are_scored_in_bounded_memory():
    n = 10_000
    rng = np.random.default_rng(1)
    corpus = [Product(id=f"g{i}", title=f"t{i}") for i in range(n)]
    queries = [Product(id=f"q{i}", title=f"t{i}") for i in range(n)]
    vectors = {f"t{i}": vector for i, vector in enumerate(unit(rng.normal(size=(n, 32))))}
    keys = [p.id for p in corpus]
    task = Retrieval(
        "toy", "r", "text", queries, corpus, keys, [{key: 1.0} for key in keys], keys, TEXT, TEXT
    )
    encoder = FakeEncoder(lambda p: vectors[p.title])
    tracemalloc.start()
    [kept] = task.predict(encoder, direct)
    results = scoring.figures([kept])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(kept, Predictions) and {r.value for r in results} == {1.0}
    assert peak < 200e6  # all scores in float64 would take 800 MB
