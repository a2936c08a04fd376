"""The command line: thin functions that parse flags, call one room, and print.

Every import of a room happens inside its command, so that `--help` costs only typer. A `UserError`
becomes one line on stderr and exit code 2; rows set aside give exit code 3 (see `moonshelf.errors`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moonshelf.errors import EXIT_USAGE, UserError

app = typer.Typer(
    name="moonshelf",
    help="Products read, described, and put into one vector: embed, search, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]

# Commands go here, one function each, about 30 lines at most: check, embed, index, search, duplicates,
# evaluate, train, demo, doctor.


def main() -> None:
    """Entry point of the `moonshelf` script."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None


if __name__ == "__main__":
    main()
