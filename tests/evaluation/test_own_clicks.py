"""Looks by place are found again in clicks drawn with them, and a broken assumption is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moonshelf.errors import UserError
from moonshelf.evaluation.data.clicks import correct, read_clicks
from moonshelf.training.sources.click_log import read_queries

LOOKED = np.array([1.0, 0.6, 0.4, 0.25, 0.15])


def drawn(
    cascade: bool = False, seed: int = 0, searches: int = 400
) -> dict[tuple[str, str, int], list[float]]:
    """Clicks on 30 queries of five products, in orders that vary; with `cascade` people stop at a click."""
    rng = np.random.default_rng(seed)
    cells: dict[tuple[str, str, int], list[float]] = {}
    for q in range(30):
        worth = rng.uniform(0.05, 0.2 if q % 2 else 0.9, 5)
        for _ in range(searches):
            order = np.argsort(-(worth + rng.normal(0, 0.5, 5)))  # a fair ranking, with some chance in it
            for place, product in enumerate(order):
                cell = cells.setdefault((f"q{q}", f"p{product}", place + 1), [0.0, 0.0])
                clicked = rng.random() < worth[product] * (1.0 if cascade else LOOKED[place])
                cell[0], cell[1] = cell[0] + 1, cell[1] + clicked
                if clicked and cascade:
                    for rest in range(place + 1, 5):
                        cells.setdefault((f"q{q}", f"p{order[rest]}", rest + 1), [0.0, 0.0])[0] += 1
                    break
    return cells


def test_looks_are_told_from_worth_and_the_assumption_holds() -> None:
    bias, looks = correct(drawn())
    assert bias.places == [1, 2, 3, 4, 5] and bias.linked.all()
    assert bias.looked == pytest.approx(LOOKED, abs=0.05)
    assert bias.p is not None and bias.p > 0.01
    shown = sum(cell[0] for key, cell in drawn().items() if key[:2] == ("q0", "p0"))
    assert looks["q0", "p0"] < shown
    p = [correct(drawn(seed=seed, searches=60))[0].p or 0.0 for seed in range(20)]
    assert sum(one < 0.05 for one in p) <= 4, "a true assumption is doubted about as often as it should be"


def test_people_who_stop_at_a_click_break_the_assumption() -> None:
    bias, _ = correct(drawn(cascade=True))
    assert bias.p is not None and bias.p < 0.001
    assert "it does NOT hold here" in str(bias)


def test_without_a_product_at_two_places_nothing_is_corrected() -> None:
    bias, looks = correct({("q", "a", 1): [100.0, 30.0], ("q", "b", 2): [100.0, 10.0]})
    assert (bias.looked == 1).all() and bias.p is None and "not corrected" in str(bias)
    assert looks == {("q", "a"): 100.0, ("q", "b"): 100.0}
    bias, _ = correct(
        {("q", "a", 1): [100.0, 30.0], ("q", "a", 2): [100.0, 15.0], ("q", "b", 9): [10.0, 1.0]}
    )
    assert bias.looked == pytest.approx([1, 0.5, 0.5]), "place 9 is linked to none: as the one before it"
    assert "too few clicks to test it" in str(bias)


def event(query: str, action: str, id: str, place: int | None = None, **more: object) -> dict[str, object]:
    about = {"object": {"object_id": id, "object_id_field": "sku"}, "position": {"ordinal": place}}
    return {"action_name": action, "query_id": query, "event_attributes": about, **more}


def ubi(folder: Path, events: list[dict[str, object]]) -> tuple[Path, Path]:
    queries = [
        {
            "query_id": f"s{i}",
            "user_query": "Red  dress",
            "query_response_hit_ids": ["a", "b"] if i % 4 else ["b", "a"],
        }
        for i in range(8)
    ]
    for name, rows in (("events", events), ("queries", queries)):
        (folder / f"{name}.ndjson").write_text("".join(json.dumps({"_source": row}) + "\n" for row in rows))
    return folder / "events.ndjson", folder / "queries.ndjson"


def test_ubi_events_are_read_with_what_was_shown(tmp_path: Path) -> None:
    events = [event(f"s{i}", "click", "a") for i in range(8)] + [event("s1", "purchase", "b", 2)]
    events += [event("s1", "on_search", ""), event("s2", "click", "gone", 7), event("nowhere", "click", "a")]
    path, queries = ubi(tmp_path, events)
    found = read_clicks([path], ("a", "b"), read_queries(queries))
    assert list(found.grades) == ["red dress"] and set(found.grades["red dress"]) == {"a", "b"}
    assert "looks by place: 1: 1.00, 2: 1.00" in found.notes[0], "clicked as often at both places"
    assert found.grades["red dress"] == pytest.approx({"a": 8 / 18, "b": 5 / 18})
    assert [p.fatal for p in found.problems if p.reason.startswith("the product's id")] == [False]
    reasons = sorted(problem.reason for problem in found.problems)
    assert [reason.split(" (")[0] for reason in reasons] == [
        "the catalogue has no product of this id", "the product's id is empty", "the query is empty",
    ]  # fmt: skip


def test_a_plain_log_without_impressions_is_added_up_and_said(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("query,product_id,event\nmug,a,click\nmug,a,purchase\nmug,b,click\n")
    found = read_clicks([log], ("a", "b"))
    assert found.grades == {"mug": {"a": 6.0, "b": 1.0}} and "added up" in found.notes[0]
    log.write_text(
        "query,product_id,clicks,impressions,rank\nmug,a,30,100,1\nmug,a,10,100,2\nmug,b,10,100,2\n"
    )
    found = read_clicks([log], ("a", "b"))
    assert found.grades["mug"]["a"] == pytest.approx(40 / (100 + 100 / 3 + 10))
    assert found.grades["mug"]["b"] == pytest.approx(10 / (100 / 3 + 10))
    log.write_text("query,product_id,clicks,impressions\nmug,a,0,100\n")
    with pytest.raises(UserError, match="nothing was clicked"):
        read_clicks([log], ("a", "b"))
