"""Made-up titles: what a rationale says stands in its title, and kinds come from the taxonomy."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moonshelf.prompts import read_rationale
from research.starter.readings import readings


def data(folder: Path) -> Path:
    (folder / "taxonomy").mkdir(parents=True)
    (folder / "text").mkdir()
    paths = ("Furniture > Sofas", "Apparel & Accessories > Clothing > Dresses", "Electronics")
    (folder / "taxonomy/categories.en.txt").write_text("# v\n" + "".join(f"g : {p}\n" for p in paths))
    values = (
        "Red [Color]", "Oak [Material]", "V-neck [Neckline]", "Other [Color]", "Striped [Pattern]",
        "Round [Shape]", "Female [Target gender]", "Modern [Style]", "Long [Sleeve length type]",
    )  # fmt: skip
    (folder / "taxonomy/attribute_values.en.txt").write_text("".join(f"g : {v}\n" for v in values))
    rows = [
        ("Acme Mug Blue", "mugs", {"Color": ["Blue"], "Material": ["Steel"], "Brand": ["Acme"]}),
        ("No category", "", {}),
    ]
    table = {
        "title": [t for t, _, _ in rows], "category": [c for _, c, _ in rows],
        "attributes": [json.dumps(a) for _, _, a in rows],
    }  # fmt: skip
    pq.write_table(pa.table(table), folder / "text/titles.parquet")
    return folder


def test_a_rationale_says_what_stands_in_its_title(tmp_path: Path) -> None:
    found = list(readings(data(tmp_path), copies=40))
    assert found[0] == ("Acme Mug Blue", "category: mugs; colour: blue")  # steel is not in the title
    made = [(title, read_rationale(f"<think>{said}</think>") or {}) for title, said in found[1:]]
    assert len(made) == 3 * 40
    kinds = {said["category"] for _, said in made}
    assert kinds == {"furniture > sofas", "apparel & accessories > dresses", "electronics"}
    for title, said in made:
        for key in said.keys() - {"category", "gender"}:  # a gender has a canonical word
            assert said[key] in title, (title, said)
    assert {"sofa" in t and "sofas" not in t for t, s in made if "sofas" in s["category"]} == {True, False}
    assert any("neckline" in said for _, said in made)
    assert not any("neckline" in said for _, said in made if "apparel" not in said["category"])
    assert not any("other" in title for title, _ in made)


def test_the_same_seed_gives_the_same_titles(tmp_path: Path) -> None:
    folder = data(tmp_path)
    assert list(readings(folder, seed=3)) == list(readings(folder, seed=3)) != list(readings(folder, seed=4))
