"""Pairs and campaigns as a page shows them: pictures made small, words cut, reasons beside the truth.

Everything in them may come from strangers. Pictures are decoded by `moonshelf.images` and saved again, so no
byte of an original reaches a page; words are escaped by the template. Nothing is picked by hand: of our
backend the surest mistakes on decisive pairs come first, then abstentions, then the first pairs it has right.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moonshelf import images
from moonshelf.creatives.evaluation.figures import Evidence, rates_of
from moonshelf.creatives.evaluation.record import PICTURES, picture_name
from moonshelf.creatives.evaluation.simulated import drawn
from moonshelf.creatives.known import assess
from moonshelf.creatives.labels import posterior, stratum
from moonshelf.creatives.ranking import Comparison, Ranking
from moonshelf.creatives.schema import QUESTIONS, Assessment, Campaign, Creative, Judgement, Pair
from moonshelf.evaluation.report.demo_page import data_uri
from moonshelf.product import ImageRef

SIDE = 320  # pixels of the longer side of a picture
WRONG, SILENT, RIGHT = 10, 3, 5  # pairs of each kind on a page
OUTCOMES = {
    "wrong": "Wrong verdict",
    "abstained": "No verdict",
    "right": "Right verdict",
    "no winner": "Clicks name no winner",
}
SAYS = {
    "A>B": "speaks for A",
    "A<B": "speaks for B",
    "A=B": "even",
    "yes": "yes",
    "no": "no",
}


@dataclass(frozen=True)
class Reason:
    """One question of the protocol: what was answered, what was seen, and the truth where it is known."""

    asks: str
    answer: str
    seen_a: str
    seen_b: str
    truth: str = ""  # "" where nobody knows it, or where it is the same
    mark: str = ""  # right, wrong, ""


@dataclass(frozen=True)
class Shown:
    """One creative as it stands on a page."""

    letter: str
    picture: str  # data URI, "" where there is none
    alt: str
    notes: Sequence[str]
    winner: str = ""  # why it is the better one in truth: by its clicks, by its true rate; "" if it is not
    picked: bool = False  # by the verdict


@dataclass(frozen=True)
class Card:
    """A judged pair."""

    title: str
    interest: str
    a: Shown
    b: Shown
    outcome: str  # of `OUTCOMES`
    verdict: str
    share: float  # probability that A is better
    truth: str
    reasons: Sequence[Reason]
    flags: Sequence[str]
    simulated: bool


@dataclass(frozen=True)
class Ranked:
    """A campaign in the order that a ranking gives it."""

    title: str
    interest: str
    places: Sequence[Shown]
    says: str
    duel: Card | None  # the first two of the order, with the reasons
    simulated: bool


Pictures = Callable[[Creative], str]  # data URI of a creative, "" for none


def chosen(evidence: Evidence) -> list[tuple[Pair, Judgement, str]]:
    """(pair, judgement, outcome) of what a page shows of our backend, in its order."""
    known = evidence.judged["true"][evidence.backends[0]]
    kinds: dict[str, list[tuple[float, Pair, Judgement]]] = {name: [] for name in OUTCOMES}
    for pair, truth in zip(evidence.pairs, evidence.truth, strict=True):
        judgement = known[pair.id]
        if stratum(truth) == "decisive":
            kinds[outcome(judgement, truth)].append((abs(judgement.p - 0.5), pair, judgement))
    kinds["wrong"].sort(key=lambda row: -row[0])
    most = {"wrong": WRONG, "abstained": SILENT, "right": RIGHT, "no winner": 0}
    return [(pair, j, kind) for kind, rows in kinds.items() for _, pair, j in rows[: most[kind]]]


def outcome(judgement: Judgement, truth: float | None) -> str:
    """`OUTCOMES` of a judgement; without a known winner a verdict is neither right nor wrong."""
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
        if not path.exists() and (data := small(creative.image)):
            path.write_bytes(data)


def small(ref: ImageRef) -> bytes:
    """JPEG bytes without metadata, at most `SIDE` pixels wide and high; b"" for an unreadable picture."""
    try:
        picture = images.load(ref, max_side=SIDE)
    except images.ImageError:
        return b""
    picture.info.clear()  # comments and profiles of the original would be saved along
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def from_folder(out: Path) -> Pictures:
    """Pictures as `keep_pictures` left them, decoded again: a folder may have been changed since."""

    def picture(creative: Creative) -> str:
        name = Path(creative.image.path or "").name  # a record may be edited too: never another folder
        path = out / PICTURES / name
        return data_uri(small(ImageRef(path=str(path))) or None) if name and path.is_file() else ""

    return picture


def from_references(creative: Creative) -> str:
    """The picture from where the creative itself says that it lies."""
    return data_uri(small(creative.image) or None)


def card(pair: Pair, judgement: Judgement, truth: float | None, pictures: Pictures) -> Card:
    """A judged pair; `truth` is the posterior probability that A is better."""
    kind = outcome(judgement, truth)
    winner = "" if truth is None or truth == 0.5 else "A" if truth > 0.5 else "B"
    sides = [
        Shown(
            letter,
            pictures(creative),
            _alt(f"Creative {letter}", creative),
            _counts(creative, rate),
            "best by its clicks" if winner == letter else "",
            judgement.verdict == letter,
        )
        for letter, creative, rate in zip(
            "AB", (pair.a, pair.b), pair.true_rates or (None, None), strict=True
        )
    ]
    if judgement.verdict is None:
        verdict = f"No verdict: {judgement.abstained}"
    else:
        sure = judgement.p if judgement.verdict == "A" else 1 - judgement.p
        verdict = f"{judgement.verdict} is better, {100 * sure:.0f} %"
    known = "Nothing is known of its clicks"
    if truth is not None:
        sure = max(truth, 1 - truth)
        known = (
            f"By the clicks {winner} is better with {100 * sure:.1f} %" if winner else "Even by the clicks"
        )
    return Card(
        title=pair.title or pair.id,
        interest="; ".join(pair.interest),
        a=sides[0],
        b=sides[1],
        outcome=kind,
        verdict=verdict,
        share=judgement.p,
        truth=known,
        reasons=_reasons(judgement.assessment, pair.assessment),
        flags=judgement.flags,
        simulated=pair.source.startswith("simulated"),
    )


def ranked(campaign: Campaign, ranking: Ranking, pictures: Pictures) -> Ranked:
    """A campaign, best first, with the duel of its first two where they were compared."""
    by_id, rates = {one.id: one for one in campaign.creatives}, rates_of(campaign)
    best = max(rates.values(), default=None)
    places = []
    for place, name in enumerate(ranking.order, 1):
        creative = by_id[name]
        notes = [f"best with {100 * ranking.p_best[name]:.0f} %", *_counts(creative, rates.get(name))]
        winner = ""
        if best is not None and rates.get(name) == best:
            winner = "best true rate" if campaign.true_rates else "best by its clicks"
        places.append(
            Shown(
                str(place),
                pictures(creative),
                _alt(f"Place {place}", creative),
                notes,
                winner,
                name == ranking.winner,
            )
        )
    says = f"{len(ranking.comparisons)} of {ranking.pairs} pairs compared"
    if ranking.abstained:
        says += f", {ranking.abstained} without a verdict"
    if ranking.intransitivity is not None:
        says += f"; {100 * ranking.intransitivity:.0f} % of the triples contradict themselves"
    duel = next((one for one in ranking.comparisons if {one.a, one.b} == set(ranking.order[:2])), None)
    return Ranked(
        campaign.title or campaign.id,
        "; ".join(campaign.interest),
        places,
        says,
        _duel(campaign, by_id, ranking.order[0], duel, pictures) if duel else None,
        campaign.source.startswith("simulated"),
    )


def _duel(
    campaign: Campaign, by_id: Mapping[str, Creative], first: str, one: Comparison, pictures: Pictures
) -> Card:
    """The first two of an order as a judged pair, A the first."""
    shared = {
        name: getattr(campaign, name)
        for name in ("product_id", "title", "category", "interest", "source", "exposure")
    }
    pair = Pair(id=one.judgement.pair_id, a=by_id[one.a], b=by_id[one.b], **shared)
    if drawn(pair):
        pair = pair.model_copy(update={"assessment": assess(pair)})
    judgement = one.judgement
    if one.a != first:
        pair, judgement = pair.swapped(), turned(judgement)
    return card(pair, judgement, posterior(pair), pictures)


def turned(judgement: Judgement) -> Judgement:
    """The judgement of the same pair with the names A and B exchanged."""
    first, second = judgement.mirrored, judgement.assessment
    return judgement.model_copy(
        update={
            "p": 1 - judgement.p,
            "p_first": 1 - judgement.p_second,
            "p_second": 1 - judgement.p_first,
            "assessment": first.swapped() if first else None,
            "mirrored": second.swapped() if second else None,
        }
    )


def _alt(name: str, creative: Creative) -> str:
    return f"{name}; words on it: {creative.text}" if creative.text else f"{name}, without words on it"


def _counts(creative: Creative, true_rate: float | None) -> list[str]:
    found = []
    if creative.rate is not None:
        found.append(f"{creative.clicks:,} clicks of {creative.impressions:,}: {100 * creative.rate:.2f} %")
    if true_rate is not None and true_rate != creative.rate:
        found.append(f"true rate {100 * true_rate:.2f} %")
    return found


def _reasons(said: Assessment | None, truth: Assessment | None) -> list[Reason]:
    """The answers with A shown first; [] where the backend gave none."""
    if said is None:
        return []
    found = []
    for question in QUESTIONS:
        if question.key not in said:
            continue
        finding = said[question.key]
        known = truth[question.key].answer if truth and question.key in truth else None
        right = known == finding.answer
        found.append(
            Reason(
                question.asks,
                SAYS[finding.answer],
                finding.reason_a,
                finding.reason_b,
                "" if known is None or right else SAYS[known],
                "" if known is None else "right" if right else "wrong",
            )
        )
    return found
