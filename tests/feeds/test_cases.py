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
            "availability": "instock",
        }
    },
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
