"""The command line: thin functions that parse flags, call one room, and print; a file a family of commands.

Every import of a room happens inside its command, so that `--help` costs only typer. A `UserError`
becomes one line on stderr and exit code 2, and so does what the disk refuses; rejected rows give exit
code 3, and Ctrl-C or SIGTERM one line and 130 (see `moonshelf.errors`).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import typer

from moonshelf.cli import catalogue, creative, evaluation, models, service, store, training
from moonshelf.cli.options import FREE, Commands
from moonshelf.errors import EXIT_USAGE, UserError

app = typer.Typer(
    name="moonshelf",
    cls=Commands,
    help="Products read, described, and put into one vector: embed, search, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    models.demo, catalogue.check, catalogue.embed, catalogue.index, catalogue.search, catalogue.duplicates,
    catalogue.match, catalogue.enrich, catalogue.taxonomy, training.mine, evaluation.evaluate,
    evaluation.report, evaluation.datasets, models.doctor, models.export,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
for command in (training.train, service.serve):
    app.command(context_settings=FREE)(command)
app.add_typer(creative.app, name="creative")
app.add_typer(service.keys, name="keys")
app.add_typer(store.app, name="store")


def main() -> None:
    """Entry point of the `moonshelf` script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
