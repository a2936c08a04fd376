"""What commands print: JSON, remarks, wide tables, and the steps of a demo, whose folder is claimed here too.

rich is loaded by whoever prints with it, so that `--help` costs only typer.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

RECORD = "run.json"  # of a demo's folder: which command made it, and with what


def print_json(record: Any) -> None:
    """One JSON document on stdout; a number that JSON does not know is a defect of ours."""
    print(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A remark that is no result."""
    print(text, file=sys.stderr)


def wide(least: int = 0) -> Console:
    """A console of at least so many columns, for tables that need them."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, least)
    return console


def command_line() -> str:
    """The call as it was made, for a record."""
    return shlex.join(["moonshelf", *sys.argv[1:]])


@dataclass
class Steps:
    """Prints one line a step, and remembers it."""

    console: Console
    total: int
    done: list[tuple[str, str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[list[str]]:
        """The caller appends what was done to the list; the line comes when the step has ended."""
        from rich.text import Text

        said: list[str] = []
        started = time.perf_counter()
        with self.console.status(f"{name} …") if spinner else nullcontext():
            yield said
        took = time.perf_counter() - started
        self.done.append((name, "; ".join(said), took))
        head = f"{len(self.done)}/{self.total} {name:<11}{took:>6.1f} s  "
        self.console.print(Text(head + "; ".join(said)), soft_wrap=True)

    def finish(self, out: Path, **more: Any) -> None:
        """Add what was done, and `more`, to the record of the demo's folder."""
        from moonshelf.catalogue.manifest import versions
        from moonshelf.files import write_json

        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        steps = [{"name": name, "done": what, "seconds": round(took, 2)} for name, what, took in self.done]
        write_json(out / RECORD, {**record, "versions": versions(), "steps": steps, **more})


def claim(out: Path, command: str) -> dict[str, Any]:
    """Make a demo's folder; returns the record that an earlier run of `command` left there, {} in a new one.

    Raises UserError where the folder holds anything else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    if not any(out.iterdir()):
        return {}
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
        ours = record["command"] == command
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{out} holds other files: name a new or an empty folder with --out.")
    return record
