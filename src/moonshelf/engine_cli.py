"""Commands about other engines: `export` a model to them, and `parity` with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.errors import UserError
from moonshelf.shell import Currency, Encoding, Json, MapColumns, print_json, reading

ENGINES = ("vllm",)


def export(
    model: Annotated[str, typer.Argument(help="Folder of a model, 'starter', or a selector's folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write, new or an earlier export.")],
    engine: Annotated[str, typer.Option("--for", help=f"Who is to read it: {', '.join(ENGINES)}.")] = "vllm",
    json: Json = False,
) -> None:
    """Write the backbone alone, adapters merged in, for an engine that writes rationales.

    The vector is pooled by this model's own folder: `moonshelf embed … --reason on --writer URL`.
    """
    if engine not in ENGINES:
        raise UserError(f"there is no export for {engine!r}: take {' or '.join(ENGINES)}.")
    from moonshelf import export as rooms

    loaded = rooms.load(model)
    command = rooms.export_vllm(loaded, out, model)
    if json:
        print_json({"folder": str(out), "fingerprint": loaded.fingerprint, "serve": command})
    else:
        print(f"written to {out}; serve it, in vLLM's own environment, with:\n{command}")


def parity(
    model: Annotated[str, typer.Argument(help="Folder of a model, or 'starter'.")] = "starter",
    engines: Annotated[
        str,
        typer.Option(help="Of ours, transformers, vllm:URL or vllm:EXPORT; all are compared with the first."),
    ] = "ours,transformers",
    dtypes: Annotated[str, typer.Option(help="Precisions of ours and transformers.")] = "float32",
    feed: Annotated[str | None, typer.Option(help="Feed to compare on; default: the sample shop.")] = None,
    products: Annotated[int, typer.Option(min=1, help="How many products.")] = 24,
    tolerance: Annotated[float, typer.Option(min=0, help="Of one number of a unit vector.")] = 1e-4,
    against: Annotated[Path | None, typer.Option(help="Results that an earlier run saved.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the results, for a later version.")] = None,
    dialect: Annotated[str | None, typer.Option(help="Dialect of the feed; default: detected.")] = None,
    images_root: Annotated[str | None, typer.Option(help="Folder that image paths start from.")] = None,
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Say whether engines, precisions or versions make the same of the same products.

    Compares tokens of the prompt, pixels, tokens of the rationale, and vectors; names the first stage that
    differs and the product. Exits with 0 if all agree, 2 if not.
    """
    from moonshelf import parity as rooms
    from moonshelf.export import load

    how = reading(columns, encoding, currency)
    chosen, precisions = ([x.strip() for x in text.split(",") if x.strip()] for text in (engines, dtypes))
    report = rooms.parity(
        load(model), rooms.products_of(feed, products, dialect, images_root, **how), chosen, precisions,
        tolerance=tolerance, against=against, save=save, name=model,
    )  # fmt: skip
    if json:
        print_json(report.as_dict())
    else:
        print("\n".join(rooms.lines(report)))
    raise typer.Exit(report.exit_code)
