"""Behaviour logs: what a row weighs, which rows are rejected, and which products a query must spare."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moonshelf.errors import Problem, UserError
from moonshelf.product import ImageRef, Product
from moonshelf.training.sources.click_log import Interaction, queries_of, read_click_log, stream_click_log
from moonshelf.training.sources.pairs import Item, Query, items_of

KNOWN = ("p1", "p2", "p3")


def write(folder: Path, rows: list[dict[str, Any]], form: str = "csv") -> Path:
    path = folder / f"log.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def pairs(log: Any) -> dict[tuple[str, str], float]:
    return {(i.query.text, i.product_id): i.weight for i in log.interactions}


def item(id: str, group: str = "", title: str = "") -> Item:
    product = Product(id=id, title=title or f"thing {id}", group_id=group or None)
    return next(items_of(product))


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_pairs_with_repeated_rows_added_up(tmp_path: Path, form: str) -> None:
    rows = [
        {"search_term": "Red  shoes", "item_id": "p1", "clicks": 2, "purchases": 1, "impressions": 40},
        {"search_term": "red shoes", "item_id": "p1", "clicks": 1, "purchases": 0, "impressions": 10},
        {"search_term": "mug", "item_id": "p2", "clicks": 1, "purchases": 0, "impressions": 3},
        {"search_term": "mug", "item_id": "p3", "clicks": 0, "purchases": 0, "impressions": 9},
    ]
    log = read_click_log(write(tmp_path, rows, form), KNOWN)
    assert pairs(log) == {("Red shoes", "p1"): 8.0, ("mug", "p2"): 1.0}
    assert (log.rows, log.queries, log.only_shown, log.rejected) == (4, 2, 1, 0)
    assert log.interactions[0].query.words == {"red", "shoes"}


def test_events_weigh_what_the_table_says_and_impressions_nothing(tmp_path: Path) -> None:
    rows = [
        {"query": "mug", "sku": "p1", "eventType": event}
        for event in ("impression", "impression", "CLICK", "addToCart", "detail-page-view", "purchase")
    ]
    log = read_click_log(write(tmp_path, rows), KNOWN)
    assert pairs(log) == {("mug", "p1"): 1 + 3 + 1 + 5}


def test_rows_that_cannot_be_used_are_counted_by_field_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = [
        {"query": "mug", "product_id": "p1", "weight": "2"},
        {"query": " ", "product_id": "p1", "weight": "2"},
        {"query": "mug", "product_id": "gone", "weight": "2"},
        {"query": "mug", "product_id": "", "weight": "2"},
        {"query": "mug", "product_id": "p2", "weight": "0"},
        {"query": "mug", "product_id": "p2", "weight": "-1"},
        {"query": "mug", "product_id": "p2", "weight": "nan"},
        {"query": "mug", "product_id": "p2", "weight": "many"},
        {"query": "x" * 2000, "product_id": "p2", "weight": "1"},
    ]
    log = read_click_log(write(tmp_path, rows), KNOWN)
    assert pairs(log) == {("mug", "p1"): 2.0}
    assert (log.rows, log.rejected) == (9, 8)
    assert log.rejected_by == {"query": 2, "product_id": 2, "weight": 4}
    assert [p.row for p in log.problems] == list(range(2, 10)) and all(p.fatal for p in log.problems)
    assert "8 rows rejected" in log.summary() and "the query is empty" in log.summary()


def test_an_unknown_event_is_rejected(tmp_path: Path) -> None:
    rows = [{"query": "mug", "product_id": "p1", "action": a} for a in ("click", "scroll")]
    log = read_click_log(write(tmp_path, rows), KNOWN)
    assert pairs(log) == {("mug", "p1"): 1.0} and "'scroll'" in log.problems[0].reason


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"user": "u", "product_id": "p1"}], r"no column for the query.*user, product_id"),
        ([{"query": "mug", "user": "u"}], "no column for the product"),
        ([{"query": "mug", "product_id": "zz9"}], "'zz9', the catalogue such as 'p1'"),
        ([{"query": "", "product_id": "p1"}], "the query is empty"),
        ([{"query": "mug", "product_id": "p1", "clicks": 0}], "only shown"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_log_that_is_of_no_use_is_one_sentence(tmp_path: Path, rows: list, says: str, form: str) -> None:
    with pytest.raises(UserError, match=says):
        read_click_log(write(tmp_path, rows, form), KNOWN)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('[{"query": "mug", "product_id": "p1"}]')
    with pytest.raises(UserError, match="give CSV, TSV, JSONL or Parquet"):
        read_click_log(tmp_path / "log.json", KNOWN)
    (tmp_path / "log.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read_click_log(tmp_path / "log.parquet", KNOWN)
    with pytest.raises(UserError, match="there is no file"):
        read_click_log(tmp_path / "gone.csv", KNOWN)


def test_pictures_ask_alone_and_with_words_and_may_not_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"a")
    (tmp_path / "secret.jpg").write_bytes(b"s")
    rows = [
        {"query": "", "query_image": "a.jpg", "product_id": "p1"},
        {"query": "", "query_image": "./a.jpg", "product_id": "p2"},
        {"query": "in red", "query_image": "a.jpg", "product_id": "p2"},
        {"query": "mug", "query_image": "https://shop.example/a.jpg", "product_id": "p3"},
        {"query": "", "query_image": "../secret.jpg", "product_id": "p3"},
        {"query": "", "query_image": "lost.jpg", "product_id": "p3"},
    ]
    log = read_click_log(write(tmp_path / "in", rows), KNOWN)
    seen = [
        (i.query.text, i.query.picture, i.query.image is not None, i.product_id) for i in log.interactions
    ]
    assert seen == [
        ("", True, True, "p1"), ("", True, True, "p2"), ("in red", True, True, "p2"),
        ("mug", False, False, "p3"),
    ]  # fmt: skip
    assert log.queries == 3 and log.rejected_by == {"image": 2}
    warning = next(p for p in log.problems if not p.fatal)
    assert warning.row == 4 and "web address" in warning.reason


def test_pictures_inside_a_table_are_one_query_by_their_bytes(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": b"jpeg", "path": "x.jpg"}, "item_id": "p1"},
        {"image": {"bytes": b"jpeg", "path": "y.jpg"}, "item_id": "p2"},
        {"image": {"bytes": b"other", "path": "x.jpg"}, "item_id": "p3"},
    ]
    log = read_click_log(write(tmp_path, rows, "parquet"), KNOWN)
    assert log.queries == 2
    found = queries_of([item(id) for id in KNOWN], log.interactions)
    assert found["p1"][0][0].answers == {"p1", "p2"} and found["p3"][0][0].answers == {"p3"}
    assert found["p1"][0][0].image == ImageRef(data=b"jpeg")


def test_compressed_and_damaged_logs(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    rows = "".join(f"query {i * 7919},p1\n" for i in range(20_000))
    packed = gzip.compress(("query,product_id\n" + rows).encode())
    path.write_bytes(packed)
    assert len(read_click_log(path, KNOWN).interactions) == 20_000
    path.write_bytes(packed[: len(packed) // 2])
    log = read_click_log(path, KNOWN)
    assert 0 < len(log.interactions) < 20_000 and "cut off" in log.problems[-1].reason


def test_a_query_spares_everything_chosen_for_it_and_its_variants() -> None:
    items = [
        item("a1", "A", "red running shoe"), item("a2", "A", "blue running shoe"),
        item("b1", "B", "red shoe"), item("b2", "B", "green shoe"),
        item("c1", "C", "mug"), item("d1", "D", "red leather shoe"),
    ]  # fmt: skip
    red = Query("Red shoe", words=frozenset({"red", "shoe"}))
    interactions = [
        Interaction(red, "a1", 1.0), Interaction(red, "b1", 4.0), Interaction(Query("cup"), "c1", 1.0),
        Interaction(Query("red SHOE"), "a1", 2.0), Interaction(Query("trainers"), "a1", 2.5),
        Interaction(Query("gone"), "nowhere", 9.0),
    ]  # fmt: skip
    found = queries_of(items, interactions)
    assert {id: [(q.text, w) for q, w in qs] for id, qs in found.items()} == {
        "a1": [("Red shoe", 3.0), ("trainers", 2.5)], "b1": [("Red shoe", 4.0)], "c1": [("cup", 1.0)],
    }  # fmt: skip
    query = found["a1"][0][0]
    assert [query.holds(other) for other in items] == [True, True, True, True, False, True]


def test_logs_may_name_records_or_their_looks() -> None:
    looks = [Item(f"h#{c}", "h", "hoodie", (), (), {}, product="h") for c in ("red", "blue")]
    found = queries_of(
        looks, [Interaction(Query("hoodie"), "h", 2.0), Interaction(Query("red"), "h#red", 1.0)]
    )
    assert {id: [q.text for q, _ in qs] for id, qs in found.items()} == {
        "h#red": ["hoodie", "red"], "h#blue": ["hoodie"],
    }  # fmt: skip


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "query": TEXT,
            "product_id": st.sampled_from((*KNOWN, "other", "")),
            "clicks": st.one_of(st.integers(-2, 9), st.sampled_from(("", "x", "1.5"))),
        }
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_weight_is_neither_lost_nor_invented(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path, [{**row, "clicks": str(row["clicks"])} for row in rows], "jsonl")
    seen: list[Interaction | Problem] = []
    try:
        seen.extend(stream_click_log(path, KNOWN))
    except UserError:  # no row is usable
        assert not any(row["product_id"] in KNOWN and _clicks(row) and row["query"].isalnum() for row in rows)
        return
    assert len(seen) == len(rows)
    expected: dict[str, float] = defaultdict(float)
    for row, outcome in zip(rows, seen, strict=True):
        if isinstance(outcome, Problem):
            assert row["product_id"] not in KNOWN or _clicks(row) is None or not row["query"].isalnum()
        else:
            assert row["product_id"] in KNOWN and outcome.weight == _clicks(row)
            expected[row["product_id"]] += outcome.weight
    if any(expected.values()):
        log = read_click_log(path, KNOWN)
        got: dict[str, float] = defaultdict(float)
        for interaction in log.interactions:
            assert interaction.weight > 0 and interaction.query.text
            got[interaction.product_id] += interaction.weight
        assert dict(got) == {id: weight for id, weight in expected.items() if weight}
        assert log.rows == len(rows)
        assert log.rejected == sum(isinstance(outcome, Problem) for outcome in seen)


def _clicks(row: dict[str, Any]) -> float | None:
    try:
        number = float(row["clicks"] or 0)
    except ValueError:
        return None
    return number if number >= 0 else None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), suffix=st.sampled_from(("csv", "tsv", "jsonl", "parquet")))
@example(data=b"\x0b", suffix="csv")
def test_garbage_is_one_sentence_or_problems(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"noise.{suffix}"
    for head in (b"", b"query,product_id,weight\n", b'{"query": "a", "product_id": "p1"}\n'):
        path.write_bytes(head + data)
        try:
            list(stream_click_log(path, KNOWN))
        except UserError as error:
            assert str(error).endswith(".")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("qrs"), st.sampled_from("abcdef"), st.floats(0.1, 9)),
        min_size=1,
        max_size=25,
    )
)
def test_products_chosen_for_one_query_are_never_its_negatives(log: list[tuple[str, str, float]]) -> None:
    items = [item(id, group) for id, group in zip("abcdef", "AABBCC", strict=True)]
    found = queries_of(items, [Interaction(Query(q), p, w) for q, p, w in log])
    total = sum(weight for queries in found.values() for _, weight in queries)
    assert total == pytest.approx(sum(weight for _, _, weight in log))
    groups = {i.id: i.group for i in items}
    for queries in found.values():
        assert [w for _, w in queries] == sorted((w for _, w in queries), reverse=True)
        for query, _ in queries:
            chosen = {groups[p] for q, p, _ in log if q == query.text}
            assert {i.group for i in items if query.holds(i)} == chosen
