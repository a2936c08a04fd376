"""Elements of composed creatives: what is written is read back, and a bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonshelf.errors import UserError
from research.synthetic.elements import read_elements

DATA = Path(__file__).parents[3] / "shared" / "data" / "alimama_aes"


def write(path: Path, *rows: str) -> None:
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")


def test_elements_of_composed_creatives(tmp_path: Path) -> None:
    write(tmp_path / "ctr_online.txt", "10000\t 0 0 0 0 0 \t0.02", "10001\t 0 1 2 0 1 \t0.03")
    write(tmp_path / "tree_constraint.txt", "a, 1, 2", "1 1", "c, 2, 3", "1 0 0", "0 1 1")
    found = read_elements(tmp_path)
    assert found.names[1] == "background" and found.ids == ("10000", "10001")
    assert found.choices.tolist() == [[0, 0, 0, 0, 0], [0, 1, 2, 0, 1]] and found.rates.tolist() == [
        0.02,
        0.03,
    ]
    assert found.sizes == (1, 2, 3, 1, 2)
    assert [(name, matrix.shape) for name, matrix in found.constraints] == [
        ("background", (1, 2)),
        ("text colour", (2, 3)),
    ]
    write(tmp_path / "ctr_online.txt", "10000\t 0 0 0 0 0 \t1.02")
    with pytest.raises(UserError, match="line 1"):
        read_elements(tmp_path)
    write(tmp_path / "ctr_online.txt", "1 0 0 0 0 0 0.5")
    write(tmp_path / "tree_constraint.txt", "a, 1, 2", "1 1 1")
    with pytest.raises(UserError, match="constraints"):
        read_elements(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_elements(tmp_path / "none")


@pytest.mark.skipif(not DATA.is_dir(), reason="the data set of composed creatives is not here")
def test_the_published_elements() -> None:
    found = read_elements(DATA)
    assert len(found.ids) == 200 and found.sizes == (1, 2, 5, 8, 5)
    assert 0.01 < found.rates.min() < found.rates.max() < 0.04
    colours = dict(found.constraints)["text colour"]
    assert all(colours[background, colour] for background, colour in found.choices[:, [1, 3]])
