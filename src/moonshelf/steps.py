"""The steps of a demo as they are printed, one line each, and kept for its page; the folder that it owns."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from moonshelf.errors import UserError

RECORD = "run.json"  # of a demo's folder: which command made it, and with what


@dataclass
class Steps:
    """Prints one line a step, and remembers it."""

    console: Console
    total: int
    done: list[tuple[str, str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[list[str]]:
        """The caller appends what was done to the list; the line comes when the step has ended."""
        said: list[str] = []
        started = time.perf_counter()
        with self.console.status(f"{name} …") if spinner else nullcontext():
            yield said
        took = time.perf_counter() - started
        self.done.append((name, "; ".join(said), took))
        head = f"{len(self.done)}/{self.total} {name:<11}{took:>6.1f} s  "
        self.console.print(Text(head + "; ".join(said)), soft_wrap=True)


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
