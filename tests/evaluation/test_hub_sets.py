"""Published data sets: their layout on small files of the same shape, and one sentence for what is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluation_fakes import FakeMoon
from moonshelf.errors import UserError
from moonshelf.evaluation.data import published
from moonshelf.evaluation.data import registry as datasets
from moonshelf.evaluation.encoders.baselines import ModelEncoder
from moonshelf.evaluation.tasks import Labelling, Retrieval

ROWS = 6


def jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (12, 12), (shade % 256, 90, (shade * 7) % 256)).save(data, "JPEG")
    return data.getvalue()


def picture(shade: int) -> dict[str, object]:
    return {"bytes": jpeg(shade), "path": None}


def parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_marqo(folder: Path) -> None:
    rows = [
        {"image": picture(20 * i), "item_ID": f"i{i}", "query": ("lamp", "desk")[i % 2], "title": f"lamp {i}",
         "position": i}
        for i in range(ROWS)
    ]  # fmt: skip
    rows.append({**rows[0], "query": "desk"})  # one item that two terms found
    parquet(folder / "data/data-00000-of-00002.parquet", rows[:3])
    parquet(folder / "data/data-00001-of-00002.parquet", rows[3:])


def write_implicitave(folder: Path) -> None:
    place = folder / "data/evaluation_data"
    (place / "images").mkdir(parents=True)
    (place / "texts").mkdir()
    lines = ["id\timages\tcategory\ttexts\tattribute_names\tattribute_values"]
    for i in range(ROWS):
        (place / "images" / f"B{i}.jpg").write_bytes(jpeg(20 * i))
        value = ("Crew Neck", "Halter")[i % 2]
        lines.append(f"B{i}\tB{i}.jpg\tDresses\t[Title] Womens Dress {i}\tNeckline\t{value}")
        lines.append(f"B{i}\tB{i}.jpg\tDresses\t[Title] Womens Dress {i}\tSleeve Style\tLong Sleeve")
    (place / "texts/Clothing_annotated_final.tsv").write_text("\n".join(lines) + "\n")
    options = {"Neckline": ["Crew Neck", "Halter", "Henley"], "Sleeve Style": ["Long Sleeve", "Sleeveless"]}
    (place / "options_Clothing.json").write_text(json.dumps(options))


WRITERS = {
    "marqo-google": write_marqo, "marqo-amazon-100k": write_marqo, "implicitave": write_implicitave,
}  # fmt: skip


def read(name: str, tmp_path: Path, write=None, **options):
    (write or WRITERS[name])(tmp_path / name)
    return datasets.DATASETS[name](tmp_path, **options)


def ranked(dataset) -> dict[str, Retrieval]:
    return {task.name: task for task in dataset.tasks if isinstance(task, Retrieval)}


def labelled(dataset) -> dict[tuple[str, str], Labelling]:
    return {(task.name, task.view): task for task in dataset.tasks if isinstance(task, Labelling)}


@pytest.mark.parametrize("name", WRITERS)
def test_every_published_set_can_be_scored_and_says_that_it_never_was(name, tmp_path):
    dataset = read(name, tmp_path)
    assert dataset.tasks and dataset.files and all(path.startswith(f"{name}/") for path in dataset.files)
    card = datasets.DATASETS[name]
    assert dataset.licence == card.licence
    assert card.ran or dataset.note.startswith("never run on the real files")
    moon = ModelEncoder(FakeMoon(), "off", 8192)
    for task in dataset.tasks:
        shown = [*task.queries, *task.corpus] if isinstance(task, Retrieval) else list(task.products)
        for one in shown:
            assert not one.category and not one.attributes and not one.extra and not one.brand
        results = task.run(moon, lambda encoder, products: encoder.encode(products))
        assert all(np.isfinite(r.value) for r in results if r.value is not None)


def test_marqo_terms_find_every_item_that_they_found(tmp_path):
    dataset = read("marqo-google", tmp_path)
    tasks = ranked(dataset)
    term = tasks["search term → image"]
    assert [q.title for q in term.queries] == ["desk", "lamp"]
    assert set(term.relevant[0]) == {"i0", "i1", "i3", "i5"}
    assert len(tasks["title → image"].corpus) == ROWS and not dataset.problems


def test_implicitave_offers_the_options_and_drops_the_tag(tmp_path):
    tasks = labelled(read("implicitave", tmp_path))
    assert {view for _, view in tasks} == {"image", "text, hidden", "image + text, hidden"}
    neck = tasks["Clothing: Neckline", "image + text, hidden"]
    assert neck.labels == ["crew neck", "halter", "henley"] and neck.key == "neckline"
    assert neck.products[0].title == "Womens Dress 0" and neck.truth[:2] == ["crew neck", "halter"]
    assert tasks["Clothing: Sleeve Style", "image"].labels == ["long sleeve", "sleeveless"]


def spoil(path: Path, change) -> None:
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows)), path)


def drop(column: str):
    return lambda rows: [{k: v for k, v in row.items() if k != column} for row in rows]


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("marqo-google", "data/data-00000-of-00002.parquet", drop("title"), "no column title"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(name, file, change, message, tmp_path):
    WRITERS[name](tmp_path / name)
    spoil(tmp_path / name / file, change)
    with pytest.raises(UserError, match=message) as error:
        datasets.DATASETS[name](tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("marqo-google", r"--download.*hf download Marqo/google-shopping-general-eval --repo-type dataset"),
        ("implicitave", r"github\.com/HenryPengZou/ImplicitAVE"),
    ],
)
def test_a_missing_set_says_how_to_get_it(name, hint, tmp_path):
    with pytest.raises(UserError, match=hint):
        datasets.DATASETS[name](tmp_path)
    with pytest.raises(UserError, match="--data"):
        datasets.DATASETS[name](None)


def test_nothing_is_fetched_unless_asked_for(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(repo, *, repo_type, revision, local_dir, allow_patterns):
        asked.append((repo, repo_type, revision))
        assert "*.py" not in allow_patterns and "**/*.pkl" not in allow_patterns
        write_marqo(Path(local_dir))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match="--download"):
        datasets.DATASETS["marqo-google"](tmp_path)
    assert not asked
    chosen = datasets.select("marqo-google@someone/other@v1.0")
    assert chosen["marqo-google"](tmp_path, download=True).tasks
    assert asked == [("someone/other", "dataset", "v1.0")]
    assert datasets.DATASETS["marqo-google"](tmp_path).tasks and len(asked) == 1  # the folder is there now
    assert not (tmp_path / "marqo-google.part").exists()


def test_a_failed_fetch_is_one_sentence_and_leaves_no_data_set(tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot(repo, *, local_dir, **_):
        local_dir.mkdir(parents=True)
        (local_dir / "data.parquet").write_bytes(b"half")
        raise ConnectionError("the network is away\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"could not be fetched .*the network is away") as error:
        datasets.DATASETS["marqo-google"](tmp_path, download=True)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no marqo-google"):
        datasets.DATASETS["marqo-google"](tmp_path)


@pytest.mark.parametrize(
    "suite", ["nothing", "marqo-google@not an address", "fashion@a/b", "fashion200k@a/b", "marqo-google,nix"]
)
def test_what_cannot_be_selected(suite):
    with pytest.raises(UserError):
        datasets.select(suite)


def test_several_sets_by_name():
    assert list(datasets.select("fashion,esci")) == ["fashion", "esci"]
    assert list(datasets.select("validation")) == ["fashion", "grocery", "luma", "flipkart"]


def test_columns_that_are_missing_are_named_with_those_that_are_there(tmp_path):
    parquet(tmp_path / "x.parquet", [{"a": 1, "b": 2}])
    assert published.pick("x.parquet", published.first_columns(tmp_path / "x.parquet"), ("id", "b")) == "b"
    with pytest.raises(UserError, match=r"no column id \(it has a, b\)"):
        published.pick("x.parquet", ["a", "b"], ("id",))
    (tmp_path / "y.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable Parquet"):
        published.first_columns(tmp_path / "y.parquet")


def test_every_card_says_whose_it_is():
    for card in datasets.DATASETS.values():
        assert card.licence and card.size and card.splits and card.citation
        assert card.hub or card.source or card.mteb or not card.published
        assert json.dumps(card.as_dict())
