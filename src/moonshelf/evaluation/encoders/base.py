"""What every baseline that is a neural network shares: what it is shown, batches, unit vectors, its folder.

A baseline reads exactly what our model reads: the text that the prompt gives our model, and the first photo,
decoded by `moonshelf.images`. A product of which a baseline can read nothing is set aside with a reason, not
scored as a vector of nothing. Weights come from a folder, or from the hub where a download was allowed, and
are loaded by `model.stock`. The fingerprint is a hash of the files, never a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from moonshelf import images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT, Vectors
from moonshelf.evaluation.data import hub
from moonshelf.model.stock import unit
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image

# What is fetched from the hub: data and nothing else; `*.model` is a SentencePiece vocabulary.
FETCH = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
Side = Literal["document", "query"]
_IGNORE = ("onnx/*", "openvino/*", "original/*")


class BaselineEncoder:
    """A text encoder, an image encoder, or both: subclasses give `embed` and say what they read.

    `queries` is the same model as it encodes what is searched *for*, where its documentation has another
    instruction for that; None where both sides are encoded alike.
    """

    name: str
    fingerprint: str
    reads: frozenset[str]
    one_space: bool = False
    writes: bool = False
    cheap: bool = False
    batch: int = 32
    max_side: int | None = None  # pictures are decoded no larger than this
    prompt: PromptSpec = PromptSpec()
    queries: Any = None
    _field: ClassVar[dict[frozenset[str], str]] = {TEXT: "title", IMAGE: "images", BOTH: "title, images"}

    def embed(
        self, texts: list[str] | None, pictures: list[Image.Image] | None, side: Side = "document"
    ) -> np.ndarray:
        """(n, dim) vectors of n products; one of the two is None where those products do not show it.

        `side` is only told to a baseline that has `queries`.
        """
        raise NotImplementedError

    @cached_property
    def dim(self) -> int:
        """Size of a vector, from one that is made for it."""
        from PIL import Image

        if "text" in self.reads:
            return int(np.asarray(self.embed(["a product"], None)).shape[1])
        return int(np.asarray(self.embed(None, [Image.new("RGB", (64, 64), "white")])).shape[1])

    def encode(self, products: Sequence[Product]) -> Vectors:
        """Unit vectors, in order; what cannot be read is not `ok` and has a problem."""
        n = len(products)
        found: dict[int, np.ndarray] = {}
        problems: list[Problem] = []
        for start in range(0, n, self.batch):
            groups: dict[tuple[bool, bool], list[tuple[int, str, Any]]] = {}
            for row in range(start, min(start + self.batch, n)):
                try:
                    text, picture = self._read(products[row])
                except images.ImageError as error:
                    problems.append(Problem(row + 1, "images", str(error), products[row].id))
                    continue
                if not text and picture is None:
                    reason = f"there is no {' or '.join(sorted(self.reads))} that {self.name} could read"
                    problems.append(Problem(row + 1, self._field[self.reads], reason, products[row].id))
                    continue
                groups.setdefault((bool(text), picture is not None), []).append((row, text, picture))
            for (has_text, has_picture), shown in groups.items():
                vectors = self.embed(
                    [text for _, text, _ in shown] if has_text else None,
                    [picture for _, _, picture in shown] if has_picture else None,
                )
                rows = [row for row, _, _ in shown]
                found.update(zip(rows, unit(vectors), strict=True))
        width = len(next(iter(found.values()))) if found else 1
        vectors, ok = np.zeros((n, width), np.float32), np.zeros(n, bool)
        for row, vector in found.items():
            vectors[row], ok[row] = vector, True
        return Vectors(vectors, ok, [""] * n, np.ones(n, bool), problems)

    def _read(self, product: Product) -> tuple[str, Image.Image | None]:
        text = self.prompt.text_of(product) if "text" in self.reads else ""
        if "image" not in self.reads or not product.images:
            return text, None
        return text, images.load(product.images[0], max_side=self.max_side)


class QuerySide(BaselineEncoder):
    """A baseline as it encodes queries: the same weights with another instruction."""

    def __init__(self, other: BaselineEncoder) -> None:
        self.other, self.prompt = other, other.prompt
        self.reads, self.one_space = other.reads, other.one_space
        self.batch, self.max_side = other.batch, other.max_side

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.other.name  # which may be given another one later

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self.other.fingerprint + "|query"

    def embed(
        self, texts: list[str] | None, pictures: list[Image.Image] | None, side: Side = "query"
    ) -> np.ndarray:
        return self.other.embed(texts, pictures, "query")


# ---- folders ---------------------------------------------------------------------------------------


def locate(name: str, download: bool) -> Path:
    """The folder of a path or, where a download is allowed, of a hub id. `UserError` if there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not download:
        raise UserError(
            f"there is no folder {name!r}, and no download was allowed: name a folder of weights, "
            "or allow a download (--download) to fetch a model of that name from the hub"
        )
    return Path(hub.fetch(name, FETCH, ignore_patterns=list(_IGNORE)))


def hash_folder(kind: str, folder: Path, *settings: object) -> str:
    """Kind, SHA-256 of every file that is read (hex), and the settings that change a vector."""
    digest = hashlib.sha256()
    patterns = {p.removeprefix("*") for p in FETCH}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and path.suffix in patterns and not any(p.startswith(".") for p in inside.parts):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{inside.as_posix()} {content}\n".encode())
    return "|".join([kind, digest.hexdigest(), *map(str, settings)])


def short_name(kind: str, name: str) -> str:
    """Name for tables: a hub id as it is, of a path only the last part."""
    return f"{kind}:{Path(name).name if Path(name).expanduser().is_dir() else name}"
