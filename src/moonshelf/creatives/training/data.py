"""Pairs as training rows: what is asked, what should be written, and how likely the first is the better one.

A pair gives two rows, one an order, with mirrored reasons and mirrored target. The target is the posterior of
its impressions and clicks, so a toss-up is taught as one (an annotator's label, where there are no counts,
counts as sure as `LABEL_TRUST`). What a step draws follows from seed and step alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL.Image import Image

from moonshelf import images, sample
from moonshelf.creatives import known
from moonshelf.creatives.backends.base import PairInput
from moonshelf.creatives.backends.model import CreativeModel
from moonshelf.creatives.labels import posterior
from moonshelf.creatives.prompt import write_assessment, write_description
from moonshelf.creatives.safety.text import clean
from moonshelf.creatives.schema import Assessment, Campaign, Creative, Pair
from moonshelf.creatives.training.distractors import with_distractors
from moonshelf.creatives.training.recipe import PairSource
from moonshelf.errors import UserError
from moonshelf.model.engine import load_picture

NO_INTEREST = 0.1  # share of pairs that are shown without their queries; ours, as the next
LABEL_TRUST = 0.9  # ours: annotators of creatives agree about so often (reference: none stated)


@dataclass(frozen=True)
class Example:
    """A pair with its target: the probability that A is the better one."""

    pair: Pair
    target: float


@dataclass
class PairBatch:
    """Rows of one step: asks, bodies (R lists of token ids), targets (R,), and the pictures they show."""

    asks: list[PairInput]  # of a description only the first creative is shown
    bodies: list[list[int]]  # reasons; empty where none is known
    targets: list[float]  # that the first is the better one
    places: list[tuple[int, ...]]  # of each row's pictures: two, or one to be described
    pixels: np.ndarray
    grid: np.ndarray
    known: list[Assessment | None]  # of each row, A being its first creative; None where it is not known

    def only(self, places: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
        """Pixels and grid of the pictures that are at `places`, and the same places among these."""
        used = sorted({p for where in places for p in where})
        ends = np.cumsum(self.grid.prod(1))
        pixels = [self.pixels[ends[p] - self.grid[p].prod() : ends[p]] for p in used]
        at = {p: i for i, p in enumerate(used)}
        return np.concatenate(pixels), self.grid[used], [tuple(at[p] for p in where) for where in places]

    def beside(self, other: PairBatch) -> PairBatch:
        """These rows and pictures, then those of `other`."""
        n = len(self.grid)
        moved = replace(other, places=[tuple(p + n for p in where) for where in other.places])
        both = self.followed_by(moved)
        pixels, grid = np.concatenate([self.pixels, other.pixels]), np.concatenate([self.grid, other.grid])
        return replace(both, pixels=pixels, grid=grid)

    def followed_by(self, *others: PairBatch) -> PairBatch:
        """These rows, then those of `others`, whose places are among these pictures."""
        works = (self, *others)
        return replace(
            self,
            asks=[one for work in works for one in work.asks],
            bodies=[one for work in works for one in work.bodies],
            targets=[one for work in works for one in work.targets],
            places=[one for work in works for one in work.places],
            known=[one for work in works for one in work.known],
        )


def load_examples(source: PairSource, data: Path) -> list[Example]:
    """Pairs of a source that say something: counts of both creatives, or a label."""
    from moonshelf.creatives.io.readers import read_creatives
    from moonshelf.creatives.labels import build_pairs

    found: list[Pair] = []
    for row in read_creatives(sample.CAMPAIGNS if source.feed == Path("sample") else data / source.feed):
        if isinstance(row, Pair):
            found.append(row)
        elif isinstance(row, Campaign):
            # Every pair is taken: a toss-up teaches that it is one. Reasons of drawn ones are known.
            drawn = known.is_known(*row.creatives)
            found += known.pairs(row) if drawn else build_pairs([row], min_gap=None)[0]
        else:
            print(row, file=sys.stderr)
    examples = [Example(pair, target) for pair in found if (target := _target(pair)) is not None]
    if not examples:
        raise UserError(f"{source.feed}: no pair has counts of both creatives, or a label.")
    return examples


def _target(pair: Pair) -> float | None:
    if pair.a.sha256 and pair.a.sha256 == pair.b.sha256:
        return 0.5  # whatever chance made of the clicks
    by_clicks = posterior(pair)
    if by_clicks is not None or pair.label is None:
        return by_clicks
    return {"A": LABEL_TRUST, "B": 1 - LABEL_TRUST, "tie": 0.5}[pair.label]


def draw(examples: Sequence[Example], count: int, seed: int, step: int) -> list[Example]:
    """`count` examples of a step: passes over the data in a new order each."""
    n = len(examples)
    chosen = []
    for place in range(step * count, (step + 1) * count):
        order = _order(n, seed, place // n)
        chosen.append(examples[order[place % n]])
    return chosen


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(n: int, seed: int, epoch: int) -> list[int]:
    key = (n, seed, epoch)
    if key not in _orders:
        _orders.clear()
        _orders[key] = random.Random(f"{seed}/{epoch}").sample(range(n), n)
    return _orders[key]


def make_pair_batch(
    model: CreativeModel,
    examples: Sequence[Example],
    key: str,
    no_interest: float = 0.0,
    no_overlays: float = 0.0,
    distractors: float = 0.0,
    taught: bool = True,
    shown: bool = True,
) -> PairBatch:
    """Both orders of each example, side by side; a pair with a picture that cannot be read is left out.

    `no_interest`, `no_overlays` and `distractors` are the shares of pairs that are shown without queries,
    without the words on the images, and with words beside the point. Without its queries a pair's reasons
    are known only if it is a drawn one.
    `taught` False: no bodies. `shown` False: no images, for comparisons by words; known reasons stay so.
    """
    rng, beside = random.Random(key), random.Random(f"{key}/asides")
    asks: list[PairInput] = []
    bodies: list[str] = []
    targets: list[float] = []
    places: list[tuple[int, ...]] = []
    pictures: list[Image] = []
    truths: list[Assessment | None] = []
    for example, at in _seen(model, examples, pictures) if shown else ((one, -1) for one in examples):
        pair = example.pair
        if pair.interest and (shown or known.is_known(pair.a, pair.b)) and rng.random() < no_interest:
            pair = known.without_interest(pair)
        title, interest = _words(pair, beside, distractors)
        bare = rng.random() < no_overlays
        for swapped in (False, True):
            one = pair.swapped() if swapped else pair
            labels = model.prompt.draw_labels(key, pair.id, str(swapped))
            said = ("", "") if bare else (_overlay(one.a), _overlay(one.b))
            asks.append(PairInput(pair.id, title, interest, one.a, one.b, labels, said))
            truths.append(one.assessment)
            bodies.append(write_assessment(one.assessment, labels) if taught and one.assessment else "")
            targets.append(1 - example.target if swapped else example.target)
            places.append(() if not shown else (at + 1, at) if swapped else (at, at + 1))
    return _batch(model, asks, bodies, targets, places, pictures, truths)


def make_descriptions(
    model: CreativeModel,
    examples: Sequence[Example],
    key: str,
    no_overlays: float = 0.0,
    distractors: float = 0.0,
) -> PairBatch:
    """One row a creative: what the reasons say of it, without the other one and without any comparison.

    Reading is learnt far sooner so: in a pair a small model first has to find out which picture a word is
    about. A drawn creative is described under a query of its own that the picture need not answer: it was
    drawn for its campaign's, and a model that sees those learns to say that whatever is asked for is shown
    (docs/experiments.md). `distractors` is the share of rows with words beside the point. Pairs without
    reasons give no rows; raises `UserError` where none has any.
    """
    rng = np.random.default_rng(list(key.encode()))
    beside = random.Random(f"{key}/asides")
    asks: list[PairInput] = []
    bodies: list[str] = []
    places: list[tuple[int, ...]] = []
    pictures: list[Image] = []
    told = [example for example in examples if example.pair.assessment is not None]
    if not told:
        raise UserError("describe_steps needs pairs with reasons: set it to 0 for this feed.")
    for example, at in _seen(model, told, pictures):
        for offset, pair in enumerate((example.pair, example.pair.swapped())):
            pair = known.asked_anew(pair, rng)
            assert pair.assessment is not None
            title, interest = _words(pair, beside, distractors)
            said = "" if rng.random() < no_overlays else _overlay(pair.a)
            asks.append(PairInput(pair.id, title, interest, pair.a, pair.a, model.prompt.alone, (said, said)))
            bodies.append(write_description(pair.assessment))
            places.append((at + offset,))
    return _batch(model, asks, bodies, [0.5] * len(asks), places, pictures, [None] * len(asks))


def _seen(
    model: CreativeModel, examples: Sequence[Example], pictures: list[Image]
) -> Iterator[tuple[Example, int]]:
    """Examples whose pictures can be read, and where in `pictures` the first of each is put."""
    for example in examples:
        try:
            two = [load_picture(c.image, model.prompt.max_pixels) for c in (example.pair.a, example.pair.b)]
        except images.ImageError:
            continue
        pictures += two
        yield example, len(pictures) - 2


def _words(pair: Pair, rng: random.Random, distractors: float) -> tuple[str, tuple[str, ...]]:
    """Title and queries of a pair, in the share `distractors` of cases with words beside the point."""
    if rng.random() < distractors:
        pair = with_distractors(pair, rng)
    return clean(pair.title)[0], tuple(clean(query)[0] for query in pair.interest)


def _overlay(creative: Creative) -> str:
    return clean(creative.text)[0]


def _batch(
    model: CreativeModel, asks: list[PairInput], bodies: list[str], targets: list[float],
    places: list[tuple[int, ...]], pictures: list[Image], known: list[Assessment | None],
) -> PairBatch:  # fmt: skip
    if not asks:
        raise UserError("no picture of this step can be read: look at the images of the pairs.")
    pixels, grid = model.moon.prepare.pixels(pictures) if pictures else (np.empty(0), np.empty(0))
    return PairBatch(asks, model.moon.prepare.text_ids(bodies), targets, places, pixels, grid, known)
