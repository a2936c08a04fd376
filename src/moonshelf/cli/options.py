"""What commands share: their options, how they end when something stops them, fields as flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from moonshelf.cli.console import say
from moonshelf.errors import EXIT_STOPPED, UserError, system_error

_ON_STOP = {  # how to go on after Ctrl-C or SIGTERM
    "embed": "what was embedded so far is stored: run the same command again to go on",
    "enrich": "what was read so far is kept: run the same command again to go on",
    "index": "the index that was there still is: run the same command again",
    "match": "the pairs that were scored are kept: run the same command again to go on",
    "store": "what was written stays: run the same command again to go on",
    "train": "run the same command again to go on from the last checkpoint",
    "evaluate": "with --cache the next run goes on from what was embedded",
}

FREE = {"allow_extra_args": True, "ignore_unknown_options": True}  # flags that are fields of a recipe

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
CatalogueFolder = Annotated[Path, typer.Argument(help="Folder that `moonshelf embed` made.")]
VectorWeight = Annotated[float | None, typer.Option("--vector-weight", help="0 to 1; else as measured.")]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder or name of a model, or st: (clip:) and that of another; default: the folder's own.",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(help="Compute the direct vector by torch, onnx or openvino: exported at first use."),
]
StarterName = Annotated[str, typer.Option("--model", help="Name or folder of a model.")]
Dialect = Annotated[str | None, typer.Option(help="Dialect of the feed; default: detected.")]

# How the columns and values of a feed are to be read, where it does not tell.
MapColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD=COLUMN", help="Say what a column is: title='Product Name'. Repeat it."
    ),
]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the text; default: detected, and said.")]
Currency = Annotated[
    str | None, typer.Option(help="Currency to take of several price columns, and where a price names none.")
]


def under(backend: str | None, model: str | None) -> str | None:
    """A model's name with the backend that is to compute it."""
    if backend not in (None, "torch", "onnx", "openvino"):
        raise UserError(f"there is no backend {backend!r}: take torch, onnx or openvino.")
    return f"{backend}:{model}" if model and backend else model


def reading(columns: Sequence[str] | None, encoding: str | None, currency: str | None) -> dict[str, Any]:
    """Options of `moonshelf.feeds.read_feed` from `--map`, `--encoding` and `--currency`."""
    fields: dict[str, str] = {}
    for text in columns or ():
        field, sign, column = text.partition("=")
        if not (sign and field.strip() and column.strip()):
            raise UserError(f"--map {text!r}: give the field and the column, such as title='Product Name'.")
        if fields.setdefault(column.strip(), field.strip()) != field.strip():
            raise UserError(f"--map gives the column {column.strip()!r} to two fields: choose one.")
    return {"fields": fields or None, "encoding": encoding, "currency": currency}


class Commands(TyperGroup):
    """Commands that end in one sentence where the user stops them or the system refuses."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            advice = _ON_STOP.get(ctx.invoked_subcommand, "")
            say(f"stopped{'; ' if advice else ''}{advice}.")
            raise typer.Exit(EXIT_STOPPED) from None
        except (OSError, RuntimeError, ValueError) as error:
            if sentence := system_error(error):
                raise UserError(sentence) from error
            raise


def flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--field value` pairs of a command line as fields of a recipe or settings; values are YAML."""
    names, values = arguments[::2], arguments[1::2]
    wrong = [name for name in names if not name.startswith("--")]
    if wrong or len(names) != len(values):
        raise UserError(f"{(wrong or names)[-1]!r}: fields are given as --field value.")
    return {name[2:].replace("-", "_"): _value(value) for name, value in zip(names, values, strict=True)}


def _value(text: str) -> Any:
    """A YAML value; what is none, such as a pattern that begins with a star, is the text itself."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
