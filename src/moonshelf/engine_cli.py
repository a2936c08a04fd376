"""The command about other engines: `export` a model to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.errors import UserError
from moonshelf.shell import Json, print_json

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
