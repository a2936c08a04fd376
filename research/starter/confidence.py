"""How sure a model may be of what it writes: calibrated on feeds that it was not trained on.

    python -m research.starter.confidence MODEL --held-out FEED … [--least 0.35] [--write]

Each product is read three times, by its first picture, by its title and by both. A written pair is right if
the record states the same value for its key; pairs whose key the record does not state are not counted, for
nobody knows. Printed are the fit, its calibration error before and after (ten bins, leave one feed out), and
what a threshold keeps and how much of it is right. `--write` puts both into the model's `prompt.json`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from sklearn.linear_model import LogisticRegression

from moonshelf.feeds import read_feed
from moonshelf.files import write_atomic
from moonshelf.model import files
from moonshelf.model.confidence import log_odds
from moonshelf.model.golden import write_golden
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from moonshelf.prompts import read_rationale
from moonshelf.training.sources.pairs import items_of

STEPS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Claim(NamedTuple):
    """A pair that was written."""

    feed: str
    shown: str  # picture, title, both
    key: str
    log_odds: float
    right: bool


def claims(model: MoonModel, feed: Path, most: int, seed: int = 0) -> Iterator[Claim]:
    """All pairs of at most `most` products of a feed whose key their record states."""
    products = [p for p in read_feed(feed) if isinstance(p, Product) and p.images]
    items = [item for p in products for item in items_of(p)]
    items = random.Random(seed).sample(items, min(most, len(items)))
    truth = [read_rationale(item.rationale) or {} for item in items]
    for shown in ("picture", "title", "both"):
        read = [
            Product(
                id=str(n), title=item.title if shown != "picture" else "",
                images=item.images[:1] if shown != "title" else (),
            )
            for n, item in enumerate(items)
        ]  # fmt: skip
        asked = [(p, t) for p, t in zip(read, truth, strict=True) if p.title or p.images]
        encoded = model.encode([p for p, _ in asked], reason="on")
        rows = zip(asked, encoded.rationales, encoded.confidence, strict=True)
        for (_, stated), text, confidence in rows:
            for (key, value), sure in zip((read_rationale(text) or {}).items(), confidence, strict=False):
                if key in stated:
                    odds = log_odds(math.log(sure))
                    yield Claim(feed.stem, shown, key, odds, same_value(key, value, stated[key]))


def same_value(key: str, written: str, stated: str) -> bool:
    """A category is right where its last step is."""
    if key == "category":
        written, stated = (path.split(" > ")[-1] for path in (written, stated))
    return written == stated


def fit(found: list[Claim]) -> tuple[float, float]:
    """Slope and offset of the log-odds."""
    x = np.array([[claim.log_odds] for claim in found])
    y = np.array([claim.right for claim in found])
    if len(set(y.tolist())) < 2:
        return 1.0, 0.0
    line = LogisticRegression(C=1e6).fit(x, y)
    return float(line.coef_[0, 0]), float(line.intercept_[0])


def sureness(found: list[Claim], calibration: tuple[float, float]) -> np.ndarray:
    odds = np.array([claim.log_odds for claim in found])
    return 1 / (1 + np.exp(-(calibration[0] * odds + calibration[1])))


def calibration_error(sure: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: distance of confidence and accuracy, by bins of equal width."""
    place = np.minimum((sure * bins).astype(int), bins - 1)
    parts = [(place == b) for b in range(bins) if (place == b).any()]
    return float(sum(p.mean() * abs(sure[p].mean() - right[p].mean()) for p in parts))


def run(
    model: Annotated[Path, typer.Argument(help="Moonshelf folder.")],
    held_out: Annotated[list[Path], typer.Option(help="Feed with known attributes; may be repeated.")],
    most: Annotated[int, typer.Option(help="Products of each feed.")] = 200,
    least: Annotated[float, typer.Option(help="Least confidence, for --write.")] = 0.35,
    write: Annotated[bool, typer.Option("--write", help="Keep fit and threshold in prompt.json.")] = False,
) -> None:
    """Calibrate the confidence of pairs and show what thresholds do."""
    loaded = MoonModel.from_pretrained(str(model))
    spec = loaded.prompt
    loaded.prompt = spec.model_copy(update={"least_confidence": 0.0, "calibration": (1.0, 0.0)})
    found = [claim for feed in held_out for claim in claims(loaded, feed, most)]
    right = np.array([claim.right for claim in found])
    calibration = fit(found)
    apart = np.zeros(len(found))
    for feed in {claim.feed for claim in found}:
        others = fit([c for c in found if c.feed != feed] or found)
        mine = [n for n, c in enumerate(found) if c.feed == feed]
        apart[mine] = sureness([found[n] for n in mine], others)
    before = calibration_error(sureness(found, (1.0, 0.0)), right)
    after = calibration_error(apart, right)
    slope, offset = calibration
    typer.echo(f"{len(found):,} pairs, {right.mean():.1%} right; slope {slope:.2f}, offset {offset:.2f}")
    typer.echo(f"calibration error {before:.3f} as written, {after:.3f} by a fit on the other feeds")
    typer.echo("share kept / right of these, by least confidence")
    typer.echo(" " * 36 + "".join(f"{step:>13.1f}" for step in STEPS))
    for feed, shown in sorted({(claim.feed, claim.shown) for claim in found}):
        group = [claim for claim in found if (claim.feed, claim.shown) == (feed, shown)]
        sure, true = sureness(group, calibration), np.array([claim.right for claim in group])
        cells = []
        for step in STEPS:
            kept = true[sure >= step]
            cells.append(f"{len(kept) / len(true):.2f} / {kept.mean() if len(kept) else np.nan:.2f}")
        typer.echo(f"{feed[:22]:22} {shown:8} {len(group):>4}" + "".join(f"{cell:>13}" for cell in cells))
    if write:
        spec = spec.model_copy(update={"least_confidence": least, "calibration": calibration})
        write_atomic(model / "prompt.json", f"{spec.model_dump_json(indent=1)}\n".encode())
        files.write_manifest(model)  # the weights stay as they are; golden results are those of the files
        write_golden(model)
        files.write_manifest(model)


if __name__ == "__main__":
    typer.run(run)
