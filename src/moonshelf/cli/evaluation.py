"""Commands about figures: `evaluate`, its `report`, and the `datasets` that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.cli.console import print_json, wide
from moonshelf.cli.options import Currency, Encoding, Json, MapColumns, reading
from moonshelf.errors import EXIT_PARTIAL, UserError

Page = Annotated[Path | None, typer.Option(help="Markdown page whose marked place gets the tables too.")]


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a model, 'starter', st:…; none scores baselines alone.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the validation data sets.")] = None,
    suite: Annotated[
        str,
        typer.Option(help="validation, names of `moonshelf datasets`, mteb:TASK, or a feed of your own."),
    ] = "validation",
    download: Annotated[bool, typer.Option(help="Fetch what is missing of it, and pictures.")] = False,
    tasks: Annotated[
        str, typer.Option(help="retrieval, category, attributes, matching, or parts of task names.")
    ] = "",
    against: Annotated[
        str,
        typer.Option(help="Baselines: tfidf,bm25,minilm,efficientnet,concat,two-tower,st:… and others."),
    ] = "",
    reason: Annotated[str, typer.Option(help="Modes to score: off,on,auto.")] = "off,on",
    baseline: Annotated[
        str | None, typer.Option(help="Encoder that the others are tested against, by name.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many validation rows.")] = None,
    fit_rows: Annotated[int, typer.Option(min=0, help="Training rows for fitted classifiers.")] = 2000,
    batch_tokens: Annotated[int, typer.Option(min=256, help="Tokens of one batch.")] = 8192,
    cache: Annotated[Path | None, typer.Option(help="Keep embeddings here between runs.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the record, the predictions and the report.")
    ] = None,
    recompute: Annotated[
        Path | None, typer.Option(help="Count the run in this folder again, without a model.")
    ] = None,
    page: Page = None,
    judgements: Annotated[
        Path | None,
        typer.Option(help="Graded products of your own queries: Quepid CSV, TREC qrels, Workbench JSON."),
    ] = None,
    clicks: Annotated[
        list[Path] | None, typer.Option(help="Click logs or UBI events in place of judgements. Repeat it.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Words of the queries that those name by id, or UBI's queries.")
    ] = None,
    relevant_from: Annotated[
        float, typer.Option(min=0, help="Least grade that MRR and recall count; default: above 0.")
    ] = 0.0,
    rerank: Annotated[
        str | None, typer.Option(help="With those, the fused list reranked too, as --rerank of search.")
    ] = None,
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to a file.")] = None,
) -> None:
    """Score a model, and baselines beside it, on retrieval, categories, attributes and matching.

    With --judgements or --clicks, score ways to search a catalogue on your own queries: give its folder in
    place of MODEL, and with --against bm25, bm25-record, vector, fused, fused:0.3, tuned, reranked,
    fused@FOLDER …
    """
    from rich.console import Console

    from moonshelf.evaluation import record, runner
    from moonshelf.evaluation.report.plain import show
    from moonshelf.evaluation.statistics import scoring
    from moonshelf.files import write_json

    loaded = None
    judged = judgements is not None or bool(clicks)
    if judged and (model is None or (judgements and clicks)):
        raise UserError("name one catalogue, and either --judgements or --clicks to score its search by.")
    if model is not None and recompute is None and not judged:
        from moonshelf.catalogue.manifest import load_model

        loaded = load_model(model, download)
    others, modes, chosen = (
        [x.strip() for x in given.split(",") if x.strip()] for given in (against, reason, tasks)
    )
    with Console(stderr=True).status("evaluate") as status:
        if recompute is not None:
            report = scoring.recompute(recompute, baseline)
            report.errors = runner.advice(report)
            record.save(report, recompute)
        elif judged and model is not None:
            from moonshelf.evaluation.search import evaluate_search

            report = evaluate_search(
                Path(model), judgements=judgements, clicks=clicks or (), queries=queries, ways=others,
                columns=reading(columns, None, None)["fields"], relevant_from=relevant_from, limit=limit,
                rerank=rerank, baseline=baseline, reason=modes[0] if len(modes) == 1 else "off", out=out,
                say=status.update,
            )  # fmt: skip
        else:
            report = runner.evaluate(
                loaded, suite=suite, tasks=chosen, data=data, against=others, reason=modes, baseline=baseline,
                limit=limit, fit_rows=fit_rows, download=download, cache=cache, out=out,
                reading=reading(columns, encoding, currency), batch_tokens=batch_tokens, say=status.update,
            )  # fmt: skip
    console = wide(150)
    show(report, console)
    if json_file is not None:
        write_json(json_file, report.as_dict())
    if folder := recompute or out:
        from moonshelf.evaluation.report.pages import write_pages

        write_pages(folder, page=page)
        console.print(f"report: {folder / 'report.html'}", highlight=False, markup=False)
    if report.errors or any(one.get("fatal", True) or not judged for one in report.problems):
        raise typer.Exit(EXIT_PARTIAL)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `moonshelf evaluate … --out` made.")],
    baseline: Annotated[
        str | None, typer.Option(help="Encoder that the marks compare with; default: the run's own.")
    ] = None,
    page: Page = None,
) -> None:
    """Write the report of an evaluation again: one HTML page, Markdown for a README, a CSV of all figures."""
    from moonshelf.evaluation.report.pages import write_pages

    print(*write_pages(folder, baseline=baseline, page=page), sep="\n")


def datasets(json: Json = False) -> None:
    """List the data sets of `evaluate`: licence, size, splits, citation, and whether we ever ran them.

    A published one is read from the folder of its name below --data of `evaluate`, as it lies on the hub.
    """
    from moonshelf.evaluation.data.registry import DATASETS, show

    if json:
        print_json([card.as_dict() for card in DATASETS.values()])
        return
    show(wide(150))  # six columns of words
