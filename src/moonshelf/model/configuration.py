"""The head's configuration: everything about the vector that the backbone's own config does not say.

Saved as `moon.json`. `fusion` and `fire` can be switched off, for the ablations only: a shipped model has
both. Constants here are ours unless a line names its precedent.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MODALITIES = ("image", "text", "rationale")  # order of the modality weights everywhere


Size = Annotated[int, Field(gt=0, le=65_536)]


class MoonConfig(BaseModel):
    """Shape of the head over a backbone of hidden size `hidden`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    hidden: Size
    dim: Size = 256  # MOON3.0's dimension
    matryoshka: tuple[Size, ...] = Field(default=(256, 128, 64), min_length=1, max_length=32)
    heads: int = Field(default=4, gt=0, le=1_024)  # of fusion and of FIRE
    fusion: bool = True
    fire: bool = True
    modality_dropout: float = Field(default=0.15, ge=0, lt=1)  # in training, each modality of the fusion
    # Decoder layers (0-based, their outputs) that FIRE reads, in the order of use.
    taps: tuple[Annotated[int, Field(ge=0, lt=512)], ...] = Field(default=(), max_length=64)
    # Initial lambda of FIRE; CaiT uses 0.1 for networks of up to 18 layers.
    layer_scale: float = Field(default=0.1, ge=0, le=10)
    mlp_ratio: float = Field(default=2.0, gt=0, le=32)
    norm: bool = True  # LayerNorm before the projection; off where the head starts as a stock embedding
    # Rows of the word path's table, one a token; 0: no word path.
    words: int = Field(default=0, ge=0, le=4_000_000)
    words_inner: Size | None = None  # width of the MLP of what follows from a text's words; None: twice dim
    written: bool = False  # whether more follows from the words of a rationale than their mean
    # Summaries of its pictures that the picture path reads (`head.PICTURE` and DeepStack's); 0: no such path.
    pictures: int = Field(default=0, ge=0, le=66)
    glance: bool = False  # whether the decoder reads what the picture path says of them

    @model_validator(mode="after")
    def _consistent(self) -> MoonConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.matryoshka[0] != self.dim or list(self.matryoshka) != sorted(self.matryoshka, reverse=True):
            raise ValueError("matryoshka must list falling sizes that start with dim")
        if self.words and any(size % 2 for size in self.matryoshka):
            raise ValueError("with words every matryoshka size must be even: words take every second number")
        if self.written and not self.words:
            raise ValueError("written needs a word path: set words")
        if self.glance and not self.pictures:
            raise ValueError("glance needs a picture path: set pictures")
        if self.fire and not self.taps:
            raise ValueError("FIRE needs at least one tapped layer")
        return self


def default_taps(layers: int) -> tuple[int, ...]:
    """Three depths, deepest first: MOON3.0 restores detail progressively; depths and order are ours.

    Think-Then-Embed found the states near the 8th-from-last layer the richest, hence no tap on the last.
    """
    return tuple(dict.fromkeys(max(0, round(layers * part) - 1) for part in (0.75, 0.5, 0.25)))
