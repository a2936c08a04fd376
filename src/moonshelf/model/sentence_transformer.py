"""The model as a sentence-transformers module, for the tools that take a `SentenceTransformer`.

    SentenceTransformer(folder, trust_remote_code=True)

is the one way to load a saved folder. sentence-transformers asks for the flag whenever `modules.json` names a
class outside its own package; what it then imports is this file from the installed `moonshelf`, never code
from the folder, whose files are checked as in `MoonModel.from_pretrained`. For a model that is in memory, as
in training, `SentenceTransformer(modules=[MoonModule(model)])` needs no flag.

Inputs are texts, pictures (PIL, uint8 array, path, data URI), `{"text": …, "image": …}` with one picture or
a list, chat messages of one user turn, or a `Product`; batches may mix them. Vectors are those of
`MoonModel.encode(reason="off")`; `encode(…, reason="on")` gives the reasoned ones.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from moonshelf.images import ImageError
from moonshelf.model.engine import Row, make_batch, read_row, write
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.model.processing import Batch
from moonshelf.product import ImageRef, Product

MODALITIES: list[Any] = ["text", "image", ("image", "text"), "message"]


class MoonModule(InputModule):
    """Input and pooling module in one: `encode` gives unit vectors (n, dim) float32."""

    forward_kwargs = {"reason"}  # noqa: RUF012 - the base class declares it so

    def __init__(self, model: MoonModel) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.processor.tokenizer

    @property
    def modalities(self) -> list[Any]:
        return MODALITIES

    def get_embedding_dimension(self) -> int:
        return self.model.dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        reason: Literal["off", "on"] = "off",
        **_: Any,
    ) -> dict[str, Any]:
        """Tensors of one `Batch`, by field name. `prompt` is put before the text of inputs that have one."""
        if reason not in ("off", "on"):
            raise ValueError(f"reason must be off or on, not {reason!r}")
        rows = [self._row(i, sample, prompt or "") for i, sample in enumerate(inputs)]
        prepare = self.model.prepare
        return vars(make_batch(self.model, rows, [prepare.think if reason == "on" else prepare.emb]))

    def _row(self, index: int, sample: Any, prompt: str) -> Row:
        product = to_product(sample, index)
        if prompt and product.title:
            product = product.model_copy(update={"title": prompt + product.title})
        text = self.model.prepare.text_ids([self.model.prompt.text_of(product)])[0]
        try:
            row = read_row(self.model, index, product, text)
        except ImageError as error:
            raise ValueError(f"input {index} of the batch: {error}") from error
        if row is None:
            raise ValueError(f"input {index} of the batch has no text and no picture")
        return row

    def forward(
        self, features: dict[str, Any], reason: Literal["off", "on"] = "off", **_: Any
    ) -> dict[str, Any]:
        """Adds `sentence_embedding` (B, dim), unit length; differentiable with `reason="off"`."""
        batch = Batch(**{name: features[name] for name in Batch.__dataclass_fields__})
        with self.model.computing():
            return {**features, "sentence_embedding": self._vectors(batch, reason)}

    def _vectors(self, batch: Batch, reason: Literal["off", "on"]) -> Tensor:
        if reason == "on":
            results = write(self.model, batch, self.model.read(batch, use_cache=True))
            return torch.from_numpy(np.stack([r.vector for r in results])).to(batch.emb.device)
        return normalise(self.model(batch)[0])

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.model.save_pretrained(output_path)

    @classmethod
    def load(  # type: ignore[override]  # the base class lists what sits in kwargs
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> MoonModule:
        """Called by sentence-transformers with a folder or a hub id; the folder is verified."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        options = {name: kwargs[name] for name in names if name in kwargs}
        folder = cls.load_dir_path(model_name_or_path, subfolder=subfolder, **options)
        return cls(MoonModel.from_pretrained(folder or model_name_or_path))


def to_product(sample: Any, index: int = 0) -> Product:
    """A `Product` from anything that sentence-transformers takes as one input, or a `ValueError`."""
    if isinstance(sample, Product):
        return sample
    if isinstance(sample, str):
        is_picture = infer_modality(sample, MODALITIES) == "image"
        sample = {"image": sample} if is_picture else {"text": sample}
    elif isinstance(sample, Image.Image | np.ndarray):
        sample = {"image": sample}
    elif isinstance(sample, list) and len(sample) == 1 and isinstance(sample[0], dict):
        sample = sample[0]
    if isinstance(sample, dict) and sample.keys() == {"role", "content"}:
        sample = _from_message(sample)
    if not isinstance(sample, dict) or not sample or not sample.keys() <= {"text", "image"}:
        raise ValueError(
            f"input {index} of the batch is a {type(sample).__name__} that is not understood: give a text, a "
            'picture, {"text": …, "image": …}, one user message, or a Product'
        )
    texts, pictures = _listed(sample.get("text")), _listed(sample.get("image"))
    # In `title`, whatever fields the prompt reads: a text without a record has no fields.
    return Product(id=str(index), title="\n".join(texts), images=tuple(_reference(p) for p in pictures))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _from_message(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "user":
        raise ValueError("only a message of the user can be embedded: the model brings its own prompt")
    content = message["content"]
    if isinstance(content, str):
        return {"text": content}
    return {kind: [part[kind] for part in content if part.get("type") == kind] for kind in ("text", "image")}


def _reference(picture: Any) -> ImageRef:
    """Everything goes through the one decoder, pictures in memory too: as a lossless file."""
    if isinstance(picture, ImageRef):
        return picture
    if isinstance(picture, str) and picture.startswith("data:image/"):
        try:
            return ImageRef(data=base64.b64decode(picture.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise ValueError("a data URI of a picture is not valid base64") from error
    if isinstance(picture, str):
        is_url = picture.startswith(("http://", "https://"))
        return ImageRef(url=picture) if is_url else ImageRef(path=picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError("a picture given as an array must be uint8 of shape (height, width, 3)")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(
            f"a picture cannot be a {type(picture).__name__}: give a PIL image, an array or a path"
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("L", "LA", "P", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=0)
    return ImageRef(data=buffer.getvalue())
