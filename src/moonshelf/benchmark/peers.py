"""What every peer that is a neural network shares: what it is shown, batches, unit vectors, safe folders.

A peer reads exactly what our model reads: the text that the prompt gives our model, and the first photo,
decoded by `moonshelf.images`. A product of which a peer can read nothing is set aside with a reason, not
scored as a vector of nothing. Weights come as safetensors from a folder, or from the hub where a download
was allowed; code in a folder is never run, and a configuration that could choose code is refused. The
fingerprint is a hash of the files, never a name. On a GPU a model runs in the precision of its files, on a
CPU in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moonshelf import images
from moonshelf.benchmark.contract import BOTH, IMAGE, TEXT, Vectors
from moonshelf.errors import Problem, UserError
from moonshelf.model.files import read_json
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

# What is fetched from the hub: data and nothing else; `*.model` is a SentencePiece vocabulary.
FETCH = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
_IGNORE = ("onnx/*", "openvino/*", "original/*")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# A configuration with one of these chooses kernels, quantisers or pipelines: code. `auto_map` is harmless,
# because nothing is loaded with remote code allowed.
_CODE_KEYS = {"custom_pipelines", "quantization_config", "experts_implementation"}


class Peer:
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
    wrote: list[tuple[str, bool]] | None = (
        None  # by the last `embed`: a text a row, and if it kept its format
    )
    _field: ClassVar[dict[frozenset[str], str]] = {TEXT: "title", IMAGE: "images", BOTH: "title, images"}

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        """(n, dim) vectors of n products; one of the two is None where those products do not show it."""
        raise NotImplementedError

    def embed_queries(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        """The same for what is searched for; only asked of a peer that has `queries`."""
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
        texts, valid = [""] * n, np.ones(n, bool)
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
                for row, (text, good) in zip(rows, self.wrote or [], strict=bool(self.wrote)):
                    texts[row], valid[row] = text, good
        width = len(next(iter(found.values()))) if found else 1
        vectors, ok = np.zeros((n, width), np.float32), np.zeros(n, bool)
        for row, vector in found.items():
            vectors[row], ok[row] = vector, True
        return Vectors(vectors, ok, texts, valid, problems)

    def _read(self, product: Product) -> tuple[str, Image.Image | None]:
        text = self.prompt.text_of(product) if "text" in self.reads else ""
        if "image" not in self.reads or not product.images:
            return text, None
        return text, images.load(product.images[0], max_side=self.max_side)


class QuerySide(Peer):
    """A peer as it encodes queries: the same weights with another instruction."""

    def __init__(self, other: Peer) -> None:
        self.other = other
        self.prompt, self.reads, self.one_space = other.prompt, other.reads, other.one_space
        self.batch, self.max_side = other.batch, other.max_side

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.other.name

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self.other.fingerprint + "|query"

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        return self.other.embed_queries(texts, pictures)


class TwoTowers(Peer):
    """Text and pictures encoded apart into one space; a product that shows both is the mean direction."""

    reads = BOTH
    one_space = True

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def embed_pictures(self, pictures: list[Image.Image]) -> np.ndarray:
        raise NotImplementedError

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        parts = []
        if texts is not None:
            parts.append(unit(self.embed_texts(texts)))
        if pictures is not None:
            parts.append(unit(self.embed_pictures(pictures)))
        return np.sum(parts, axis=0)


def unit(vectors: Any) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one, and what is not finite stays so for the gate."""
    vectors = np.asarray(vectors, np.float32)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1.0)).astype(np.float32)


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCH), ignore_patterns=list(_IGNORE)))
    except HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor the name of a model on the hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"the model {name!r} could not be fetched: {type(error).__name__}") from error


def check_folder(folder: Path, config: str = "config.json") -> None:
    """Raise `UserError` unless the folder has `config`, safetensors, and no key that chooses code."""
    if not (folder / config).is_file():
        raise UserError(f"{folder.name!r} has no {config}: it is not the folder of such a model")
    parts = [folder]
    if (folder / "modules.json").is_file():
        modules = read_json(folder / "modules.json")
        parts += [folder / m["path"] for m in modules if isinstance(m, dict) and m.get("path")]
    if not any(any(part.glob("*.safetensors")) for part in parts):
        raise UserError(f"{folder.name!r} has no weights as safetensors, and no other kind is read")
    for part in parts:
        pickles = [p.name for p in part.glob("*") if p.suffix in _PICKLES and p.name != "training_args.bin"]
        if pickles and not any(part.glob("*.safetensors")):
            raise UserError(
                f"{folder.name!r} keeps {pickles[0]} as a pickle, which can run code: make safetensors of it"
            )
        if (part / "config.json").is_file():
            for key in keys_of(read_json(part / "config.json")):
                if key in _CODE_KEYS or key.lstrip("_").startswith("attn_implementation"):
                    raise UserError(
                        f"config.json in {folder.name!r} has the key {key!r}, which can choose code"
                    )


def keys_of(value: Any) -> Iterator[str]:
    """Every key of parsed JSON, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


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


# ---- torch -----------------------------------------------------------------------------------------


def load_model(auto: Any, folder: Path, **options: Any) -> tuple[Any, str, set[str]]:
    """A transformers model in evaluation mode, its precision for the fingerprint, and missing weights."""
    import torch
    from safetensors import SafetensorError

    device = pick_device()
    try:
        with quiet():
            model, info = auto.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto" if device.type == "cuda" else torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the model in {folder.name!r} cannot be loaded: {reason}") from error
    return model.to(device).eval(), str(model.dtype), set(info["missing_keys"])


def whole(folder: Path, missing: set[str]) -> None:
    """Raise `UserError` where weights are missing, which would be random ones."""
    if missing:
        raise UserError(
            f"the weights in {folder.name!r} are not whole: {len(missing)} are missing, such as "
            f"{sorted(missing)[0]}; fetch the model again, or name another kind of peer for it"
        )


def pick_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and loading reports of transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
