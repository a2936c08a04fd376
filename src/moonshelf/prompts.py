"""What the model reads and writes: the prompt specification and the rationale's format.

The specification is saved with the model, so that training, engine, SentenceTransformer and a server
build the same tokens. The rationale is a flat list of `key: value` pairs between `<think>` and
`</think>`, for example

    <think>category: shoes > heels; colour: red; material: leather; heel: stiletto</think>

Choices (ours; the papers name the content, not the format): flat pairs instead of JSON, because they
cost half the tokens and parse without escapes; a fixed order of keys, category first, so that what is
written early conditions the details.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moonshelf.product import Product

THINK, END_THINK, EMB = "<think>", "</think>", "<emb>"
CATEGORY_SEPARATOR = " > "

# Reserved tokens in product text would let a title write the model's own markup.
_RESERVED = re.compile(r"<\|[^|<>]*\|>|</?think>|<emb>", re.IGNORECASE)
_SPACE = re.compile(r"\s+")


MAX_PIXELS = 1 << 24  # of one picture as the model reads it; Qwen's own default is below 13 million
TextField = Literal["title", "description", "brand", "group_id", "gtin", "mpn", "availability", "language"]


class PromptSpec(BaseModel):
    """How a product becomes a prompt. Saved as `prompt.json` beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = Field(default="", max_length=20_000)  # before the pictures; empty for the starter
    # What stands around a product, and the token after it whose state is the vector: a stock embedding model
    # has words of its own for these (`model.stock_embedding`).
    before: str = Field(default="<|im_start|>user\n{instruction}", max_length=20_000)
    after: str = Field(default="<|im_end|>\n<|im_start|>assistant\n", max_length=2_000)
    emb: str = Field(default=EMB, min_length=1, max_length=100)
    text_fields: tuple[TextField, ...] = ("title",)  # of the product, in this order, joined by a newline
    lower: bool = False  # fold capitals in the text: a small vocabulary need not hold every word twice
    max_text_chars: int = Field(default=400, ge=0, le=100_000)
    max_images: int = Field(default=4, ge=0, le=100)
    min_pixels: int = Field(default=96 * 96, gt=0, le=MAX_PIXELS)
    max_pixels: int = Field(default=160 * 160, gt=0, le=MAX_PIXELS)
    max_rationale_tokens: int = Field(default=64, ge=0, le=8_192)
    least_confidence: float = Field(default=0.0, ge=0, lt=1)  # pairs below it are not written
    # How the confidence of a pair follows from the log-odds of its value: slope and offset (Platt, 1999).
    calibration: tuple[float, float] = (1.0, 0.0)

    def text_of(self, product: Product) -> str:
        """The text that the model reads: cleaned, with reserved tokens broken up, capped in length."""
        parts = [clean_text(str(getattr(product, field) or "")) for field in self.text_fields]
        text = "\n".join(part for part in parts if part)[: self.max_text_chars].strip()
        return text.lower() if self.lower else text


def clean_text(text: str) -> str:
    """NFKC, control, bidi and tag-block characters dropped, white space folded, reserved tokens removed."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs", "Cn") else " " for c in text)
    previous = None
    while previous != text:  # removal can join two halves into a new reserved token
        previous, text = text, _RESERVED.sub(" ", text)
    return _SPACE.sub(" ", text).strip()


def write_rationale(category: tuple[str, ...], attributes: Mapping[str, str]) -> str:
    """Rationale body (without tags) from a category path and ordered attributes, without empty values."""
    pairs = {"category": CATEGORY_SEPARATOR.join(category), **attributes}
    return "; ".join(
        f"{_field(key)}: {_field(value)}" for key, value in pairs.items() if _field(key) and _field(value)
    )


def _field(text: str) -> str:
    return _SPACE.sub(" ", clean_text(text).replace(";", ",").replace(":", " ")).strip().lower()


def read_rationale(text: str) -> dict[str, str] | None:
    """Pairs of a written rationale, or None if it does not keep the format.

    Takes `<think>body</think>` or a bare body. Valid: at least one pair, every pair has a non-empty key
    and value, no key twice, tags only at the ends. A truncated rationale is not valid.
    """
    body = text.strip()
    if body.startswith(THINK) or body.endswith(END_THINK):
        if not (body.startswith(THINK) and body.endswith(END_THINK)):
            return None
        body = body[len(THINK) : -len(END_THINK)].strip()
    if not body or _RESERVED.search(body):
        return None
    pairs: dict[str, str] = {}
    for part in body.split(";"):
        key, colon, value = part.partition(":")
        key, value = key.strip(), value.strip()
        if not colon or not key or not value or key in pairs:
            return None
        pairs[key] = value
    return pairs
