"""What a rationale states, who shares a group, and what a phrase promises."""

from __future__ import annotations

import json

from moonshelf.product import ImageRef, Product
from moonshelf.prompts import read_rationale
from moonshelf.training.sources.pairs import Query, facts_of, items_of, join_photos, leaf, synthetic_query

PICTURE = ImageRef(data=b"x")
SHOE = Product(
    id="s",
    title="Nike Men Red Running Shoes",
    category=("Footwear", "Shoes", "Sports Shoes"),
    attributes={"usage": "Sports", "baseColour": "Red", "season": "Summer", "year": "2012", "gender": "Men",
                "Weight": "300 g", "Model Name": "Zoom"},
    images=(PICTURE,),
    group_id="g",
)  # fmt: skip


def test_facts_are_what_a_picture_or_title_can_show_in_a_fixed_order() -> None:
    assert list(facts_of(SHOE).items()) == [("colour", "red"), ("gender", "men"), ("use", "sports")]


def test_a_rationale_reads_back() -> None:
    (item,) = items_of(SHOE)
    assert read_rationale(item.rationale) == {
        "category": "footwear > shoes > sports shoes", "colour": "red", "gender": "men", "use": "sports"
    }  # fmt: skip
    assert (item.group, leaf(item.category)) == ("g", "sports shoes")


def test_colour_variants_become_items_with_their_own_pictures() -> None:
    variants = [
        {"colour": "Black", "image_paths": ["images/a-black.jpg"]},
        {"colour": "Red", "image_paths": ["images/a-red.jpg", "images/a-red-back.jpg"]},
        {"colour": "Blue", "image_paths": ["images/lost.jpg"]},
    ]
    pictures = tuple(ImageRef(data=name) for name in (b"black", b"red", b"back"))
    product = Product(
        id="p", title="Hoodie", images=pictures, attributes={"colour": "any", "material": "Wool"},
        extra={"variants": json.dumps(variants),
               "image_names": json.dumps(["a-black.jpg", "a-red.jpg", "a-red-back.jpg"])},
    )  # fmt: skip
    black, red = items_of(product)
    assert (black.id, black.facts["colour"], [i.data for i in black.images]) == (
        "p#black",
        "black",
        [b"black"],
    )
    assert (red.group, red.facts["material"], [i.data for i in red.images]) == (
        "p",
        "wool",
        [b"red", b"back"],
    )


def test_extra_photos_join_the_item_of_their_group() -> None:
    catalogue = list(items_of(SHOE))
    photos = [
        Product(id="g#1", group_id="g", images=(ImageRef(data=b"phone"),)),
        Product(id="h#1", group_id="unknown", images=(PICTURE,)),
    ]
    (joined,) = join_photos(catalogue, photos)
    assert (joined.id, joined.title, [i.data for i in joined.images]) == ("g#1", SHOE.title, [b"phone", b"x"])


def test_a_phrase_is_true_of_its_item_and_of_others_that_share_its_facts() -> None:
    (item,) = items_of(SHOE)
    query = synthetic_query(item, ["colour", "category"])
    assert query.text == "red sports shoes" and query.holds(item)
    (blue,) = items_of(SHOE.model_copy(update={"attributes": {"baseColour": "Blue"}}))
    assert not query.holds(blue)
    assert synthetic_query(blue, ["category"]).holds(item)
    top = synthetic_query(item, ["category"], level=0)
    assert top.text == "footwear" and top.holds(blue)
    assert not Query("apparel", facts=frozenset({("category", "apparel")})).holds(blue)


def test_words_of_a_title_are_answered_by_titles_that_hold_them_and_a_picture_by_its_item_only() -> None:
    (item,) = items_of(SHOE)
    (other,) = items_of(SHOE.model_copy(update={"title": "Puma men RED running shoes", "group_id": "h"}))
    assert Query("red shoes", words=frozenset({"red", "shoes"})).holds(other)
    assert not Query("nike", words=frozenset({"nike"})).holds(other)
    assert not Query("red shoes", picture=True).holds(other)
    assert not Query(picture=True).holds(item)
