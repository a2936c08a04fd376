"""One self-contained page about a catalogue: what was written and found; figures are in the evaluation's.

`Page` holds what the page says, already counted; `render` puts it into `report.html` and `report.css`
beside this file. The page needs no script, no network and no other file: pictures are re-encoded
thumbnails inside it, and its content policy allows nothing else. Catalogue text and what the model wrote
are untrusted, so the template escapes every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moonshelf.attributes import canonical_key
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.report.page import template
from moonshelf.evaluation.tasks import says
from moonshelf.prompts import CATEGORY_SEPARATOR, clean_text, read_rationale

if TYPE_CHECKING:
    from moonshelf.sample import Truth

GRADES = {3: "exactly what was asked", 2: "close", 1: "related", 0: "not asked for"}
MARKS = {"right": "✓", "wrong": "✗", "unjudged": "", "missing": "–"}


@dataclass(frozen=True)
class Chip:
    """One pair of a rationale beside the truth. `mark` is right, wrong, unjudged or missing."""

    key: str
    value: str
    mark: str
    truth: str = ""
    in_title: bool = True  # the title says it too


@dataclass(frozen=True)
class Card:
    """A product with what the model wrote about it; weights are shares of image, text and rationale."""

    id: str
    title: str
    picture: str  # data URI, "" if there is none
    chips: Sequence[Chip]
    weights: tuple[float, float, float]
    in_format: bool = True
    rationale: str = ""  # as written, shown where it did not keep its format

    @property
    def missing(self) -> list[str]:
        return [chip.key for chip in self.chips if chip.mark == "missing"]


@dataclass(frozen=True)
class Shown:
    """A product in a row of results; `grade` 0 … 3 is its relevance, None where nobody knows it."""

    title: str
    picture: str
    score: str = ""
    grade: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Search:
    """A query and what was found, best first."""

    kind: str  # text, photo, photo and text
    text: str
    picture: str
    hits: Sequence[Shown]


@dataclass(frozen=True)
class Family:
    """Products that belong together, and why."""

    members: Sequence[Shown]
    evidence: Sequence[str]


@dataclass(frozen=True)
class Job:
    """A piece of work that was done, as a table of words."""

    id: str
    title: str
    intro: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    said: str  # in one line


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    result: Result
    label: str
    note: str


@dataclass
class Page:
    """Everything on the page."""

    title: str
    lead: str
    tiles: list[Tile] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    families: dict[str, list[Family]] = field(default_factory=dict)  # duplicate, similar, variant
    family_counts: dict[str, int] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps: list[tuple[str, str, float]] = field(default_factory=list)  # name, what, seconds
    facts: dict[str, str] = field(default_factory=dict)  # command, model, versions …
    next_command: str = ""


def chips(rationale: str, truth: Truth) -> list[Chip]:
    """The pairs of a rationale, each held against the truth, and then the keys that it left out.

    A key of which the truth says nothing is `unjudged`. A rationale that broke its format has no pairs.
    """
    written: dict[str, str] = {}
    for key, value in (read_rationale(rationale) or {}).items():
        written.setdefault(canonical_key(key), value)
    known = {"category": truth.category[-1], **truth.attributes}
    found = []
    for key, value in written.items():
        if key not in known:
            found.append(Chip(key, value, "unjudged"))
        else:
            mark = "right" if says(rationale, key, known[key]) else "wrong"
            shown = value.split(CATEGORY_SEPARATOR.strip())[-1].strip() if key == "category" else value
            found.append(Chip(key, shown, mark, known[key].lower(), key not in truth.omitted))
    return found + [Chip(key, "", "missing", known[key].lower()) for key in known if key not in written]


def render(page: Page) -> str:
    """The page as HTML."""
    return template("report.html", clean=_clean, percent=percent, seconds=_seconds).render(
        page=page, GRADES=GRADES, MARKS=MARKS
    )


def write(page: Page, path: Path) -> int:
    """Write the page; returns its bytes."""
    data = render(page).encode("utf-8")
    path.write_bytes(data)
    return len(data)


def _clean(text: object) -> str:
    """Without control characters and bidi overrides, which would escape from their place on the page."""
    return clean_text(str(text))


def percent(share: float | None) -> str:
    """57 %, with a decimal where the figure is small; "n/a" where there is none."""
    if share is None:
        return "n/a"
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def _seconds(value: float) -> str:
    return f"{value:,.1f} s"
