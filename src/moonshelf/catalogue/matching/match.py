"""Two lists matched one to one: which product of B is each product of A, how sure that is, and who came next.

Read downwards: `match` finds candidates (`blocking`), scores them (`score`, 20,000 pairs at a time, kept in
OUT/parts until all is done, so that a run that was stopped goes on), assigns them, and leaves matches.csv,
review.csv and unmatched.csv. What a person decides in review.csv holds in the next run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moonshelf.catalogue.matching import score as scoring
from moonshelf.catalogue.matching.blocking import by_identifiers, by_vectors, by_words
from moonshelf.catalogue.matching.evidence import Item, Rarity, compare, explain, features, shared_codes
from moonshelf.catalogue.matching.lists import Listing, Progress
from moonshelf.catalogue.vector_index import VectorIndex
from moonshelf.errors import UserError
from moonshelf.files import write_atomic
from moonshelf.plaintext import csv_field

HIGH, MEDIUM, LOW = 0.9, 0.5, 0.25  # probabilities; below LOW a pair is none
MARGIN = 0.2  # that a high pair has over the next candidate
NEIGHBOURS = 10
_PART = 20_000  # pairs
_PAIR = ("a_id", "b_id", "score", "level", "margin", "runner_up", "why", "a_title", "b_title")
_REST = ("list", "id", "title", "nearest", "score")
FILES = {"matches": _PAIR, "review": ("decision", *_PAIR), "unmatched": _REST}

Place = tuple[int, int]  # in A, in B
Rows = list[dict[str, Any]]
Decisions = dict[tuple[str, str], bool]  # (id of A, id of B) -> whether they are one article


@dataclass
class MatchReport:
    """`matches` and `unmatched` have the columns of FILES; `level` is high, medium or low, or decided where a
    person said so."""

    a: int
    b: int
    compared: int
    rejected: int
    levels: dict[str, int]
    notes: list[str]
    matches: Rows
    unmatched: Rows

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def doubtful(self) -> Rows:
        """Pairs for a person to see, the least certain first."""
        some = (row for row in self.matches if row["level"] in ("medium", "low"))
        return sorted(some, key=lambda row: row["margin"])


def match(
    a: Listing, b: Listing, out: Path, *, neighbours: int = NEIGHBOURS,
    progress: Progress = lambda rows, share: None,
) -> MatchReport:  # fmt: skip
    """Match two lists and write what was found to the folder `out`.

    Raises UserError if a decision in `out`/review.csv cannot be read.
    """
    decisions, reviewed = read_decisions(out / "review.csv")
    items = [*a.items, *b.items]
    shared, notes = by_identifiers(items)  # erases identifiers that are none
    lefts, rights = items[: len(a.items)], items[len(a.items) :]
    rarity = Rarity(items)
    found = {(i, j - len(lefts)) for i, j in shared if i < len(lefts) <= j}
    found.update(by_words(lefts, rights, rarity, neighbours))
    if a.vectors is not None and b.vectors is not None and a.fingerprint == b.fingerprint:
        index = VectorIndex.of(np.arange(len(rights)), b.vectors)
        found.update(by_vectors(a.vectors, index, {j: j for j in range(len(rights))}, neighbours, -1.0))
    else:
        notes.append("no vectors of one model: candidates share an identifier or a rare word of the titles")
    candidates = sorted(found)
    pairs = dict(
        zip(candidates, _scored(candidates, lefts, rights, rarity, out, a, b, progress), strict=True)
    )
    notes += _decide(pairs, decisions, lefts, rights)
    matches, unmatched = _read_off(pairs, assign(pairs), lefts, rights, decisions)
    problems = [
        replace(p, field=f"{name}: {p.field}") for name, one in (("A", a), ("B", b)) for p in one.problems
    ]
    report = MatchReport(
        len(lefts), len(rights), len(candidates), sum(problem.fatal for problem in problems),
        dict(Counter(row["level"] for row in matches)),
        [*(f"{name}: {note}" for name, one in (("A", a), ("B", b)) for note in one.notes), *notes],
        matches, unmatched,
    )  # fmt: skip
    rows = {"matches": matches, "unmatched": unmatched, "review": [*reviewed, *report.doubtful]}
    for name, fields in FILES.items():
        file = io.StringIO()
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: csv_field(value) for key, value in row.items()} for row in rows[name])
        write_atomic(out / f"{name}.csv", file.getvalue().encode())
    lines = "".join(json.dumps(problem.as_dict()) + "\n" for problem in problems)
    write_atomic(out / "rejects.jsonl", lines.encode())
    shutil.rmtree(out / "parts")
    return report


def _scored(
    candidates: Sequence[Place], lefts: list[Item], rights: list[Item], rarity: Rarity, out: Path,
    a: Listing, b: Listing, progress: Progress,
) -> list[float]:  # fmt: skip
    """Score of each pair; parts that an earlier run of the same lists and model has left are read."""
    trees, scores = scoring.trees(), list[float]()
    made_of = repr((a.digest, b.digest, trees.value.sum(), trees.line, candidates)).encode()
    (out / "parts").mkdir(parents=True, exist_ok=True)
    for start in range(0, len(candidates), _PART):
        some = candidates[start : start + _PART]
        part = out / "parts" / f"{hashlib.sha256(made_of).hexdigest()[:16]}-{start}.json"
        if not part.is_file():
            chances = trees.probability([features(lefts[i], rights[j], rarity) for i, j in some]).tolist()
            for k, (left, right) in enumerate((lefts[i], rights[j]) for i, j in some):
                if chances[k] >= LOW or (left.gtin and right.gtin):
                    chances[k] = scoring.ruled(chances[k], compare(left, right))
            write_atomic(part, json.dumps([round(one, 6) for one in chances]).encode())
        scores += json.loads(part.read_text())
        progress(len(scores), len(scores) / len(candidates))
    return scores


def assign(pairs: Mapping[Place, float], least: float = LOW) -> list[Place]:
    """The pairs, each place at most once on its side, with the highest sum of log-odds above `least`'s, by
    scipy's full matching of a sparse graph in which each place of A may also stay alone.

    Examples:
        >>> assign({(0, 0): 0.9, (0, 1): 0.8, (1, 0): 0.8})  # 0 is better alone, both are better together
        [(0, 1), (1, 0)]
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    kept = {pair: score for pair, score in pairs.items() if score >= least}
    if not kept:
        return []
    (lefts, rows), (rights, columns) = (
        np.unique([pair[side] for pair in kept], return_inverse=True) for side in (0, 1)
    )
    chance, alone = np.clip(list(kept.values()), 1e-6, 1 - 1e-6), np.arange(len(lefts))
    # One more than the gain, since a weight of 0 is no edge; staying alone gains nothing.
    gain = 1 + np.log(chance / (1 - chance)) - np.log(least / (1 - least))
    ends = np.r_[rows, alone], np.r_[columns, len(rights) + alone]
    graph = csr_matrix((np.r_[gain, alone * 0 + 1], ends), (len(lefts), len(rights) + len(lefts)))
    where, to = min_weight_full_bipartite_matching(graph, maximize=True)
    return [(int(lefts[i]), int(rights[j])) for i, j in zip(where, to, strict=True) if j < len(rights)]


def _read_off(
    pairs: Mapping[Place, float], chosen: list[Place], lefts: list[Item], rights: list[Item],
    decisions: Decisions,
) -> tuple[Rows, Rows]:  # fmt: skip
    """Matches with level, margin and runner-up: the best other candidate of either product; and the products
    of both lists that are in no match."""
    sides = (lefts, rights)
    best: dict[Place, list[Place]] = {}  # (side, place there) -> its best two candidates
    for pair in sorted(pairs, key=lambda one: (-pairs[one], one)):
        for side in (0, 1):
            some = best.setdefault((side, pair[side]), [])
            some += [pair][: 2 - len(some)]
    gtins = [Counter(item.gtin or "" for item in items) for items in sides]
    matches: Rows = []
    for pair in sorted(chosen):
        left, right, score = lefts[pair[0]], rights[pair[1]], pairs[pair]
        others = [(pairs[one], side, one) for side in (0, 1) for one in best[side, pair[side]] if one != pair]
        second, side, other = max(others, default=(0.0, 0, pair))
        gtin = left.gtin if left.gtin == right.gtin else None
        several = gtin is not None and any(found[gtin] > 1 for found in gtins)
        codes = sorted(shared_codes(left, right), key=len)[-1:]
        why = explain(compare(left, right).as_dict(), codes) + "; this GTIN is on several products" * several
        level = "medium" if score >= MEDIUM else "low"
        if score >= HIGH and score - second >= MARGIN and not several:
            level = "high"
        matches.append({
            "a_id": left.id, "b_id": right.id, "score": round(score, 4),
            "level": "decided" if decisions.get((left.id, right.id)) else level,
            "margin": round(score - second, 4),
            "runner_up": f"{'BA'[side]} {sides[1 - side][other[1 - side]].id} ({second:.2f})" * bool(others),
            "why": why,
            "a_title": left.title, "b_title": right.title,
        })  # fmt: skip
    unmatched: Rows = []
    for side, items in enumerate(sides):
        taken = {pair[side] for pair in chosen}
        for i, item in enumerate(items):
            if i not in taken:
                near = best.get((side, i), [])[:1]
                unmatched.append({
                    "list": "AB"[side], "id": item.id, "title": item.title,
                    "nearest": sides[1 - side][near[0][1 - side]].id if near else "",
                    "score": round(pairs[near[0]], 4) if near else 0.0,
                })  # fmt: skip
    return matches, unmatched


def read_decisions(path: Path) -> tuple[Decisions, list[dict[str, str]]]:
    """What a person wrote under `decision` in a review file, yes or no, and the rows that say so."""
    decisions: Decisions = {}
    rows = []
    text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    separator = max(",;\t", key=text.partition("\n")[0].count)  # what spreadsheets make of it
    for row in csv.DictReader(io.StringIO(text), delimiter=separator):
        said = (row.get("decision") or "").strip().casefold()
        ids = [row.get(name) or "" for name in ("a_id", "b_id")]
        if said and (said not in ("yes", "no") or not all(ids)):
            raise UserError(
                f"{path.name}, pair {ids[0]!r} and {ids[1]!r}: a decision is yes, no or empty, with both ids "
                f"beside it, not {said!r}; mend that line and run again."
            )
        if said:
            # Ids without the apostrophe that keeps a cell from being a formula.
            a, b = (id[1:] if id[:1] == "'" and id[1:2] in "=+-@" else id for id in ids)
            decisions[a, b] = said == "yes"
            rows.append(row)
    return decisions, rows


def _decide(
    pairs: dict[Place, float], decisions: Decisions, lefts: list[Item], rights: list[Item]
) -> list[str]:
    """Put decisions into the scores: a yes takes the other candidates of both products away."""
    places = [{item.id: i for i, item in enumerate(items)} for items in (lefts, rights)]
    known = {
        (places[0][x], places[1][y]): yes
        for (x, y), yes in decisions.items()
        if x in places[0] and y in places[1]
    }
    taken = [{pair[side] for pair, yes in known.items() if yes} for side in (0, 1)]
    for pair in list(pairs):
        if pair in known or pair[0] in taken[0] or pair[1] in taken[1]:
            del pairs[pair]
    pairs.update((pair, 1.0) for pair, yes in known.items() if yes)
    lost = len(decisions) - len(known)
    return (
        [f"{lost:,} decisions are about products that are not in both lists; they are kept"] if lost else []
    )
