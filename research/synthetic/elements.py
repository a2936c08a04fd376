"""Alimama's composed creatives (AES): `ctr_online.txt` and `tree_constraint.txt`: elements and rates.

The files were read; the meaning of the columns is its authors' page, which lists four fonts where the file
has five. The data set does not ship with us.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moonshelf.errors import UserError


@dataclass(frozen=True)
class Elements:
    """Composed creatives without pictures: which element each has in every place, and its rate."""

    names: tuple[str, ...]  # of the places: template, background …
    ids: tuple[str, ...]
    choices: np.ndarray  # (n, places) int64, from 0
    rates: np.ndarray  # (n,) float64, click-through rates
    constraints: tuple[tuple[str, np.ndarray], ...] = ()  # place, (choices of its parent, own) bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each place."""
        return tuple(int(n) + 1 for n in self.choices.max(axis=0))


AES_NAMES = ("template", "background", "picture size", "text colour", "font")
_AES_PLACES = {"a": "background", "b": "picture size", "c": "text colour", "d": "font"}


def read_elements(folder: str | Path) -> Elements:
    """`ctr_online.txt` of a folder, with the constraints of `tree_constraint.txt` where that is there.

    Raises UserError with the line that cannot be read.
    """
    place = Path(folder)
    ids, choices, rates = [], [], []
    for number, line in _lines(place / "ctr_online.txt"):
        cells = line.split()
        try:
            if len(cells) != len(AES_NAMES) + 2:
                raise ValueError
            row, rate = [int(cell) for cell in cells[1:-1]], float(cells[-1])
            if min(row) < 0 or not 0 <= rate <= 1:
                raise ValueError
        except ValueError:
            raise UserError(
                f"line {number} of ctr_online.txt is not an id, {len(AES_NAMES)} elements and a rate."
            ) from None
        ids.append(cells[0])
        choices.append(row)
        rates.append(rate)
    if not ids:
        raise UserError("ctr_online.txt holds no creatives.")
    tree = place / "tree_constraint.txt"
    constraints = tuple(_constraints(tree)) if tree.is_file() else ()
    return Elements(AES_NAMES, tuple(ids), np.array(choices, np.int64), np.array(rates), constraints)


def _constraints(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Blocks of a name, two numbers, and a matrix of that shape; 1 may be combined."""
    lines = list(_lines(path))
    at = 0
    while at < len(lines):
        number, head = lines[at]
        try:
            name, rows, columns = (part.strip() for part in head.split(","))
            matrix = np.array(
                [[int(cell) for cell in line.split()] for _, line in lines[at + 1 : at + 1 + int(rows)]]
            )
            if matrix.shape != (int(rows), int(columns)) or not np.isin(matrix, (0, 1)).all():
                raise ValueError
        except ValueError:
            raise UserError(f"line {number} of {path.name} does not begin a matrix of constraints.") from None
        yield _AES_PLACES.get(name, name), matrix.astype(bool)
        at += 1 + int(rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror or 'I/O error'}.") from None
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
