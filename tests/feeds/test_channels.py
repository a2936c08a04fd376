# ruff: noqa: E501
"""`check --for CHANNEL`: which rows and fields a channel would reject, by which rule; and its tables of rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers as h
import pytest
from typer.testing import CliRunner

from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.feeds import DIALECTS, channels
from moonshelf.feeds.check import check_feed
from moonshelf.product import Product

GOOD: dict[str, dict[str, str]] = {
    "google": {
        "id": "1", "title": "Red tee", "description": "Soft cotton", "link": "https://shop.example/1",
        "image link": "https://cdn.example/1.jpg", "availability": "in stock", "price": "12.99 EUR", "brand": "Acme",
        "gtin": "4006381333931",
    },
    "meta": {
        "id": "1", "title": "Red tee", "description": "A soft tee of cotton, red, in four sizes",
        "link": "https://shop.example/1", "image_link": "https://cdn.example/1.jpg", "availability": "in stock",
        "price": "12.99 EUR", "brand": "Acme", "condition": "new", "fb_product_category": "12",
    },
    "shopify": {
        "Handle": "red-tee", "Title": "Red tee", "Body (HTML)": "<p>Soft</p>", "Vendor": "Acme", "Option1 Name": "Title",
        "Option1 Value": "Default Title", "Variant Price": "12.99", "Image Src": "https://cdn.example/1.jpg",
        "Status": "active", "Published": "true",
    },
    "agentic": {
        "item_id": "1", "title": "Red tee", "description": "Soft cotton", "url": "https://shop.example/1",
        "image_url": "https://cdn.example/1.jpg", "availability": "in_stock", "price": "12.99 USD", "brand": "Acme",
        "seller_name": "Acme Shop", "target_countries": "US", "store_country": "US",
    },
}  # fmt: skip
LONG = "x" * 6_000
# Channel, cells that are other than the good ones, the field that is found, what is said, and whether it rejects.
FAULTS: list[tuple[str, dict[str, str], str, str, bool]] = [
    ("google", {"id": "x" * 51}, "id", "it has 51 characters, at most 50", True),
    ("google", {"title": ""}, "title", "it is missing", True),
    ("google", {"title": "y" * 151}, "title", "it has 151 characters", False),
    ("google", {"description": LONG}, "description", "it has 6,000 characters", False),
    ("google", {"link": "shop.example/1"}, "link", "is not an address", True),
    ("google", {"link": "https://me:pw@shop.example/1"}, "link", "is not an address", True),
    ("google", {"image link": "https://cdn.example/1.svg?x=1"}, "image_link", "of the kind 'svg'", True),
    ("google", {"additional image link": ",".join(f"https://c.example/{n}.jpg" for n in range(11))},
     "additional_image_link", "there are 11, at most 10", False),
    ("google", {"availability": "sold out"}, "availability", "'sold out' is none of in_stock", True),
    ("google", {"availability": "preorder"}, "availability_date", "availability 'preorder' asks for it", True),
    ("google", {"availability": "backorder", "availability_date": "soon"}, "availability_date", "is not a date", True),
    ("google", {"price": "12,99 EUR"}, "price", "is not a number with a decimal point", True),
    ("google", {"price": "12.99"}, "price", "ISO 4217", True),
    ("google", {"price": "0 EUR"}, "price", "is not more than nothing", True),
    ("google", {"sale_price": "13 EUR"}, "sale_price", "is not less than '12.99 EUR'", False),
    ("google", {"brand": "N/A"}, "brand", "is a filler", False),
    ("google", {"gtin": "4006381333932"}, "gtin", "the check digit", True),
    ("google", {"gtin": ""}, "gtin", "none of gtin, mpn, identifier_exists", False),
    ("google", {"condition": "mint"}, "condition", "is none of new", True),
    ("google", {"age_group": "teen"}, "age_group", "is none of", True),
    ("meta", {"title": "RED TEE NOW"}, "title", "all in capitals", True),
    ("meta", {"description": "<b>A soft tee</b> of cotton, in red and blue"}, "description", "it holds HTML", False),
    ("meta", {"description": "Short"}, "description", "has less than the 30", False),
    ("meta", {"condition": ""}, "condition", "it is missing", True),
    ("meta", {"availability": "backorder"}, "availability", "is none of", True),
    ("meta", {"availability": "preorder"}, "availability", "is none of in stock, out of stock", False),
    ("meta", {"image_link": "https://cdn.example/1.webp"}, "image_link", "of the kind 'webp'", True),
    ("meta", {"item_group_id": "1"}, "id", "it is the same as item_group_id", True),
    ("meta", {"brand": ""}, "brand", "none of brand, gtin, mpn", False),
    ("shopify", {"Title": ""}, "Title", "it is missing", True),
    ("shopify", {"Handle": "red tee.1"}, "URL handle", "has other signs", True),
    ("shopify", {"Variant Price": "12.99 EUR"}, "Price", "is not a plain number", True),
    ("shopify", {"Option1 Name": ""}, "Option1 name", "asks for it", True),
    ("shopify", {"Image Src": "http://cdn.example/1.jpg"}, "Product image URL", "is not an https://", False),
    ("shopify", {"Status": "sold"}, "Status", "is none of active", True),
    ("shopify", {"Vendor": "A"}, "Vendor", "has less than the 2", True),
    ("agentic", {"seller_name": ""}, "seller_name", "it is missing", True),
    ("agentic", {"brand": "unknown"}, "brand", "is a filler", True),
    ("agentic", {"price": "1,299.00 USD"}, "price", "is not written as 79.99 USD", True),
    ("agentic", {"availability": "in stock"}, "availability", "is none of in_stock", True),
    ("agentic", {"enable_checkout": "TRUE"}, "is_eligible_checkout", "neither true nor false", True),
    ("agentic", {"is_eligible_checkout": "true"}, "seller_tos", "is_eligible_checkout 'true' asks for it", False),
    ("agentic", {"listing_has_variations": "true"}, "variant_dict", "asks for it", False),
    ("agentic", {"weight": "3"}, "item_weight_unit", "weight '3' asks for it", False),
]  # fmt: skip


def feed(folder: Path, *rows: dict[str, str]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(row.get(name, "") for name in names) for row in rows]
    return h.write(folder / "feed.tsv", "\n".join(["\t".join(names), *lines]) + "\n")


@pytest.mark.parametrize("channel", GOOD)
def test_a_good_feed_is_taken(tmp_path: Path, channel: str) -> None:
    found = check_feed(feed(tmp_path, GOOD[channel]), channel=channel)
    assert found.channel is not None and found.channel.as_written
    assert (found.channel.reasons, found.channel.rejected, found.exit_code) == ([], 0, 0)


@pytest.mark.parametrize(("channel", "cells", "field", "said", "rejects"), FAULTS)
def test_a_fault_is_found_with_its_page(
    tmp_path: Path, channel: str, cells: dict[str, str], field: str, said: str, rejects: bool
) -> None:
    path = feed(
        tmp_path, GOOD[channel] | {"id": "0", "item_id": "0", "Handle": "good"}, GOOD[channel] | cells
    )
    dialect = {"google": "merchant"}.get(channel, channel)
    report = check_feed(path, dialect, channel=channel, rejects=tmp_path / "rejects.jsonl")
    verdict = report.channel
    assert verdict is not None
    found = [reason for reason in verdict.reasons if reason.field == field]
    assert any(said in one.example and one.fatal == rejects and one.rows == [2] for one in found), (
        verdict.reasons
    )
    assert (verdict.rejected, verdict.warned) == ((1, 0) if rejects else (0, 1))
    assert report.exit_code == (3 if rejects else 0)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    mine = next(line for line in lines if line.get("channel") == channel and line["field"] == field)
    assert mine["row"] == 2 and mine["source"].startswith("https://")


def test_one_id_twice(tmp_path: Path) -> None:
    for channel, rejected in (("google", 1), ("meta", 2)):  # Meta takes neither
        found = check_feed(feed(tmp_path, GOOD[channel], GOOD[channel]), channel=channel).channel
        assert found is not None and found.rejected == rejected


def test_a_feed_in_another_form_is_judged_by_what_was_read(tmp_path: Path) -> None:
    path = h.write(tmp_path / "f.csv", h.GENERIC_CSV)
    found = check_feed(path, channel="google", decode_images=False).channel
    assert found is not None and not found.as_written and found.rejected == 2
    said = {(reason.field, reason.example.split(" ")[0]) for reason in found.reasons if reason.fatal}
    assert ("description", "it") in said and ("availability", "it") in said
    assert any(
        reason.field == "image_link" and "is not an address" in reason.example for reason in found.reasons
    )
    assert not any(reason.field == "price" for reason in found.reasons)  # `5,50 €` was read


def test_an_agentic_feed_is_held_to_its_spec_unasked(tmp_path: Path) -> None:
    report = check_feed(h.write(tmp_path / "f.jsonl", h.AGENTIC_JSONL.replace("in_stock", "InStock")))
    assert report.dialect == "agentic" and report.channel is not None
    assert [reason.field for reason in report.channel.reasons if reason.fatal] == ["availability"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = feed(tmp_path, GOOD["google"], GOOD["google"] | {"id": "2", "price": "5", "brand": ""})
    shown = CliRunner().invoke(app, ["check", str(path), "--for", "google"])
    assert shown.exit_code == 3
    assert "1 row would be rejected" in shown.output
    assert "https://support.google.com/merchants/answer/12471842" in shown.output
    report = json.loads(CliRunner().invoke(app, ["check", str(path), "--for", "google", "--json"]).stdout)
    assert (report["exit_code"], report["channel"]["rejected"], report["rejected"]) == (3, 1, 0)
    assert {"field", "rows", "source", "fatal"} <= set(report["channel"]["reasons"][0])
    with pytest.raises(UserError, match="choose one of google, meta, shopify, agentic"):
        check_feed(path, channel="ebay")


@pytest.mark.parametrize("name", channels.CHANNELS)
def test_rules_are_well_formed(name: str) -> None:
    entry: dict[str, Any] = channels.CHANNELS[name]
    assert set(entry["dialects"]) <= set(DIALECTS)
    known = {"needed", "one_of", "at_most", "below", "unlike", "unique", *channels.TESTS}
    for rule in entry["rules"]:
        assert len(rule) in (4, 5) and rule[1] in known and rule[3] in ("rejects", "warns"), rule
        assert all(page.startswith("https://") for page in rule[4:])
    made = {"images", "more_images", "amount"} | set(Product.model_fields)
    read = {place[1:] for places in entry["fields"].values() for place in places if place[0] == "="}
    assert read <= made
