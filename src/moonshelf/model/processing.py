"""From products to the backbone's tensors, the same way in training, engine and SentenceTransformer.

Choices: a sequence is put together from token ids, piece by piece, instead of rendering a chat template
and searching it for the pieces, so the masks of image and text tokens are exact (a test holds that both
give the same ids); rows are padded on the right and positions are passed explicitly, so padding never
moves a token; the processor has no video part, since stock Qwen processors cannot be built without
torchvision and products have no video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from moonshelf.prompts import EMB, END_THINK, THINK, PromptSpec

ADDED_TOKENS = (THINK, END_THINK, EMB)  # ordinary, not special: TRL strips special tokens before it rewards


class MoonProcessor(ProcessorMixin):
    """Image processor and tokenizer, without video; reads stock Qwen-VL checkpoints and its own saves."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> MoonProcessor:  # type: ignore[override]
        """Build from a folder, whatever processor class the checkpoint names; no code or network."""
        from transformers import AutoTokenizer

        kwargs = {"local_files_only": True, "trust_remote_code": False, **kwargs}
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, **kwargs)
        return cls(image_processor, tokenizer, chat_template=getattr(tokenizer, "chat_template", None))

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Stock-style call, of TRL and sentence-transformers: text with one `<|image_pad|>` a picture."""
        texts = [text] if isinstance(text, str) else list(text)
        shared = kwargs.pop("common_kwargs", None) or {}  # sentence-transformers puts it there
        return_tensors = kwargs.pop("return_tensors", None) or shared.get("return_tensors")
        for name in ("return_mm_token_type_ids", "videos", "images_kwargs", "videos_kwargs", "audio_kwargs"):
            kwargs.pop(name, None)
        features: dict[str, Any] = {}
        flat: list[Any] = []
        for group in [] if images is None else images:
            flat += group if isinstance(group, list | tuple) else [group]
        if flat:
            features = dict(self.image_processor(flat, return_tensors="pt"))
            counts = iter(
                (features["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist()
            )
            texts = [_expand(t, self.image_token, counts) for t in texts]
        encoded = self.tokenizer(texts, return_tensors=None, **kwargs.pop("text_kwargs", {}), **kwargs)
        encoded["mm_token_type_ids"] = [
            [int(i == self.image_token_id) for i in ids] for ids in encoded["input_ids"]
        ]
        return BatchFeature({**encoded, **features}, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "mm_token_type_ids"]


def _expand(text: str, token: str, counts: Any) -> str:
    head, *rest = text.split(token)
    return head + "".join(token * next(counts) + part for part in rest)


def register(config_class: type) -> None:
    """Let `AutoProcessor` (and with it TRL and sentence-transformers) find the processor of a backbone."""
    AutoProcessor.register(config_class, MoonProcessor, exist_ok=True)


@dataclass
class Batch:
    """Tensors of one batch of B rows, L tokens, P patches; masks are bool and exclude padding."""

    input_ids: Tensor  # (B, L) int64
    attention: Tensor  # (B, L) bool
    image_mask: Tensor  # (B, L) bool: visual tokens
    text_mask: Tensor  # (B, L) bool: tokens of the product's text
    rationale_mask: Tensor  # (B, L) bool: <think> … </think>, where the row has one
    emb: Tensor  # (B,) int64: place of <emb>; the last token where none was put
    pixel_values: Tensor | None = None  # (P, patch) float32
    grid: Tensor | None = None  # (n_images, 3) int64

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def rows(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Other rows of a batch that was read, each tensor (B, ...) passed through `change`; no pictures."""
        return Batch(**{k: change(v) for k, v in vars(self).items() if k not in ("pixel_values", "grid")})


class Preprocessor:
    """Pictures and text to `Batch`; holds the ids of the prompt's fixed pieces."""

    def __init__(self, processor: MoonProcessor, prompt: PromptSpec) -> None:
        self.processor, self.prompt = processor, prompt
        self.images = processor.image_processor
        self.images.size = {"shortest_edge": prompt.min_pixels, "longest_edge": prompt.max_pixels}
        tokenizer = processor.tokenizer
        self.pad = tokenizer.pad_token_id
        if self.pad is None:
            raise ValueError("the tokenizer has no padding token")
        vocabulary = tokenizer.get_vocab()
        missing = [t for t in ADDED_TOKENS if t not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}: add them before building the model")
        self.think, self.end_think, self.emb = (vocabulary[t] for t in ADDED_TOKENS)
        if prompt.emb != EMB:
            self.emb = self.ids(prompt.emb)[-1]
        self.image = processor.image_token_id
        self.prefix = self.ids(prompt.before.replace("{instruction}", prompt.instruction))
        self.vision = self.ids("<|vision_start|>"), self.ids("<|vision_end|>")
        self.suffix = self.ids(prompt.after)

    def ids(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of cleaned product texts or rationale bodies, many at once."""
        if self.prompt.lower:
            texts = [text.lower() for text in texts]
        return self.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def pixels(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Patches (P, patch) float32 and grids (n, 3) int64 of upright RGB pictures."""
        if not pictures:
            return np.zeros((0, 0), np.float32), np.zeros((0, 3), np.int64)
        features = self.images(list(pictures), return_tensors="np")
        return features["pixel_values"].astype(np.float32, copy=False), features["image_grid_thw"]

    def cut(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """The same before scaling, each frame once: (P, 3, side²) uint8, an eighth of the bytes."""
        features = self.images(list(pictures), return_tensors="np", do_rescale=False, do_normalize=False)
        frames, side = self.images.temporal_patch_size, self.images.patch_size
        patches = features["pixel_values"].reshape(-1, 3, frames, side**2)
        return patches[:, :, 0].astype(np.uint8), features["image_grid_thw"]

    def scale(self, patches: np.ndarray) -> np.ndarray:
        """What `pixels` gives, bit for bit, from what `cut` gave."""
        n, channels, size = patches.shape
        scaled = np.empty((n, channels, self.images.temporal_patch_size, size), np.float32)
        for channel, table in enumerate(self._scale):
            scaled[:, channel] = np.take(table, patches[:, channel], mode="clip")[:, None]
        return scaled.reshape(n, -1)

    @cached_property
    def _scale(self) -> np.ndarray:
        """(3, 256) float32: the image processor's own arithmetic for every value that a pixel can have."""
        values = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
        scaled = self.images.rescale(values, self.images.rescale_factor)
        scaled = self.images.normalize(scaled, self.images.image_mean, self.images.image_std)
        return scaled[:, 0].astype(np.float32)

    def image_tokens(self, grid: np.ndarray) -> list[int]:
        return (grid.prod(-1) // self.images.merge_size**2).tolist()

    def row(
        self, text: list[int], image_tokens: Sequence[int], tail: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Ids of one prompt and the kind of each: 0 scaffold, 1 image, 2 text, 3 rationale and `<emb>`."""
        ids, kinds = list(self.prefix), [0] * len(self.prefix)
        for n in image_tokens:
            ids += [*self.vision[0], *[self.image] * n, *self.vision[1]]
            kinds += [0] * len(self.vision[0]) + [1] * n + [0] * len(self.vision[1])
        ids += text
        kinds += [2] * len(text)
        ids += self.suffix
        kinds += [0] * len(self.suffix)
        ids += tail
        kinds += [3] * len(tail)
        return ids, kinds

    def batch(
        self,
        texts: Sequence[list[int]],
        image_tokens: Sequence[Sequence[int]],
        tails: Sequence[Sequence[int]],
        pixels: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Batch:
        """Pad B rows to one batch. `tails` is what follows the prompt: `<emb>`, `<think>`, or all of it."""
        return self.collate(
            [self.row(*parts) for parts in zip(texts, image_tokens, tails, strict=True)], pixels
        )

    def collate(
        self,
        rows: Sequence[tuple[list[int], list[int]]],
        pixels: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Batch:
        """Pad B rows of ids and kinds, as `row` gives them, to one batch."""
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((len(rows), length), self.pad, dtype=torch.long)
        kinds = torch.full((len(rows), length), -1, dtype=torch.long)
        for i, (ids, kind) in enumerate(rows):
            input_ids[i, : len(ids)] = torch.tensor(ids)
            kinds[i, : len(kind)] = torch.tensor(kind)
        attention = kinds >= 0
        return Batch(
            input_ids=input_ids,
            attention=attention,
            image_mask=kinds == 1,
            text_mask=kinds == 2,
            rationale_mask=(kinds == 3) & (input_ids != self.emb),
            emb=attention.sum(1) - 1,
            pixel_values=None if pixels is None else torch.from_numpy(pixels[0]),
            grid=None if pixels is None else torch.from_numpy(pixels[1]),
        )
