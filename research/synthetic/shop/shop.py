"""A drawn shop: products with photos, their truth, and queries.

`iter_products` streams without end in mind: product k depends on the seed and on k alone, so a shop of 50 is
the beginning of a shop of 5,000. Groups go through the categories in rounds. Pictures are JPEG; their pixels
before encoding follow from the seed, their bytes also depend on the Pillow version (its libjpeg).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moonshelf.product import ImageRef, Product
from moonshelf.sample import Shop
from research.synthetic.shop.photo import compose, draw_view, photograph
from research.synthetic.shop.queries import DrawnTruth, make_queries
from research.synthetic.shop.spec import KINDS, Spec, sample_group
from research.synthetic.shop.words import make_description, make_design, make_title


def _rows(n_products: int, seed: int) -> Iterator[tuple[DrawnTruth, dict[str, Any], tuple[int, ...]]]:
    """Truth, product fields without pictures, and the photos' seed, one product after another."""
    names = list(KINDS)
    made = group = 0
    order: list[str] = []
    while made < n_products:
        rng = np.random.default_rng([seed, 1, group])
        if not order:
            order = [names[int(i)] for i in rng.permutation(len(names))]
        kind = order.pop()
        specs = sample_group(rng, kind, int(rng.choice(4, p=(0.45, 0.3, 0.15, 0.1))) + 1)
        design = make_design(rng, specs[0])
        for variant, spec in enumerate(specs):
            if made == n_products:
                return
            title, omitted = make_title(rng, spec, design)
            group_id, product_id = f"g{group + 1:04}", f"p{made + 1:05}"
            truth = DrawnTruth(product_id, spec.category, dict(spec.attributes), group_id, omitted, spec)
            fields: dict[str, Any] = {
                "id": product_id,
                "title": title,
                "description": make_description(rng, spec, design),
                "category": spec.category,
                "attributes": dict(spec.attributes),
                "brand": design.brand,
                "price": design.price,
                "currency": "EUR",
                "language": "en",
                "group_id": group_id,
                "availability": "in_stock",
            }
            made += 1
            yield truth, fields, (seed, 2, group, variant)
        group += 1


def _photos(spec: Spec, seed: tuple[int, ...], photos: int, size: int) -> tuple[ImageRef, ...]:
    refs = []
    for index in range(photos):
        view, _ = draw_view(np.random.default_rng([*seed, index]), spec, index)
        role = "main" if index == 0 else "detail" if view.name == "detail" else "alternate"
        refs.append(ImageRef(data=photograph(spec, index, seed, size), role=role))
    return tuple(refs)


def iter_products(n_products: int, seed: int = 0, photos: int = 3, size: int = 320) -> Iterator[Product]:
    """Products one by one, photos drawn as they are asked for; memory stays flat."""
    for truth, fields, photo_seed in _rows(n_products, seed):
        yield Product(**fields, images=_photos(truth.spec, photo_seed, photos, size))


def iter_truth(n_products: int, seed: int = 0) -> Iterator[DrawnTruth]:
    """The truth of the products that `iter_products` yields, without drawing them."""
    for truth, _, _ in _rows(n_products, seed):
        yield truth


def make_shop(
    n_products: int = 120, seed: int = 0, photos: int = 3, size: int = 320, n_queries: int = 80
) -> Shop:
    """A shop in memory; `photos` per product (at least 1) of `size`² pixels."""
    truth = {t.id: t for t in iter_truth(n_products, seed)}
    products = list(iter_products(n_products, seed, photos, size))
    return Shop(products, truth, make_queries(list(truth.values()), seed, n_queries, size), seed)


def contact_sheet(shop: Shop, path: str | Path, columns: int = 12, size: int = 128, index: int = 0) -> None:
    """PNG grid of photo number `index` of every product, drawn anew at `size` pixels each."""
    rows = -(-len(shop.products) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size), "white")
    drawn = _rows(len(shop.products), shop.seed)
    for number, (truth, _, seed) in enumerate(drawn):
        spec = truth.spec
        rng = np.random.default_rng([*seed, index])
        view, background = draw_view(rng, spec, index)
        picture = compose(spec, view, background, size * 2, int(rng.integers(1 << 30))).reduce(2)
        sheet.paste(picture, (number % columns * size, number // columns * size))
    sheet.save(path)
