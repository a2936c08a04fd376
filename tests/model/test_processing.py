"""The tensors that the backbone gets: the same as a chat template and a stock processor call would give."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moonshelf import images
from moonshelf.model.engine import load_picture, make_batch, read_row
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import Preprocessor
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec
from tiny import picture, pictures

TITLES = [
    "red running shoe",
    "a",
    "Größe 42, très léger: 100% coton!",
    "  spaced  out\ttitle\n",
    "鞋 红色 👟",
]


def rendered(prepare: Preprocessor, title: str, n_images: int) -> str:
    """The prompt of one product by the processor's chat template."""
    content: list[dict[str, str]] = [{"type": "image"}] * n_images
    if prepare.prompt.instruction:
        content = [{"type": "text", "text": prepare.prompt.instruction}, *content]
    if title:
        content.append({"type": "text", "text": title})
    messages: list[Any] = [{"role": "user", "content": content}]
    return prepare.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("n_images", [0, 1, 3])
@pytest.mark.parametrize("instruction", ["", "Describe the product.\n"])
def test_ids_equal_the_chat_template(model: MoonModel, title: str, n_images: int, instruction: str) -> None:
    spec = model.prompt.model_copy(update={"instruction": instruction})
    prepare = Preprocessor(model.processor, spec)
    text = spec.text_of(Product(id="a", title=title))
    refs = pictures(*range(1, n_images + 1))
    loaded = [images.load(ref) for ref in refs]
    prompt = rendered(prepare, text, n_images)
    stock = model.processor(images=loaded or None, text=[prompt], return_tensors="pt")
    counts = prepare.image_tokens(prepare.pixels(loaded)[1]) if loaded else []
    ids, kinds = prepare.row(prepare.text_ids([text])[0], counts, [])
    assert stock["input_ids"][0].tolist() == ids
    assert stock["mm_token_type_ids"][0].tolist() == [int(kind == 1) for kind in kinds]


def test_the_stock_call_gives_the_batch_of_the_preprocessor(
    model: MoonModel, products: list[Product]
) -> None:
    """Padding, masks, ids and patches of a batch with no, one and several pictures."""
    prepare = model.prepare
    rows, prompts, loaded = [], [], []
    for product in products:
        text = model.prompt.text_of(product)
        row = read_row(model, 0, product, prepare.text_ids([text])[0])
        assert row is not None
        rows.append(row)
        prompts.append(rendered(prepare, text, len(product.images)))
        loaded.append([load_picture(ref, model.prompt.max_pixels) for ref in product.images])
    batch = make_batch(model, rows, [])
    tokenizer = model.processor.tokenizer
    tokenizer.padding_side = "right"
    stock = model.processor(images=loaded, text=prompts, padding=True, return_tensors="pt")
    assert torch.equal(stock["input_ids"], batch.input_ids)
    assert torch.equal(stock["attention_mask"].bool(), batch.attention)
    assert torch.equal(stock["mm_token_type_ids"].bool(), batch.image_mask)
    assert batch.pixel_values is not None and batch.grid is not None
    assert torch.equal(stock["pixel_values"], batch.pixel_values)
    assert torch.equal(stock["image_grid_thw"], batch.grid)


def test_the_stock_forward_gives_our_states(model: MoonModel, products: list[Product]) -> None:
    """Positions and visual tokens as the backbone would make them itself."""
    for product in products:
        text = model.prompt.text_of(product)
        row = read_row(model, 0, product, model.prepare.text_ids([text])[0])
        assert row is not None
        batch = make_batch(model, [row], [model.prepare.emb])
        with torch.inference_mode():
            ours = model.read(batch).states
            stock = model.backbone.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention.long(),
                mm_token_type_ids=batch.image_mask.int(),
                pixel_values=batch.pixel_values,
                image_grid_thw=batch.grid,
                use_cache=False,
            ).last_hidden_state
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("no_images", [None, [], [[]]])
def test_the_stock_call_takes_text_alone(model: MoonModel, no_images: Any) -> None:
    out = model.processor(images=no_images, text="red shoe", return_tensors="pt")
    assert "pixel_values" not in out and out["input_ids"].shape[0] == 1


@pytest.mark.parametrize("family", ["model", "model_2_5"])
def test_patches_kept_as_bytes_are_bit_equal(family: str, request: pytest.FixtureRequest) -> None:
    """Also where channels are normalised apart, as stock processors do."""
    prepare = request.getfixturevalue(family).prepare
    noise = np.random.default_rng(0).integers(0, 256, (130, 110, 3), dtype=np.uint8)
    loaded = [Image.fromarray(noise), images.decode(picture(2))]
    floats, grid = prepare.pixels(loaded)
    cut, grid_of_cut = prepare.cut(loaded)
    assert cut.dtype == np.uint8 and np.array_equal(grid, grid_of_cut)
    assert np.array_equal(prepare.scale(cut), floats)


def test_masks_of_a_batch(model: MoonModel, products: list[Product]) -> None:
    prepare = model.prepare
    tail = [prepare.think, *prepare.text_ids(["colour: red"])[0], prepare.end_think, prepare.emb]
    rows = [read_row(model, 0, p, prepare.text_ids([p.title])[0]) for p in products]
    batch = make_batch(model, [r for r in rows if r is not None], tail)
    everything = batch.image_mask.int() + batch.text_mask.int() + batch.rationale_mask.int()
    assert everything.max() == 1 and not (everything.bool() & ~batch.attention).any()
    assert (batch.rationale_mask.sum(1) == len(tail) - 1).all()
    assert (batch.input_ids.gather(1, batch.emb[:, None]) == prepare.emb).all()
    assert (batch.input_ids[batch.image_mask] == prepare.image).all()
    for i, product in enumerate(products):
        assert prepare.ids(product.title) == batch.input_ids[i][batch.text_mask[i]].tolist()


def test_text_and_pictures_are_capped(model: MoonModel) -> None:
    spec = PromptSpec(max_text_chars=10, max_images=2)
    assert spec.text_of(Product(id="a", title="x" * 50)) == "x" * 10
    many = Product(id="a", images=pictures(1, 2, 3, 4, 5, 6))
    row = read_row(model, 0, many, [])
    assert row is not None and len(row.image_tokens) == model.prompt.max_images == 4
    largest = model.prompt.max_pixels // (16 * 2) ** 2
    assert all(0 < n <= largest for n in row.image_tokens)


def test_a_jpeg_and_its_pixels_agree(model: MoonModel) -> None:
    """A small JPEG is not shrunk while decoding, so a file and the decoded picture give the same patches."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(3))).save(buffer, "JPEG")  # noqa: TID251 - our own bytes
    decoded = images.decode(buffer.getvalue())
    again = io.BytesIO()
    decoded.save(again, "PNG")
    first, second = (model.prepare.cut([images.decode(b.getvalue())])[0] for b in (buffer, again))
    assert np.array_equal(first, second)
