"""How much the engine computes, counted and not timed: a guard that does not depend on the machine.

Counts are of floating-point operations and of passes, which are the same everywhere for one input.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moonshelf.model import engine, files
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from research.synthetic.shop import iter_products

pytestmark = pytest.mark.skipif(not (files.STARTER / "moon.json").is_file(), reason="no starter is shipped")


@pytest.fixture(scope="module")
def starter() -> MoonModel:
    return MoonModel.from_pretrained("starter")


@pytest.fixture(scope="module")
def shop() -> list[Product]:
    return list(iter_products(24, seed=3, photos=1, size=160))


def flops(run: Any) -> float:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops())


def test_reasoning_costs_less_than_reading_again(starter: MoonModel, shop: list[Product]) -> None:
    direct = flops(lambda: starter.encode(shop))
    reasoned = flops(lambda: starter.encode(shop, reason="on"))
    told = starter.encode(shop, reason="on").rationales
    again = flops(lambda: starter.encode(shop, rationales=told))
    assert reasoned < 1.6 * direct, f"{reasoned / direct:.2f}"
    assert reasoned < 0.7 * (reasoned + again), "two passes would cost hardly more"


def test_each_picture_goes_through_the_tower_once(
    starter: MoonModel, shop: list[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = starter.backbone.model.visual
    seen: list[int] = []
    forward = tower.forward
    monkeypatch.setattr(
        tower, "forward", lambda pixels, *a, **k: seen.append(len(pixels)) or forward(pixels, *a, **k)
    )
    rows, _ = engine.read_rows(starter, [(i, (p, "")) for i, p in enumerate(shop)], "on")
    patches = sum(len(row.patches) for row in rows if row.patches is not None)
    for reason in ("off", "on", "auto"):
        seen.clear()
        starter.encode(shop, reason=reason)  # type: ignore[arg-type]
        assert sum(seen) == patches > 0, reason


def test_padding_stays_small(
    starter: MoonModel, shop: list[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = starter.read
    cells: list[int] = []
    used: list[int] = []

    def spy(batch: Any, *args: Any, **kwargs: Any) -> Any:
        cells.append(batch.input_ids.numel())
        used.append(int(batch.attention.sum()))
        return read(batch, *args, **kwargs)

    monkeypatch.setattr(starter, "read", spy)
    with torch.inference_mode():
        starter.encode(shop * 4)
    assert sum(cells) < 1.2 * sum(used), f"{sum(cells) / sum(used):.2f}"
