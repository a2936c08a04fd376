"""The command line: thin functions that parse flags, call one room, and print.

Every import of a room happens inside its command, so that `--help` costs only typer. A `UserError`
becomes one line on stderr and exit code 2, and so does what the disk refuses; rows set aside give exit
code 3, and Ctrl-C or SIGTERM one line and 130 (see `moonshelf.errors`).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from moonshelf.catalogue.store_cli import app as store_app
from moonshelf.creative_cli import app as creative_app
from moonshelf.engine_cli import export
from moonshelf.errors import EXIT_PARTIAL, EXIT_USAGE, UserError
from moonshelf.scale.push_cli import push
from moonshelf.service.keys_cli import app as keys_app
from moonshelf.shell import Commands, Currency, Encoding, Json, MapColumns, flags, print_json, reading
from moonshelf.training_cli import mine, train

app = typer.Typer(
    name="moonshelf",
    cls=Commands,
    help="Products read, described, and put into one vector: embed, search, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CatalogueFolder = Annotated[Path, typer.Argument(help="Folder that `moonshelf embed` made.")]
VectorWeight = Annotated[float | None, typer.Option("--vector-weight", help="0 to 1; else as measured.")]

app.add_typer(creative_app, name="creative")
app.add_typer(keys_app, name="keys")
app.add_typer(store_app, name="store")

FREE = {"allow_extra_args": True, "ignore_unknown_options": True}  # flags that are fields of a recipe

app.command()(export)
store_app.command()(push)
app.command(context_settings=FREE)(train)
app.command()(mine)

# Commands go here, one function each, about 30 lines at most: check, embed, index, search, duplicates,
# evaluate, serve, demo, doctor; those about creatives, training and other engines are in files of their own.


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    products: Annotated[int, typer.Option(min=12, max=160, help="So many of the sample shop.")] = 160,
    model: Annotated[str, typer.Option(help="Name or folder of a model.")] = "starter",
    reason: Annotated[str, typer.Option(help="Write a rationale first: off, on or auto.")] = "on",
) -> None:
    """Embed the sample shop, search it, count what is right, and write a page that shows it all.

    A second run redoes only what changed.
    """
    import time

    started = time.perf_counter()  # before the libraries load: the demo says how long a user waited
    from moonshelf.demo import run_demo

    command = f"moonshelf demo --out {out} --products {products} --model {model} --reason {reason}"
    run_demo(out, products=products, model=model, reason=reason, command=command, started=started)


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a model, or 'starter'; none scores baselines alone.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the validation data sets.")] = None,
    suite: Annotated[
        str, typer.Option(help="validation, names of `moonshelf datasets`, or a feed of your own.")
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
    curves: Annotated[bool, typer.Option(help="Shorter vectors and thresholds of auto, with --out.")] = False,
    recompute: Annotated[
        Path | None, typer.Option(help="Count the run in this folder again, without a model.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown page whose marked place gets the tables too.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to a file.")] = None,
) -> None:
    """Score a model, and baselines beside it, on retrieval, categories, attributes and matching."""
    import json

    from rich.console import Console

    from moonshelf.evaluation import record, runner
    from moonshelf.evaluation.report.tables import show

    loaded = None
    if model is not None and recompute is None:
        from moonshelf import MoonModel

        loaded = MoonModel.from_pretrained(model)
    others, modes, chosen = (
        [x.strip() for x in given.split(",") if x.strip()] for given in (against, reason, tasks)
    )
    with Console(stderr=True).status("evaluate") as status:
        if recompute is not None:
            report = record.recompute(recompute, baseline=baseline, advise=runner.advice)
            record.save(report, recompute)
        else:
            report = runner.evaluate(
                loaded, suite=suite, tasks=chosen, data=data, against=others, reason=modes, baseline=baseline,
                limit=limit, fit_rows=fit_rows, download=download, cache=cache, out=out, curves=curves,
                batch_tokens=batch_tokens, say=status.update,
            )  # fmt: skip
    console = Console()
    console.width = max(console.width, 150)
    show(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    if folder := recompute or out:
        from moonshelf.evaluation.report.pages import write_pages

        write_pages(folder, page=page)
        console.print(f"report: {folder / 'report.html'}", highlight=False, markup=False)
    if report.errors or report.problems:
        raise typer.Exit(EXIT_PARTIAL)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `moonshelf evaluate … --out` made.")],
    baseline: Annotated[
        str | None, typer.Option(help="Encoder that the marks compare with; default: the run's own.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown page whose marked place gets the tables too.")
    ] = None,
) -> None:
    """Write the report of an evaluation again: one HTML page, Markdown for a README, a CSV of all figures."""
    from moonshelf.evaluation.report.pages import write_pages

    for path in write_pages(folder, baseline=baseline, page=page):
        print(path)


@app.command()
def datasets(json: Json = False) -> None:
    """List the data sets of the benchmark: licence, size, splits, citation, and whether we ever ran them.

    A published one is read from the folder of its name below --data of `evaluate`, as it lies on the hub.
    """
    from moonshelf.evaluation.data.registry import cards, show

    if json:
        print_json([card.as_dict() for card in cards()])
        return
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 150)  # six columns of words
    show(console)


@app.command()
def check(
    feed: Annotated[Path, typer.Argument(help="A feed file, or a folder of pictures.")],
    dialect: Annotated[str | None, typer.Option(help="Its dialect, detected if not given.")] = None,
    images: Annotated[bool, typer.Option(help="Decode every picture that is not on the web.")] = True,
    images_root: Annotated[Path | None, typer.Option(help="Folder of its pictures, if another.")] = None,
    rejects: Annotated[Path, typer.Option(help="File for the problems, one JSON object a line.")] = Path(
        "rejects.jsonl"
    ),
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Read a feed to its end and say how complete it is and what is wrong with it.

    Exits with 0 if every row is a product, 3 if some were set aside, 2 if the feed is unusable.
    """
    from moonshelf.feeds.check import check_feed
    from moonshelf.feeds.show import counting, show

    with counting(feed.name) as progress:
        report = check_feed(
            feed,
            dialect,
            decode_images=images,
            images_root=images_root,
            rejects=rejects,
            progress=progress,
            **reading(columns, encoding, currency),
        )
    show(report, as_json=json)
    raise typer.Exit(report.exit_code)


ModelName = Annotated[
    str | None,
    typer.Option("--model", help="Name or folder of a model; default: the one the folder was made with."),
]


@app.command()
def embed(
    feed: Annotated[
        str,
        typer.Argument(
            help="File or folder of products, in any dialect that `check` reads; with --ray also folders of "
            "Parquet, Lance tables, and addresses such as s3://bucket/feed."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the catalogue, new or to be updated.")],
    reason: Annotated[
        str | None,
        typer.Option(
            help="Write a rationale first: off, on or auto; default: the folder's own mode, off for a new "
            "one. Another mode embeds all again: off drops what was written."
        ),
    ] = None,
    model: ModelName = None,
    dialect: Annotated[str | None, typer.Option(help="Dialect of the feed; default: detected.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens that one batch may hold.")] = 8192,
    images_root: Annotated[
        str | None, typer.Option(help="Folder that relative image paths start from.")
    ] = None,
    allow_text_only: Annotated[
        bool, typer.Option(help="Embed products by their text alone where no picture can be used.")
    ] = False,
    remote_images: Annotated[bool, typer.Option(help="Fetch images from public web addresses.")] = False,
    allow_removals: Annotated[
        bool, typer.Option("--allow-removals", help="Remove whatever the feed does not list, however much.")
    ] = False,
    max_removed: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the products that may go without being asked.")
    ] = 0.1,
    writer: Annotated[
        str | None,
        typer.Option(help="What writes the rationales: http://host:8000/v1, or an export for vLLM here."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Compute in float32, bfloat16 or auto; bfloat16 where it is quick.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Compute on Ray: local, auto, or a cluster's address.")
    ] = None,
    ray_workers: Annotated[int | None, typer.Option(min=1, help="At most so many workers.")] = None,
    ray_cpus: Annotated[float, typer.Option(help="CPUs of one worker.")] = 1.0,
    ray_gpus: Annotated[float, typer.Option(help="GPUs of one worker, say 0.5.")] = 0.0,
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Embed a feed: only new and changed products are read by the model, and a killed run goes on."""
    from moonshelf.catalogue.embed import Options, embed_feed
    from moonshelf.catalogue.manifest import saved_model

    fetcher = cluster = None
    if ray is not None:
        from moonshelf.scale.ray import Cluster

        cluster = Cluster(ray, ray_workers, ray_cpus, ray_gpus)
    if remote_images:
        from moonshelf.remote import RemoteFetcher

        fetcher = RemoteFetcher()
    options = Options(
        reason=reason, batch_tokens=batch_tokens, dialect=dialect, images_root=images_root,
        allow_text_only=allow_text_only, writer=writer, precision=precision, device=device,
        max_removed=max_removed, allow_removals=allow_removals, **reading(columns, encoding, currency),
    )  # fmt: skip
    report = embed_feed(
        feed, out, model or saved_model(out) or "starter", options=options, fetcher=fetcher,
        progress=not json, cluster=cluster,
    )  # fmt: skip
    if json:
        print_json(report.as_dict())
    else:
        from rich.console import Console

        from moonshelf.catalogue.tables import show_embed

        show_embed(report, str(out), Console())
    if report.set_aside:
        raise typer.Exit(EXIT_PARTIAL)


@app.command()
def index(
    folder: CatalogueFolder,
    forget: Annotated[bool, typer.Option(help="Drop the weight that was set: measure it again.")] = False,
    weight: VectorWeight = None,
    json: Json = False,
) -> None:
    """Build the vector and full-text indexes of a catalogue; both can always be built again.

    Measures too, without labels, how far vectors can be trusted beside words in search. What --vector-weight
    has set is kept when the index is built again.
    """
    from moonshelf.catalogue.fusion import Fusion
    from moonshelf.catalogue.search import Catalogue

    info = Catalogue.open(folder).index(forget=forget, vector_weight=weight)
    if json:
        print_json(info.model_dump())
        return
    print(f"{info.rows:,} products indexed ({info.kind}) in {info.seconds:.1f} s, in {folder}/index.")
    print(Fusion.read(info.model_dump()))


@app.command()
def search(
    folder: CatalogueFolder,
    text: Annotated[str | None, typer.Argument(help="Words to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to look for, alone or with words.")] = None,
    where: Annotated[str | None, typer.Option(help="Such as \"price < 50 AND colour = 'red'\".")] = None,
    like: Annotated[str | None, typer.Option(help="Id of a product: find others like it.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many results.")] = 10,
    mode: Annotated[str, typer.Option(help="hybrid, vector or text.")] = "hybrid",
    reason: Annotated[
        str, typer.Option(help="Let the model reason about the query: off, on or auto.")
    ] = "off",
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Look for words in the record, not in what the model wrote.")
    ] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Say of each hit what the model wrote, and where it comes from.")
    ] = False,
    weight: VectorWeight = None,
    model: ModelName = None,
    json: Json = False,
) -> None:
    """Search a catalogue by words, a picture, both, or a product to be like."""
    from moonshelf.catalogue.search import Catalogue, make_query
    from moonshelf.catalogue.store import WRITTEN_WEIGHT

    query = make_query(text, image)
    written = 0.0 if record_only else WRITTEN_WEIGHT
    result = Catalogue.open(folder, model).search(
        query, like=like, k=k, where=where, mode=mode, reason=reason, written=written, vector_weight=weight
    )
    if json:
        print_json(result.as_dict())
        return
    from rich.console import Console

    from moonshelf.catalogue.tables import show_hits

    show_hits(result, Console(), details)


@app.command()
def duplicates(
    folder: CatalogueFolder,
    min_score: Annotated[float, typer.Option(help="Cosine from which looks count.", min=-1, max=1)] = 0.9,
    json: Json = False,
) -> None:
    """List products that may be in the catalogue twice, with the evidence; nothing is merged."""
    from moonshelf.catalogue.search import Catalogue

    report = Catalogue.open(folder).duplicates(min_score=min_score)
    if json:
        print_json(report.as_dict())
        return
    from rich.console import Console

    from moonshelf.catalogue.tables import show_duplicates

    show_duplicates(report, Console())


@app.command(context_settings=FREE)
def serve(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="Folder that `moonshelf embed` made.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8765.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys, as `moonshelf keys add` writes them.")
    ] = None,
    model: ModelName = None,
    creative_model: Annotated[str | None, typer.Option(help="Judge of creatives, or off.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Embed the sample shop there first, if nothing is there.")
    ] = False,
) -> None:
    """Serve a catalogue: embeddings, search, upserts, duplicates, creatives, and a page for people.

    Every setting of docs/serving.md is a flag too, such as --deadline-s 10, and can stand in the environment
    (MOONSHELF_DEADLINE_S) or in the YAML file.
    """
    try:
        from moonshelf.service.run import serve as run
        from moonshelf.service.settings import load_settings
    except ImportError as error:
        raise UserError(f"the service needs {error.name}: install moonshelf[serve].") from None
    settings = load_settings(
        folder, config, host=host, port=port, keys_file=keys_file, model=model, creative_model=creative_model,
        **flags(context.args),
    )  # fmt: skip
    if sample:
        from moonshelf.service.sample import make_sample

        make_sample(settings.folder, settings.model or "starter")
    raise typer.Exit(run(settings))


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a model, or 'starter'; none reports on this installation.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is installed, and whether a model is whole, safe, and gives the vectors it was saved with.

    Exits with 0 if all is well (a rationale that differs is only a warning), 2 if a check failed.
    """
    from moonshelf.doctor import examine, show

    report = examine(model)
    if json:
        print_json(report.as_dict())
    else:
        show(report)
    raise typer.Exit(report.exit_code)


def main() -> None:
    """Entry point of the `moonshelf` script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None


if __name__ == "__main__":
    main()
