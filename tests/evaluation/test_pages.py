"""The report of an evaluation: true to the run's folder, harmless whatever the data says, readable by all."""

from __future__ import annotations

import csv
import json
import re
import shutil
from itertools import pairwise

import pytest
from evaluation_run import BIDI, DIRECT, FORMULA, OTHER, REASONED, XSS, make_run, picture
from typer.testing import CliRunner

from html_reader import Reader
from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.record import FOLDER
from moonshelf.evaluation.report import details, pages, plain
from moonshelf.evaluation.report.outcome import MARKS, Outcome, mark
from moonshelf.evaluation.statistics import scoring
from moonshelf.plaintext import escaped, shown

SHAPES = {"circle", "rect", "path", "line", "polyline"}


class Page(Reader):
    """With the tables, and no empty element but a shape."""

    def __init__(self, text: str) -> None:
        self.tables: list[dict] = []
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        elif self.tables and tag == "tr":
            self.tables[-1]["rows"].append([])
        elif self.tables and tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")

    def handle_startendtag(self, tag, attrs):
        assert tag in SHAPES, f"<{tag}/>"
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        super().handle_data(data)
        if "style" not in self.open and "table" in self.open:
            if "caption" in self.open:
                self.tables[-1]["caption"] += data
            elif {"td", "th"} & set(self.open):
                self.tables[-1]["rows"][-1][-1] += data

    def table(self, caption: str) -> list[list[str]]:
        [found] = [t for t in self.tables if caption in " ".join(t["caption"].split())]
        return [[" ".join(cell.split()) for cell in row] for row in found["rows"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = make_run(tmp_path_factory.mktemp("evaluation") / "run")
    wanted = details.wanted_pictures(Outcome.load(out))
    pictures = {key: picture() for key in wanted[::2]} | {wanted[1]: b"\xff\xd8 broken"}
    assert len(wanted) == len(set(wanted)) > 10
    record.write_shown({key: ("", data) for key, data in pictures.items()}, out)
    paths = pages.write_pages(out)
    assert [p.name for p in paths] == ["report.html", "report.md", "results.csv"]
    return out


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def html(made):
    return (made / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


# ---- the page alone ----------------------------------------------------------------------------------


def test_it_is_one_file_that_asks_for_nothing(html, page):
    assert html.lstrip().lower().startswith("<!doctype html>")
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "use", "foreignobject"}
    assert not re.search(r"@import|url\(", html)
    for tag, attrs in page.found:
        assert not [
            name for name in attrs if name.startswith("on") or name in ("srcset", "ping", "background")
        ]
        for name in ("src", "href", "action", "data"):
            if name in attrs:
                allowed = (
                    attrs[name].startswith("data:image/jpeg;base64,")
                    if tag == "img"
                    else attrs[name][0] == "#"
                )
                assert allowed, (tag, attrs)
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_what_the_data_says_stays_text(html, page):
    assert "<script" not in html and "<img src=https" not in html and "alert(1)</script>" not in html
    assert XSS in page.text and "{{ 7 * 7 }}" in page.text and " 49 " not in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08]", html)
    assert "left right end" in page.text
    assert "x" * 299 + "…" in page.text and "x" * 300 not in html, "what is long is cut"
    assert html.count("<img ") == len(page.all("img"))


def test_it_can_be_read_without_seeing_it(page):
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("img") and all(image.get("alt") for image in page.all("img"))
    assert all(th.get("scope") in ("row", "col", "rowgroup") for th in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption")) > 8
    captions = [" ".join(t["caption"].split()) for t in page.tables]
    assert all(captions) and len(set(captions)) == len(captions)
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs["aria-labelledby"] for _, attrs in page.found if "aria-labelledby" in attrs]
    linked = [a["href"][1:] for a in page.all("a")]
    assert set(named) <= set(ids) and set(linked) <= set(ids) and page.all("a")[0]["class"] == "skip"
    boxes = [d for d in page.all("div") if d.get("class") == "scroll"]
    assert len(boxes) == len(page.tables)
    assert all(d["tabindex"] == "0" and d["role"] == "region" for d in boxes)
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-labelledby"] in ids)


def test_motion_schemes_and_small_screens_are_minded(html):
    style = html[html.index("<style>") : html.index("</style>")]
    for said in (
        "prefers-reduced-motion",
        "prefers-color-scheme: dark",
        "overflow-x: auto",
        "max-width: 46rem",
    ):
        assert said in style
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html


def test_broken_and_missing_pictures_leave_a_place(page, run):
    before = len(page.all("img"))
    keys = details.wanted_pictures(Outcome.load(run))
    assert before > 0 and page.text.count("no photo") > 0
    record.write_shown({key: ("", picture()) for key in keys}, run)
    pages.write_pages(run)
    assert len(Page((run / "report.html").read_text()).all("img")) > before


# ---- what it says ------------------------------------------------------------------------------------


def figures(run) -> list[dict]:
    return json.loads((run / "result.json").read_text())["results"]


def test_figures_intervals_and_marks_are_those_of_the_record(page, made):
    outcome = Outcome.load(made)
    assert outcome.baseline == DIRECT
    for dataset in outcome.datasets:
        lines = page.table(f"{shown(dataset)}: the first metric of each task")[1:]
        rows = [row for row in outcome.main_rows if row.dataset == dataset]
        assert len(rows) == len(lines)
        for row, cells in zip(rows, lines, strict=True):
            for name, cell in zip(outcome.encoders, cells[-3:], strict=True):
                [r] = [
                    r for r in figures(made)
                    if (r["dataset"], r["task"], r["view"], r["method"], r["metric"], r["encoder"])
                    == (row.dataset, row.task, row.view, row.method, row.metric, name)
                ]  # fmt: skip
                if r["value"] is None:
                    assert cell == "n/a"
                    continue
                assert cell.startswith(f"{100 * r['value']:.1f}")
                assert f"{100 * r['low']:.1f} to {100 * r['high']:.1f}" in cell
                versus, kind = r["versus"], ""
                if versus is not None:
                    kind = (
                        "same" if versus["p"] >= 0.05 else "better" if versus["difference"] > 0 else "worse"
                    )
                marks = [sign for sign in MARKS.values() if sign and sign in cell]
                assert marks == [MARKS[kind]] * bool(kind) and mark(row.results[name].versus) == kind
    glance = page.table("Encoders against")
    assert [line[0] for line in glance[1:]] == [DIRECT, REASONED, OTHER] and glance[1][1] == "baseline"
    assert [line[-1] for line in glance[1:]] == ["5", "40", "cached"]
    kinds = ("better", "same", "worse")
    tallies = {name: [t.total(), *(t[kind] for kind in kinds)] for name, t in outcome.tallies().items()}
    assert [int(cell) for cell in glance[2][1:5]] == tallies[REASONED]
    assert tallies[REASONED][1] > 0 and tallies[OTHER][3] > 0 and tallies[DIRECT] == [0, 0, 0, 0]


def test_direct_against_reasoned_is_a_paired_difference(page, made):
    outcome = Outcome.load(made)
    lines = page.table("Reasoned minus direct")[1:]
    assert len(lines) == len(outcome.changes()) == 4
    first = outcome.changes()[0]
    expected = first.reasoned.value - first.direct.value
    assert first.versus.difference == pytest.approx(expected) and mark(first.versus) == "better"
    assert lines[0][3:5] == [f"{100 * first.direct.value:.1f}", f"{100 * first.reasoned.value:.1f}"]
    assert lines[0][5].startswith(f"{100 * expected:+.1f}") and "better than direct" in lines[0][5]


def test_costs_are_drawn(page):
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == 2
    assert "Not timed" in page.text and page.text.count(OTHER) > 3


def test_slices_add_up(page, made):
    tables = [
        t
        for t in page.tables
        if "colour, image + text, zero-shot classification" in " ".join(t["caption"].split())
    ]
    rows = [[" ".join(cell.split()) for cell in row] for row in tables[-1]["rows"]]
    groups = {}
    for row in rows[1:]:
        if len(row) == 1:
            current = groups.setdefault(row[0], [])
        else:
            current.append(row)
    assert list(groups) == ["by words shown", "by colour", "by words"]
    for lines in groups.values():
        assert sum(int(line[1].split()[0]) for line in lines) == 36
    [whole] = [
        r["value"] for r in figures(made)
        if (r["task"], r["method"], r["metric"], r["encoder"])
        == ("colour", "zero-shot classification", "accuracy", REASONED)
    ]  # fmt: skip
    lines = groups["by colour"]
    mean = sum(int(line[1].split()[0]) * float(line[3].split()[0]) for line in lines) / 36
    assert mean == pytest.approx(100 * whole, abs=0.1)
    assert groups["by words shown"][0][0] == "1 to 3 words"


def test_the_worst_queries_are_the_worst(made, page):
    outcome = Outcome.load(made)
    assert details.shown_encoder(outcome) == REASONED
    found = details.worst_queries(outcome)
    row = found[0].row
    values = outcome.kept(row, REASONED).values("R@1")
    assert [q.value for q in found] == sorted(values)[:3]
    assert found[0].value == 0 and found[0].place >= found[1].place >= found[2].place > 1
    assert found[0].wanted.id == found[0].id.removesuffix("?") and len(found[0].found) == 5
    assert not any(hit.gain for hit in found[0].found[:1])
    for query in found:
        assert f"at place {query.place:,.0f} of 36" in page.text
    labels = details.wrong_labels(outcome)
    assert labels and all(one.predicted != one.truth for one in labels)
    wrote = next(one.rationale for one in labels if one.rationale)
    assert shown(wrote, pages.RATIONALE) in page.text and "<think>" not in page.text


def test_what_was_run_and_what_went_wrong_are_said(page):
    assert "25 problems, the first 20" in page.text and f"Error in this run: bad {XSS}" in page.text
    for said in (
        "it writes no rationale",
        "(brand)",
        "12.5 s",
        "python",
        "4,100",
        "off, on",
    ):
        assert said in page.text


def test_the_tables_of_a_page_are_filled_in_and_replaced(run, tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\nBefore.\n\n{plain.BEGIN}\nold\n{plain.END}\n\nAfter.\n")
    for _ in range(2):
        pages.write_pages(run, page=page)
    text = page.read_text()
    assert text.startswith("# Results\n\nBefore.\n") and text.endswith("\n\nAfter.\n")
    assert "old" not in text and text.count((run / pages.MARKDOWN).read_text().strip()) == 1
    page.write_text("no marks")
    with pytest.raises(UserError, match="no place for the tables"):
        pages.write_pages(run, page=page)
    assert page.read_text() == "no marks"


def test_another_baseline_compares_again(run):
    pages.write_pages(run, baseline=REASONED)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    glance = page.table("Encoders against")
    assert glance[2][1] == "baseline" and int(glance[1][4]) > 0, "direct is worse than reasoned somewhere"
    text = (run / "results.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["baseline"] for row in rows} == {"", REASONED}
    [ap] = [r for r in rows if r["metric"] == "AP" and r["encoder"] == DIRECT]
    again = scoring.recompute(run, baseline=REASONED)
    [same] = [r for r in again.results if r.metric == "AP" and r.encoder == DIRECT]
    assert float(ap["difference"]) == same.versus.difference and float(ap["p"]) == same.versus.p
    [hit] = [r for r in rows if r["metric"] == "R@1" and r["encoder"] == DIRECT]
    [same] = [r for r in again.results if r.metric == "R@1" and r.encoder == DIRECT]
    assert float(hit["difference"]) == same.versus.difference and float(hit["p"]) == same.versus.p
    assert float(hit["mcnemar"]) == same.versus.mcnemar


def test_without_predictions_it_says_so(run):
    shutil.rmtree(run / FOLDER)
    pages.write_pages(run)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "it needs predictions" in page.text
    assert "None in this run." in page.text


# ---- Markdown and CSV --------------------------------------------------------------------------------


def unescaped(cell: str) -> str:
    return re.sub(r"\\([^\w\s])", r"\1", cell)


def test_markdown_reads_back(made):
    text = (made / "report.md").read_text(encoding="utf-8")
    outcome = Outcome.load(made)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 1 + len(outcome.datasets)
    lines = []
    for table in tables:
        cells = [
            [unescaped(c.strip()) for c in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()
        ]
        assert len({len(row) for row in cells}) == 1
        lines.append(cells)
    assert [row[0] for row in lines[0][2:]] == outcome.encoders
    for table, dataset in zip(lines[1:], outcome.datasets, strict=True):
        rows = [row for row in outcome.main_rows if row.dataset == dataset]
        assert table[0][-3:] == [DIRECT, REASONED, OTHER]
        for row, cells in zip(rows, table[2:], strict=True):
            assert cells[0] == row.task and cells[1] == row.view
            assert cells[-3:] == [plain.cell(row.results.get(name)) for name in outcome.encoders]
    assert not re.search(r"(?<!\\)[<>]|https?:|(?<!\\)@|\u202e", text)


def test_csv_reads_back(made):
    rows = list(csv.DictReader((made / "results.csv").read_text(encoding="utf-8").splitlines()))
    known = figures(made)
    assert len(rows) == len(known)
    numbers = ("value", "low", "high", "n", "clusters", "corpus", "chance", "constant")
    found = {(r["dataset"], r["task"], r["view"], r["method"], r["metric"], r["encoder"]): r for r in rows}
    for r in known:
        row = found[r["dataset"], r["task"], r["view"], r["method"], r["metric"], r["encoder"]]
        assert [row[name] for name in numbers] == [
            "" if r[name] is None else str(r[name]) for name in numbers
        ]


@pytest.mark.parametrize("text", [FORMULA, "=1+1", "+1", "-1", "@x"])
def test_no_cell_starts_a_formula(run, text):
    body = json.loads((run / "result.json").read_text())
    for r in body["results"]:
        r["task"] = text
    (run / "result.json").write_text(json.dumps(body))
    cells = csv.reader(plain.table_csv(Outcome.load(run)).splitlines())
    assert all(row[1] == f"'{text}" for row in list(cells)[1:])


def test_texts_are_one_line_and_cut():
    assert shown(BIDI) == "left right end" and shown("a\n\tb") == "a b"
    assert shown("x" * 500) == "x" * 159 + "…"
    assert escaped("a|b <i> http://x @y") == "a\\|b \\<i\\> http\\://x \\@y"


# ---- mistakes ----------------------------------------------------------------------------------------


def test_a_folder_that_holds_no_run_is_one_sentence(tmp_path, run):
    with pytest.raises(UserError, match=r"there is no result\.json"):
        pages.write_pages(tmp_path)
    with pytest.raises(UserError, match="no encoder 'nobody'"):
        pages.write_pages(run, baseline="nobody")
    body = json.loads((run / "result.json").read_text())
    body["results"][0]["value"] = "high"
    (run / "result.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"results\.0\.value of result\.json"):
        pages.write_pages(run)
    (run / "result.json").write_text(json.dumps({**body, "results": []}))
    with pytest.raises(UserError, match="holds no figure"):
        pages.write_pages(run)


def test_an_odd_part_of_a_record_is_one_sentence(run):
    body = json.loads((run / "result.json").read_text())
    for name, odd in (("datasets", [3]), ("encoders", {"a": 1}), ("machine", None), ("seconds", "?")):
        (run / "result.json").write_text(json.dumps({**body, name: odd}))
        with pytest.raises(UserError, match=rf"{name}.* of result\.json: .*run the evaluation again"):
            pages.write_pages(run)
    (run / "result.json").write_text(json.dumps({"results": body["results"]}))
    pages.write_pages(run)
    assert Page((run / "report.html").read_text(encoding="utf-8")).all("h1")


def test_the_command_builds_them_again(run):
    for name in ("report.html", "report.md", "results.csv"):
        (run / name).unlink()
    wanted = details.wanted_pictures(Outcome.load(run))
    record.write_shown({key: ("words", picture()) for key in wanted}, run)
    done = CliRunner().invoke(app, ["report", str(run), "--baseline", REASONED])
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output.replace("\n", "") and (run / "results.csv").is_file()
    html = (run / "report.html").read_text(encoding="utf-8")
    assert Page(html).all("img") and "no photo" not in Page(html).text
    pages.write_pages(run, baseline=REASONED)
    assert (run / "report.html").read_text(encoding="utf-8") == html, "the same run gives the same page"
