"""The demo: the sample shop is checked, embedded, searched and scored, and a page shows all of it.

Each step calls what the command of that name calls. The shop comes with its truth, so what the model
writes and finds can be counted. Everything goes to one folder: `shop/` (the feed, its pictures, the
truth), `catalogue/` (as `moonshelf embed` makes it), `evaluation/` (as `evaluate` does), `cache/` (vectors
of the views that only the figures need), `jobs/` (a feed with holes and what fills them; the queries with
their grades), `report.html`, and `run.json`, by which a second run knows its own
folder. A second run redoes only what changed. Products are scored by the vectors and rationales that stand
in the catalogue: they are encoded once.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from moonshelf.catalogue.embed import REASONS
from moonshelf.catalogue.manifest import NAME as MANIFEST
from moonshelf.catalogue.manifest import versions
from moonshelf.catalogue.search import Catalogue
from moonshelf.cli.console import RECORD, Steps, claim
from moonshelf.enrichment.run import Options, enrich
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.report import demo_page
from moonshelf.evaluation.report.demo_page import Job, Page
from moonshelf.evaluation.report.page import between, percent
from moonshelf.evaluation.search import evaluate_search
from moonshelf.feeds import read_feed
from moonshelf.feeds.check import check_feed
from moonshelf.files import write_json
from moonshelf.model import files
from moonshelf.model.modeling import MoonModel
from moonshelf.product import ImageRef, Product
from moonshelf.sample import Query, Shop, Truth, truth_record, write_shop
from moonshelf.sample import shop as sample_shop

SEARCHES = {"text": 3, "image": 3, "composed": 2}
HOLED, SHOWN = 40, 12  # products of the feed with holes, and rows of a table
METRIC = "nDCG@10"
NOTES = (
    "The products were drawn by a program, so every figure is counted against a known truth. It is an easier "
    "world than yours, and the starter has learned from other products of the same program: what it does on "
    "real photos is what the command “moonshelf evaluate” measures.",
)


def run_demo(
    out: Path,
    *,
    products: int,
    model: str = "starter",
    reason: str = "on",
    console: Console | None = None,
    command: str = "",
    started: float | None = None,
) -> None:
    """Run the whole demo into the folder `out`; time is counted from `started` (`time.perf_counter`).

    Raises UserError if the model is missing, if the folder holds somebody else's files, or if an option
    makes no sense.
    """
    started = time.perf_counter() if started is None else started
    console = console or Console()
    _check_options(model, reason)
    sample = sample_shop(products)
    home = out / "catalogue"
    catalogue = Catalogue.create(home, model)
    moon = cast(MoonModel, catalogue.model)
    settings = {"products": products, "model": model, "reason": reason}
    _claim(out, moon.fingerprint, settings, console)
    plan = (
        f"The demo takes a drawn shop of {products} products, checks its feed, lets the model "
        f"{'write about and ' if reason != 'off' else ''}embed each, builds an index, searches, looks for "
        f"duplicates, counts how much is right, and writes a page. Everything goes to {out}/; nothing "
        "leaves this machine."
    )
    console.print(Text(plan), soft_wrap=True)
    console.print(Text(f"Model {model}, fingerprint {moon.fingerprint}, reasoning {reason}.\n"))
    steps = Steps(console, total=9)

    with steps.step("shop") as said:
        shop, written = _shop(out / "shop", sample)
        feed = out / "shop" / "products.jsonl"
        groups, pictures = {t.group for t in shop.truth.values()}, sum(len(p.images) for p in shop.products)
        said.append(
            f"{len(shop.products)} products of {len(groups)} designs in "
            f"{len({t.category for t in shop.truth.values()})} categories, {pictures} photos, "
            f"{len(shop.queries)} queries" + ("" if written else " (there already)")
        )
    with steps.step("check") as said:
        checked = check_feed(feed, rejects=out / "shop" / "rejects.jsonl")
        said.append(
            f"{checked.products} of {checked.rows} rows are products, {checked.rejected} rejected, "
            f"{checked.warnings} warnings, {checked.images['good']} photos decode"
        )
    with steps.step("embed", spinner=False) as said:
        embedded = catalogue.embed(feed, progress=console.is_terminal, reason=reason, allow_removals=True)
        said.append(f"{embedded.new} new, {embedded.changed} changed, {embedded.unchanged} unchanged")
        if embedded.items_per_s:
            said.append(f"{embedded.items_per_s:.1f} products a second")
        if embedded.reasoning_valid_rate is not None:
            said.append(f"{percent(embedded.reasoning_valid_rate)} % of the rationales keep their format")
    with steps.step("index") as said:
        index = catalogue.index()
        said.append(f"{index.rows} products ({index.kind})")
    rows = {row["id"]: row for row in catalogue.store.scan(demo_page.COLUMNS).to_pylist()}
    rows = {product.id: rows[product.id] for product in shop.products if product.id in rows}
    page = Page("A shop, read by a model", _lead(shop, reason))

    with steps.step("search") as said:
        asked = [q for kind, n in SEARCHES.items() for q in _of(shop, kind)[:n]]
        for query in asked:
            shown = (query.image,) if query.image else ()
            found = catalogue.search(Product(id=query.id, title=query.text, images=shown), k=6)
            page.searches.append(demo_page.searched(query, found, rows))
        hits = sum(search.hits[0].grade == 3 for search in page.searches)
        said.append(
            f"{len(asked)} searches by words, photo and both; the first result is exactly what was asked in "
            f"{hits} of {len(asked)}"
        )
    with steps.step("duplicates") as said:
        doubles = catalogue.duplicates()
        page.families = demo_page.families(doubles, rows)
        page.family_counts = {kind: len(doubles.of(kind)) for kind in page.families}
        said.append(", ".join(f"{n} {kind} groups" for kind, n in page.family_counts.items()))
    with steps.step("figures") as said:
        judged = out / "evaluation"
        page.tiles, results = demo_page.score(shop, rows, moon, cast(Any, reason), out / "cache", judged)
        said.append(f"{len(results)} figures, each with its interval and chance, in evaluation/report.html")
    with steps.step("jobs") as said:
        jobs = out / "jobs"
        page.jobs = [*fill_gaps(shop, feed, moon, jobs), judge_queries(shop, home, jobs / "queries")]
        said.append(" ".join(f"{job.title}: {job.said}" for job in page.jobs))
    with steps.step("report") as said:
        page.cards = demo_page.cards(shop, rows)
        page.notes = list(NOTES)
        page.steps = list(steps.done)
        page.facts = _facts(command, model, moon, reason, feed)
        page.next_command = f'{_program()} search {home} "{_unseen(shop, asked)}"'
        size = (out / "report.html").write_text(demo_page.render(page), encoding="utf-8", newline="\n")
        said.append(f"report.html, {size / 1e6:.1f} MB, with {len(page.cards)} products")
    seconds = time.perf_counter() - started
    steps.finish(out, seconds=round(seconds, 2), results=[result.as_dict() for result in results])
    _say_end(console, page, out, home, feed, seconds)


# ---- the folder --------------------------------------------------------------------------------------


def _check_options(model: str, reason: str) -> None:
    if reason not in REASONS:
        raise UserError(f"--reason takes {', '.join(REASONS)}, not '{reason}'.")
    if model == "starter" and not (files.STARTER / "moon.json").is_file():
        raise UserError(
            "this installation comes without the starter model: install a release, or name the folder of a "
            "model with --model."
        )


def _claim(out: Path, fingerprint: str, settings: dict[str, Any], console: Console) -> None:
    """Make the folder ours. What another model or another mode left in it is made anew."""
    record = claim(out, "demo")
    home = out / "catalogue"
    if record and (home / MANIFEST).exists() and record.get("fingerprint") != fingerprint:
        console.print(Text(f"{home} was made by another model: it is made anew."), soft_wrap=True)
        shutil.rmtree(home)
    write_json(out / RECORD, {"command": "demo", "config": settings, "fingerprint": fingerprint})


def _shop(folder: Path, sample: Shop) -> tuple[Shop, bool]:
    """The shop as it stands on disk, and whether it had to be written.

    The truth is written last, so a folder with the right truth is a whole one.
    """
    try:
        there = _lines(folder / "truth.jsonl") == [truth_record(truth) for truth in sample.truth.values()]
    except (OSError, ValueError):
        there = False
    if not there:
        shutil.rmtree(folder, ignore_errors=True)
        write_shop(sample, folder)
    queries = []
    for row in _lines(folder / "queries.jsonl"):
        image = ImageRef(path=str(folder / row["image"])) if "image" in row else None
        queries.append(Query(row["id"], row["text"], image, row["relevance"]))
    listed = [item for item in read_feed(folder / "products.jsonl") if isinstance(item, Product)]
    return Shop(listed, sample.truth, queries), not there


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- work that is done: gaps, categories, queries ------------------------------------------------------


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
            f"{len(mapped)} of {len(holes)} products got a category; ",
        ),
    ]  # fmt: skip


def _true(truth: Truth, name: str) -> str:
    return " > ".join(truth.category) if name == "category" else truth.attributes.get(name, "").lower()


def _job(id: str, title: str, found: Sequence[Any], intro: str, before: str = "") -> Job:
    right = [value.lower() == truth.lower() for _, _, value, truth, _ in found]
    sure = [hit for hit, (*_, one) in zip(right, found, strict=True) if one["accepted"]]
    rows = [
        [what, name, value, truth if not hit else "✓", one["source"], f"{one['confidence']:.2f}"]
        for hit, (what, name, value, truth, one) in zip(right, found, strict=True)
    ]
    said = (
        f"{before}{sum(right)} of {len(right)} suggestions are right; of the {len(sure)} that are "
        f"sure enough to be accepted, {sum(sure)}."
    )
    columns = ["Product", "Field", "Suggested", "Truth", "Seen in", "Confidence"]
    return Job(id, title, f"{intro} {said}", columns, rows[:SHOWN], said)


def judge_queries(shop: Shop, home: Path, out: Path) -> Job:
    """Ways to search the catalogue in `home`, by the grades of the shop's queries in words."""
    asked = _of(shop, "text")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "judgements.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["query", "docid", "rating"])
        table.writerows([q.text, id, grade] for q in asked for id, grade in q.relevance.items())
    report = evaluate_search(home, judgements=out / "judgements.csv", out=out)
    scored = [r for r in report.results if r.metric == METRIC and r.value is not None]
    rows = [[r.encoder, percent(r.value), between(r.low, r.high)] for r in scored]
    said = f"{len(asked)} queries with grades; {best_way(scored)}"
    return Job(
        "queries", "Your queries",
        "The shop's queries in words with their grades, as a team has them in Quepid: each way to search is "
        f"scored by moonshelf evaluate --judgements. {said}",
        ["Way to search", f"{METRIC}, %", "95 % interval"], rows, said,
    )  # fmt: skip


def best_way(scored: Sequence[Result]) -> str:
    """The best of the ways that are visibly better than the baseline; the baseline where none is."""
    ahead = [r for r in scored if r.versus and r.versus.significant and r.versus.difference > 0]
    best = max(ahead or [r for r in scored if r.versus is None], key=lambda r: r.value or 0)
    said = f"{best.encoder}, {METRIC} {percent(best.value)} %"
    return f"best: {said}." if ahead else f"{said}; no way is visibly better."


# ---- words -------------------------------------------------------------------------------------------


def _lead(shop: Shop, reason: str) -> str:
    looked = f"Moonshelf looked at photos and title of {len(shop.products)} products of a drawn shop. "
    if reason == "off":
        return looked + "It put both into one vector. This page shows what it finds, and where it is wrong."
    return (
        looked + "It wrote down what it saw, and put photos, title and reasoning into one vector. This page "
        "shows what it wrote, what it finds, and where it is wrong."
    )


def _of(shop: Shop, modality: str) -> list[Query]:
    return [query for query in shop.queries if query.modality == modality]


def _unseen(shop: Shop, asked: Sequence[Query]) -> str:
    """Words for the next command: a query that the page does not show."""
    shown = {query.id for query in asked}
    return next((query for query in _of(shop, "text") if query.id not in shown), asked[0]).text


def _program() -> str:
    """How this very program is called, for a command that can be pasted."""
    return "moonshelf" if shutil.which("moonshelf") else os.path.relpath(sys.argv[0])


def _facts(command: str, model: str, moon: MoonModel, reason: str, feed: Path) -> dict[str, str]:
    import hashlib

    import torch

    found = versions() | {"python": platform.python_version(), "numpy": metadata.version("numpy")}
    return {
        "Command": command,
        "Model": f"{model}, fingerprint {moon.fingerprint}, vectors of {moon.dim} numbers",
        "Reasoning": {"off": "off", "on": "on: a rationale for each product"}.get(reason, reason),
        "Shop": f"feed SHA-256 {hashlib.sha256(feed.read_bytes()).hexdigest()[:16]}",
        "Machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "Versions": ", ".join(f"{name} {version}" for name, version in found.items()),
    }


def _say_end(console: Console, page: Page, out: Path, home: Path, feed: Path, seconds: float) -> None:
    def say(line: str = "") -> None:
        console.print(Text(line), soft_wrap=True)

    say(f"\nDone in {seconds:.0f} s. Right, with the 95 % interval and chance:")
    for tile in page.tiles:
        r = tile.result
        chance = "" if r.chance is None else f" (chance {percent(r.chance)} %)"
        say(f"  {percent(r.value):>5} % [{between(r.low, r.high) or 'one group'}]  {tile.label}{chance}")
    say(f"\nReport     {out / 'report.html'}   open it in a browser")
    say(f"Catalogue  {home}")
    say(f"Feed       {feed}")
    say(f"\nNext: {page.next_command}")
