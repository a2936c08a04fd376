"""The pages about creatives: harmless whatever the data says, readable by all, and true to the run."""

from __future__ import annotations

import base64
import re
from itertools import pairwise

import pytest
from creative_fakes import (
    BIDI,
    XSS,
    Judge,
    assessment,
    by_clicks,
    campaign,
    creative,
    jpeg,
    judgement,
    pair,
    pairs,
)

from html_reader import Reader
from moonshelf import images
from moonshelf.creatives.backends.base import PairPrediction
from moonshelf.creatives.evaluation import charts, pages
from moonshelf.creatives.evaluation.evaluate import evaluate
from moonshelf.creatives.evaluation.figures import ALL
from moonshelf.creatives.evaluation.metrics import Bin
from moonshelf.creatives.evaluation.pages import figure, grid, write_demo_report
from moonshelf.creatives.evaluation.record import Curve
from moonshelf.creatives.ranking import rank
from moonshelf.evaluation.report.page import HEIGHT, WIDTH, thumbnail
from moonshelf.evaluation.statistics import significance

SHAPES = {"circle", "rect", "path", "line", "polyline"}


class Page(Reader):
    """No empty element but a shape."""

    def handle_startendtag(self, tag, attrs):
        assert tag in SHAPES, f"<{tag}/>"
        self.found.append((tag, dict(attrs)))


def hostile(ask):
    """Wrong about every fourth pair; its reasons are an attack."""
    p = by_clicks(ask)
    number = int(re.sub(r"\D", "", ask.pair_id))
    said = assessment(text="A>B" if p > 0.5 else "A<B", reasons=(XSS, BIDI))
    return PairPrediction(1 - p if number % 4 == 0 else p, said)


def some_pairs():
    """Twelve, with hostile words wherever there is room for words."""
    found = pairs(12, title=f"shoe. {XSS} {BIDI}", interest=(XSS, BIDI), source=XSS, assessment=assessment())
    found[11] = found[11].model_copy(update={"a": found[11].a.model_copy(update={"text": XSS})})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "RESAMPLES", 50)
        judges = [Judge(XSS, hostile), Judge("second", lambda ask: 0.2)]
        report = evaluate(some_pairs(), judges, out, campaigns=[campaign(0, (0.03, 0.05, 0.02))],
                          command=f"moonshelf creative evaluate {XSS}")  # fmt: skip
    return out, report


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    campaigns = [
        campaign(0, (0.02, 0.05, 0.03), title=f"shoe. {XSS}", interest=(BIDI, XSS)),
        campaign(1, (0.05, 0.03), title="mug"),
    ]
    rankings = [rank(one, Judge(XSS, hostile_in_rank)) for one in campaigns]
    return write_demo_report(out, campaigns, rankings, facts={"Command": XSS}), campaigns, rankings


def hostile_in_rank(ask):
    p = by_clicks(ask)
    return PairPrediction(p, assessment(text="A>B" if p > 0.5 else "A<B", reasons=(XSS, BIDI)))


@pytest.fixture(scope="module", params=["evaluation", "demo"])
def html(request, run, demo):
    path = run[0] / "report.html" if request.param == "evaluation" else demo[0]
    return path.read_text(encoding="utf-8")


def test_pages_are_whole_and_need_nothing_else(html):
    page = Page(html)
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.found}
    assert all(not name.startswith("on") for _, attrs in page.found for name in attrs)
    assert all(a["href"].startswith("#") for a in page.all("a"))
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_what_strangers_wrote_stays_text(html):
    page = Page(html)
    assert "<script" not in html and "{{ 7 * 7 }}" in page.text and "<script>alert(1)</script>" in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08]", html)
    styles = [attrs["style"] for _, attrs in page.found if "style" in attrs]
    assert all(re.fullmatch(r"((left|right|width):(calc\(100% - )?[\d.]+%\)?;?)+", one) for one in styles)


def test_pages_can_be_read_without_seeing_them(html):
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert all(image.get("alt") for image in page.all("img"))
    assert all(th.get("scope") in ("row", "col", "rowgroup") for th in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs["aria-labelledby"] for _, attrs in page.found if "aria-labelledby" in attrs]
    assert set(named) <= set(ids) and {a["href"][1:] for a in page.all("a")} <= set(ids)


def test_pictures_are_made_again_and_small(html):
    originals = {jpeg(seed) for seed in range(40)}
    shown = [image["src"] for image in Page(html).all("img")]
    assert shown
    for uri in shown:
        head, data = uri.split(",")
        assert head == "data:image/jpeg;base64"
        picture = base64.b64decode(data)
        assert picture not in originals and max(images.decode(picture).size) <= pages.SIDE


def test_no_metadata_of_a_picture_reaches_a_page():
    from PIL import Image

    exif = Image.Exif()
    exif[0x010E] = "where the photo was taken"
    data = jpeg(1, size=600, exif=exif, comment=b"a secret")
    made = thumbnail(creative("x").image.model_copy(update={"data": data}), pages.SIDE)
    assert b"secret" in data and b"secret" not in made and b"taken" not in made
    assert max(images.decode(made).size) == pages.SIDE
    assert thumbnail(creative("x").image.model_copy(update={"data": b"no"}), pages.SIDE) == b""


def test_mistakes_come_first_then_the_rest(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    order = re.findall(r'class="outcome ([\w-]+)"', page)
    # words on a picture that read like an attack put it in quarantine
    assert order == ["wrong"] * 3 + ["abstained"] + ["right"] * pages.MOST["right"]


def test_the_page_says_the_figures_of_the_run(run):
    out, report = run
    text = Page((out / "report.html").read_text(encoding="utf-8")).text
    for name, part in (("accuracy", "decisive pairs"), ("ECE", ALL), ("log loss", ALL)):
        line = report.find("skill", part, XSS, name)
        assert figure(line.value, name) in text
    assert "It does not predict a click rate" in text and "Sort creatives before a test" in text
    assert text.count("simulated") == 0  # nothing of this run is drawn


def test_a_bound_is_named_by_its_direction(run):
    notes = {(row.label, row.note) for row in grid(run[1], "interest")}
    losses = [note for label, note in notes if label.startswith("log loss")]
    assert losses and all(re.fullmatch(r"least 0\.\d{3}", note) for note in losses)
    assert any(note.startswith("ceiling") for label, note in notes if label.startswith("accuracy"))


def test_markdown_shows_names_letter_for_letter(run):
    text = (run[0] / "report.md").read_text(encoding="utf-8")
    assert "not predict a click rate" in text and "simulated" not in text and "alert(1)" in text
    assert not re.search(r"(?<!\\)[<`]", text)


def test_drawn_pairs_are_marked_wherever_they_stand(tmp_path):
    drawn = [one.model_copy(update={"source": "simulated"}) for one in pairs(4)]
    report = evaluate(drawn, [Judge("ours", by_clicks)], tmp_path, explanations=False)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert report.simulated
    # in the lead, each tile, each section with figures, each pair
    assert sum(attrs.get("class") == "badge" for _, attrs in page.found) >= 1 + 4 + 4 + 4
    assert "not measured on shoppers" in page.text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all("(simulated)" in line for line in markdown.splitlines() if line.startswith("#"))
    assert all(row.endswith(",yes") for row in (tmp_path / "results.csv").read_text().splitlines()[1:])


def test_the_demo_shows_every_creative_in_its_place(demo):
    path, campaigns, rankings = demo
    page = path.read_text(encoding="utf-8")
    shown = re.findall(r"<b>(\d+)</b>", page)
    assert shown == ["1", "2", "3", "1", "2"]
    for one in rankings:
        for name in one.order:
            assert f"best with {100 * one.p_best[name]:.0f} %" in page
    assert len(re.findall("best by its clicks", page.split("The first against the second")[0])) == 1
    assert page.count('class="duel"') == len(campaigns)


def test_a_duel_shows_the_first_of_the_order_as_a(demo):
    _, campaigns, rankings = demo
    for one, ranking in zip(campaigns, rankings, strict=True):
        found = pages.show_ranked(one, ranking, lambda creative: "")
        assert found.duel.sides[0].picked and not found.duel.sides[1].picked and found.duel.sides[0].winner
        assert found.duel.judgement.verdict == "A"
        spoken = {finding.answer for finding in found.duel.judgement.assessment.findings}
        assert "A>B" in spoken and "A<B" not in spoken


def test_turning_a_judgement_round_twice_gives_it_back():
    one = judgement("x", 0.75, p_first=0.875, p_second=0.625, assessment=assessment(text="A>B", verdict="A"),
                    mirrored=assessment(text="A<B"))  # fmt: skip
    there = one.swapped()
    assert (there.p, there.p_first, there.p_second, there.verdict) == (0.25, 0.375, 0.125, "B")
    assert there.assessment["text"].answer == "A>B" and there.mirrored.verdict == "B"
    assert there.swapped() == one


def test_outcomes_of_verdicts():
    sure, unsure = judgement("x", 0.9), judgement("x", 0.52, abstained="too close to call")
    assert pages.outcome(sure, 0.99) == "right" and pages.outcome(sure, 0.01) == "wrong"
    assert pages.outcome(unsure, 0.99) == "abstained"
    assert pages.outcome(sure, 0.5) == pages.outcome(sure, None) == "no winner"
    made = pages.card(pair(0), sure, None, lambda creative: "")
    assert made.truth is made.winner is None and not made.sides[0].winner


def test_a_record_cannot_name_pictures_outside_its_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    one = creative("x")
    for path in (str(tmp_path / "secret.jpg"), "secret.jpg"):
        named = one.model_copy(update={"image": one.image.model_copy(update={"data": None, "path": path})})
        assert pages.from_folder(tmp_path)(named) == ""


def test_figures_as_the_page_writes_them():
    assert figure(0.1234) == "12.3" and figure(0.1234, "log loss") == "0.123" and figure(None) == "n/a"
    assert figure(-0.5, "Kendall tau-b") == "−0.50" and figure(0.01966, "click rate of the picks") == "1.97"


def test_plots_stay_inside_their_box_and_say_what_they_show():
    bins = [Bin(0.55, 0.3, 9, 0.1, 0.5), Bin(0.99, 1.0, 9, 0.9, 1.0)]
    curve = Curve("ours", ALL, bins, [(0.01, 1.0), (0.4, 0.1), (1.0, 0.3)])
    tied = Curve("second", ALL, bins, [(1.0, 0.5)])
    reliable, risk = charts.reliability_chart(curve), charts.risk_chart([curve, tied])
    assert "furthest off it says 55.0 % and 30.0 % is true" in reliable.says
    assert "wrong in 30.0 % of all and in 10.0 % of the surer half" in risk.says
    for chart in (reliable, risk):
        points = [(m.x, m.y) for m in chart.marks] + [p for line in chart.lines for p in line.points]
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert len(risk.lines[1].points) == 2  # all are equally sure: a level line
