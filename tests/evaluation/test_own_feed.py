"""A feed of the user's: what its columns allow becomes tasks, and the rest is named with its reason."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import moonshelf
from evaluation_fakes import FakeMoon
from moonshelf.cli import app
from moonshelf.errors import UserError
from moonshelf.evaluation.data import own_feed
from moonshelf.evaluation.data import registry as datasets
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.evaluation.tasks import Labelling, Matching, Retrieval

ROWS = 40


def rows(n: int = ROWS) -> list[dict[str, str]]:
    return [
        {
            "id": f"p{i}", "title": f"{('Red', 'Blue')[i % 2]} {('mug', 'plate', 'bowl', 'cup')[i % 4]} {i}",
            "image": f"photos/{i}.png", "category": f"Home > {('Drinking', 'Eating')[i % 2]}",
            "color": ("Red", "Navy")[i % 2], "material": "Clay", "style": f"style {i}",
            "item_group_id": f"g{i // 2}" if i < 20 else "",
        }
        for i in range(n)
    ]  # fmt: skip


def write(folder: Path, records: list[dict[str, str]], photos: bool = True, name: str = "feed.csv") -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(records[0]))
        table.writeheader()
        table.writerows(records)
    if photos:
        (folder / "photos").mkdir(exist_ok=True)
        for i in range(len(records)):
            Image.new("RGB", (8, 8), (6 * i % 256, 80, 255 - 6 * i % 256)).save(folder / f"photos/{i}.png")
    return path


def load(path: Path, **options):
    card = datasets.select(str(path))[path.stem]
    return card(None, **options)


def names(dataset) -> dict[tuple[str, str], Retrieval | Labelling]:
    return {(task.name, task.view): task for task in dataset.tasks}


def test_a_feed_with_everything_gives_everything(tmp_path):
    dataset = load(write(tmp_path, rows()))
    tasks = names(dataset)
    assert dataset.name == "feed" and dataset.licence == "yours" and not dataset.problems
    assert list(dataset.files) == ["feed.csv"]
    ranked = {name for name, _ in tasks if "→" in name}
    assert ranked == {
        "text → image", "image → text", "image → multimodal", "text → multimodal", "multimodal → multimodal"
    }  # fmt: skip
    variants = tasks["multimodal → multimodal", "image + text"]
    assert len(variants.queries) == 10 and len(variants.corpus) == ROWS - 10
    assert not {q.id for q in variants.queries} & {p.id for p in variants.corpus}
    assert variants.relevant[0] == {"g0": 1.0}
    twins = tasks["product matching", "image"]
    assert isinstance(twins, Matching) and sum(twins.same) == 10 and twins.pairs[0] == (0, 1)
    assert tasks["all attributes", "image"].truth[1] == {"colour": "navy blue"}
    colour = tasks["colour", "text, hidden"]
    assert colour.labels == ["navy blue", "red"] and colour.commonest is None and colour.fit is None
    assert colour.products[0].title == "mug 0"
    assert tasks["category level 2", "image"].labels == ["Drinking", "Eating"]
    assert dataset.not_run == {
        "category level 1": "all products state the same, so there is nothing to choose",
        "material": "all products state the same, so there is nothing to choose",
        "style": "40 values for 40 products: it is no choice but a text",
    }
    moon = ModelEncoder(FakeMoon(), "off", 8192)
    for task in dataset.tasks:
        for result in task.run(moon, lambda encoder, products: encoder.encode(products)):
            assert result.value is None or np.isfinite(result.value)


def test_without_labels_titles_and_photos_are_still_matched(tmp_path):
    bare = [{key: row[key] for key in ("id", "title", "image")} for row in rows(8)]
    dataset = load(write(tmp_path, bare))
    assert {name for name, _ in names(dataset)} == {"text → image", "image → text"}
    assert set(dataset.not_run) == {
        "image → multimodal", "text → multimodal", "multimodal → multimodal", "product matching", "category",
        "attributes",
    }  # fmt: skip
    assert all(reason for reason in dataset.not_run.values())


def test_missing_photos_leave_the_text_tasks_and_are_counted(tmp_path):
    dataset = load(write(tmp_path, rows(), photos=False))
    views = {view for _, view in names(dataset)}
    assert views == {"text", "text, hidden"}
    assert "0 of 40 products have a title and a usable photo" in dataset.not_run["text → image"]
    assert len(dataset.problems) == ROWS and "there is no picture 0.png" in dataset.problems[0].reason


def test_addresses_are_fetched_only_with_download(tmp_path, monkeypatch):
    class Fetcher:
        def fetch(self, url: str, *, max_bytes: int) -> bytes:
            data = io.BytesIO()
            Image.new("RGB", (8, 8), (int(url.rsplit("/", 1)[1]), 9, 9)).save(data, "PNG")
            return data.getvalue()

    records = [{**row, "image": f"https://shop.example/{i}"} for i, row in enumerate(rows(8))]
    path = write(tmp_path, records, photos=False)
    assert "--download" in load(path).problems[0].reason
    monkeypatch.setattr(datasets, "fetcher_if", lambda download: Fetcher() if download else None)
    dataset = load(path, download=True)
    assert len(names(dataset)["text → image", "text"].corpus) == 8 and not dataset.problems


def test_nothing_to_score_is_one_sentence_with_the_reasons(tmp_path):
    path = write(tmp_path, [{"id": "a", "title": "a mug"}, {"id": "b", "title": "a plate"}], photos=False)
    with pytest.raises(UserError, match=r"nothing of feed\.csv can be scored .*no product has a category"):
        load(path)


def test_a_second_row_of_one_id_is_set_aside(tmp_path):
    dataset = load(write(tmp_path, [*rows(8), rows(8)[0]]))
    assert [p.id for p in dataset.problems if "a second row" in p.reason] == ["p0"]
    assert len(names(dataset)["text → image", "text"].queries) == 8


def test_few_labels_are_said_and_not_scored(tmp_path):
    records = [{**row, "material": "Clay" if i == 3 else ""} for i, row in enumerate(rows())]
    reason = load(write(tmp_path, records)).not_run["attribute material"]
    assert reason == "fewer than 4 products state it"


def test_only_the_commonest_attributes_are_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(own_feed, "MOST_KEYS", 1)
    records = [{**row, "material": ("Clay", "Tin")[i % 2]} for i, row in enumerate(rows())]
    dataset = load(write(tmp_path, records))
    assert len({task.name for task in dataset.tasks} & {"colour", "material"}) == 1
    assert "1 commonest attributes" in " ".join(dataset.not_run.values())


def test_parquet_with_its_pictures_inside(tmp_path):
    def png(i: int) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (20 * i, 9, 9)).save(data, "PNG")
        return data.getvalue()

    table = [
        {"id": str(i), "title": f"mug {i}", "images": [{"bytes": png(i), "path": None}],
         "attributes": json.dumps({"Color": ("Red", "Blue")[i % 2]})}
        for i in range(6)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "mugs.parquet")
    dataset = load(tmp_path / "mugs.parquet", limit=4)
    assert len(names(dataset)["text → image", "text"].corpus) == 4
    assert names(dataset)["colour", "image"].labels == ["blue", "red"]


def test_the_command_scores_what_it_can_and_says_what_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(moonshelf.MoonModel, "from_pretrained", lambda name, **_: FakeMoon())
    records = [{**row, "attributes": json.dumps({"[red]": "ab"[i % 2]})} for i, row in enumerate(rows())]
    path = write(tmp_path, records)
    call = ["evaluate", "fake", "--suite", str(path), "--reason", "off", "--json", str(tmp_path / "r.json")]
    result = CliRunner().invoke(app, call)
    assert result.exit_code in (0, 3), result.output
    assert "not run: material: all products state the same" in result.output
    assert "[red]" in result.output  # a name of the feed's is no markup
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["datasets"][0]["not_run"]["style"] and record["datasets"][0]["name"] == "feed"
    found = {r["task"] for r in record["results"] if r["value"] is not None}
    assert {"text → image", "multimodal → multimodal", "colour", "[red]"} <= found


def test_the_data_sets_are_listed():
    table = CliRunner().invoke(app, ["datasets"], env={"COLUMNS": "200"})
    assert table.exit_code == 0 and "arXiv:2404.15592" in table.output and "never run" in table.output
    listed = json.loads(CliRunner().invoke(app, ["datasets", "--json"]).output)
    assert {"implicitave", "esci", "sampleshop"} <= {card["name"] for card in listed}
    assert all({"licence", "size", "splits", "citation", "ran_on_real_files"} <= set(card) for card in listed)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({
            "id": st.integers(0, 12).map(str), "title": st.sampled_from(["", "Red mug", "plate", "红色"]),
            "category": st.sampled_from(["", "A", "A > B", "A > C > D"]),
            "color": st.sampled_from(["", "red", "Navy", "红色"]),
            "item_group_id": st.sampled_from(["", "g1", "g2"]),
        }),
        min_size=1, max_size=24,
    )
)  # fmt: skip
def test_any_feed_gives_tasks_with_truth_or_one_sentence(tmp_path_factory, records):
    path = write(tmp_path_factory.mktemp("feed"), records, photos=False)
    try:
        dataset = load(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    for task in dataset.tasks:
        if isinstance(task, Retrieval):
            assert task.queries and not {q.id for q in task.queries} & {p.id for p in task.corpus}
            assert all(set(wanted) & set(task.corpus_keys) for wanted in task.relevant)
        elif isinstance(task, Labelling):
            assert set(task.truth) <= set(task.labels) and len(task.labels) > 1
        elif isinstance(task, Matching):
            assert set(task.same) == {True, False}
        for product in getattr(task, "products", ()):
            assert not product.category and not product.attributes and not product.group_id


def test_a_feed_is_read_as_the_flags_say(tmp_path):
    rows = ["Nr;Bezeichnung;Farbe;Muster"]
    rows += [f"p{i};Schuh für {i};rot;{('quer', 'längs')[i % 2]}" for i in range(12)]
    feed = tmp_path / "feed.csv"
    feed.write_text("\n".join(rows), encoding="cp1252")
    fields = {"Nr": "id", "Bezeichnung": "title", "Farbe": "brand", "Muster": "category"}
    reading = {"fields": fields, "encoding": "cp1252", "currency": None}
    dataset = datasets.select(str(feed), reading)["feed"](None)
    assert "Schuh für 3" in dataset.texts and "category" in {task.name for task in dataset.tasks}
    with pytest.raises(UserError, match="say how a feed is read"):
        datasets.select("sampleshop", reading)
