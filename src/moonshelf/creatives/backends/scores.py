"""Baselines that know nothing about creatives, or little: what a selector has to beat.

Each but the two that go by place scores single images; the difference of two scores goes through a
logistic link, p = 1 / (1 + exp(-scale · (s₁ - s₂))). A score does not depend on the order, so these never
flip. Their names, as the command line takes them, are in `names`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import convolve1d

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
WINDOW = 7, 21  # pixels, high and wide, in which strokes are counted
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
    """A backend that scores one image at a time; `scale` is the slope of the link.

    `score` gives a number for each creative, higher is better; NaN where it cannot be read.
    """

    def __init__(
        self, name: str, score: Callable[[Sequence[Scored]], Iterable[float]], scale: float = 1.0
    ) -> None:
        self.name, self.score, self.scale = name, score, scale

    def scores(self, inputs: Sequence[PairInput]) -> np.ndarray:
        """(n, 2) float64 scores of the first and the second image."""
        flat = self.score([(creative, one) for one in inputs for creative in (one.first, one.second)])
        return np.array(list(flat), np.float64).reshape(-1, 2)

    def predict(self, inputs: Sequence[PairInput]) -> list[PairPrediction]:
        gaps = self.scale * self.scores(inputs) @ (1.0, -1.0)
        return [PairPrediction(None if math.isnan(gap) else _sigmoid(gap)) for gap in gaps]


def _of_bytes(ref: ImageRef, function: Callable[[bytes], float]) -> float:
    try:
        return function(images.read_bytes(ref))
    except images.ImageError:
        return math.nan


def per_image(name: str, function: Callable[[bytes], float], scale: float = 1.0) -> ScoreBackend:
    """Scores that follow from one picture alone, by a function of its bytes."""
    known = Remembered(lambda refs: [_of_bytes(ref, function) for ref in refs])
    return ScoreBackend(name, lambda rows: known([creative.image for creative, _ in rows]), scale)


def coin(seed: int = 0) -> ScoreBackend:
    """A score from 0 to 1 that follows from the seed, the words and the image's bytes."""

    def score(creative: Creative, one: PairInput) -> float:
        words = "\0".join((str(seed), one.title, *one.interest)).encode()

        def drawn(data: bytes) -> float:
            digest = hashlib.sha256(words + b"\0" + hashlib.sha256(data).digest()).digest()
            return int.from_bytes(digest[:8], "big") / 2**64

        return _of_bytes(creative.image, drawn)

    return ScoreBackend("random", lambda rows: [score(*row) for row in rows])


def text_share(image: Image) -> float:
    """Share of a picture (0 … 1) that looks like words: an estimate without OCR, ours.

    Words are many short strokes side by side: in a small window, strong steps from dark to light and from
    light to dark are frequent and about as frequent as each other. Stripes, checks and lattices look the
    same, so a patterned product counts as text; large display type with few strokes does not.
    """
    size = [max(8, round(side * TEXT_SIDE / max(image.size))) for side in image.size]
    step = np.diff(np.asarray(image.convert("L").resize((size[0], size[1])), np.int64), axis=1)
    counts = [(step > 40).astype(np.int64), (step < -40).astype(np.int64)]
    for axis, length in enumerate(WINDOW):
        counts = [convolve1d(one, np.ones(length, np.int64), axis, mode="constant") for one in counts]
    rare, frequent = np.minimum(*counts), np.maximum(*counts)
    return float(((rare > 0.05 * math.prod(WINDOW)) & (2 * rare > frequent)).mean())


def text_share_of(data: bytes) -> float:
    return text_share(images.decode(data, max_side=2 * TEXT_SIDE))


def similarity(model: MoonModel, words: str = "title") -> ScoreBackend:
    """Cosine of our direct vectors of image and words: the title, or the queries (else the title)."""

    def encode(things: list[ImageRef | str]) -> np.ndarray:
        """(n, dim) unit vectors; rows of NaN for a picture that cannot be read and for no words."""
        vectors = np.full((len(things), int(model.config.dim)), np.nan, np.float32)
        told = [i for i, thing in enumerate(things) if thing]
        shown = [
            {"title": thing} if isinstance(thing, str) else {"images": (thing,)} for thing in things if thing
        ]
        if told:
            products = [Product(id=str(i), **one) for i, one in zip(told, shown, strict=True)]
            out = model.encode(products, reason="off", on_error="report")
            vectors[np.asarray(told)[out.row_index]] = out.vectors
        return vectors

    def asked(one: PairInput) -> str:
        return "; ".join(one.interest) or one.title if words == "interest" else one.title

    def score(rows: Sequence[Scored]) -> list[float]:
        pictures = known([creative.image for creative, _ in rows])
        others = known([asked(one) for _, one in rows])
        # Without words there is nothing to be like: both images score 0.
        return [float(one @ np.nan_to_num(other)) for one, other in zip(pictures, others, strict=True)]

    known = Remembered(encode)
    return ScoreBackend(words, score, 20.0)


def clip_score(folder: str | Path) -> ScoreBackend:
    """Cosine of image and words in a CLIP-like model, times its own temperature where it has one.

    With a preference model of that form (PickScore) this is its score; the words are the title and the
    queries, where such models were trained on image prompts. Offline, safetensors only.
    """
    from moonshelf.model.stock import Clip, unit

    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"clip: takes the folder of a CLIP-like model, and {str(folder)!r} is none")
    name = f"clip:{place.name}"
    clip = Clip(place, name)
    slope = getattr(clip.model, "logit_scale", None)
    factor = float(slope.detach().float().exp()) if slope is not None else 100.0

    def embed(refs: list[ImageRef]) -> list[np.ndarray | None]:
        pictures: dict[ImageRef, Any] = {}
        for ref in refs:
            try:
                pictures[ref] = images.load(ref, max_side=clip.max_side)
            except images.ImageError:
                continue
        vectors: Any = unit(clip.embed_pictures(list(pictures.values()))) if pictures else ()
        found = dict(zip(pictures, vectors, strict=True))
        return [found.get(ref) for ref in refs]

    def score(rows: Sequence[Scored]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(rows), CLIP_BATCH):
            part = rows[start : start + CLIP_BATCH]
            seen = known([creative.image for creative, _ in part])
            texts = [", ".join(filter(None, (one.title, *one.interest))) for _, one in part]
            for picture, text, word in zip(seen, texts, unit(clip.embed_texts(texts)), strict=True):
                cosine = math.nan if picture is None else float(picture @ word)
                found.append(factor * cosine if text or picture is None else 0.0)
        return found

    known = Remembered(embed)
    return ScoreBackend(name, score)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
