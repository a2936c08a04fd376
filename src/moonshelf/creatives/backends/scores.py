"""Baselines that know nothing about creatives, or little: what a selector has to beat.

Each but the two that go by place scores single images; the difference of two scores goes through a
logistic link, p = 1 / (1 + exp(-scale · (s₁ - s₂))). A score does not depend on the order, so these never
flip. Their names, as the command line takes them, are in `names`.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf import images
from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.schema import Creative
from moonshelf.errors import UserError
from moonshelf.product import ImageRef, Product

if TYPE_CHECKING:
    from PIL.Image import Image

    from moonshelf.model.modeling import MoonModel

PLACE_ODDS = 4.0  # of the place that `first` and `second` believe in: p = 0.8
TEXT_SIDE = 384  # pixels of the longer side when words are looked for
KEPT = 4096  # scores and vectors that are remembered
CLIP_BATCH = 16
Scored = tuple[Creative, PairInput]  # a creative, and the pair in which it stands


class Remembered:
    """Values of things, each computed once; the `KEPT` latest stay."""

    def __init__(self, compute: Callable[[list[Any]], Iterable[Any]]) -> None:
        self.compute = compute
        self.known: dict[Any, Any] = {}

    def __call__(self, things: Sequence[Any]) -> list[Any]:
        new = [thing for thing in dict.fromkeys(things) if thing not in self.known]
        found = {**self.known, **dict(zip(new, self.compute(new), strict=True))} if new else self.known
        self.known = dict(list(found.items())[-KEPT:])
        return [found[thing] for thing in things]


class ByPlace(PairwiseBackend):
    """Always the image in one place: the position bias that a selector must not have."""

    def __init__(self, place: int) -> None:
        self.name = ("first", "second")[place]
        self.p = (PLACE_ODDS if place == 0 else 1.0) / (PLACE_ODDS + 1)

    def predict(self, inputs: Sequence[PairInput]) -> list[PairPrediction]:
        return [PairPrediction(self.p) for _ in inputs]


class ScoreBackend(PairwiseBackend):
    """A backend that scores one image at a time. `scale` is the slope of the link."""

    scale: float = 1.0

    @abstractmethod
    def score(self, rows: Sequence[Scored]) -> list[float]:
        """A score a creative, higher is better; NaN where it cannot be read."""

    def scores(self, inputs: Sequence[PairInput]) -> np.ndarray:
        """(n, 2) float64 scores of the first and the second image."""
        flat = self.score([(creative, one) for one in inputs for creative in (one.first, one.second)])
        return np.asarray(flat, np.float64).reshape(-1, 2)

    def predict(self, inputs: Sequence[PairInput]) -> list[PairPrediction]:
        gaps = self.scale * self.scores(inputs) @ (1.0, -1.0)
        return [PairPrediction(None if math.isnan(gap) else _sigmoid(gap)) for gap in gaps]


class PerImage(ScoreBackend):
    """Scores that follow from one picture alone, by a function of its bytes."""

    def __init__(self, name: str, function: Callable[[bytes], float], scale: float = 1.0) -> None:
        self.name, self.function, self.scale = name, function, scale
        self._scores = Remembered(lambda refs: [self._one(ref) for ref in refs])

    def score(self, rows: Sequence[Scored]) -> list[float]:
        return self._scores([creative.image for creative, _ in rows])

    def _one(self, ref: ImageRef) -> float:
        try:
            return self.function(images.read_bytes(ref))
        except images.ImageError:
            return math.nan


class Coin(ScoreBackend):
    """A score from 0 to 1 that follows from the seed, the words and the image's bytes."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, rows: Sequence[Scored]) -> list[float]:
        return [self._one(creative.image, one) for creative, one in rows]

    def _one(self, ref: ImageRef, one: PairInput) -> float:
        try:
            pixels = hashlib.sha256(images.read_bytes(ref)).digest()
        except images.ImageError:
            return math.nan
        words = "\0".join((str(self.seed), one.title, *one.interest)).encode()
        return int.from_bytes(hashlib.sha256(words + b"\0" + pixels).digest()[:8], "big") / 2**64


def text_share(image: Image) -> float:
    """Share of a picture (0 … 1) that looks like words: an estimate without OCR, ours.

    Words are many short strokes side by side: in a small window, strong steps from dark to light and from
    light to dark are frequent and about as frequent as each other. Stripes, checks and lattices look the
    same, so a patterned product counts as text; large display type with few strokes does not.
    """
    size = [max(8, round(side * TEXT_SIDE / max(image.size))) for side in image.size]
    grey = np.asarray(image.convert("L").resize((size[0], size[1])), np.float32)
    step = np.diff(grey, axis=1)
    rises, falls = (_box(mask.astype(np.float32), 7, 21) for mask in (step > 40, step < -40))
    rare, frequent = np.minimum(rises, falls), np.maximum(rises, falls)
    return float(((rare > 0.05) & (rare > 0.5 * frequent)).mean())


def _box(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mean over a window around each place, with nothing beyond the edges."""
    padded = np.pad(mask, ((height // 2 + 1, height // 2), (width // 2 + 1, width // 2)))
    total = padded.cumsum(0).cumsum(1)
    window = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    return np.asarray(window / (height * width))


class Similarity(ScoreBackend):
    """Cosine of our direct vectors of image and words: the title, or the queries (else the title)."""

    scale = 20.0

    def __init__(self, model: MoonModel, words: str = "title") -> None:
        self.name, self.model = words, model
        self._vectors = Remembered(self._encode)

    def score(self, rows: Sequence[Scored]) -> list[float]:
        pictures = self._vectors([creative.image for creative, _ in rows])
        words = self._vectors([self._words(one) for _, one in rows])
        # Without words there is nothing to be like: both images score 0.
        return [float(one @ np.nan_to_num(other)) for one, other in zip(pictures, words, strict=True)]

    def _words(self, one: PairInput) -> str:
        return "; ".join(one.interest) or one.title if self.name == "interest" else one.title

    def _encode(self, things: list[ImageRef | str]) -> np.ndarray:
        """(n, dim) unit vectors; rows of NaN for a picture that cannot be read and for no words."""
        vectors = np.full((len(things), int(self.model.config.dim)), np.nan, np.float32)
        told = [i for i, thing in enumerate(things) if thing]
        products = [
            Product(id=str(i), title=thing) if isinstance(thing, str) else Product(id=str(i), images=(thing,))
            for i in told
            for thing in (things[i],)
        ]
        if products:
            out = self.model.encode(products, reason="off", on_error="report")
            vectors[np.asarray(told)[out.row_index]] = out.vectors
        return vectors


class ClipScore(ScoreBackend):
    """Cosine of image and words in a CLIP-like model, times its own temperature where it has one.

    With a preference model of that form (PickScore) this is its score; the words are the title and the
    queries, where such models were trained on image prompts. Offline, safetensors only.
    """

    def __init__(self, folder: str | Path) -> None:
        from moonshelf.model.stock import Clip

        place = Path(folder).expanduser()
        if not place.is_dir():
            raise UserError(f"clip: takes the folder of a CLIP-like model, and {str(folder)!r} is none")
        self.name = f"clip:{place.name}"
        self.clip = Clip(place, self.name)
        slope = getattr(self.clip.model, "logit_scale", None)
        self.factor = float(slope.detach().float().exp()) if slope is not None else 100.0
        self._pictures = Remembered(self._embed)

    def score(self, rows: Sequence[Scored]) -> list[float]:
        from moonshelf.model.stock import unit

        found: list[float] = []
        for start in range(0, len(rows), CLIP_BATCH):
            part = rows[start : start + CLIP_BATCH]
            seen = self._pictures([creative.image for creative, _ in part])
            texts = [", ".join(filter(None, (one.title, *one.interest))) for _, one in part]
            for picture, text, word in zip(seen, texts, unit(self.clip.embed_texts(texts)), strict=True):
                cosine = math.nan if picture is None else float(picture @ word)
                found.append(self.factor * cosine if text or picture is None else 0.0)
        return found

    def _embed(self, refs: list[ImageRef]) -> list[np.ndarray | None]:
        from moonshelf.model.stock import unit

        found: dict[ImageRef, Any] = {}
        for ref in refs:
            try:
                found[ref] = images.load(ref, max_side=self.clip.max_side)
            except images.ImageError:
                found[ref] = None
        shown = [ref for ref in refs if found[ref] is not None]
        if shown:
            found |= zip(shown, unit(self.clip.embed_pictures([found[ref] for ref in shown])), strict=True)
        return [found[ref] for ref in refs]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
