"""The guide's story with the shipped starter: holes, `enrich`, a person's word, a product that is found."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonshelf import cli, sample
from moonshelf.catalogue import Catalogue, feedback
from research.studies import filled as filled_up

GUIDE = Path(__file__).parents[2] / "docs" / "enrichment.md"
PRODUCTS, WORD = 10, "zibeline"  # of the drawn shop; a colour that nothing but a person could name


def story() -> list[list[str]]:
    """The commands under *Did search get better?*, as they stand there."""
    section = GUIDE.read_text(encoding="utf-8").split("## Did search get better?")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.S)
    assert block is not None
    return [shlex.split(line, comments=True)[1:] for line in block[1].splitlines()]


def test_what_a_person_accepted_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shop = sample.shop(PRODUCTS)
    filled_up.write(shop, 1)
    holes = [product.id for product in shop.products[1::2]]
    rows = [(WORD, holes[0], 3), ("bag", holes[1], 2), ("lamp", holes[2], 2)]
    judged = "query,docid,rating\n" + "".join(f"{query},{id},{grade}\n" for query, id, grade in rows)
    Path("judgements.csv").write_text(judged)

    told = story()
    enrich = next(words for words in told if words[0] == "enrich")
    for words in told:
        if words[0] == "serve":  # what its page posts when somebody overrides a value; then enrich again
            feedback.add(words[1], "attribute", {"id": holes[0], "name": "color"}, WORD)
            words = enrich
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, (words, done.output, done.exception)

    filled = [json.loads(line) for line in Path("enriched/filled.jsonl").read_text().splitlines()]
    by_id = {one["id"]: one for one in filled}
    assert len(filled) == PRODUCTS and WORD in json.dumps(by_id[holes[0]])
    assert Catalogue.open("after").search(WORD, k=1, mode="text").hits[0].id == holes[0]
    assert not any(hit.id == holes[0] for hit in Catalogue.open("before").search(WORD, k=1, mode="text").hits)
    assert "fused@after" in done.output
