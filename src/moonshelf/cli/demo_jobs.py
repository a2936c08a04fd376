"""What the demo shows of work that is done: gaps filled, categories mapped, your own queries.

Every second of the first products of the shop loses its attributes and its category, and `enrich` fills
these holes. The shop's queries with their grades are judgements, by which ways to search are compared.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moonshelf.enrichment.run import Options, enrich
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.evaluation.report.demo_page import Job, percent
from moonshelf.evaluation.search import evaluate_search
from moonshelf.model.modeling import MoonModel
from moonshelf.sample import Shop, Truth

HOLED, SHOWN = 40, 12  # products of the feed with holes, and rows of a table
METRIC = "nDCG@10"


def fill_gaps(shop: Shop, feed: Path, moon: MoonModel, out: Path) -> list[Job]:
    """Attributes and categories that `enrich` suggests for products whose own were taken away."""
    lines = feed.read_text(encoding="utf-8").splitlines()[:HOLED]
    records = [json.loads(line) for line in lines]
    for record in records[1::2]:
        record.pop("category", None)
        record.pop("attributes", None)
    out.mkdir(parents=True, exist_ok=True)
    holed = out / "feed.jsonl"
    holed.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    paths = sorted({truth.category for truth in shop.truth.values()})
    taxonomy = Taxonomy("the shop's own list", {" > ".join(path): path for path in paths})
    options = Options(reading={"images_root": str(feed.parent)})
    enrich(holed, out / "enriched", lambda: moon, taxonomy, options=options)
    suggestions = (out / "enriched" / "suggestions.jsonl").read_text(encoding="utf-8").splitlines()
    holes = {record["id"] for record in records[1::2]}
    found = [one for one in map(json.loads, suggestions) if one["id"] in holes]
    titles = {product.id: product.title for product in shop.products}
    filled, mapped = (
        [
            (titles[one["id"]], one["name"], one["value"], truth, one)
            for one in found
            if (one["name"] == "category") is category
            and (truth := _true(shop.truth[one["id"]], one["name"]))
        ]
        for category in (False, True)
    )
    return [
        _job(
            "gaps", "Gaps filled", filled,
            f"Of {len(holes)} products the attributes were taken away: what moonshelf enrich suggests for "
            "them, from title and pictures.",
        ),
        _job(
            "mapped", "Categories mapped", mapped,
            f"The same products had no category: the best of the {len(paths)} that the shop has, as "
            "moonshelf enrich --taxonomy chooses it; nothing outside the list can be written.",
        ),
    ]  # fmt: skip


def _true(truth: Truth, name: str) -> str:
    return " > ".join(truth.category) if name == "category" else truth.attributes.get(name, "").lower()


def _job(id: str, title: str, found: Sequence[Any], intro: str) -> Job:
    right = [value.lower() == truth.lower() for _, _, value, truth, _ in found]
    sure = [hit for hit, (*_, one) in zip(right, found, strict=True) if one["accepted"]]
    rows = [
        [what, name, value, truth if not hit else "✓", one["source"], f"{one['confidence']:.2f}"]
        for hit, (what, name, value, truth, one) in zip(right, found, strict=True)
    ]
    said = (
        f"{sum(right)} of {len(right)} suggestions are right; of the {len(sure)} that are sure enough to be "
        f"accepted, {sum(sure)}."
    )
    columns = ["Product", "Field", "Suggested", "Truth", "Seen in", "Confidence"]
    return Job(id, title, f"{intro} {said}", columns, rows[:SHOWN], said)


def judge_queries(shop: Shop, home: Path, out: Path) -> Job:
    """Ways to search the catalogue in `home`, by the grades of the shop's queries in words."""
    asked = [query for query in shop.queries if query.modality == "text"]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "judgements.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["query", "docid", "rating"])
        table.writerows([q.text, id, grade] for q in asked for id, grade in q.relevance.items())
    report = evaluate_search(home, judgements=out / "judgements.csv", out=out)
    scored = [r for r in report.results if r.metric == METRIC and r.value is not None]
    rows = [
        [r.encoder, percent(r.value), f"{percent(r.low)} to {percent(r.high)}" if r.low is not None else ""]
        for r in scored
    ]
    best = max(scored, key=lambda r: r.value or 0)
    said = f"{len(asked)} queries with grades; best: {best.encoder}, {METRIC} {percent(best.value)}."
    return Job(
        "queries", "Your queries",
        "The shop's queries in words with their grades, as a team has them in Quepid: each way to search is "
        f"scored by moonshelf evaluate --judgements. {said}",
        ["Way to search", METRIC, "95 % interval"], rows, said,
    )  # fmt: skip
