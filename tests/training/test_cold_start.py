"""The cold start on a shop small enough to train in seconds: all kinds of batch, resuming, and the losses."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainerCallback

from moonshelf import MoonModel, Product
from moonshelf.cli.options import flags
from moonshelf.errors import UserError
from moonshelf.model.modeling import normalise
from moonshelf.training.cold_start import NO_MEMORY, ColdStart, set_up
from moonshelf.training.data import Pictures, ProductBatch, Remembered, SourceSpec, prepare
from moonshelf.training.objective import BatchQueries, contrast, supervised_tokens
from moonshelf.training.recipe import Recipe, load_recipe
from moonshelf.training.sources.pairs import Item, Query
from moonshelf.training.views import SharedVisionBatch
from research.synthetic.shop import iter_products

SMALL = {
    "hidden": 64, "layers": 2, "vision_hidden": 64, "vision_depth": 2, "vocabulary": 500, "batch": 8,
    "self_generated_from": 0.0, "save_every": 100, "validate_every": 100, "validation_items": 4,
    "prompt": {"max_rationale_tokens": 12, "max_pixels": 96 * 96},
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from moonshelf.feeds import write_jsonl

    folder = tmp_path_factory.mktemp("shop")
    write_jsonl(iter_products(24, seed=3, photos=2, size=96), folder / "shop.jsonl")
    return folder


def recipe(out: Path, **changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "sources": [{"feed": "shop.jsonl"}],
            "validation": "shop.jsonl",
            "out": str(out),
            "steps": 6,
            **SMALL,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def trained(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> ColdStart:
    run = ColdStart(*set_up(recipe(tmp_path_factory.mktemp("run") / "a"), shop))
    run.train()
    return run


def test_a_run_meets_every_kind_of_batch_and_leaves_a_model_that_loads(trained: ColdStart) -> None:
    log = [json.loads(line) for line in (trained.out / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in log if "kind" in line} >= {"direct", "reasoned", "pair"}
    last = log[-1]
    assert 0 <= last["direct title->photo R@10"] <= 1
    model = MoonModel.from_pretrained(trained.out / "checkpoint")
    assert model.labels and model.fingerprint != ""
    for (name, a), (_, b) in zip(model.state_dict().items(), trained.moon.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def equal(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 0.0) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=0, msg=name)


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_as_if_it_had_not_been(shop: Path, tmp_path: Path) -> None:
    """Batches, dropout, schedule, optimiser and queue: step 7 is bit for bit that of the whole run."""
    changes = {"steps": 7, "save_every": 3, "memory": 20, "memory_from": 0.0}
    whole = ColdStart(*set_up(recipe(tmp_path / "whole", **changes), shop))
    whole.train()
    first = ColdStart(*set_up(recipe(tmp_path / "parts", **changes), shop))
    first.add_callback(Kill(5))  # dies two steps after a save
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = ColdStart(*set_up(recipe(tmp_path / "parts", **changes), shop))
    second.train()
    assert len(second.memory["products"].items) == len(second.memory["titles"].items) == 20
    equal(whole.moon, second.moon)
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log if "kind" in line]
    assert steps == sorted(set(steps))


def test_a_run_can_go_on_from_a_finished_model(shop: Path, tmp_path: Path, trained: ColdStart) -> None:
    """Its weights, tokenizer and prompt are the new run's start, whatever the recipe says of a starter."""
    start = str(trained.out / "checkpoint")
    run = ColdStart(*set_up(recipe(tmp_path / "on", model=start, hidden=32, prompt={}), shop))
    equal(run.moon, trained.moon)
    assert run.checkpoint is None and run.moon.prompt == trained.moon.prompt
    with pytest.raises(ValueError, match="leave backbone and tower away"):
        recipe(tmp_path / "both", model=start, backbone="some/hub-id")


def gradients(run: ColdStart, draw: ProductBatch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    run.model.zero_grad(set_to_none=True)
    run.memory = dict.fromkeys(run.memory, NO_MEMORY)
    terms = run.losses(draw)
    return terms, {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["direct", "pair", "reasoned"])
def test_gradient_caching_changes_nothing(shop: Path, tmp_path: Path, kind: str) -> None:
    """Chunks of 3 of a batch of 8: the same losses and gradients as in one piece."""
    run = ColdStart(*set_up(recipe(tmp_path / kind, precision="float32"), shop))
    assert run.moon.head.fusion is not None
    run.moon.head.fusion.dropout = 0.0  # drawn anew for each chunk, so it would differ
    draw = prepare(run.moon, run.sampler.draw(8, random.Random(0)), kind, "key")
    whole = gradients(run, draw)
    run.recipe = run.recipe.model_copy(update={"chunk": 3})
    parts = gradients(run, draw)
    assert whole[0].keys() == parts[0].keys() and whole[1].keys() == parts[1].keys()
    for name, term in whole[0].items():
        torch.testing.assert_close(term, parts[0][name], atol=2e-5, rtol=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(gradient, parts[1][name], atol=5e-5, rtol=2e-3, msg=name)


def test_the_contrastive_branch_never_sees_the_teacher(
    trained: ColdStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reasoned view is built from the model's own writing: no gold rationale enters its rows."""
    model, sampler = trained.moon, trained.sampler
    draw = prepare(model, sampler.draw(6, random.Random(0)), "reasoned", "key")
    seen: list[list[int]] = []
    vectors = SharedVisionBatch.vectors

    def spy(self, rows):  # type: ignore[no-untyped-def]
        seen.extend(list(tail) for _, _, tail in rows if len(tail) > 1)
        return vectors(self, rows)

    monkeypatch.setattr(SharedVisionBatch, "vectors", spy)
    terms = trained.losses(draw)
    assert "sft" not in terms and len(seen) == len(draw.items)
    gold = [
        [model.prepare.think, *body, model.prepare.end_think, model.prepare.emb]
        for _, _, body in draw.supervised
    ]
    assert all(tail not in gold for tail in seen)


def test_a_vector_from_which_the_picture_is_hidden_depends_on_words_alone(trained: ColdStart) -> None:
    model = trained.moon
    draw = prepare(model, trained.sampler.draw(8, random.Random(0)), "reasoned", "key", modality_dropout=0.8)
    turned = [patches[::-1].copy() for patches in draw.pictures.patches]
    other = replace(draw, pictures=replace(draw.pictures, patches=turned))
    own = [[20, 21, 22] for _ in draw.items]
    trained.model.eval()
    with torch.no_grad():
        a, b = (trained.model(d, own)[0]["reasoned"] for d in (draw, other))
        told = trained.model(replace(draw, left=[(False, False)] * 8), own)[0]["reasoned"]
    trained.model.train()
    hidden = torch.tensor([not pictures for _, pictures in draw.left])
    assert 0 < hidden.sum() < 8
    torch.testing.assert_close(a[hidden], b[hidden], atol=1e-5, rtol=0)
    assert ((a - b).abs().amax(1)[~hidden] > 1e-3).all()
    torch.testing.assert_close(told, told[:1].expand_as(told), atol=1e-5, rtol=0)  # one rationale, one vector


def test_only_what_the_model_writes_is_a_target(trained: ColdStart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihood covers body and `</think>`: not the prompt, not `<think>`, not `<emb>`."""
    draw = prepare(trained.moon, trained.sampler.draw(4, random.Random(0)), "direct", "key")
    targets: list[torch.Tensor] = []
    real = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        "moonshelf.training.views.F.cross_entropy",
        lambda logits, target, **options: targets.append(target) or real(logits, target, **options),
    )
    trained.losses(draw)
    prepared = trained.moon.prepare
    found = targets[0].tolist()
    assert prepared.think not in found and prepared.emb not in found
    assert found.count(prepared.end_think) == len(draw.items)
    assert len(found) == supervised_tokens(draw)


def test_learning_lowers_the_loss_of_a_fixed_batch(shop: Path, tmp_path: Path) -> None:
    run = ColdStart(*set_up(recipe(tmp_path / "b", memory=0), shop))
    draw = prepare(run.moon, run.sampler.draw(8, random.Random(0)), "direct", "key")
    history, optimiser = [], run.create_optimizer()
    for _ in range(12):
        optimiser.zero_grad()
        history.append(float(sum(run.losses(draw).values())))
        optimiser.step()
    assert history[-1] < 0.8 * history[0]


def test_a_batch_of_one_and_a_catalogue_without_attributes_train(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moonshelf.feeds import write_jsonl

    bare = [
        p.model_copy(update={"category": (), "attributes": {}})
        for p in iter_products(6, seed=4, photos=2, size=96)
    ]
    write_jsonl(bare, tmp_path / "bare.jsonl")
    run = ColdStart(
        *set_up(
            recipe(tmp_path / "c", sources=[{"feed": "bare.jsonl"}], validation=None, batch=1, steps=3),
            tmp_path,
        )
    )
    run.train()
    assert "no item has attributes" in capsys.readouterr().out
    assert MoonModel.from_pretrained(tmp_path / "c" / "checkpoint").labels == []
    (tmp_path / "empty.jsonl").write_text('{"id": "a", "title": "no picture"}\n')
    with pytest.raises(UserError, match="no product"):
        ColdStart(
            *set_up(recipe(tmp_path / "d", sources=[{"feed": "empty.jsonl"}], validation=None), tmp_path)
        )


def test_a_loss_that_is_not_finite_stops_with_one_sentence(shop: Path, tmp_path: Path) -> None:
    run = ColdStart(*set_up(recipe(tmp_path / "n"), shop))
    with torch.no_grad():
        run.moon.head.project.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite at step 0"):
        run.train()


def test_flags_become_fields_and_mistakes_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("sources: [{feed: a.jsonl}]\n")
    assert load_recipe(path, **flags(["--lr", "0.5", "--vision-lr", "1e-4"])).lr == 0.5
    with pytest.raises(UserError, match="stepz"):
        load_recipe(path, **flags(["--stepz", "3"]))
    with pytest.raises(UserError, match="--field value"):
        flags(["lr", "3"])
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        set_up(Recipe(sources=[SourceSpec(feed="missing.jsonl")], out=str(tmp_path / "o")), tmp_path)


def taught(folder: Path, dim: int = 256) -> str:
    texts = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("shoe", "mug", "lamp")]
    vectors = np.random.default_rng(0).normal(size=(len(texts), dim)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
    pq.write_table(pa.table({"text": texts, "vector": column}), folder / "texts.parquet")
    return str(folder / "texts.parquet")


def test_texts_are_learnt_from_a_sentence_encoder(shop: Path, tmp_path: Path) -> None:
    changes = {"texts": taught(tmp_path), "texts_batch": 9, "texts_weight": 20.0, "lr": 3e-3}
    changes |= {"steps": 12, "validation": None}
    run = ColdStart(*set_up(recipe(tmp_path / "run", **changes), shop))
    products = [Product(id=text, title=text) for text in run.texts.texts]
    wanted = normalise(run.texts.vectors.float())

    def near() -> float:
        found = torch.from_numpy(run.moon.encode(products).vectors)
        return float((found * wanted).sum(-1).mean())

    before = near()
    run.train()
    assert near() > before + 0.05


def test_texts_that_are_not_there_are_one_sentence(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.parquet is not there"):
        ColdStart(*set_up(recipe(tmp_path / "run", texts="nowhere.parquet"), shop))


def test_a_prompt_may_fold_capitals_wherever_text_is_read(trained: ColdStart) -> None:
    model = trained.moon
    folded = MoonModel(
        model.backbone, model.processor, model.config, model.prompt.model_copy(update={"lower": True})
    )
    assert folded.prompt.text_of(Product(id="1", title="Red SHOE")) == "red shoe"
    assert folded.prepare.text_ids(["Red SHOE"]) == model.prepare.text_ids(["red shoe"])


def test_features_of_a_frozen_tower_are_computed_once(shop: Path, tmp_path: Path) -> None:
    frozen = {
        "freeze": ("backbone.model.visual",),
        "steps": 6,
        "validation": None,
        "self_generated_from": 0.0,
    }
    run = ColdStart(*set_up(recipe(tmp_path / "run", views=2, **frozen), shop))
    asked: list[int] = []
    look = run.moon.look

    def counted(patches: Any, grid: Any) -> Any:
        asked.append(len(grid))
        return look(patches, grid)

    run.moon.look = counted  # type: ignore[method-assign]
    run.train()
    memory = run.remembered
    assert memory is not None
    assert sum(asked) == len(memory.features) <= 2 * sum(len(item.images) for item in run.by_id.values())
    # What is remembered of a crop is what the tower says of it.
    draw = prepare(run.moon, run.sampler.pools[0][0][:4], "pair", "0/0", remembered=Remembered(2))
    fresh, kept = Remembered(2), Remembered(2)
    first, again = (
        SharedVisionBatch(run.moon, draw.pictures, fresh),
        SharedVisionBatch(run.moon, draw.pictures, kept),
    )
    again = SharedVisionBatch(run.moon, draw.pictures, kept)
    for a, b in zip(first.visual.pooler_output, again.visual.pooler_output, strict=True):
        assert torch.equal(a, b)
    plain = SharedVisionBatch(run.moon, draw.pictures)
    for a, b in zip(plain.visual.pooler_output, again.visual.pooler_output, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


def test_crops_are_remembered_of_a_frozen_tower_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tower in freeze"):
        Recipe(sources=[], views=2)


def test_what_can_be_read_from_a_text_is_learnt_without_a_picture(shop: Path, tmp_path: Path) -> None:
    path = Path(taught(tmp_path))
    table = pq.read_table(path)
    said = [f"category: {text.split()[1]}; colour: {text.split()[0]}" for text in table["text"].to_pylist()]
    pq.write_table(table.append_column("rationale", pa.array([*said[:-1], ""])), path)
    changes = {"texts": str(path), "texts_batch": 9, "texts_weight": 5.0, "lr": 3e-3, "validation": None}
    run = ColdStart(*set_up(recipe(tmp_path / "run", steps=40, **changes), shop))

    def unlikely() -> float:
        ids = run.moon.prepare.text_ids
        rows = [
            (text, [], [run.moon.prepare.think, *body, run.moon.prepare.end_think, run.moon.prepare.emb])
            for text, body in zip(ids(run.texts.texts[:8]), ids(said[:8]), strict=True)
        ]
        with torch.no_grad():
            return float(
                SharedVisionBatch(run.moon, Pictures([], np.zeros((0, 3), int), [])).likelihood(rows)
            )

    before = unlikely()
    run.train()
    assert unlikely() < 0.7 * before


def test_a_product_without_a_title_is_no_answer_to_one() -> None:
    def item(n: int, title: str) -> Item:
        return Item(f"{n}", f"g{n}", title, (), ("shoes",), {"colour": f"c{n}"})

    items = [item(0, "red shoe"), item(1, ""), item(2, "blue mug"), item(3, "")]
    queries = [Query(f"c{n}", facts=frozenset({("colour", f"c{n}")})) for n in range(4)]
    torch.manual_seed(0)
    vectors = {name: torch.randn(4, 8) for name in ("titles", "direct", "synthetic")}
    r = Recipe(sources=[])

    def terms(rows: list[int]) -> dict[str, Any]:
        chosen = {name: v[rows] for name, v in vectors.items()}
        asked = BatchQueries([items[n] for n in rows], *[[queries[n] for n in rows]] * 2)
        return contrast("direct", chosen, asked, torch.tensor(10.0), r, (8,), NO_MEMORY, NO_MEMORY)

    everyone, titled = terms([0, 1, 2, 3]), terms([0, 2])
    for name in ("title", "text"):
        torch.testing.assert_close(everyone[name], titled[name])
    assert not torch.equal(everyone["synthetic"], titled["synthetic"])  # there all four compete
    assert set(terms([1, 3])) == {"synthetic"}
