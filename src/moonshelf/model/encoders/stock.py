"""Encoders that others have trained: any SentenceTransformer, CLIP and SigLIP, as the encoder of a catalogue.

    encoder = load("st:/models/all-MiniLM-L6-v2")
    encoder.encode(products).vectors

They take the text that their `PromptSpec` gives and the first photo, decoded by `moonshelf.images`, with the
prompts that the model's own folder names for documents and queries. A product of which an encoder can read
nothing is a `Problem`, not a vector of nothing. Weights come as safetensors from a folder, or from the hub
where a download was allowed; no code of a model is run (`model.stock`). The fingerprint is a hash of the
files, never a name.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from unittest.mock import patch

import numpy as np

from moonshelf import images
from moonshelf.errors import Problem, UserError
from moonshelf.model.encoders.base import (
    BOTH,
    IMAGE,
    TEXT,
    Numbered,
    Reason,
    Run,
    Written,
    check_mode,
)
from moonshelf.model.encoders.stream import Streamed
from moonshelf.model.files import MODEL_TYPES, MODULE, fetch, read_json
from moonshelf.model.stock import check_folder, load_model, loading, pick_device, unit, whole
from moonshelf.prompts import END_THINK, THINK, PromptSpec, read_rationale

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("st", "clip")
# What is fetched from the hub: data and nothing else; `*.model` is a SentencePiece vocabulary.
FETCH = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
_IGNORE = ("onnx/*", "openvino/*", "original/*")
# What of a product in a catalogue is read: as much as such encoders take, and the first photo.
PROMPT = PromptSpec(text_fields=("title", "description"), max_text_chars=1_000, max_images=1)
_PICTURE_TOKENS, _CHARS = 256, 4  # what a picture costs, and characters a token, of the cost of a row


@dataclass
class StockRow:
    """One product as it is shown: see `base.ReadRow`."""

    index: int
    id: str
    text: str
    picture: Image.Image | None
    rationale: str = ""  # given, and part of the text
    gone: bool = False

    @property
    def length(self) -> int:
        return 1 + len(self.text) // _CHARS + _PICTURE_TOKENS * (self.picture is not None)


class StockEncoder(Streamed):
    """A text encoder, an image encoder, or both: subclasses give `embed` and say what they read.

    `setting` is what moves a vector a little beside the files, such as where it is computed: a catalogue is
    compared across machines, a cache of figures is not.
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
    queries: Any = None  # `as_queries()` of a model that has prompts or instructions for both sides
    side: Literal["document", "query"] = "document"
    setting: str = ""
    source: str = ""  # by which Ray's workers load it too
    _field: ClassVar[dict[frozenset[str], str]] = {TEXT: "title", IMAGE: "images", BOTH: "title, images"}

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        """(n, dim) vectors of n products; one of the two is None where those products do not show it."""
        raise NotImplementedError

    def as_queries(self) -> Self:
        """The same weights as they encode what is searched for: `side` tells `embed`."""
        other = copy.copy(self)
        other.side, other.fingerprint = "query", f"{self.fingerprint}|query"
        return other

    @cached_property
    def dim(self) -> int:
        """Size of a vector, from one that is made for it."""
        from PIL import Image

        if "text" in self.reads:
            return int(np.asarray(self.embed(["a product"], None)).shape[1])
        return int(np.asarray(self.embed(None, [Image.new("RGB", (64, 64), "white")])).shape[1])

    def read_rows(self, numbered: Sequence[Numbered], reason: Reason) -> tuple[list[StockRow], list[Problem]]:
        """What of each product can be shown, and a problem for each of which nothing can."""
        rows: list[StockRow] = []
        problems: list[Problem] = []
        for index, (product, rationale) in numbered:
            text = self.prompt.text_of(product) if "text" in self.reads else ""
            body = rationale.removeprefix(THINK).removesuffix(END_THINK)
            text = "\n".join(part for part in (text, body) if part)
            picture = None
            try:
                if "image" in self.reads and product.images:
                    picture = images.load(product.images[0], max_side=self.max_side)
            except images.ImageError as error:
                problems.append(Problem(index + 1, "images", str(error), product.id))
                continue
            if not text and picture is None:
                reason_why = f"there is no {' or '.join(sorted(self.reads))} that {self.name} could read"
                problems.append(Problem(index + 1, self._field[self.reads], reason_why, product.id))
                continue
            rows.append(StockRow(index, product.id, text, picture, rationale))
        return rows, problems

    def runner(self, reason: Reason, batch_tokens: int) -> Run:
        check_mode(self, self.name, reason)
        return self._compute

    def budget(self, reason: Reason, tokens: int) -> int:
        return tokens

    def to(self, device: str) -> None:
        """Move it, as torch does. Only models in this process can be."""

    def _compute(self, rows: Sequence[StockRow]) -> list[Written]:
        """In batches of rows that show the same and are of like length."""
        found: dict[int, Written] = {}
        groups: dict[tuple[bool, bool], list[int]] = {}
        for place in sorted(range(len(rows)), key=lambda i: rows[i].length):
            row = rows[place]
            groups.setdefault((bool(row.text), row.picture is not None), []).append(place)
        for (has_text, has_picture), places in groups.items():
            weights = np.array([has_picture, has_text, False], np.float32) / (has_text + has_picture)
            for start in range(0, len(places), self.batch):
                part = [place for place in places[start : start + self.batch] if not rows[place].gone]
                vectors = self.embed(
                    [rows[place].text for place in part] if has_text else None,
                    [picture for place in part if (picture := rows[place].picture)] if has_picture else None,
                )
                for place, vector in zip(part, unit(vectors), strict=True):
                    given = rows[place].rationale
                    valid = not given or read_rationale(given) is not None
                    found[place] = Written(vector, weights, given, valid)
        for place in set(range(len(rows))) - found.keys():  # gone: nobody reads it
            found[place] = Written(np.zeros(self.dim, np.float32), np.zeros(3, np.float32), valid=False)
        return [found[place] for place in range(len(rows))]


class SentenceTransformerEncoder(StockEncoder):
    """A SentenceTransformer, or any encoder of transformers that it can pool: of text, pictures or both.

    A two-tower model that is shown text and a picture gives the mean direction of both vectors; one that
    takes both in one input gets one input.
    """

    def __init__(self, folder: Path, name: str, prompt: PromptSpec | None = None) -> None:
        self.model, missing = load_module("SentenceTransformer", folder, name)
        whole(folder, {key for key in missing if "pooler" not in key})  # states are pooled by mean instead
        self.name, self.prompt, self.setting = name, prompt or PromptSpec(), pick_device().type
        self.fingerprint = hash_folder("st", folder)
        sees, reads = self.model.supports("image"), self.model.supports("text")
        if not sees and not reads:
            raise UserError(f"{name} reads neither text nor pictures")
        self.reads = BOTH if sees and reads else IMAGE if sees else TEXT
        self.one_space = sees and reads
        prompts = self.model.prompts
        if any(prompts.get(key) for key in ("query", "document", "passage", "corpus")):
            self.queries = self.as_queries()

    def to(self, device: str) -> None:
        self.model.to(device)

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        if texts is not None and pictures is not None and self.model.supports(("image", "text")):
            pairs = [{"image": i, "text": t} for i, t in zip(pictures, texts, strict=True)]
            return self._encode(pairs)
        parts = [self._encode(list(shown)) for shown in (texts, pictures) if shown is not None]
        return np.sum([unit(part) for part in parts], axis=0)

    def _encode(self, inputs: list[Any]) -> np.ndarray:
        encode = self.model.encode_query if self.side == "query" else self.model.encode_document
        return encode(
            inputs, batch_size=len(inputs), show_progress_bar=False, normalize_embeddings=True,
            convert_to_numpy=True,
        )  # fmt: skip


class ClipEncoder(StockEncoder):
    """CLIP, SigLIP and their kin in transformers: models with text and image features of one size."""

    reads, one_space = BOTH, True

    def __init__(self, folder: Path, name: str, prompt: PromptSpec | None = None) -> None:
        check_folder(folder)
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.model, dtype, missing = load_model(AutoModel, folder)
        if not hasattr(self.model, "get_text_features") or not hasattr(self.model, "get_image_features"):
            raise UserError(f"{name} has no text and image features in one space: is it an st: model?")
        whole(folder, missing)
        only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with loading(f"what prepares pixels and text in {folder.name!r}"):
            self.pixels = AutoImageProcessor.from_pretrained(folder, **only_data)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **only_data)
        self.max_side = _pixel_side(self.pixels)
        self.name, self.prompt = name, prompt or PromptSpec()
        self.fingerprint = hash_folder("clip", folder)
        self.setting = f"{dtype} {type(self.pixels).__name__}"
        # SigLIP was trained on lower-case text that is always padded to its full length.
        self.siglip = str(self.model.config.model_type).startswith("siglip")
        self.max_length = int(getattr(self.model.config.text_config, "max_position_embeddings", 77))

    def to(self, device: str) -> None:
        self.model.to(device)

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        import torch

        found: list[Any] = []
        with torch.inference_mode():
            if texts is not None:
                words = self.tokenizer(
                    [text.lower() for text in texts] if self.siglip else texts,
                    padding="max_length" if self.siglip else True,
                    truncation=True, max_length=self.max_length, return_tensors="pt",
                )  # fmt: skip
                found.append(self.model.get_text_features(**words.to(self.model.device)))
            if pictures is not None:
                seen = self.pixels(images=pictures, return_tensors="pt").to(self.model.device)
                seen["pixel_values"] = seen["pixel_values"].to(self.model.dtype)
                found.append(self.model.get_image_features(**seen))
        return np.sum([unit(_pooled(part).float().cpu().numpy()) for part in found], axis=0)


def _pixel_side(processor: Any) -> int | None:
    """Four times the side that a processor makes, so that its own resizing still has pixels to spare."""
    sizes = [getattr(processor, name, None) or {} for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in dict(size).values() if isinstance(side, int) and side < 4096]
    return 4 * max(sides) if sides else None


def _pooled(output: Any) -> Any:
    """(n, dim) of a model's features: the pooled ones, else the mean of the last states."""
    if not hasattr(output, "last_hidden_state"):
        return output
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    states = output.last_hidden_state
    return states.mean(dim=(2, 3)) if states.dim() == 4 else states.mean(dim=1)


# ---- loading ---------------------------------------------------------------------------------------


def parts(spec: str) -> tuple[str, Path]:
    """A model's name as `st:` or `clip:` and what follows; "" and the whole of another name.

    >>> parts("st:shelf/minilm")[0], parts("starter")[0]
    ('st:', '')
    """
    kind, colon, address = spec.partition(":")
    return (kind + colon, Path(address)) if colon and address and kind in KINDS else ("", Path(spec))


def short_name(spec: str) -> str:
    """Name for tables and callers: a hub id as it is, of a path only the last part."""
    kind, folder = parts(spec)
    return kind + folder.name if folder.expanduser().is_dir() else spec


def load(spec: str, prompt: PromptSpec | None = None, download: bool = False) -> StockEncoder:
    """The encoder `st:` or `clip:` with a folder or a hub id; `UserError` for one that cannot be used."""
    kind, _, address = spec.partition(":")
    make: Callable[..., StockEncoder] = ClipEncoder if kind == "clip" else SentenceTransformerEncoder
    folder = locate(address, download)
    encoder = make(folder, short_name(spec), prompt)
    encoder.source = f"{kind}:{folder.resolve()}"
    return encoder


def locate(name: str, download: bool) -> Path:
    """The folder of a path or of a hub id that was fetched before or, where a download is allowed, is now.
    `UserError` if there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(fetch(name, FETCH, ignore_patterns=list(_IGNORE), local_files_only=not download))
    except UserError:
        if download:
            raise
        raise UserError(
            f"there is no folder {name!r}, and no download was allowed: name a folder of weights, "
            "or allow a download (--download) to fetch a model of that name from the hub"
        ) from None


def hash_folder(kind: str, folder: Path) -> str:
    """16 hex digits over the kind and every file that is read."""
    digest = hashlib.sha256(kind.encode())
    patterns = {p.removeprefix("*") for p in FETCH}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and path.suffix in patterns and not any(p.startswith(".") for p in inside.parts):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{inside.as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def load_module(kind: str, folder: Path, name: str) -> tuple[Any, set[str]]:
    """A SentenceTransformer or CrossEncoder of a folder, read as data, and the weights that its files lack.

    Raises `UserError` for a folder that is none, keeps pickles, or would have to run code of its own.
    """
    need(name, "sentence_transformers", package="moonshelf[st]")
    plain = not (folder / "modules.json").is_file()
    check_folder(folder, "config.json" if plain else "modules.json")
    if plain and str(read_json(folder / "config.json").get("model_type")).startswith("siglip"):
        raise UserError(f"{name} pads its text as sentence-transformers does not: name it with clip:")
    _check_modules(folder, name)
    import sentence_transformers

    missing: set[str] = set()
    with loading(f"the {kind} in {folder.name!r}"), _noting(missing), _processor(folder):
        model = getattr(sentence_transformers, kind)(
            str(folder), device=str(pick_device()), local_files_only=True, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    return model, missing


def _check_modules(folder: Path, name: str) -> None:
    """Raise `UserError` for modules of classes of their own: code that came with the weights."""
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    for module in modules if isinstance(modules, list) else []:
        kind = module.get("type") if isinstance(module, dict) else None
        if kind == MODULE:
            raise UserError(f"{name} is a model of Moonshelf's own: name its folder without 'st:'")
        if not str(kind).startswith("sentence_transformers."):
            raise UserError(
                f"{name} is made of a class of its own ({kind}), code that came with its weights and is "
                "never run here: take a version of it that loads without `trust_remote_code`"
            )


def _processor(folder: Path) -> AbstractContextManager[Any]:
    """Within it a Qwen-VL has our processor, where the stock one cannot be built: it wants torchvision."""
    configs = (path for path in (folder / "config.json", *folder.glob("*/config.json")) if path.is_file())
    types = {read_json(path).get("model_type") for path in configs}
    if find_spec("torchvision") or not types & set(MODEL_TYPES):
        return nullcontext()
    from moonshelf.model.processing import MoonProcessor

    return patch("transformers.AutoProcessor.from_pretrained", MoonProcessor.from_pretrained)


@contextmanager
def _noting(missing: set[str]) -> Iterator[None]:
    """Note the weights that transformers does not find in the files: they would be random."""

    def report(*_: Any, loading_info: Any, **__: Any) -> None:
        missing.update(loading_info.missing_keys)

    with patch("transformers.modeling_utils.log_state_dict_report", report):
        yield


def need(name: str, *modules: str, package: str = "moonshelf[baselines]") -> None:
    """Raise `UserError` that says what to install where a module is missing."""
    if any(find_spec(module) is None for module in modules):
        raise UserError(f"'{name}' needs packages that are not here: pip install '{package}'")
