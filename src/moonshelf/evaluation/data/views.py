"""What a task shows of a product, and the words that would tell the answer.

An encoder sees products that hold only what their view shows: never the category, the attributes or the
brand, so no prompt can see the answer. A product takes part in a view only if it has what the view shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, TypeVar

from moonshelf import attributes
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.product import Product

T = TypeVar("T")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # scripts that put no space around words
_STOP = frozenset(("a", "and", "for", "free", "in", "items", "of", "on", "or", "the", "with"))

# A label alone, and in a context: their mean did as well as the better of the two with MiniLM on the
# fashion training split (colour .78 against .65 and .78, leaf .77 against .74 and .78, 600 titles).
TEMPLATES = {"category": ("{}", "a product in {}"), "colour": ("{}", "{} clothing or shoes")}
VIEWS = {"image": IMAGE, "text": TEXT, "image + text": BOTH}
HIDDEN = {"text, hidden": TEXT, "image + text, hidden": BOTH}  # words that tell the answer dropped


def view(product: Product, *, text: bool, image: bool, hide: frozenset[str] = frozenset()) -> Product:
    """The product as a task shows it: texts, pictures or both, and nothing else. `hide` drops words."""
    title, description = (product.title, product.description) if text else ("", "")
    if text and hide:  # a title of nothing but hidden words becomes a word that says nothing
        title, description = without(title, hide) or "product", without(description, hide)
    return Product(
        id=product.id, title=title, description=description, images=product.images if image else ()
    )


def views(products: Sequence[Product], name: str, hide: frozenset[str] = frozenset()) -> list[Product]:
    """The products in one of `VIEWS` or `HIDDEN`."""
    shown = {**VIEWS, **HIDDEN}[name]
    drop = hide if name in HIDDEN else frozenset()
    return [view(p, text="text" in shown, image="image" in shown, hide=drop) for p in products]


def readable(product: Product, reads: frozenset[str]) -> Product:
    """The product without what an encoder that `reads` so much does not see."""
    less: dict[str, Any] = {} if "image" in reads else {"images": ()}
    less |= {} if "text" in reads else {"title": "", "description": ""}
    return product.model_copy(update=less) if any(getattr(product, name) for name in less) else product


def shows(product: Product, reads: frozenset[str]) -> bool:
    """Whether a product has all of `reads`."""
    has_text = bool(product.title or product.description)
    return ("image" not in reads or bool(product.images)) and ("text" not in reads or has_text)


def stems(labels: Iterable[str]) -> frozenset[str]:
    """Stems of the words of labels and of the labels as one word (`tshirt`, `flipflop`), to be hidden."""
    found = set()
    for words in map(_WORD.findall, labels):
        found |= {_stem(word) for word in words if word.lower() not in _STOP} | {_stem("".join(words))}
    return frozenset(found - {""})


def without(text: str, hidden: frozenset[str]) -> str:
    """`text` without the words whose stem is hidden; pairs such as `T-Shirt` are also looked up as one.

    Stems of scripts without spaces between words are dropped wherever they stand.
    """
    if _UNSPACED.search(text):
        for stem in sorted((s for s in hidden if _UNSPACED.search(s)), key=len, reverse=True):
            text = text.replace(stem, " ")
    previous = None
    while text != previous:  # what is dropped can bring a pair together
        previous, text = text, _drop(text, hidden)
    return text


def _drop(text: str, hidden: frozenset[str]) -> str:
    words = list(_WORD.finditer(text))
    drop = {i for i, word in enumerate(words) if _hides(word[0], hidden)}
    for i in range(len(words) - 1):
        if _stem(words[i][0] + words[i + 1][0]) in hidden:
            drop |= {i, i + 1}
    for i in sorted(drop, reverse=True):  # from the end, so that places before stay
        text = f"{text[: words[i].start()]} {text[words[i].end() :]}"
    return " ".join(part for part in text.split() if _WORD.search(part))


def _hides(word: str, hidden: frozenset[str]) -> bool:
    return _stem(word) in hidden or _stem(attributes.normalise_value("colour", word)) in hidden


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word.lower())
    if re.search(r"(ch|sh|x|ss)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def label_of(product: Product, key: str, level: int = -1) -> str:
    """The category name at a level of the path, or the normalised value of an attribute; "" if none."""
    if key != "category":
        return attributes.canonical(product.attributes).get(key, "")
    if level == -1:
        return product.category[-1] if product.category else ""
    return product.category[level] if level < len(product.category) else ""


def group_of(product: Product) -> str:
    """What products that are one for a shopper share; a product without group is one of its own."""
    return product.group_id or f"alone: {product.id}"


def sample(rows: Sequence[T], limit: int | None, seed: int = 0) -> list[T]:
    """A seeded sample of at most `limit` rows, in their order; None takes all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(Random(seed).sample(range(len(rows)), limit))]
