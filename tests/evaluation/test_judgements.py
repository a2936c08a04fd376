"""Judgements of three forms give the same grades; what is wrong with a row or a file is one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from moonshelf.errors import UserError
from moonshelf.evaluation.data.judgements import read_judgements
from moonshelf.training.sources.click_log import Asked, read_queries

KNOWN = ("a", "b", "c")
GRADES = {"red dress": {"a": 3.0, "b": 0.0}, "blue jeans": {"b": 2.0, "c": 1.0}}
ROWS = [(query, id, grade) for query, some in GRADES.items() for id, grade in some.items()]
IDS = {"red dress": "q1", "blue jeans": "q2"}

RATINGS = [
    {"query": query, "ratings": [{"docId": id, "rating": f"{grade:.3f}"} for id, grade in some.items()]}
    for query, some in GRADES.items()
]
FORMS = {
    "quepid.csv": "query,docid,rating\n" + "".join(f"{q},{i},{g:g}\n" for q, i, g in ROWS),
    "detailed.csv": "Team Name,Query Text,Doc ID,Doc Position,Rating\n"
    + "".join(f"us,{q},{i},1,{g:g}\n" for q, i, g in ROWS),
    "lines.jsonl": "".join(json.dumps({"query": q, "docid": i, "rating": g}) + "\n" for q, i, g in ROWS),
    "words.qrels": "".join(f"{q}\t0\t{i}\t{g:g}\n" for q, i, g in ROWS),
    "import.json": json.dumps({"name": "mine", "type": "IMPORT_JUDGMENT", "judgmentRatings": RATINGS}),
    "stored.json": json.dumps({"hits": {"hits": [{"_id": "1", "_source": {"judgmentRatings": RATINGS}}]}}),
    "ids.qrels": "".join(f"{IDS[q]} 0 {i} {g:g}\n" for q, i, g in ROWS),
    "ids.csv": "query_id,docid,rating\n" + "".join(f"{IDS[q]},{i},{g:g}\n" for q, i, g in ROWS),
}


def write(folder: Path, text: str, name: str = "judgements.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_grades(tmp_path: Path, name: str) -> None:
    asked = {id: Asked(text) for text, id in IDS.items()} if name.startswith("ids") else None
    found = read_judgements(write(tmp_path, FORMS[name], name), KNOWN, asked=asked)
    assert found.grades == GRADES and not found.problems
    assert found.notes == ["2 queries, 4 judgements, grades 0 to 3"]


def test_words_of_queries_come_from_a_table_or_from_ubi(tmp_path: Path) -> None:
    table = write(tmp_path, "qid\tquery\nq1\tred dress\nq2\tblue jeans\n", "topics.tsv")
    assert read_queries(table) == {"q1": Asked("red dress"), "q2": Asked("blue jeans")}
    lines = [
        {"_source": {"query_id": "q1", "user_query": "red dress", "query_response_hit_ids": ["b", "a"]}},
        {"query_id": "q2", "user_query": None},
    ]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    assert read_queries(write(tmp_path, text, "ubi.ndjson")) == {"q1": Asked("red dress", ("b", "a"))}
    with pytest.raises(UserError, match="names no query"):
        read_queries(write(tmp_path, "a,b\n1,2\n", "none.csv"))


def test_columns_are_named_and_raters_averaged(tmp_path: Path) -> None:
    text = "Suche;Artikel;Note;Wer\nred dress;a;3;x\nred dress;a;1;y\nred dress;b;-2;y\nred dress;c;;y\n"
    columns = {"Suche": "query", "Artikel": "product_id", "Note": "rating"}
    found = read_judgements(write(tmp_path, text), KNOWN, columns=columns)
    assert found.grades == {"red dress": {"a": 2.0, "b": 0.0}}, (
        "below 0 counts as 0; no rating is no judgement"
    )
    assert "1 rows without one" in found.notes[0]


def test_what_is_wrong_with_a_row_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = (
        "query,docid,rating\nred,a,3\nred,gone,2\nred,b,good\n,a,1\nmug,,1\nmug,b\nonly,c,2\nlost,gone,3\n"
        f"bad,a,0\n{'x' * 1001},a,1\n"
    )
    found = read_judgements(write(tmp_path, text), KNOWN)
    assert found.grades == {"red": {"a": 3.0}, "only": {"c": 2.0}}
    told = [(p.row, p.reason, p.fatal) for p in found.problems]
    one = "it has one judgement: its figures say where that product stands, no more"
    none = "none of its relevant products is in the catalogue: the query is rejected"
    gone = "of its {} judged products are not in the catalogue, such as 'gone'"
    assert told == [
        (3, "the rating 'good' is not a number", True), (4, "there is no query", True),
        (5, "there is no product", True), (10, "the query is longer than 1,000 characters", True),
        ("red", f"1 {gone.format(2)}", False), ("red", one, False), ("only", one, False),
        ("lost", f"1 {gone.format(1)}", False), ("lost", none, True), ("bad", none, True),
    ]  # fmt: skip


def test_the_least_relevant_grade_is_the_users_or_said(tmp_path: Path) -> None:
    path = write(tmp_path, "query,docid,rating\nred,a,4\nred,b,1\nmug,b,2\nmug,c,1\n")
    found = read_judgements(path, KNOWN)
    assert "even 1 is relevant in MRR and recall: say --relevant-from" in found.notes[0]
    assert set(read_judgements(path, KNOWN, relevant_from=3).grades) == {"red"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("query,docid,rating\n", "it holds no row"),
        ("query,docid,rating\nred,a,\n", "nothing is rated"),
        ("a,b\n1,2\n", r"no column for the query \(it has a, b\)"),
        ("query,docid\nred,a\n", "no column for the rating"),
        ("q1 0 a 1\n", "names queries by id, such as 'q1': give their words by --queries"),
        ('{"judgmentRatings": [', "no whole JSON"),
        ("query,docid,rating\nred,x,3\n", "such as 'x', the catalogue has such as 'a'"),
        ("query,docid,rating\nred,a,0\n", "no query has a relevant product"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_judgements(write(tmp_path, text), KNOWN)
    with pytest.raises(UserError, match="judgements have no field 'price'"):
        read_judgements(write(tmp_path, "query,docid,rating\n"), KNOWN, columns={"x": "price"})


def test_an_archive_that_is_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    rows = "query,docid,rating\n" + "".join(f"query {i},a,3\n" for i in range(60_000))
    packed = gzip.compress(rows.encode())
    (tmp_path / "j.csv.gz").write_bytes(packed[: len(packed) * 9 // 10])
    found = read_judgements(tmp_path / "j.csv.gz", KNOWN)
    assert found.grades["query 1"] == {"a": 3.0}
    assert any("the rest was not read" in problem.reason for problem in found.problems)
