"""Both sides of mteb: our tasks run by mteb's evaluators, and our model as mteb sees one.

mteb's own data sets come from a hub and were never run here: its side is met with tasks of ours, and with
inputs in the form that its loaders make.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")

from benchmark_fakes import FakeMoon  # noqa: E402
from PIL import Image  # noqa: E402

from moonshelf import images  # noqa: E402
from moonshelf.errors import UserError  # noqa: E402
from moonshelf.evaluation import mteb_model, mteb_tasks  # noqa: E402
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT  # noqa: E402
from moonshelf.evaluation.data.views import Dataset, view  # noqa: E402
from moonshelf.evaluation.encoders.baselines import MoonshelfEncoder  # noqa: E402
from moonshelf.evaluation.tasks.labelling import Fit, Labelling  # noqa: E402
from moonshelf.evaluation.tasks.retrieval import Retrieval  # noqa: E402
from moonshelf.product import ImageRef, Product  # noqa: E402
from tiny import pictures  # noqa: E402

NAMES = [
    "red shoe",
    "blue shoe",
    "oak table",
    "red lamp",
    "blue lamp",
    "cotton shirt",
    "red shirt",
    "wool hat",
]
# No two products share a picture, and few a score: mteb breaks ties in another way.
SHOP = [
    Product(id=f"p{i}", title=f"{name} number {i}", images=pictures(i), group_id=f"g{i // 2}")
    for i, name in enumerate(NAMES)
]
GROUPS = [p.group_id for p in SHOP]
SHOWN = {"text": TEXT, "image": IMAGE, "image + text": BOTH}


def seen(name, products=SHOP):
    return [view(p, text="text" in name, image="image" in name) for p in products]


def retrieval(query, corpus, metrics=("nDCG@10", "R@1"), gains=None):
    queries = [p.model_copy(update={"id": f"q{p.id}", "title": p.title.split()[0]}) for p in SHOP]
    relevant = gains or [{f"g{i // 2}": 1.0} for i in range(len(SHOP))]
    return Retrieval(
        "shop", f"{query} → {corpus}", query, seen(query, queries), seen(corpus), GROUPS, relevant, GROUPS,
        SHOWN[query], SHOWN[corpus], metrics,
    )  # fmt: skip


def labelling(shown, **options):
    truth = [name.split()[1] for name in NAMES]
    labels = sorted(set(truth))
    fields = {"methods": ("zero-shot classification",), **options}
    return Labelling(
        "shop", "kind", shown, seen(shown), truth, labels, GROUPS, SHOWN[shown], "kind", **fields
    )


def dataset(*tasks):
    return Dataset("shop", "MIT", "drawn", list(tasks), [p.title for p in SHOP])


class Seeing(FakeMoon):
    """Words and colours compared with each other, so that every direction has a score of its own."""

    source = None

    def __init__(self):
        turn = np.random.default_rng(0).normal(size=(self.dim, 64))

        def mixed(vectors):
            made = vectors @ turn
            return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

        super().__init__(mixed)
        self.dim = 64

    def parameters(self):
        return iter(())


def scores(offered, model):
    out = mteb.evaluate(model, offered.tasks, cache=None, show_progress_bar=False, co2_tracker=False)
    return {result.task_name: result.scores["test"][0] for result in out.task_results}


@pytest.fixture(scope="module")
def encoder():
    return mteb_model.MoonEncoder(Seeing(), "tiny")


DIRECTIONS = [
    ("text", "image"), ("image", "text"), ("image", "image + text"), ("image + text", "image + text"),
    ("text", "text"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "corpus"), DIRECTIONS)
def test_mteb_finds_the_figures_that_we_find(encoder, query, corpus):
    task = retrieval(query, corpus, ("nDCG@10", "R@1", "R@5", "mAP"))
    offered = mteb_tasks.offer(dataset(task))
    (theirs,) = scores(offered, encoder).values()
    ours = {
        r.metric: r.value
        for r in task.run(MoonshelfEncoder(Seeing(), "off"), lambda e, products: e.encode(products))
    }
    assert theirs["main_score"] == theirs["ndcg_at_10"] == pytest.approx(ours["nDCG@10"], abs=1e-5)
    assert theirs["hit_rate_at_1"] == pytest.approx(ours["R@1"], abs=1e-5)
    assert theirs["hit_rate_at_5"] == pytest.approx(ours["R@5"], abs=1e-5)
    assert theirs["map_at_1000"] == pytest.approx(ours["mAP"], abs=1e-5)
    assert 0 < theirs["ndcg_at_10"] < 1  # neither trivial nor broken


def test_graded_truth_keeps_its_grades(encoder):
    gains = [{f"g{i // 2}": 3.0, f"g{(i // 2 + 1) % 4}": 1.0} for i in range(len(SHOP))]
    task = retrieval("text", "image + text", ("nDCG@10",), gains)
    (theirs,) = scores(mteb_tasks.offer(dataset(task)), encoder).values()
    (ours,) = task.run(MoonshelfEncoder(Seeing(), "off"), lambda e, products: e.encode(products))
    assert theirs["ndcg_at_10"] == pytest.approx(ours.value, abs=1e-5)


@pytest.mark.parametrize("shown", list(SHOWN))
def test_zero_shot_labels_are_the_same_task(encoder, shown):
    task = labelling(shown)
    offered = mteb_tasks.offer(dataset(task))
    (theirs,) = scores(offered, encoder).values()
    run = task.run(MoonshelfEncoder(Seeing(), "off"), lambda e, products: e.encode(products))
    ours = next(r.value for r in run if r.metric == "accuracy")
    assert theirs["accuracy"] == pytest.approx(ours, abs=1e-5)


def test_training_products_become_a_classification(encoder):
    names = [
        f"{colour} {what} {i}" for i in range(4) for colour in ("red", "blue") for what in ("shoe", "lamp")
    ]
    train = [Product(id=f"t{i}", title=name, images=pictures(i % 5)) for i, name in enumerate(names)]
    truth = [name.split()[1] for name in names]
    task = Labelling(
        "shop", "kind", "text", seen("text", train), truth, ["lamp", "shoe"], truth, TEXT, "kind",
        methods=("nearest centroid, fitted",), fit=Fit(seen("text", train), truth),
    )  # fmt: skip
    ((name, theirs),) = scores(mteb_tasks.offer(dataset(task)), encoder).items()
    assert name == "MoonshelfShopKindTextFitted" and theirs["accuracy"] > 0.9


def test_names_directions_and_revisions_say_what_a_task_is():
    offered = mteb_tasks.offer(dataset(retrieval("text", "image"), labelling("image + text")))
    first, second = (task.metadata for task in offered.tasks)
    assert (first.name, first.type, first.category) == ("MoonshelfShopTextToImage", "Any2AnyRetrieval", "t2i")
    assert (second.name, second.category) == ("MoonshelfShopKindImageAndText", "it2c")
    assert set(first.modalities) == {"text", "image"} and "MIT" in first.description
    again = mteb_tasks.offer(dataset(retrieval("text", "image"))).tasks[0].metadata
    assert again.revision == first.revision
    gains = [{"g0": 1.0}] * len(SHOP)
    other = mteb_tasks.offer(dataset(retrieval("text", "image", gains=gains))).tasks[0].metadata
    assert other.revision != first.revision


def test_what_would_change_a_figure_is_left_out_with_a_reason():
    bare = seen("image")
    bare[0] = bare[0].model_copy(update={"images": ()})
    task = retrieval("text", "image")
    holed = Retrieval("shop", "holed", "text", task.queries, bare, GROUPS, task.relevant, GROUPS, TEXT, IMAGE)
    halves = retrieval("text", "text", gains=[{"g0": 0.5}] * len(SHOP))
    late = labelling("text")
    late = Labelling(**{**vars(late), "labels": late.labels[:-1], "name": "late"})
    offered = mteb_tasks.offer(dataset(holed, halves, late))
    assert not offered.tasks
    reasons = list(offered.left_out.values())
    for reason, part in zip(
        reasons, ("1 of 8 products have no picture", "no whole numbers", "refuses"), strict=True
    ):
        assert part in reason
    broken = seen("image")
    broken[0] = broken[0].model_copy(update={"images": (ImageRef(data=b"no picture"),)})
    holed = Retrieval(
        "shop", "broken", "text", task.queries, broken, GROUPS, task.relevant, GROUPS, TEXT, IMAGE
    )
    (made,) = mteb_tasks.offer(dataset(holed)).tasks
    with pytest.raises(UserError, match="the picture of p0 cannot be handed to mteb"):
        made.load_data()


def test_pictures_reach_a_model_as_they_were(encoder):
    (task,) = mteb_tasks.offer(dataset(retrieval("text", "image"))).tasks
    task.load_data()
    got = task.dataset["default"]["test"]["corpus"][2]["image"]
    np.testing.assert_array_equal(np.asarray(got), np.asarray(images.load(SHOP[2].images[0])))


def test_what_a_model_cannot_read_is_a_vector_of_zeros(model, caplog):
    encoder = mteb_model.MoonEncoder(model, "tiny")
    batches = [
        {"text": ["red shoe", ""], "image": [Image.new("RGB", (40, 40), "red"), None]},
        {"text": ["hat"]},
    ]
    out = encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")
    assert out.shape == (3, model.dim) and not out[1].any()
    assert "1 of 2 inputs could not be read" in caplog.text
    wanted = model.encode([Product(id="x", title="hat")]).vectors[0]
    np.testing.assert_allclose(out[2], wanted, atol=1e-5)
    with pytest.raises(ValueError, match="the task shows audio"):
        encoder.encode([{"audio": [1]}], task_metadata=None, hf_split="test", hf_subset="default")


def test_a_saved_model_is_found_by_name_in_both_modes(model, tmp_path):
    """The tiny model from its folder, through mteb's registry, on one of our tasks."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    from moonshelf.model.modeling import MoonModel

    copy.deepcopy(model).save_pretrained(tmp_path / "tiny")  # saving gives a model a source
    saved = MoonModel.from_pretrained(tmp_path / "tiny")
    names = mteb_model.register(saved, "tiny")
    try:
        assert names == ["moonshelf/tiny", "moonshelf/tiny-reason-on"]
        direct, reasoned = (mteb.get_model(name) for name in names)
        assert direct.mteb_model_meta.revision == saved.fingerprint
        assert direct.mteb_model_meta.embed_dim == saved.dim and direct.mteb_model_meta.n_parameters > 0
        batches = [{"text": ["red shoe", "lamp"]}]
        options = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
        products = [Product(id=str(i), title=text) for i, text in enumerate(batches[0]["text"])]
        for encoder, reason in ((direct, "off"), (reasoned, "on")):
            wanted = saved.encode(products, reason=reason).vectors
            np.testing.assert_allclose(encoder.encode(batches, **options), wanted, atol=1e-5)
        task = retrieval("image", "image + text")
        (theirs,) = scores(mteb_tasks.offer(dataset(task)), direct).values()
        ours = {r.metric: r.value for r in task.run(MoonshelfEncoder(saved, "off"), lambda e, p: e.encode(p))}
        assert theirs["ndcg_at_10"] == pytest.approx(ours["nDCG@10"], abs=1e-5)
    finally:
        for name in names:
            MODEL_REGISTRY.pop(name, None)


def test_the_command_line_runs_our_model_on_our_task(model, tmp_path, monkeypatch, capsys):
    from mteb.get_tasks import _TASKS_REGISTRY
    from mteb.models.model_implementations import MODEL_REGISTRY

    from moonshelf.evaluation.data import registry as datasets

    def adapter(data, limit, fit_rows):
        return dataset(retrieval("text", "image"))

    monkeypatch.setitem(datasets.DATASETS, "sampleshop", adapter)
    before, known = dict(_TASKS_REGISTRY), dict(MODEL_REGISTRY)
    copy.deepcopy(model).save_pretrained(tmp_path / "tiny")  # saving gives a model a source
    name, out = "MoonshelfShopTextToImage", tmp_path / "results"
    try:
        mteb_model.main(
            ["--datasets", "sampleshop", "run", "-m", f"moonshelf/{tmp_path / 'tiny'}", "-t", name,
             "--output-folder", str(out)]
        )  # fmt: skip
    finally:
        for registry, kept in ((_TASKS_REGISTRY, before), (MODEL_REGISTRY, known)):
            registry.clear()
            registry.update(kept)
    assert name in capsys.readouterr().err
    (found,) = out.rglob(f"{name}.json")
    assert "moonshelf__tiny" in str(found)
