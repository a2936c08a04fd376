"""Embedding models on Qwen-VL backbones: Qwen3-VL-Embedding, and UME-R1 with its two embeddings.

The formats are those that the models' public documentation gives. **Qwen3-VL-Embedding**: an instruction
as the system turn (another one for queries), picture then text as the user turn, the state of the last
token. **UME-R1**: picture, text and `<disc_emb>`, whose state is the discriminative embedding; with
`@gen` the model first writes its reasoning, greedily, and the state of its `<gen_emb>` is the embedding.
A text alone gets the small white picture that UME-R1's evaluation gives it. Where no `<gen_emb>` was
written the last state stands in, as there, but the row is counted as not valid. Which of the two a folder
is, its tokenizer says. Processors are built without their video part, so torchvision is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH
from moonshelf.evaluation.encoders import base
from moonshelf.evaluation.encoders.base import BaselineEncoder, QuerySide
from moonshelf.model.files import read_json
from moonshelf.model.stock import array, check_folder, load_model, whole
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
INSTRUCTION = "Represent the user's input."
QUERY_INSTRUCTION = "Retrieve images or text relevant to the user's query."
PIXELS = (4 * 32 * 32, 1800 * 32 * 32)  # of Qwen3-VL-Embedding; UME-R1 keeps those of its files
MAX_NEW_TOKENS = 2048
BLANK = (56, 56)
GENERATE = (
    "Represent the above input text, images, videos, or any combination of the three as embeddings. \n"
    "First output the thinking process in <think> </think> tags and then summarize the entire input in a "
    "word or sentence. \nFinally, use the <gen_emb> tag to represent the entire input."
)


class QwenVLBaseline(BaselineEncoder):
    """One of the family, from a folder. `generate` asks UME-R1 for its generative embedding."""

    reads, one_space = BOTH, True
    batch = 8

    def __init__(
        self, folder: Path, name: str, prompt: PromptSpec | None = None, generate: bool = False
    ) -> None:
        self.name, self.prompt = name, prompt or PromptSpec()
        check_folder(folder)
        if (family := read_json(folder / "config.json").get("model_type")) not in FAMILIES:
            raise UserError(f"{name} is a {family}: qwen-vl: takes {', '.join(FAMILIES)}")
        from transformers import AutoModel, AutoModelForImageTextToText

        from moonshelf.model.processing import MoonProcessor

        self.processor = MoonProcessor.from_pretrained(str(folder))
        vocabulary = self.processor.tokenizer.get_vocab()
        self.disc, self.gen = (vocabulary.get(token) for token in ("<disc_emb>", "<gen_emb>"))
        if generate and self.gen is None:
            raise UserError(f"{name} has no <gen_emb> token: @gen is for UME-R1 and its kin")
        self.generate = generate
        auto = AutoModelForImageTextToText if generate else AutoModel
        self.model, dtype, missing = load_model(auto, folder, attn_implementation="sdpa")
        whole(folder, missing)
        if self.disc is None:
            limits = dict(zip(("shortest_edge", "longest_edge"), PIXELS, strict=True))
            self.processor.image_processor.size = limits
            self.queries = QuerySide(self)
        self.processor.tokenizer.padding_side = "left" if generate else "right"
        mode = f"gen, {MAX_NEW_TOKENS} tokens" if generate else "disc" if self.disc is not None else "last"
        self.fingerprint = base.hash_folder("qwen-vl", folder, dtype, mode)

    def embed(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        return self._embed(texts, pictures, INSTRUCTION)

    def embed_queries(self, texts: list[str] | None, pictures: list[Image.Image] | None) -> np.ndarray:
        return self._embed(texts, pictures, QUERY_INSTRUCTION)

    def _embed(
        self, texts: list[str] | None, pictures: list[Image.Image] | None, instruction: str
    ) -> np.ndarray:
        import torch

        n = len(texts if texts is not None else pictures or [])
        if pictures is None and self.disc is not None:
            from PIL import Image

            pictures = [Image.new("RGB", BLANK, "white")] * n
        rows = [
            self._format(text, pictures is not None, instruction)
            for text in (texts if texts is not None else [""] * n)
        ]
        inputs = self.processor(
            images=[[picture] for picture in pictures] if pictures is not None else None,
            text=rows, padding=True, return_tensors="pt",
        ).to(self.model.device)  # fmt: skip
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            if self.generate:
                return array(self._generated(inputs))
            states = self.model(**inputs, use_cache=False).last_hidden_state
            return array(states[torch.arange(n), self._place(inputs)])

    def _format(self, text: str, picture: bool, instruction: str) -> str:
        user = (PICTURE if picture else "") + text
        if self.disc is not None:
            instruction = "You are a helpful assistant."
            user += "\n<disc_emb>\n" + (GENERATE if self.generate else "")
        return (
            f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def _place(self, inputs: Any) -> torch.Tensor:
        """(n,) place of the token whose state is the vector; rows are padded on the right."""
        if self.disc is None:
            return inputs["attention_mask"].sum(1) - 1
        return last_of(inputs["input_ids"], self.disc)[0]

    def _generated(self, inputs: Any) -> torch.Tensor:
        """(n, d) state of the last `<gen_emb>` that each row writes, or of its last step where none is.

        One more pass over what was written reads the states, so that none need be kept while writing.
        """
        import torch

        written = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        start = inputs["input_ids"].shape[1]
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([ends] if isinstance(ends, int) else list(ends or []), device=written.device)
        new = written[:, start:]
        after = torch.isin(new, ends).cumsum(1) - torch.isin(new, ends).int()  # ends before each token
        alive = after == 0
        mask = torch.cat([inputs["attention_mask"], alive.to(inputs["attention_mask"].dtype)], dim=1)
        extra = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
        kinds = torch.zeros_like(written)
        kinds[:, :start] = inputs["mm_token_type_ids"]
        states = self.model.model(
            input_ids=written, attention_mask=mask, mm_token_type_ids=kinds, use_cache=False, **extra
        ).last_hidden_state
        place, found = last_of(torch.where(alive, new, -1), self.gen or -1)
        last = start + alive.sum(1) - 2  # the step that wrote the last token, as in the documentation
        place = torch.where(found, start + place, last)
        texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        self.wrote = list(zip(texts, found.tolist(), strict=True))
        return states[torch.arange(len(place)), place]


def last_of(ids: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) place of the last `token` in each row of `ids` (n, length), and whether there is one."""
    import torch

    hits = ids == token
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.where(hits, places, 0).amax(1), hits.any(1)
