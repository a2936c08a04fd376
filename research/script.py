"""How a script of `research/` is started: its flags, and a mistake of the user as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from moonshelf.cli.options import FREE
from moonshelf.errors import EXIT_USAGE, UserError


def app_of(command: Callable[..., Any], *, free: bool = False) -> typer.Typer:
    """The command as an application; `free`: flags of a recipe are taken too."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=FREE if free else None)(command)
    return app


def start(app: typer.Typer) -> None:
    """Run it as the command line does: a `UserError` is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
