"""Small exports that once were misread, beside the repository: what each must become.

A value is compared after `model_dump`; pictures are compared by where they are, so that an entry stays short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers as h
import pytest

from moonshelf.product import Product

CASES: dict[str, dict[str, dict[str, Any]]] = {  # file -> id -> fields
    "akeneo.csv": {
        "A1": {"price": 9.9, "currency": "EUR", "extra": {"price-USD": "12.50", "price-GBP": "8.40"}},
        "A2": {"price": None, "extra": {"price-USD": "11.00"}},
    },
    "amazon-flat.txt": {
        "BL-1": {
            "title": "Wool blanket red",
            "brand": "Acme",
            "price": 49.9,
            "group_id": "BL",
            "images": ["https://cdn.example/1.jpg", "https://cdn.example/1b.jpg"],
        }
    },
    "bigcommerce.csv": {
        "55": {
            "title": "Blue Tee",
            "brand": "Acme",
            "price": 20.0,
            "category": ("Home", "Tees"),
            "gtin": "4006381333931",
            "attributes": {"Size": "S"},
        }
    },
    "bom-blank.csv": {"1": {"title": "Red mug", "price": 9.9}},
    "brand-entity.csv": {
        "1": {
            "title": "Tee & shirt",
            "brand": "H&M",
            "attributes": {"color": "Black & White", "material": "Cotton"},
            "category": ("Men & Boys", "Tees"),
        }
    },
    "cp1251.csv": {
        "1": {"title": "Красная кружка", "price": 299.0, "currency": "RUB"},
        "2": {"title": "Синяя кружка"},
    },
    "cp1252-price.csv": {
        "1": {"title": "Tasse", "price": 12.99, "currency": "EUR"},
        "2": {"title": "Mug", "price": 12.5, "currency": "GBP"},
    },
    "handle.csv": {
        id: {"attributes": {"handle": handle}, "group_id": None}
        for id, handle in (("K1", "wood"), ("K2", "wood"), ("K3", "plastic"), ("K4", "wood"))
    },
    "html.csv": {
        "1": {"title": "Red mug & saucer", "description": "Fits waist <XL only, and more text follows here"},
        "2": {"title": "Blue <mug>", "description": "Double escaped & text"},
        "3": {"title": "Size <M", "description": "Unclosed bold\nline 2\none\ntwo\nend"},
        "4": {"title": "5 < 6 and 7 > 3", "description": "x<y and y>z; a <= b"},
        "5": {"title": "Café €5 ©", "description": "tail  € € &unknown; &"},
        "6": {"description": "inner text after"},
        "7": {"title": "Tab\tinside", "description": "[vc_row]short[/vc_row] {{ var }}"},
    },
    "mpn-na.csv": {str(n): {"mpn": None} for n in range(1, 9)},
    "pylist.csv": {
        "1": {
            "images": ["https://cdn.example.com/a.jpg", "https://cdn.example.com/b.jpg"],
            "category": ("Home", "Kitchen", "Mugs"),
        },
        "2": {"images": ["https://cdn.example.com/c.jpg"], "category": ("Home", "Kitchen", "Mugs")},
    },
    "content-api.jsonl": {
        "online:en:US:1": {
            "title": "Red mug",
            "images": ["https://cdn.example/a.jpg", "https://cdn.example/b.jpg"],
            "price": 12.99,
            "currency": "EUR",
            "gtin": "4006381333931",
            "category": ("Home", "Mugs"),
            "group_id": "g1",
        }
    },
    "abo.jsonl": {
        "B07HCR1LSQ": {
            "title": "Red ceramic mug",
            "brand": "Acme",
            "language": "en-US",
            "category": ("DRINKING_CUP",),
            "attributes": {"color": "Red"},
        }
    },
    "woo-rest.json": {
        "799": {
            "title": "Red mug",
            "images": ["https://demo.example/t1.jpg"],
            "price": 21.99,
            "description": "A mug",
            "category": ("Clothing", "T-shirts"),
            "attributes": {"Color": "Black, Green"},
            "group_id": None,
            "availability": "in_stock",
        }
    },
    "price-min-max.csv": {"1": {"price": 5.0, "currency": None, "extra": {"price_max": "9.00"}}},
    "prices.csv": {
        id: {"price": price, "currency": currency}
        for id, price, currency in (
            ("1", 1234.56, "EUR"),
            ("2", 1234.56, "EUR"),
            ("3", 1234.56, "EUR"),
            ("4", 12.99, "USD"),
            ("5", 1299.0, "EUR"),
            ("6", 1299.0, None),
            ("7", 1299.0, None),
            ("8", 1234.5, "CHF"),
            ("9", 129999.0, "INR"),
            ("10", None, None),
            ("11", 12.99, "EUR"),
            ("12", 12.99, "EUR"),
            ("13", 1.299, None),
            ("14", 1299.0, None),
            ("15", 12.99, None),
            ("16", 12.99, None),
            ("17", 1299.9, "BRL"),
            ("18", 12.0, "GBP"),
            ("19", 1299.0, "EUR"),
            ("20", 12.99, "EUR"),
            ("21", None, None),
            ("22", 0.0, None),
            ("23", 12.99, None),
            ("24", 3.5, "OMR"),
            ("25", 1200.0, "JPY"),
            ("26", 1200.0, "JPY"),
            ("27", None, None),
            ("28", None, None),
            ("30", 1200.0, "TWD"),
            ("31", 99.0, "MXN"),
            ("32", 12.99, "EUR"),
            ("33", 12990.0, "RUB"),
            ("34", None, None),
            ("35", 12.5, None),
            ("36", 1299.0, "USD"),
            ("37", 1299.0, "USD"),
            ("38", 19.999, "KWD"),
            ("39", 0.999, "EUR"),
            ("40", None, None),
        )
    },
    "titlerow.csv": {"1": {"title": "Mug", "price": 9.9}},
    "ids.csv": {"../../x": {"title": "Path"}, "id with spaces": {"title": "OK"}},
    "xml-images.xml": {
        "1": {
            "images": [f"https://cdn.example/{name}.jpg" for name in "abc"],
            "category": ("Home", "Mugs"),
            "price": 9.9,
        },
        "2": {"images": ["https://cdn.example/d.jpg", "https://cdn.example/e.jpg"]},
        "3": {"title": "Green mug", "images": ["https://cdn.example/f.jpg"], "price": 9.9, "currency": "EUR"},
    },
    "wrapped.json": {"1": {"title": "Mug"}, "2": {"title": "Cup"}},
    "parent0.json": {str(n): {"group_id": None, "price": 9.0} for n in (1, 2, 3)},
}


def shown(product: Product, name: str) -> Any:
    if name == "images":
        return [ref.url or ref.path for ref in product.images]
    return product.model_dump()[name]


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_read_as_what_it_says(shared_cases: Path, name: str) -> None:
    found = {product.id: product for product in h.products(shared_cases / name)}
    wanted = CASES[name]
    assert list(found) == list(wanted)
    assert {
        id: {field: shown(found[id], field) for field in fields} for id, fields in wanted.items()
    } == wanted
