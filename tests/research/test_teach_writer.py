"""A tiny model's decoder is taught to write about the products of a drawn shop."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import yaml

from moonshelf import MoonModel, Product
from research.starter.teach_writer import run, with_glance
from research.synthetic.feeds import write_products
from research.synthetic.shop import iter_products
from tiny import pictures

PRODUCTS = [
    Product(id="text", title="red running shoe"),
    Product(id="image", images=pictures(1)),
    Product(id="both", title="leather heels", images=pictures(2, 3)),
]


def test_a_new_glance_changes_nothing_and_one_that_says_something_is_read(model: MoonModel) -> None:
    plain = copy.deepcopy(model)
    made = with_glance(plain)
    assert made.config.glance and with_glance(made) is made
    before, same = (m.encode(PRODUCTS, reason="on") for m in (plain, made))
    assert same.rationales == before.rationales
    torch.testing.assert_close(torch.from_numpy(same.vectors), torch.from_numpy(before.vectors))
    torch.nn.init.normal_(made.head.glance.weight)
    after = made.encode(PRODUCTS)
    moved = abs(after.vectors - plain.encode(PRODUCTS).vectors).max(1)
    shown = [bool(PRODUCTS[row].images) for row in after.row_index]
    assert (moved > 1e-4).tolist() == shown  # texts alone stay as they were


def test_teaching_leaves_everything_but_the_decoder_and_the_glance(model: MoonModel, tmp_path: Path) -> None:
    write_products(tmp_path / "shop.parquet", iter_products(24, 5, 1, 96))
    taught = copy.deepcopy(model)
    taught.save_pretrained(tmp_path / "model")
    recipe = {
        "stage": "cold-start", "model": str(tmp_path / "model"), "out": str(tmp_path / "unused"),
        "sources": [{"feed": "shop.parquet"}], "validation": "shop.parquet", "validation_items": 4,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(
        tmp_path / "recipe.yaml", tmp_path, str(tmp_path / "model"), tmp_path / "out",
        minutes=0.05, batch=4, texts_batch=4, rate=1e-3, save_minutes=10,
    )  # fmt: skip
    after, before = MoonModel.from_pretrained(tmp_path / "out").state_dict(), taught.state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed and all(name.startswith("backbone.model.language_model") for name in changed)
    assert after["head.glance.weight"].any()
