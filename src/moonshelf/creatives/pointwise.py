"""A head on our vectors that predicts one creative's click-through rate, compared with its rivals'.

In the manner of the visual-aware ranking model (VAM, WWW'21) and its successors: each creative is scored
alone, and what is learnt is how creatives of one product differ, not which products are clicked. So features
and targets are centred within each campaign before the fit:

    features  v, v ⊙ t, v ⊙ q     v, t, q: our direct vectors of the image, the title, the queries
    target    log((clicks + α) / (impressions + α + β)), Beta prior fitted on the campaigns
    weight    impressions, at most `MAX_WEIGHT`

Ridge regression in closed form; its strength is chosen by cross-validation over products. The result orders
creatives and warm-starts; it is no forecast of a rate. Saved as safetensors and JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.creatives.baselines import Scored, Vectors
from moonshelf.creatives.judging import Ask
from moonshelf.creatives.outcomes import fit_prior
from moonshelf.creatives.pair import Campaign, Creative
from moonshelf.creatives.safety import clean, clean_all
from moonshelf.errors import UserError

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel

WEIGHTS, CARD = "pointwise.safetensors", "pointwise.json"
MAX_WEIGHT = 20_000.0  # impressions, so that a few huge arms do not make the fit
STRENGTHS = tuple(float(10.0**k) for k in range(-3, 5))  # of the ridge, relative to the mean feature's square
FOLDS = 5
FORMAT = 1


@dataclass
class Card:
    """What a saved head says of itself."""

    model: str  # fingerprint of the embedding model
    sources: tuple[str, ...]  # of the campaigns; "simulated …" for drawn ones
    campaigns: int
    creatives: int
    strength: float
    agreement: float  # cross-validated share of pairs within campaigns that are ordered as observed, weighted
    scale: float = 1.0  # of the link, see `baselines.fit_scale`
    format: int = FORMAT


class PointwiseHead(Scored):
    """Scores are predicted log rates, up to a constant of the campaign."""

    name = "pointwise"

    def __init__(self, weights: np.ndarray, vectors: Vectors, card: Card) -> None:
        self.weights, self.vectors, self.card = weights, vectors, card
        self.scale = card.scale

    def score(self, asks: Sequence[tuple[Creative, Ask]]) -> list[float]:
        features = _features(
            self.vectors,
            [creative for creative, _ in asks],
            [ask.title for _, ask in asks],
            [ask.interest for _, ask in asks],
        )
        return [float(value) for value in features @ self.weights]

    @classmethod
    def fit(cls, campaigns: Sequence[Campaign], model: MoonModel, seed: int = 0) -> PointwiseHead:
        """Fit on campaigns whose creatives have impressions; the others, and unreadable images, are left out.

        Raises `UserError` with fewer than `FOLDS` products that have two usable creatives in a campaign.
        """
        vectors = Vectors(model)
        prior = fit_prior([creative for campaign in campaigns for creative in campaign.creatives])
        xs, ys, ws, groups, products = [], [], [], [], []
        for number, campaign in enumerate(campaigns):
            arms = [creative for creative in campaign.creatives if creative.impressions]
            if len(arms) < 2:
                continue
            title, _ = clean(campaign.title)
            interest, _ = clean_all(campaign.interest)
            x = _features(vectors, arms, [title] * len(arms), [interest] * len(arms))
            usable = np.isfinite(x).all(1)
            if usable.sum() < 2:
                continue
            arms, x = [arm for arm, good in zip(arms, usable, strict=True) if good], x[usable]
            clicks, shown = np.array([(arm.clicks, arm.impressions) for arm in arms], np.float64).T
            y = np.log((clicks + prior.alpha) / (shown + prior.alpha + prior.beta))
            w = np.minimum(shown, MAX_WEIGHT)
            xs.append(x - w @ x / w.sum())
            ys.append(y - w @ y / w.sum())
            ws.append(w)
            groups += [number] * len(arms)
            products += [campaign.product_id] * len(arms)
        names = sorted(set(products))
        if len(names) < FOLDS:
            raise UserError(
                f"a pointwise head needs campaigns of at least {FOLDS} products with two creatives that were "
                f"shown and can be read; there are {len(names)}"
            )
        x, y, w = np.concatenate(xs), np.concatenate(ys), np.concatenate(ws)
        order = np.random.default_rng(seed).permutation(len(names))
        fold_of = {names[int(k)]: i % FOLDS for i, k in enumerate(order)}
        folds, group = np.array([fold_of[product] for product in products]), np.array(groups)
        tried = zip(_cross(x, y, w, folds, group), STRENGTHS, strict=True)
        agreement, strength = max(tried, key=lambda pair: (round(pair[0], 6), pair[1]))
        card = Card(
            model=model.fingerprint,
            sources=tuple(sorted({campaigns[g].source for g in set(groups)})),
            campaigns=len(set(groups)),
            creatives=len(x),
            strength=strength,
            agreement=agreement,
        )
        return cls(_ridge(x, y, w, [strength])[0], vectors, card)

    def save(self, folder: str | Path) -> None:
        from safetensors.numpy import save_file

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save_file({"weights": self.weights.astype(np.float32)}, place / WEIGHTS)
        card = asdict(self.card) | {"scale": self.scale}
        (place / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path, model: MoonModel) -> PointwiseHead:
        """Raises `UserError` where the folder is none of ours, or was fitted on another model's vectors."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        place = Path(folder)
        try:
            row: dict[str, Any] = json.loads((place / CARD).read_text())
            weights = load_file(place / WEIGHTS)["weights"].astype(np.float64)
            if row.get("format") != FORMAT or set(row) != {field.name for field in fields(Card)}:
                raise ValueError("another format")
            card = Card(**row | {"sources": tuple(row["sources"]), "scale": float(row["scale"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(f"{place.name!r} holds no pointwise head: {type(error).__name__}") from error
        if card.model != model.fingerprint:
            raise UserError(
                f"the pointwise head in {place.name!r} was fitted on vectors of another model "
                f"({card.model[:12]}…, not {model.fingerprint[:12]}…): fit it again"
            )
        vectors = Vectors(model)
        if weights.shape != (3 * vectors.dim,) or not np.isfinite(weights).all():
            raise UserError(f"the weights in {place.name!r} do not fit vectors of {vectors.dim} numbers")
        return cls(weights, vectors, card)


def _features(
    vectors: Vectors,
    creatives: Sequence[Creative],
    titles: Sequence[str],
    interests: Sequence[tuple[str, ...]],
) -> np.ndarray:
    """(n, 3 · dim) float64; NaN in a row whose image cannot be read, zeros where there are no words."""
    v = vectors([creative.image for creative in creatives]).astype(np.float64)
    t = np.nan_to_num(vectors(list(titles)))
    q = np.nan_to_num(vectors(["; ".join(queries) for queries in interests]))
    # Products of two unit vectors are of the order 1 / dim: brought to the size of the vector itself.
    size = np.sqrt(vectors.dim)
    return np.concatenate([v, size * v * t, size * v * q], axis=1)


def _ridge(x: np.ndarray, y: np.ndarray, w: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """(strengths, features): least squares weighted by `w`, penalised by strength × mean feature square.

    One eigendecomposition serves all strengths.
    """
    share = w / w.sum()
    values, vectors = np.linalg.eigh((x * share[:, None]).T @ x)
    target = vectors.T @ (x.T @ (share * y))
    values = np.maximum(values, 0)
    penalties = np.maximum(np.asarray(strengths)[:, None] * values.mean(), 1e-12)
    return np.asarray((target / (values + penalties)) @ vectors.T)


def _cross(x: np.ndarray, y: np.ndarray, w: np.ndarray, folds: np.ndarray, group: np.ndarray) -> list[float]:
    """For each strength, the share of pairs within campaigns ordered as observed, each fold unseen.

    A pair counts by its gap in log rate times the smaller of its weights: noise of toss-ups counts little.
    """
    predicted = np.zeros((len(STRENGTHS), len(y)))
    for fold in range(FOLDS):
        out = folds == fold
        predicted[:, out] = _ridge(x[~out], y[~out], w[~out], STRENGTHS) @ x[out].T
    right, total = np.zeros(len(STRENGTHS)), 0.0
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        i, j = (rows[k] for k in np.triu_indices(len(rows), 1))
        counts = np.abs(y[i] - y[j]) * np.minimum(w[i], w[j])
        total += float(counts.sum())
        right += ((y[i] - y[j]) * (predicted[:, i] - predicted[:, j]) > 0) @ counts
    return [float(share) for share in right / total] if total else [0.5] * len(STRENGTHS)
