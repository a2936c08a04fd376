"""Products of schema.org as shops write them: which offer counts, and what is a product of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers as h
import pytest

from moonshelf.product import Product

IN, OUT, PRE = "https://schema.org/InStock", "http://schema.org/OutOfStock", "PreOrder"


def offer(price: Any, availability: str | None = IN, **more: Any) -> dict[str, Any]:
    found = {"@type": "Offer", "price": price, "priceCurrency": "EUR", **more}
    return found if availability is None else {**found, "availability": availability}


def spec(price: Any, kind: str | None = None, **more: Any) -> dict[str, Any]:
    found = {"@type": "UnitPriceSpecification", "price": price, "priceCurrency": "EUR", **more}
    return found if kind is None else {**found, "priceType": f"https://schema.org/{kind}"}


def read(tmp_path: Path, *nodes: Any, page: bool = False) -> dict[str, Product]:
    text = json.dumps({"@context": "https://schema.org", "@graph": list(nodes)})
    if page:
        text = f"<!doctype html><html><script type='application/ld+json'>{text}</script></html>"
    return {product.id: product for product in h.products(h.write(tmp_path / "page.html", text), "jsonld")}


def mug(tmp_path: Path, offers: Any) -> Product:
    return read(tmp_path, {"@type": "Product", "sku": "M", "name": "Mug", "offers": offers}, page=True)["M"]


@pytest.mark.parametrize(
    ("offers", "price", "availability"),
    [
        ([offer("12.00"), offer("9.90")], 9.9, "in_stock"),
        ([offer("9.90", OUT), offer("12.00")], 12.0, "in_stock"),
        ([offer("9.90", PRE), offer("12.00")], 12.0, "in_stock"),
        ([offer("9.90", OUT), offer("8.00", PRE)], 8.0, "pre_order"),
        ([offer("5.00", itemCondition="https://schema.org/UsedCondition"), offer("9.90")], 9.9, "in_stock"),
        ([offer("5.00", priceValidUntil="2001-01-01"), offer("9.90")], 9.9, "in_stock"),
        ([offer("5.00", validFrom="2999-01-01T00:00"), offer("9.90")], 9.9, "in_stock"),
        (
            [offer("1.00", businessFunction="http://purl.org/goodrelations/v1#LeaseOut"), offer("9.90")],
            9.9,
            "in_stock",
        ),
        ({"@type": "AggregateOffer", "lowPrice": "9.90", "highPrice": "20", "priceCurrency": "EUR"}, 9.9, ""),
        (
            {
                "@type": "AggregateOffer",
                "lowPrice": "1",
                "offers": [offer("12"), offer("9.90"), offer("8", OUT)],
            },
            9.9,
            "in_stock",
        ),
        (
            {
                "@type": "AggregateOffer",
                "priceCurrency": "EUR",
                "availability": IN,
                "offers": {"price": "9.90"},
            },
            9.9,
            "in_stock",
        ),
        (
            {"@type": "AggregateOffer", "lowPrice": "9.90", "priceCurrency": "EUR", "offers": [{"url": "x"}]},
            9.9,
            "",
        ),
        (offer("9.90", priceSpecification=[spec("12.00", "ListPrice")]), 9.9, "in_stock"),
        (offer("9.90", priceSpecification=[spec("12.00", "StrikethroughPrice")]), 9.9, "in_stock"),
        (
            offer(None, priceSpecification=[spec("12.00", "ListPrice"), spec("9.90", "SalePrice")]),
            9.9,
            "in_stock",
        ),
        (offer(None, priceSpecification=[spec("12.00", "MSRP"), spec("9.90")]), 9.9, "in_stock"),
        (
            offer(None, priceSpecification=[spec("5", "SalePrice", validThrough="2001-01-01"), spec("9.90")]),
            9.9,
            "in_stock",
        ),
        (
            offer(None, priceSpecification=[spec("5", validForMemberTier={"name": "gold"}), spec("9.90")]),
            9.9,
            "in_stock",
        ),
        (
            offer(None, priceSpecification=[spec("5", eligibleQuantity={"minValue": 10}), spec("9.90")]),
            9.9,
            "in_stock",
        ),
        (
            offer("9.90", priceSpecification=spec("2.50", referenceQuantity={"value": 1, "unitCode": "LTR"})),
            9.9,
            "in_stock",
        ),
        (offer("12.00", priceSpecification=spec("9.90", "SalePrice")), 9.9, "in_stock"),
        (
            offer("9.90", priceSpecification={"@type": "DeliveryChargeSpecification", "price": 3}),
            9.9,
            "in_stock",
        ),
        ([offer("9.90"), offer("5.00", priceCurrency="USD")], 9.9, "in_stock"),
        (offer(9.9, "In stock"), 9.9, "in_stock"),
    ],
)
def test_the_cheapest_offer_in_stock_counts(
    tmp_path: Path, offers: Any, price: float, availability: str
) -> None:
    product = mug(tmp_path, offers)
    assert (product.price, product.currency, product.availability or "") == (price, "EUR", availability)


def test_prices_that_do_not_count_are_kept_or_said(tmp_path: Path) -> None:
    sale = mug(tmp_path, offer("9.90", priceSpecification=spec("12.00", "ListPrice")))
    assert sale.extra["list_price"] == "12.00"
    node = {"@type": "Product", "sku": "M", "name": "Mug"}
    for offers, words in (
        ({"@type": "Offer", "priceSpecification": spec("12.00", "ListPrice")}, "list price"),
        ([offer("9.90"), offer("5.00", priceCurrency="USD")], "EUR is taken"),
    ):
        path = h.write(tmp_path / "p.jsonld", json.dumps({**node, "offers": offers}))
        assert any(words in problem.reason for problem in h.problems(path)), words


def test_products_that_offers_name(tmp_path: Path) -> None:
    """Of a catalogue of offers each product with its price; inside a product's offers its variants."""
    catalogue = {
        "@type": "Organization",
        "hasOfferCatalog": {
            "@type": "OfferCatalog",
            "itemListElement": [
                offer("9.90", itemOffered={"@type": "Product", "sku": "A", "name": "Mug"}),
                offer("5.00", OUT, itemOffered={"@type": "Product", "sku": "B", "name": "Cup"}),
                offer("3.00", itemOffered={"@type": "Service", "name": "Engraving"}),
            ],
        },
    }
    found = read(tmp_path, catalogue)
    assert {id: product.price for id, product in found.items()} == {"A": 9.9, "B": 5.0}
    shirt = {
        "@type": "Product",
        "sku": "S",
        "name": "Shirt",
        "brand": {"name": "Acme"},
        "image": "https://e.example/s.jpg",
        "offers": {
            "@type": "AggregateOffer",
            "lowPrice": 5,
            "priceCurrency": "EUR",
            "offers": [
                offer(
                    "12.00",
                    itemOffered={"@type": "Product", "sku": "S-R", "name": "Red shirt", "color": "Red"},
                ),
                offer(
                    "14.00",
                    itemOffered={"@type": "Product", "sku": "S-B", "name": "Blue shirt", "color": "Blue"},
                ),
            ],
        },
    }
    found = read(tmp_path, shirt)
    assert {id: (p.price, p.group_id, p.brand) for id, p in found.items()} == {
        "S-R": (12.0, "S", "Acme"),
        "S-B": (14.0, "S", "Acme"),
    }
    once = {
        "@type": "Product",
        "@id": "#m",
        "sku": "M",
        "name": "Mug",
        "offers": offer("9", itemOffered={"@id": "#m"}),
    }
    again = {**once, "offers": offer("9", itemOffered={"@type": "Product", "sku": "M", "name": "Mug"})}
    assert [read(tmp_path, node)["M"].price for node in (once, again)] == [9.0, 9.0]
    assert len(read(tmp_path, again)) == 1


def test_lists_groups_and_prefixes(tmp_path: Path) -> None:
    listed = {
        "@type": "ItemList",
        "itemListElement": [
            {
                "@type": "ListItem",
                "position": n,
                "item": {"@type": "Product", "sku": f"L{n}", "name": f"Mug {n}"},
            }
            for n in (1, 2)
        ],
    }
    group = {
        "@type": "ProductGroup",
        "productGroupID": "G",
        "name": "Coat",
        "variesBy": ["size"],
        "offers": offer("80"),
        "hasVariant": [
            {"@type": "Product", "sku": "G-S", "size": "S", "offers": offer("70")},
            {"@type": "Product", "sku": "G-M", "size": "M"},
        ],
    }
    prefixed = {
        "@type": "http://schema.org/Product",
        "http://schema.org/sku": "P",
        "schema:name": [{"@value": "Pan"}],
    }
    found = read(tmp_path, listed, group, prefixed)
    assert list(found) == ["L1", "L2", "G-S", "G-M", "P"]
    assert (found["G-S"].price, found["G-M"].price, found["G-M"].title) == (70.0, 80.0, "Coat")
    assert found["P"].title == "Pan"


def test_an_id_that_is_blank_is_taken_from_what_serves(tmp_path: Path) -> None:
    nodes = [
        {"@type": "Product", "name": "a", "sku": "", "gtin13": "4006381333931"},
        {"@type": "Product", "name": "b", "sku": "N/A", "url": "https://e.example/b"},
        {"@type": "Product", "name": "c", "offers": offer("9", sku="C")},
        {"@type": "Product", "name": "d", "identifier": {"@type": "PropertyValue", "value": "D"}},
    ]
    assert list(read(tmp_path, *nodes)) == ["4006381333931", "https://e.example/b", "C", "D"]
