"""Fixtures that several rooms share; what is heavy is imported when a test asks for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands note for the user stays out of the home of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> MoonModel:
    """Qwen3-VL, hidden 64, two layers, with a language head of its own: rationales end at different steps."""
    import torch

    from tiny import tiny_qwen3

    torch.set_num_threads(1)
    return tiny_qwen3(tokenizer)


@pytest.fixture(scope="session")
def model_2_5(tokenizer: Any) -> MoonModel:
    """The same size on Qwen2.5-VL."""
    from tiny import tiny_qwen2_5

    return tiny_qwen2_5(tokenizer)
