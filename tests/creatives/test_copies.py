"""Pictures that nothing can be said of: noise, grey copies and crops, beside ordinary ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from moonshelf import images
from moonshelf.creatives.safety.pictures import SIDE, is_noise, one_is_a_copy
from moonshelf.product import ImageRef
from research.synthetic.campaigns.simulator import simulate

CAMPAIGNS = list(simulate(6, seed=77, split="test", same=0, alike=0))


def seen(image: Image.Image) -> Image.Image:
    """As the selector sees it, out of a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return images.load(ImageRef(data=file.getvalue()), max_side=SIDE)


@pytest.mark.parametrize("kind", ["colours", "grey", "faint", "pepper", "blurred", "blocks"])
def test_noise_is_told_from_advertisements(kind: str) -> None:
    rng = np.random.default_rng(5)
    fine = rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)
    made = {
        "colours": Image.fromarray(fine),
        "grey": Image.fromarray(fine[..., 0]).convert("RGB"),
        "faint": Image.fromarray(fine // 8 + 200),
        "pepper": Image.fromarray(np.where(fine[..., :1] < 40, 0, 255).astype(np.uint8).repeat(3, 2)),
        "blurred": Image.fromarray(fine).filter(ImageFilter.GaussianBlur(1)),
        "blocks": Image.fromarray(fine[:32, :32]).resize((256, 256), Image.Resampling.NEAREST),
    }
    assert is_noise(seen(made[kind]))
    assert not any(is_noise(images.load(one.image)) for campaign in CAMPAIGNS for one in campaign.creatives)


@pytest.mark.parametrize("change", ["grey", "crop", "grey crop", "margins"])
def test_a_changed_copy_is_no_second_creative(change: str) -> None:
    found = []
    for campaign in CAMPAIGNS:
        whole = images.load(campaign.creatives[0].image)
        width, height = whole.size
        box = {
            "grey": (0, 0, width, height),
            "margins": (width // 30, height // 30, width - width // 30, height - height // 30),
        }.get(change, (width // 12, height // 9, int(width * 0.85), int(height * 0.9)))
        cut = whole.crop(box)
        other = seen(cut.convert("L").convert("RGB") if "grey" in change else cut)
        found += [one_is_a_copy(seen(whole), other), one_is_a_copy(other, seen(whole))]
    assert all("same image" in why for why in found)
    assert all(("part" in why) == (change != "grey") for why in found)


def test_creatives_of_one_product_are_not_taken_for_copies() -> None:
    for campaign in CAMPAIGNS:
        a, b = (seen(images.load(one.image)) for one in campaign.creatives)
        assert not one_is_a_copy(a, b)
