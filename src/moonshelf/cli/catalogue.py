"""Commands about feeds and catalogues: from `check` and `embed` to `search`, `match` and `enrich`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.cli.console import print_json, wide
from moonshelf.cli.options import (
    Backend,
    CatalogueFolder,
    Currency,
    Dialect,
    Encoding,
    Json,
    MapColumns,
    ModelName,
    StarterName,
    VectorWeight,
    reading,
    under,
)
from moonshelf.errors import EXIT_ABSTAINED, EXIT_PARTIAL, UserError

_WHAT = "A taxonomy's file, or a folder of Shopify's."
Least = Annotated[float, typer.Option(min=0, max=1, help="Least confidence of a category.")]
Candidates = Annotated[int, typer.Option("-k", min=1, help="Categories that the model chooses among.")]


def check(
    feed: Annotated[Path, typer.Argument(help="A feed file, or a folder of pictures.")],
    dialect: Annotated[str | None, typer.Option(help="Its dialect, detected if not given.")] = None,
    images: Annotated[bool, typer.Option(help="Decode every picture that is not on the web.")] = True,
    images_root: Annotated[Path | None, typer.Option(help="Folder of its pictures, if another.")] = None,
    channel: Annotated[
        str | None,
        typer.Option("--for", help="Say what a channel would reject: google, meta, shopify or agentic."),
    ] = None,
    rejects: Annotated[Path, typer.Option(help="File for the problems, one JSON object a line.")] = Path(
        "rejects.jsonl"
    ),
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Read a feed to its end and say how complete it is and what is wrong with it.

    Exits with 0 if every row is a product, 3 if some were rejected (with --for also if the channel would
    reject some), 2 if the feed is unusable.
    """
    from moonshelf.feeds.check import check_feed
    from moonshelf.feeds.show import counting, show

    with counting(feed.name) as progress:
        report = check_feed(
            feed,
            dialect,
            channel=channel,
            decode_images=images,
            images_root=images_root,
            rejects=rejects,
            progress=progress,
            **reading(columns, encoding, currency),
        )
    show(report, as_json=json)
    raise typer.Exit(report.exit_code)


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
    backend: Backend = None,
    download: Annotated[bool, typer.Option(help="Fetch the model from the hub if it is not here.")] = False,
    dialect: Dialect = None,
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
        typer.Option(
            help="What writes the rationales: for a model of ours its server or an export for vLLM here; for "
            "any other (or as instruct:…) an instruct model, URL#MODEL or a folder."
        ),
    ] = None,
    writer_keys: Annotated[
        str | None, typer.Option(help="JSON of the attributes that an instruct model names, by category.")
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
    from functools import partial

    from moonshelf.catalogue.embed import Options, embed_feed
    from moonshelf.catalogue.manifest import load_model, saved_model

    fetcher = cluster = None
    if ray is not None:
        from moonshelf.scale.ray import Cluster

        cluster = Cluster(ray, ray_workers, ray_cpus, ray_gpus)
    if remote_images:
        from moonshelf.remote import RemoteFetcher

        fetcher = RemoteFetcher()
    options = Options(
        reason=reason, batch_tokens=batch_tokens, dialect=dialect, images_root=images_root,
        allow_text_only=allow_text_only, writer=writer, writer_keys=writer_keys, precision=precision,
        device=device,
        max_removed=max_removed, allow_removals=allow_removals, **reading(columns, encoding, currency),
    )  # fmt: skip
    name = under(backend, model or saved_model(out) or "starter") or "starter"
    report = embed_feed(
        feed, out, name, options=options, fetcher=fetcher,
        progress=not json, cluster=cluster, load=partial(load_model, download=True) if download else None,
    )  # fmt: skip
    if json:
        print_json(report.as_dict())
    else:
        from moonshelf.catalogue.tables import show_embed

        show_embed(report, str(out), wide())
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)


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
    rerank: Annotated[
        str | None,
        typer.Option(
            help="Let a CrossEncoder (folder, hub id) or a server (URL#MODEL) read the first 50 again."
        ),
    ] = None,
    rerank_seconds: Annotated[
        float, typer.Option(min=0.01, help="Time it has; then the order before it stands, and is said to.")
    ] = 10.0,
    model: ModelName = None,
    backend: Backend = None,
    json: Json = False,
) -> None:
    """Search a catalogue by words, a picture, both, or a product to be like."""
    from moonshelf.catalogue.lean import import_lancedb

    import_lancedb()
    from moonshelf.catalogue.manifest import saved_model
    from moonshelf.catalogue.search import Catalogue, make_query
    from moonshelf.catalogue.store import WRITTEN_WEIGHT

    reranker = None
    if rerank is not None:
        from moonshelf.model.encoders.rerankers import load

        reranker = load(rerank)
    query = make_query(text, image)
    written = 0.0 if record_only else WRITTEN_WEIGHT
    result = Catalogue.open(folder, under(backend, model or saved_model(folder))).search(
        query, like=like, k=k, where=where, mode=mode, reason=reason, written=written, vector_weight=weight,
        reranker=reranker, rerank_seconds=rerank_seconds,
    )  # fmt: skip
    if json:
        print_json(result.as_dict())
        return
    from moonshelf.catalogue.tables import show_hits

    show_hits(result, wide(), details)


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
    from moonshelf.catalogue.tables import show_duplicates

    show_duplicates(report, wide())


def enrich(
    feed: Annotated[Path, typer.Argument(help="A feed in any dialect that `check` reads.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for what is found; the feed stays as it is.")
    ],
    only: Annotated[str, typer.Option(help="What to fill, such as colour,material,category.")] = "",
    accept_above: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence from which a value enters the supplemental feed.")
    ] = 0.8,
    taxonomy: Annotated[Path | None, typer.Option(help=_WHAT)] = None,
    least: Least = 0.5,
    k: Candidates = 20,
    catalogue: Annotated[
        Path | None,
        typer.Option(help="Catalogue whose page lists the suggestions and whose feedback counts."),
    ] = None,
    model: StarterName = "starter",
    dialect: Dialect = None,
    images_root: Annotated[str | None, typer.Option(help="Folder that image paths start from.")] = None,
    remote_images: Annotated[bool, typer.Option(help="Fetch images from public web addresses.")] = False,
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Fill the gaps of a feed: suggestions with source and confidence, a supplemental feed, conflicts.

    Nothing is overwritten, and a stopped run goes on. Exits with 3 if some rows were rejected.
    """
    from moonshelf.catalogue.tables import show_enrich
    from moonshelf.enrichment.run import Options, enrich
    from moonshelf.enrichment.taxonomy import Taxonomy
    from moonshelf.feeds.show import counting
    from moonshelf.model.modeling import MoonModel

    fetcher = None
    if remote_images:
        from moonshelf.remote import RemoteFetcher

        fetcher = RemoteFetcher()
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    how = {"images_root": images_root, **reading(columns, encoding, currency)}
    chosen = Options(names, accept_above, least, k, dialect, how, catalogue)
    known = Taxonomy.read(taxonomy) if taxonomy else None
    with counting(feed.name) as progress:
        report = enrich(
            feed, out, lambda: MoonModel.from_pretrained(model), known, options=chosen, fetcher=fetcher,
            progress=progress,
        )  # fmt: skip
    if json:
        print_json(report)
    else:
        show_enrich(report, wide())
    if report["rejected"]:
        raise typer.Exit(EXIT_PARTIAL)


def taxonomy(
    place: Annotated[Path, typer.Argument(help=_WHAT)],
    category: Annotated[str | None, typer.Argument(help="Id, path or name of a category to show.")] = None,
    title: Annotated[str, typer.Option(help="Suggest a category for a product of this title.")] = "",
    image: Annotated[Path | None, typer.Option(help="The same, of a picture.")] = None,
    language: Annotated[str, typer.Option(help="Of the names: de, en, es, fr, it, ja, pl or zh-CN.")] = "en",
    least: Least = 0.5,
    k: Candidates = 20,
    model: StarterName = "starter",
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps the names' vectors.")] = None,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FEED", help="Print keys for `embed --writer-keys`, of its categories."),
    ] = None,
    json: Json = False,
) -> None:
    """Show a category, or suggest one for a product: exits with 4 where none is likely enough."""
    from moonshelf.enrichment.taxonomy import Taxonomy
    from moonshelf.product import ImageRef, Product

    shown = Taxonomy.read(place, language)
    if keys:
        from moonshelf.feeds import read_feed

        asked = shown.keys(one for one in read_feed(keys) if isinstance(one, Product))
        if not asked:
            raise UserError(
                f"no product of {keys} names a category of which {shown.name} has a schema: give the folder "
                "of Shopify's taxonomy with its YAML, and add categories with `enrich --taxonomy` first."
            )
        print_json(asked)
        return
    found: dict[str, object]
    if title or image:
        from moonshelf.enrichment.categories import Categoriser
        from moonshelf.model.modeling import MoonModel

        pictures = (ImageRef(path=str(image)),) if image else ()
        query = Product(id="query", title=title, images=pictures)
        english = Taxonomy.read(place)  # what the model reads
        chooser = Categoriser(MoonModel.from_pretrained(model), english, also=[shown], k=k, cache=cache)
        best = chooser.suggest([query], least)[0]
        id = best.id if best else None
        near = [f"{share:.2f} {one} {shown.text(one)}" for one, share in best.candidates] if best else []
        found = {"confidence": round(best.confidence, 4) if best else None, "near": near}
    elif category is None:
        raise UserError("name a category to show, or give a product's --title or --image.")
    else:
        id = shown.find(category)
        found = {name: list(shown.values(name)) for name in shown.attributes(id)}
    record = {"id": id, "path": id and shown.text(id), "google": shown.google.get(id or ""), **found}
    if json:
        print_json(record)
    else:
        for name, value in record.items():
            print(f"{name}: {', '.join(value) if isinstance(value, list) else value or '-'}")
    if id is None:
        raise typer.Exit(EXIT_ABSTAINED)


def match(
    a: Annotated[Path, typer.Argument(help="A feed in any dialect, or a folder that `embed` made.")],
    b: Annotated[Path, typer.Argument(help="Another one; each of its products is matched at most once.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for what is found, and your decisions.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Embed both feeds with it, so that vectors find pairs too.")
    ] = None,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Candidates by words, and by vectors, a product.")
    ] = 10,
    map_a: Annotated[list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="As --map, of A.")] = None,
    map_b: Annotated[list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="As --map, of B.")] = None,
    json: Json = False,
) -> None:
    """Match two lists: which product of B is each product of A, how sure that is, and why.

    Leaves matches.csv, unmatched.csv and review.csv in OUT. Write yes or no into the decision column of the
    last and run again: decided pairs stay decided. A run that was stopped goes on from what it has scored.
    """
    from moonshelf.catalogue.manifest import NAME
    from moonshelf.catalogue.matching import lists
    from moonshelf.catalogue.matching.match import match as match_lists
    from moonshelf.feeds.show import counting

    listings = []
    for name, path, columns in (("a", a, map_a), ("b", b, map_b)):
        options = reading(columns, None, None)
        if model is not None and not (path / NAME).is_file():
            from moonshelf.catalogue.embed import Options, embed_feed

            how = Options(allow_text_only=True, allow_removals=True, **options)
            embed_feed(path, out / name, model, options=how, progress=not json)
            path, options = out / name, {}
        with counting(path.name) as progress:
            listings.append(lists.read_list(path, progress, **options))
    with counting("pairs") as progress:
        report = match_lists(listings[0], listings[1], out, neighbours=neighbours, progress=progress)
    if json:
        print_json(report.as_dict())
    else:
        from moonshelf.catalogue.tables import show_matches

        show_matches(report, str(out), wide())
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)
