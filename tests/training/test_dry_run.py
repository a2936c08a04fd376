"""A dry run says what would be trained, from the feeds alone, and writes nothing."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from moonshelf import MoonModel
from moonshelf.errors import UserError
from moonshelf.feeds import write_jsonl
from moonshelf.training.cold_start import train_cold_start
from moonshelf.training.joint import train_joint
from moonshelf.training.recipe import JointRecipe, Recipe
from research.synthetic.shop import iter_products


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_jsonl(iter_products(10, seed=9, photos=2, size=96), tmp_path / "shop.jsonl")
    return tmp_path


def test_a_cold_start_from_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.model_validate(
        {
            "sources": [{"feed": "shop.jsonl", "weight": 3}, {"feed": "sample", "weight": 1}], "chunk": 4,
            "validation": "shop.jsonl", "out": str(shop / "run"), "vocabulary": 500, "batch": 12,
        }
    )  # fmt: skip
    train_cold_start(recipe, shop, dry_run=True)
    said = capsys.readouterr().out
    assert "shop.jsonl: 10 items, 10 with attributes, 10 with several pictures, 75% of what is drawn" in said
    assert "sample: 160 items" in said and re.search(r"validation: \d of 10 items, one a group", said)
    assert "3,000 steps of 12 products in chunks of 4" in said and "M parameters are trained" in said
    assert not (shop / "run").exists()


def test_a_joint_run_of_a_folder(model: MoonModel, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy.deepcopy(model).save_pretrained(shop / "start")
    recipe = JointRecipe(model=str(shop / "start"), sources=[{"feed": "shop.jsonl"}], products=3, rollouts=5)
    train_joint(recipe, shop, dry_run=True)
    said = capsys.readouterr().out
    assert "3 products, 5 rollouts each" in said and "M parameters are trained" in said


def test_nothing_to_train_on_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "title": "no picture"}\n')
    with pytest.raises(UserError, match="no product with a picture"):
        train_cold_start(Recipe(sources=[{"feed": "a.jsonl"}]), tmp_path, dry_run=True)
