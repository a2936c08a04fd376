"""Ways to search scored by judgements: figures by hand, the tuned weight, the page, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel, product
from typer.testing import CliRunner

from moonshelf.catalogue import Catalogue
from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.contract import Result, Versus
from moonshelf.evaluation.record import Head
from moonshelf.evaluation.report.pages import write_pages
from moonshelf.evaluation.search import Way, _crossed, _words_ahead, evaluate_search
from moonshelf.evaluation.statistics import scoring

N = 40
KINDS = ("running shoe", "leather boot", "canvas bag", "glass mug", "desk lamp")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 products, of which the model wrote, indexed."""
    catalogue = Catalogue.create(tmp_path_factory.mktemp("catalogue") / "shelf", FakeModel())
    catalogue.embed([product(i) for i in range(N)], reason="on")
    catalogue.index()
    return catalogue.folder


@pytest.fixture
def judgements(tmp_path: Path) -> Path:
    """For a kind all of its products, the even ones more; one of a product that is not there."""
    path = tmp_path / "mine.csv"
    rows = [f"{kind},p{i},{3 - i % 2}" for k, kind in enumerate(KINDS) for i in range(k, N, 5)]
    path.write_text("\n".join(["query,docid,rating", *rows, "red,p0,1", "red,gone,3", "lost,gone,3"]) + "\n")
    return path


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonshelf.catalogue.manifest.load_model", lambda _: FakeModel())


def test_figures_are_those_of_what_search_finds(shelf: Path, judgements: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = evaluate_search(shelf, judgements=judgements, ways=["bm25", "vector", "fused:0.3"], out=out)
    assert report.baseline == "bm25" and not report.errors
    assert {problem["id"] for problem in report.problems} == {"red", "lost"}
    found = {(r.encoder, r.metric): r for r in report.results}
    catalogue, ideal = Catalogue.open(shelf, FakeModel()), 0.0
    for way, mode, weight in (
        ("bm25", "text", None),
        ("vector", "vector", None),
        ("fused:0.3", "hybrid", 0.3),
    ):
        hits = [h.id for h in catalogue.search("red", k=100, mode=mode, vector_weight=weight).hits]
        row = next(p for p in record.all_predictions(out) if p.head.encoder == way)
        i = row.columns["id"].index("red")
        place = hits.index("p0") if "p0" in hits else N - 1
        assert row.columns["MRR"][i] == pytest.approx(1 / (place + 1))
        assert row.columns["nDCG@10"][i] == pytest.approx(1 / math.log2(place + 2) if place < 10 else 0)
        assert row.columns["recall@10"][i] == (place < 10)
        assert row.columns["judged@10"][i] == pytest.approx(
            sum(h == "p0" for h in hits[:10]) / len(hits[:10])
        )
        ideal += found[way, "recall@100"].value or 0
    assert ideal == 3 and found["bm25", "nDCG@10"].n == 6
    versus = found["vector", "nDCG@10"].versus
    assert versus is not None and versus.baseline == "bm25" and versus.p is not None
    again = scoring.recompute(out)
    assert [r.value for r in again.results] == [r.value for r in report.results], "without a catalogue"


def test_the_page_shows_who_gained_and_lost(shelf: Path, judgements: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "run", tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- moonshelf evaluate: begin -->\n<!-- moonshelf evaluate: end -->\n")
    report = evaluate_search(shelf, judgements=judgements, ways=["bm25-record", "vector"], out=out)
    assert report.settings["baseline"] == "bm25-record"
    write_pages(out, page=page)
    html = (out / "report.html").read_text()
    assert "Queries that gained and lost most" in html and "Found first by <bdi>bm25-record" in html
    assert "data:image/jpeg;base64" in html and "are not in the catalogue" in html
    for metric in ("nDCG@10", "MRR", "recall@10", "recall@100", "judged@10"):
        assert metric.replace("@", r"\@") in page.read_text()


def test_each_half_is_scored_by_the_weight_of_the_other() -> None:
    head = Head("d", "t", "text", "ranking", "tuned", "ranking", ("nDCG@10",), 9)

    def rows(place: dict[str, int]) -> list[dict[str, object]]:
        return [
            {"id": id, "cluster": id, "text": id, "ok": True, "rationale": "", "relevant": ["x"],
             "gains": [1.0], "relevant_scores": [0.0], "above": [above], "tied": [1], "top": [],
             "top_scores": []}
            for id, above in place.items()
        ]  # fmt: skip

    from moonshelf.evaluation.tasks.matching import second_half

    late = next(str(i) for i in range(99) if second_half(str(i)))
    early = next(str(i) for i in range(99) if not second_half(str(i)))
    found = {0.1: rows({early: 0, late: 5}), 0.9: rows({early: 5, late: 0})}
    kept = _crossed(head, found).predictions
    assert kept.columns["above"] == [[5], [5]], "0.9 is best late and scores early, and the other way round"
    assert "0.9 in one half of the queries and 0.1 in the other" in kept.head.note
    with pytest.raises(UserError, match="too few to tune"):
        _crossed(head, {0.1: rows({early: 0})})


class ByTheEnd:
    """A reranker that reads the last number of a title."""

    name, reads = "by the end", frozenset({"text"})
    broken = False

    def score(self, pairs: Any) -> Any:
        if self.broken:
            raise ValueError("broken")
        return np.array([float(found.title.split()[-1]) for _, found in pairs])


def test_a_reranked_way_is_searched_with_the_reranker(
    shelf: Path, judgements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="needs a model that does it"):
        evaluate_search(shelf, judgements=judgements, ways=["reranked"])
    reranker = ByTheEnd()
    monkeypatch.setattr("moonshelf.model.encoders.rerankers.load", lambda _: reranker)
    report = evaluate_search(shelf, judgements=judgements, rerank="any", out=tmp_path / "run")
    assert [e["name"] for e in report.encoders][-1] == "reranked"
    row = next(p for p in record.all_predictions(tmp_path / "run") if p.head.encoder == "reranked")
    fused = [hit.id for hit in Catalogue.open(shelf, FakeModel()).search("red", k=50).hits]
    wanted = sorted(fused, key=lambda id: -int(id[1:]))[:10]
    assert row.columns["top"][row.columns["id"].index("red")] == wanted
    reranker.broken = True
    with pytest.raises(UserError, match="could not be reranked: the reranker by the end failed: broken"):
        evaluate_search(shelf, judgements=judgements, ways=["reranked"], rerank="any")


def test_words_that_find_more_are_told_of() -> None:
    names = ("d", "your queries", "text", "ranking", "nDCG@10")
    ahead, level = (
        Versus("fused", more, more - 0.05, more + 0.05, p) for more, p in ((0.1, 0.01), (0.01, 0.7))
    )
    found = [Result(*names, way, 0.5, versus=one) for way, one in (("bm25", ahead), ("bm25-record", level))]
    said = _words_ahead([*found, Result(*names, "vector", 0.9, versus=ahead)])
    assert said == "; words alone (bm25) find more than fused: nDCG@10 +0.100 [0.050, 0.150]"


def test_another_catalogue_is_a_way_too(shelf: Path, judgements: Path, tmp_path: Path) -> None:
    other = Catalogue.create(tmp_path / "other", FakeModel())
    other.embed([product(i, title="thing") for i in range(N // 2)])
    with pytest.raises(UserError, match="no full-text index yet: run `moonshelf index"):
        evaluate_search(shelf, judgements=judgements, ways=["bm25", f"bm25@{other.folder}"])
    other.index()
    report = evaluate_search(shelf, judgements=judgements, ways=["bm25", f"bm25@{other.folder}"])
    [there] = [r for r in report.results if r.metric == "nDCG@10" and "@" in r.encoder]
    assert there.versus is not None and there.versus.difference < 0


def test_ways_have_names() -> None:
    for name in ("bm25", "bm25-record", "fused:0.25", "tuned-record", "vector@some/folder"):
        assert Way.of(name, Path("shelf")).name == name
    assert Way.of("vector@some/folder", Path("shelf")).folder == Path("some/folder")
    for name in ("bm", "bm25:0.3", "fused:2", "fused:", "tuned:0.1", "fused record"):
        with pytest.raises(UserError, match="no way to search called"):
            Way.of(name, Path("shelf"))


def test_the_command_says_what_it_found_and_what_is_wrong(
    shelf: Path, judgements: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    asked = ["evaluate", str(shelf), "--judgements", str(judgements), "--json", str(figures)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 3, done.output  # a query was rejected
    assert "recall@100" in done.output and "rejected: lost" in done.output
    assert {r["encoder"] for r in json.loads(figures.read_text())["results"]} == {
        "bm25-record", "bm25", "vector", "fused",
    }  # fmt: skip
    log = tmp_path / "log.csv"
    log.write_text("query,product_id,event\nmug,p3,click\n")
    done = CliRunner().invoke(app, ["evaluate", str(shelf), "--clicks", str(log), "--against", "bm25"])
    assert done.exit_code == 0 and "clicks are added up" in done.output, "a note is no rejection"
    for more in (["--clicks", str(log)], ["--map", "query"], ["--against", "best"], ["--baseline", "x"]):
        assert isinstance(CliRunner().invoke(app, [*asked, *more]).exception, UserError)
    empty = CliRunner().invoke(app, ["evaluate", "--judgements", str(judgements)])
    assert isinstance(empty.exception, UserError) and "name one catalogue" in str(empty.exception)
