"""The steps of a demo as they are printed, one line each, and kept for its page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text


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
