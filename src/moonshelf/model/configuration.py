"""The head's configuration: everything about the vector that the backbone's own config does not say.

Saved as `moon.json`. `fusion` and `fire` can be switched off, for the ablations only: a shipped model has
both. Constants here are ours unless a line names its precedent.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

MODALITIES = ("image", "text", "rationale")  # order of the modality weights everywhere


class MoonConfig(BaseModel):
    """Shape of the head over a backbone of hidden size `hidden`."""

    model_config = ConfigDict(extra="forbid")

    hidden: int = Field(gt=0)
    dim: int = 256  # MOON3.0's dimension
    matryoshka: tuple[int, ...] = (256, 128, 64)
    heads: int = 4  # of fusion and of FIRE
    fusion: bool = True
    fire: bool = True
    modality_dropout: float = Field(default=0.15, ge=0, lt=1)  # in training, each modality of the fusion
    taps: tuple[int, ...] = ()  # decoder layers (0-based, their outputs) that FIRE reads, in the order of use
    layer_scale: float = 0.1  # initial lambda of FIRE; CaiT uses 0.1 for networks of up to 18 layers
    mlp_ratio: float = 2.0
    words: int = Field(default=0, ge=0)  # rows of the word path's table, one a token; 0: no word path

    @model_validator(mode="after")
    def _consistent(self) -> MoonConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.matryoshka[0] != self.dim or list(self.matryoshka) != sorted(self.matryoshka, reverse=True):
            raise ValueError("matryoshka must list falling sizes that start with dim")
        if self.fire and not self.taps:
            raise ValueError("FIRE needs at least one tapped layer")
        return self


def default_taps(layers: int) -> tuple[int, ...]:
    """Three depths, deepest first: MOON3.0 restores detail progressively; depths and order are ours.

    Think-Then-Embed found the states near the 8th-from-last layer the richest, hence no tap on the last.
    """
    return tuple(dict.fromkeys(max(0, round(layers * part) - 1) for part in (0.75, 0.5, 0.25)))
