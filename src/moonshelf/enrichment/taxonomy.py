"""Taxonomies of product categories: Shopify's, Google's, or a list of one's own; nothing of them is shipped.

A taxonomy is a file of lines, each an id and a path: `gid://shopify/TaxonomyCategory/aa : Apparel`, `166 -
Apparel & Accessories`, `id<TAB>A > B`, or a path alone, which is then its own id. A folder of Shopify's also
holds other languages, attributes, values, and the map to Google's.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from moonshelf.attributes import canonical_key, normalise_value
from moonshelf.errors import UserError
from moonshelf.files import read_regular
from moonshelf.product import Product

CategoryPath = tuple[str, ...]  # names from the root to the leaf

_MAX_BYTES = 64 * 2**20  # of one file; the largest of Shopify's has 2 MB
_LINES = tuple(
    map(re.compile, (r"gid://\S+/(\S+)\s+:\s+(.+)", r"(\d+) - (.+)", r"([^\t]+)\t(.+)", r"((.+))"))
)
_VALUE = re.compile(r"(gid://\S+)\s+:\s+(.*) \[(.+)\]")
_SEXES = {"boys": "men", "girls": "women"}  # taxonomies keep the age apart


class Taxonomy:
    """Categories by id, in the order of the file.

    Examples:
        >>> shop = Taxonomy("mine", {"1": ("Clothing",), "2": ("Clothing", "Jackets")})
        >>> shop.find("clothing > jackets"), shop.parents("2")
        ('2', ['1', '2'])
    """

    def __init__(
        self, name: str, paths: Mapping[str, CategoryPath], folder: Path | None = None, language: str = "en"
    ) -> None:
        self.name, self.paths, self.folder, self.language = name, dict(paths), folder, language
        self.by_path = {_plain(path): id for id, path in reversed(self.paths.items())}
        self._schemas: dict[str, dict[str, list[str]]] = {}

    @classmethod
    def read(cls, place: str | Path, language: str = "en") -> Taxonomy:
        """A file, or a folder of Shopify's with names in `language`. Raises UserError if it is neither."""
        place = Path(place)
        file = place / f"categories.{language}.txt" if place.is_dir() else place
        if place.is_dir() and not file.is_file():
            known = ", ".join(sorted(one.name.split(".")[1] for one in place.glob("categories.*.txt")))
            raise UserError(
                f"{place} has no {file.name}: its languages are {known or 'none, so it is no taxonomy'}."
            )
        lines = _lines(file)
        form = next(form for form in _LINES if all(map(form.fullmatch, lines)))
        pairs = [match.groups() for line in lines if (match := form.fullmatch(line))]
        paths = {id.strip(): tuple(_steps(path)) for id, path in pairs}
        if not paths or len(paths) < len(lines):
            why = "an id comes twice" if paths else "it is empty"
            form_of = "give one category a line, as `id<TAB>A > B` or as `A > B`"
            raise UserError(f"{file.name} is no taxonomy, {why}: {form_of}.")
        return cls("shopify", paths, place, language) if place.is_dir() else cls(place.name, paths)

    @property
    def column(self) -> str:
        """The column of a feed that holds a category of this taxonomy."""
        return "product_category" if self.folder else "google_product_category"

    @cached_property
    def digest(self) -> str:
        """SHA-256, 16 hex digits, of ids and paths."""
        text = "\n".join(f"{id} {self.text(id)}" for id in self.paths)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def text(self, id: str) -> str:
        return " > ".join(self.paths[id])

    def find(self, text: str) -> str:
        """The id of a category by id, path (Google's too, by the map), or its own name where only one has it.

        Raises UserError, with what comes near, if there is none.
        """
        wanted = text.strip().removeprefix("gid://shopify/TaxonomyCategory/")
        leaves: dict[str, list[str]] = defaultdict(list)
        for id, path in self.paths.items():
            leaves[path[-1].lower()].append(id)
        named = leaves.get(wanted.lower(), [])
        here = wanted if wanted in self.paths else self.by_path.get(_plain(_steps(wanted)))
        if found := here or (named[0] if len(named) == 1 else self.of_google.get(wanted)):
            return found
        near = named or [
            id for one in difflib.get_close_matches(wanted.lower(), leaves, 3) for id in leaves[one]
        ]
        hint = (
            f": did you mean {' or '.join(f'{id!r} ({self.text(id)})' for id in near[:3])}?" if near else "."
        )
        number = " (another taxonomy's number, or another version's)" if wanted.isdigit() else ""
        raise UserError(f"the taxonomy {self.name} has no category {text.strip()[:80]!r}{number}{hint}")

    def known(self, path: CategoryPath, extra: Mapping[str, str]) -> str | None:
        """The id of the category that a product names by path, or by the number in `extra`; else None."""
        number = extra.get("category_id", "")
        return number if number in self.paths else self.by_path.get(_plain(path))

    def parents(self, id: str) -> list[str]:
        """Ids from the root down to the category itself; steps that the file does not list are left out."""
        path = _plain(self.paths[id])
        return [one for depth in range(1, len(path) + 1) if (one := self.by_path.get(path[:depth]))]

    # ---- attributes and their values, of Shopify's folder -------------------------------------------

    def attributes(self, id: str) -> list[str]:
        """What the category's schema asks for, such as `sleeve_length_type`; empty for other taxonomies."""
        vertical = id.split("-")[0]
        if self.folder and vertical not in self._schemas:
            self._schemas[vertical] = _read_schemas(self.folder, vertical)
        return self._schemas.get(vertical, {}).get(id, [])

    def attribute_of(self, id: str, key: str) -> str | None:
        """The attribute of a category's schema that one of our keys stands for: colour is `color`."""
        keys = {canonical_key(name.replace("_", " ")): name for name in reversed(self.attributes(id))}
        return keys.get(canonical_key(key))

    def values(self, attribute: str) -> dict[str, str]:
        """English name -> id of the values that an attribute may have; of `band_color` those of `color`."""
        parts = attribute.split("_")
        tails = ("_".join(parts[start:]) for start in range(len(parts)))
        return next((self._values[tail] for tail in tails if tail in self._values), {})

    def snap(self, id: str, key: str, value: str) -> tuple[str | None, str | None, str | None]:
        """(attribute, name, id) of the allowed value that a value is a kind of: `dark blue` is `Blue`."""
        attribute = self.attribute_of(id, key)
        allowed = {normalise_value(key, name): gid for name, gid in self.values(attribute or "").items()}
        written = normalise_value(key, value)
        # Of several words the last says what it is: light blue, faux leather, crew neck.
        tails = [" ".join(written.split()[start:]) for start in range(len(written.split()))]
        found = next((allowed[one] for one in (*tails, _SEXES.get(written, "")) if one in allowed), None)
        return (attribute, self._value_names[found], found) if found else (None, None, None)

    @cached_property
    def _values(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for id, name, attribute in self._value_lines("en"):
            found[re.sub("[ -]", "_", attribute.lower())][name] = id
        return found

    @cached_property
    def _value_names(self) -> dict[str, str]:
        return {id: name for one in ("en", self.language) for id, name, _ in self._value_lines(one)}

    def _value_lines(self, language: str) -> list[tuple[str, str, str]]:
        """(id, name, attribute) of all values."""
        file = self.folder / f"attribute_values.{language}.txt" if self.folder else None
        matches = map(_VALUE.fullmatch, _lines(file)) if file and file.is_file() else ()
        return [(match[1], match[2], match[3]) for match in matches if match]

    def keys(self, products: Iterable[Product]) -> dict[str, list[str]]:
        """What the schemas of these products' categories ask for, by the category's own name.

        As `embed --writer-keys` takes it; categories that the taxonomy does not know are left out.
        """
        ids = {self.known(product.category, product.extra) for product in products}
        asked: dict[str, dict[str, None]] = defaultdict(dict)  # of two categories of one name both schemas
        for id in sorted(filter(None, ids)):
            asked[self.paths[id][-1]] |= {name.replace("_", " "): None for name in self.attributes(id)}
        return {name: list(names) for name, names in asked.items() if names}

    # ---- Shopify's and Google's ---------------------------------------------------------------------

    @cached_property
    def google(self) -> dict[str, str]:
        """Google's path for each of Shopify's ids; empty without the map."""
        found, id = dict[str, str](), None
        english = Taxonomy.read(self.folder).by_path if self.folder else {}  # the map's names are English
        for file in sorted(self.folder.glob("shopify_*_to_google_*.txt"))[-1:] if self.folder else ():
            for arrow, _, path in (line.partition(" ") for line in _lines(file)):
                id = english.get(_plain(_steps(path))) if arrow == "→" else id
                if arrow == "⇒" and id:
                    found[id] = path.strip()
        return found

    @cached_property
    def of_google(self) -> dict[str, str]:
        """Shopify's id for each of Google's paths: of several the one that is highest up."""
        deepest_first = sorted(self.google.items(), key=lambda one: -len(self.paths[one[0]]))
        return {path: id for id, path in deepest_first}


def _steps(path: str) -> list[str]:
    return [step.strip() for step in path.split(">")]


def _plain(path: Iterable[str]) -> CategoryPath:
    return tuple(step.lower() for step in path)


def _lines(file: Path) -> list[str]:
    try:
        text = read_regular(file, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file.name} is no text in UTF-8: save it as UTF-8 and give it again.") from None
    except OSError as error:
        raise UserError(f"{file} is no file of a taxonomy: {error.strerror or 'it is too large'}.") from None
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _read_schemas(folder: Path, vertical: str) -> dict[str, list[str]]:
    """Attributes by category of one part of Shopify's (`aa_apparel_accessories.yml`), packed or not."""
    import yaml

    texts = [read_regular(path, _MAX_BYTES) for path in folder.glob(f"**/{vertical}_*.yml")]
    for archive in folder.glob("*.zip"):
        with zipfile.ZipFile(archive) as file:
            wanted = [one for one in file.infolist() if Path(one.filename).name.startswith(f"{vertical}_")]
            texts += [file.read(one) for one in wanted if one.file_size < _MAX_BYTES]
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    records = [record for text in texts for record in yaml.load(text, loader) or ()]
    return {str(one["id"]): list(map(str, one["attributes"])) for one in records}
