"""Judgements of queries and products by their files: Quepid's CSV, TREC qrels, Search Relevance Workbench.

What a file is, is told by its first lines. What is wrong with a row is a problem with its number, and the
rest goes on. Several judgements of one pair are averaged. Grades are gains as they stand (linear, as in
trec_eval); below 0 counts as 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moonshelf.errors import Problem, UserError
from moonshelf.feeds.base import MAX_DOCUMENT, FeedBroken, Source
from moonshelf.feeds.columns import one_each, ranked
from moonshelf.feeds.detect import check_path
from moonshelf.feeds.values import as_text
from moonshelf.prompts import clean_text
from moonshelf.training.sources.click_log import COLUMNS, MAX_QUERY, Asked, records_of

RATING = ["rating", "grade", "relevance", "judgement", "judgment", "label", "score", "gain", "rel"]
ROLES = {**{role: COLUMNS[role] for role in ("query", "query_id", "product_id")}, "rating": RATING}
_KNOWN = ranked(ROLES)
_QREL = re.compile(r"(?:([^\t]+)\t\S+\t(\S+)\t|(\S+)\s+\S+\s+(\S+)\s+)(-?\d+(?:\.\d+)?)\s*")
Cells = Mapping[str, Any]  # query or query_id, product_id, rating


@dataclass
class Judgements:
    """Grades by query and product, what was left out, and what a reader of the figures must know."""

    grades: dict[str, dict[str, float]]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_judgements(
    path: Path,
    known: Collection[str],
    *,
    columns: Mapping[str, str] | None = None,
    asked: Mapping[str, Asked] | None = None,
    relevant_from: float = 0.0,
) -> Judgements:
    """The judgements of a file on the products `known` (ids of a catalogue).

    `columns` (column -> query, query_id, product_id, rating) says what a header does not; `asked` are queries
    by id. A query needs a product of at least the grade `relevant_from`, above 0. Raises UserError for a file
    that is empty, of no known form, or without a usable query.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    problems: list[Problem] = []
    unrated = 0
    try:
        for number, cells in _rows(Source(check_path(path)), columns or {}, asked):
            if isinstance(cells, str):
                problems.append(Problem(number, "row", cells))
                continue
            id, name, rating = (
                as_text(cells.get(role)).strip() for role in ("product_id", "query_id", "rating")
            )
            query = clean_text(as_text(cells.get("query"))) or (asked or {}).get(name, Asked("")).text
            if not rating:
                unrated += 1  # Quepid lists what nobody has rated yet
            elif not query:
                what = f"there is no query {name[:60]!r}" if name else "there is no query"
                problems.append(Problem(number, "query", what))
            elif not id:
                problems.append(Problem(number, "product", "there is no product"))
            elif len(query) > MAX_QUERY:
                long = f"the query is longer than {MAX_QUERY:,} characters"
                problems.append(Problem(number, "query", long))
            elif not re.fullmatch(r"-?\d{1,9}(\.\d+)?", rating):
                problems.append(Problem(number, "rating", f"the rating {rating[:30]!r} is not a number", id))
            else:
                found[query][id].append(max(0.0, float(rating)))
    except FeedBroken as error:
        problems.append(Problem(path.name, "file", f"{error}: the rest was not read"))
    if not found:
        why = problems[0].reason if problems else "nothing is rated" if unrated else "it holds no row"
        raise UserError(f"no judgement of {path.name} can be used: {why}.")
    grades = {query: {id: sum(x) / len(x) for id, x in some.items()} for query, some in found.items()}
    every = Counter(grade for some in grades.values() for grade in some.values())
    said = f"{len(grades):,} queries, {every.total():,} judgements, grades {min(every):g} to {max(every):g}"
    said += f", {unrated:,} rows without one" if unrated else ""
    if 0 < min(every) < max(every) and not relevant_from:
        said += f"; even {min(every):g} is relevant in MRR and recall: say --relevant-from"
    return checked(Judgements(grades, problems, [said]), known, relevant_from)


def checked(judged: Judgements, known: Collection[str], least: float = 0.0) -> Judgements:
    """Only queries that can be scored, on products that are there; problems say what is missing.

    >>> checked(Judgements({"mug": {"a": 2.0, "gone": 1.0}}), {"a", "b"}).problems[0].reason
    "1 of its 2 judged products are not in the catalogue, such as 'gone'"
    """
    kept: dict[str, dict[str, float]] = {}
    one = ""
    for query, grades in judged.grades.items():
        there = {id: grade for id, grade in grades.items() if id in known}
        said: dict[str, bool] = {}  # what is wrong with the query -> whether it is rejected
        if gone := [id for id in grades if id not in known]:
            one, count = gone[0], f"{len(gone)} of its {len(grades)} judged products are"
            said[f"{count} not in the catalogue, such as {one!r}"] = False
        if max(there.values(), default=0.0) < max(least, 1e-12):
            said["none of its relevant products is in the catalogue: the query is rejected"] = True
        else:
            kept[query] = there
        if len(kept.get(query, ())) == 1:
            said["it has one judgement: its figures say where that product stands, no more"] = False
        judged.problems += [Problem(query, "query", why, query, fatal=fatal) for why, fatal in said.items()]
    if not kept:
        ids = f"; judged are products such as {one!r}, the catalogue has such as {next(iter(known), '')!r}"
        raise UserError(f"no query has a relevant product in the catalogue{ids if one else ''}.")
    judged.grades = kept
    return judged


# ---- the forms -------------------------------------------------------------------------------------


def _rows(
    source: Source, columns: Mapping[str, str], asked: Mapping[str, Asked] | None
) -> Iterator[tuple[int, Cells | str]]:
    with source.open() as file:
        head = file.read(1 << 16).decode("utf-8-sig", "replace").lstrip()
    if not head:
        raise UserError(f"{source.name} is empty.")
    if head.startswith(("{", "[")) and "judgmentRatings" in head:
        yield from _workbench(source)
    elif _QREL.fullmatch(head.split("\n", 1)[0].strip("\r")):
        yield from _qrels(source, asked)
    else:
        if odd := set(columns.values()) - ROLES.keys():
            raise UserError(f"judgements have no field {odd.pop()!r}: --map says {', '.join(ROLES)}.")

        def header(names: Iterable[str]) -> dict[str, str]:
            plan = one_each(names := list(names), _KNOWN, columns)
            asks = "query_id" if asked and "query" not in plan else "query"
            if lacks := [role for role in (asks, "product_id", "rating") if role not in plan]:
                raise UserError(
                    f"{source.name} has no column for the {lacks[0]} (it has {', '.join(names)[:300]}): name "
                    "the columns query, docid and rating, or say --map query='Search phrase'."
                )
            return plan

        for number, record in records_of(source, header):
            plan = {} if isinstance(record, str) else one_each(record, _KNOWN, columns)
            yield number, record if isinstance(record, str) else {role: record[plan[role]] for role in plan}


def _qrels(source: Source, asked: Mapping[str, Asked] | None) -> Iterator[tuple[int, Cells | str]]:
    """`query iteration product grade`: the query is an id of `asked`, or words that end with a tab."""
    with source.open() as file:
        for number, line in enumerate(file, 1):
            match = _QREL.fullmatch(line.decode("utf-8-sig", "replace").strip("\r\n"))
            if match is None:
                yield number, "the line is not: query, iteration, product, grade"
                continue
            query, id = match[1] or match[3], match[2] or match[4]
            if asked is None and " " not in query:
                raise UserError(
                    f"{source.name} names queries by id, such as {query!r}: give their words by --queries."
                )
            named = "query" if asked is None else "query_id"
            yield number, {named: query, "product_id": id, "rating": match[5]}


def _workbench(source: Source) -> Iterator[tuple[int, Cells | str]]:
    """`ratings` wherever they stand: a list to import, a stored one, or the hits of a search for them."""
    found: list[Cells] = []

    def keep(one: dict[str, Any]) -> dict[str, Any]:
        ratings = one.get("ratings")
        for rated in ratings if isinstance(ratings, list) else ():
            told = rated if isinstance(rated, dict) else {}
            rating = told.get("rating", "none")
            found.append({"query": one.get("query"), "product_id": told.get("docId"), "rating": rating})
        return one

    with source.open() as file:
        data = file.read(MAX_DOCUMENT + 1)
    try:
        json.loads(data, object_hook=keep)
    except (ValueError, RecursionError):
        raise UserError(f"{source.name} is no whole JSON of up to {MAX_DOCUMENT >> 20} MB.") from None
    yield from enumerate(found, 1)
