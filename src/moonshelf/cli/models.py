"""Commands about one model: `doctor` checks it, `export` writes it for other engines, `demo` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.cli.console import print_json
from moonshelf.cli.options import Json, StarterName
from moonshelf.errors import UserError

ENGINES = ("vllm",)


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a model, or 'starter'; none reports on this installation.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is installed, and whether a model is whole, safe, and gives the vectors it was saved with.

    Exits with 0 if all is well (a rationale that differs is only a warning), 2 if a check failed.
    """
    from moonshelf.cli.doctor import examine, show

    report = examine(model)
    if json:
        print_json(report.as_dict())
    else:
        show(report)
    raise typer.Exit(report.exit_code)


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
    from moonshelf.cli.export import export_vllm, load

    loaded = load(model)
    command = export_vllm(loaded, out, model)
    if json:
        print_json({"folder": str(out), "fingerprint": loaded.fingerprint, "serve": command})
    else:
        print(f"written to {out}; serve it, in vLLM's own environment, with:\n{command}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    products: Annotated[int, typer.Option(min=12, max=160, help="So many of the sample shop.")] = 160,
    model: StarterName = "starter",
    reason: Annotated[str, typer.Option(help="Write a rationale first: off, on or auto.")] = "on",
) -> None:
    """Embed the sample shop, search it, count what is right, and write a page that shows it all.

    A second run redoes only what changed.
    """
    import time

    started = time.perf_counter()  # before the libraries load: the demo says how long a user waited
    from moonshelf.cli.demo import run_demo

    command = f"moonshelf demo --out {out} --products {products} --model {model} --reason {reason}"
    run_demo(out, products=products, model=model, reason=reason, command=command, started=started)
