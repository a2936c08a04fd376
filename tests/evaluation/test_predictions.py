"""Predictions come back as they were written, and a file that is none is one clear sentence."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.errors import UserError
from moonshelf.evaluation import record
from moonshelf.evaluation.record import Head, Predictions

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(allow_nan=False)


@st.composite
def rankings(draw):
    n = draw(st.integers(0, 4))

    def column(values):
        return draw(st.lists(values, min_size=n, max_size=n))

    head = Head(
        draw(TEXTS), draw(TEXTS), "text", "ranking", "me", "ranking", ("R@1", "mAP"),
        draw(st.integers(0, 2**40)), {"R@1": draw(FLOATS)}, (), None, 1.0, draw(TEXTS),
    )  # fmt: skip
    columns = {
        "id": column(TEXTS), "cluster": column(TEXTS), "ok": column(st.booleans()), "text": column(TEXTS),
        "relevant": column(st.lists(TEXTS, max_size=3)), "gains": column(st.lists(FLOATS, max_size=3)),
        "relevant_scores": column(st.lists(FLOATS, max_size=3)),
        "above": column(st.lists(st.integers(0, 2**40), max_size=3)),
        "tied": column(st.lists(st.integers(1, 2**40), max_size=3)),
        "top": column(st.lists(TEXTS, max_size=3)), "top_scores": column(st.lists(FLOATS, max_size=3)),
        "rationale": column(TEXTS),
        "R@1": column(FLOATS),
    }  # fmt: skip
    return Predictions(head, columns)


@settings(max_examples=25, deadline=None)
@given(rankings())
def test_what_is_written_is_read(tmp_path_factory, kept):
    out = tmp_path_factory.mktemp("out")
    path = record.write_predictions(kept, out)
    assert path.parent == out / "predictions" and path.suffix == ".parquet"
    assert record.read_predictions(path) == kept
    assert [one.head for one in record.all_predictions(out)] == [kept.head]
    assert kept.values("R@1") == kept.columns["R@1"] and kept.values("mAP") is None


def labels() -> Predictions:
    head = Head(
        "toy", "colour", "text", "zero-shot classification", "me", "labels", ("accuracy",), 2, {}, ("a", "b")
    )
    columns = {
        "id": ["1"], "cluster": ["1"], "ok": [True], "text": ["x"], "truth": ["a"], "predicted": ["a"],
        "best": [["a", "b"]], "score": [0.5], "correct": [0.5], "exact": [math.nan], "rationale": [""],
        "valid": [True], "accuracy": [0.5],
    }  # fmt: skip
    return Predictions(head, columns)


def test_another_run_replaces_its_own_file_and_no_other(tmp_path):
    first = labels()
    path = record.write_predictions(first, tmp_path)
    assert record.write_predictions(labels(), tmp_path) == path
    other = Predictions(Head(**{**vars(first.head), "view": "image"}), first.columns)
    assert record.write_predictions(other, tmp_path) != path
    assert len(list((tmp_path / "predictions").iterdir())) == 2
    assert path.name.startswith("toy-colour-text-zero-shot-classification-me-")


def test_a_column_that_is_missing_or_short_is_a_defect_of_the_caller(tmp_path):
    for change, message in (
        (lambda c: c.pop("truth"), "should not have: truth"),
        (lambda c: c.update(extra=["x"]), "should not have: extra"),
        (lambda c: c.update(truth=[]), "differ in length: truth"),
    ):
        kept = labels()
        change(kept.columns)
        with pytest.raises(ValueError, match=message):
            record.write_predictions(kept, tmp_path)


def _damage(path, how):
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"moonshelf"])
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another table":
        pq.write_table(pa.table({"id": ["1"]}), path)
    elif how == "no JSON":
        pq.write_table(table.replace_schema_metadata({b"moonshelf": b"{"}), path)
    elif how == "column":
        pq.write_table(table.drop_columns(["best"]), path)
    elif how == "type":
        at = table.column_names.index("truth")
        pq.write_table(table.set_column(at, "truth", pa.array([1])), path)
    elif how == "empty cell":
        at = table.column_names.index("truth")
        pq.write_table(table.set_column(at, "truth", pa.array([None], pa.string())), path)
    else:
        about = {**about, **({"format": 99} if how == "newer" else {"kind": "songs"})}
        pq.write_table(table.replace_schema_metadata({b"moonshelf": json.dumps(about).encode()}), path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "no readable Parquet"),
        ("empty", "no readable Parquet"),
        ("another table", "what it says of itself: invalid json"),
        ("no JSON", "what it says of itself: invalid json"),
        ("column", "column 'best' is missing"),
        ("type", "column 'truth' holds int64"),
        ("empty cell", "column 'truth' has empty cells"),
        ("newer", "format: input should be 2"),
        ("kind", "kind: input should be 'ranking'"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_sentence(tmp_path, how, message):
    path = record.write_predictions(labels(), tmp_path)
    _damage(path, how)
    with pytest.raises(UserError, match=message) as caught:
        record.read_predictions(path)
    assert path.name in str(caught.value) and "evaluate again with --out" in str(caught.value)


def test_nothing_kept_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="evaluate with --out first"):
        record.all_predictions(tmp_path)
    with pytest.raises(UserError, match="no predictions file"):
        record.read_predictions(tmp_path / "none.parquet")


def test_pictures_come_back(tmp_path):
    rows = {
        ("toy", "b"): ("a shoe", b"\xff\xd8 two"),
        ("toy", "a"): ("", b"\xff\xd8"),
        ("z", "a"): ("b", b""),
    }
    path = record.write_shown(rows, tmp_path)
    assert record.read_shown(tmp_path) == rows
    path.write_bytes(b"no table")
    with pytest.raises(UserError, match="is damaged"):
        record.read_shown(tmp_path)
    assert record.read_shown(tmp_path / "elsewhere") == {}
