"""Taxonomies: forms of files, what is found in them, values that are snapped, the map to Google's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.enrichment.categories import Words
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.errors import UserError
from moonshelf.feeds import read_feed
from moonshelf.model.encoders.instruct import KEYS, Reasoned, read_keys

SHARED = Path(__file__).parents[2] / "../shared/data/taxonomy"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="needs ../shared/data/taxonomy, which is not part of the project"
)


def shopify(folder: Path) -> Path:
    """A taxonomy of Shopify's shape, in two languages."""
    folder.mkdir()
    names = {
        "en": ("Apparel", "Shirts", "T-Shirts", "Lamps"),
        "de": ("Bekleidung", "Hemden", "T-Shirts", "Lampen"),
    }  # fmt: skip
    for language, (root, shirts, tees, lamps) in names.items():
        lines = ["# Categories", f"{GID}aa : {root}", f"{GID}aa-1   : {root} > {shirts}"]
        lines += [f"{GID}aa-1-1 : {root} > {shirts} > {tees}", f"{GID}hg : {lamps}"]
        (folder / f"categories.{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for language, blue in (("en", "Blue"), ("de", "Blau")):
        values = [
            f"gid://shopify/TaxonomyValue/1 : {blue} [Color]",
            "gid://shopify/TaxonomyValue/2 : Male [Target gender]",
        ]
        values += [
            "gid://shopify/TaxonomyValue/3 : Cotton [Fabric]",
            "gid://shopify/TaxonomyValue/4 : Grey [Color]",
        ]
        (folder / f"attribute_values.{language}.txt").write_text("\n".join(values), encoding="utf-8")
    (folder / "aa_apparel.yml").write_text(
        "- id: aa-1-1\n  attributes:\n  - color\n  - fabric\n  - target_gender\n  - neckline\n"
    )
    (folder / "shopify_1_to_google_1.txt").write_text(
        "→ Apparel > Shirts\n⇒ Clothing > Shirts & Tops\n\n"
        "→ Apparel > Shirts > T-Shirts\n⇒ Clothing > Shirts & Tops\n",
        encoding="utf-8",
    )
    return folder


GID = "gid://shopify/TaxonomyCategory/"


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("# of Google's\n1 - Animals\n3237 - Animals > Live Animals\n", "3237"),
        ("a7\tAnimals\nb9\tAnimals > Live Animals\n", "b9"),
        ("Animals\nAnimals > Live Animals\n", "Animals > Live Animals"),
        (f"{GID}ap : Animals\n{GID}ap-1 : Animals > Live Animals\n", "ap-1"),
    ],
)
def test_forms_of_files(tmp_path: Path, text: str, id: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    read = Taxonomy.read(tmp_path / "list.txt")
    for asked in (id, "animals > live animals", "Live Animals", f" {id} "):
        assert read.find(asked) == id
    assert read.text(id) == "Animals > Live Animals" and len(read.parents(id)) == 2
    assert read.column == "google_product_category" and read.attributes(id) == [] and not read.google


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    read = Taxonomy.read(shopify(tmp_path / "t"))
    with pytest.raises(UserError, match=r"no category '166' \(another taxonomy's number"):
        read.find("166")
    with pytest.raises(UserError, match="did you mean 'aa-1'"):
        read.find("Shrts")
    with pytest.raises(UserError, match=r"no categories\.pl\.txt: its languages are de, en"):
        Taxonomy.read(tmp_path / "t", "pl")
    (tmp_path / "twice.txt").write_text("1 - A\n1 - B\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes("Möbel".encode("latin-1"))
    for name, why in (
        ("twice", "comes twice"),
        ("empty", "is empty"),
        ("latin", "UTF-8"),
        ("none", "No such"),
    ):
        with pytest.raises(UserError, match=why):
            Taxonomy.read(tmp_path / f"{name}.txt")


def test_attributes_values_languages_and_google(tmp_path: Path) -> None:
    read = Taxonomy.read(shopify(tmp_path / "t"))
    german = Taxonomy.read(tmp_path / "t", "de")
    assert read.column == "product_category"
    assert read.attributes("aa-1-1") == ["color", "fabric", "target_gender", "neckline"]
    assert read.attribute_of("aa-1-1", "material") == "fabric"
    assert read.snap("aa-1-1", "colour", "dark blue") == ("color", "Blue", "gid://shopify/TaxonomyValue/1")
    assert read.snap("aa-1-1", "colour", "gray")[1] == "Grey"
    assert read.snap("aa-1-1", "gender", "men")[1] == "Male"
    assert read.snap("aa-1-1", "colour", "chartreuse") == (None,) * 3 == read.snap("aa", "colour", "blue")
    assert german.snap("aa-1-1", "colour", "blue") == ("color", "Blau", "gid://shopify/TaxonomyValue/1")
    assert german.text("aa-1") == "Bekleidung > Hemden" and german.find("Hemden") == read.find("Shirts")
    assert list(read.values("band_color")) == ["Blue", "Grey"]
    for one in (read, german):  # the map's own names are English
        assert (
            one.google["aa-1-1"] == "Clothing > Shirts & Tops"
            and one.of_google["Clothing > Shirts & Tops"] == "aa-1"
        )
    assert read.known(("apparel", "SHIRTS"), {}) == "aa-1" == read.known((), {"category_id": "aa-1"})
    assert read.known(("Footwear",), {"category_id": "166"}) is None


def test_words_find_names_in_any_script() -> None:
    words = Words(["Running Shoes", "T-Shirts", "Tischlampen", "衣類トップス", "ランニングシューズ"])
    for text, place in (("blue running shoe", 0), ("tshirt", 1), ("eine tischlampen", 2), ("シューズ", 4)):
        assert words.scores(text).argmax() == place, text
    assert not words.scores("xylophone").any()


@needs_shared
def test_the_real_taxonomy() -> None:
    read = Taxonomy.read(SHARED)
    assert len(read.paths) == 10_595 and len(read.google) > 10_000
    tee = read.find("gid://shopify/TaxonomyCategory/aa-1-13-8")
    assert "color" in read.attributes(tee) and read.snap(tee, "colour", "navy blue")[1] == "Navy"
    assert read.google[tee] == "Apparel & Accessories > Clothing > Shirts & Tops"
    for language in ("de", "es", "fr", "it", "ja", "pl", "zh-CN"):
        other = Taxonomy.read(SHARED, language)
        assert set(other.paths) == set(read.paths) and other.google[tee] == read.google[tee]


def test_an_instruct_model_is_asked_what_the_category_wants(tmp_path: Path) -> None:
    place, feed = str(shopify(tmp_path / "t")), tmp_path / "feed.csv"
    feed.write_text("id,title,category\n1,tee,Apparel > Shirts > T-Shirts\n2,lamp,Lamps\n3,box,Boxes\n")
    done = CliRunner().invoke(cli.app, ["taxonomy", place, "--keys", str(feed)])
    assert done.exit_code == 0, done.output
    (tmp_path / "keys.json").write_text(done.stdout)
    tee, lamp, _ = read_feed(feed)
    writer: Any = SimpleNamespace(name="stub", prompted=True)
    asking = Reasoned(None, writer, read_keys(tmp_path / "keys.json"))
    assert "Other keys: color, fabric, target gender, neckline." in asking.prompt_for(tee)
    assert ", ".join(KEYS) in asking.prompt_for(lamp)

    feed.write_text("id,title,category\n3,box,Boxes\n")
    failed = CliRunner().invoke(cli.app, ["taxonomy", place, "--keys", str(feed)])
    assert isinstance(failed.exception, UserError) and "names a category" in str(failed.exception)
