"""Pairs as training rows: what is asked, what should be written, and how likely the first is the better one.

A pair gives two rows, one an order, with mirrored reasons and mirrored target. The target is the posterior of
its impressions and clicks, so a toss-up is taught as one (an annotator's label, where there are no counts,
counts as sure as `LABEL_TRUST`). What a step draws follows from seed and step alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from moonshelf import sample
from moonshelf.creatives import known
from moonshelf.creatives.backends.base import PairInput
from moonshelf.creatives.backends.model import CreativeModel, Pixels
from moonshelf.creatives.labels import build_pairs, truth_of
from moonshelf.creatives.prompt import write_assessment, write_description
from moonshelf.creatives.safety.text import clean
from moonshelf.creatives.schema import Assessment, Campaign, Pair
from moonshelf.creatives.training.distractors import with_distractors
from moonshelf.creatives.training.recipe import PairSource
from moonshelf.errors import UserError
from moonshelf.product import ImageRef

NO_INTEREST = 0.1  # share of pairs that are shown without their queries; ours, as the next
LABEL_TRUST = 0.9  # ours: annotators of creatives agree about so often (reference: none stated)


@dataclass(frozen=True)
class Example:
    """A pair with its target: the probability that A is the better one."""

    pair: Pair
    target: float


@dataclass(frozen=True)
class PairRow:
    """An ask of a step, what should be written for it, and the pictures that it shows."""

    ask: PairInput  # of a description only the first creative is shown
    body: Sequence[int] = ()  # token ids of the reasons; empty where none is known
    target: float = 0.5  # that the first is the better one
    known: Assessment | None = None  # A being the first creative; None where it is not known
    pictures: tuple[Pixels, ...] = ()  # two, the one to be described, or none


def load_examples(source: PairSource, data: Path) -> list[Example]:
    """Pairs of a source that say something: counts of both creatives, or a label."""
    from moonshelf.creatives.io.readers import read_creatives

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
    same = pair.a.sha256 and pair.a.sha256 == pair.b.sha256
    return 0.5 if same else truth_of(pair, sure=LABEL_TRUST)  # whatever chance made of the clicks of a copy


def draw(examples: Sequence[Example], count: int, seed: int, step: int) -> list[Example]:
    """`count` examples of a step: passes over the data in a new order each."""
    n = len(examples)
    chosen = []
    for place in range(step * count, (step + 1) * count):
        order = _order(n, seed, place // n)
        chosen.append(examples[order[place % n]])
    return chosen


@lru_cache(maxsize=1)
def _order(n: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(n), n)


def make_pair_rows(
    model: CreativeModel,
    examples: Sequence[Example],
    key: str,
    no_interest: float = 0.0,
    no_overlays: float = 0.0,
    distractors: float = 0.0,
    shown: bool = True,
) -> list[PairRow]:
    """Both orders of each example, side by side; a pair with a picture that cannot be read is left out.

    `no_interest`, `no_overlays` and `distractors` are the shares of pairs that are shown without queries,
    without the words on the images, and with words beside the point. Without its queries a pair's reasons
    are known only if it is a drawn one. `shown` False: no images, for comparisons by words; known reasons
    stay so.
    """
    rng, beside = random.Random(key), random.Random(f"{key}/asides")
    pictures = _pictures(model, examples) if shown else {}
    rows: list[PairRow] = []
    for example in examples:
        pair = example.pair
        if shown and not pictures.keys() >= {pair.a.image, pair.b.image}:
            continue
        if pair.interest and (shown or known.is_known(pair.a, pair.b)) and rng.random() < no_interest:
            pair = known.without_interest(pair)
        title, interest = _words(pair, beside, distractors)
        bare = rng.random() < no_overlays
        for swapped in (False, True):
            one = pair.swapped() if swapped else pair
            labels = model.prompt.draw_labels(key, pair.id, str(swapped))
            said = ("", "") if bare else (clean(one.a.text)[0], clean(one.b.text)[0])
            ask = PairInput(pair.id, title, interest, one.a, one.b, labels, said)
            body = write_assessment(one.assessment, labels) if one.assessment else ""
            target = 1 - example.target if swapped else example.target
            both = (pictures[one.a.image], pictures[one.b.image]) if shown else ()
            rows.append(PairRow(ask, _tokens(model, body), target, one.assessment, both))
    return _some(rows)


def make_descriptions(
    model: CreativeModel,
    examples: Sequence[Example],
    key: str,
    no_overlays: float = 0.0,
    distractors: float = 0.0,
) -> list[PairRow]:
    """One row a creative: what the reasons say of it, without the other one and without any comparison.

    Reading is learnt far sooner so: in a pair a small model first has to find out which picture a word is
    about. A drawn creative is described under a query of its own that the picture need not answer: it was
    drawn for its campaign's, and a model that sees those learns to say that whatever is asked for is shown
    (docs/experiments.md). `distractors` is the share of rows with words beside the point. Pairs without
    reasons give no rows; raises `UserError` where none has any.
    """
    rng = np.random.default_rng(list(key.encode()))
    beside = random.Random(f"{key}/asides")
    told = [example for example in examples if example.pair.assessment is not None]
    if not told:
        raise UserError("describe_steps needs pairs with reasons: set it to 0 for this feed.")
    pictures = _pictures(model, told)
    rows: list[PairRow] = []
    for example in told:
        if not pictures.keys() >= {example.pair.a.image, example.pair.b.image}:
            continue
        for pair in (example.pair, example.pair.swapped()):
            pair = known.asked_anew(pair, rng)
            assert pair.assessment is not None
            title, interest = _words(pair, beside, distractors)
            said = "" if rng.random() < no_overlays else clean(pair.a.text)[0]
            ask = PairInput(pair.id, title, interest, pair.a, pair.a, model.prompt.alone, (said, said))
            body = _tokens(model, write_description(pair.assessment))
            rows.append(PairRow(ask, body, pictures=(pictures[pair.a.image],)))
    return _some(rows)


def _pictures(model: CreativeModel, examples: Sequence[Example]) -> dict[ImageRef, Pixels]:
    return model.patchify(one.image for example in examples for one in (example.pair.a, example.pair.b))


def _tokens(model: CreativeModel, body: str) -> list[int]:
    return model.moon.prepare.text_ids([body])[0]


def _some(rows: list[PairRow]) -> list[PairRow]:
    if not rows:
        raise UserError("no picture of this step can be read: look at the images of the pairs.")
    return rows


def _words(pair: Pair, rng: random.Random, distractors: float) -> tuple[str, tuple[str, ...]]:
    """Title and queries of a pair, in the share `distractors` of cases with words beside the point."""
    if rng.random() < distractors:
        pair = with_distractors(pair, rng)
    return clean(pair.title)[0], tuple(clean(query)[0] for query in pair.interest)
