"""The injection suite: the cleaning holds against a backend that obeys everything, and the suite can tell."""

from __future__ import annotations

from collections import Counter

import pytest
from typer.testing import CliRunner

from moonshelf import images
from moonshelf.creatives.backends.names import make_backend
from moonshelf.creatives.safety import pictures as copies
from moonshelf.creatives.safety import text as safety
from research.studies import injection
from research.studies.attacks import attacks
from research.studies.injection import Gullible, InjectionReport, Trial, app, run

pytestmark = pytest.mark.research

UNKNOWN = ("paraphrase", "persuasion")  # cannot be cleaned away: a model has to withstand them by itself


@pytest.fixture(autouse=True)
def without_ocr(monkeypatch):
    monkeypatch.setattr(safety, "_reader", lambda: None)


def test_the_suite_is_large_and_its_cases_are_named_once():
    cases = list(attacks())
    assert len(cases) >= 100 and len({case.id for case in cases}) == len(cases)
    assert len({case.text for case in cases if case.where == "title"}) == sum(
        c.where == "title" for c in cases
    )
    assert set(Counter(case.where for case in cases)) == {
        "title",
        "interest",
        "attribute",
        "overlay",
        "metadata",
    }


@pytest.mark.parametrize("seed", [0, 7])
def test_a_backend_that_obeys_everything_is_protected(seed):
    report = run(Gullible(seed), seed, told=True)
    known = [trial for trial in report.trials if trial.vector not in UNKNOWN]
    assert len(known) >= 100 and not any(trial.succeeded for trial in known)
    assert report.rate("reserved tag")[0] == 0
    assert report.rate()[3] == len(list(attacks()))


def test_without_the_cleaning_the_same_backend_falls(monkeypatch):
    """The suite has teeth: it is the cleaning, not the runner, that holds."""
    from moonshelf.creatives import selector

    monkeypatch.setattr(selector, "clean", lambda text: (text, ()))
    monkeypatch.setattr(selector, "quarantine", lambda creative: "")
    report = run(Gullible(), told=True)
    assert not report.passed and report.rate("title")[0] > 0.9 and report.rate("overlay")[0] > 0.9
    assert report.rate("metadata")[0] == 0  # never reaches anyone


def test_words_on_images_get_through_where_nobody_can_read_them():
    report = run(Gullible(), told=False)
    assert report.rate("overlay")[0] == 1 and not report.passed and "no OCR" in str(report)


def test_a_backend_that_reads_no_words_cannot_be_turned_by_them():
    report = run(make_backend("random"))
    words = [t for t in report.trials if t.vector not in ("overlay", "metadata")]
    # `random` hashes the words, so that verdicts do change; `first` depends on nothing at all.
    assert len(words) > 80
    always = run(make_backend("first"))
    assert always.rate()[0] == 0 and {t.outcome for t in always.trials} <= {
        "the winner changes with the order",
        "the title is nothing but suspicious words",
        "image A is held for review: " + safety.OVERLAY,
        "image B is held for review: " + safety.OVERLAY,
    }


def test_more_rounds_are_more_pairs_of_two_colours_each():
    bases = injection._bases(0, 36)
    assert len({base.pair.title for base in bases}) > 30 and all(
        len(set(base.colours)) == 2 for base in bases
    )
    assert [b.pair.title for b in bases[:6]] == [b.pair.title for b in injection._bases(0, 6)]
    report = run(Gullible(0, 2), rounds=2, told=True)
    assert len(report.trials) == 2 * len(list(attacks())) and report.rate("metadata")[0] == 0


def test_metadata_changes_the_file_and_not_the_pixels():
    base = injection._bases(0, 1)[0]
    for attack in (a for a in attacks() if a.where == "metadata" and not a.text.startswith("alt")):
        hit = base.carry(attack, "A", told=False)
        assert hit.a.image != base.pair.a.image and hit.b == base.pair.b
        assert copies.near_identical(images.load(hit.a.image), images.load(base.pair.a.image))


def test_a_report_counts_and_prints():
    trials = [Trial(f"x {i}", "title", "turned" if i == 0 else "held") for i in range(20)]
    report = InjectionReport("fake", 0, False, True, [*trials, Trial("y", "reserved tag", "held")])
    rate, low, high, n = report.rate("title")
    assert (
        (rate, n) == (0.05, 20)
        and low == pytest.approx(0.0089, abs=1e-3)
        and high == pytest.approx(0.236, abs=1e-3)
    )
    assert report.rate("reserved tag")[:3] == (0.0, 0.0, pytest.approx(0.793, abs=1e-3))
    assert report.passed and report.as_dict()["succeeded"] == ["x 0"]
    assert "turned: x 0" in str(report) and "1 of 20" in str(report)
    report.trials.append(Trial("y 2", "reserved tag", "turned"))
    assert not report.passed


def test_the_command_prints_and_its_exit_code_tells():
    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments])
        return result.exit_code, result.output

    code, printed = call("--backend", "first")
    assert code == 0 and "aim: 5% of all, no spoofed tag: met" in printed
    assert call("--backend", "gullible", "--told")[0] == 3  # it obeys the paraphrases
