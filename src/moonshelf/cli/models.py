"""Commands about one model: `doctor` checks it, `export` writes it for other engines, `demo` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.cli.console import print_json
from moonshelf.cli.options import Json, StarterName
from moonshelf.errors import UserError

ENGINES = ("vllm", "onnx", "openvino")


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
    int8: Annotated[bool, typer.Option(help="Weights in 8 bits; what it costs is printed.")] = False,
    json: Json = False,
) -> None:
    """Write for another engine: for vLLM the backbone, which writes rationales; else the direct vector.

    With vLLM the vector is pooled by this model's own folder: `moonshelf embed … --reason on --writer URL`.
    An export for onnx or openvino is a model: `moonshelf embed … --model OUT`.
    """
    if engine not in ENGINES:
        raise UserError(f"there is no export for {engine!r}: take {' or '.join(ENGINES)}.")
    if engine != "vllm":
        from moonshelf.model.encoders.graph import export as export_graphs

        report = export_graphs(model, out, engine, int8)
        if json:
            print_json(report)
        else:
            lost, low, high = (100 * share for share in report["loss"])
            print(
                f"written to {out}; least cosine to {model} {report['cosine']:.6f}; R@1 of photos to titles "
                f"of the sample shop's 160 products {report['r_at_1']:.3f}, "
                f"exported {report['r_at_1_exported']:.3f}, "
                + (f"a loss of {lost:.1f} points (95 % interval {low:.1f} to {high:.1f})."
                   if low < high else "the same for every photo.")
            )  # fmt: skip
        return
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
