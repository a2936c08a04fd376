"""`moonshelf creative …`: compare two creatives, rank several, evaluate selectors.

`compare` reads downwards: here, `selector.judge`, the backend's `predict`, the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonshelf.cli.console import command_line, print_json, say, wide
from moonshelf.cli.options import Json
from moonshelf.errors import EXIT_ABSTAINED, EXIT_PARTIAL, ImageError, Problem, UserError

if TYPE_CHECKING:
    from moonshelf.creatives.backends.base import PairwiseBackend
    from moonshelf.creatives.evaluation.record import CreativeReport
    from moonshelf.creatives.ranking import Ranking
    from moonshelf.creatives.schema import Campaign, Pair

app = typer.Typer(
    help="Compare and rank advertising images of a product, and evaluate who does it.", no_args_is_help=True
)

# What a selector is held against where nothing else is said; `first` says what `second` says.
BASELINES = ("random", "second", "bytes", "text", "title", "interest")
TOGETHER = 16  # campaigns whose pairs are judged together, so that a model's batches are full

Title = Annotated[str, typer.Option(help="Title of the product.")]
Interest = Annotated[list[str] | None, typer.Option(help="What the shopper searched for; may be repeated.")]
BackendName = Annotated[
    str,
    typer.Option(help="Judge: starter, a folder, openai:URL#MODEL, or a baseline such as random or bytes."),
]
Backends = Annotated[
    list[str] | None, typer.Option(help="Judge, ours first; may be repeated. Default: starter, baselines.")
]
Interests = Annotated[
    str, typer.Option(help="Interests to ask under: true, and those named of shuffled and none.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Image of creative A.")],
    b: Annotated[Path, typer.Argument(help="Image of creative B.")],
    title: Title = "",
    interest: Interest = None,
    words_a: Annotated[str, typer.Option(help="Words on image A, if known; else OCR, if installed.")] = "",
    words_b: Annotated[str, typer.Option(help="Words on image B.")] = "",
    backend: BackendName = "starter",
    seed: Seed = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Show both orders and their reasons.")] = False,
    json: Json = False,
) -> None:
    """Say which of two images a shopper would rather click, how sure that is, and why.

    Exits with 0 with a verdict, 4 without one (same or blank image, orders that disagree, too close), 2 if
    an image cannot be read.
    """
    from moonshelf.creatives.schema import Creative, Pair
    from moonshelf.creatives.selector import judge
    from moonshelf.product import ImageRef

    shown = []
    for name, path, text in (("A", a, words_a), ("B", b, words_b)):
        try:
            shown.append(Creative.read(name, ImageRef(path=str(path)), text))
        except ImageError as error:
            raise UserError(f"{path} cannot be compared: {error}.") from None
    words = tuple(interest or ())
    pair = Pair(id="pair", product_id="product", title=title, interest=words, a=shown[0], b=shown[1])
    judged_by = make_backend(backend, seed)
    (judgement,) = judge(judged_by, [pair], seed=seed)
    if json:
        said = {"verdict": judgement.verdict, **judgement.model_dump(mode="json", exclude={"pair_id"})}
        print_json(said | _about(judged_by))
    else:
        from moonshelf.creatives.show import show_judgement

        show_judgement(pair, judgement, judged_by.described, wide(), explain=explain)
    if judgement.verdict is None:
        raise typer.Exit(EXIT_ABSTAINED)


@app.command()
def rank(
    source: Annotated[Path, typer.Argument(help="Folder of images, or a CSV or JSONL file of creatives.")],
    title: Title = "",
    interest: Interest = None,
    backend: BackendName = "starter",
    top: Annotated[int | None, typer.Option(min=1, help="Show only so many.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Comparisons at most, for each product.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the order to a CSV file.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Put the creatives of each product in order, by comparing pairs where it matters.

    --title and --interest replace what the file says. Exits with 3 if rows were rejected.
    """
    from moonshelf.creatives import export as exporting

    judged_by = make_backend(backend, seed)
    both, problems = _ranked(source, title, interest, judged_by, budget, seed)
    if csv is not None:
        exporting.write_text(csv, exporting.ranking_csv(both, top))
    if json:
        rejected = [problem.as_dict() for problem in problems]
        print_json({"campaigns": exporting.to_records(both), "problems": rejected} | _about(judged_by))
    else:
        from moonshelf.creatives.schema import CAVEAT
        from moonshelf.creatives.show import show_ranking

        console = wide()
        for campaign, one in both:
            show_ranking(campaign, one, console, top=top)
        console.print(f"{judged_by.described}. {CAVEAT}", style="dim", markup=False, soft_wrap=True)
        if csv is not None:
            console.print(f"order: {csv}", markup=False, highlight=False)
    _stop_if_partial(problems)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="What `rank --json` printed, or what `rank` takes.")],
    to: Annotated[str, typer.Option(help="plan, csv or bandit.")] = "plan",
    out: Annotated[Path | None, typer.Option(help="File to write; default: stdout.")] = None,
    title: Title = "",
    interest: Interest = None,
    backend: BackendName = "starter",
    seed: Seed = 0,
    base_rate: Annotated[
        float | None, typer.Option(help="Usual click-through rate; default: the campaign's own.")
    ] = None,
    lift: Annotated[float, typer.Option(help="plan: smallest relative difference to find.")] = 0.1,
    power: Annotated[float, typer.Option(help="plan: chance of finding it.")] = 0.8,
    arms: Annotated[int, typer.Option(help="plan: creatives to test, the control among them.")] = 2,
    control: Annotated[
        str | None, typer.Option(help="plan: id of what runs today; default: the first.")
    ] = None,
    daily: Annotated[int | None, typer.Option(help="plan: impressions a day.")] = None,
    top: Annotated[int, typer.Option(min=1, help="csv: creatives of a campaign.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="A plan as JSON; priors always are.")] = False,
) -> None:
    """Turn a ranking into a test plan, a CSV, or a bandit's priors."""
    from moonshelf.creatives import export as exporting

    if to not in exporting.EXPORTS:
        raise UserError(f"--to takes {', '.join(exporting.EXPORTS)}, not {to!r}.")
    problems: list[Problem] = []
    if exporting.is_ranked(source):
        both = exporting.read_ranked(source)
    else:
        both, problems = _ranked(source, title, interest, make_backend(backend, seed), None, seed)
    plan = {"lift": lift, "power": power, "arms": arms, "control": control, "daily": daily}
    text = exporting.exported(both, to, base_rate=base_rate, top=top, plan=plan, as_json=json)
    if out is None:
        print(text, end="")
    else:
        exporting.write_text(out, text)
        say(f"written to {out}")
    _stop_if_partial(problems)


@app.command()
def evaluate(
    data: Annotated[
        Path | None, typer.Argument(help="Campaigns or pairs with clicks or labels; default: the sample's.")
    ] = None,
    backend: Backends = None,
    validation: Annotated[
        Path | None, typer.Option(help="Other products' pairs, on which temperatures are fitted.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Which pairs of campaigns: creative4u, caig or all; drawn ones: all.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many pairs.")] = None,
    interest: Interests = "true,shuffled,none",
    explanations: Annotated[bool, typer.Option(help="Check the reasons.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for record, judgements and report.")] = Path(
        "creative-evaluation"
    ),
    recompute: Annotated[bool, typer.Option("--recompute", help="Count again what --out holds.")] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score selectors of creatives, baselines beside them: accuracy, bias by place, calibration, reasons.

    Every pair is judged in both orders by each backend; an interrupted run goes on. Beside every accuracy
    stands the label ceiling, and figures of drawn campaigns are marked as simulated.
    """
    from moonshelf import sample
    from moonshelf.creatives.evaluation import evaluate as evaluation

    problems: list[Problem] = []
    if recompute:
        report = evaluation.recompute(out)
    else:
        chosen, campaigns, problems = _scored(data or sample.CAMPAIGNS, pairs, limit, seed)
        report = evaluation.evaluate(
            chosen,
            [make_backend(name, seed) for name in backend or ["starter", *BASELINES]],
            out,
            interest=named(interest),
            campaigns=campaigns,
            validation=_scored(validation, pairs, None, seed)[0] if validation else None,
            explanations=explanations,
            seed=seed,
            command=command_line(),
        )
    print_report(report, out, json)
    _stop_if_partial(problems)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("creative-demo"),
    products: Annotated[int, typer.Option(min=4, max=12, help="So many of the sample's.")] = 8,
    backend: BackendName = "starter",
) -> None:
    """Rank and explain the sample's creatives, count what is right, and write a page that shows it.

    A second run goes on where the first stopped.
    """
    import time

    started = time.perf_counter()  # before the libraries load: the demo says how long a user waited
    from moonshelf.cli.creative_demo import run_demo

    run_demo(out, products=products, backend=backend, command=command_line(), started=started)


# ---- what they share ---------------------------------------------------------------------------------


def make_backend(name: str, seed: int) -> PairwiseBackend:
    from moonshelf.creatives.backends import names

    return names.make_backend(name, seed=seed)


def named(interest: str) -> Any:
    """The kinds of interest of an option, parted by commas."""
    return [one.strip() for one in interest.split(",") if one.strip()]


def print_report(report: CreativeReport, out: Path, json: bool) -> None:
    """An evaluation's figures as JSON or as tables, and where its page is."""
    if json:
        return print_json(report.as_dict())
    from moonshelf.creatives.evaluation.pages import show

    console = wide(120)
    show(report, console)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False)


def _about(backend: PairwiseBackend) -> dict[str, str]:
    return {"judge": backend.name} | ({"trained_on": backend.trained_on} if backend.trained_on else {})


def _stop_if_partial(problems: list[Problem]) -> None:
    if any(problem.fatal for problem in problems):
        raise typer.Exit(EXIT_PARTIAL)


def _read(source: Path) -> tuple[list[Campaign], list[Pair], list[Problem]]:
    """Everything in a file or folder; problems are shown on stderr."""
    from rich.console import Console

    from moonshelf.creatives.io.readers import read_creatives
    from moonshelf.creatives.schema import Campaign, Pair
    from moonshelf.creatives.show import show_problems

    rows = list(read_creatives(source))
    problems = [row for row in rows if isinstance(row, Problem)]
    show_problems(problems, Console(stderr=True))
    campaigns = [row for row in rows if isinstance(row, Campaign)]
    return campaigns, [row for row in rows if isinstance(row, Pair)], problems


def _ranked(
    source: Path,
    title: str,
    interest: list[str] | None,
    backend: PairwiseBackend,
    budget: int | None,
    seed: int,
) -> tuple[list[tuple[Campaign, Ranking]], list[Problem]]:
    """Every campaign of a file or folder with its ranking; the words given replace the file's."""
    from moonshelf.creatives.ranking import rank_many
    from moonshelf.feeds.show import counting

    campaigns, _, problems = _read(source)
    if not campaigns:
        raise UserError(f"{source.name} holds no campaign with two creatives or more that can be used.")
    given: dict[str, Any] = {"title": title} if title else {}
    if interest:
        given["interest"] = tuple(interest)
    asked = [campaign.model_copy(update=given) for campaign in campaigns]
    found: list[Ranking] = []
    with counting("campaigns ranked") as progress:
        for start in range(0, len(asked), TOGETHER):
            found += rank_many(asked[start : start + TOGETHER], backend, budget=budget, seed=seed)
            progress(len(found), len(found) / len(asked))
    return list(zip(asked, found, strict=True)), problems


def _scored(
    source: Path, preset: str | None, limit: int | None, seed: int
) -> tuple[list[Pair], list[Campaign], list[Problem]]:
    """Pairs to judge of a file or folder, with the campaigns that they come from."""
    from moonshelf.creatives import known
    from moonshelf.creatives.labels import PRESETS, build_pairs

    if preset is not None and preset not in PRESETS:
        raise UserError(f"--pairs takes {', '.join(PRESETS)}, not {preset!r}.")
    campaigns, found, problems = _read(source)
    plain = []
    for campaign in campaigns:
        if preset is None and known.is_known(*campaign.creatives):
            found += known.pairs(campaign)  # with their true reasons
        else:
            plain.append(campaign)
    made, dropped = build_pairs(plain, seed=seed, **PRESETS[preset or "creative4u"])
    for reason, number in dropped.items():
        say(f"{number:,} pairs left out: {reason}")
    return (found + made)[:limit], campaigns, problems
