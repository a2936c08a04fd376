"""Every dialect on a small feed written by hand: what a shop wrote becomes the right product."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zipfile
from pathlib import Path

import helpers as h
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moonshelf.feeds import detect, read_feed
from moonshelf.product import Product

FEEDS = [
    ("merchant", "feed.tsv", h.MERCHANT_TSV),
    (
        "merchant",
        "feed.csv",
        '"id","title","price","image_link"\n"1","Red, tee","5 EUR","https://e.example/1.jpg"\n',
    ),
    ("merchant-xml", "feed.xml", h.MERCHANT_RSS),
    ("merchant-xml", "feed", h.MERCHANT_ATOM),
    ("shopify", "export.csv", h.SHOPIFY_OLD),
    ("shopify", "export.txt", h.SHOPIFY_NEW),
    ("meta", "catalogue.csv", h.META_CSV),
    ("jsonld", "page.json", h.JSONLD),
    ("jsonld", "page.html", f'<html><script type="application/ld+json">{h.JSONLD}</script></html>'),
    ("csv", "items.csv", h.GENERIC_CSV),
    ("agentic", "feed.jsonl", h.AGENTIC_JSONL),
    ("agentic", "feed.csv", h.AGENTIC_CSV),
    ("jsonl", "items.jsonl", '{"id": "1", "title": "a"}\n{"id": "2", "title": "b"}\n'),
    ("jsonl", "items.txt", '{"id": "1", "title": "a"}\n'),
    ("json", "items.json", '[{"id": "1", "title": "a"}]'),
]


@pytest.mark.parametrize(("dialect", "name", "text"), FEEDS)
def test_dialect_is_detected_and_read_in_any_packing(
    tmp_path: Path, dialect: str, name: str, text: str
) -> None:
    plain = h.write(tmp_path / name, text)
    assert detect(plain) == dialect
    found = h.products(plain)
    assert found
    assert all(product.title for product in found)
    data = text.encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("__MACOSX/._feed.csv", "x")
        file.writestr(f"export/{name}" + ("" if "." in name else ".xml"), data)
        file.writestr("READ.ME", "x")
    packings = {
        "gz": gzip.compress(data), "bz2": bz2.compress(data), "zst": pa.compress(data, "zstd", asbytes=True),
        "zip": archive.getvalue(),
    }  # fmt: skip
    for suffix, content in packings.items():
        packed = h.write(tmp_path / f"{name}.{suffix}", content)
        assert (suffix, detect(packed)) == (suffix, dialect)
        assert h.products(packed) == found
    if dialect not in ("merchant-xml", "json", "jsonld"):  # those declare UTF-8, or are UTF-8 by definition
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
            other = h.write(tmp_path / encoding / name, text, encoding)
            assert detect(other) == dialect
            assert [p.title for p in h.products(other)] == [p.title for p in found]


def test_merchant_tsv(tmp_path: Path) -> None:
    first, second = h.products(h.write(tmp_path / "feed.tsv", h.MERCHANT_TSV))
    assert first.id == "TEE-1"
    assert first.title == "Red tee & co"
    assert first.description == "Soft cotton."
    assert [image.url for image in first.images] == [f"https://cdn.example/1{n}.jpg" for n in ("", "b", "c")]
    assert [image.role for image in first.images] == ["main", "alternate", "alternate"]
    assert first.category == ("Apparel", "Tops", "Tees")
    assert (first.price, first.currency) == (12.99, "EUR")
    assert first.attributes == {"color": "Red", "Fabric": "Cotton"}
    assert (first.gtin, first.group_id, first.availability) == ("4006381333931", "TEE", "in_stock")
    assert first.extra["custom label 0"] == "summer"
    assert (second.price, second.currency) == (1299.0, "USD")
    assert second.category == ("Apparel & Accessories", "Clothing")  # no product type: Google's path
    assert second.gtin is None
    assert second.extra["gtin"] == "4006381333932"


def test_merchant_rss_and_atom(tmp_path: Path) -> None:
    first, second = h.products(h.write(tmp_path / "feed.xml", h.MERCHANT_RSS))
    assert first.title == "Red tee"  # g:title is meant for Merchant Center
    assert first.description == "Soft cotton."
    assert len(first.images) == 3
    assert first.attributes == {"color": "Red", "Fabric": "Cotton"}
    assert (first.price, first.currency) == (12.99, "EUR")  # not the shipping's price
    assert json.loads(first.extra["shipping"])["country"] == "DE"
    assert second.title == "Blue tee"  # structured_title
    (atom,) = h.products(h.write(tmp_path / "atom.xml", h.MERCHANT_ATOM))
    assert (atom.id, atom.title, atom.description) == ("TEE-1", "Red tee", "Soft cotton.")
    assert atom.link == "https://shop.example/1"


@pytest.mark.parametrize("text", [h.SHOPIFY_OLD, h.SHOPIFY_NEW], ids=["old", "new"])
def test_shopify_gives_one_product_per_look(tmp_path: Path, text: str) -> None:
    path = h.write(tmp_path / "export.csv", text)
    red, blue, mug = h.products(path)
    assert (red.id, blue.id, mug.id) == ("tee:red", "tee:blue", "mug")
    assert (red.group_id, blue.group_id) == ("tee", "tee")
    assert red.title == blue.title == "Tee"
    assert red.description == blue.description != ""
    assert blue.attributes["Color"].lower() == "blue"
    assert red.attributes["Size"] == "S, M"
    assert (red.price, red.extra["highest_price"]) == (20.0, "22")
    assert [v["sku"] for v in json.loads(red.extra["variants"])] == ["T-R-S", "T-R-M"]
    # own picture first, the gallery after it, never the picture of the other colour
    assert [image.url for image in red.images] == [
        f"https://cdn.example/{name}.jpg" for name in ("red", "front", "detail")
    ]
    assert blue.images[0].url == "https://cdn.example/blue.jpg"
    assert mug.category == ("Mugs",)
    assert "Title" not in mug.attributes
    assert sum(row.records for row in h.rows(path)) == 5


def test_shopify_sizes_with_own_pictures_stay_apart(tmp_path: Path) -> None:
    text = (
        "Handle,Title,Option1 Name,Option1 Value,Variant Price,Variant Image\n"
        "soap,Soap,Quantity,One,2.00,https://e.example/one.jpg\n"
        "soap,,,Five,9.00,https://e.example/five.jpg\n"
    )
    assert [p.id for p in h.products(h.write(tmp_path / "s.csv", text), "shopify")] == [
        "soap:one",
        "soap:five",
    ]


def test_shopify_bad_variant_leaves_its_siblings(tmp_path: Path) -> None:
    text = (
        "Handle,Title,Option1 Name,Option1 Value,Variant Price\n"
        "tee,Tee,Color,Red,-5.00\ntee,,,Blue,5.00\n,,,Green,5.00,too,many\ntee,,,Black,5.00\n"
    )
    rows = h.rows(h.write(tmp_path / "s.csv", text), "shopify")
    assert [row.number for row in rows if row.fatal] == [1, 3]
    assert [row.product.id for row in rows if row.product] == ["tee:blue", "tee:black"]
    assert sum(row.records for row in rows) == 4


def test_meta_paths_and_comments(tmp_path: Path) -> None:
    (product,) = h.products(h.write(tmp_path / "catalogue.csv", h.META_CSV))
    assert [image.url for image in product.images] == [
        "https://cdn.example/1.jpg",
        "https://cdn.example/1b.jpg",
    ]
    assert product.category == ("Clothing", "Tops")
    assert product.extra["image[0].tag[0]"] == "front"


def test_jsonld_graph_groups_and_references(tmp_path: Path) -> None:
    found = {product.id: product for product in h.products(h.write(tmp_path / "page.json", h.JSONLD))}
    assert set(found) == {"T-R", "T-B", "MUG"}  # neither the group itself nor the similar product
    red, blue, mug = found["T-R"], found["T-B"], found["MUG"]
    assert red.title == "Red tee"
    assert blue.title == "Tee"  # from the group
    assert red.group_id == blue.group_id == "TEE"
    assert red.brand == blue.brand == "Acme"  # by reference
    assert red.images[0].url == "https://cdn.example/red.jpg"
    assert (red.price, red.currency, red.availability) == (20.0, "EUR", "in_stock")
    assert (mug.title, mug.language, mug.price) == ("Becher", "de", 5.0)
    assert mug.attributes == {"volume": "0.3 l"}


@pytest.mark.parametrize(
    "text",
    [
        '{"@graph": [{"@id": "a", "@type": "ProductGroup", "name": "A", "hasVariant": {"@id": "a"}}]}',
        '{"@graph": [{"@id": "a", "@type": "ProductGroup", "name": "A", "hasVariant": {"@id": "b"}},'
        '{"@id": "b", "@type": "ProductGroup", "name": "B", "hasVariant": {"@id": "a"}}]}',
        '{"@graph": [{"@id": "a", "@type": "Product", "name": "A", "isVariantOf": {"@id": "b"}},'
        '{"@id": "b", "@type": "Product", "name": "B", "isVariantOf": {"@id": "a"}, "brand": {"@id": "b"}}]}',
        '{"@graph": [{"@id": "a", "@type": "Product", "name": {"@id": "a"}, "sku": "1",'
        ' "image": {"@id": "a"}}]}',
    ],
)
def test_jsonld_circles_end(tmp_path: Path, text: str) -> None:
    outcomes = h.rows(h.write(tmp_path / "circle.jsonld", text))
    assert outcomes
    assert all(row.product or row.fatal for row in outcomes)


def test_generic_table_understands_names_and_takes_a_mapping(tmp_path: Path) -> None:
    first, _ = h.products(h.write(tmp_path / "items.csv", h.GENERIC_CSV))
    assert first.id == "a-1"
    assert first.images[0].path == str(tmp_path / "pics" / "mug.jpg")
    assert first.category == ("Kitchen", "Mugs")
    assert (first.price, first.currency, first.gtin) == (5.5, "EUR", "4006381333931")
    assert first.attributes == {"Colour": "red"}
    assert first.extra == {"Stock shelf": "B7"}
    path = h.write(tmp_path / "own.csv", "nr,wording\n7,Red mug\n")
    (product,) = h.products(path, fields={"nr": "id", "wording": "title"})
    assert (product.id, product.title) == ("7", "Red mug")


def test_table_without_ids_is_numbered(tmp_path: Path) -> None:
    path = h.write(tmp_path / "captions.csv", "image,caption\na.jpg,Red mug\nb.jpg,Blue mug\n")
    assert [product.id for product in h.products(path)] == ["captions#1", "captions#2"]
    (remark,) = h.problems(path)
    assert not remark.fatal


def test_image_folder(tmp_path: Path) -> None:
    for name in ("shoes/boots/red-suede_boot.jpg", "shoes/IMG_0412.PNG", "notes.txt", ".hidden.jpg"):
        h.write(tmp_path / "shop" / name, b"x")
    assert detect(tmp_path / "shop") == "images"
    camera, boot = h.products(tmp_path / "shop")
    assert (boot.id, boot.title) == ("shoes/boots/red-suede_boot", "red suede boot")
    assert boot.category == ("shoes", "boots")
    assert boot.images[0].path == str(tmp_path / "shop/shoes/boots/red-suede_boot.jpg")
    assert (camera.id, camera.title) == ("shoes/IMG_0412", "")


def test_parquet_shapes(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table = {
        "id": ["a", "b", None],
        "title": ["Hoodie", "Socks", "Hat"],
        "category_path": [["Men", "Tops"], [], None],
        "attributes": [
            '{"climate": ["Cool", "Windy"], "eco": true, "price_usd": 52.0, "Brand": "Luma"}',
            "{}",
            "",
        ],
        "group": ["g", "g", "g"],
        "main_image": ["images/a-grey_main.jpg", None, None],
        "variants": [
            json.dumps(
                [
                    {"colour": "Grey", "image_paths": ["images/a-grey_main.jpg", "images/a-grey_back.jpg"]},
                    {"colour": "Red", "image_paths": ["images/a-red_main.jpg"]},
                ]
            ),
            None,
            None,
        ],
        "images": [
            [
                {"bytes": name.encode(), "path": name}
                for name in ("a-grey_main.jpg", "a-grey_back.jpg", "a-red_main.jpg")
            ],
            [],
            [],
        ],
        "stock": [3, None, 1],
    }
    pq.write_table(pa.table(table), path)
    rows = h.rows(path)
    first, second = (row.product for row in rows if row.product)
    assert first.category == ("Men", "Tops")
    assert first.attributes == {"climate": "Cool, Windy", "eco": "yes"}
    assert (first.brand, first.price, first.currency, first.group_id) == ("Luma", 52.0, "USD", "g")
    assert [image.role for image in first.images] == ["main", "back", "variant"]
    assert first.images[0].data == b"a-grey_main.jpg"
    assert first.extra["stock"] == "3"
    assert json.loads(first.extra["image_names"])[2] == "a-red_main.jpg"
    assert second.images == ()
    assert [(row.number, row.problems[0].field) for row in rows if row.fatal] == [(3, "id")]


def test_parquet_of_photos_and_of_single_images(tmp_path: Path) -> None:
    photos = tmp_path / "photos.parquet"
    pq.write_table(
        pa.table(
            {
                "product_id": ["p", "p"],
                "images": [[{"bytes": b"1", "path": None}], [{"bytes": b"2", "path": None}]],
            }
        ),
        photos,
    )
    assert [(p.id, p.group_id, p.images[0].data) for p in h.products(photos)] == [
        ("p#1", "p", b"1"),
        ("p#2", "p", b"2"),
    ]
    single = tmp_path / "single.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2"], "text": ["red", "blue"]}), single)
    assert [(p.title, p.images[0].data) for p in h.products(single)] == [("red", b"1"), ("blue", b"2")]


def test_shared_data_is_read_whole(shared_data: Path) -> None:
    luma = h.products(shared_data / "luma/products.parquet")
    assert len(luma) == 191
    assert len({image.data for product in luma for image in product.images}) == 715
    assert sum(image.role == "main" for product in luma for image in product.images) == 191
    assert all(product.price and product.currency == "USD" for product in luma)
    rows = {
        "fashion_products/validation-clear": 1264,
        "flipkart/validation": 96,
        "grocery/photos-validation": 296,
    }
    for name, expected in rows.items():
        found = list(read_feed(shared_data / f"{name}.parquet"))
        assert len(found) == expected
        assert all(isinstance(item, Product) for item in found)
