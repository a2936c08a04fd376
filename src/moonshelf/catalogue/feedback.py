"""What people say of results: a second table beside the products, which no feed and no upsert touches.

An entry is appended and never changed; of two on one thing the newer counts. Appends need no writer lock:
Lance commits each as one version and repeats a commit that another has overtaken, so that somebody may
review duplicates while a feed is being embedded. An entry outlives the process once `add` has returned.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from moonshelf.attributes import canonical_key
from moonshelf.catalogue.filters import literal
from moonshelf.catalogue.manifest import Manifest, check_writable, writing
from moonshelf.catalogue.store import connect
from moonshelf.errors import UserError

TABLE, SUGGESTIONS = "feedback", "suggestions.jsonl"
_ALL = 10**9
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "time", "kind", "subject", "verdict", "note", "by")]
)
_JOIN_EVERY = 256  # versions; each append leaves a small file
_CREATE_SECONDS = 30.0  # that somebody waits while another makes the table
_KEEP = timedelta(hours=1)  # versions that a reader may still be reading


@dataclass(frozen=True)
class Entry:
    """One judgement. `subject` names what is judged, `by` who said it (the name of a key, never the key)."""

    id: str
    time: str  # ISO 8601, UTC, microseconds: sorts as text
    kind: str
    subject: dict[str, str]
    verdict: str
    note: str
    by: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add(
    folder: str | Path,
    kind: str,
    subject: Mapping[str, str],
    verdict: str = "",
    note: str = "",
    by: str = "",
) -> Entry:
    """Store an entry; durable when it returns. Raises UserError where the folder is no catalogue, or only
    to be read."""
    check_writable(Path(folder))
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    entry = Entry(uuid.uuid4().hex, now, kind, dict(sorted(subject.items())), verdict, note, by)
    row = {**entry.as_dict(), "subject": json.dumps(entry.subject, ensure_ascii=False, sort_keys=True)}
    try:
        rows = pa.Table.from_pylist([row], _SCHEMA)
    except UnicodeEncodeError:
        raise UserError("the feedback holds text that is not valid Unicode.") from None
    table = _table(folder, create=True)
    table.add(rows)
    if table.version % _JOIN_EVERY == 0:
        _join(table)
    return entry


def entries(
    folder: str | Path, kind: str | None = None, limit: int = 100, offset: int = 0
) -> tuple[int, list[Entry]]:
    """(how many there are, one page of them, newest first), of one kind or of all."""
    table = _table(folder)
    if table is None:
        return 0, []
    found = _scan(table, _SCHEMA.names, kind).sort_by([("time", "descending"), ("id", "ascending")])
    return found.num_rows, [_entry(row) for row in found.slice(offset, limit).to_pylist()]


def counts(folder: str | Path) -> dict[str, int]:
    """Entries of each kind."""
    table = _table(folder)
    return dict(Counter(_scan(table, ["kind"])["kind"].to_pylist())) if table is not None else {}


def latest(folder: str | Path, kind: str = "duplicate") -> dict[frozenset[str], Entry]:
    """The newest entry of each pair of products `a` and `b` that was judged, in whatever order they were."""
    table = _table(folder)
    if table is None:
        return {}
    rows = _scan(table, _SCHEMA.names, kind).sort_by([("time", "ascending"), ("id", "descending")])
    found = (_entry(row) for row in rows.to_pylist())
    return {
        frozenset((entry.subject["a"], entry.subject["b"])): entry
        for entry in found
        if {"a", "b"} <= entry.subject.keys()
    }


def verdicts(folder: str | Path) -> dict[tuple[str, str], Entry]:
    """The newest entry on each attribute of a product: (id, canonical key of the attribute) -> entry."""
    said = entries(folder, "attribute", limit=_ALL)[1]  # newest first, and the newest stays
    return {(one.subject["id"], canonical_key(one.subject["name"])): one for one in reversed(said)}


def suggestions(folder: str | Path) -> list[dict[str, Any]]:
    """What `enrich --catalogue` suggests for empty attributes, each with its `review`, an `Entry` or None.

    Lines that are not of that command are left out; the least sure come first.
    """
    file, found = Path(folder) / SUGGESTIONS, []
    said = verdicts(folder)
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError, TypeError, KeyError):
            one = json.loads(line)
            found.append(
                {**one, "review": said.get((one["id"], one["name"])), "order": float(one["confidence"])}
            )
    return sorted(found, key=lambda one: one["order"])


def _table(folder: str | Path, create: bool = False) -> Any:
    """The table, or None where nobody has said anything yet."""
    folder = Path(folder)
    Manifest.read(folder)  # says what is wrong before a table appears in somebody's folder
    db = connect(str(folder))
    try:
        return db.open_table(TABLE)
    except (ValueError, FileNotFoundError):
        if not create:
            return None
    # Of two that make a table at once Lance lets the later overwrite the earlier, entries and all.
    with writing(folder, _CREATE_SECONDS, ".feedback.lock"):
        try:
            return db.open_table(TABLE)  # another made it in the meantime
        except (ValueError, FileNotFoundError):
            return db.create_table(TABLE, schema=_SCHEMA)


def _scan(table: Any, columns: list[str], kind: str | None = None) -> pa.Table:
    search = table.search().select(columns)
    if kind is not None:
        search = search.where(f"kind = {literal('kind', kind)}")
    return search.limit(None).to_arrow()


def _entry(row: Mapping[str, Any]) -> Entry:
    values = {name: row[name] for name in _SCHEMA.names}
    return Entry(**{**values, "subject": json.loads(row["subject"])})


def _join(table: Any) -> None:
    """Join small files. Files that no version names yet stay: somebody may be writing them."""
    try:
        table.optimize(cleanup_older_than=_KEEP)
    except RuntimeError:  # another process joins them at this moment
        return
