"""What commands of the command line share: the flag for JSON, how it is printed, and remarks on stderr."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def print_json(record: Any) -> None:
    """One JSON document on stdout; a number that JSON does not know is a defect of ours."""
    import json

    print(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A remark that is no result."""
    print(text, file=sys.stderr)
