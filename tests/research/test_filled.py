"""The feed with holes, the queries and the person of the guide to enriching."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import httpx
import pytest

from moonshelf import sample
from moonshelf.feeds import read_feed
from moonshelf.product import Product
from research.studies import filled


def test_half_has_holes_and_a_person_says_what_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shop = sample.shop(12)
    filled.write(shop, 5)
    products = [one for one in read_feed(Path("shop/holes.csv")) if isinstance(one, Product)]
    assert [bool(one.attributes) for one in products] == [True, False] * 6
    assert all(Path(one.images[0].path or "").is_file() for one in products)
    rows = list(csv.DictReader(Path("judgements.csv").read_text(encoding="utf-8").splitlines()))
    assert len({row["query"] for row in rows}) == 5 and {row["rating"] for row in rows} == {"1", "3"}

    colour, told = shop.products[0].attributes["colour"], []
    suggestions = [
        {"product": {"id": shop.products[0].id}, "name": name, "value": value}
        for name, value in (("color", colour), ("colour", "x"), ("edge", "x"), ("gender", "men"))
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            told.append(json.loads(request.content)["verdict"])
        return httpx.Response(200, json={"total": 4, "suggestions": suggestions})

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x") as client:
        assert filled.review(shop, client) == {"kept": 1, "changed": 1, "none": 1}
    assert told == [colour, colour, "none"]  # the shop knows no gender
