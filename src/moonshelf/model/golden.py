"""Golden vectors: a few inputs saved with a model, and what the saved weights make of them.

A copy on another machine, with other library versions or after a bad download, must give the same vectors;
`moonshelf doctor` asks for them. Vectors are held to a cosine of 1 − 1e-4, above the rounding of float32
between CPUs and thread counts (about 1e-6) and below any change of weights or preprocessing. A rationale
is a chain of arg-max choices, so near-ties may fall differently on another CPU: that is a warning.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.product import ImageRef, Product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moonshelf.model.modeling import MoonModel

TOLERANCE = 1e-4  # of 1 - cosine
DIGITS = 7


class GoldenItem(BaseModel):
    """One product and its results; pictures are base64 PNG, vectors unit length."""

    model_config = ConfigDict(extra="forbid")

    id: str
    title: str = ""
    images: list[str] = []
    direct: list[float] = []
    reasoned: list[float] = []
    rationale: str = ""

    def product(self) -> Product:
        pictures = tuple(ImageRef(data=base64.b64decode(image)) for image in self.images)
        return Product(id=self.id, title=self.title, images=pictures)


class Golden(BaseModel):
    """`golden.json`."""

    model_config = ConfigDict(extra="forbid")

    items: list[GoldenItem]


@dataclass(frozen=True)
class Difference:
    """One golden result that came out otherwise; `level` is error for a vector, warning for a rationale."""

    level: Literal["error", "warning"]
    message: str


def draw(seed: int, width: int, height: int) -> str:
    """A picture of a coloured disc and a bar on a gradient, base64 PNG; integers only, the same anywhere."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    colours = np.array([[200, 30, 40], [20, 90, 180], [30, 140, 60], [230, 180, 30]])
    radius = min(width, height) // 3
    disc = (x - width // 2) ** 2 + (y - height // 2) ** 2 < radius**2
    picture[disc] = colours[seed % 4]
    picture[height * 3 // 4 : height * 7 // 8, width // 8 : width * 7 // 8] = colours[(seed + 1) % 4]
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def built_in() -> list[GoldenItem]:
    """Text only, picture only, both, several pictures, and a long text beside a strip of a picture."""
    return [
        GoldenItem(id="text", title="red leather running shoe for men"),
        GoldenItem(id="picture", images=[draw(0, 120, 120)]),
        GoldenItem(id="both", title="blue cotton t-shirt, round neck", images=[draw(1, 96, 144)]),
        GoldenItem(id="several", title="green mug", images=[draw(2, 128, 96), draw(3, 80, 80)]),
        GoldenItem(id="long", title="wooden dining chair with armrests " * 6, images=[draw(3, 300, 60)]),
    ]


def write_golden(folder: Path, products: Sequence[Product] | None = None) -> None:
    """Add `golden.json` to a saved model: the results of the files, not of a model in memory."""
    from moonshelf.model.modeling import MoonModel

    items = built_in() if products is None else [_item(product) for product in products]
    model = MoonModel.from_pretrained(folder)
    inputs = [item.product() for item in items]
    direct, reasoned = (model.encode(inputs, reason=mode) for mode in ("off", "on"))
    for i, item in enumerate(items):
        item.direct = [round(float(x), DIGITS) for x in direct.vectors[i]]
        item.reasoned = [round(float(x), DIGITS) for x in reasoned.vectors[i]]
        item.rationale = reasoned.rationales[i]
    (folder / "golden.json").write_text(Golden(items=items).model_dump_json(indent=1) + "\n")


def _item(product: Product) -> GoldenItem:
    from moonshelf.images import read_bytes

    pictures = [base64.b64encode(read_bytes(ref)).decode() for ref in product.images]
    return GoldenItem(id=product.id, title=product.title, images=pictures)


def read_golden(folder: Path) -> Golden | None:
    """The golden results of a saved model, None if it has none."""
    path = folder / "golden.json"
    if not path.is_file():
        return None
    try:
        return Golden.model_validate(files.read_json(path))
    except ValidationError as error:
        raise UserError(
            f"golden.json in {folder.name!r} is not one of this version: save it anew."
        ) from error


def compare(model: MoonModel, golden: Golden) -> tuple[float, list[Difference]]:
    """The largest 1 − cosine of a vector, and what differs.

    A reasoned vector is compared where its rationale is the same: another text is another vector.
    """
    inputs = [item.product() for item in golden.items]
    direct, reasoned = (model.encode(inputs, reason=mode) for mode in ("off", "on"))
    worst, found = 0.0, []
    for i, item in enumerate(golden.items):
        pairs = [("direct", item.direct, direct.vectors[i])]
        if reasoned.rationales[i] == item.rationale:
            pairs.append(("reasoned", item.reasoned, reasoned.vectors[i]))
        else:
            found.append(
                Difference("warning", f"{item.id!r}: the rationale reads {reasoned.rationales[i]!r} now")
            )
        for name, wanted, given in pairs:
            distance = _distance(wanted, given)
            worst = max(worst, distance)
            if not distance <= TOLERANCE:
                message = f"{item.id!r}: the {name} vector is off by {distance:.1e} (1 - cosine)"
                found.append(Difference("error", message))
    return worst, found


def _distance(wanted: list[float], given: Any) -> float:
    if len(wanted) != len(given):
        return float("inf")
    a, b = np.asarray(wanted, dtype=np.float64), np.asarray(given, dtype=np.float64)
    return max(0.0, 1.0 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)))
