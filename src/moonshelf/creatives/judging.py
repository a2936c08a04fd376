"""What stands between a selector and whatever looks at the images: one interface for all backends.

A backend sees each pair as an `Ask`: cleaned words, two creatives in one order, two opaque labels. It gives
an `Opinion` of that order alone. Both orders, averaging, abstention and calibration are `selector`'s, so that
every backend, baselines included, is treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from moonshelf.creatives.pair import Creative
from moonshelf.creatives.protocol import Assessment


@dataclass(frozen=True)
class Ask:
    """One pair in one order. All words are cleaned of markup and orders; the images are not trusted."""

    pair_id: str
    title: str
    interest: tuple[str, ...]
    first: Creative
    second: Creative
    labels: tuple[str, str]  # what the images are called in the prompt, drawn anew for each ask
    # Words on the first and on the second image, "" where none are known.
    overlays: tuple[str, str] = ("", "")


@dataclass
class Opinion:
    """What a backend says of an ask, in terms of A = first and B = second."""

    p_first: float | None  # that the first is the better one; None: no usable answer, which abstains
    assessment: Assessment | None = None  # None where the backend gives no reasons, or broke the format
    raw: str = ""  # as written, for a person to read; never parsed for the verdict
    tokens: int = 0
    dropped: tuple[str, ...] = ()  # claims that were taken out of the reasons, as `Judgement` has them


class Backend(Protocol):
    """Anything that can tell which of two creatives is better."""

    name: str

    def opinions(self, asks: Sequence[Ask]) -> list[Opinion]:
        """One opinion an ask, in order. An image that cannot be read raises nothing: p_first is None."""
        ...


def trained_on(backend: Backend) -> str:
    """What the judge says that it was trained on: simulated campaigns must be named wherever it speaks."""
    return str(getattr(getattr(backend, "config", None), "trained_on", ""))


def described(backend: Backend) -> str:
    """Name of a judge for people."""
    said = trained_on(backend)
    return f"{backend.name} (trained on {said})" if said else backend.name
