"""The paths of a tiny model, fitted to the products of a drawn shop."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moonshelf import MoonModel, Product
from moonshelf.training.data import SourceSpec, load_source
from moonshelf.training.losses import info_nce
from moonshelf.training.sources.pairs import Item
from research.starter.fit_paths import (
    fit,
    keys_of,
    neighbour_loss,
    read,
    stated_of,
    with_pictures,
    with_tower,
)  # fmt: skip
from research.starter.fit_written import Kept, facts_of, reasoned
from research.starter.fit_written import fit as fit_written
from research.starter.fit_written import keys_of as keys_of_facts
from research.starter.reshape import reshaped
from research.starter.teach_writer import with_glance
from research.synthetic.feeds import write_products
from research.synthetic.shop import iter_products


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("paths")
    write_products(folder / "shop.parquet", iter_products(40, 5, 1, 96))
    return load_source(SourceSpec(feed="shop.parquet"), folder)


@pytest.fixture
def silent(model: MoonModel) -> MoonModel:
    """The tiny model with paths that say nothing yet."""
    return with_pictures(copy.deepcopy(model))


def test_a_new_path_says_nothing_and_a_fitted_one_brings_titles_to_their_photos(
    silent: MoonModel, items: list[Item]
) -> None:
    said = [item.title for item in items]
    titles, photos = read(silent, said), read(silent, [""] * len(items), items)
    everyone, same = torch.arange(len(items)), torch.eye(len(items), dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(photos.vectors(silent, everyone), photos.base)

        def loss() -> float:
            sides = (seen.vectors(silent, everyone) for seen in (titles, photos))
            return float(info_nce(*sides, torch.tensor(20.0), same, (256,)))

        before = loss()
    torch.manual_seed(0)
    names, keys = keys_of(items)
    feeds = [(everyone[:20], 0.5), (everyone[20:], 0.5)]
    fit(silent, titles, [photos], read(silent, names), keys, everyone, feeds, steps=60, batch=len(items))
    with torch.no_grad():
        assert loss() < 0.5 * before
        # What is saved gives what was fitted, and what is read anew is the same base.
        for kept, texts, shown in ((titles, said, ()), (photos, [""] * len(items), items)):
            again, wanted = read(silent, texts, shown), kept.vectors(silent, everyone)
            torch.testing.assert_close(again.base, kept.base, atol=2e-2, rtol=0)
            found = silent.encode([
                Product(id=i.id, title=text, images=i.images[:1] if shown else ())
                for i, text in zip(items, texts, strict=True)
            ])  # fmt: skip
            near = torch.nn.functional.cosine_similarity(torch.from_numpy(found.vectors), wanted)
            assert near.min() > 0.999


def test_a_path_that_the_decoder_reads_stays_when_words_are_fitted_again(
    silent: MoonModel, items: list[Item]
) -> None:
    torch.nn.init.normal_(silent.head.pictures.linear.weight)
    again = with_pictures(with_glance(silent))
    before = copy.deepcopy(again.head.state_dict())
    said, everyone = [item.title for item in items], torch.arange(len(items))
    titles, photos = read(again, said), read(again, [""] * len(items), items)
    names, keys = keys_of(items)
    more = {"stated": read(again, stated_of(items)), "others": read(again, said)}
    fit(again, titles, [photos], read(again, names), keys, everyone, [(everyone, 1.0)], 3, 20, **more)
    changed = {n for n, weight in again.head.state_dict().items() if not torch.equal(weight, before[n])}
    assert changed and all(name.startswith(("words.free", "words.linear")) for name in changed)


def test_neighbours_differ_by_the_divergence_of_their_shares() -> None:
    def shares(x: np.ndarray) -> np.ndarray:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        found = np.exp(x @ x.T / 0.1)
        np.fill_diagonal(found, 0)
        return found / found.sum(1, keepdims=True)

    found, wanted = np.random.default_rng(0).normal(size=(2, 9, 6))
    said, truth = shares(found), shares(wanted)
    by_hand = np.mean(np.sum(truth * np.log(np.where(truth > 0, truth, 1) / np.where(said > 0, said, 1)), 1))
    loss = neighbour_loss(torch.from_numpy(found), torch.from_numpy(wanted))
    assert loss.item() == pytest.approx(by_hand, abs=1e-9)
    assert neighbour_loss(torch.from_numpy(found), torch.from_numpy(2 * found)).item() == pytest.approx(0)


def test_what_follows_from_a_rationale_is_fitted_and_nothing_else(
    silent: MoonModel, items: list[Item]
) -> None:
    made = reshaped(with_glance(silent), written=True)
    before, written = copy.deepcopy(made.head.state_dict()), made.head.words.written
    said, nothing, everyone = [item.title for item in items], [""] * len(items), torch.arange(len(items))
    seen = {"photo": reasoned(made, nothing, items), "both": reasoned(made, said, items)}
    views = {name: Kept(made, one) for name, one in {**seen, "title": reasoned(made, said)}.items()}
    names, keys = keys_of_facts([facts_of(item) for item in items])
    assert {"Apparel"} & set(names) and len(keys) > 3  # levels of the category are told too
    with torch.no_grad():
        # A vector with a rationale is put together as the model gives it.
        given = ["<think>colour: red</think>"] * len(items)  # within the limit
        products = [Product(id=i.id, title=i.title, images=i.images[:1]) for i in items]
        found = torch.from_numpy(made.encode(products, rationales=given).vectors)
        wanted = read(made, said, items, rationales=given).vectors(made, everyone)
        assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.999
        direct = {name: read(made, said).vectors(made, everyone) for name in ("title", "photo")}
        named = read(made, names).vectors(made, torch.arange(len(names)))
    told = Kept(made, reasoned(made, names))
    fit_written(written, views, direct, named, told, keys, everyone, [(everyone, 1.0)], 3, batch=20)
    changed = {n for n, weight in made.head.state_dict().items() if not torch.equal(weight, before[n])}
    assert changed and all(name.startswith("words.written") for name in changed)


def test_a_tower_in_another_s_place_is_brought_onto_its_tokens(
    silent: MoonModel, items: list[Item], tmp_path: Path
) -> None:
    """The same tower behind a rotation of its output gives the same vectors."""
    tower = copy.deepcopy(silent.backbone.model.visual)
    turn = torch.linalg.qr(torch.randn(64, 64))[0]
    with torch.no_grad():
        for merger in (tower.merger, *tower.deepstack_merger_list):
            merger.linear_fc2.weight.copy_(turn @ merger.linear_fc2.weight)
            merger.linear_fc2.bias.copy_(turn @ merger.linear_fc2.bias)
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(tower.config.to_json_string())
    before = read(silent, [""] * 8, items[:8]).base
    with_tower(silent, tmp_path, items)
    after = read(silent, [""] * 8, items[:8]).base
    near = torch.nn.functional.cosine_similarity(before, after)
    assert np.all(near.numpy() > 0.99), near
