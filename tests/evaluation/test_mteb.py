"""Both sides of mteb: its models and its tasks in our evaluation, and our model as mteb sees one.

Nothing comes from a hub here: tasks and models of ours are put into mteb's registries.
"""

from __future__ import annotations

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")

import datasets  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from PIL import Image  # noqa: E402

from evaluation_fakes import FakeMoon  # noqa: E402
from moonshelf import images  # noqa: E402
from moonshelf.errors import UserError  # noqa: E402
from moonshelf.evaluation import mteb_model  # noqa: E402
from moonshelf.evaluation.data import registry  # noqa: E402
from moonshelf.evaluation.encoders.baselines import ModelEncoder, make_baselines  # noqa: E402
from moonshelf.product import Product  # noqa: E402
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
WORDS = [name.split()[0] for name in NAMES]


def rows(column, prefix, texts):
    """A table of mteb with pictures, words, or both; no two rows share a picture."""
    made = {"id": [f"{prefix}{i}" for i in range(len(texts))]}
    if "text" in column:
        made["text"] = texts
    if "image" in column:
        made["image"] = [images.load(pictures(i)[0]) for i in range(len(texts))]
    table = datasets.Dataset.from_dict(made)
    return table.cast_column("image", datasets.Image()) if "image" in column else table


def letters(shown):
    return "".join(one for one in "it" if {"i": "image", "t": "text"}[one] in shown)


def toy(query, corpus, skip_first=False):
    """A retrieval task of mteb: whatever shares the number halved is relevant, with the grade 2 or 1."""
    texts = [f"{name} number {i}" for i, name in enumerate(NAMES)]
    n = len(texts)
    split = {
        "queries": rows(query, "q", WORDS), "corpus": rows(corpus, "d", texts), "top_ranked": None,
        "relevant_docs": {f"q{i}": {f"d{i}": 2, f"d{i ^ 1}": 1} for i in range(n)},
    }  # fmt: skip

    def load_data(self, *_, **__):
        self.dataset, self.data_loaded = {"default": {"test": split}}, True

    metadata = TaskMetadata(
        name="ToyShopRetrieval", description="toy", dataset={"path": "toy/shop", "revision": "1"},
        type="Any2AnyRetrieval", category=f"{letters(query)}2{letters(corpus)}",
        modalities=["image", "text"], eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score="ndcg_at_10", domains=["E-commerce"], is_public=False,
    )  # fmt: skip
    body = {"metadata": metadata, "load_data": load_data, "skip_first_result": skip_first,
            "dataset_transform": lambda self, *_, **__: None}  # fmt: skip
    return type("ToyShopRetrieval", (AbsTaskRetrieval,), body)


@pytest.fixture
def known(monkeypatch):
    """A function that makes mteb know a task."""
    from mteb.get_tasks import _TASKS_REGISTRY

    def add(kind):
        monkeypatch.setitem(_TASKS_REGISTRY, kind.metadata.name, kind)
        return kind()

    return add


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


@pytest.fixture(scope="module")
def encoder():
    return mteb_model.MoonEncoder(Seeing(), "tiny")


def theirs(task, model):
    out = mteb.evaluate(model, [task], cache=None, show_progress_bar=False, co2_tracker=False)
    return out.task_results[0].scores["test"][0]


DIRECTIONS = [("text", "image"), ("image", "text"), ("image", "image, text"), ("text", "text")]


@pytest.mark.parametrize(("query", "corpus"), DIRECTIONS)
def test_a_task_of_mteb_has_the_figures_that_mteb_finds(encoder, known, query, corpus):
    task = known(toy(query, corpus))
    found = theirs(task, encoder)
    with pytest.raises(UserError, match="allow it with --download"):
        registry.select("mteb:ToyShopRetrieval")["ToyShopRetrieval"](None)
    dataset = registry.select("mteb:ToyShopRetrieval")["ToyShopRetrieval"](None, download=True)
    (ours,) = dataset.tasks
    assert (len(ours.queries), len(ours.corpus)) == (8, 8) and ours.query_reads == {query}
    values = {r.metric: r.value for r in ours.run(ModelEncoder(Seeing(), "off"), lambda e, p: e.encode(p))}
    assert found["ndcg_at_10"] == pytest.approx(values["nDCG@10"], abs=1e-5)
    assert found["hit_rate_at_1"] == pytest.approx(values["R@1"], abs=1e-5)
    assert 0 < found["ndcg_at_10"] < 1  # neither trivial nor broken


def test_a_limit_keeps_what_is_relevant_and_pictures_stay_files(known):
    known(toy("text", "image, text"))
    dataset = registry.select("mteb:ToyShopRetrieval")["ToyShopRetrieval"](None, limit=2, download=True)
    (task,) = dataset.tasks
    assert len(task.queries) == 2 and all(set(wanted) <= set(task.corpus_keys) for wanted in task.relevant)
    assert all(product.images[0].data for product in task.corpus)


def test_what_mteb_alone_can_score_is_said(known):
    known(toy("image", "image", skip_first=True))
    with pytest.raises(UserError, match=r"MoonEncoder.*ToyShopRetrieval"):
        registry.select("mteb:ToyShopRetrieval")["ToyShopRetrieval"](None, download=True)
    with pytest.raises(UserError, match="mteb cannot read the task NoSuchTask"):
        registry.select("mteb:NoSuchTask")["NoSuchTask"](None, download=True)


def test_published_sets_of_mteb_are_tasks_that_it_has():
    every = {name for card in registry.DATASETS.values() for name in card.mteb}
    assert every and {task.metadata.name for task in mteb.get_tasks(tasks=sorted(every))} == every


class Toy:
    """A model as mteb loads one: the mean of letters or of pixels, another for queries."""

    def __init__(self, meta):
        self.mteb_model_meta, self.asked = meta, []

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **_):
        found = []
        for batch in inputs:
            self.asked.append((sorted(batch), prompt_type.value))
            n = len(next(iter(batch.values())))
            vectors = np.ones((n, 3)) * (2.0 if prompt_type.value == "query" else 1.0)
            for i, text in enumerate(batch.get("text", ())):
                vectors[i] += [len(text), text.count("e"), 0]
            for i, picture in enumerate(batch.get("image", ())):
                vectors[i] += np.asarray(picture.resize((1, 1)), float)[0, 0]
            found.append(vectors)
        return np.concatenate(found)


@pytest.fixture
def named(monkeypatch):
    """A function that puts a loader under a name of mteb."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    def add(loader, **fields):
        meta = mteb_model.describe(Seeing(), "toy").model_copy(update=fields)
        meta.loader = loader or (lambda name, revision=None, **_: Toy(meta))
        monkeypatch.setitem(MODEL_REGISTRY, "moonshelf/toy", meta)

    return add


def test_a_model_of_mteb_stands_beside_ours(named):
    named(None, use_instructions=True)
    (baseline,) = make_baselines(["mteb:moonshelf/toy"], download=True)
    assert baseline.name == "mteb:moonshelf/toy" and baseline.reads == {"text", "image"}
    shop = [
        Product(id="a", title="Red shoe", images=pictures(1)),
        Product(id="b", title="lamp"),
        Product(id="c"),
    ]
    out = baseline.encode(shop)
    assert out.ok.tolist() == [True, True, False] and out.problems[0].id == "c"
    np.testing.assert_allclose(np.linalg.norm(out.vectors[:2], axis=1), 1, atol=1e-6)
    assert set(map(tuple, map(lambda one: (*one[0], one[1]), baseline.model.model.asked))) == {
        ("image", "text", "document"), ("text", "document")
    }  # fmt: skip
    assert not np.allclose(baseline.queries.encode(shop).vectors[1], out.vectors[1])
    named(None, use_instructions=False)
    assert make_baselines(["mteb:moonshelf/toy"], download=True)[0].queries is None


def test_pickles_and_remote_code_are_shut_off_while_mteb_loads(named, tmp_path):
    def pickled(name, revision=None, **_):
        import torch

        return torch.load(tmp_path / "weights.bin")  # noqa: TID251

    def remote(name, revision=None, **_):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module("evil.Evil", str(tmp_path))

    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for loader in (pickled, remote):
        named(loader)
        with pytest.raises(UserError, match="never run here"):
            make_baselines(["mteb:moonshelf/toy"], download=True)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="mteb cannot load moonshelf/nobody"):
        make_baselines(["mteb:moonshelf/nobody"], download=True)


def test_what_a_model_cannot_read_is_a_vector_of_zeros(model, caplog):
    encoder = mteb_model.MoonEncoder(model, "tiny")
    batches = [
        {"text": ["red shoe", ""], "image": [Image.new("RGB", (40, 40), "red"), None]},
        {"text": ["hat"]},
    ]
    assert encoder.mteb_model_meta.revision == model.fingerprint
    assert encoder.mteb_model_meta.embed_dim == model.dim and encoder.mteb_model_meta.n_parameters > 0
    out = encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")
    assert out.shape == (3, model.dim) and not out[1].any()
    assert "1 of 2 inputs could not be read" in caplog.text
    wanted = model.encode([Product(id="x", title="hat")]).vectors[0]
    np.testing.assert_allclose(out[2], wanted, atol=1e-5)
    with pytest.raises(ValueError, match="the task shows audio"):
        encoder.encode([{"audio": [1]}], task_metadata=None, hf_split="test", hf_subset="default")
