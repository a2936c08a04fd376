"""Published data sets: their layout on small files of the same shape, and one sentence for what is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_fakes import FakeMoon
from PIL import Image

from moonshelf.errors import UserError
from moonshelf.evaluation.data import hub
from moonshelf.evaluation.data import registry as datasets
from moonshelf.evaluation.encoders.baselines import MoonshelfEncoder
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


def jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def tables(folder: Path, queries, texts, truth) -> None:
    """The three tables that mteb reads."""
    parquet(folder / "query-00000-of-00001.parquet", queries)
    parquet(folder / "texts-00000-of-00001.parquet", texts)
    rows = [{"query-id": q, "texts-id": c, "score": score} for q, c, score in truth]
    parquet(folder / "qrels-00000-of-00001.parquet", rows)


def item(id: str, text: str | None, shade: int | None) -> dict[str, object]:
    image = None if shade is None else picture(shade)
    parts = [name for name, value in (("image", image), ("text", text)) if value]
    return {"id": id, "modality": ",".join(parts), "text": text, "image": image}


def texts_and_photos(start: int):
    texts = [item(f"1:{start + i}", f"red dress number {i}", None) for i in range(ROWS)]
    photos = [item(f"2:{start + i}", None, 20 * i) for i in range(ROWS)]
    return texts, photos


def write_fashion200k(folder: Path) -> None:
    texts, photos = texts_and_photos(0)
    pairs = list(zip([t["id"] for t in texts], [p["id"] for p in photos], strict=True))
    tables(folder / "task0", texts, photos, [(t, p, 1) for t, p in pairs])
    tables(folder / "task3", photos, texts, [(p, t, 1) for t, p in pairs])


def write_fashion200k_mbeir(folder: Path) -> None:
    _, photos = texts_and_photos(0)
    images = folder / "mbeir_images"
    images.mkdir(parents=True)
    for i in range(ROWS):
        (images / f"{i}.jpg").write_bytes(jpeg(20 * i))
    texts = [
        {"did": f"1:{i}", "txt": f"dress {i}", "img_path": None, "modality": "text"} for i in range(ROWS)
    ]
    photos = [
        {"did": f"2:{i}", "txt": None, "img_path": f"mbeir_images/{i}.jpg", "modality": "image"}
        for i in range(ROWS)
    ]
    for part, asked, found in (("task0", texts, photos), ("task3", photos, texts)):
        queries = [
            {"qid": f"9:{i}", "query_txt": row["txt"], "query_img_path": row["img_path"],
             "query_modality": row["modality"], "pos_cand_list": [found[i]["did"]], "neg_cand_list": []}
            for i, row in enumerate(asked)
        ]  # fmt: skip
        jsonl(folder / f"query/test/mbeir_fashion200k_{part}_test.jsonl", queries)
        jsonl(folder / f"cand_pool/local/mbeir_fashion200k_{part}_cand_pool.jsonl", found)
        lines = [f"9:{i} 0 {found[i]['did']} 1 {part[-1]}\n" for i in range(ROWS)]
        qrels = folder / f"qrels/test/mbeir_fashion200k_{part}_test_qrels.txt"
        qrels.parent.mkdir(parents=True, exist_ok=True)
        qrels.write_text("".join(lines))


def write_fashioniq(folder: Path) -> None:
    _, photos = texts_and_photos(0)
    queries = [item(f"q{i}", "the same in blue", 20 * i) for i in range(ROWS - 1)]
    tables(folder, queries, photos, [(f"q{i}", f"2:{i + 1}", 1) for i in range(ROWS - 1)])


def write_sop(folder: Path) -> None:
    shades = [10 * i for i in range(3 * ROWS)]
    texts = [item(f"d{i}", None, shade) for i, shade in enumerate(shades)]
    queries = [item(f"q{i}", None, shades[3 * i]) for i in range(ROWS)]  # each is in the texts, too
    truth = [(f"q{i}", f"d{3 * i + j}", 1) for i in range(ROWS) for j in range(3)]
    tables(folder, queries, texts, truth)


def write_ebay(folder: Path) -> None:
    lines = ["image_id class_id super_class_id path"]
    for i in range(ROWS):
        kind = ("chair_final", "sofa_final")[i % 2]
        for j in range(3):
            path = folder / kind / f"{i}_{j}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(30 * i + j))
            lines.append(f"{3 * i + j + 1} {i + 1} {i % 2 + 1} {kind}/{i}_{j}.JPG")
    (folder / "Ebay_test.txt").write_text("\n".join(lines) + "\n")


def write_marqo(folder: Path) -> None:
    rows = [
        {"image": picture(20 * i), "item_ID": f"i{i}", "query": ("lamp", "desk")[i % 2], "title": f"lamp {i}",
         "position": i}
        for i in range(ROWS)
    ]  # fmt: skip
    rows.append({**rows[0], "query": "desk"})  # one item that two terms found
    parquet(folder / "data/data-00000-of-00002.parquet", rows[:3])
    parquet(folder / "data/data-00001-of-00002.parquet", rows[3:])


def judgements() -> list[dict[str, object]]:
    rows = []
    for q in range(ROWS):
        for n, label in enumerate("ESCI"):
            rows.append({
                "example_id": 4 * q + n, "query": f"phone case {q}", "query_id": q,
                "product_id": f"B{q}{label}", "product_locale": "us", "esci_label": label,
                "small_version": 1, "large_version": 1, "split": "test",
            })  # fmt: skip
    rows.append({**rows[0], "query_id": 90, "product_locale": "jp"})
    rows.append({**rows[0], "query_id": 91, "split": "train"})
    rows.append({**rows[1], "query_id": 92})  # a substitute only: no truth for a hit
    return rows


def product(id: str) -> dict[str, object]:
    return {"product_id": id, "product_title": f"case {id}", "product_description": None,
            "product_bullet_point": "x", "product_brand": "b", "product_color": "red",
            "product_locale": "us"}  # fmt: skip


def write_esci(folder: Path) -> None:
    rows = judgements()
    place = folder / "shopping_queries_dataset"
    parquet(place / "shopping_queries_dataset_examples.parquet", rows)
    ids = sorted({str(row["product_id"]) for row in rows})
    products = [*map(product, ids), {**product("B0E"), "product_locale": "jp", "product_title": "ケース"}]
    parquet(place / "shopping_queries_dataset_products.parquet", products)


def write_esci_joined(folder: Path) -> None:
    words = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
    rows = [row for row in judgements() if row.pop("split") == "test"]
    joined = [
        {**row, **product(str(row["product_id"])), "product_locale": row["product_locale"],
         "esci_label": words[str(row["esci_label"])]}
        for row in rows
    ]  # fmt: skip
    parquet(folder / "data/test-00000-of-00001.parquet", joined)


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


def write_m5product(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for i in range(2 * ROWS):
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg(15 * i))

    def records(ids):
        return {
            str(i): {"title": f"cup {i}", "label": ("cup", "plate")[i % 2], "url": f"https://x.example/{i}"}
            for i in ids
        }

    (folder / "query.json").write_text(json.dumps(records(range(ROWS))))
    (folder / "gallery.json").write_text(json.dumps(records(range(2 * ROWS))))


def mbe_rows(queries: bool) -> list[dict[str, object]]:
    rows = []
    for i in range(40):
        colour = ("红色", "蓝色")[i % 2]
        row = {
            "id": f"{i:x}", "doc_title": f"{colour}连衣裙 {i}",
            "doc_image": f"https://img.example/a/{i}.jpg",
            "doc_industry_name": "服饰时尚", "doc_cate1_name": ("女装", "男装")[i % 2],
            "doc_cate2_name": "裙",
            "doc_cate3_name": "", "doc_cate4_name": None,
            "doc_attributes": f"颜色:{colour},,材质:棉!!!麻,,季节:夏",
        }  # fmt: skip
        if queries:
            row |= {"query_title": f"{colour} 裙子 {i}", "query_image": f"https://img.example/b/q{i}.jpg"}
        rows.append(row)
    return rows


def write_mbe(folder: Path, queries: bool = True) -> None:
    jsonl(folder / "test.jsonl", mbe_rows(queries))
    (folder / "images").mkdir()
    for i in range(40):
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg(6 * i))
        (folder / "images" / f"q{i}.jpg").write_bytes(jpeg(6 * i + 1))


WRITERS = {
    "fashion200k": write_fashion200k, "fashioniq": write_fashioniq, "sop": write_sop,
    "marqo-google": write_marqo, "marqo-amazon-100k": write_marqo, "esci": write_esci,
    "implicitave": write_implicitave, "m5product": write_m5product, "mbe": write_mbe, "mbe2": write_mbe,
    "mbe3": write_mbe,
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
    moon = MoonshelfEncoder(FakeMoon(), "off", 8192)
    for task in dataset.tasks:
        shown = [*task.queries, *task.corpus] if isinstance(task, Retrieval) else list(task.products)
        for one in shown:
            assert not one.category and not one.attributes and not one.extra and not one.brand
        results = task.run(moon, lambda encoder, products: encoder.encode(products))
        assert all(np.isfinite(r.value) for r in results if r.value is not None)


@pytest.mark.parametrize("write", [write_fashion200k, write_fashion200k_mbeir])
def test_fashion200k_in_both_layouts(write, tmp_path):
    tasks = ranked(read("fashion200k", tmp_path, write))
    assert set(tasks) == {"text → image", "image → text"}
    there = tasks["text → image"]
    assert len(there.queries) == len(there.corpus) == ROWS
    assert there.queries[0].title and not there.queries[0].images and there.corpus[0].images
    assert [list(wanted) for wanted in there.relevant][:2] == [["2:0"], ["2:1"]]


def test_fashioniq_asks_with_a_photo_and_words(tmp_path):
    task = ranked(read("fashioniq", tmp_path))["photo + change → photo"]
    assert task.queries[0].images and task.queries[0].title == "the same in blue"
    assert "R@50" in task.metrics and len(task.corpus) == ROWS


def test_no_photo_of_online_products_finds_itself(tmp_path):
    task = ranked(read("sop", tmp_path))["image → image"]
    asked = {q.images[0].data for q in task.queries}
    assert len(task.queries) == ROWS and len(task.corpus) == 2 * ROWS
    assert not asked & {p.images[0].data for p in task.corpus}


def test_online_products_as_its_authors_list_it(tmp_path):
    dataset = read("sop", tmp_path, write_ebay)
    task = ranked(dataset)["image → image"]
    assert len(task.queries) == ROWS and len(task.corpus) == 2 * ROWS
    assert task.relevant[0] == {"1": 1.0} and task.corpus_keys[:2] == ["1", "1"]
    assert labelled(dataset)["department", "image"].labels == ["chair", "sofa"]


def test_marqo_terms_find_every_item_that_they_found(tmp_path):
    dataset = read("marqo-google", tmp_path)
    tasks = ranked(dataset)
    term = tasks["search term → image"]
    assert [q.title for q in term.queries] == ["desk", "lamp"]
    assert set(term.relevant[0]) == {"i0", "i1", "i3", "i5"}
    assert len(tasks["title → image"].corpus) == ROWS and not dataset.problems


@pytest.mark.parametrize("write", [write_esci, write_esci_joined])
def test_esci_grades_and_sets_aside_queries_without_an_exact_match(write, tmp_path):
    dataset = read("esci", tmp_path, write)
    task = ranked(dataset)["query → product"]
    assert len(task.queries) == ROWS and task.relevant[0] == {"B0E": 1.0, "B0S": 0.1, "B0C": 0.01}
    assert len(task.corpus) == 4 * ROWS and task.hit_gain == 1.0  # what is irrelevant can be found, too
    assert [p.id for p in dataset.problems] == ["92"] and "exact" in dataset.problems[0].reason


def test_implicitave_offers_the_options_and_drops_the_tag(tmp_path):
    tasks = labelled(read("implicitave", tmp_path))
    assert {view for _, view in tasks} == {"image", "text, hidden", "image + text, hidden"}
    neck = tasks["Clothing: Neckline", "image + text, hidden"]
    assert neck.labels == ["crew neck", "halter", "henley"] and neck.key == "neckline"
    assert neck.products[0].title == "Womens Dress 0" and neck.truth[:2] == ["crew neck", "halter"]
    assert tasks["Clothing: Sleeve Style", "image"].labels == ["long sleeve", "sleeveless"]


def test_m5product_searches_by_label(tmp_path):
    dataset = read("m5product", tmp_path)
    tasks = ranked(dataset)
    assert len(tasks) == 5 and len(tasks["image → multimodal"].corpus) == ROWS
    assert tasks["text → image"].relevant[1] == {"plate": 1.0}
    assert labelled(dataset)["label", "image"].truth[:2] == ["cup", "plate"]


def test_mbe_has_five_directions_levels_and_attributes(tmp_path):
    dataset = read("mbe", tmp_path)
    tasks = ranked(dataset)
    assert len(tasks) == 5 and not dataset.not_run
    ask = tasks["multimodal → multimodal"]
    assert ask.queries[1].title == "蓝色 裙子 1" and ask.corpus[1].title == "蓝色连衣裙 1"
    assert len(ask.corpus) == 40 and list(ask.relevant[3]) == [ask.corpus_keys[3]]
    labels = labelled(dataset)
    assert labels["category 1", "image"].labels == ["女装", "男装"]
    assert ("industry", "image") not in labels  # one name for all: nothing to choose
    assert labels["颜色", "text"].labels == ["红色", "蓝色"]
    assert labels["颜色", "text, hidden"].products[0].title == "连衣裙 0"
    assert ("材质", "text") not in labels and (
        "季节",
        "text",
    ) not in labels  # two values at once; one for all


def test_mbe_without_queries_matches_title_and_photo_and_says_what_it_cannot(tmp_path):
    dataset = read("mbe", tmp_path, lambda folder: write_mbe(folder, queries=False))
    assert set(ranked(dataset)) == {"text → image", "image → text"}
    assert set(dataset.not_run) == {f"{asks} → multimodal" for asks in ("image", "text", "multimodal")}


def test_mbe_without_its_photos_is_scored_by_text_alone(tmp_path):
    dataset = read("mbe", tmp_path, lambda folder: jsonl(folder / "test.jsonl", mbe_rows(False)))
    assert not ranked(dataset) and ("颜色", "text") in labelled(dataset)
    assert len(dataset.problems) == 40 and "--download" in dataset.problems[0].reason


def test_limit_keeps_what_is_relevant(tmp_path):
    tasks = ranked(read("fashion200k", tmp_path, limit=2))
    for task in tasks.values():
        assert len(task.queries) == len(task.corpus) == 2
        assert all(set(wanted) <= set(task.corpus_keys) for wanted in task.relevant)
    again = ranked(datasets.DATASETS["fashion200k"](tmp_path, limit=2))
    assert [q.id for q in again["text → image"].queries] == [q.id for q in tasks["text → image"].queries]


def spoil(path: Path, change) -> None:
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows)), path)


def drop(column: str):
    return lambda rows: [{k: v for k, v in row.items() if k != column} for row in rows]


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("sop", "qrels-00000-of-00001.parquet", drop("texts-id"), "no column texts-id or corpus_id"),
        ("sop", "texts-00000-of-00001.parquet", drop("id"), "no column id"),
        ("sop", "texts-00000-of-00001.parquet", drop("image"), "no candidate of sop.* nor an image"),
        (
            "sop", "qrels-00000-of-00001.parquet", lambda rows: [{**r, "score": "high"} for r in rows],
            "relevance 'high' where a number",
        ),
        (
            "sop", "qrels-00000-of-00001.parquet", lambda rows: [{**r, "query-id": "no"} for r in rows],
            "no query of sop",
        ),
        ("marqo-google", "data/data-00000-of-00002.parquet", drop("title"), "no column title"),
        (
            "esci", "shopping_queries_dataset/shopping_queries_dataset_examples.parquet", drop("esci_label"),
            "no column esci_label",
        ),
        (
            "esci", "shopping_queries_dataset/shopping_queries_dataset_examples.parquet",
            lambda rows: [{**r, "esci_label": "S"} for r in rows], "no query of esci has an exact match",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(name, file, change, message, tmp_path):
    WRITERS[name](tmp_path / name)
    spoil(tmp_path / name / file, change)
    with pytest.raises(UserError, match=message) as error:
        datasets.DATASETS[name](tmp_path)
    assert "\n" not in str(error.value)


def test_rows_without_a_picture_or_a_relevant_item_are_set_aside(tmp_path):
    write_fashion200k(tmp_path / "fashion200k")
    empty = {"bytes": b"", "path": None}
    for part, bad in (("task0", 0), ("task3", 1)):
        spoil(
            tmp_path
            / "fashion200k"
            / part
            / f"{'texts' if part == 'task0' else 'query'}-00000-of-00001.parquet",
            lambda rows, bad=bad: [
                {**r, "image": empty if i == bad else r["image"]} for i, r in enumerate(rows)
            ],
        )
    dataset = datasets.DATASETS["fashion200k"](tmp_path)
    tasks = ranked(dataset)
    assert len(tasks["text → image"].corpus) == len(tasks["text → image"].queries) == ROWS - 1
    assert len(tasks["image → text"].queries) == ROWS - 1
    reasons = " ".join(problem.reason for problem in dataset.problems)
    assert "no relevant product in the corpus" in reasons and "nor an image" in reasons


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mbe", r"--download.*hf download Daoze/MM-Bench-E-Commerce --repo-type dataset --local-dir"),
        ("fashion200k", r"task0.*and.*task3"),
        ("mbe3", r"mbe3@OWNER/NAME"),
        ("m5product", r"query\.json and gallery\.json"),
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
        write_sop(Path(local_dir))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match="--download"):
        datasets.DATASETS["sop"](tmp_path)
    assert not asked
    chosen = datasets.select("sop@someone/other@v1.0")
    assert chosen["sop"](tmp_path, download=True).tasks
    assert asked == [("someone/other", "dataset", "v1.0")]
    assert datasets.DATASETS["sop"](tmp_path).tasks and len(asked) == 1  # the folder is there now
    assert not (tmp_path / "sop.part").exists()


def test_a_failed_fetch_is_one_sentence_and_leaves_no_data_set(tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot(repo, *, local_dir, **_):
        local_dir.mkdir(parents=True)
        (local_dir / "texts-00000-of-00001.parquet").write_bytes(b"half")
        raise ConnectionError("the network is away\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"could not be fetched .*the network is away") as error:
        datasets.DATASETS["sop"](tmp_path, download=True)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no sop"):
        datasets.DATASETS["sop"](tmp_path)


@pytest.mark.parametrize(
    "suite", ["nothing", "mbe@not an address", "fashion@a/b", "fashion200k@a/b", "mbe,nix"]
)
def test_what_cannot_be_selected(suite):
    with pytest.raises(UserError):
        datasets.select(suite)


def test_several_sets_by_name():
    assert list(datasets.select("fashion,esci")) == ["fashion", "esci"]
    assert list(datasets.select("validation")) == ["fashion", "grocery", "luma", "flipkart"]


def test_table_says_what_is_there_instead(tmp_path):
    parquet(tmp_path / "x.parquet", [{"a": 1, "b": 2}])
    with pytest.raises(UserError, match=r"no column id \(it has a, b\)"):
        list(hub.table(tmp_path / "x.parquet", {"id": ("id",)}))
    (tmp_path / "y.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="not a readable Parquet"):
        list(hub.table(tmp_path / "y.parquet", {"id": ("id",)}))
    assert list(hub.table(tmp_path / "x.parquet", {"id": ("id", "b")}, where={"id": 2})) == [{"id": 2}]


def test_every_card_says_whose_it_is():
    for card in datasets.cards():
        assert card.licence and card.size and card.splits and card.citation
        assert card.addresses or card.source or not card.published
        assert json.dumps(card.as_dict())
