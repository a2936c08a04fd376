"""The data sets that lie beside the project, and the sample shop: what the project is tuned and tested on.

They have training splits, so labels, the commonest label and the sample that fitted classifiers learn from
come from there and never from the rows that are scored.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from moonshelf import attributes
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.data.dataset import VIEWS, Dataset, sample, stems, views
from moonshelf.evaluation.tasks import Labelling
from moonshelf.product import Product

if TYPE_CHECKING:
    from moonshelf.sample import Shop


def fashion(data: Path, limit: int | None = None, fit_rows: int = 2000) -> Dataset:
    """Studio photos with real titles: retrieval by group, three category levels, colour."""
    dataset = Dataset("fashion", data)
    products = dataset.read("fashion_products/validation-clear.parquet", limit)
    train = dataset.read("fashion_products/train-clear.parquet")
    groups = [p.group_id or p.id for p in products]
    across = {"title → photo": (TEXT, IMAGE), "photo → title": (IMAGE, TEXT)}
    dataset.retrieval(products, products, [{group: 1.0} for group in groups], across, groups)
    colours = [attributes.canonical(p.attributes).get("colour", "") for p in train]
    hide = stems([name for p in train for name in p.category] + [c for c in colours if c])
    fit = sample(train, fit_rows)
    for name, key, level in (
        ("top category", "category", 0),
        ("middle category", "category", 1),
        ("leaf category", "category", -1),
        ("colour", "colour", -1),
    ):
        dataset.labelling(name, key, level, products, train, fit, hide)
    for key in ("gender", "use"):
        dataset.labelling(key, key, -1, products, train, fit)
    dataset.attribute_sets(products, ("colour", "gender", "use"))
    dataset.within_groups(products)
    dataset.same_product(products)
    dataset.note = (
        "a hit is any item of the query's group; labels come from the training split, and others count as "
        "errors; hidden: colour and category words dropped from the title; groups are of equal titles or "
        "photos, so words alone find them"
    )
    dataset.texts, dataset.training = [p.title for p in train], train
    return dataset


def grocery(data: Path, limit: int | None = None, fit_rows: int = 0) -> Dataset:
    """Phone photos taken in shops, searched in a catalogue of one clean shot per product."""
    dataset = Dataset("grocery", data)
    catalogue = dataset.read("grocery/catalogue.parquet")
    photos = dataset.read("grocery/photos-validation.parquet", limit)
    shown = {"photo": IMAGE, "title": TEXT, "photo + title": BOTH}
    searched = {f"phone photo → catalogue {what}": (IMAGE, reads) for what, reads in shown.items()}
    wanted = [{p.group_id or "": 1.0} for p in photos]
    dataset.retrieval(photos, catalogue, wanted, searched, metrics=("R@1", "R@5", "MRR"))
    dataset.same_product(photos)
    dataset.note = "exactly one catalogue product is right; intervals resample products"
    dataset.texts = [p.title for p in catalogue]
    return dataset


def luma(data: Path, limit: int | None = None, fit_rows: int = 0) -> Dataset:
    """Alternate and back views, searched among the main photos of all colour variants."""
    dataset = Dataset("luma", data)
    queries: list[Product] = []
    corpus: list[Product] = []
    for product in dataset.read("luma/products.parquet"):
        firsts = _first_photos(product)
        for number, ref in enumerate(product.images):
            name = f"{product.id}/main" if ref.role == "main" else f"{product.id}/{number}"
            one = Product(id=name, images=(ref,), group_id=product.id)
            if ref.role == "main" or number in firsts:
                corpus.append(one)
            elif ref.role in ("alternate", "back"):
                queries.append(one)
    mains = {p.id for p in corpus}
    shown = {p.images[0].data for p in corpus}  # one back view is the main photo of another product
    queries = [q for q in queries if f"{q.group_id}/main" in mains and q.images[0].data not in shown]
    queries = sample(queries, limit)
    exact = [{f"{q.group_id}/main": 1.0} for q in queries]
    anywhere = [{p.id: 1.0 for p in corpus if p.group_id == q.group_id} for q in queries]
    for name, relevant in (("other view → main photo", exact), ("other view → any variant", anywhere)):
        photo = {name: (IMAGE, IMAGE)}
        dataset.retrieval(queries, corpus, relevant, photo, metrics=("R@1", "R@5", "MRR", "mAP"))
    every = corpus + queries
    kinds = [p.group_id or "" for p in every]  # so that photos of the cut in other colours are the others
    own = {q.id for q in queries}  # views of the colour that the main photo shows
    alone = {"group_id": None}
    colours = [p if p.id in own or p.id.endswith("/main") else p.model_copy(update=alone) for p in every]
    dataset.same_product(colours, kinds)
    dataset.note = (
        "main photo: the same cut in another colour is wrong; any variant: it is right; product matching: "
        "views of one colour, against the cut in others"
    )
    return dataset


def _first_photos(product: Product) -> set[int]:
    """Positions of the first photo of each colour variant; the reader keeps their names in `extra`."""
    names = [name.rsplit("/", 1)[-1] for name in json.loads(product.extra.get("image_names", "[]"))]
    found: set[int] = set()
    for variant in json.loads(product.extra.get("variants", "[]")):
        own = [str(path).rsplit("/", 1)[-1] for path in variant["image_paths"]]
        found.update(names.index(name) for name in own[:1] if name in names)
    return found


def flipkart(data: Path, limit: int | None = None, fit_rows: int = 2000) -> Dataset:
    """Seven balanced departments."""
    dataset = Dataset("flipkart", data)
    products = dataset.read("flipkart/validation.parquet", limit)
    train = dataset.read("flipkart/train.parquet")
    dataset.labelling("department", "category", 0, products, train, sample(train, fit_rows))
    dataset.note = "titles alone, without the long descriptions, unless the model's prompt reads those"
    dataset.texts, dataset.training = [p.title for p in train], train
    return dataset


# ---- the sample shop -------------------------------------------------------------------------------


def sample_shop(
    data: Path | None = None, limit: int | None = None, fit_rows: int = 0, shop: Shop | None = None
) -> Dataset:
    """The sample shop: graded queries, and every attribute by reading.

    `limit` is its number of products, by default all; `shop` is another one.
    """
    from moonshelf import sample

    dataset = Dataset("sampleshop")
    shop = shop or sample.shop(min(limit or sample.SIZE, sample.SIZE))
    for modality, name, reads in (
        ("text", "text → product", TEXT),
        ("image", "photo → product", IMAGE),
        ("composed", "photo + text → product", BOTH),
    ):
        asked = [q for q in shop.queries if q.modality == modality and 3 in q.relevance.values()]
        queries = [Product(id=q.id, title=q.text, images=(q.image,) if q.image else ()) for q in asked]
        grades, which, metrics = [q.relevance for q in asked], {name: (reads, BOTH)}, ("nDCG@10", "R@1")
        dataset.retrieval(queries, shop.products, grades, which, metrics=metrics, hit_gain=3.0)
    truths = [shop.truth[p.id] for p in shop.products]
    counts = Counter(key for truth in truths for key in truth.attributes)
    columns = {"category": [truth.category[-1] for truth in truths]}
    read = [key for key, n in counts.most_common() if n >= 10]
    columns |= {key: [truth.attributes.get(key, "") for truth in truths] for key in read}
    for key, values in columns.items():
        rows = [i for i, value in enumerate(values) if value]
        labels = sorted({values[i] for i in rows})
        if len(labels) < 2:
            continue
        compared = key in ("category", "colour")
        for shown in ("image", "image + text"):
            dataset.tasks.append(Labelling(
                "sampleshop", key, shown, views([shop.products[i] for i in rows], shown),
                [values[i] for i in rows], labels, [truths[i].group for i in rows], VIEWS[shown], key,
                methods=("zero-shot classification", "rationale") if compared else ("rationale",),
            ))  # fmt: skip
    stated = [
        p.model_copy(update={"attributes": truth.attributes})
        for p, truth in zip(shop.products, truths, strict=True)
    ]
    dataset.attribute_sets(stated, read, ("image", "image + text"))
    dataset.note = (
        f"drawn with seed {shop.seed}; nDCG over grades 0 to 3, R@1 asks for grade 3; attributes are those "
        "that the main photo shows"
    )
    dataset.texts = [p.title for p in shop.products]
    return dataset
