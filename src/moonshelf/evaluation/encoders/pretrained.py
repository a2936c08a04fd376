"""Baselines by folder or hub id: any SentenceTransformer, CLIP or SigLIP, open_clip model, image encoder.

Each keeps to what its library documents: prompts of the model for queries and documents, padding and
pixels of its own processor, the pooled output of its own head. A two-tower model that is shown text and
a picture gets the mean direction of both vectors; a SentenceTransformer that takes both in one input gets
one input. An encoder without a pooling head of its own (or with one whose weights the files lack, which
would be random) is pooled by the mean of its last states.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.encoders import base
from moonshelf.evaluation.encoders.base import BaselineEncoder, QuerySide, TwoTowers
from moonshelf.model.files import items_of, read_json
from moonshelf.model.stock import (
    Clip,
    array,
    check_folder,
    image_processor,
    load_model,
    pick_device,
    pixel_side,
    pooled,
    quiet,
    unit,
    whole,
)
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from PIL import Image


OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


class SentenceTransformerBaseline(TwoTowers):
    """A saved SentenceTransformer, of text alone or of text and pictures."""

    def __init__(
        self, folder: Path, name: str, prompt: PromptSpec | None = None, known: str | None = None
    ) -> None:
        """`known` stands for a hash of the files where a package's version names them."""
        need("sentence_transformers", name)
        check_folder(folder, "modules.json")
        from sentence_transformers import SentenceTransformer

        device = pick_device()
        try:
            with quiet():
                self.model = SentenceTransformer(
                    str(folder), device=str(device), local_files_only=True, trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )  # fmt: skip
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the SentenceTransformer in {folder.name!r} cannot be loaded: {reason}"
            ) from error
        self.name, self.prompt = name, prompt or PromptSpec()
        self.fingerprint = known or base.hash_folder("st", folder, device.type)
        sees, reads = self.model.supports("image"), self.model.supports("text")
        if not sees and not reads:
            raise UserError(f"{name} reads neither text nor pictures")
        self.reads = BOTH if sees and reads else IMAGE if sees else TEXT
        self.one_space = sees and reads
        prompts = self.model.prompts
        if any(prompts.get(key) for key in ("query", "document", "passage", "texts")):
            self.queries = QuerySide(self)

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        return self._embed(texts, pictures, "document")

    def embed_queries(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        return self._embed(texts, pictures, "query")

    def _embed(self, texts: list[str] | None, pictures: list[Image.Image] | None, side: str) -> np.ndarray:
        if texts is not None and pictures is not None and self.model.supports(("image", "text")):
            pairs = [{"image": i, "text": t} for i, t in zip(pictures, texts, strict=True)]
            return self._encode(pairs, side)
        parts = [self._encode(list(shown), side) for shown in (texts, pictures) if shown is not None]
        return np.sum([unit(part) for part in parts], axis=0)

    def _encode(self, inputs: list[Any], side: str) -> np.ndarray:
        encode: Any = self.model.encode
        if self.queries is not None:
            encode = self.model.encode_query if side == "query" else self.model.encode_document
        return encode(
            inputs, batch_size=len(inputs), show_progress_bar=False, normalize_embeddings=True,
            convert_to_numpy=True,
        )  # fmt: skip


class ClipBaseline(TwoTowers):
    """CLIP, SigLIP and their kin in transformers (`stock.Clip`)."""

    def __init__(self, folder: Path, name: str, prompt: PromptSpec | None = None) -> None:
        self.clip = Clip(folder, name)
        self.max_side = self.clip.max_side
        self.name, self.prompt = name, prompt or PromptSpec()
        self.fingerprint = base.hash_folder("clip", folder, self.clip.dtype, type(self.clip.pixels).__name__)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return self.clip.embed_texts(texts)

    def embed_pictures(self, pictures: list[Image.Image]) -> np.ndarray:
        return self.clip.embed_pictures(pictures)


class ImageBaseline(BaselineEncoder):
    """A vision model of transformers: ViT, DINOv2, ConvNeXt, ResNet …, or the image side of a CLIP."""

    reads = IMAGE

    def __init__(self, folder: Path, name: str) -> None:
        check_folder(folder)
        from transformers import AutoModel

        self.model, dtype, missing = load_model(AutoModel, folder)
        # A checkpoint without the pooling layer would get a random one: its states are averaged instead.
        self.own_pooling = not any("pooler" in key for key in missing)
        whole(folder, {key for key in missing if "pooler" not in key})
        self.pixels = image_processor(folder)
        self.max_side = pixel_side(self.pixels)
        self.name = name
        pooling = "own pooling" if self.own_pooling else "mean"
        self.fingerprint = base.hash_folder("image", folder, dtype, type(self.pixels).__name__, pooling)

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        import torch

        assert pictures is not None
        inputs = self.pixels(images=pictures, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            if hasattr(self.model, "get_image_features"):
                return array(pooled(self.model.get_image_features(**inputs)))
            return array(pooled(self.model(**inputs), self.own_pooling))


class OpenClipBaseline(TwoTowers):
    """A model of open_clip, from a folder with `open_clip_config.json` and safetensors.

    open_clip needs torchvision, which is why it is no dependency: install both beside Moonshelf. It would
    prefer some pickles to some safetensors, and fetch a text tower that the configuration names, so folders
    where it could come to that are refused.
    """

    def __init__(self, folder: Path, name: str, prompt: PromptSpec | None = None) -> None:
        need("open_clip", name, "open_clip_torch")
        check_folder(folder, "open_clip_config.json")
        if not any((folder / weights).is_file() for weights in OPEN_CLIP_WEIGHTS):
            raise UserError(f"{folder.name!r} has no {OPEN_CLIP_WEIGHTS[0]}, and no other kind is read")
        for key in ("hf_model_name", "trust_remote_code"):
            if key in dict(items_of(read_json(folder / "open_clip_config.json"))):
                raise UserError(
                    f"open_clip_config.json in {folder.name!r} has {key}: it would fetch or run more"
                )
        import open_clip

        self.device = pick_device()
        place = f"local-dir:{folder}"
        try:
            self.model, self.pixels = open_clip.create_model_from_pretrained(place, device=self.device)
            self.tokenizer = open_clip.get_tokenizer(place)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the open_clip model in {folder.name!r} cannot be loaded: {reason}") from error
        self.model.eval()
        self.name, self.prompt = name, prompt or PromptSpec()
        self.fingerprint = base.hash_folder("openclip", folder, f"open_clip {version('open_clip_torch')}")

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return array(self.model.encode_text(self.tokenizer(texts).to(self.device)))

    def embed_pictures(self, pictures: list[Image.Image]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            pixels = torch.stack([self.pixels(picture) for picture in pictures])
            return array(self.model.encode_image(pixels.to(self.device)))


def open_clip_folder(name: str, download: bool) -> Path:
    """The folder of a path, of a hub id, or of `MODEL/PRETRAINED` as open_clip lists them."""
    if Path(name).expanduser().is_dir():
        return base.locate(name, download)
    model, _, tag = name.partition("/")
    need("open_clip", f"openclip:{name}", "open_clip_torch")
    import open_clip

    if model not in open_clip.list_models():
        return base.locate(name, download)
    repository = str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub", "")).strip("/")
    if not repository:
        raise UserError(
            f"open_clip lists no weights {tag!r} for {model} on the hub: name a folder or a hub id"
        )
    return base.locate("/".join(repository.split("/")[:2]), download)


def need(module: str, baseline: str, package: str = "moonshelf[baselines]") -> None:
    """Raise `UserError` that says what to install."""
    if find_spec(module) is None:
        raise UserError(
            f"the baseline '{baseline}' needs packages that are not here: pip install '{package}'"
        )
