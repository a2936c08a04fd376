"""The cold start on a shop small enough to train in seconds: all kinds of batch, resuming, and the losses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from moonshelf import MoonModel
from moonshelf.errors import UserError
from moonshelf.sampleshop import iter_products
from moonshelf.training.cold_start import ColdStart
from moonshelf.training.data import SourceSpec, prepare
from moonshelf.training.recipe import Recipe, flags, load_recipe
from moonshelf.training.views import Views

SMALL = {
    "hidden": 64, "layers": 2, "vision_hidden": 64, "vision_depth": 2, "vocabulary": 500, "batch": 8,
    "reasoned_from": 0.0, "save_every": 100, "validate_every": 100, "validation_items": 4,
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
    run = ColdStart(recipe(tmp_path_factory.mktemp("run") / "a"), shop)
    run.run()
    return run


def test_a_run_meets_every_kind_of_batch_and_leaves_a_model_that_loads(trained: ColdStart) -> None:
    log = [json.loads(line) for line in (trained.out / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in log if "kind" in line} >= {"direct", "reasoned", "pair"}
    last = log[-1]
    assert 0 <= last["direct title->photo R@10"] <= 1
    model = MoonModel.from_pretrained(trained.out / "checkpoint")
    assert model.labels and model.fingerprint != ""
    for (name, a), (_, b) in zip(model.state_dict().items(), trained.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_resumes_with_its_optimiser_and_counters(trained: ColdStart, shop: Path) -> None:
    again = ColdStart(recipe(trained.out, steps=8), shop)
    assert again.step == 6
    assert again.temperature.log_scale.item() == trained.temperature.log_scale.item()
    old, new = (run.optimiser.state_dict()["state"] for run in (trained, again))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[i]["exp_avg"], new[i]["exp_avg"]) for i in old)
    again.run()
    assert again.step == 8


def test_a_resumed_run_is_the_uninterrupted_one(shop: Path, tmp_path: Path) -> None:
    """Batches, dropout and schedule depend on seed and step alone; the queue starts anew, so it is off."""
    whole = ColdStart(recipe(tmp_path / "whole", queue=0, steps=6), shop)
    whole.run()
    first = ColdStart(recipe(tmp_path / "parts", queue=0, steps=6, save_every=3), shop)
    first.stop_at = 3
    first.run()
    second = ColdStart(recipe(tmp_path / "parts", queue=0, steps=6, save_every=3), shop)
    assert second.step == 3
    second.run()
    for (name, a), (_, b) in zip(
        whole.model.state_dict().items(), second.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_contrastive_branch_never_sees_the_teacher(
    trained: ColdStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reasoned view is built from the model's own writing: no gold rationale enters its rows."""
    model, sampler, rng = trained.model, trained.sampler, random.Random(0)
    draw = prepare(model, sampler.draw(6, rng), "reasoned", rng)
    seen: list[list[int]] = []
    vectors = Views.vectors

    def spy(self, rows):  # type: ignore[no-untyped-def]
        seen.extend(list(tail) for _, _, tail in rows if len(tail) > 1)
        return vectors(self, rows)

    monkeypatch.setattr(Views, "vectors", spy)
    terms = trained.losses(draw, rng)
    assert "sft" not in terms and len(seen) == len(draw.items)
    gold = [[model.prepare.think, *body, model.prepare.end_think, model.prepare.emb] for body in draw.bodies]
    assert all(tail not in gold for tail in seen)


def test_only_what_the_model_writes_is_a_target(trained: ColdStart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihood covers body and `</think>`: not the prompt, not `<think>`, not `<emb>`."""
    rng = random.Random(0)
    draw = prepare(trained.model, trained.sampler.draw(4, rng), "direct", rng)
    targets: list[torch.Tensor] = []
    real = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        "moonshelf.training.views.F.cross_entropy",
        lambda logits, target: targets.append(target) or real(logits, target),
    )
    Views(trained.model, draw.pixels).likelihood(trained._taught(draw, rng))
    prepared = trained.model.prepare
    found = targets[0].tolist()
    assert prepared.think not in found and prepared.emb not in found
    assert found.count(prepared.end_think) == len(draw.items)


def test_learning_lowers_the_loss_of_a_fixed_batch(shop: Path, tmp_path: Path) -> None:
    run = ColdStart(recipe(tmp_path / "b"), shop)
    rng = random.Random(0)
    draw = prepare(run.model, run.sampler.draw(8, rng), "direct", rng)

    def loss() -> torch.Tensor:
        return torch.stack(list(run.losses(draw, random.Random(0)).values())).sum()

    before = float(loss().detach())
    for _ in range(12):
        run.optimiser.zero_grad()
        loss().backward()
        run.optimiser.step()
    assert float(loss().detach()) < 0.8 * before


def test_flags_become_fields_and_mistakes_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("sources: [{feed: a.jsonl}]\n")
    assert load_recipe(path, **flags(["--lr", "0.5", "--vision-lr", "1e-4"])).lr == 0.5
    with pytest.raises(UserError, match="stepz"):
        load_recipe(path, **flags(["--stepz", "3"]))
    with pytest.raises(UserError, match="--field value"):
        flags(["lr", "3"])
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        ColdStart(Recipe(sources=[SourceSpec(feed="missing.jsonl")], out=str(tmp_path / "o")), tmp_path)
