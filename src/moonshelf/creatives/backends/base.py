"""What stands between a selector and whatever looks at the images: one base class for all backends.

A backend sees each pair as a `PairInput`: cleaned words, two creatives in one order, two opaque labels. It
gives a `PairPrediction` of that order alone. Position swap, averaging, abstention and calibration are
`selector`'s, so that every backend, baselines included, is treated alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from moonshelf.creatives.prompt import CreativePrompt
from moonshelf.creatives.schema import Assessment, Creative


@dataclass(frozen=True)
class PairInput:
    """One pair in one order. All words are cleaned of markup and orders; the images are not trusted."""

    pair_id: str
    title: str
    interest: tuple[str, ...]
    first: Creative
    second: Creative
    labels: tuple[str, str]  # what the images are called in the prompt, drawn anew for each input
    # Words on the first and on the second image, "" where none are known.
    overlays: tuple[str, str] = ("", "")


@dataclass
class PairPrediction:
    """What a backend says of an input, in terms of A = first and B = second."""

    p_first: float | None  # that the first is the better one; None: no usable answer, which abstains
    assessment: Assessment | None = None  # None where the backend gives no reasons, or broke the format
    raw: str = ""  # as written, for a person to read; never parsed for the verdict
    tokens: int = 0
    dropped: tuple[str, ...] = ()  # claims that were taken out of the reasons, as `Judgement` has them


class PairwiseBackend(ABC):
    """Anything that can tell which of two creatives is better. `name` is what people call it."""

    name: str
    # How labels are drawn, and whether words on the images are shown.
    prompt: CreativePrompt = CreativePrompt()
    # Of the averaged logit, as it was fitted on validation pairs; None where nothing was.
    temperature: float | None = None
    # By which records of another backend of that name are told; "" where the name says it all.
    fingerprint: str = ""
    # What it was trained on: simulated campaigns must be named wherever it speaks.
    trained_on: str = ""

    @abstractmethod
    def predict(self, inputs: Sequence[PairInput]) -> list[PairPrediction]:
        """One prediction an input, in order.

        An image that cannot be read raises nothing: `p_first` is None.
        """

    @property
    def described(self) -> str:
        """Its name for people."""
        return f"{self.name} (trained on {self.trained_on})" if self.trained_on else self.name
