"""Search of a catalogue by judgements that are not ours: the validation split of CrowdFlower's data.

    python -m research.studies.own_queries starter --data DATA --page docs/your-queries.md

Writes the products that were judged as a feed and the judgements as Quepid's CSV (grades 1 to 4 as 0 to 3),
embeds with what the model writes, indexes, and evaluates every way to search. A catalogue in OUT goes on.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from moonshelf.catalogue.search import Catalogue
from moonshelf.cli.console import wide
from moonshelf.evaluation.report.pages import write_pages
from moonshelf.evaluation.report.plain import show
from moonshelf.evaluation.search import evaluate_search
from research.script import app_of, start


def write(data: Path, out: Path) -> tuple[Path, Path]:
    """The feed and the judgements as files."""
    table = pq.read_table(data / "relevance/crowdflower.parquet")
    rows = [row for row in table.to_pylist() if row["split"] == "validation"]
    ids: dict[tuple[str, str], str] = {}
    for row in rows:
        ids.setdefault((row["title"], row["description"]), f"c{len(ids)}")
    out.mkdir(parents=True, exist_ok=True)
    feed, judgements = out / "crowdflower-feed.csv", out / "crowdflower.csv"
    for path, header, lines in (
        (feed, ("id", "title", "description"), [(id, *text) for text, id in ids.items()]),
        (
            judgements, ("query", "docid", "rating"),
            [(row["query"], ids[row["title"], row["description"]], row["grade"] - 1) for row in rows],
        ),
    ):  # fmt: skip
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *lines])
    return feed, judgements


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of a model.")] = "starter",
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Folder for catalogue and figures.")] = Path("runs/own-queries"),
    page: Annotated[
        Path | None, typer.Option(help="Markdown page whose marked place gets the tables.")
    ] = None,
) -> None:
    """nDCG, MRR and recall of words, vectors and both, with and without what the model wrote."""
    feed, judgements = write(data, out)
    catalogue = Catalogue.create(out / "shelf", model)
    catalogue.embed(feed, reason="on", progress=True)
    catalogue.index()
    ways = ["bm25-record", "bm25", "vector", "fused-record", "fused", "tuned"]
    report = evaluate_search(out / "shelf", judgements=judgements, ways=ways, out=out / "judged", say=print)
    show(report, wide(150))
    write_pages(out / "judged", page=page)


if __name__ == "__main__":
    start(app_of(main))
