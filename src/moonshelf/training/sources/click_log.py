"""Click logs: which product people clicked or bought for which words or picture, and how often.

A log is a CSV, TSV, JSONL or Parquet file of one row an event (`query, product_id, event`) or one row a pair
with counts (`query, product_id, clicks, purchases, impressions`) or a ready `weight`. It is read row by row;
what stays in memory is one entry for each distinct pair of query and product, and queries are the same if
they differ in case and space only. Like feeds, logs are untrusted: pictures of queries may not lie outside
the log's folder, addresses are never called, a bad row is rejected and the rest goes on.

What an action weighs is ours (`EVENTS`): a purchase says more than a click, and being shown says nothing by
itself. A `weight` column outranks counts, counts outrank the kind of event. Events of OpenSearch's User
Behavior Insights (UBI) are read as they are exported; where they name a query by id alone, `Asked` says it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moonshelf.attributes import fold
from moonshelf.errors import Problem, UserError
from moonshelf.feeds import values
from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.columns import one_each, ranked
from moonshelf.feeds.detect import check_path, detect
from moonshelf.feeds.dialects import jsonl, parquet
from moonshelf.feeds.text import Table
from moonshelf.product import ImageRef
from moonshelf.prompts import clean_text
from moonshelf.training.sources.pairs import Item, Query

_WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
EVENTS = {name: float(weight) for weight, names in _WORDS["events"].items() for name in names}
COLUMNS: dict[str, list[str]] = _WORDS["columns"]
_ROLE_OF = ranked(COLUMNS)
_COUNTS = ("click", "cart", "purchase")
MAX_QUERY = 1_000  # characters; longer ones are pasted pages or robots, and are rejected
_LARGEST = 1e12  # weight or count of one row
_SHOWN = 20  # problems kept; all are counted


@dataclass(frozen=True, slots=True)
class Interaction:
    """A query and a product chosen for it; `weight` is a sum over rows.

    The query holds text, picture or both; its `answers` are filled by `queries_of`, which sees all pairs.
    `shown`, `clicks` and `position` are what the row says of them, for those who correct for places.
    """

    query: Query
    product_id: str
    weight: float
    shown: float = 0.0
    clicks: float = 0.0
    position: int | None = None  # in the list that was shown


@dataclass(frozen=True)
class Asked:
    """A query of a search log: its words, and the ids that were shown for it, first to last."""

    text: str
    hits: tuple[str, ...] = ()


@dataclass
class ClickLog:
    """A log that was read to its end: distinct pairs, heaviest first, and what was left out."""

    interactions: list[Interaction] = field(default_factory=list)
    rows: int = 0
    queries: int = 0  # distinct ones among the interactions
    only_shown: int = 0  # rows that say that nobody chose the product
    rejected: int = 0
    rejected_by: Counter[str] = field(default_factory=Counter)  # field -> rows
    problems: list[Problem] = field(default_factory=list)  # the first few

    def summary(self) -> str:
        """One line for people."""
        text = f"{self.rows:,} rows: {len(self.interactions):,} pairs of {self.queries:,} queries"
        if self.rejected:
            why = ", ".join(f"{name} {n:,}" for name, n in self.rejected_by.most_common())
            text += f"; {self.rejected:,} rows rejected ({why}), the first: {self.problems[0].reason}"
        return text


def read_click_log(path: str | os.PathLike[str], known: Collection[str]) -> ClickLog:
    """Read a log and add up the rows of each pair of query and product.

    `known` holds the ids of the catalogue; relative paths of pictures start from the log's folder. Raises
    UserError if the file cannot be read, columns are missing, or no row is usable.
    """
    log = ClickLog()
    sums: dict[tuple[tuple[str, str], str], float] = defaultdict(float)
    queries: dict[tuple[str, str], Query] = {}
    for row in stream_click_log(path, known):
        if isinstance(row, Problem):
            if row.fatal:
                log.rows += 1
                log.rejected += 1
                log.rejected_by[row.field] += 1
            if len(log.problems) < _SHOWN:
                log.problems.append(row)
            continue
        log.rows += 1
        log.only_shown += not row.weight
        key = key_of(row.query)
        sums[key, row.product_id] += row.weight
        queries.setdefault(key, row.query)
    kept = [(pair, weight) for pair, weight in sums.items() if weight > 0]
    if not kept:
        raise UserError(
            f"{Path(path).name}: all pairs of query and product were only shown, and never chosen."
        )
    log.queries = len({key for (key, _), _ in kept})
    kept.sort(key=lambda entry: -entry[1])
    log.interactions = [Interaction(queries[key], product, weight) for (key, product), weight in kept]
    return log


def stream_click_log(
    path: str | os.PathLike[str], known: Collection[str], asked: Mapping[str, Asked] | None = None
) -> Iterator[Interaction | Problem]:
    """The rows of a log in file order, nothing added up; arguments and errors as in `read_click_log`.

    A fatal `Problem` is a row that was rejected; others come before the row that they are about. A row that
    was only shown has weight 0. `asked` has the queries that rows name by id (`read_queries`).
    """
    source = Source(check_path(path), None)
    reader = _Reader(source, known, asked or {})
    usable = False
    for number, record in records_of(source, reader.header):
        if isinstance(record, str):
            yield Problem(number, "row", record)
            continue
        for row in reader.read(number, record):
            usable = usable or isinstance(row, Interaction)
            yield row
    if not usable:
        raise UserError(reader.why_nothing())


def read_queries(path: str | os.PathLike[str]) -> dict[str, Asked]:
    """Queries by id, from a table of ids and words or UBI's `ubi_queries`. UserError if there is none."""
    source, found = Source(check_path(path), None), dict[str, Asked]()
    for _, record in records_of(source, lambda names: {}):
        if isinstance(record, str):
            continue
        cells = {role: record[name] for role, name in one_each(record, _ROLE_OF).items()}
        hits = cells.get("hits") or ()
        name, text = (clean_text(values.as_text(cells.get(role))) for role in ("query_id", "query"))
        if name and text:
            found[name] = Asked(text, tuple(map(str, hits)) if isinstance(hits, list | tuple) else ())
    if not found:
        raise UserError(f"{source.name} names no query: it needs the columns query_id and query.")
    return found


def key_of(query: Query) -> tuple[str, str]:
    """What makes two queries of a log the same: folded text, and the picture by its bytes or place."""
    ref = query.image
    if ref is None:
        picture = ""
    else:
        picture = hashlib.sha256(ref.data).hexdigest() if ref.data is not None else ref.name
    return query.text.casefold(), picture


def queries_of(
    items: Sequence[Item], interactions: Iterable[Interaction]
) -> dict[str, list[tuple[Query, float]]]:
    """The queries of each item that has any, by item id, heaviest first: what training draws from.

    Each query carries in `answers` the groups of every item that was chosen for it, so that none of them,
    nor a variant of it, becomes a negative of the query. A log may name records or single looks of one.
    """
    groups: dict[str, set[str]] = {}
    for item in items:
        for name in (item.product, item.id):
            groups.setdefault(name, set()).add(item.group)
    queries: dict[tuple[str, str], Query] = {}
    answers: dict[tuple[str, str], set[str]] = {}
    asked: dict[str, dict[tuple[str, str], float]] = {}
    for interaction in interactions:
        if interaction.product_id not in groups:
            continue
        key = key_of(interaction.query)
        queries.setdefault(key, interaction.query)
        answers.setdefault(key, set()).update(groups[interaction.product_id])
        mine = asked.setdefault(interaction.product_id, {})
        mine[key] = mine.get(key, 0.0) + interaction.weight
    whole = {key: replace(query, answers=frozenset(answers[key])) for key, query in queries.items()}
    result: dict[str, list[tuple[Query, float]]] = {}
    for item in items:
        total: Counter[tuple[str, str]] = Counter()
        for name in {item.product, item.id}:
            total.update(asked.get(name, {}))
        if total:
            result[item.id] = [(whole[key], float(weight)) for key, weight in total.most_common()]
    return result


# ---- one row ---------------------------------------------------------------------------------------


class _Reader:
    """Turns records into interactions; the meaning of the columns is worked out once per header."""

    def __init__(self, source: Source, known: Collection[str], asked: Mapping[str, Asked]) -> None:
        self.source, self.known, self.asked = source, known, asked
        self.asking = {"query", "image"} | ({"query_id"} if asked else set())  # roles that say what was asked
        self.plans: dict[tuple[str, ...], dict[str, str]] = {}
        self.roles: set[str] = set()  # that some row had
        self.names: list[str] = []  # the first columns seen, for messages
        self.unknown = ""  # an id that the catalogue lacks
        self.first = ""  # why the first row was rejected

    def plan(self, names: tuple[str, ...]) -> dict[str, str]:
        """Role -> column."""
        plan = self.plans.get(names)
        if plan is None:
            plan = one_each(names, _ROLE_OF)
            if len(self.plans) < 1_000:
                self.plans[names] = plan
            self.roles |= plan.keys()
            self.names = self.names or [name[:40] for name in names[:12]]
        return plan

    def header(self, names: Iterable[str]) -> dict[str, str]:
        """The plan of a table, whose header must name queries and products."""
        plan = self.plan(tuple(names))
        if "product_id" not in plan or not plan.keys() & self.asking:
            raise UserError(self.missing())
        return plan

    def missing(self) -> str:
        lacks = "product" if "product_id" not in self.roles else "query or its picture"
        return (
            f"{self.source.name} has no column for the {lacks} (it has {', '.join(self.names) or 'none'}): "
            "name the columns query (or image) and product_id, with weight, clicks, purchases or event where "
            "there are any."
        )

    def why_nothing(self) -> str:
        name = self.source.name
        if "product_id" not in self.roles or not self.roles & self.asking:
            return self.missing() if self.names else f"{name} holds no rows."
        if self.unknown:
            there = next(iter(self.known), "nothing")
            return (
                f"no usable row of {name} names a product of the catalogue: the log has ids such as "
                f"{self.unknown[:60]!r}, the catalogue such as {str(there)[:60]!r}."
            )
        return f"no row of {name} can be used; the first: {self.first or 'there is none'}."

    def read(self, number: int, record: Mapping[str, Any]) -> Iterator[Interaction | Problem]:
        plan = self.plan(tuple(record))
        cells = {role: record.get(name) for role, name in plan.items()}
        before = self.asked.get(values.as_text(cells.get("query_id")), Asked(""))
        cells["query"] = cells.get("query") or before.text
        product_id = values.clean(values.as_text(cells.get("product_id")))[0]
        try:
            query, warning = self._query(cells)
            if not product_id:
                raise RowRejected("product_id", "the product's id is empty")
            weight = _weight(cells)
            shown, clicks = _shown_and_clicked(cells, weight)
            if product_id not in self.known:
                self.unknown = self.unknown or product_id
                raise RowRejected("product_id", "the catalogue has no product of this id")
        except RowRejected as error:
            self.first = self.first or error.reason
            yield Problem(number, error.field, error.reason, product_id[:100] or None)
            return
        if warning:
            yield Problem(number, "image", warning, product_id, fatal=False)
        place = _count(cells, "position", None)
        if place is None and product_id in before.hits:
            place = before.hits.index(product_id) + 1
        yield Interaction(query, product_id, weight, shown, clicks, None if place is None else int(place))

    def _query(self, cells: Mapping[str, Any]) -> tuple[Query, str]:
        text = clean_text(values.clean(values.as_text(cells.get("query")))[0])
        if len(text) > MAX_QUERY:
            raise RowRejected("query", f"the query is longer than {MAX_QUERY:,} characters")
        image, warning = None, ""
        try:
            image = self._picture(cells.get("image"))
        except ValueError as error:
            warning = str(error)
        if not text and image is None:
            raise RowRejected("image" if warning else "query", warning or "the query is empty")
        words = frozenset(text.lower().split())
        return Query(text, words=words, picture=image is not None, image=image), warning

    def _picture(self, value: Any) -> ImageRef | None:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, (bytes, bytearray)):
            return ImageRef(data=bytes(value)) if value else None
        text = values.as_text(value).strip()
        if not text:
            return None
        ref = self.source.image(text)
        if ref.url is not None:
            raise ValueError("the query's picture is a web address, which training does not call")
        if not os.path.isfile(ref.path or ""):
            raise ValueError(f"the query's picture {text[:100]!r} is not there")
        return ref


def _weight(cells: Mapping[str, Any]) -> float:
    """What one row says of how much its product was wanted."""
    if "weight" in cells:
        weight = _number("weight", cells["weight"], None)
        if weight <= 0:
            raise RowRejected("weight", "the weight is 0")
        return weight
    counts = {name: _number(name, cells[name], 0.0) for name in _COUNTS if name in cells}
    if counts:
        return sum(EVENTS[name] * count for name, count in counts.items())
    times = _number("count", cells["count"], None) if "count" in cells else 1.0
    if "event" not in cells:
        return times
    kind = values.as_text(cells["event"]).strip()
    if (each := EVENTS.get(fold(kind))) is None:
        raise RowRejected("event", f"what the event {kind[:40]!r} weighs is not known")
    return each * times


def _shown_and_clicked(cells: Mapping[str, Any], weight: float) -> tuple[float, float]:
    """How often a row says that its product was shown, and clicked."""
    if "event" not in cells or any(name in cells for name in _COUNTS):
        return _count(cells, "shown", 0.0) or 0.0, _count(cells, "click", 0.0) or 0.0
    times = _count(cells, "count", 1.0) or 0.0
    return (times, 0.0) if not weight else (0.0, times if weight == times else 0.0)


def _count(cells: Mapping[str, Any], role: str, otherwise: float | None) -> float | None:
    """A number that a row may go without."""
    try:
        return _number(role, cells.get(role, ""), otherwise)
    except RowRejected:
        return otherwise


class RowRejected(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def _number(name: str, value: Any, empty: float | None) -> float:
    """A number from 0; `empty` where the cell is, or a row that is rejected."""
    text = values.as_text(value).strip() if not isinstance(value, (bool, int, float)) else value
    if text == "" or (isinstance(text, float) and math.isnan(text)):
        if empty is None:
            raise RowRejected(name, f"the {name} is empty")
        return empty
    try:
        number = float({"true": "1", "false": "0"}.get(text.lower(), text) if isinstance(text, str) else text)
    except (ValueError, OverflowError):
        raise RowRejected(name, f"the {name} {str(text)[:30]!r} is not a number") from None
    if not 0 <= number <= _LARGEST:  # NaN too
        raise RowRejected(name, f"the {name} is negative" if number < 0 else f"the {name} is not usable")
    return number


# ---- the file --------------------------------------------------------------------------------------


def records_of(
    source: Source, header: Callable[[Iterable[str]], Mapping[str, str]]
) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Number and cells of every row of a CSV, TSV, JSONL or Parquet file, or why it has none.

    `header` is given the columns of a table, may refuse them, and says which of a Parquet file are read (all
    where it names none).
    """
    suffix = source.path.with_suffix("") if source.path.suffix.lower() == ".gz" else source.path
    kind = "jsonl" if suffix.suffix.lower() in (".jsonl", ".ndjson") else detect(source.path)
    if kind == "parquet":
        with parquet.opened(source) as file:
            plan = header(file.schema_arrow.names)
            names = sorted(plan.values()) or file.schema_arrow.names
            for number, row in parquet.numbered(source, file, 256 if "image" in plan else 8192, names):
                yield number, row.problems[0].reason if isinstance(row, Row) else row
    elif kind == "jsonl":
        yield from _json_lines(source)
    elif kind in ("json", "jsonld", "merchant-xml", "images"):
        raise UserError(f"{source.name} is no table: give CSV, TSV, JSONL or Parquet.")
    else:
        table = Table(source)
        header(table.header)
        yield from ((n, row.problems[0].reason if isinstance(row, Row) else row) for n, row in table)


def _json_lines(source: Source) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for number, line in jsonl.numbered(source):
        if isinstance(line, Row):
            yield number, line.problems[0].reason
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield number, _level(record) if isinstance(record, dict) else "the line is not a JSON object"


def _level(record: dict[str, Any]) -> Mapping[str, Any]:
    """An event of UBI as one level, alone or as a hit of a search gives it."""
    inner = record.get("_source")
    record = inner if isinstance(inner, dict) else record
    about = record.get("event_attributes")
    if not isinstance(about, dict):
        return record
    thing, place = (
        part if isinstance(part := about.get(name), dict) else {} for name in ("object", "position")
    )
    return {**record, "object_id": thing.get("object_id"), "position": place.get("ordinal")}
