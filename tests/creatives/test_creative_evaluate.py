"""An evaluation of selectors from end to end: what is asked, kept, fitted, resumed and counted again."""

from __future__ import annotations

import csv
import io
import json

import pytest
from creative_fakes import Judge, assessment, by_clicks, campaign, creative, pair, pairs
from hypothesis import given
from hypothesis import strategies as st

from moonshelf.creatives.backends.base import PairPrediction
from moonshelf.creatives.evaluation import record
from moonshelf.creatives.evaluation.evaluate import evaluate, interest_pairs, recompute
from moonshelf.creatives.evaluation.figures import (
    ALL,
    HEADLINE,
    TURNED,
    richness,
    shuffled_interest,
    slices,
    turned,
)
from moonshelf.creatives.labels import JEFFREYS, truth_of
from moonshelf.errors import UserError
from moonshelf.evaluation.record import read_shown
from moonshelf.evaluation.statistics import significance


@pytest.fixture(autouse=True, scope="module")
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "RESAMPLES", 50)
        yield


def explain(ask):
    """Right, and says so; the reasons favour the side that is right."""
    p = by_clicks(ask)
    return PairPrediction(p, assessment(text="A>B" if p > 0.5 else "A<B"), tokens=7)


def peeker() -> Judge:
    return Judge("ours", explain)


def wrong() -> Judge:
    return Judge("wrong", lambda ask: 1 - by_clicks(ask))


def value(report, group, part, backend, name):
    line = report.find(group, part, backend, name)
    return None if line is None else line.value


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_draws):
    out = tmp_path_factory.mktemp("run")
    campaigns = [campaign(i, (0.03, 0.05, 0.02)) for i in range(3)] + [campaign(9, (0.03, 0.05))]
    report = evaluate(pairs(8), [peeker(), wrong()], out, campaigns=campaigns)
    return out, report


def test_every_figure_is_counted_by_the_same_rules_for_all(made):
    _, report = made
    for part in (HEADLINE, ALL):
        assert value(report, "skill", part, "ours", "accuracy") == 1
        assert value(report, "skill", part, "wrong", "accuracy") == 0
    line = report.find("skill", HEADLINE, "ours", "accuracy")
    assert (line.n, line.clusters) == (8, 4) and line.low == line.high == 1 and 0.95 < line.bound < 1
    [gap] = [one for one in report.differences if one.group == "backends"]
    assert (gap.ours, gap.theirs, gap.difference, gap.n) == ("ours", "wrong", 1.0, 8)
    assert not report.simulated and report.sources == {"a shop": 8}
    assert [one["name"] for one in report.about] == ["ours", "wrong"]
    assert report.about[0]["tokens_per_pair"] == 14


def test_reasons_are_checked_where_there_are_any(made):
    _, report = made
    assert value(report, "explanations", "form and agreement", "ours", "schema valid") == 1
    assert report.find("explanations", "form and agreement", "wrong", "schema valid") is None


def test_campaigns_of_more_than_two_are_ranked(made):
    out, report = made
    assert len((out / record.CAMPAIGNS).read_text().splitlines()) == 3
    assert value(report, "ranking", "campaigns", "ours", "top-1") == 1
    assert value(report, "ranking", "campaigns", "wrong", "top-1") == 0
    assert value(report, "ranking", "campaigns", "ours", "Kendall tau-b") == pytest.approx(1)
    assert value(report, "ranking", "campaigns", "ours", "best-of-n regret") == 0
    assert value(report, "ranking", "campaigns", "wrong", "best-of-n regret") == pytest.approx(0.6)
    assert value(report, "ranking", "campaigns", "ours", "lift over random") == pytest.approx(0.5)


def test_the_figures_can_be_made_again_without_a_model(made):
    out, report = made
    names = ("result.json", "results.csv", "report.md", "report.html")
    before = {name: (out / name).read_bytes() for name in names}
    again = recompute(out)
    assert again.lines == report.lines and again.curves == report.curves
    assert {name: (out / name).read_bytes() for name in names} == before


def test_no_picture_of_the_data_is_kept_whole(made):
    out, _ = made
    assert "data" not in json.loads((out / record.PAIRS).read_text().splitlines()[0])["a"]["image"]
    kept = {picture for _, picture in read_shown(out).values()}
    assert kept and not kept & {one.image.data for pair in pairs(8) for one in (pair.a, pair.b)}


def test_the_csv_has_every_figure_and_every_difference(made):
    out, report = made
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert len(rows) == len(report.lines) + len(report.differences)
    one = next(r for r in rows if (r["group"], r["part"], r["backend"], r["name"]) ==
               ("skill", HEADLINE, "ours", "accuracy"))  # fmt: skip
    assert float(one["value"]) == 1 and one["simulated"] == "no"
    gaps = [r for r in rows if r["group"] == "differences"]
    assert gaps[0]["needed"] and float(gaps[0]["discordant"]) == 1


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    some, whole = pairs(70), tmp_path / "whole"
    expected = evaluate(some, [peeker()], whole, interest=("true",), explanations=False)

    class Stops(Judge):
        def predict(self, asks):
            if len(self.asked) >= 128:
                raise KeyboardInterrupt
            return super().predict(asks)

    out = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        evaluate(some, [Stops("ours", explain)], out, interest=("true",), explanations=False)
    [kept] = (out / record.JUDGEMENTS).iterdir()
    text = kept.read_text()
    assert len(text.splitlines()) == 65
    kept.write_text(text[:-20])  # killed in the middle of a line
    again = peeker()
    report = evaluate(some, [again], out, interest=("true",), explanations=False)
    assert {ask.pair_id for ask in again.asked} == {one.id for one in some[63:]}
    assert report.lines == expected.lines
    assert report.about[0]["seconds_per_pair"] is None  # nobody knows
    none = Judge("ours", lambda ask: pytest.fail("asked again"))
    assert evaluate(some, [none], out, interest=("true",), explanations=False).lines == expected.lines


def test_a_folder_of_another_run_is_never_mixed_in(tmp_path):
    evaluate(pairs(4), [peeker()], tmp_path, interest=("true",), explanations=False)
    for some, seed, what in ((pairs(5), 0, "pairs"), (pairs(4), 1, "seed")):
        with pytest.raises(UserError, match=f"its {what} differ"):
            evaluate(some, [peeker()], tmp_path, interest=("true",), explanations=False, seed=seed)
    # counts may change: they were not shown
    more = [pair(i, "AB"[i % 2], gap=50) for i in range(4)]
    evaluate(more, [Judge("ours", lambda ask: pytest.fail("asked"))], tmp_path, interest=("true",),
             explanations=False)  # fmt: skip


def test_damaged_folders_say_what_is_wrong(made, tmp_path):
    import shutil

    with pytest.raises(UserError, match="evaluate with --out"):
        recompute(tmp_path / "nothing")
    out = shutil.copytree(made[0], tmp_path / "run")
    for file in (out / record.JUDGEMENTS).iterdir():
        if "true" in file.name and "ours" in file.name:
            file.write_text("\n".join(file.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(UserError, match="judgements of ours are missing"):
        recompute(out)
    (out / record.PAIRS).write_text('{"id": ""}\n')
    with pytest.raises(UserError, match=r"line 1 of pairs\.jsonl"):
        recompute(out)
    (out / record.RESULT).write_text("[]")
    with pytest.raises(UserError, match="no record"):
        recompute(out)


def test_the_temperature_comes_from_other_products(tmp_path):
    # every fourth of them is lost by the picture that it is sure of: three in four right are worth 75 %
    others = [
        pair(i, "AB"[i % 2] if i % 4 else "BA"[i % 2], product_id=f"other {i}", id=f"other {i}")
        for i in range(40)
    ]
    best = {(one.a if i % 2 == 0 else one.b).image.data for i, one in enumerate(pairs(40))}
    boaster = Judge("ours", lambda ask: 0.9999 if ask.first.image.data in best else 0.0001)
    report = evaluate(
        pairs(6), [boaster], tmp_path, validation=others, interest=("true",), explanations=False
    )
    assert report.about[0]["temperature"] > 4
    assert report.about[0]["temperature_from"] == "40 validation pairs"
    judged = record.read_judged(tmp_path, "true", "ours")
    assert {round(max(one.p, 1 - one.p), 1) for one in judged.values()} <= {0.7, 0.8}
    with pytest.raises(UserError, match="product 0 for one"):
        evaluate(pairs(6), [boaster], tmp_path / "x", validation=pairs(2), explanations=False)


def test_without_validation_the_backend_keeps_its_own_temperature(tmp_path):
    ours = Judge("ours", by_clicks)
    ours.temperature = 2.0
    report = evaluate(pairs(4), [ours], tmp_path, interest=("true",), explanations=False)
    assert report.about[0]["temperature"] == 2.0 and report.about[0]["temperature_from"] == "the backend"


def test_a_judge_that_reads_the_interest_loses_without_it(tmp_path):
    """It knows from the query which side wins; a shuffled one misleads it, and without one it cannot tell."""

    def reads(ask):
        if not ask.interest:
            return 0.5
        wanted = ask.first.text == ask.interest[0]
        return 0.9 if wanted else 0.1

    some = []
    for i in range(24):
        side = "AB"[i % 2]
        words = ("red mug", "blue mug") if side == "A" else ("blue mug", "red mug")
        query = "red mug"
        if i % 4 > 1:
            words, query = words[::-1], "blue mug"
        made = [creative(f"{i}{s}", 100 if s == side else 60, 2 * i + (s == "B"), text=w)
                for s, w in zip("AB", words, strict=True)]  # fmt: skip
        some.append(pair(i, side, a=made[0], b=made[1], interest=(query,)))
    report = evaluate(some, [Judge("reads", reads), Judge("ours", by_clicks)], tmp_path, explanations=False)
    for part, expected in (("true", 1.0), ("shuffled", 0.0), ("none", 0.5)):
        assert value(report, "interest", part, "reads", f"accuracy, {HEADLINE}") == expected
        assert value(report, "interest", part, "ours", f"accuracy, {HEADLINE}") == 1
    gaps = {(one.ours, one.part): one for one in report.differences if one.group == "interest"}
    assert gaps["reads", "true against shuffled"].difference == 1
    assert gaps["reads", "true against none"].difference == 0.5
    assert gaps["ours", "true against none"].difference == 0
    assert gaps["reads", "true against shuffled"].n == 24


def test_only_who_reads_the_interest_is_right_about_the_same_pictures_under_two(tmp_path):
    """Couples of pairs that differ in query and clicks alone; a third pair of a product repeats a winner."""

    def reads(ask):
        return 0.9 if ask.first.text in ask.interest else 0.1

    def blind(ask):
        return 0.9 if ask.first.text == "red mug" else 0.1

    some = []
    for product in range(6):
        for place, query in enumerate(["red mug", "blue mug", "blue mug"]):
            made = [
                creative(f"{product}{place}{words}", 100 if words == query else 60, product * 2 + k,
                         text=words, sha256=f"{product}{words}")
                for k, words in enumerate(("red mug", "blue mug"))
            ]  # fmt: skip
            made = made[::-1] if place == 1 else made  # whichever is called A
            some.append(
                pair(3 * product + place, a=made[0], b=made[1], interest=(query,), product_id=f"p{product}")
            )
    posteriors = [truth_of(one, JEFFREYS) for one in some]
    assert turned(some, posteriors) == [(3 * i, 3 * i + 1) for i in range(6)]
    assert turned(some, [0.5] * len(some)) == []
    one_query = [one.model_copy(update={"interest": ("mug",)}) for one in some]
    assert turned(one_query, posteriors) == []
    judges = [Judge("reads", reads), Judge("blind", blind)]
    report = evaluate(some, judges, tmp_path, interest=("true", "none"), explanations=False)
    known = {
        one.backend: one for one in report.lines if one.name == f"accuracy, {TURNED}" and one.part == "true"
    }
    assert {name: (one.value, one.n, one.clusters) for name, one in known.items()} == {
        "reads": (1.0, 6, 6), "blind": (0.0, 6, 6)
    }  # fmt: skip
    single = report.find("interest", "true", "reads", f"accuracy, {HEADLINE}")
    assert known["reads"].bound == pytest.approx(single.bound**2, abs=1e-3)  # both labels have to be right
    assert TURNED in (tmp_path / "report.html").read_text().lower()


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "x", "y", "z"])), max_size=12),
    st.integers(0, 3),
)
def test_a_shuffled_interest_is_anothers_of_the_same_kind(rows, seed):
    some = [
        pair(i, category=(kind,), interest=(words,) if words else ()) for i, (kind, words) in enumerate(rows)
    ]
    found = shuffled_interest(some, seed)
    assert found == shuffled_interest(some, seed)
    asked = {
        kind: {one.interest for one in some if one.category == (kind,) and one.interest} for kind in "ab"
    }
    for one in some:
        others = asked[one.category[0]] - {one.interest}
        assert (one.id in found) == bool(one.interest and others)
        assert found.get(one.id) in {*others, None}
    assert [one.id for one in interest_pairs(some, "shuffled", seed)] == [p.id for p in some if p.id in found]
    assert all(not one.interest for one in interest_pairs(some, "none", seed))


def test_pairs_without_counts_are_left_out_and_labels_count_as_certain(tmp_path):
    unknown = pair(9, a=creative("u a", None, 90), b=creative("u b", None, 91))
    labelled = pair(8, a=creative("l a", None, 92), b=creative("l b", None, 93), label="B")
    report = evaluate([*pairs(3), unknown, labelled], [Judge("ours", lambda ask: 0.5)], tmp_path,
                      interest=("true",), explanations=False)  # fmt: skip
    assert report.sources == {"a shop": 4} and any("1 pairs without counts" in note for note in report.notes)


def test_inputs_that_cannot_be_scored_are_refused(tmp_path):
    unknown = pair(9, a=creative("u a", None, 90), b=creative("u b", None, 91))
    for some, backends, why in (
        ([unknown], [peeker()], "nothing to score"),
        (pairs(2), [], "no backend"),
        (pairs(2), [peeker(), peeker()], "2 backends are called ours"),
        ([pair(0), pair(0)], [peeker()], "2 pairs are called pair 0"),
    ):
        with pytest.raises(UserError, match=why):
            evaluate(some, backends, tmp_path / "x", explanations=False)
    with pytest.raises(UserError, match="no interest 'odd'"):
        evaluate(pairs(2), [peeker()], tmp_path / "x", interest=("odd",), explanations=False)


def test_slices_follow_from_what_is_known_of_the_pictures():
    plain, rich = (
        creative("p", 100, 1),
        creative("r", 60, 2, text="sale", facts={"props": "clutter", "new": "yes"}),
    )
    assert (richness(plain), richness(rich)) == (0, 3)
    some = [pair(0, a=plain, b=rich), pair(1, a=rich, b=plain), pair(2)]
    parts = slices(some, [0.99, 0.99, 0.5])
    assert parts["the plainer picture won"].tolist() == [True, False, False]
    assert parts["the richer picture won"].tolist() == [False, True, False]
    assert parts["a wording that training never used"].tolist() == [True, True, False]
    assert parts[HEADLINE].tolist() == [True, True, False] and "weak pairs" not in parts


def test_a_page_of_a_run_that_cannot_read_a_picture_goes_without_it(tmp_path):
    broken = creative("x", 100).model_copy(
        update={"image": creative("x").image.model_copy(update={"data": b"no"})}
    )
    report = evaluate([pair(0, a=broken), pair(1)], [peeker()], tmp_path)
    assert value(report, "skill", ALL, "ours", "coverage") == 0.5
    assert "no picture" in (tmp_path / "report.html").read_text()
