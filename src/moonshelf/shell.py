"""What commands of the command line share: the flag for JSON, fields as flags, and remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from moonshelf.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def print_json(record: Any) -> None:
    """One JSON document on stdout; a number that JSON does not know is a defect of ours."""
    import json

    print(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A remark that is no result."""
    print(text, file=sys.stderr)


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
