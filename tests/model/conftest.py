"""Products of every shape, and copies of the tiny models that a test may break or save."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from tiny import pictures


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def fresh(model: MoonModel) -> MoonModel:
    """A copy that a test may break."""
    return copy.deepcopy(model)


@pytest.fixture(scope="session")
def saved(model: MoonModel, tmp_path_factory: pytest.TempPathFactory) -> MoonModel:
    """The tiny model saved with golden vectors, and loaded again; `saved.source` is its folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    copy.deepcopy(model).save_pretrained(folder, golden=True)
    return MoonModel.from_pretrained(folder)


@pytest.fixture(scope="session")
def products() -> list[Product]:
    """Text only, image only, both, several images, and a long text."""
    return [
        Product(id="text", title="red running shoe"),
        Product(id="image", images=pictures(1)),
        Product(id="both", title="leather heels", images=pictures(2)),
        Product(id="several", title="blue shoe for men", images=pictures(3, 4, 5)),
        Product(id="long", title="category of red leather shoes for men and running " * 4),
        Product(id="short", title="a", images=pictures(6)),
    ]


@pytest.fixture
def script(fresh: MoonModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], MoonModel]:
    """A model that wants to write given token ids, whatever it reads (one product at a time)."""

    def make(ids: list[int]) -> MoonModel:
        left = iter(ids)

        def logits(states: torch.Tensor) -> torch.Tensor:
            wanted = torch.zeros(len(states), fresh.vocabulary)
            wanted[:, next(left, fresh.prepare.end_think)] = 1.0
            return wanted

        monkeypatch.setattr(fresh, "logits", logits)
        return fresh

    return make
