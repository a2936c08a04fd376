"""Baselines that know nothing about creatives, or little: what a selector has to beat.

Each but the two that go by place scores single images; the difference of two scores goes through a
logistic link, p = 1 / (1 + exp(-scale · (s₁ - s₂))). A score does not depend on the order, so these never
flip. Their names, as the command line takes them, are in `names`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import convolve1d
from scipy.special import expit

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
        return [PairPrediction(None if math.isnan(gap) else float(expit(gap))) for gap in gaps]


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


Encode = Callable[[list[Any]], list[np.ndarray | None]]  # unit vectors of pictures and texts; None for none


def _cosines(name: str, encode: Encode, asked: Callable[[PairInput], str], scale: float) -> ScoreBackend:
    """Cosine of each image and the words `asked` of its pair."""
    known = Remembered(encode)

    def score(rows: Sequence[Scored]) -> Iterator[float]:
        pictures = known([creative.image for creative, _ in rows])
        for picture, words in zip(pictures, known([asked(one) for _, one in rows]), strict=True):
            if picture is None:
                yield math.nan
            else:  # without words there is nothing to be like: both images score 0
                yield 0.0 if words is None else float(picture @ words)

    return ScoreBackend(name, score, scale)


def similarity(model: MoonModel, words: str = "title") -> ScoreBackend:
    """Cosine of our direct vectors of image and words: the title, or the queries (else the title)."""

    def encode(things: list[ImageRef | str]) -> list[np.ndarray | None]:
        products = [
            Product(id=str(i), **({"title": thing} if isinstance(thing, str) else {"images": (thing,)}))
            for i, thing in enumerate(things)
            if thing
        ]
        if not products:
            return [None] * len(things)
        out = model.encode(products, reason="off", on_error="report")
        found = {products[row].id: one for row, one in zip(out.row_index, out.vectors, strict=True)}
        return [found.get(str(i)) for i in range(len(things))]

    def asked(one: PairInput) -> str:
        return "; ".join(one.interest) or one.title if words == "interest" else one.title

    return _cosines(words, encode, asked, 20.0)


def clip_score(folder: str | Path) -> ScoreBackend:
    """Cosine of image and words in a CLIP-like model, times its own temperature where it has one.

    With a preference model of that form (PickScore) this is its score; the words are the title and the
    queries, where such models were trained on image prompts. Offline, safetensors only.
    """
    from moonshelf.model.encoders.stock import ClipEncoder

    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"clip: takes the folder of a CLIP-like model, and {str(folder)!r} is none")
    name = f"clip:{place.name}"
    clip = ClipEncoder(place, name)
    slope = getattr(clip.model, "logit_scale", None)
    scale = float(slope.detach().float().exp()) if slope is not None else 100.0

    def encode(things: list[ImageRef | str]) -> list[np.ndarray | None]:
        found: dict[ImageRef | str, Any] = {}
        for start in range(0, len(things), CLIP_BATCH):
            part, pictures = things[start : start + CLIP_BATCH], dict[ImageRef | str, Any]()
            for ref in part:
                with suppress(images.ImageError):
                    if isinstance(ref, ImageRef):
                        pictures[ref] = images.load(ref, max_side=clip.max_side)
            if pictures:
                found |= zip(pictures, clip.embed(None, list(pictures.values())), strict=True)
            if texts := [text for text in part if isinstance(text, str) and text]:
                found |= zip(texts, clip.embed(texts, None), strict=True)
        return [found.get(thing) for thing in things]

    return _cosines(name, encode, lambda one: ", ".join(filter(None, (one.title, *one.interest))), scale)
