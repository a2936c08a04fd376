"""Features of a frozen vision tower from disk: the same as computed, across runs, for that tower only."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from moonshelf import MoonModel
from moonshelf.errors import UserError
from moonshelf.feeds import write_jsonl
from moonshelf.sampleshop import iter_products
from moonshelf.training.cold_start import ColdStart
from moonshelf.training.recipe import Recipe
from moonshelf.training.tower_cache import TowerCache

TOWER = "backbone.model.visual"
FLOAT = torch.float32


def frozen(model: MoonModel) -> MoonModel:
    model = copy.deepcopy(model)
    model.backbone.model.visual.requires_grad_(False)
    return model


def pixels(model: MoonModel, *colours: str) -> tuple[torch.Tensor, torch.Tensor]:
    seen = [Image.new("RGB", (64 + 32 * n, 96), colour) for n, colour in enumerate(colours)]
    patches, grid = model.prepare.pixels(seen)
    return torch.from_numpy(patches), torch.from_numpy(grid)


def flat(seen: object) -> list[torch.Tensor]:
    deep = getattr(seen, "deepstack_features", [])
    return [*seen.pooler_output, *(each for layer in deep for each in layer)]


@pytest.mark.parametrize("family", ["model", "model_2_5"])
def test_the_file_gives_what_the_tower_gives(family, request, tmp_path):
    model = frozen(request.getfixturevalue(family))
    patches, grid = pixels(model, "red", "blue", "green")
    plain = model.look(patches, grid)
    cache = TowerCache(model, tmp_path / "new" / "tower.sqlite", FLOAT)
    for hits, misses in ((0, 3), (3, 3)):
        found = model.look(patches, grid)
        assert hasattr(found, "deepstack_features") == hasattr(plain, "deepstack_features")
        for a, b in zip(flat(found), flat(plain), strict=True):
            torch.testing.assert_close(a, b)
        assert (cache.hits, cache.misses) == (hits, misses)
    another = frozen(request.getfixturevalue(family))  # as another process would have it
    again = TowerCache(another, tmp_path / "new" / "tower.sqlite", FLOAT)
    mixed, sizes = pixels(model, "red", "white", "green")  # one of the three is new
    expected = flat(request.getfixturevalue(family).look(mixed, sizes))
    for a, b in zip(flat(another.look(mixed, sizes)), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert (again.hits, again.misses) == (2, 1)


def test_a_picture_that_comes_twice_is_computed_once(model, tmp_path):
    moon = frozen(model)
    picture = Image.new("RGB", (64, 64), "red")
    patches, grid = moon.prepare.pixels([picture, picture])
    cache = TowerCache(moon, tmp_path / "tower.sqlite", FLOAT)
    one, two = moon.look(torch.from_numpy(patches), torch.from_numpy(grid)).pooler_output
    assert torch.equal(one, two) and cache.misses == 1


def test_another_tower_or_type_finds_nothing(model, tmp_path):
    file = tmp_path / "tower.sqlite"
    first = frozen(model)
    patches, grid = pixels(first, "red")
    TowerCache(first, file, FLOAT)
    first.look(patches, grid)
    other = frozen(model)
    with torch.no_grad():
        next(other.backbone.model.visual.parameters()).add_(1e-3)
    expected = other.look(patches, grid).pooler_output[0]
    cache = TowerCache(other, file, FLOAT)
    torch.testing.assert_close(other.look(patches, grid).pooler_output[0], expected)
    third = TowerCache(frozen(model), file, torch.bfloat16)
    third(patches, grid)
    assert cache.hits == third.hits == 0


def test_a_tower_that_is_trained_is_refused(model, tmp_path):
    moon = copy.deepcopy(model)
    with pytest.raises(UserError, match=r"freeze: \[backbone.model.visual\]"):
        TowerCache(moon, tmp_path / "tower.sqlite", FLOAT)
    (tmp_path / "broken.sqlite").write_text("this is no database, whatever its name says" * 40)
    with pytest.raises(UserError, match=r"tower_cache: .*broken.sqlite cannot be used"):
        TowerCache(frozen(model), tmp_path / "broken.sqlite", FLOAT)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_jsonl(iter_products(12, seed=3, photos=2, size=96), folder / "shop.jsonl")
    return folder


def test_a_second_run_trains_from_the_file(model, shop, tmp_path):
    copy.deepcopy(model).save_pretrained(tmp_path / "start")

    def run(name: str, **changes: object) -> tuple[list[dict[str, object]], TowerCache | None]:
        settings = {
            "model": str(tmp_path / "start"), "sources": [{"feed": "shop.jsonl"}],
            "out": str(tmp_path / name), "steps": 12, "batch": 4, "reasoned_from": 0.0,
            "precision": "float32", "report_to": (),
            "freeze": [TOWER], "tower_cache": str(tmp_path / "tower.sqlite"), **changes,
        }  # fmt: skip
        training = ColdStart(Recipe.model_validate(settings), shop)
        before = {n: p.clone() for n, p in training.model.named_parameters() if n.startswith(TOWER)}
        training.run()
        now = dict(training.model.named_parameters())
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        look = training.model.look
        return [line for line in log if "kind" in line], look if isinstance(look, TowerCache) else None

    first, cold = run("first")
    second, warm = run("second")
    assert cold is not None and warm is not None
    assert cold.misses and cold.hits > cold.misses  # 12 products, twelve batches of four
    assert warm.misses == 0 and warm.hits == cold.hits + cold.misses
    for a, b in zip(first, second, strict=True):
        names = {"title", "phrase", "query", "sft", "norm"} & {*a, *b}
        assert {n: a[n] for n in names} == pytest.approx({n: b[n] for n in names}, rel=1e-3)
    with pytest.raises(UserError, match="the vision tower is trained"):
        run("third", freeze=[])
