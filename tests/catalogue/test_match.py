"""Two lists, one to one, with margin and reasons; decisions hold, a stopped run goes on, nothing is lost."""

from __future__ import annotations

import csv
import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue.matching import match as matching
from moonshelf.catalogue.matching import score
from moonshelf.catalogue.matching.evidence import FEATURES
from moonshelf.catalogue.matching.lists import read_list
from moonshelf.catalogue.matching.match import LOW, assign, match
from moonshelf.product import Product

A = """id,title,brand,gtin,price
1,Sony Cyber-shot DSC-W150/R 8.1 megapixels red,Sony,,199
2,Sony Cyber-shot DSC-W170/B black,Sony,,249
3,Fizz Cola 6 x 0.33 l,Fizz,04252614,4.99
4,Acme cotton shirt XL,Acme,4006381333931,20
5,Garden hose 20 m green,Hozer,,30
"""
B = """sku,name,manufacturer,ean,price
x2,DSCW170B Sony digital camera black,SONY,,239
x1,SONY dscw150r digital camera 8.1MP,SONY,,205
x3,Cola Fizz 330ml six pack,Fizz,042100005264,5.10
x4,Cotton shirt Acme,ACME,04006381333931,21
x6,Blue ceramic mug,Mugs,,9
"""


def lists(folder: Path, a: str = A, b: str = B) -> tuple[Path, Path]:
    paths = folder / "a.csv", folder / "b.csv"
    for path, text in zip(paths, (a, b), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def run(a: Path, b: Path, out: Path, *options: str):
    return CliRunner().invoke(cli.app, ["match", str(a), str(b), "-o", str(out), *options])


def found(a: Path, b: Path, out: Path, *options: str) -> dict:
    result = run(a, b, out, *options, "--json")
    assert result.exit_code in (0, 3), result.output
    return json.loads(result.stdout)


def pairs(report: dict) -> dict[str, str]:
    return {row["a_id"]: row["b_id"] for row in report["matches"]}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_products_find_their_partners(tmp_path):
    report = found(*lists(tmp_path), tmp_path / "out")
    assert {"1": "x1", "2": "x2", "3": "x3", "4": "x4"}.items() <= pairs(report).items()
    rows = {row["a_id"]: row for row in report["matches"]}
    assert rows["4"]["level"] == "high" and "same gtin" in rows["4"]["why"]
    assert rows["3"]["score"] >= 0.49 and "same gtin" in rows["3"]["why"]  # a UPC-E and its UPC-A
    assert "both name dscw150r" in rows["1"]["why"]
    assert {("A", "5"), ("B", "x6")} <= {(row["list"], row["id"]) for row in report["unmatched"]}
    assert table(tmp_path / "out/matches.csv")[0]["a_id"] == "1"
    assert not (tmp_path / "out/parts").exists()
    text = run(*lists(tmp_path), tmp_path / "out").output
    assert "Matched:" in text and "no vectors of one model" in text.replace("\n", " ")


def test_each_product_is_in_one_list_or_the_other(tmp_path):
    report = found(*lists(tmp_path), tmp_path / "out")
    for name, n in (("A", 5), ("B", 5)):
        matched = [row[f"{name.lower()}_id"] for row in report["matches"]]
        alone = [row["id"] for row in report["unmatched"] if row["list"] == name]
        assert len({*matched, *alone}) == len(matched) + len(alone) == n


def test_rules_stand_above_the_trees(tmp_path):
    gtin, other, case = "4006381333931", "4006381333948", "14006381333938"
    head = "id,title,gtin\n"
    name = "Acme Superclean 3000 vacuum cleaner blue"
    same = found(
        *lists(tmp_path, f"{head}1,{name},{gtin}\n", f"{head}9,Staubsauger,{gtin}\n"), tmp_path / "o"
    )
    assert same["matches"][0]["score"] >= score.SURE and same["levels"] == {"high": 1}
    for b in (other, case):  # two articles; a case of the article
        assert found(*lists(tmp_path, f"{head}1,{name},{gtin}\n", f"{head}9,{name},{b}\n"), tmp_path / "o")[
            "matches"
        ] == []  # fmt: skip
    packs = lists(tmp_path, f"{head}1,{name} 6 x 1 l,\n", f"{head}9,{name} 12 x 1 l,\n")
    assert all(row["score"] <= score.UNSURE for row in found(*packs, tmp_path / "o")["matches"])


def test_one_gtin_on_many_products_is_never_high(tmp_path):
    a = "id,title,gtin\n1,Red mug,4006381333931\n2,Red mug large,4006381333931\n"
    report = found(*lists(tmp_path, a, "id,title,gtin\n9,Red mug,4006381333931\n"), tmp_path / "out")
    assert "A: 1 GTINs stand on more than one product, together on 2" in report["notes"][0]
    assert report["levels"] == {"medium": 1}
    assert "this GTIN is on several products" in report["matches"][0]["why"]


def test_decisions_hold(tmp_path):
    paths, out = lists(tmp_path), tmp_path / "out"
    found(*paths, out)
    review = out / "review.csv"
    review.write_text("decision;a_id;b_id\nno;1;x1\nYES;5;x6\nyes;77;x1\n", encoding="utf-8-sig")  # of Excel
    for _ in range(2):  # and in the run after the next
        report = found(*paths, out)
        assert pairs(report)["5"] == "x6" and pairs(report).get("1") != "x1"
        assert report["levels"]["decided"] == 1
        assert "1 decisions are about products that are not in both lists" in " ".join(report["notes"])
        assert [row["decision"] for row in table(review)[:3]] == ["no", "YES", "yes"]
    review.write_text("decision,a_id,b_id\nperhaps,1,x1\n", encoding="utf-8")
    result = run(*paths, out)
    assert result.exception is not None and "not 'perhaps'; mend that line" in str(result.exception)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "_PART", 2)
    a, b = (read_list(path) for path in lists(tmp_path))
    asked: list[int] = []
    trees = score.trees()

    class Counted:
        value, line = trees.value, trees.line

        def probability(self, rows):
            asked.append(len(rows))
            return trees.probability(rows)

    monkeypatch.setattr(score, "trees", Counted)
    whole = match(a, b, tmp_path / "whole")
    n = sum(asked)
    asked.clear()

    def stop(rows: int, share: float | None) -> None:
        if rows == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        match(a, b, tmp_path / "out", progress=stop)
    assert match(a, b, tmp_path / "out").matches == whole.matches
    assert sum(asked) == n  # nothing twice
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        match(a, b, tmp_path / "out", progress=stop)
    lists(tmp_path, A.replace("Garden", "Gardening"))
    match(read_list(tmp_path / "a.csv"), b, tmp_path / "out")
    assert sum(asked) == n + 4  # other lists: all anew


def test_vectors_of_one_model_find_what_words_do_not(tmp_path):
    for name, title in (("a", "kettle"), ("b", "kettle")):
        shelf = Catalogue.create(tmp_path / name, FakeModel())
        shelf.embed([Product(id=f"{name}{i}", title=f"{title} {i}") for i in range(3)])
    both = [read_list(tmp_path / name) for name in ("a", "b")]
    report = match(*both, tmp_path / "out", neighbours=3)
    assert report.compared == 9 and not any("vectors" in note for note in report.notes)


# ---- what is wrong with lists ----------------------------------------------------------------------


def test_two_lists_of_one_product_each(tmp_path):
    head = "id,title\n"
    report = found(*lists(tmp_path, f"{head}1,Nikon D90\n", f"{head}1,Nikon D90\n"), tmp_path / "out")
    assert (report["a"], report["b"]) == (1, 1) and len(report["matches"]) == 1


def test_two_lists_with_one_id_each(tmp_path):
    a = "id,title\nshop,Nikon D90 camera\nshop,Canon EOS 5D camera\nshop,Mug\n"
    b = "id,title\nfeed,Canon EOS 5D\nfeed,Nikon D90\n"
    report = found(*lists(tmp_path, a, b), tmp_path / "out")
    assert pairs(report) == {"shop (row 1)": "feed (row 2)", "shop (row 2)": "feed (row 1)"}
    assert "3 rows share their id with another ('shop' stands 3 times)" in report["notes"][0]
    assert [row["id"] for row in report["unmatched"]] == ["shop (row 3)"]


def test_an_equal_id_is_no_evidence(tmp_path):
    a, b = "id,title\n1,Nikon D90 camera\n2,Blue mug\n", "id,title\n2,Nikon D90\n1,Mug blue\n"
    assert pairs(found(*lists(tmp_path, a, b), tmp_path / "out")).get("1") in ("2", None)


def test_titles_that_are_numbers(tmp_path):
    numbers = "id,title,name2\n1,10001,Nikon D90\n2,10002,Canon 5D\n"
    report = found(*lists(tmp_path, numbers), tmp_path / "out")
    assert "the titles of 2 of 2 products are numbers" in report["notes"][0]
    mended = found(*lists(tmp_path, numbers), tmp_path / "out", "--map-a", "title=name2")
    assert not any("are numbers" in note for note in mended["notes"])


@pytest.mark.parametrize("text", ["", "id,title\n"])
def test_an_empty_list_is_said(tmp_path, text):
    a, b = lists(tmp_path, A, text)
    result = run(a, b, tmp_path / "out")
    assert result.exit_code != 0 and "b.csv" in str(result.exception)


def test_rows_that_cannot_be_read_are_listed(tmp_path):
    a, b = lists(tmp_path, A + ",no id,,,\n")
    result = run(a, b, tmp_path / "out")
    assert result.exit_code == 3 and "1 rows were rejected" in result.output
    (line,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["field"].startswith("A: ")


# ---- parts -----------------------------------------------------------------------------------------

SMALL = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.floats(0, 1), max_size=10)


@given(SMALL)
def test_the_assignment_is_the_best_there_is(scores):
    chosen = assign(scores)
    assert len({i for i, _ in chosen}) == len({j for _, j in chosen}) == len(chosen)
    assert all(scores[pair] >= LOW for pair in chosen)

    def gain(some) -> float:
        chances = np.clip([scores[pair] for pair in some], 1e-6, 1 - 1e-6)
        return float((np.log(chances / (1 - chances)) - np.log(LOW / (1 - LOW))).sum())

    best = max(
        gain([(i, j) for i, j in enumerate(order) if scores.get((i, j), 0) >= LOW])
        for order in permutations(range(4))
    )
    assert gain(chosen) == pytest.approx(best, abs=1e-6)


def test_exported_trees_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    from research.studies.matching import boosting, exported

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, len(FEATURES)))
    model = boosting().set_params(max_iter=10).fit(rows, rows[:, 0] + rows[:, 3] > 0)
    held = score.Trees.of(exported(model, (1.0, 0.0)))
    assert held.sums(rows) == pytest.approx(model.decision_function(rows), abs=1e-4)
    assert held.probability(rows) == pytest.approx(model.predict_proba(rows)[:, 1], abs=1e-4)


def test_the_packaged_model_fits_the_evidence():
    trees = score.trees()
    best = [abs(float(direction)) * 5 if direction > 0 else 0.0 for direction in FEATURES.values()]
    worst = [5.0 if direction < 0 else 0.0 for direction in FEATURES.values()]
    high, low = trees.probability([best, worst])
    assert high > 0.8 and low < 0.1
    with pytest.raises(ValueError, match="other features"):
        score.Trees.of({"features": ["shade"]})
