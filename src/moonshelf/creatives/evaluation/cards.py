"""Pairs and campaigns as a page shows them: their pictures made small, and which of them are shown.

Everything in them may come from strangers. Pictures are decoded by `moonshelf.images` and saved again, so no
byte of an original reaches a page; words are escaped by the template. Nothing is picked by hand: of our
backend the surest mistakes on decisive pairs come first, then abstentions, then the first pairs it has right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moonshelf.creatives.evaluation.figures import Evidence, rates_of
from moonshelf.creatives.evaluation.record import PICTURES, picture_name
from moonshelf.creatives.known import assess, drawn
from moonshelf.creatives.labels import posterior, stratum
from moonshelf.creatives.ranking import Comparison, Ranking
from moonshelf.creatives.schema import Campaign, Creative, Judgement, Pair, Side
from moonshelf.evaluation.report.page import data_uri, thumbnail
from moonshelf.product import ImageRef

SIDE = 320  # pixels of the longer side of a picture
MOST = {"wrong": 10, "abstained": 3, "right": 5, "no winner": 0}  # pairs of each outcome on a page, in order
Pictures = Callable[[Creative], str]  # data URI of a creative, "" for none


@dataclass(frozen=True)
class Shown:
    """One creative as it stands on a page."""

    letter: str
    name: str  # for those who do not see the picture
    creative: Creative
    picture: str  # data URI, "" where there is none
    rate: float | None  # the true one, where it is known
    winner: str  # why it is the better one in truth: by its clicks, by its true rate; "" if it is not
    picked: bool  # by the verdict
    best_with: float | None = None  # probability of being the best of a campaign


@dataclass(frozen=True)
class Card:
    """A judged pair; `truth` is the posterior probability that A is better."""

    pair: Pair
    judgement: Judgement
    truth: float | None
    sides: list[Shown] = field(default_factory=list)  # A, B

    @property
    def outcome(self) -> str:
        return outcome(self.judgement, self.truth)

    @property
    def winner(self) -> Side | None:
        """The better one by the clicks."""
        return None if self.truth in (None, 0.5) else "A" if (self.truth or 0) > 0.5 else "B"


@dataclass(frozen=True)
class Ranked:
    """A campaign in the order that a ranking gives it."""

    campaign: Campaign
    ranking: Ranking
    places: Sequence[Shown]
    duel: Card | None  # the first two of the order, with the reasons


def chosen(evidence: Evidence) -> list[tuple[Pair, Judgement, float]]:
    """(pair, judgement, truth) of what a page shows of our backend, in its order."""
    known = evidence.judged["true"][evidence.backends[0]]
    kinds: dict[str, list[tuple[Pair, Judgement, float]]] = {name: [] for name in MOST}
    for pair, truth in zip(evidence.pairs, evidence.truth, strict=True):
        if stratum(truth) == "decisive":
            kinds[outcome(known[pair.id], truth)].append((pair, known[pair.id], truth))
    kinds["wrong"].sort(key=lambda row: -abs(row[1].p - 0.5))
    return [row for kind, rows in kinds.items() for row in rows[: MOST[kind]]]


def outcome(judgement: Judgement, truth: float | None) -> str:
    """A key of `MOST`; without a known winner a verdict is neither right nor wrong."""
    if judgement.verdict is None:
        return "abstained"
    if truth is None or truth == 0.5:
        return "no winner"
    return "right" if (judgement.verdict == "A") == (truth > 0.5) else "wrong"


def keep_pictures(out: Path, shown: Iterable[Creative]) -> None:
    """Write the pictures of some creatives small into `out/pictures`; one that cannot be read is left out."""
    folder = out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for creative in shown:
        path = folder / picture_name(creative)
        if not path.exists() and (data := thumbnail(creative.image, SIDE)):
            path.write_bytes(data)


def from_folder(out: Path) -> Pictures:
    """Pictures as `keep_pictures` left them, decoded again: a folder may have been changed since."""

    def picture(creative: Creative) -> str:
        name = Path(creative.image.path or "").name  # a record may be edited too: never another folder
        path = out / PICTURES / name
        return data_uri(thumbnail(ImageRef(path=str(path)), SIDE)) if name and path.is_file() else ""

    return picture


def from_references(creative: Creative) -> str:
    """The picture from where the creative itself says that it lies."""
    return data_uri(thumbnail(creative.image, SIDE))


def card(pair: Pair, judgement: Judgement, truth: float | None, pictures: Pictures) -> Card:
    """A judged pair with its pictures."""
    rates, made = pair.true_rates or (None, None), Card(pair, judgement, truth)
    for letter, creative, rate in zip("AB", (pair.a, pair.b), rates, strict=True):
        won, picked = made.winner == letter, judgement.verdict == letter
        why = "best by its clicks" if won else ""
        made.sides.append(
            Shown(letter, f"Creative {letter}", creative, pictures(creative), rate, why, picked)
        )
    return made


def ranked(campaign: Campaign, ranking: Ranking, pictures: Pictures) -> Ranked:
    """A campaign, best first, with the duel of its first two where they were compared."""
    by_id, rates = {one.id: one for one in campaign.creatives}, rates_of(campaign)
    best = max(rates.values(), default=math.nan)
    why = "best true rate" if campaign.true_rates else "best by its clicks"
    places = []
    for place, one in enumerate((by_id[name] for name in ranking.order), 1):
        won, picked = rates.get(one.id) == best, one.id == ranking.winner
        about = (one, pictures(one), rates.get(one.id), why if won else "", picked, ranking.p_best[one.id])
        places.append(Shown(str(place), f"Place {place}", *about))
    duel = next((one for one in ranking.comparisons if {one.a, one.b} == set(ranking.order[:2])), None)
    return Ranked(
        campaign, ranking, places, _duel(campaign, ranking.order[0], duel, pictures) if duel else None
    )


def _duel(campaign: Campaign, first: str, one: Comparison, pictures: Pictures) -> Card:
    """The first two of an order as a judged pair, A the first."""
    ids = [creative.id for creative in campaign.creatives]
    pair, judgement = campaign.pair(ids.index(one.a), ids.index(one.b), one.judgement.pair_id), one.judgement
    if drawn(pair):
        pair = pair.model_copy(update={"assessment": assess(pair)})
    if one.a != first:
        pair, judgement = pair.swapped(), judgement.swapped()
    return card(pair, judgement, posterior(pair), pictures)
