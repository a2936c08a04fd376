"""Ways to search a catalogue, scored by judgements of the user's own queries and compared on the same ones.

A way is `bm25`, `vector`, `fused`, `tuned` or, by a model that is given for it, `reranked`; `-record` behind
it leaves out what the model wrote, `:0.3` is what vectors weigh, and `@FOLDER` searches another catalogue.
Each asks as `moonshelf search` does, 100 deep; what a list does not hold comes last. `tuned` takes the weight
with the best nDCG@10 on one half of the queries (cut by a hash of their words) for the other half, and the
other way round: no query is scored with a weight that it helped to choose.

`judged@10` is the share of the first 10 hits that somebody judged. What nobody judged counts as not relevant,
so a way that finds much of it looks worse than it is: no other figure is to be read without this one.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf.catalogue.fusion import GRID
from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.search import Catalogue
from moonshelf.catalogue.store import WRITTEN_WEIGHT
from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.data.clicks import read_clicks
from moonshelf.evaluation.data.dataset import sample
from moonshelf.evaluation.data.judgements import read_judgements
from moonshelf.evaluation.record import Head, Predictions, Report
from moonshelf.evaluation.report.details import wanted_pictures
from moonshelf.evaluation.report.outcome import Outcome
from moonshelf.evaluation.statistics.scoring import JUDGED, Scored, figures
from moonshelf.evaluation.tasks.matching import second_half
from moonshelf.evaluation.tasks.retrieval import TOP
from moonshelf.model.encoders import rerankers
from moonshelf.model.encoders.base import asking
from moonshelf.model.encoders.rerankers import Reranker
from moonshelf.product import Product
from moonshelf.training.sources.click_log import read_queries

METRICS = ("nDCG@10", "MRR", "recall@10", "recall@100", JUDGED)
DEPTH = 100
FEW = 20  # queries; with fewer nothing is tuned unless it is asked for
PATIENCE = 3600.0  # seconds that a reranker may take for a query: here it is judged by its order
MODES = {"bm25": "text", "vector": "vector", "fused": "hybrid", "tuned": "hybrid", "reranked": "hybrid"}
_WAY = re.compile(r"(bm25|vector|fused|tuned|reranked)(-record)?(?::(\d?\.?\d+))?(?:@(.+))?")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """One way to search, as it is named on the command line."""

    name: str
    kind: str
    written: float
    weight: float | None
    folder: Path

    @classmethod
    def of(cls, name: str, folder: Path) -> Way:
        """Raises UserError for a name that says nothing, or something that makes no difference.

        >>> Way.of("fused-record:0.3", Path("shelf")).weight
        0.3
        """
        match = _WAY.fullmatch(name)
        if match is None or (match[3] and (match[1] != "fused" or float(match[3]) > 1)):
            raise UserError(
                f"there is no way to search called {name!r}: give bm25, vector, fused, fused:0.3 (vectors' "
                "weight, 0 to 1), tuned or, with --rerank, reranked; bm25-record and so on leave out what "
                "the model wrote, fused@FOLDER and so on search another catalogue."
            )
        weight = float(match[3]) if match[3] else None
        written = 0.0 if match[2] else WRITTEN_WEIGHT
        return cls(name, match[1], written, weight, Path(match[4]) if match[4] else folder)


def evaluate_search(
    folder: Path,
    *,
    judgements: Path | None = None,
    clicks: Sequence[Path] = (),
    queries: Path | None = None,
    columns: Mapping[str, str] | None = None,
    relevant_from: float = 0.0,
    ways: Sequence[str] = (),
    baseline: str | None = None,
    reason: str = "off",
    limit: int | None = None,
    rerank: str | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Score ways to search the catalogue in `folder` by `judgements` or `clicks` (`read_judgements`,
    `read_clicks`); `queries` has words of queries by id, `limit` takes a seeded sample of them.

    `rerank` names what reads the fused list again (`rerankers.load`). MRR and recall count grades of at least
    `relevant_from`, 0 for all above 0. With `out` the record, the predictions and what the report shows are
    written there. Raises UserError for what the user must mend.
    """
    start = time.perf_counter()
    wrote = Catalogue.open(folder).store.manifest.reason != "off"
    usual = [*["bm25-record"] * wrote, *(name for name in MODES if rerank or name != "reranked")]
    chosen = [Way.of(name, folder) for name in ways or usual]
    reranker = rerankers.load(rerank) if rerank else None
    if reranker is None and any(way.kind == "reranked" for way in chosen):
        raise UserError("the way 'reranked' needs a model that does it: name one with --rerank.")
    shelves = {way.folder: Catalogue.open(way.folder) for way in chosen}
    names = [way.name for way in chosen]
    baseline = baseline or ("fused" if "fused" in names else names[0])
    record.check_baseline(baseline, names)
    for place, shelf in shelves.items():
        if shelf.store.full_text("a", 1) is None:
            raise UserError(f"{place} has no full-text index yet: run `moonshelf index {place}` first.")
    ids = dict.fromkeys(id for shelf in shelves.values() for id in shelf.store.scan(["id"])["id"].to_pylist())
    asked = read_queries(queries) if queries is not None else None
    files = [judgements] if judgements is not None else list(clicks)
    source = files[0]
    if judgements is None:
        judged = read_clicks(files, ids, asked)
    else:
        judged = read_judgements(source, ids, columns=columns, asked=asked, relevant_from=relevant_from)
    texts = sample(list(judged.grades), limit)
    grades = [judged.grades[text] for text in texts]
    if not ways and len(texts) < FEW:
        chosen = [way for way in chosen if way.kind != "tuned"]
    note = "; ".join([*judged.notes, f"gains are linear; {JUDGED}: share of the first 10 that was judged"])
    report = record.begin({
        "suite": source.name, "judgements": [path.name for path in files], "catalogue": str(folder),
        "against": names, "baseline": baseline, "relevant_from": relevant_from, "reason": reason,
        "limit": limit,
    })  # fmt: skip
    report.problems = [{"encoder": None, "dataset": source.stem, **p.as_dict()} for p in judged.problems]
    report.datasets = [{
        "name": source.stem, "licence": "yours", "note": note, "not_run": {},
        "rejected": sum(p.fatal for p in judged.problems),
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }]  # fmt: skip
    vectors: dict[Path, np.ndarray] = {}
    for place in {way.folder: None for way in chosen if way.kind != "bm25"}:
        say(f"{place}: encoding {len(texts):,} queries")
        products = [Product(id=str(i), title=text) for i, text in enumerate(texts)]
        vectors[place] = asking(shelves[place].model).encode(products, reason=reason).vectors
    scored: list[Scored | Result] = []
    for way in chosen:
        began, shelf = time.perf_counter(), shelves[way.folder]
        found: dict[float | None, Rows] = {}
        for weight in GRID if way.kind == "tuned" else (way.weight,):
            say(f"{way.name}, weight {'measured' if weight is None else weight}: {len(texts):,} queries")
            again = reranker if way.kind == "reranked" else None
            near = vectors.get(way.folder)
            found[weight] = _search(way, shelf, weight, texts, near, grades, len(ids), again)
        head = Head(
            source.stem, "your queries", "text", "ranking", way.name, "ranking", METRICS, len(ids),
            hit_gain=relevant_from,
        )  # fmt: skip
        done = _crossed(head, found) if way.kind == "tuned" else _scored(head, found[way.weight])
        seconds = time.perf_counter() - began
        scored.append(done)
        report.encoders.append({
            "name": way.name, "fingerprint": shelf.store.manifest.fingerprint, "ours": False, "from_cache": 0,
            "encoded": len(texts) * len(found), "seconds": seconds,
        })  # fmt: skip
        if out is not None:
            record.write_predictions(done.predictions, out)
    report.results = figures(scored, baseline)
    report.datasets[0]["note"] += _words_ahead(report.results)
    report.seconds = time.perf_counter() - start
    if out is not None:
        record.save(report, out)
        _illustrate(Outcome(report, out), out, source.stem, shelves.values())
    return report


def _search(
    way: Way,
    shelf: Catalogue,
    weight: float | None,
    texts: Sequence[str],
    vectors: np.ndarray | None,
    grades: Sequence[Mapping[str, float]],
    corpus: int,
    reranker: Reranker | None,
) -> Rows:
    """A row of predictions (`evaluation.record`) for each query."""
    rows: Rows = []
    for i, (text, known) in enumerate(zip(texts, grades, strict=True)):
        result = shelf.search(
            text, k=DEPTH, mode=MODES[way.kind], columns=["id"], written=way.written, vector_weight=weight,
            vector=None if vectors is None else vectors[i], reranker=reranker, rerank_seconds=PATIENCE,
        )  # fmt: skip
        if reranker is not None and not result.reranked_by:  # else it would be scored as the fused list
            raise UserError(f"the query {text[:100]!r} could not be reranked: {result.notes[-1]}")
        hits = {hit.id: (place, hit.score) for place, hit in enumerate(result.hits)}
        relevant = [id for id, grade in known.items() if grade > 0]
        lost = [id for id in relevant if id not in hits]
        places = hits | {id: (corpus - 1 - j, -np.inf) for j, id in enumerate(lost)}
        first = list(hits)[:TOP]
        rows.append({
            "id": text, "cluster": text, "text": text, "ok": True, "rationale": "", "relevant": relevant,
            "gains": [known[id] for id in relevant], "relevant_scores": [places[id][1] for id in relevant],
            "above": [places[id][0] for id in relevant], "tied": [1] * len(relevant), "top": first,
            "top_scores": [hits[id][1] for id in first],
            JUDGED: sum(id in known for id in first) / max(1, len(first)),
        })  # fmt: skip
    return rows


def _words_ahead(results: Sequence[Result]) -> str:
    """Weights that were tuned; where words alone beat the baseline, by the first metric and its interval."""
    said = ""
    for one in results[:: len(METRICS)]:
        said += f"; {one.note}" if one.note else ""
        more = one.versus
        if more and more.significant and more.difference > 0 and one.encoder.startswith("bm25"):
            by = f"{one.metric} +{more.difference:.3f} [{more.low:.3f}, {more.high:.3f}]"
            said += f"; words alone ({one.encoder}) find more than {more.baseline}: {by}"
    return said


def _scored(head: Head, rows: Rows) -> Scored:
    return Scored(Predictions(head, {name: [row[name] for row in rows] for name in rows[0]}))


def _crossed(head: Head, found: Mapping[float | None, Rows]) -> Scored:
    """Each half of the queries by the weight that is best on the other."""
    weights, some = list(found), next(iter(found.values()))
    values = np.array([_scored(head, rows).predictions.values("nDCG@10") for rows in found.values()])
    second = np.array([second_half(row["id"]) for row in some])
    if second.all() or not second.any():
        raise UserError("the queries are too few to tune on one half of them: leave out the way 'tuned'.")
    by_first, by_second = (weights[int(values[:, half].mean(axis=1).argmax())] for half in (~second, second))
    note = f"tuned: vectors weigh {by_second:g} in one half of the queries and {by_first:g} in the other"
    rows = [found[by_first if late else by_second][i] for i, late in enumerate(second)]
    return _scored(replace(head, note=note), rows)


def _illustrate(outcome: Outcome, out: Path, dataset: str, shelves: Any) -> None:
    """Keep title and thumbnail of the products that the report shows."""
    wanted = [id for _, id in wanted_pictures(outcome)]
    shown: dict[tuple[str, str], tuple[str, bytes]] = {}
    for shelf in shelves:
        for row in shelf.store.rows(map(key_of, wanted), ["id", "title", "thumbnail"]).to_pylist():
            shown.setdefault((dataset, row["id"]), (row["title"] or "", row["thumbnail"] or b""))
    record.write_shown(shown, out)
