"""What the story of docs/enrichment.md is tried on: a feed with holes, queries with grades, and a person.

    python -m research.studies.filled
    python -m research.studies.filled --review http://127.0.0.1:8765

The first writes `shop/` and `judgements.csv` where it is run: the drawn shop as a table, of which every
second product has lost its attributes, and queries such as "suede handbags": a product of that kind with that
value has grade 3, another of that kind 1. The second is the person before the page of `moonshelf serve`: it
posts, as the page does, what is true of each value that `enrich` suggested, `none` where the product has no
such attribute. Keys that the shop does not know are passed over.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from moonshelf import sample
from moonshelf.attributes import canonical, canonical_key, normalise_value
from research.script import app_of, start

ASKED = ("colour", "material", "pattern")


def write(shop: sample.Shop, queries: int) -> None:
    feed = sample.write_shop(shop, Path("shop"))
    records = [json.loads(line) for line in feed.read_text(encoding="utf-8").splitlines()]
    keys = sorted({key for one in shop.products for key in one.attributes})
    with open("shop/holes.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "title", "image", *keys])
        for n, (record, one) in enumerate(zip(records, shop.products, strict=True)):
            values = ["" if n % 2 else one.attributes.get(key, "") for key in keys]
            table.writerow([record["id"], record["title"], record["images"][0]["path"], *values])
    pairs = sorted(
        {(one.attributes[k], one.category[-1]) for one in shop.products for k in ASKED if k in one.attributes}
    )
    with open("judgements.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["query", "docid", "rating"])
        for value, leaf in random.Random(0).sample(pairs, queries):
            kind = [one for one in shop.products if one.category[-1] == leaf]
            table.writerows(
                [f"{value} {leaf.lower()}", one.id, 3 if value in one.attributes.values() else 1]
                for one in kind
            )


def review(shop: sample.Shop, client: httpx.Client) -> Counter[str]:
    """Answers to all suggestions, counted: kept, changed, none."""
    true: dict[str, dict[str, str]] = {one.id: canonical(one.attributes) for one in shop.products}
    known, said = {key for one in true.values() for key in one}, Counter[str]()
    listed: list[dict[str, Any]] = []
    at, total = 0, 1
    while at < total:
        page = client.get("/v1/suggestions", params={"limit": 50, "offset": at})
        at, total = at + 50, page.raise_for_status().json()["total"]
        listed += page.json()["suggestions"]
    for one in listed:
        id, key = one["product"]["id"], canonical_key(one["name"])
        if key not in known:
            continue
        verdict = true[id].get(key, "none")
        kept = verdict == normalise_value(key, one["value"])
        said["kept" if kept else verdict if verdict == "none" else "changed"] += 1
        subject = {"id": id, "name": one["name"], "suggested": one["value"]}
        body = {"kind": "attribute", "subject": subject, "verdict": verdict, "note": ""}
        client.post("/v1/feedback", json=body).raise_for_status()
    return said


def main(
    url: Annotated[str, typer.Option("--review", help="Answer the suggestions of this service.")] = "",
    products: Annotated[int, typer.Option(help="So many of the drawn shop.")] = 120,
    queries: Annotated[int, typer.Option(help="So many queries.")] = 50,
) -> None:
    """A feed with holes and judgements, or what a person says of the suggestions."""
    shop = sample.shop(products)
    if url:
        with httpx.Client(base_url=url, timeout=60) as client:
            print(dict(review(shop, client)))
    else:
        write(shop, queries)


if __name__ == "__main__":
    start(app_of(main))
