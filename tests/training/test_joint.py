"""Joint training: one pass for tokens and vectors, both losses, rewards that do not collapse in silence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from moonshelf import MoonModel, Product
from moonshelf.errors import UserError
from moonshelf.feeds import write_jsonl
from moonshelf.training import rollouts as rolling
from moonshelf.training.adapters import add_lora, freeze, lighten, merged_state, quantise, without_lora
from moonshelf.training.data import Sampler, duplicate_mask, open_source
from moonshelf.training.joint import JointPolicy, JointTrainer, Rollouts, train_joint
from moonshelf.training.losses import info_nce
from moonshelf.training.recipe import JointRecipe, Lora
from moonshelf.training.views import SharedVisionBatch
from research.synthetic.shop import iter_products


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_jsonl(iter_products(16, seed=6, photos=2, size=96), folder / "shop.jsonl")
    return folder


@pytest.fixture(scope="module")
def start(model: MoonModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a cold start would leave it; random, so nothing that it writes keeps the format."""
    folder = tmp_path_factory.mktemp("start")
    copy.deepcopy(model).save_pretrained(folder)
    return folder


def recipe(start: Path, out: Path, **changes: Any) -> JointRecipe:
    return JointRecipe.model_validate(
        {
            "model": str(start), "sources": [{"feed": "shop.jsonl"}], "out": str(out), "products": 3,
            "rollouts": 4, "steps": 2,
            "lr": 1e-3, "warmup": 0, "precision": "float32", "report_to": (), "memory": 12,
            "save_every": 2, **changes,
        }
    )  # fmt: skip


def trainer(settings: JointRecipe, shop: Path, moon: MoonModel | None = None) -> JointTrainer:
    moon = moon or MoonModel.from_pretrained(settings.model)
    sampler = Sampler([open_source(spec, shop) for spec in settings.sources])
    return JointTrainer(moon, settings, sampler)


def losses(run: JointTrainer, draw: Any, gained: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Terms of a step on a draw; `gained` stands in for the advantages of its rollouts."""
    if gained is not None:
        roll = run.roll
        run.roll = lambda batch: (roll(batch)[0], gained)  # type: ignore[method-assign]
    return run.losses(draw)


@pytest.fixture(autouse=True)
def no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "COLLAPSED_AFTER", 10_000)


@pytest.mark.parametrize("family", ["model", "model_2_5"])
def test_both_backbones_train_and_the_folder_loads(
    family: str, shop: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    moon = copy.deepcopy(request.getfixturevalue(family))
    moon.save_pretrained(tmp_path / "start")
    folder = train_joint(
        recipe(
            tmp_path / "start",
            tmp_path / "run",
            validation="shop.jsonl",
            validation_items=6,
            validate_every=2,
        ),
        shop,
    )
    trained = MoonModel.from_pretrained(folder)
    assert any(not torch.equal(a, b) for a, b in zip(moon.parameters(), trained.parameters(), strict=True))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    wanted = {
        "rewards/format", "rewards/length", "rewards/retrieval", "rewards/attributes", "reward",
        "zero_spread_groups", "format_only",
        "rationale/length", "rationale/diversity", "gradient/grpo", "gradient/contrastive",
        "gradient/cosine", "rollouts/tokens_per_second", "loss/contrastive", "rss_mib", "entropy",
    }  # fmt: skip
    assert wanted <= set(log[0])
    assert "score" in {key for line in log for key in line}


def test_tokens_and_vectors_of_one_pass_are_those_of_the_engine(
    start: Path, shop: Path, tmp_path: Path
) -> None:
    """What was written with a shared prefill scores as if each rollout were read alone."""
    run = trainer(recipe(start, tmp_path), shop)
    torch.manual_seed(0)
    draw = run.draw(0, 0.0)
    shown, moon = list(zip(draw.shown, draw.own, strict=True)), run.moon.eval()
    written, _ = run.write(draw, shown)
    assert len({tuple(w.ids) for w in written}) > 3  # rollouts differ
    run.rollouts = Rollouts(draw, shown, [w.ids for w in written], 4)
    width = max(w.tokens for w in written) + 1
    scored = run.model(run.rollouts, list(range(12)), width)
    for r, w in enumerate(written):
        torch.testing.assert_close(
            F.normalize(scored.rest.rollouts[r], dim=0), torch.from_numpy(w.vector), atol=2e-5, rtol=0
        )
        alone = run.model(run.rollouts, [r], width, whole=False)
        torch.testing.assert_close(scored.logps[r], alone.logps[0], atol=2e-5, rtol=1e-4)
        assert (scored.logps[r, w.tokens + 1 :] == 0).all() and (scored.logps[r, : w.tokens + 1] < 0).all()
    assert moon.prepare.end_think not in {i for w in written for i in w.ids}


@pytest.mark.parametrize(("accumulate", "beta"), [(1, 0.0), (1, 0.1), (3, 0.1)])
def test_slices_and_the_reference_give_the_loss_of_the_whole(
    accumulate: int, beta: float, start: Path, shop: Path, tmp_path: Path
) -> None:
    run = trainer(recipe(start, tmp_path, beta=beta, contrastive_weight=0.0, accumulate=accumulate), shop)
    run.moon.head.fusion.dropout = 0.0
    if beta:  # a policy that has left its reference
        with torch.no_grad():
            for weight in run.moon.decoder.layers[-1].parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    gained = torch.linspace(-1, 1, 12)
    terms = losses(run, run.draw(0, 0.0), gained)
    ids, per = run.rollouts.ids, 4
    width, means = max(map(len, ids)) + 1, []
    for r, body in enumerate(ids):
        now, before = (
            policy(run.rollouts, [r], width, whole=False).logps[0]
            for policy in (run.model, run.reference or run.model)
        )
        away = before - now
        token = -gained[r] + beta * (away.exp() - away - 1)
        closed = len(body) < run.moon.prompt.max_rationale_tokens
        means.append(token[: len(body) + closed].mean())
    assert float(terms["policy"]) == pytest.approx(float(torch.stack(means).mean()), abs=1e-5)
    assert per * 3 == len(ids) and ("kl" in run.figures) == bool(beta)
    one = run.moon.head.project.weight.grad
    assert one is None or not one.any()  # GRPO alone does not reach the vector


def test_the_two_losses_reach_the_weights_in_one_backward_pass(
    start: Path, shop: Path, tmp_path: Path
) -> None:
    run = trainer(recipe(start, tmp_path), shop)
    losses(run, run.draw(0, 0.0), torch.linspace(-1, 1, 12))
    moon = run.moon
    for part in (
        moon.head.project.weight,
        moon.backbone.model.visual.patch_embed.proj.weight,
        moon.backbone.lm_head.weight,
    ):
        assert part.grad is not None and torch.isfinite(part.grad).all() and part.grad.any()


def test_title_and_picture_of_a_product_meet_here_too(start: Path, shop: Path, tmp_path: Path) -> None:
    run = trainer(recipe(start, tmp_path, intra_weight=0.0), shop)
    run.moon.head.fusion.dropout = 0.0
    draw = run.draw(0, 0.0)
    without = losses(run, draw)["contrast"]
    run.done = None  # the memory is as it was
    run.recipe = run.recipe.model_copy(update={"intra_weight": 0.5})
    whole = losses(run, draw)["contrast"]
    moon, items = run.moon, draw.items
    views, emb = SharedVisionBatch(moon, draw.pictures), [moon.prepare.emb]
    titles = views.vectors([(ids, [], emb) for ids in draw.titles])
    photos = views.vectors([([], places[:1], emb) for places in draw.own])
    scale = torch.tensor(1 / run.recipe.temperature)
    want = info_nce(titles, photos, scale, duplicate_mask(items, items), moon.config.matryoshka)
    got = (whole - without) / (0.5 * run.recipe.contrastive_weight)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_retrieval_pays_the_rollout_that_is_found(start: Path, shop: Path, tmp_path: Path) -> None:
    """Vectors by hand: the better a rollout matches its product's queries, the more it earns."""
    from moonshelf.model.encoders.base import Written

    run = trainer(recipe(start, tmp_path, rewards={"retrieval": 1.0}, products=2, rollouts=2), shop)
    draw = run.draw(0, 0.0)
    shown = list(zip(draw.shown, draw.own, strict=True))
    queries = torch.eye(256)[:2].repeat(2, 1, 1)  # product i asks for axis i
    text = "<think>category: shoes; colour: red</think>"
    vectors = [
        queries[0, 0],
        queries[0, 1],
        queries[0, 1],
        queries[0, 1],
    ]  # the second answers the other product's
    written = [Written(v.numpy(), v[:3].numpy(), text, True, [1, 2], True) for v in vectors]
    rewards = run.reward(draw, shown, written, queries)
    assert rewards[0] > rewards[1]
    assert run.memory.items == []
    run.reward(draw, shown, written, queries)
    assert [item.id for item in run.memory.items] == [item.id for item in draw.items]


def test_a_killed_run_goes_on(start: Path, shop: Path, tmp_path: Path) -> None:
    changes = {"steps": 4, "save_every": 2, "memory": 0}
    whole = MoonModel.from_pretrained(train_joint(recipe(start, tmp_path / "whole", **changes), shop))
    part = recipe(start, tmp_path / "part", **changes)

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    stopped = trainer(part, shop)
    stopped.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = MoonModel.from_pretrained(train_joint(part, shop))
    for (name, a), (_, b) in zip(whole.state_dict().items(), again.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


def test_rewards_that_tell_nothing_apart_stop_the_run(
    start: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "COLLAPSED_AFTER", 2)
    with pytest.raises(UserError, match=r"no rationale keeps its format.*Go back to a checkpoint"):
        train_joint(recipe(start, tmp_path, steps=3), shop)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {"beauty": 1.0}}, "beauty.*there are format"),
        ({"accumulate": 5}, "accumulate .5. must divide"),
        ({"freeze": ["backbone.vision"]}, "no parameter starts with 'backbone.vision'"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(
    changes: dict[str, Any], message: str, start: Path, shop: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train_joint(recipe(start, tmp_path, **changes), shop)


@pytest.mark.parametrize("options", [{"mode": "alternate"}, {"accumulate": 2}, {"beta": 0.05}])
def test_options_run(options: dict[str, Any], start: Path, shop: Path, tmp_path: Path) -> None:
    run = trainer(recipe(start, tmp_path, **options), shop)
    run.train()
    assert run.state.global_step == 2


@pytest.mark.parametrize("bits", [16, 4])
def test_adapters_are_merged_into_what_is_saved(
    model: MoonModel, shop: Path, start: Path, tmp_path: Path, bits: int
) -> None:
    if bits == 4:
        pytest.importorskip("bitsandbytes")
    moon = copy.deepcopy(model)
    product = [Product(id="a", title="red shoe")]
    # bitsandbytes packs weights for a CPU in blocks of 64, which the inner width of the toy is no multiple of
    lora = Lora(r=4, quantise=bits == 4, targets=("q_proj", "v_proj", "up_proj"))
    names = set(moon.backbone.state_dict())
    if lora.quantise:
        quantise(moon, lora)
    before = moon.encode(product).vectors
    add_lora(moon, lora)
    trained = {n for n, p in moon.named_parameters() if p.requires_grad}
    assert any("lora_A" in n for n in trained) and any(n.startswith("head.") for n in trained)
    assert not any(".visual." in n or ("lora" not in n and ".layers." in n) for n in trained)
    rows = {n: p.shape for n, p in moon.named_parameters() if "embed" in n and p.requires_grad}
    assert [shape[0] for shape in rows.values()] == [3]  # the three new tokens, not the vocabulary
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in moon.named_parameters():
            if "lora_B" in name or name in rows:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    after = moon.encode(product).vectors
    assert abs(after - before).max() > 1e-3
    with without_lora(moon):
        torch.testing.assert_close(torch.from_numpy(moon.encode(product).vectors), torch.from_numpy(before))
    merged = merged_state(moon)
    assert set(merged) == names and all(tensor.is_floating_point() for tensor in merged.values())
    moon.save_pretrained(tmp_path / "merged", state=merged)
    torch.testing.assert_close(
        torch.from_numpy(MoonModel.from_pretrained(tmp_path / "merged").encode(product).vectors),
        torch.from_numpy(after), atol=1e-5, rtol=0,
    )  # fmt: skip
    folder = train_joint(recipe(start, tmp_path / "run", lora=lora.model_dump(), beta=0.1), shop)
    assert MoonModel.from_pretrained(folder).encode(product).vectors.shape == (1, 256)


def test_frozen_parts_do_not_move(start: Path, shop: Path, tmp_path: Path) -> None:
    moon = MoonModel.from_pretrained(start)
    frozen = "backbone.model.visual"
    folder = train_joint(recipe(start, tmp_path, freeze=[frozen]), shop)
    moved = dict(MoonModel.from_pretrained(folder).named_parameters())
    same = {n for n, p in moon.named_parameters() if torch.equal(p, moved[n])}
    assert {n for n, _ in moon.named_parameters() if n.startswith(frozen)} <= same
    assert "head.project.weight" not in same
    fresh = MoonModel.from_pretrained(start)
    freeze(fresh, [frozen])
    assert not any(p.requires_grad for p in fresh.backbone.model.visual.parameters())


def test_frozen_weights_are_halved_where_nothing_is_lost(model: MoonModel) -> None:
    moon = copy.deepcopy(model)
    freeze(moon, ["backbone.model.visual"])
    tower = dict(moon.backbone.model.visual.named_parameters())
    published = next(name for name, weight in tower.items() if weight.ndim > 1)
    with torch.no_grad():
        tower[published].copy_(tower[published].bfloat16())
    before = {name: weight.clone() for name, weight in moon.named_parameters()}
    lighten(moon)
    assert tower[published].dtype == torch.bfloat16
    for name, weight in moon.named_parameters():
        assert torch.equal(weight.float(), before[name]), name
        assert weight.dtype == torch.float32 or not weight.requires_grad


def test_the_policy_holds_every_weight_once(model: MoonModel) -> None:
    policy = JointPolicy(copy.deepcopy(model), torch.float32, 1.0)
    names = {name for name, _ in policy.named_parameters()}
    assert {f"moon.{name}" for name, _ in model.named_parameters()} == names
