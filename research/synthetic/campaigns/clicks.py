"""The click model of the simulator: what a creative's click-through rate is, given what is on it.

    log rate = BASE + sum of the terms of seven questions + style + idiosyncratic,   clicks ~ Binomial

Where several queries make up the interest, rates mix with the queries' shares (1/rank), so the term of the
query is log sum_q share_q exp(effect_q). Everything here is an assumption of ours, so that a selector can be
taught and its ceiling be known exactly, except: BASE, the size of the STYLE effects (what that data varies:
background, picture size, colour and font of the text) and `known.UNSEEN`, which have the size measured on the
online click-through rates of alimama_aes by

    python -m research.synthetic.campaigns.clicks DATA/alimama_aes

There 200 creatives of one advertiser have a mean log rate of -3.99 and a standard deviation of 0.091, of
which main effects explain 9 % (adjusted for their number 2 %); none is beyond ±0.031 and none stands out.
Our effects of claims, colour, legibility and layout are several times larger than that: with effects of that
size no selector, and no test of a few thousand impressions, could tell creatives apart.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moonshelf.creatives.known import ASPECTS as ASPECTS
from moonshelf.creatives.known import TIE as TIE
from moonshelf.errors import UserError
from research.synthetic.campaigns.claims import SIZE, Ask, read_query
from research.synthetic.elements import read_elements

BASE = -3.99  # mean log click-through rate of alimama_aes: 1.85 %

# query: what was asked for. A true claim gets TRUE_CLAIM besides: one that was asked for is worth 0.55
ASKED_ASPECT = 0.50
ASKED_MATERIAL = 0.45
ASKED_COLOUR = 0.45  # shown; another colour is worth 0
ASKED_SIZE = 0.30  # shown large or said to be large
# title
FALSE_CLAIM = -0.30
OTHER_COLOUR = -0.10  # than the one that the title names
# text
TRUE_CLAIM = 0.05
IRRELEVANT_CLAIM = -0.05
FAINT = -0.10
BADGE = 0.10
# props, layout, subject, background
PROPS = {"none": 0.0, "few": 0.04, "clutter": -0.18}
COVERING = -0.20
CROPPED = -0.15
OFF_CENTRE = -0.04
SCALE = {"small": -0.25, "medium": 0.0, "large": 0.08}
BACKGROUND = {"white": 0.0, "plain": 0.0, "gradient": 0.0, "scene": 0.10, "busy": -0.20, "dark": -0.05}
# style: of the size of alimama_aes's main effects, and of no question
FONT = {"regular": 0.0, "bold": 0.02, "capitals": -0.02}
INK = {"neutral": 0.0, "accent": 0.02}

STYLE = "style"


def shares(count: int) -> tuple[float, ...]:
    """Share of each of `count` queries, most frequent first: proportional to 1/rank."""
    weights = [1 / rank for rank in range(1, count + 1)]
    return tuple(weight / sum(weights) for weight in weights)


def answers(facts: Mapping[str, str], ask: Ask) -> float:
    """Effect on the log rate of a shopper who asked this; 0 where the creative does not speak to it."""
    if ask.kind == "colour":
        return ASKED_COLOUR if facts["colour"] == ask.value else 0.0
    said = facts["claim"] == ask.value and facts["claim_truth"] == "true"
    if ask.kind == "material":
        return ASKED_MATERIAL if said else 0.0
    if ask.kind == "aspect" and ask.value == SIZE:
        return ASKED_SIZE if said or facts["scale"] == "large" else 0.0
    return ASKED_ASPECT if ask.kind == "aspect" and said else 0.0


def utilities(facts: Mapping[str, str], interest: Sequence[str], titled: str) -> dict[str, float]:
    """Terms of the log rate by question (`ASPECTS`) and for `STYLE`, of a creative with these facts.

    `interest` holds queries, most frequent first (empty: nobody asked for anything); `titled` is the colour
    that the title names, or "".
    """
    asked = [answers(facts, read_query(query)) for query in interest]
    mixed = sum(share * math.exp(effect) for share, effect in zip(shares(len(asked)), asked, strict=True))
    truth = facts["claim_truth"]
    return {
        "query": math.log(mixed) if asked else 0.0,
        "title": FALSE_CLAIM * (truth == "false") + OTHER_COLOUR * (titled not in ("", facts["colour"])),
        "text": TRUE_CLAIM * (truth == "true")
        + IRRELEVANT_CLAIM * (truth == "irrelevant")
        + FAINT * (facts["legible"] == "faint")
        + BADGE * (facts["badge"] != "none"),
        "props": PROPS[facts["props"]],
        "layout": COVERING * (facts["covers"] == "yes")
        + CROPPED * (facts["crop"] == "cropped")
        + OFF_CENTRE * (facts["position"] != "centre"),
        "subject": SCALE[facts["scale"]],
        "background": BACKGROUND[facts["background"]],
        STYLE: FONT[facts["font"]] + INK[facts["ink"]] if facts["legible"] != "none" else 0.0,
    }


def rate(terms: Mapping[str, float], idiosyncratic: float = 0.0) -> float:
    """Click-through rate of `utilities`; without the idiosyncratic part it is what can be seen."""
    return min(0.5, math.exp(BASE + sum(terms.values()) + idiosyncratic))


def draw_outcome(
    rng: np.random.Generator, probability: float, median: float = 3000.0, least: int = 1000
) -> tuple[int, int]:
    """Impressions (log-normal, standard deviation 0.5 in the log, at least `least`) and clicks."""
    impressions = max(least, round(median * math.exp(0.5 * rng.standard_normal())))
    return impressions, int(rng.binomial(impressions, probability))


# --- calibration ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Main effects on the log click-through rate, each level against the mean of its factor."""

    creatives: int
    mean: float  # of the log rate
    deviation: float  # standard, of the log rate
    explained: float  # R², not adjusted
    adjusted: float  # the same adjusted for the number of effects: near 0 where they are noise
    residual: float  # standard deviation that the main effects leave, not adjusted
    effects: dict[str, dict[int, tuple[float, float]]]  # factor -> level -> effect, standard error


def calibrate(path: str | Path) -> Calibration:
    """Least squares of log rate on the elements of alimama_aes, whose folder `path` is.

    An element that does not vary is left out, and so
    is one that another determines (the background, by the colour of the text). Raises `UserError`.
    """
    table = read_elements(path)
    if not (table.rates > 0).all():
        raise UserError(f"{path}: a creative has a rate of 0, which has no logarithm: take it out.")
    levels, logs = table.choices, np.log(table.rates)
    columns = [k for k in range(levels.shape[1]) if len(np.unique(levels[:, k])) > 1]
    kept = [k for k in columns if not any(_determines(levels, j, k) for j in columns if j != k)]
    blocks = [levels[:, [k]] == np.unique(levels[:, k])[None, :] for k in kept]
    # coded as deviations from the factor's mean: the last level is minus the sum of the others
    coded = [block[:, :-1].astype(float) - block[:, -1:] for block in blocks]
    design = np.hstack([np.ones((len(logs), 1)), *coded])
    if np.linalg.matrix_rank(design) < design.shape[1] or len(logs) <= design.shape[1]:
        raise UserError(f"{path} has too few creatives, or too few combinations, to tell its elements apart")
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ logs
    left = logs - design @ fitted
    total, free = float(((logs - logs.mean()) ** 2).sum()), len(logs) - design.shape[1]
    error = float(left @ left)
    effects: dict[str, dict[int, tuple[float, float]]] = {}
    at = 1
    for k, block in zip(kept, blocks, strict=True):
        size = block.shape[1]
        widen = np.vstack([np.eye(size - 1), -np.ones(size - 1)])
        part = slice(at, at + size - 1)
        values = widen @ fitted[part]
        errors = np.sqrt(np.diag(widen @ inverse[part, part] @ widen.T) * error / free)
        names = np.unique(levels[:, k])
        effects[table.names[k]] = {
            int(name): (float(value), float(se))
            for name, value, se in zip(names, values, errors, strict=True)
        }
        at += size - 1
    return Calibration(
        len(logs), float(logs.mean()), math.sqrt(total / len(logs)), 1 - error / total,
        1 - error / free * (len(logs) - 1) / total, math.sqrt(error / len(logs)), effects,
    )  # fmt: skip


def _determines(levels: np.ndarray, one: int, other: int) -> bool:
    """Each level of `one` goes with a single level of `other`; of two that are the same the first is kept."""
    pairs = len(np.unique(levels[:, [one, other]], axis=0))
    finer = pairs == len(np.unique(levels[:, one]))
    return finer and (one < other or pairs > len(np.unique(levels[:, other])))


if __name__ == "__main__":
    print(calibrate(sys.argv[1]))
