"""Drawn campaigns come back from disk as they were drawn, from a folder and from one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonshelf.creatives.io.readers import read_creatives
from moonshelf.creatives.schema import Campaign, Pair
from research.studies.selectors import app
from research.synthetic.campaigns.__main__ import main
from research.synthetic.campaigns.simulator import simulate


@pytest.mark.parametrize("name", ["drawn", "drawn.parquet"])
def test_campaigns_are_read_back_as_drawn(tmp_path: Path, name: str) -> None:
    main(["--out", str(tmp_path / name), "-n", "3", "--split", "test"])
    read = list(read_creatives(tmp_path / name))
    for row, drawn in zip(read, simulate(3, split="test"), strict=True):
        assert isinstance(row, Campaign) and row.source == "simulated"
        assert row.true_rates == drawn.true_rates and row.other_interests == drawn.other_interests
        for one, other in zip(row.creatives, drawn.creatives, strict=True):
            assert (one.facts, one.known, one.sha256) == (other.facts, other.known, other.sha256)
            assert one.known_otherwise == other.known_otherwise


@pytest.mark.parametrize("name", ["pairs", "pairs.parquet"])
def test_pairs_carry_their_true_reasons(tmp_path: Path, name: str) -> None:
    main(["--out", str(tmp_path / name), "-n", "2", "--pairs"])
    pairs = list(read_creatives(tmp_path / name))
    assert len(pairs) == 2
    assert all(isinstance(pair, Pair) and pair.assessment is not None and pair.true_rates for pair in pairs)


@pytest.mark.research
@pytest.mark.parametrize(("interest", "counted"), [("true", False), ("true,none", True)])
def test_other_interests_that_nothing_is_counted_for_are_said(
    tmp_path: Path, interest: str, counted: bool
) -> None:
    words = ["--campaigns", "16", "--other-interest", "1", "--backend", "bytes", "--no-explanations"]
    done = CliRunner().invoke(app, [*words, "--interest", interest, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    names = [line["name"] for line in json.loads(done.stdout)["lines"]]
    assert any("both of two pairs" in name for name in names) == counted
    assert ("no couple is counted" in done.stderr) != counted
