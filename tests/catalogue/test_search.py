"""Search against references computed by hand: filters, rank fusion, exact and approximate neighbours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_model import DIM, FakeModel, picture, product, table
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue, vector_index
from moonshelf.catalogue.filters import Condition
from moonshelf.catalogue.fusion import SAFE
from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.store import Store
from moonshelf.catalogue.where import parse
from moonshelf.errors import UserError
from moonshelf.product import ImageRef, Product

N = 60


@pytest.fixture(scope="module")
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, model: FakeModel) -> Catalogue:
    """60 products with rationales, indexed; tests must not change it."""
    catalogue = Catalogue.create(tmp_path_factory.mktemp("catalogue") / "shelf", model)
    catalogue.embed([product(i) for i in range(N)], reason="on")
    catalogue.index()
    return catalogue


@pytest.fixture
def own(shelf: Catalogue, model: FakeModel, tmp_path: Path) -> Catalogue:
    """A copy that a test may change."""
    shutil.copytree(shelf.folder, tmp_path / "shelf")
    return Catalogue.open(tmp_path / "shelf", model)


def brute_force(shelf: Catalogue, vector: np.ndarray, passes=lambda row: True) -> list[str]:
    rows = [row for row in table(shelf.folder).values() if passes(row)]
    scores = {row["id"]: float(np.dot(row["vector"], vector)) for row in rows}
    return sorted(scores, key=lambda id: (-round(scores[id], 5), key_of(id)))


def vector_ranking(result) -> list[str]:
    hits = sorted(result.hits, key=lambda hit: (-round(hit.why["cosine"], 5), key_of(hit.id)))
    return [hit.id for hit in hits]


WHERE = {
    "price < 20": lambda row: row["price"] < 20,
    "colour = 'red' AND price BETWEEN 10 AND 40": lambda row: (
        row["colour"] == "red" and 10 <= row["price"] <= 40
    ),
    "brand IN ('Bolt') OR category_leaf = 'mug'": lambda row: (
        row["brand"] == "Bolt" or row["category_leaf"] == "mug"
    ),
    "title LIKE '%boot%'": lambda row: "boot" in row["title"],
    "gtin IS NOT NULL": lambda row: row["gtin"] is not None,
}


@pytest.mark.parametrize("where", WHERE)
def test_filters_agree_with_a_scan(shelf, model, where):
    vector = model.encode([Product(id="q", title="red running shoe")]).vectors[0]
    expected = brute_force(shelf, vector, WHERE[where])
    result = shelf.search("red running shoe", where=where, mode="vector", k=N)
    assert vector_ranking(result) == expected
    by_text = shelf.search("red running shoe", where=where, mode="text", k=N)
    assert {hit.id for hit in by_text.hits} <= set(expected)


def test_hybrid_scores_are_weighted_means_of_scaled_scores(shelf):
    result = shelf.search("blue boot", k=N)
    assert result.mode == "hybrid" and result.notes == []
    best = max(hit.why.get("bm25", 0) for hit in result.hits)
    cosines = [hit.why["cosine"] for hit in result.hits if "cosine" in hit.why]
    for hit in result.hits:
        words = hit.why.get("bm25", 0) / best
        near = (hit.why.get("cosine", min(cosines)) - min(cosines)) / (max(cosines) - min(cosines))
        assert hit.score == pytest.approx((1 - SAFE) * words + SAFE * near, abs=1e-4)
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)
    assert "boot" in result.hits[0].product["title"] and "blue" in result.hits[0].product["title"]
    vector_only = shelf.search("blue boot", k=N, mode="vector").hits
    assert {h.id: h.why["vector_rank"] for h in vector_only} == {
        h.id: h.why["vector_rank"] for h in result.hits if "vector_rank" in h.why
    }


def test_picture_and_both(shelf, model):
    red = ImageRef(data=picture((0, 90, 20)))
    result = shelf.search(Product(id="q", images=(red,)), k=3)
    assert result.mode == "vector"
    both = Product(id="q", title="red running shoe 0", images=(red,))
    assert shelf.search(both, k=3).hits[0].id == "p0"
    with pytest.raises(UserError, match="picture of the query"):
        shelf.search(Product(id="q", images=(ImageRef(data=b"no picture"),)))


def test_like_leaves_the_product_itself_out(shelf):
    vector = np.array(table(shelf.folder)["p7"]["vector"])
    result = shelf.search(like="p7", k=N)
    assert vector_ranking(result) == [id for id in brute_force(shelf, vector) if id != "p7"]
    with pytest.raises(UserError, match="no product with the id 'nobody'"):
        shelf.search(like="nobody")


def test_more_results_than_rows_and_odd_calls(shelf):
    assert len(shelf.search("shoe", k=1000).hits) == N
    for k in (0, -1, 10**6):
        with pytest.raises(UserError, match="k must lie"):
            shelf.search("shoe", k=k)
    for query, options in (
        ("", {}),
        ("\x00\u200b", {}),
        (None, {}),
        ("shoe", {"like": "p1"}),
        ("shoe", {"mode": "magic"}),
        (Product(id="q", images=(ImageRef(data=picture()),)), {"mode": "text"}),
    ):
        with pytest.raises(UserError):
            shelf.search(query, **options)
    assert shelf.search("shoe", where="price > 1e9").hits == []


def test_full_text_finds_words_of_rationale_brand_and_other_scripts(own, model):
    own.embed(
        [product(i) for i in range(N)] + [product(N, title="日本の靴 naïve", description="for Zürich")],
        reason="on",
    )
    own.index()
    for words in ("靴", "naive", "zurich", "ZÜRICH"):
        assert [hit.id for hit in own.search(words, mode="text").hits] == [f"p{N}"]
    assert len(own.search("bolt", mode="text", k=100).hits) == N // 2
    assert own.search("the of and", mode="text").hits == []  # only stop words
    assert own.search("the of and").mode == "vector"


def test_full_text_sees_changes_made_after_indexing(own):
    own.embed([product(i) for i in range(1, N)] + [product(0, title="a zebra")], reason="on")
    assert [hit.id for hit in own.search("zebra", mode="text").hits] == ["p0"]
    assert "p0" not in {hit.id for hit in own.search("running", mode="text", k=100).hits}


@pytest.mark.parametrize(
    "where", ["prise < 3", "price <", "title = 'x", "price < 'abc'", "title", "", " ", "1; 2"]
)
def test_a_bad_filter_names_the_columns(shelf, where):
    with pytest.raises(UserError, match="Columns: id, title, brand, price") as error:
        shelf.search("shoe", where=where)
    assert "/" not in str(error.value).split("Columns:")[0].replace(where, "") and "\n" not in str(
        error.value
    )


@pytest.mark.parametrize(
    "where",
    [
        "price > 1" + " OR price > 1" * 99,
        "title IN (" + "'it''s', " * 999 + "'b')",
        "NOT " * 20 + "price > 1",
    ],
)
def test_the_largest_filters_pass_every_planner(shelf, where):
    assert shelf.search("shoe", where=where, k=2) is not None
    assert shelf.store.nearest(np.ones(DIM, np.float32), 2, parse(where)) is not None
    assert len(shelf.store) == N


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
@example('"unbalanced')
@example('"a phrase"')
@example("red AND OR NOT (")
@example("title:red^2 ~ * ? \\")
@example("'; DROP TABLE products --")
@example("the")
@example("x" * 5_000)
def test_no_query_text_crashes(shelf, text):
    try:
        result = shelf.search(text, k=3)
    except UserError as error:
        assert "empty" in str(error)
    else:
        assert len(result.hits) == 3


# ------------------------------------------------------------------------------------------- index


def test_without_an_index_search_is_exact_and_says_so(own):
    with_index = own.search("red boot", mode="vector", k=N)
    shutil.rmtree(own.folder / "index")
    without = own.search("red boot", mode="vector", k=N)
    assert vector_ranking(without) == vector_ranking(with_index)
    assert with_index.notes == [] and "moonshelf index" in without.notes[0]
    own.index()
    assert own.search("red boot", mode="vector").notes == []


def test_an_old_index_catches_up(own):
    changed = [product(i) for i in range(1, N)] + [product(0, title="purple umbrella")]
    own.embed(changed, reason="on")
    result = own.search("purple umbrella", mode="vector", k=N)
    assert result.hits[0].id == "p0" and len(result.hits) == N and result.notes == []
    own.embed(changed[:-1], reason="on")  # p0 leaves
    assert "p0" not in {hit.id for hit in own.search("purple umbrella", k=N).hits}
    own.embed([product(i, title=f"new {i}") for i in range(N // 2)], allow_removals=True)
    result = own.search("new", mode="vector", k=N)
    assert len(result.hits) == N // 2 and "60 products have changed since" in result.notes[0]


def test_an_index_that_does_not_say_what_it_holds_is_not_used(own):
    """One that an older version built, or whose second file is damaged."""
    path = own.folder / "index" / "index.json"
    info = json.loads(path.read_text())
    whole = (own.folder / "index" / info["rows_file"]).read_bytes()
    (own.folder / "index" / info["rows_file"]).write_bytes(whole[:-1] + b"x")
    result = own.search("red boot", mode="vector", k=1)
    assert "boot" in result.hits[0].product["title"] and "damaged" in result.notes[0]
    path.write_text(json.dumps({**info, "format": 1}))
    result = own.search("red boot", mode="vector", k=1)
    assert "boot" in result.hits[0].product["title"] and "has format 1" in result.notes[0]
    path.write_text(json.dumps({**info, "kind": "ivf-pq", "spec": {"kind": "ivf-pq"}, "tuned": None}))
    result = own.search("red boot", mode="vector", k=1)  # of an earlier version, which had more kinds
    assert "boot" in result.hits[0].product["title"] and "the kind ivf-pq" in result.notes[0]
    path.write_text(json.dumps({k: v for k, v in info.items() if not k.startswith("rows_")}))
    assert "searching the store exactly" in own.search("red boot", mode="vector", k=1).notes[0]


def test_a_filter_is_remembered_until_the_store_changes(own, monkeypatch):
    asked: list[Condition] = []
    scan = Store.keys_where
    monkeypatch.setattr(Store, "keys_where", lambda store, where: asked.append(where) or scan(store, where))
    first = own.search("boot", where="price < 20", mode="vector", k=N)
    assert vector_ranking(own.search("boot", where="price < 20", mode="vector", k=N)) == vector_ranking(first)
    assert asked == [parse("price < 20")] and len(first.hits) == 20
    own.embed([product(i, price=1.0) for i in range(N)], reason="on")
    assert len(own.search("boot", where="price < 20", mode="vector", k=N).hits) == N


def test_a_price_change_leaves_the_index_fresh(own):
    own.embed([product(i, price=1.0) for i in range(N)], reason="on")
    result = own.search("red boot", mode="vector", where="price = 1.0", k=N)
    assert result.notes == [] and len(result.hits) == N


def test_a_damaged_or_foreign_index_is_refused(own):
    info = json.loads((own.folder / "index" / "index.json").read_text())
    file = own.folder / "index" / info["file"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-7] + b"garbage")
    assert "damaged" in own.search("boot", mode="vector").notes[0]
    file.unlink()
    assert "missing" in Catalogue.open(own.folder, own.model).search("boot", mode="vector").notes[0]
    file.write_bytes(whole)
    (own.folder / "index" / "index.json").write_text("not JSON")
    assert "cannot be read" in own.search("boot", mode="vector").notes[0]
    for name, value in (("fingerprint", "other"), ("dim", 7), ("preprocessing", "other")):
        (own.folder / "index" / "index.json").write_text(json.dumps({**info, name: value}))
        with pytest.raises(UserError, match="run `moonshelf index"):
            Catalogue.open(own.folder, own.model).search("boot", mode="vector")


def test_a_new_index_leaves_no_old_files(own):
    (own.folder / "index" / ".vectors-dead.faiss.tmp").write_bytes(b"left by a killed build")
    info = own.index()
    assert {file.name for file in (own.folder / "index").iterdir()} == {
        "index.json",
        info.file,
        info.rows_file,
    }


def test_an_empty_store(tmp_path, model):
    shelf = Catalogue.create(tmp_path / "shelf", model)
    report = shelf.embed([Product(id="nothing")])
    assert report.rows == 0 and report.rejected == 1
    assert shelf.search("shoe").hits == []
    with pytest.raises(UserError, match="holds no products"):
        shelf.index()


def test_the_graph_finds_what_a_scan_finds(tmp_path):
    """HNSW, forced at a small size: recall, filters of any width, stable keys."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, DIM))
    vectors = (centres[rng.integers(40, size=4000)] + 0.6 * rng.normal(size=(4000, DIM))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = rng.permutation(np.arange(4000) * 10**12)
    graph = vector_index.VectorIndex.of(keys, vectors, flat_rows=0)
    assert graph.kind == "hnsw"
    queries = vectors[:50]
    for allowed in (None, np.sort(keys[:400])):
        pool = np.arange(4000) if allowed is None else np.flatnonzero(np.isin(keys, allowed))
        found = graph.search(queries, 10, allowed)
        best = keys[pool[np.argsort(-(queries @ vectors[pool].T), axis=1)[:, :10]]]
        hits = [len(set(a.tolist()) & {key for key, _ in b}) for a, b in zip(best, found, strict=True)]
        assert np.mean(hits) / 10 > 0.95
    assert graph.search(queries[:1], 10, np.array([], np.int64)) == [[]]


def test_exact_search_of_the_store_is_cosine(shelf, model):
    vector = model.encode([Product(id="q", title="green mug")]).vectors[0]
    found = Store.open(shelf.folder).nearest(vector, 5)
    rows = {row["key"]: row for row in table(shelf.folder).values()}
    for key, score in found:
        assert score == pytest.approx(float(np.dot(rows[key]["vector"], vector)), abs=1e-5)
