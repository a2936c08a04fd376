"""Backends that know nothing about creatives, or little: what a selector has to beat.

Each but the two that go by place scores single images; the difference of two scores goes through a
logistic link, p = 1 / (1 + exp(-scale · (s₁ - s₂))), whose scale `fit_scale` fits on validation pairs. A
score does not depend on the order, so these never flip. Names, as the command line takes them:

    random            a number that follows from seed, words and pixels: a coin for every pair
    first, second     always the same place
    bytes             log of the file's size: the larger file wins
    text              share of the picture that looks like words (`text_share`: an estimate, see there)
    title, interest   cosine of our direct vectors of the image and of the words
    clip:FOLDER       CLIP, SigLIP or a preference model of their form (PickScore), safetensors only
    pointwise:FOLDER  a head on our vectors that was fitted on click-through rates (`pointwise`)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf import images
from moonshelf.creatives.judging import Ask, Backend, Opinion
from moonshelf.creatives.pair import Creative, Pair
from moonshelf.creatives.safety import clean, clean_all
from moonshelf.errors import UserError
from moonshelf.product import ImageRef, Product

if TYPE_CHECKING:
    from PIL.Image import Image

    from moonshelf.model.modeling import MoonModel

BASELINES = ("random", "first", "second", "bytes", "text", "title", "interest")
KINDS = ("clip", "pointwise")
PLACE_ODDS = 4.0  # of the place that `first` and `second` believe in: p = 0.8
TEXT_SIDE = 384  # pixels of the longer side when words are looked for
_KEPT = 4096  # scores and vectors that are remembered


class Scored:
    """A backend that scores one image at a time. `scale` is the slope of the link."""

    name: str
    scale: float = 1.0

    def score(self, asks: Sequence[tuple[Creative, Ask]]) -> list[float]:
        """A score a creative, higher is better; NaN where it cannot be read."""
        raise NotImplementedError

    def scores(self, asks: Sequence[Ask]) -> np.ndarray:
        """(n, 2) float64 scores of the first and the second image."""
        flat = self.score([(creative, ask) for ask in asks for creative in (ask.first, ask.second)])
        return np.asarray(flat, np.float64).reshape(-1, 2)

    def opinions(self, asks: Sequence[Ask]) -> list[Opinion]:
        gaps = self.scores(asks) @ (1.0, -1.0)
        return [Opinion(None if math.isnan(gap) else _sigmoid(self.scale * gap)) for gap in gaps]


class ByPlace:
    """Always the image in one place: the position bias that a selector must not have."""

    def __init__(self, place: int) -> None:
        self.name = ("first", "second")[place]
        self.p = (PLACE_ODDS if place == 0 else 1.0) / (PLACE_ODDS + 1)

    def opinions(self, asks: Sequence[Ask]) -> list[Opinion]:
        return [Opinion(self.p) for _ in asks]


class PerImage(Scored):
    """Scores that follow from one picture alone, by a function of its bytes."""

    def __init__(self, name: str, function: Callable[[bytes], float], scale: float = 1.0) -> None:
        self.name, self.function, self.scale = name, function, scale
        self._known: dict[ImageRef, float] = {}

    def score(self, asks: Sequence[tuple[Creative, Ask]]) -> list[float]:
        return [self._one(creative.image) for creative, _ in asks]

    def _one(self, ref: ImageRef) -> float:
        if ref not in self._known:
            try:
                value = self.function(images.read_bytes(ref))
            except images.ImageError:
                value = math.nan
            _remember(self._known, ref, value)
        return self._known[ref]


class Coin(Scored):
    """A score from 0 to 1 that follows from the seed, the words and the image's bytes."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, asks: Sequence[tuple[Creative, Ask]]) -> list[float]:
        found = []
        for creative, ask in asks:
            try:
                data = images.read_bytes(creative.image)
            except images.ImageError:
                found.append(math.nan)
                continue
            words = "\0".join((str(self.seed), ask.title, *ask.interest)).encode()
            digest = hashlib.sha256(words + b"\0" + hashlib.sha256(data).digest()).digest()
            found.append(int.from_bytes(digest[:8], "big") / 2**64)
        return found


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


class Vectors:
    """Our direct vectors of pictures and words, each encoded once."""

    def __init__(self, model: MoonModel) -> None:
        self.model = model
        self._known: dict[ImageRef | str, np.ndarray] = {}

    def __call__(self, things: Sequence[ImageRef | str]) -> np.ndarray:
        """(n, dim) float32 unit vectors; a row of NaN for a picture that cannot be read and for no words."""
        unknown = [thing for thing in dict.fromkeys(things) if thing and thing not in self._known]
        products = [
            Product(id=str(i), title=thing) if isinstance(thing, str) else Product(id=str(i), images=(thing,))
            for i, thing in enumerate(unknown)
        ]
        none = np.full(self.dim, np.nan, np.float32)
        fresh: dict[ImageRef | str, np.ndarray] = dict.fromkeys(unknown, none)
        if products:
            out = self.model.encode(products, reason="off", on_error="report")
            fresh |= {unknown[int(row)]: v for row, v in zip(out.row_index, out.vectors, strict=True)}
        rows = [fresh[t] if t in fresh else self._known.get(t, none) for t in things]
        for thing, vector in fresh.items():
            _remember(self._known, thing, vector)
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    @property
    def dim(self) -> int:
        return int(self.model.config.dim)


class Similarity(Scored):
    """Cosine of the image's vector and that of the words: the title, or the queries (title without any)."""

    def __init__(self, vectors: Vectors, words: str = "title", scale: float = 20.0) -> None:
        self.name, self.vectors, self.scale = words, vectors, scale

    def score(self, asks: Sequence[tuple[Creative, Ask]]) -> list[float]:
        pictures = self.vectors([creative.image for creative, _ in asks])
        words = self.vectors([self._words(ask) for _, ask in asks])
        # Without words there is nothing to be like: both images score 0.
        cosines = (pictures * np.nan_to_num(words)).sum(1)
        return [float(cosine) for cosine in cosines]

    def _words(self, ask: Ask) -> str:
        return "; ".join(ask.interest) or ask.title if self.name == "interest" else ask.title


class ClipScore(Scored):
    """Cosine of image and words in a CLIP-like model, times its own temperature where it has one.

    With a preference model of that form (PickScore) this is its score; the words are the title and the
    queries, where such models were trained on image prompts. Offline, safetensors only.
    """

    def __init__(self, folder: str | Path, batch: int = 16) -> None:
        from moonshelf.model.stock import Clip

        place = Path(folder).expanduser()
        if not place.is_dir():
            raise UserError(f"clip: takes the folder of a CLIP-like model, and {str(folder)!r} is none")
        self.name = f"clip:{place.name}"
        self.clip, self.batch = Clip(place, self.name), batch
        slope = getattr(self.clip.model, "logit_scale", None)
        self.factor = float(slope.detach().float().exp()) if slope is not None else 100.0
        self._known: dict[ImageRef, np.ndarray | None] = {}

    def score(self, asks: Sequence[tuple[Creative, Ask]]) -> list[float]:
        from moonshelf.model.stock import unit

        found: list[float] = []
        for start in range(0, len(asks), self.batch):
            part = asks[start : start + self.batch]
            seen = self._pictures([creative.image for creative, _ in part])
            texts = [", ".join(filter(None, (ask.title, *ask.interest))) for _, ask in part]
            words = unit(self.clip.embed_texts(texts))
            for picture, text, word in zip(seen, texts, words, strict=True):
                found.append(
                    math.nan if picture is None else self.factor * float(picture @ word) if text else 0.0
                )
        return found

    def _pictures(self, refs: Sequence[ImageRef]) -> list[np.ndarray | None]:
        from moonshelf.model.stock import unit

        fresh: dict[ImageRef, Any] = {}
        for ref in refs:
            if ref not in self._known and ref not in fresh:
                try:
                    fresh[ref] = images.load(ref, max_side=self.clip.max_side)
                except images.ImageError:
                    fresh[ref] = None
        shown = [ref for ref, picture in fresh.items() if picture is not None]
        if shown:
            vectors = unit(self.clip.embed_pictures([fresh[ref] for ref in shown]))
            fresh.update(zip(shown, vectors, strict=True))
        rows = [fresh[ref] if ref in fresh else self._known[ref] for ref in refs]
        for ref, vector in fresh.items():
            _remember(self._known, ref, vector)
        return rows


# ------------------------------------------------------------------------------------------------ the link


def asks_of(pairs: Sequence[Pair]) -> list[Ask]:
    """Each pair once, A first, with cleaned words: enough for backends without an order."""
    found = []
    for pair in pairs:
        title, _ = clean(pair.title)
        interest, _ = clean_all(pair.interest)
        found.append(Ask(pair.id, title, interest, pair.a, pair.b, ("A", "B")))
    return found


def fit_scale(backend: Scored, pairs: Sequence[Pair], posteriors: Sequence[float]) -> float:
    """Set and return the scale with the least log loss against P(A is better); for validation pairs only.

    The scale stays positive: a score that misleads on validation gets one near zero, so that the backend
    abstains, and is never turned round. Raises `UserError` where no pair can be scored.
    """
    gaps, targets = backend.scores(asks_of(pairs)) @ (1.0, -1.0), np.asarray(posteriors, np.float64)
    usable = np.isfinite(gaps) & (gaps != 0)
    if not usable.any():
        raise UserError(f"{backend.name} can score none of the {len(pairs)} pairs: are their images there?")
    gaps, targets = gaps[usable], targets[usable]
    unit = float(np.abs(gaps).mean())
    low, high = math.log(1e-3 / unit), math.log(1e3 / unit)
    for _ in range(60):  # the loss is convex in the scale: halve where its slope changes sign
        middle = (low + high) / 2
        slope = float(
            ((1 / (1 + np.exp(-np.clip(math.exp(middle) * gaps, -500, 500))) - targets) * gaps).sum()
        )
        low, high = (low, middle) if slope > 0 else (middle, high)
    backend.scale = math.exp((low + high) / 2)
    return backend.scale


def make_baseline(name: str, model: str | Path | MoonModel = "starter", seed: int = 0) -> Backend:
    """The baseline of that name. `model` is our embedding model, loaded only where vectors are needed."""
    kind, _, rest = name.partition(":")
    if kind in KINDS and rest:
        if kind == "clip":
            return ClipScore(rest)
        from moonshelf.creatives.pointwise import PointwiseHead

        return PointwiseHead.load(rest, _load(model))
    if name == "random":
        return Coin(seed)
    if name in ("first", "second"):
        return ByPlace(("first", "second").index(name))
    if name == "bytes":
        return PerImage(name, lambda data: math.log(len(data)))
    if name == "text":
        return PerImage(name, lambda data: text_share(images.decode(data, max_side=2 * TEXT_SIDE)), 10.0)
    if name in ("title", "interest"):
        return Similarity(Vectors(_load(model)), name)
    raise UserError(
        f"there is no baseline {name!r}: there are {', '.join(BASELINES)}, clip:FOLDER and pointwise:FOLDER"
    )


DIRECT, PIXELS = ":direct", ":pixels"  # no reasons; no words beside the pictures


def make_backend(name: str, model: str | Path | MoonModel = "starter", seed: int = 0) -> Backend:
    """A backend by its name: a baseline, `openai:URL#MODEL`, or our selector (`starter` or a folder)."""
    kind, _, rest = name.partition(":")
    if kind == "openai" and rest:
        from moonshelf.creatives.endpoint import make_endpoint

        return make_endpoint(name)
    if name in BASELINES or (kind in KINDS and rest):
        return make_baseline(name, model, seed)
    whole = name
    direct, name = name.endswith(DIRECT), name.removesuffix(DIRECT)
    pixels, name = name.endswith(PIXELS), name.removesuffix(PIXELS)
    if name != "starter" and not Path(name).expanduser().is_dir():
        raise UserError(
            f"there is no backend {whole!r}: give starter, the folder of a selector (either with {PIXELS} to "
            f"keep words on the images from it, or {DIRECT} to answer without reasons), openai:URL#MODEL, "
            f"{', '.join(BASELINES)}, clip:FOLDER or pointwise:FOLDER"
        )
    from moonshelf.creatives.model_backend import CreativeModel

    selector = CreativeModel.from_pretrained(name)
    if direct and selector.prompt.describe_first:
        raise UserError(
            f"{whole}: this selector compares by what it wrote of each image, so it cannot answer without "
            f"reasons. Leave {DIRECT} away: an image is described once, however many it is compared with."
        )
    selector.reasons, selector.name = not direct, whole
    if pixels:
        selector.config = selector.config.model_copy(
            update={"prompt": selector.prompt.model_copy(update={"overlays": False})}
        )
    return selector


def _load(model: str | Path | MoonModel) -> MoonModel:
    if not isinstance(model, (str, Path)):
        return model
    from moonshelf.model.modeling import MoonModel

    return MoonModel.from_pretrained(model)


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _KEPT:
        del known[next(iter(known))]
    known[key] = value


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
