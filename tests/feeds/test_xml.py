"""XML of any shop: nested, repeated and attribute forms say the same, and nothing of an item is dropped."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import helpers as h
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.product import Product

A, B = "https://cdn.example/a.jpg", "https://cdn.example/b.jpg"


def read(tmp_path: Path, inside: str, item: str = "product", attributes: str = "") -> Product:
    text = f"<?xml version='1.0'?><shop><list><{item}{attributes}>{inside}</{item}></list></shop>"
    (product,) = h.products(h.write(tmp_path / "feed.xml", text))
    return product


@pytest.mark.parametrize(
    "pictures",
    [
        f"<image>{A}</image><image>{B}</image>",
        f"<images><image>{A}</image><image>{B}</image></images>",
        f"<images><image url='{A}'/><image url='{B}'/></images>",
        f"<image url='{A}'/><image src='{B}'/>",
        f"<images><image><url>{A}</url><alt>x</alt></image><image><url>{B}</url></image></images>",
        f"<images><img>{A}</img><img>{B}</img></images>",
        f"<picture>{A}</picture><picture>{B}</picture>",
        f"<photos><photo main='1'>{A}</photo><photo>{B}</photo></photos>",
        f"<image>{A}</image><additional_image_link>{B}</additional_image_link>",
        f"<IMAGE>{A}</IMAGE><image2>{B}</image2>",
        f"<image>{A}</image><enclosure type='image/jpeg' url='{B}'/>",
        f"<m:content xmlns:m='http://search.yahoo.com/mrss/' url='{A}' medium='image'/><image>{B}</image>",
    ],
)
def test_pictures_in_every_form(tmp_path: Path, pictures: str) -> None:
    product = read(tmp_path, f"<id>1</id><title>Mug</title>{pictures}")
    assert {ref.url for ref in product.images} == {A, B}


@pytest.mark.parametrize(
    "category",
    [
        "<category>Home</category><category>Mugs</category>",
        "<categories><category>Home</category><category>Mugs</category></categories>",
        "<category id='1'>Home</category><category id='2'>Mugs</category>",
        "<categories><category name='Home'/><category name='Mugs'/></categories>",
        "<categories><category><id>1</id><name>Home</name></category><category><name>Mugs</name></category></categories>",
        "<category>Home &gt; Mugs</category><category>Sale &gt; Mugs</category>",
        "<category><![CDATA[Home > Mugs]]></category>",
    ],
)
def test_categories_in_every_form(tmp_path: Path, category: str) -> None:
    product = read(tmp_path, f"<id>1</id><title>Mug</title>{category}")
    assert product.category == ("Home", "Mugs")
    assert ("Sale" in category) == (product.extra.get("other_categories") == "Sale > Mugs")


@pytest.mark.parametrize(
    "attributes",
    [
        "<param name='Color'>Red</param><param name='Sizes'>S</param><param name='Sizes'>M</param>",
        "<PARAM><PARAM_NAME>Color</PARAM_NAME><VAL>Red</VAL></PARAM><PARAM><PARAM_NAME>Sizes</PARAM_NAME>"
        "<VAL>S, M</VAL></PARAM>",
        "<attributes><attribute name='Color' value='Red'/>"
        "<attribute name='Sizes' value='S, M'/></attributes>",
        "<attributes><attribute><name>Color</name><value>Red</value></attribute><attribute><name>Sizes</name>"
        "<value>S</value><value>M</value></attribute></attributes>",
        "<attributes><Color>Red</Color><Sizes>S</Sizes><Sizes>M</Sizes></attributes>",
    ],
)
def test_attributes_in_every_form(tmp_path: Path, attributes: str) -> None:
    product = read(tmp_path, f"<id>1</id><title>Mug</title>{attributes}")
    assert product.attributes == {"Color": "Red", "Sizes": "S, M"}


@pytest.mark.parametrize(
    "text",
    [
        "<title xml:lang='en'>Red mug</title><title xml:lang='de'>Rote Tasse</title>",
        "<title><en>Red mug</en><de>Rote Tasse</de></title>",
        "<name><language id='1'>Red mug</language></name>",
        "<title type='html'>Red mug</title>",
        "<title><![CDATA[Red mug]]></title>",
        "<title>Red <b>mug</b></title>",
    ],
)
def test_titles_in_every_form(tmp_path: Path, text: str) -> None:
    product = read(tmp_path, f"<id>1</id>{text}")
    assert product.title == "Red mug"
    assert ("Rote" in text) == (product.extra.get("title (de)") == "Rote Tasse")


@pytest.mark.parametrize(
    "price",
    [
        "<price currency='EUR'>9.90</price>",
        "<price><value>9.90</value><currency>EUR</currency></price>",
        "<price value='9.90' currency='EUR'/>",
        "<prices><x/></prices><price>9.90</price><currency>EUR</currency>",
        "<price currency='EUR'>9.90</price><price currency='USD'>12</price>",
    ],
)
def test_prices_in_every_form(tmp_path: Path, price: str) -> None:
    product = read(tmp_path, f"<id>1</id><title>Mug</title>{price}")
    assert (product.price, product.currency) == (9.9, "EUR")


@pytest.mark.parametrize(
    "item", ["product", "item", "offer", "SHOPITEM", "Artikel", "article", "thing", "ware"]
)
def test_items_of_any_name_and_with_attributes(tmp_path: Path, item: str) -> None:
    product = read(tmp_path, "<title>Mug</title><price>9</price>", item, " id='7' sku='a' available='true'")
    assert (product.id, product.title, product.extra["available"]) == ("7", "Mug", "true")
    whole = read(tmp_path, "", item, f" id='7' name='Mug' url='https://e.example/7' image='{A}' price='9'")
    assert (whole.id, whole.title, whole.price, len(whole.images)) == ("7", "Mug", 9.0, 1)


def test_a_plain_element_beside_googles_is_kept(tmp_path: Path) -> None:
    text = (
        "<rss xmlns:g='http://base.google.com/ns/1.0'><channel><item><id>9</id><g:id>1</g:id><title>Plain</title>"
        "<g:title>Official</g:title><note>a</note><note>b</note></item></channel></rss>"
    )
    (product,) = h.products(h.write(tmp_path / "feed.xml", text))
    assert (product.id, product.title) == ("1", "Official")
    assert set(product.extra.values()) == {"9", "Plain", "a, b"}


WORDS = st.text("ab é<&'\"\n", min_size=1, max_size=8).map(lambda text: "w" + text.strip())
NAMES = st.sampled_from(["note", "image", "category", "color", "param", "title", "x"])
TREES = st.recursive(
    WORDS.map(escape),
    lambda inner: st.lists(
        st.tuples(NAMES, st.sampled_from(["", " a='wa'", " url='wu.jpg'"]), inner), max_size=3
    ).map(lambda parts: "".join(f"<{name}{extra}>{text}</{name}>" for name, extra, text in parts)),
    max_leaves=6,
)


@given(TREES)
def test_no_word_of_an_item_is_lost(tmp_path_factory: pytest.TempPathFactory, tree: str) -> None:
    import re
    from html import unescape

    text = f"<shop><product><id>1</id><description>d</description><data>{tree}</data></product></shop>"
    path = h.write(tmp_path_factory.mktemp("xml") / "f.xml", text)
    (product,) = h.products(path)
    kept = product.model_dump_json()
    for word in re.findall(r">([^<>]+)<", text):
        for part in unescape(word).split():
            assert part.encode("unicode_escape") and (
                part in kept or part.replace('"', '\\"') in kept or '"' in part
            )
