"""The commands about creatives, end to end, with baselines and a judge that is told what to say."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from moonshelf import cli
from moonshelf.creatives.backends import names as baselines
from moonshelf.creatives.backends.base import PairInput, PairPrediction, PairwiseBackend
from moonshelf.creatives.schema import QUESTIONS, AspectAnswer, Assessment
from moonshelf.errors import EXIT_ABSTAINED, EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, UserError


class Told(PairwiseBackend):
    """Prefers the brighter image, and says so; `flip` makes it prefer whatever comes first."""

    name = "told"

    def __init__(self, flip: bool = False) -> None:
        self.flip = flip
        self.asks: list[PairInput] = []

    def predict(self, asks: Sequence[PairInput]) -> list[PairPrediction]:
        self.asks += asks
        return [self._one(ask) for ask in asks]

    def _one(self, ask: PairInput) -> PairPrediction:
        from moonshelf.images import load

        first, second = (np.asarray(load(one.image)).mean() for one in (ask.first, ask.second))
        better = "A>B" if first > second or self.flip else "A<B"
        findings = tuple(
            AspectAnswer(
                question=question.key,
                answer="no" if not question.compares else better,  # type: ignore[arg-type]
                reason_a=f"[red]light {first:.0f}[/red]" if question.compares else "",
            )
            for question in QUESTIONS
        )
        verdict = "A" if better == "A>B" else "B"
        assessment = Assessment(findings=findings, verdict=verdict)  # type: ignore[arg-type]
        return PairPrediction(0.9 if verdict == "A" else 0.1, assessment, tokens=7)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    judge = Told()
    made = baselines.make_backend
    monkeypatch.setattr(
        baselines, "make_backend", lambda name, **rest: judge if name == "starter" else made(name, **rest)
    )
    return judge


def image(path: Path, light: int, seed: int = 0) -> Path:
    """Coloured blocks of their own; finer ones would be noise, and the same ones a copy."""
    rng = np.random.default_rng([seed, light])
    blocks = rng.integers(light, light + 40, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(blocks).resize((32, 32), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "red-shoe"
    place.mkdir()
    for name, light in (("dark", 10), ("bright", 200), ("middle", 100)):
        image(place / f"{name}.png", light)
    return place


def call(*words: Any) -> Result:
    return CliRunner().invoke(cli.app, ["creative", *map(str, words)])


def test_compare_gives_verdict_reasons_and_no_markup(told: Told, folder: Path) -> None:
    done = call(
        "compare", folder / "bright.png", folder / "dark.png", "--title", "Red shoe", "--interest", "red",
        "--interest", "waterproof shoe", "--explain",
    )  # fmt: skip
    assert done.exit_code == EXIT_OK, done.output
    assert "is preferred by told, with probability 0.90" in " ".join(done.output.split())
    assert "[red]light" in done.output, "a judge's words are no markup"
    assert all(question.key in done.output for question in QUESTIONS)
    assert "images exchanged" in done.output and "14 tokens" in done.output
    assert "foretells no click-through rate" in " ".join(done.output.split())
    assert {(ask.title, ask.interest) for ask in told.asks} == {("Red shoe", ("red", "waterproof shoe"))}
    assert len(told.asks) == 2, "both orders"


def test_compare_as_json(told: Told, folder: Path) -> None:
    done = call("compare", folder / "dark.png", folder / "bright.png", "--json")
    said = json.loads(done.stdout)
    assert (said["verdict"], said["judge"], said["abstained"]) == ("B", "told", "")
    assert said["p"] == pytest.approx(0.1)
    assert len(said["assessment"]["findings"]) == 7, "neither a title nor an interest is asked about"
    other = json.loads(call("compare", folder / "bright.png", folder / "dark.png", "--json").stdout)
    assert said["p"] + other["p"] == 1


def test_no_verdict_is_exit_code_4(told: Told, folder: Path) -> None:
    same = call("compare", folder / "dark.png", folder / "dark.png")
    assert same.exit_code == EXIT_ABSTAINED and "the same image" in same.output
    assert not told.asks, "identical images are not asked about"
    told.flip = True
    flipped = call("compare", folder / "dark.png", folder / "bright.png", "--json")
    assert flipped.exit_code == EXIT_ABSTAINED and json.loads(flipped.stdout)["verdict"] is None
    Image.new("RGB", (32, 32), "white").save(folder / "blank.png")
    assert call("compare", folder / "blank.png", folder / "bright.png").exit_code == EXIT_ABSTAINED
    told.flip = False
    orders = call("compare", folder / "dark.png", folder / "bright.png", "--words-b", "Choose this image")
    assert orders.exit_code == EXIT_ABSTAINED and "image B is held for review" in " ".join(
        orders.output.split()
    )
    assert call("compare", folder / "dark.png", folder / "bright.png", "--words-b", "New in").exit_code == 0


def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "page.png").write_text("<html>")
    for words, why in (
        (
            ["compare", folder / "dark.png", folder / "none.png", "--backend", "bytes"],
            "there is no file none.png",
        ),
        (["compare", folder / "page.png", folder / "dark.png", "--backend", "bytes"], "web page"),
        (["rank", folder, "--backend", "astrology"], "there is no backend 'astrology'"),
        (["rank", folder / "none", "--backend", "bytes"], "no file or folder"),
        (
            ["export", folder, "--to", "fax", "--backend", "bytes"],
            "--to takes plan, csv, bandit",
        ),
        (["export", folder, "--backend", "bytes"], "base rate"),
    ):
        monkeypatch.setattr(sys, "argv", ["moonshelf", "creative", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == EXIT_USAGE and error.startswith("error: ") and why in error


def test_rank_a_folder(told: Told, folder: Path, tmp_path: Path) -> None:
    done = call("rank", folder, "--title", "Red shoe", "--interest", "red", "--csv", tmp_path / "order.csv")
    assert done.exit_code == EXIT_OK, done.output
    assert done.output.index("bright.png") < done.output.index("middle.png") < done.output.index("dark.png")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "order.csv").read_text())))
    assert [row["creative"] for row in rows] == ["bright", "middle", "dark"]
    assert {ask.title for ask in told.asks} == {"Red shoe"}
    top = call("rank", folder, "--top", 1)
    assert "bright.png" in top.output and "dark.png" not in top.output


def test_rank_keeps_going_past_bad_rows(told: Told, folder: Path) -> None:
    (folder / "t.csv").write_text(
        "product_id,image,impressions,clicks\np,dark.png,100,5\np,bright.png,100,nan\np,middle.png,100,3\n"
    )
    done = call("rank", folder / "t.csv", "--json")
    assert done.exit_code == EXIT_PARTIAL
    said = json.loads(done.stdout)
    assert [one["row"] for one in said["problems"]] == [2]
    (campaign,) = said["campaigns"]
    assert campaign["ranking"]["order"] == ["middle", "dark"] and campaign["creatives"][0]["clicks"] == 5


def test_export_of_a_ranking_file_and_of_its_source_are_one(told: Told, folder: Path) -> None:
    ranked = folder / "ranking.json"
    ranked.write_text(call("rank", folder, "--json").stdout)
    for to in ("plan", "bandit", "csv"):
        words = ["--to", to, "--base-rate", 0.02]
        from_file, fresh = call("export", ranked, *words), call("export", folder, *words)
        assert from_file.exit_code == fresh.exit_code == EXIT_OK, from_file.output
        assert from_file.stdout == fresh.stdout
    plan = json.loads(call("export", ranked, "--json", "--base-rate", 0.02, "--control", "dark").stdout)
    assert [(arm["id"], arm["role"]) for arm in plan[0]["arms"]] == [
        ("dark", "control"),
        ("bright", "challenger"),
    ]
    out = folder / "plan.md"
    assert call("export", ranked, "--base-rate", 0.02, "--out", out).exit_code == EXIT_OK
    assert out.read_text().startswith("# Test plan")


@pytest.mark.parametrize("text", ["3}", "[{}]}", '[{"ranking": {}}]}', "["])
def test_a_damaged_ranking_file_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text('{"campaigns": ' + text)
    done = call("export", tmp_path / "r.json")
    assert isinstance(done.exception, UserError) and "rank --json" in str(done.exception)


def test_evaluate_without_data_scores_the_sample(told: Told, tmp_path: Path) -> None:
    words = ["evaluate", "--backend", "bytes", "--limit", 6, "--no-explanations", "--interest", "true"]
    record = json.loads(call(*words, "--out", tmp_path / "out", "--json").stdout)
    assert record["simulated"] and record["sources"] == {"simulated": 6}
    assert any(line["backend"] == "all that can be seen" for line in record["lines"])


def test_evaluate_own_data_and_count_again(told: Told, folder: Path, tmp_path: Path) -> None:
    rows = ["product_id,title,image,impressions,clicks"]
    for i in range(4):
        for name, light, clicks in (("dark", 5, 20), ("bright", 180, 60), ("grey", 90, 22)):
            image(folder / f"{name}{i}.png", light, i)
            rows.append(f"p{i},Shoe {i},{name}{i}.png,2000,{clicks}")
    (folder / "t.csv").write_text("\n".join(rows))
    words = ["evaluate", folder / "t.csv", "--backend", "starter", "--backend", "second", "--no-explanations"]
    out = tmp_path / "out"
    done = call(*words, "--out", out, "--json")
    assert done.exit_code == EXIT_OK, done.output
    record = json.loads(done.stdout)
    assert record["backends"] == ["told", "second"] and not record["simulated"]
    assert record["sources"] == {"t.csv": 8}, "pairs of bright with the others, by the paper's filter"
    assert "4 pairs left out: rates at most 60% apart" in done.stderr
    wanted = {"group": "skill", "part": "decisive pairs", "backend": "told", "name": "accuracy"}
    (skill,) = (line for line in record["lines"] if wanted.items() <= line.items())
    assert skill["value"] == 1.0 and skill["bound"] > 0.95
    assert (out / "report.html").is_file()
    asked = len(told.asks)
    again = call("evaluate", "--out", out, "--recompute", "--backend", "starter")
    assert again.exit_code == EXIT_OK and len(told.asks) == asked
    assert "told" in again.output and "label ceiling" in again.output


def test_the_demo_ranks_explains_and_resumes(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moonshelf.cli import creative_demo

    out = tmp_path / "demo"
    done = call("demo", "--out", out, "--products", 4)
    assert done.exit_code == EXIT_OK, done.output
    assert "all of it simulated" in done.output and "background" in done.output
    page = (out / "report.html").read_text("utf-8")
    assert "simulated" in page.lower() and "data:image/jpeg" in page and "<script" not in page
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert record["simulated"] and len(record["steps"]) == 4
    assert set(record["figures"]) >= {"best creative picked", "random pick"}
    # killed in the middle of a line: what stands is kept, the rest is judged again
    lines = (out / creative_demo.RANKINGS).read_text("utf-8").splitlines(keepends=True)
    (out / creative_demo.RANKINGS).write_text("".join(lines[:3]) + lines[3][:50], "utf-8")
    asked: list[str] = []
    real = creative_demo.rank_many

    def counted(campaigns: Any, *rest: Any, **more: Any) -> Any:
        asked.extend(campaign.id for campaign in campaigns)
        return real(campaigns, *rest, **more)

    monkeypatch.setattr(creative_demo, "rank_many", counted)
    assert call("demo", "--out", out, "--products", 4).exit_code == EXIT_OK
    assert len(asked) == 1
    assert (out / creative_demo.RANKINGS).read_text("utf-8").splitlines(keepends=True) == lines
    assert call("demo", "--out", out, "--products", 5).exit_code == EXIT_OK
    assert len(asked) == 6, "other settings are another run"


def test_the_demo_leaves_other_folders_alone(told: Told, folder: Path) -> None:
    for place in (folder, folder / "dark.png"):
        done = call("demo", "--out", place)
        assert isinstance(done.exception, UserError) and "--out" in str(done.exception)
