"""Ablations: every intervention is what its name says, arms are fair, and nothing is trained twice."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("trl", reason="ablations need moonshelf[train]")

from moonshelf import MoonModel
from moonshelf.errors import UserError
from moonshelf.feeds import write_jsonl
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import END_THINK, THINK
from moonshelf.training.data import SourceSpec, load_source, spread
from moonshelf.training.recipe import JointRecipe, Recipe
from moonshelf.training.sources.pairs import Item
from research.studies import ablations, interventions
from research.studies.ablations import load_plan, over_seeds, run_plan
from research.studies.interventions import HIDDEN, PHOTO, RATIONALES, WHOLE, Figure, Study, measure
from research.synthetic.shop import iter_products

pytestmark = pytest.mark.research

SHIPPED = Path(__file__).parents[2] / "recipes" / "ablations.yaml"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_jsonl(iter_products(16, seed=6, photos=2, size=96), folder / "shop.jsonl")
    return folder


@pytest.fixture(scope="module")
def items(shop: Path) -> list[Item]:
    found = load_source(SourceSpec(feed="shop.jsonl"), shop)
    return spread(found, 10)


@pytest.fixture(scope="module")
def study(model: MoonModel, items: list[Item]) -> Study:
    return measure(model, items)


# ---- interventions -------------------------------------------------------------------------------------


def body(text: str) -> str:
    assert text.startswith(THINK) and text.endswith(END_THINK)
    return text.removeprefix(THINK).removesuffix(END_THINK)


def replaced(kind: str, model: MoonModel, items: list[Item], own: list[str], seed: int = 0) -> list[str]:
    shown = [Product(id=item.id, title=item.title) for item in items]
    return [body(text) for text in interventions.replaced(kind, items, shown, own, model, seed)]


def test_each_rationale_is_what_its_name_says(model: MoonModel, items: list[Item]) -> None:
    own = [f"{THINK}category: shoes; colour: number {i}{END_THINK}" for i in range(len(items))]
    assert replaced("empty", model, items, own) == [""] * len(items)
    assert replaced("title", model, items, own) == [item.title for item in items]
    assert replaced("catalogue", model, items, own) == [item.rationale for item in items]
    other = replaced("other", model, items, own)
    assert Counter(other) == Counter(map(body, own)), "each rationale goes to one product"
    assert all(a != body(b) for a, b in zip(other, own, strict=True)), "and none to its own"
    assert other != replaced("other", model, items, own, seed=1)


def test_random_words_are_as_long_as_the_rationale(model: MoonModel, items: list[Item]) -> None:
    own = [f"{THINK}{'red leather shoe ' * (i + 3)}{END_THINK}" for i in range(len(items))]
    found = replaced("random", model, items, own)
    words = {word for item in items for word in item.title.split()}
    lengths = [len(ids) for ids in model.prepare.text_ids([f" {text}" for text in found])]
    wanted = [len(ids) for ids in model.prepare.text_ids([body(text) for text in own])]
    longest = max(len(ids) for ids in model.prepare.text_ids([f" {word}" for word in words]))
    for text, length, want in zip(found, lengths, wanted, strict=True):
        assert set(text.split()) <= words
        assert want - longest <= length <= max(want, longest)
    assert len(set(found)) > 1
    assert found == replaced("random", model, items, own) != replaced("random", model, items, own, seed=1)


def test_a_photo_alone_has_no_title_to_copy(study: Study) -> None:
    seen = {(f.view, f.rationale) for f in study.figures}
    assert (PHOTO, "title") not in seen and (WHOLE, "title") in seen
    assert {kind for _, kind in seen} == set(RATIONALES)


def test_figures_are_those_of_the_vectors(study: Study, model: MoonModel, items: list[Item]) -> None:
    """Recomputed from the model's own calls: title to photo, with its own rationale and with none."""
    photos = [Product(id=item.id, images=item.images[:1]) for item in items]
    titles = model.encode([Product(id=item.id, title=item.title) for item in items]).vectors
    for kind, reason in (("own", "on"), ("none", "off")):
        scores = titles @ model.encode(photos, reason=reason).vectors.T  # type: ignore[arg-type]
        hit = [
            any(items[i].same(items[j]) for j in np.argsort(-scores[i])[:1].tolist())
            for i in range(len(items))
        ]
        figure = study.find(PHOTO, kind, "title → photo R@1")
        assert figure is not None and figure.values == [float(h) for h in hit]
        assert figure.groups == [item.group for item in items]


def test_the_catalogue_states_the_truth_and_nothing_states_nothing(
    study: Study, items: list[Item], model: MoonModel
) -> None:
    stated = [f for f in study.figures if f.name.endswith("as stated")]
    assert {"category, as stated", "colour, as stated"} <= {f.name for f in stated}
    assert all(not any(f.values) for f in stated if f.rationale == "empty")
    assert not [f for f in stated if f.rationale == "none"]
    roomy = copy.deepcopy(model)  # the tiny model's limit cuts the catalogue's rationales
    roomy.prompt = roomy.prompt.model_copy(update={"max_rationale_tokens": 400})
    photos = [Product(id=item.id, images=item.images[:1]) for item in items]
    out = roomy.encode(photos, rationales=[item.rationale for item in items])
    whole = list(interventions.Bench(roomy, items, 0, 8192).figures(PHOTO, "catalogue", out))
    told = [f for f in whole if f.name.endswith("as stated")]
    assert told and all(min(f.values) == 1.0 for f in told)


def test_titles_hide_what_is_asked_for(items: list[Item]) -> None:
    from moonshelf.evaluation.data.dataset import stems

    hide = stems([name for item in items for name in (*item.category, *item.facts.values())])
    for item in items:
        hidden = interventions._show(item, HIDDEN, hide).title.lower().split()
        assert hidden and not {w for v in item.facts.values() for w in v.split()} & set(hidden)
        assert interventions._show(item, WHOLE, hide).title == item.title
        assert interventions._show(item, PHOTO, hide).title == ""


def test_what_the_head_read_is_reported(study: Study, model: MoonModel) -> None:
    for read in study.reads:
        assert abs(sum(read.weights) - 1) < 1e-4
        assert (read.weights[2] > 0) == (read.rationale != "none")
        assert (read.weights[1] > 0) == (read.view != PHOTO)
        assert len(read.gates) == len(study.taps) and all(0 < g < 1 for g in read.gates)
        assert all(step > 0 for step in read.steps)
        if read.rationale in ("own", "random", "catalogue"):
            assert (read.changed > 0) == (read.rationale != "own")
    assert model.head.fire is not None
    np.testing.assert_allclose(study.scales, [0.5 * 64**0.5] * len(study.taps), rtol=1e-6)
    assert not model.head.fire.steps[0]._forward_hooks, "the model is left as it was"


def test_a_study_is_whole_after_a_file(study: Study) -> None:
    again = Study.from_dict(json.loads(json.dumps(study.as_dict())))
    assert again == study


def test_the_table_of_a_model_has_intervals(study: Study) -> None:
    table = interventions.markdown(study)
    number, sign = r"\d+\.\d", r"[+-]\d+\.\d"
    assert re.search(rf"^\| own \|( {number} ± {number} \|)+$", table, re.MULTILINE)
    assert re.search(rf"^\| empty \|( {number} \({sign} \[{sign}, {sign}\]\*?\) \|)+$", table, re.MULTILINE)
    for line in table.splitlines():
        assert "nan" not in line
    assert all(f"**{shown}**" in table for shown in interventions.VIEWS) and "**FIRE**" in table


def test_intervals_of_differences_are_paired() -> None:
    groups = [str(i) for i in range(100)]
    values = [float(i % 2) for i in range(100)]
    better = [min(1.0, value + (i < 10)) for i, value in enumerate(values)]
    one, two = (Figure("v", "r", "n", x, groups) for x in (values, better))
    assert two.against(one).value == pytest.approx(0.05) and two.against(one).low > 0
    wide = two.interval()
    assert wide.high - wide.low > two.against(one).high - two.against(one).low
    assert interventions.difference(two.against(one)).endswith("]*")
    assert not interventions.difference(one.against(one)).endswith("*")
    with pytest.raises(ValueError, match="not of the same queries"):
        one.against(Figure("v", "r", "n", values[:50], groups[:50]))


def test_a_broken_picture_is_set_aside(model: MoonModel, items: list[Item]) -> None:
    broken = Item("bad", "bad", "red shoe", (ImageRef(data=b"no"),), ("shoes",), {"colour": "red"})
    found = measure(model, [*items[:4], broken], ["none"], views=[PHOTO])
    assert found.products == 4 and [p.id for p in found.problems] == ["bad"]
    with pytest.raises(UserError, match="at least 2"):
        measure(model, [broken, broken], ["none"])


def test_an_unknown_rationale_is_one_sentence(model: MoonModel, items: list[Item]) -> None:
    with pytest.raises(UserError, match=r"no rationale 'poem': choose from own, none"):
        measure(model, items, ["own", "poem"])


# ---- arms ----------------------------------------------------------------------------------------------

COLD = {
    "sources": [{"feed": "shop.jsonl"}], "validation": "shop.jsonl", "validation_items": 4,
    "hidden": 64, "layers": 2, "vision_hidden": 64, "vision_depth": 2, "vocabulary": 500, "batch": 6,
    "self_generated_from": 0.0, "precision": "float32", "report_to": [], "memory": 0,
    "prompt": {"max_rationale_tokens": 8, "max_pixels": 9216},
}  # fmt: skip
JOINT = {
    "stage": "joint", "model": "unused", "sources": COLD["sources"], "products": 2, "rollouts": 2,
    "precision": "float32", "report_to": [], "warmup": 0, "memory": 0,
}  # fmt: skip
ARMS = {
    "plain": {"cold_start": {"sft_weight": 0, "self_generated_from": 1}},
    "cold": {},
    "joint": {"joint": {}},
    "decoupled": {"joint": {"mode": "alternate"}},
}


def plan_file(folder: Path, **changes: Any) -> Path:
    (folder / "cold.yaml").write_text(yaml.safe_dump(COLD))
    (folder / "joint.yaml").write_text(yaml.safe_dump(JOINT))
    plan = {
        "cold_start": "cold.yaml", "joint": "joint.yaml", "budget": {"steps": 4, "joint": 0.5}, "seeds": [0],
        "reference": "cold", "products": 6, "rationales": ["none"], "arms": ARMS, **changes,
    }  # fmt: skip
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder / "plan.yaml"


class FakeTrainer:
    """Saves the tiny model with some noise; records what it was asked to train."""

    def __init__(self, model: MoonModel, fail: str = "", error: type[BaseException] = UserError) -> None:
        self.model, self.fail, self.error = model, fail, error
        self.recipes: list[Recipe | JointRecipe] = []

    def __call__(self, recipe: Recipe | JointRecipe, data: Path) -> Path:
        self.recipes.append(recipe)
        if self.fail and self.fail == getattr(recipe, "mode", ""):
            raise self.error("the rewards collapsed")
        model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(len(self.recipes))
        with torch.no_grad():
            weight = model.head.project.weight
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(Path(recipe.out) / "checkpoint")
        return Path(recipe.out) / "checkpoint"


def never(recipe: Any, data: Path) -> Path:
    raise AssertionError("this was trained before")


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def two_seeds(model: MoonModel, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("plan")
    path = plan_file(folder, seeds=[0, 1])
    trainer = FakeTrainer(model)
    plan, done = run_plan(path, shop, folder / "out", say=quiet, train=trainer)
    return folder, plan, done, trainer


def test_arms_have_one_budget_and_share_what_is_the_same(two_seeds: Any) -> None:
    folder, _, done, trainer = two_seeds
    assert [(d.arm, d.seed) for d in done] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    assert len(trainer.recipes) == 2 * 5, "joint and decoupled start from one cold start"
    _, runs = load_plan(folder / "plan.yaml")
    assert {sum(stage.steps for stage in run.stages) for run in runs} == {4}
    for recipe in trainer.recipes:
        if isinstance(recipe, JointRecipe):
            start = next(r for r in trainer.recipes if f"{r.out}/checkpoint" == recipe.model)
            assert isinstance(start, Recipe) and start.seed == recipe.seed and start.sft_weight == 1
    assert len({r.out for r in trainer.recipes}) == 10


def test_what_is_done_is_not_done_again(two_seeds: Any, shop: Path) -> None:
    folder, _, done, _ = two_seeds
    before = (folder / "out" / "results.jsonl").read_text()
    assert run_plan(folder / "plan.yaml", shop, folder / "out", say=quiet, train=never)[1] == done
    assert (folder / "out" / "results.jsonl").read_text() == before
    (folder / "out" / "arms" / "cold-seed1.json").write_text("{")  # measured anew, from the trained model
    run_plan(folder / "plan.yaml", shop, folder / "out", say=quiet, train=never)
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["seed"]) for r in rows] == [(d.arm, d.seed) for d in done]
    for record in rows:
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in record["figures"])


def test_another_recipe_is_another_arm(two_seeds: Any, shop: Path, model: MoonModel, tmp_path: Path) -> None:
    folder, _, _, _ = two_seeds
    changed = {**ARMS, "cold": {"cold_start": {"label_weight": 0.5}}}
    path, trainer = plan_file(tmp_path, arms=changed, seeds=[0, 1]), FakeTrainer(model)
    run_plan(path, shop, folder / "out", say=quiet, train=trainer)
    assert [getattr(r, "label_weight", None) for r in trainer.recipes] == [0.5, 0.5]


def test_the_table_has_intervals_over_seeds(two_seeds: Any) -> None:
    _, plan, done, _ = two_seeds
    table = ablations.markdown(plan, done)
    number, sign = r"\d+\.\d", r"[+-]\d+\.\d"
    assert re.search(rf"^\| cold \| 2 \|( {number} ± {number} \|)+$", table, re.MULTILINE)
    ahead = rf"{number} ± {number} \({sign} \[{sign}, {sign}\]\*?\)"
    for arm in ("plain", "joint", "decoupled"):
        assert re.search(rf"^\| {arm} \| 2 \|( {ahead} \|)+$", table, re.MULTILINE), arm
    name = "title → photo R@10"
    mine = [d.study.find(PHOTO, "none", name) for d in done if d.arm == "joint"]
    means = [float(np.mean(f.values)) for f in mine]
    found = over_seeds(mine)
    half = 12.7062 * np.std(means, ddof=1) / 2**0.5  # Student's t of one degree of freedom
    assert found.value == pytest.approx(np.mean(means))
    assert found.high - found.value == pytest.approx(half, rel=1e-4, abs=1e-9)
    assert over_seeds(mine, mine).value == over_seeds(mine, mine).high == 0
    assert over_seeds(mine[:1]) == mine[0].interval(), "one seed: bootstrap over products"


def test_a_killed_call_goes_on_where_it_was(model: MoonModel, shop: Path, tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("cold", "decoupled")}
    path = plan_file(tmp_path, arms=arms)
    first = FakeTrainer(model, fail="alternate", error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_plan(path, shop, tmp_path / "out", say=quiet, train=first)
    second = FakeTrainer(model)
    _, done = run_plan(path, shop, tmp_path / "out", say=quiet, train=second)
    assert [r.out for r in second.recipes] == [first.recipes[-1].out], "in its folder, where its state is"
    assert [d.arm for d in done] == list(arms)


def test_an_arm_that_fails_does_not_stop_the_others(model: MoonModel, shop: Path, tmp_path: Path) -> None:
    path = plan_file(tmp_path, arms={"decoupled": ARMS["decoupled"], "cold": {}})
    trainer = FakeTrainer(model, fail="alternate")
    plan, done = run_plan(path, shop, tmp_path / "out", say=quiet, train=trainer)
    assert [(d.arm, d.error) for d in done] == [("decoupled", "the rewards collapsed"), ("cold", "")]
    assert "decoupled, seed 0: the rewards collapsed" in ablations.markdown(plan, done)
    _, done = run_plan(path, shop, tmp_path / "out", say=quiet, train=FakeTrainer(model))
    assert not any(d.error for d in done)


def test_real_arms_are_trained_measured_and_resumed(shop: Path, tmp_path: Path) -> None:
    """Both trainers; an arm that was never taught to write is measured by its direct vectors alone."""
    path = plan_file(tmp_path, rationales=["none", "own"], arms={k: ARMS[k] for k in ("plain", "joint")},
                     reference="plain")  # fmt: skip
    plan, done = run_plan(path, shop, tmp_path / "out", say=quiet)
    kinds = {d.arm: {f.rationale for f in d.study.figures} for d in done if d.study}
    assert kinds == {"plain": {"none"}, "joint": {"none", "own"}}
    table = (tmp_path / "out" / "table.md").read_text()
    assert table == ablations.markdown(plan, done) + "\n" and "nan" not in table
    run_plan(path, shop, tmp_path / "out", say=quiet, train=never)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a": {"cold_start": {"fussion": False}}}}, r"arm 'a': field 'fussion'"),
        ({"arms": {"a": {"joint": {"mode": "both"}}}}, r"arm 'a': field 'mode'"),
        ({"arms": {"a": {"cold_start": {"steps": 9}}}}, r"arm 'a': 'steps' is the same for all arms"),
        ({"arms": {"a": {"joint": {}}}, "joint": None}, r"arm 'a' has a joint stage, but"),
        ({"arms": {"a": {"warm_start": {}}}}, r"field 'arms.a.warm_start'"),
        ({"arms": {}}, r"field 'arms'"),
        ({"reference": "best"}, r"reference 'best' is no arm: there are plain, cold"),
        ({"budget": {"steps": 4, "minutes": 1}}, r"minutes or in steps, one of them"),
        ({"rationales": ["poem"]}, r"rationales are of own, none"),
        ({"cold_start": "joint.yaml"}, r"must each name a recipe of that stage"),
        ({"cold_start": "absent.yaml"}, r"absent.yaml cannot be read"),
    ],
)
def test_a_wrong_plan_is_one_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    changes = {**({"reference": None} if "arms" in changes else {}), **changes}
    with pytest.raises(UserError, match=message) as caught:
        run_plan(plan_file(tmp_path, **changes), tmp_path, tmp_path / "out", say=quiet, train=never)
    assert "\n" not in str(caught.value)


def test_an_unknown_arm_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no arm 'best': there are plain, cold"):
        run_plan(plan_file(tmp_path), tmp_path, tmp_path / "out", only=["best"], say=quiet, train=never)


def test_the_shipped_plan_is_fair() -> None:
    plan, runs = load_plan(SHIPPED)
    assert len(runs) == len(plan.arms) * len(plan.seeds)
    for run in runs:
        minutes = sum(stage.minutes for stage in run.stages if stage.minutes)
        assert minutes == pytest.approx(plan.budget.minutes)
    first = {run.arm: run for run in runs if run.seed == plan.seeds[0]}
    assert first["decoupled"].keys[0] == first["joint"].keys[0]
    assert len({tuple(run.keys) for run in runs}) == len(runs)
    assert not first["contrastive"].writes and first["joint"].writes
    assert load_plan(SHIPPED, seeds=[4])[1][0].seed == 4


def test_the_shipped_plan_from_a_finished_model_is_fair() -> None:
    plan, runs = load_plan(SHIPPED.with_name("ablations-joint.yaml"))
    assert len({tuple(run.keys) for run in runs}) == len(runs) == len(plan.arms) * len(plan.seeds)
    for run in runs:
        cold = run.stages[0]
        assert isinstance(cold, Recipe) and cold.model == "starter"
        assert sum(stage.steps for stage in run.stages) == plan.budget.steps
