"""What vectors weigh beside words: by hand, and measured with models whose worth is known."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.fusion import MIN_ROWS, PICTURED, SAFE, Fusion, fuse
from moonshelf.errors import UserError
from moonshelf.product import Product

KINDS = 12  # of products; each has four words that mean the same, and the record says one of each pair
WORDS = [[f"{a}{b}" for b in ("alpha", "beta", "gamma", "delta")] for a in "abcdefghijkl"]


class Knowing(FakeModel):
    """Its vectors tell what a word means; or, without sense, are drawn anew for each text."""

    def __init__(self, sense: bool) -> None:
        super().__init__(fingerprint=f"sense {sense}")
        self.sense = sense

    def _part(self, chunk, start, reason):
        part = super()._part(chunk, start, reason)
        for place, product in enumerate(chunk):
            rng = np.random.default_rng(zlib.crc32(product.title.encode()))
            vector = 0.01 * rng.normal(size=self.dim)
            for kind, words in enumerate(WORDS):
                vector[kind] += self.sense * any(word in product.title.split() for word in words)
            part.vectors[place] = vector / np.linalg.norm(vector)
        return part


def stocked(folder: Path, sense: bool, rows: int = 240) -> Catalogue:
    """Titles of two words of a kind and three that mean nothing; the leaf is one that words cannot guess."""
    rng, catalogue = np.random.default_rng(0), Catalogue.create(folder, Knowing(sense))
    noise = [f"noise{chr(97 + i)}{chr(97 + j)}" for i in range(6) for j in range(6)]
    products = []
    for i in range(rows):
        two = rng.choice(WORDS[i % KINDS], 2, replace=False) if sense else WORDS[i % KINDS][:2]
        words = [*two, *rng.choice(noise, 2, replace=False)]
        products.append(Product(id=f"p{i}", title=" ".join(words), category=(f"kind{chr(97 + i % KINDS)}",)))
    catalogue.embed(products)
    return catalogue


@pytest.fixture(scope="module")
def random(tmp_path_factory) -> Catalogue:
    return stocked(tmp_path_factory.mktemp("random") / "shelf", sense=False)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory) -> Catalogue:
    return stocked(tmp_path_factory.mktemp("knowing") / "shelf", sense=True)


def found(catalogue: Catalogue) -> Fusion:
    fusion = Fusion.read(catalogue.index().model_dump())
    assert fusion is not None
    return fusion


def test_search_goes_by_words_where_vectors_are_random(random):
    fusion = found(random)
    assert fusion.why == "measured" and fusion.weight == 0 and fusion.words > fusion.vectors
    assert "vectors know little of these products: search goes by words" in str(fusion)
    words = random.search("aalpha abeta", mode="text", k=20)
    fused = random.search("aalpha abeta", k=20)
    assert {hit.id for hit in fused.hits} == {hit.id for hit in words.hits} and fused.notes == []


def test_search_goes_by_vectors_where_these_know_what_words_do_not(knowing):
    fusion = found(knowing)
    assert fusion.why == "measured" and fusion.weight > SAFE and fusion.vectors > fusion.words
    hits = knowing.search("calpha", k=20).hits
    assert {hit.product["category"] for hit in hits} == {"kindc"}


@pytest.mark.parametrize(
    ("weight", "vectors", "little"), [(0.2, 0.1, True), (0.15, 0.5, False), (0.6, 0.1, False)]
)
def test_little_is_said_of_vectors_far_below_words_that_weigh_little(weight, vectors, little):
    fusion = Fusion(weight, "measured", 200, 0.6, vectors, 0.6)
    assert ("know little" in str(fusion)) is little


def test_a_measurement_can_be_repeated_and_is_stored(knowing):
    first, second = found(knowing), found(knowing)
    assert first == second
    stored = json.loads((knowing.folder / "index" / "index.json").read_text())
    assert stored["fusion"] == second.as_dict()


def test_a_set_weight_is_kept_until_it_is_forgotten(tmp_path):
    catalogue = stocked(tmp_path / "shelf", sense=False, rows=MIN_ROWS)
    catalogue.index(vector_weight=0.7)
    assert found(catalogue).weight == 0.7 and "as it was set" in str(found(catalogue))
    assert Fusion.read(catalogue.index(forget=True).model_dump()).why == "measured"
    for search in (catalogue.index, lambda **weight: catalogue.search("aalpha", **weight)):
        for weight in (-0.1, 1.1, float("nan")):
            with pytest.raises(UserError, match="between 0 and 1"):
                search(vector_weight=weight)


def test_few_products_take_the_default_and_say_so(tmp_path):
    catalogue = stocked(tmp_path / "shelf", sense=True, rows=MIN_ROWS - 1)
    assert found(catalogue).weight == SAFE and "fewer than 100 products" in str(found(catalogue))


@pytest.mark.parametrize(
    "record", [None, {}, {"weight": 7, "why": "x"}, {"weight": "0.2", "why": "x"}, [1], {"w": 1}]
)
def test_an_index_that_says_nothing_takes_the_default_and_a_note(tmp_path, record):
    catalogue = stocked(tmp_path / "shelf", sense=True, rows=60)
    catalogue.index(vector_weight=1)
    path = catalogue.folder / "index" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "fusion": record}))
    result = Catalogue.open(catalogue.folder, Knowing(True)).search("aalpha abeta agamma", k=30)
    expected = catalogue.search("aalpha abeta agamma", vector_weight=SAFE, k=30)
    assert [hit.score for hit in result.hits] == [hit.score for hit in expected.hits]
    assert any("moonshelf index" in note for note in result.notes)


def test_a_catalogue_is_indexed_without_its_model(random):
    catalogue = Catalogue.open(random.folder, str(random.folder / "no-such-model"))
    fusion = found(catalogue)
    assert fusion.weight == SAFE and "the model cannot be had" in str(fusion)


def test_fusion_by_hand():
    vectors, words = [(7, 0.9), (3, 0.7), (5, 0.5)], [(3, 8.0), (9, 4.0)]
    assert dict(fuse(vectors, words, 0.5)) == pytest.approx({3: 0.75, 7: 0.5, 9: 0.25, 5: 0.0})
    assert [key for key, _ in fuse(vectors, words, 0.0)] == [3, 9, 7, 5]
    assert [key for key, _ in fuse(vectors, words, 1.0)] == [7, 3, 5, 9]
    assert fuse(vectors, [(9, 12.0), (3, 4.0)], 1.0, named=[9])[0][0] == 9
    assert fuse([], [], 0.5) == [] and fuse([(1, 0.3)], [], 0.5) == [(1, 0.5)]


ranked = st.dictionaries(st.integers(0, 30), st.floats(0.01, 50), max_size=20).map(
    lambda found: sorted(found.items(), key=lambda hit: (-hit[1], hit[0]))
)


@given(ranked, ranked, st.floats(0, 1), st.lists(st.integers(0, 30), max_size=3))
def test_fused_lists_hold_every_key_once_and_at_the_ends_follow_one_list(vectors, words, weight, named):
    fused = fuse(vectors, words, weight, [key for key, _ in words if key in named])
    assert sorted(key for key, _ in fused) == sorted({key for key, _ in [*vectors, *words]})
    first = [key for key, _ in fused][: sum(key in named for key, _ in words)]
    assert set(first) <= set(named)
    scores = [score for _, score in fuse(vectors, words, 0.0)]
    assert all(0 <= score <= 1 for score in scores) and scores == sorted(scores, reverse=True)


def test_a_picture_counts_at_least_half(random):
    from fake_model import picture

    from moonshelf.product import ImageRef

    random.index(vector_weight=0)
    query = Product(id="q", title="aalpha", images=(ImageRef(data=picture()),))
    given_half = random.search(query, vector_weight=PICTURED, k=20)
    assert [hit.score for hit in random.search(query, k=20).hits] == [hit.score for hit in given_half.hits]
