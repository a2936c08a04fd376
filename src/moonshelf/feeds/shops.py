"""Exports of shop systems: how they are recognised, and what in them is not said by the names of columns.

Most of an export is read by the names that every table may have (`columns.NAMES`). A `Shop` adds the names
that mean something else there, how categories are written, and how lines that belong to one product are told
apart.
Sources are the systems' own help pages and templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from moonshelf.feeds.columns import simple

Cells = Mapping[str, str]  # of one line, by `columns.simple` of the columns' names


@dataclass(frozen=True)
class Shop:
    """What is particular about one system's export."""

    name: str
    marks: frozenset[str]  # columns that tell this export
    least: int  # of them have to be there
    together: tuple[frozenset[str], ...] = ()  # or all of one of these
    columns: Mapping[str, str] = field(default_factory=dict)  # column -> what it fills here
    several: str = ""  # separates categories in one cell
    levels: str = ">"  # separates the levels of a category
    root: str = ""  # a level that says nothing
    # Canonical cells (`shopify.COLUMNS`) of a line, where several lines make one product.
    line: Callable[[Cells], dict[str, str]] | None = None
    # Other cells of a line, where each line is a product; the parent's line comes before its variants'.
    child: Callable[[Cells], str] | None = None  # the parent's name, or "" for no variant
    parent: Callable[[Cells], Iterable[str]] | None = None  # names by which variants call this line
    members: Callable[[Cells], list[str]] | None = None  # ids of a line's variants, which may come before it
    grouped: bool = False  # a line that has such names is the parent of a group
    slashed: bool = False  # pictures begin with a slash that is not the disk's root
    numbered: bool = False  # the number of the row serves as the id where there is none

    def paths(self, text: str) -> list[list[str]]:
        """Categories of a cell, each from its root to its leaf."""
        cells = re.split(rf"(?<!\\){re.escape(self.several)}", text) if self.several else [text]
        paths = []
        for cell in cells:
            levels = "/" if cell.strip().startswith("/") else self.levels
            names = [name.replace("\\,", ",").strip() for name in cell.split(levels)]
            paths.append([name for name in names if name and name.lower() != self.root])
        return [path for path in paths if path]

    def category(self, text: str) -> tuple[list[str], str]:
        """The longest category of a cell, the first of several, and the others as text."""
        paths = self.paths(text)
        best = max(paths, key=len, default=[])
        return best, " | ".join(" > ".join(path) for path in paths if path is not best)


def recognise(names: Iterable[str]) -> Shop | None:
    """The shop whose export has these columns, or None."""
    have = {simple(name) for name in names}
    found = [
        (len(have & shop.marks), shop)
        for shop in SHOPS
        if len(have & shop.marks) >= shop.least or any(names <= have for names in shop.together)
    ]
    return max(found, key=lambda item: item[0])[1] if found else None


def by_name(cells: Mapping[str, str]) -> dict[str, str]:
    """Cells by the simple names of their columns; of two columns of one name the first that is filled."""
    named: dict[str, str] = {}
    for name, cell in cells.items():
        if not named.get(simple(name)):
            named[simple(name)] = cell.strip()
    return named


def _first(cells: Cells, *names: str) -> str:
    return next((cell for name in names if (cell := cells.get(name, ""))), "")


def _numbered(cells: Cells, *names: str) -> str:
    """Filled cells of `name 1`, `name 2`, …, joined as a list of pictures is."""
    found = [cell for name in names for n in range(1, 31) if (cell := cells.get(name.format(n)))]
    return "|".join(found)


def _options(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = [(name.strip(), value.strip()) for name, value in pairs if name.strip() or value.strip()]
    return {
        f"option{n} {part}": text
        for n, pair in enumerate(named[:3], 1)
        for part, text in zip(("name", "value"), pair, strict=True)
    }


def _assigned(text: str, several: str, sign: str) -> list[tuple[str, str]]:
    """`Color=Red|Size=S` as pairs."""
    parts = [part.partition(sign) for part in text.split(several)]
    return [(name, value) for name, found, value in parts if found]


def _squarespace(cells: Cells) -> dict[str, str]:
    return {
        "handle": _first(cells, "product id", "product url") if cells.get("title") else "",
        "starts": "yes" if cells.get("title") else "",
        "title": cells.get("title", ""),
        "description": cells.get("description", ""),
        "category": cells.get("categories", ""),
        "sku": cells.get("sku", ""),
        "price": cells.get(
            "sale price" if cells.get("on sale", "").lower() in ("yes", "true") else "price", ""
        ),
        "image": cells.get("hosted image urls", ""),
        **_options(
            (cells.get(f"option name {n}", ""), cells.get(f"option value {n}", "")) for n in (1, 2, 3)
        ),
    }


_WIX_FILE = re.compile(r"[\w.~%-]+~mv2[\w.~%-]*\.\w{3,4}")


def _wix(cells: Cells) -> dict[str, str]:
    kind = cells.get("field type", "").lower()
    options = []
    for n in (1, 2, 3):
        value = _first(cells, f"product option description{n}", f"product option choices{n}")
        value = ";".join(re.sub(r"^#[0-9a-fA-F]{3,8}:", "", part) for part in value.split(";"))
        options.append((cells.get(f"product option name{n}", ""), value))
    images = [
        f"https://static.wixstatic.com/media/{name}" if _WIX_FILE.fullmatch(name) else name
        for name in _first(cells, "product image url", "media", "media url").split(";")
    ]
    return {
        "handle": _first(cells, "handle id", "handle", "sku" if kind == "product" else "handle"),
        "parent": "yes" if kind == "product" else "",
        "starts": "yes" if kind == "product" else "",
        "title": cells.get("name", ""),
        "description": _first(cells, "description", "plain description"),
        "brand": cells.get("brand", ""),
        "category": _first(cells, "collection", "collections"),
        "sku": cells.get("sku", ""),
        "barcode": cells.get("barcode", ""),
        "price": cells.get("price", ""),
        "image" if kind != "variant" else "variant image": "|".join(images),
        **_options(options),
    }


def _bigcommerce_old(cells: Cells) -> dict[str, str]:
    kind = cells.get("item type", "").lower()
    if kind != "product":
        found = (
            re.findall(r"\[[A-Z]+\]([^=]+)=([^,]*)", cells.get("product name", "")) if kind == "sku" else []
        )
        image = cells.get("product image file 1", "")
        sku = cells.get("product code sku", "") if kind == "sku" else ""
        return {"handle": "", "sku": sku, "variant image": image, **_options(found)}
    return {
        "handle": _first(cells, "product id", "product code sku"),
        "parent": "yes",
        "starts": "yes",
        "title": cells.get("product name", ""),
        "description": cells.get("product description", ""),
        "brand": cells.get("brand name", ""),
        "category": _first(cells, "category", "category string"),
        "sku": cells.get("product code sku", ""),
        "barcode": cells.get("product upc ean", ""),
        "price": _sale(cells.get("sale price", "")) or cells.get("price", ""),
        "image": _numbered(cells, "product image file {}"),
    }


def _sale(price: str) -> str:
    """The sale price where there is one: 0 says that there is none."""
    return price if price.strip("0.,") else ""


def _bigcommerce(cells: Cells) -> dict[str, str]:
    kind = cells.get("item", "").lower()
    image = _first(cells, "image url (import)", "internal image url (export)", "variant image url")
    if kind == "image":
        return {"handle": "", "image": image}
    if kind != "product":
        found = re.findall(r"Name=([^|]+)\|Value=([^|\[]+)", cells.get("options", ""))
        variant = {"handle": "", "sku": cells.get("sku", ""), "price": cells.get("price", "")}
        return {**variant, "variant image": image, **_options(found)} if kind == "variant" else {"handle": ""}
    return {
        "handle": _first(cells, "id", "sku"),
        "parent": "yes",
        "starts": "yes",
        "title": cells.get("name", ""),
        "description": cells.get("description", ""),
        "brand": _first(cells, "brand name", "brand"),
        "category": _first(cells, "categories", "category"),
        "sku": cells.get("sku", ""),
        "barcode": _first(cells, "gtin", "upc ean"),
        "mpn": _first(cells, "manufacturer part number", "mpn"),
        "price": _sale(cells.get("sale price", "")) or cells.get("price", ""),
        "image": image,
    }


def _ebay(cells: Cells) -> dict[str, str]:
    details = _first(cells, "relationship details", "variation details").strip("[]")
    pairs = _assigned(details, "|", "=") or _assigned(details, ",", ":")
    child = cells.get("relationship", "").lower() == "variation" or (bool(details) and not cells.get("title"))
    picture = _first(cells, "item photo url", "pic url", "picture url")
    label = _first(cells, "custom label (sku)", "custom label", "customlabel")
    line = {
        "handle": "" if child else _first(cells, "item number", "item id") or label,
        "sku": label,
        "barcode": _first(cells, "p:ean", "p:upc", "p:isbn"),
        "price": _first(cells, "current price", "start price", "price"),
        "variant image" if child else "image": re.sub(r"^[^=|]*=(?=http)", "", picture),
        **_options(pairs),
    }
    if not child:
        line |= {
            "parent": "yes",
            "starts": "yes",
            "title": cells.get("title", ""),
            "description": cells.get("description", ""),
            "brand": cells.get("c:brand", ""),
            "mpn": _first(cells, "c:mpn", "p:mpn"),
            "category": _first(cells, "category name", "e bay category 1 name"),
        }
    return line


def _woo_parent(cells: Cells) -> str:
    return cells.get("parent", "").removeprefix("id:") if "variation" in cells.get("type", "") else ""


def _woo_names(cells: Cells) -> Iterable[str]:
    return (cells.get("sku", ""), cells.get("id", "")) if "variable" in cells.get("type", "") else ()


def _amazon_parent(cells: Cells) -> str:
    parent = cells.get("parent sku", "")
    return parent if parent != _first(cells, "item sku", "seller sku") else ""


def _amazon_names(cells: Cells) -> Iterable[str]:
    kind = _first(cells, "parent child", "parentage", "parentage level").lower()
    return (_first(cells, "item sku", "seller sku"),) if kind == "parent" else ()


def _magento_members(cells: Cells) -> list[str]:
    return re.findall(r"(?:^|\|)sku=([^,|]+)", cells.get("configurable variations", ""))


def _akeneo_names(cells: Cells) -> Iterable[str]:
    return (_first(cells, "code", "sku", "identifier"),)


SHOPS = (
    Shop(
        "WooCommerce",
        frozenset((
            "is featured?", "visibility in catalog", "tax status", "in stock?", "backorders allowed?",
            "sold individually?", "regular price", "cross sells", "external url", "button text", "upsells",
            "attribute 1 name", "attribute 1 value(s)", "allow customer reviews?", "date sale price starts",
        )),
        2,
        (
            frozenset(("regular price", "categories")),
            frozenset(("type", "sku", "name", "categories")),
            frozenset(("type", "sku", "name", "published")),
        ),
        columns={"type": "extra", "parent": "group_id", "brands": "brand", "tax class": "extra",
                 "position": "extra"},
        several=",",
        child=_woo_parent,
        parent=_woo_names,
        grouped=True,
    ),
    Shop(
        "Magento",
        frozenset((
            "store view code", "attribute set code", "product websites", "configurable variations",
            "visibility", "additional attributes", "url key", "base image", "tax class name",
            "base image label", "thumbnail image",
        )),
        3,
        columns={
            "product type": "extra", "additional attributes": "attributes", "store view code": "extra",
            "country of manufacture": "extra", "small image": "extra", "thumbnail image": "extra",
        },
        several=",",
        levels="/",
        root="default category",
        members=_magento_members,
        slashed=True,
    ),
    Shop(
        "PrestaShop",
        frozenset((
            "active (0 1)", "price tax excluded", "price tax included", "on sale (0 1)",
            "supplier reference #", "price tax excluded or price tax included",
            "reference #", "ecotax", "url rewritten", "price (tax excl.)", "price (tax incl.)", "ean13",
            "meta keywords", "wholesale price", "text when in stock",
        )),
        2,
        columns={"status": "extra", "feature(name:value:position)": "attributes"},
        several=",",
        levels="/",
        root="home",
    ),
    Shop(
        "BigCommerce",
        frozenset((
            "item type", "product code sku", "option set", "product image file 1", "product upc ean",
            "allow purchases?", "product visible?", "bin picking number", "track inventory",
        )),
        3,
        several=";",
        levels="/",
        line=_bigcommerce_old,
    ),
    Shop(
        "BigCommerce",
        frozenset((
            "item", "options", "image url (import)", "internal image url (export)", "brand id",
            "inventory tracking",
            "channels", "is visible", "storefronts", "variant image url", "current stock",
        )),
        3,
        several=";",
        levels="/",
        line=_bigcommerce,
    ),
    Shop(
        "Squarespace",
        frozenset((
            "hosted image urls", "product page", "variant id", "option name 1", "option value 1", "on sale",
        )),
        3,
        several=",",
        levels="/",
        line=_squarespace,
    ),
    Shop(
        "Wix",
        frozenset((
            "handle id", "field type", "product image url", "product option name1", "discount mode", "ribbon",
            "surcharge", "additional info title1", "product option choices1", "plain description",
        )),
        2,
        several=";",
        line=_wix,
    ),
    Shop(
        "Etsy",
        frozenset((
            "currency code", "variation 1 type", "variation 1 name", "variation 1 values", "image1",
            "materials", "tags",
        )),
        3,
        columns={"materials": "attribute", "tags": "extra"},
        numbered=True,
    ),
    Shop(
        "Amazon",
        frozenset((
            "item sku", "feed product type", "external product id", "external product id type",
            "parent child",
            "main image url", "standard price", "other image url1", "parent sku", "parentage level",
        )),
        3,
        columns={"external product id": "gtin", "feed product type": "category",
                 "external product id type": "extra",
         "item type": "category", "item type keyword": "category", "your price": "price"},
        child=_amazon_parent,
        parent=_amazon_names,
        grouped=True,
    ),
    Shop(
        "eBay",
        frozenset((
            "custom label (sku)", "item number", "variation details", "e bay category 1 name", "relationship",
            "relationship details", "item photo url", "p:epid", "available quantity", "listing site",
            "start price", "condition id", "category id", "pic url", "custom label",
        )),
        3,
        levels=">",
        line=_ebay,
    ),
    Shop(
        "Akeneo",
        frozenset(("family", "groups", "enabled", "family variant", "parent", "categories")),
        3,
        columns={"parent": "group_id", "family": "extra", "groups": "extra", "picture": "images"},
        several=",",
        child=lambda cells: cells.get("parent", ""),
        parent=_akeneo_names,
    ),
)  # fmt: skip
