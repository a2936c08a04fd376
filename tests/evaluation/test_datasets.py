"""Adapters: no answer in what an encoder sees, truth as the data has it, and the real files if present."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moonshelf.errors import UserError
from moonshelf.evaluation.data import dataset as views
from moonshelf.evaluation.data import validation as shared_sets
from moonshelf.evaluation.data.dataset import Dataset
from moonshelf.evaluation.tasks import Labelling, Retrieval
from moonshelf.product import ImageRef, Product

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def jpeg(shade: int) -> dict[str, object]:
    data = io.BytesIO()
    Image.new("RGB", (12, 12), (shade, 90, 40)).save(data, "JPEG")
    return {"bytes": data.getvalue(), "path": f"{shade}.jpg"}


def row(i: int, title: str, path: list[str], colour: str | None, group: str) -> dict[str, object]:
    held = {"usage": "Casual"} | ({"baseColour": colour} if colour else {})
    return {
        "id": f"x{i}", "title": title, "description": "", "category_path": path,
        "attributes": json.dumps(held), "group": group, "images": [jpeg(i)],
    }  # fmt: skip


SHOE, SHIRT = ["Footwear", "Shoes", "Heels"], ["Apparel", "Topwear", "Tshirts"]
TRAIN = [
    row(1, "Acme Red Heels", SHOE, "Red", "g1"),
    row(2, "Acme Navy T-Shirt", SHIRT, "Navy Blue", "g2"),
    row(3, "Bolt Red Heels", SHOE, "Red", "g3"),
]
VALIDATION = [
    row(11, "Acme Women Red Heel", SHOE, "Red", "v1"),
    row(12, "Acme Women Red Heel", SHOE, "Red", "v1"),
    row(13, "Bolt Navy/Red T-Shirt", SHIRT, "Teal", "v2"),
    row(14, "Bolt plain", SHIRT, None, "v3"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "fashion_products"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(TRAIN), folder / "train-clear.parquet")
    pq.write_table(pa.Table.from_pylist(VALIDATION), folder / "validation-clear.parquet")
    return tmp_path


def test_fashion_tasks_hold_the_truth_and_show_no_answer(data):
    dataset = shared_sets.fashion(data, fit_rows=2)
    to_photo = next(t for t in dataset.tasks if t.name == "title → photo")
    assert isinstance(to_photo, Retrieval)
    assert to_photo.corpus_keys == ["v1", "v1", "v2", "v3"]
    assert to_photo.relevant[1] == {"v1": 1.0}  # any item of the group
    labelled = [t for t in dataset.tasks if isinstance(t, Labelling)]
    colour = {t.view: t for t in labelled if t.name == "colour"}
    assert set(colour) == {"image", "text", "image + text", "text, hidden", "image + text, hidden"}
    assert colour["text"].labels == ["navy blue", "red"]  # of the training split
    assert colour["text"].truth == ["red", "red", "teal"]  # no colour: no row; an unknown one stays
    leaf = next(t for t in labelled if t.name == "leaf category" and t.view == "image")
    assert leaf.truth == ["Heels", "Heels", "Tshirts", "Tshirts"]
    for task in labelled:
        for product in [*task.products, *(task.fit.products if task.fit else [])]:
            assert not product.category and not product.attributes and not product.extra and not product.brand
            assert bool(product.images) == ("image" in task.view)
            assert bool(product.title) == ("text" in task.view)
    assert [p.title for p in colour["text, hidden"].products] == ["Acme Women", "Acme Women", "Bolt"]
    assert colour["text"].fit is not None and len(colour["text"].fit.products) == 2
    assert set(dataset.files) == {f"fashion_products/{s}-clear.parquet" for s in ("train", "validation")}


def test_limit_is_a_seeded_sample_in_file_order(data):
    ids = [p.id for p in Dataset("fashion", data).read("fashion_products/validation-clear.parquet", 3)]
    assert len(ids) == 3 and ids == sorted(ids)
    assert ids == [
        p.id for p in Dataset("fashion", data).read("fashion_products/validation-clear.parquet", 3)
    ]


def test_missing_data_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no grocery/catalogue\.parquet"):
        shared_sets.grocery(tmp_path)


HIDE = views.stems(["Tshirts", "Flip Flops", "Watches", "Dresses", "navy blue", "multicolour", "grey"])


@pytest.mark.parametrize(
    ("title", "left"),
    [
        ("Puma Men's Navy T-Shirt", "Puma Men's"),
        ("Puma T Shirt", "Puma"),
        ("Lotto Thong Blue/Grey Flip Flop", "Lotto Thong"),
        ("Gray dress, a watch & Multi tshirt", "a"),
        ("Greyhound Blueberry", "Greyhound Blueberry"),
        ("Rosso (navy) No. 5", "Rosso No. 5"),
    ],
)
def test_hidden_words_leave_the_title(title, left):
    assert views.without(title, HIDE) == left


@given(
    st.lists(
        st.sampled_from(
            ["T", "Shirt", "navy", "blue", "Acme", "Flip", "Flops", "Gray", "watch's", "-", "/", "x9", "é"]
        )
    )
)
def test_hiding_leaves_nothing_hidden_and_nothing_new(words):
    left = views.without(" ".join(words), HIDE).split()
    assert not {word.lower() for word in left} & {"navy", "blue", "gray", "watch's", "-", "/"}
    assert not {"t shirt", "flip flops"} & {" ".join(pair).lower() for pair in itertools.pairwise(left)}
    remaining = iter(words)
    assert all(word in remaining for word in left)  # in their order


def test_a_title_of_hidden_words_alone_still_is_a_text():
    product = Product(id="p", title="Navy T-Shirt", images=(ImageRef(data=b"x"),), brand="b")
    shown = views.view(product, text=True, image=False, hide=HIDE)
    assert (shown.title, shown.images, shown.brand) == ("product", (), None)


def test_the_sample_shop_asks_what_the_shop_knows():
    from research.synthetic.shop import make_shop

    dataset = shared_sets.sample_shop(shop=make_shop(24, photos=1, size=64, n_queries=24))
    names = {task.name for task in dataset.tasks}
    assert {"text → product", "photo → product", "category", "colour"} <= names
    for task in dataset.tasks:
        if isinstance(task, Retrieval):
            assert all(3.0 in grades.values() for grades in task.relevant)
            assert len(task.corpus) == 24
        elif isinstance(task, Labelling):
            assert set(task.truth) == set(task.labels) and len(task.truth) >= 10


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared validation data sets are not beside the checkout")
def test_the_real_files_give_the_tasks_that_the_readme_describes():
    grocery = shared_sets.grocery(SHARED)
    assert {len(t.corpus) for t in grocery.tasks if isinstance(t, Retrieval)} == {81}
    assert {len(t.queries) for t in grocery.tasks if isinstance(t, Retrieval)} == {296}
    luma = shared_sets.luma(SHARED)
    exact = luma.tasks[0]
    assert isinstance(exact, Retrieval) and len(exact.corpus) > 400 and len(exact.queries) > 200
    pictures = [p.images[0].data for p in exact.corpus]
    assert not {q.images[0].data for q in exact.queries} & set(pictures)  # no query finds itself
    flipkart = shared_sets.flipkart(SHARED, fit_rows=10)
    first = flipkart.tasks[0]
    assert isinstance(first, Labelling) and len(first.labels) == 7 and set(first.truth) == set(first.labels)
    assert not grocery.problems and not luma.problems and not flipkart.problems
