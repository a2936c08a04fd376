"""What `moonshelf check` does: read a feed to its end, count, decode its pictures, and say what is wrong.

Memory stays bounded on feeds of any length: of the ids only 16 bytes each are kept, reasons are grouped,
and the rows that have problems go to a file as they are found. A product of which no picture can be read is
rejected, for embedding it by its text alone would hide the fault; one bad picture among good ones is a
warning. Web addresses are counted and never called.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from dataclasses import field as default
from typing import IO, Any

import numpy as np

from moonshelf import images
from moonshelf.errors import EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, Problem, UserError
from moonshelf.feeds import DIALECTS, open_feed
from moonshelf.feeds.base import Row, Source
from moonshelf.feeds.channels import Channel, Finding
from moonshelf.product import Product

FIELDS = (
    "title", "description", "images", "category", "attributes", "brand", "price", "group_id", "gtin", "mpn",
    "link", "availability", "language",
)  # fmt: skip
MAX_REASONS = 200
MAX_EXAMPLES = 10
# What differs between problems of one kind: quoted values, names of files, numbers.
_VARYING = re.compile(
    r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?<=no file ).+|\S+\.[a-zA-Z]{2,5}\b|\d[\d.,]*"
)


@dataclass
class Reason:
    """Problems of one kind: how many, one of them in full, and the first rows."""

    fatal: bool
    field: str
    kind: str
    source: str = ""  # page of the channel that has the rule
    count: int = 0
    example: str = ""
    rows: list[int | str] = default(default_factory=list)


@dataclass
class Verdict:
    """What a channel would do with the rows; `as_written`: cells were judged, else what was read."""

    channel: str
    name: str
    spec: str
    read: str
    as_written: bool
    rejected: int = 0  # rows
    warned: int = 0
    reasons: list[Reason] = default(default_factory=list)


@dataclass
class Report:
    """The findings of one check. Counts are of rows (records of the feed) unless they say otherwise."""

    feed: str
    dialect: str
    rows: int = 0
    products: int = 0
    rejected: int = 0
    warnings: int = 0
    seconds: float = 0.0
    filled: dict[str, int] = default(default_factory=lambda: dict.fromkeys(FIELDS, 0))  # products with it
    attributes: dict[str, int] = default(default_factory=dict)  # the most frequent names, by products
    images: dict[str, int] = default(
        default_factory=lambda: {"good": 0, "missing": 0, "broken": 0, "remote": 0, "not_checked": 0}
    )
    gtin_bad: int = 0
    duplicates: int = 0  # rows whose id an earlier row has
    duplicate_examples: list[dict[str, Any]] = default(default_factory=list)
    reasons: list[Reason] = default(default_factory=list)
    channel: Verdict | None = None
    notes: list[str] = default(default_factory=list)  # what the reader chose or guessed for the whole file
    rejects: str | None = None  # file with one JSON object per problem

    @property
    def exit_code(self) -> int:
        """0 all rows are products, 3 some were rejected, here or by the channel asked for, 2 there is no
        product, or none has a title."""
        if self.products == 0 or self.untitled:
            return EXIT_USAGE
        return EXIT_PARTIAL if self.rejected or (self.channel and self.channel.rejected) else EXIT_OK

    @property
    def untitled(self) -> bool:
        """No product has a title, though the feed is more than a folder of pictures: a column is misread."""
        return self.products > 0 and self.filled["title"] == 0 and self.dialect != "images"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}


def check_feed(
    path: str | os.PathLike[str],
    dialect: str | None = None,
    *,
    channel: str | None = None,
    decode_images: bool = True,
    images_root: str | os.PathLike[str] | None = None,
    rejects: str | os.PathLike[str] | None = None,
    progress: Callable[[int, float | None], None] | None = None,
    **reading: Any,
) -> Report:
    """Reads the whole feed and reports on it; `reading` is as in `read_feed`: fields, encoding, currency.

    `channel` (google, meta, shopify, agentic) asks what that channel would reject; a feed in the agentic
    dialect is always asked so. `rejects` is a file that gets one JSON object per problem: row, id, field,
    reason, fatal, and of a channel's its name and the rule's source. `progress` is called now and then with
    the rows read and the share of the file (None where unknown). Raises UserError if the feed cannot be read
    at all or `rejects` cannot be written.
    """
    started = time.monotonic()
    name, source = open_feed(path, dialect, images_root=images_root, **reading)
    with _rejects(rejects) as out:
        asked = channel or ("agentic" if name == "agentic" else None)
        judge = Channel(asked, name) if asked else None
        tally = _Tally(Report(source.name, name), out, judge)
        last = started
        for row in DIALECTS[name](source):
            row.problems += judge.judge(row) if judge and row.records else []
            if decode_images and row.product is not None:
                _check_images(tally, source, row)
            tally.add(row, counted_images=decode_images)
            if progress and (now := time.monotonic()) - last > 0.1:
                last = now
                progress(tally.report.rows, source.progress())
        report = tally.finish()
        report.rejects = os.fspath(rejects) if rejects is not None and tally.reasons else None
    if report.rows == 0:
        raise UserError(f"{source.name} holds no records.")
    report.seconds = round(time.monotonic() - started, 2)
    return report


@contextmanager
def _rejects(path: str | os.PathLike[str] | None) -> Iterator[Callable[[Problem], None]]:
    """What writes a problem into a file, which is made with the first of them, and emptied if a former run
    left one."""
    opened: list[IO[str]] = []

    def write(text: str) -> None:
        try:
            if path is not None and not opened:
                opened.append(open(path, "w", encoding="utf-8"))  # noqa: SIM115 - closed below
            for file in opened:
                file.write(text)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from None

    if path is not None and os.path.exists(path):
        write("")
    try:
        yield lambda problem: write(json.dumps(problem.as_dict(), ensure_ascii=False) + "\n")
    finally:
        for file in opened:
            file.close()


class _Tally:
    def __init__(self, report: Report, out: Callable[[Problem], None], channel: Channel | None) -> None:
        self.report, self._out, self._channel = report, out, channel
        self._judged = bytearray()  # by row: 1 the channel warns, 2 it rejects
        report.channel = Verdict(*channel.about) if channel is not None else None
        self._ids = SeenIds()
        self._attributes: Counter[str] = Counter()
        self.reasons: dict[tuple[bool, str, str, str], Reason] = {}

    def add(self, row: Row, *, counted_images: bool) -> None:
        report = self.report
        report.rows += row.records
        if not row.records:
            report.notes += [problem.reason for problem in row.problems]
            return
        for problem in row.problems:
            self.problem(problem)
        if row.product is None:
            report.rejected += 1
            return
        product = row.product
        report.products += 1
        for name in FIELDS:
            value = getattr(product, name)
            report.filled[name] += value is not None and value != "" and value != () and value != {}
        for name in product.attributes:
            if name in self._attributes or len(self._attributes) < 1_000:
                self._attributes[name] += 1
        if not counted_images:
            for ref in product.images:
                report.images["remote" if ref.url else "not_checked"] += 1
        if isinstance(row.number, int) and self._ids.add(product.id, row.number):
            self._duplicates()

    def problem(self, problem: Problem) -> None:
        self._out(problem)
        page = ""
        if isinstance(problem, Finding):
            page, row = problem.source, problem.row if isinstance(problem.row, int) else 0
            self._judged.extend(bytes(max(0, row + 1 - len(self._judged))))
            self._judged[row] = max(self._judged[row], 1 + problem.fatal)
        else:
            self.report.warnings += not problem.fatal
            self.report.gtin_bad += problem.field == "gtin"
        key = (problem.fatal, problem.field, _VARYING.sub("…", problem.reason), page)
        if key not in self.reasons and len(self.reasons) >= MAX_REASONS:
            key = (problem.fatal, "", "other reasons", page)
        reason = self.reasons.setdefault(key, Reason(*key, example=problem.reason))
        reason.count += 1
        if len(reason.rows) < MAX_EXAMPLES:
            reason.rows.append(problem.row)

    def _duplicates(self) -> None:
        report = self.report
        for id, row, first in self._ids.flush():
            report.duplicates += 1
            self.problem(Problem(row, "id", f"the id is already used in row {first}", id, fatal=False))
            for finding in self._channel.repeated(row, first, id) if self._channel else ():
                self.problem(finding)
            known = next((item for item in report.duplicate_examples if item["id"] == id), None)
            if known is not None and len(known["rows"]) < MAX_EXAMPLES:
                known["rows"].append(row)
            elif known is None and len(report.duplicate_examples) < MAX_EXAMPLES:
                report.duplicate_examples.append({"id": id, "rows": [first, row]})

    def finish(self) -> Report:
        self._duplicates()
        self.report.attributes = dict(self._attributes.most_common(12))
        reasons = sorted(self.reasons.values(), key=lambda r: (not r.fatal, -r.count))
        self.report.reasons = [reason for reason in reasons if not reason.source]
        if (verdict := self.report.channel) is not None:
            verdict.reasons = [reason for reason in reasons if reason.source]
            verdict.rejected, verdict.warned = self._judged.count(2), self._judged.count(1)
        return self.report


def _check_images(tally: _Tally, source: Source, row: Row) -> None:
    """Decodes the pictures of a row; sets the row aside if there are some and none can be read."""
    product = row.product
    assert isinstance(product, Product)
    counts = tally.report.images
    failed: list[Problem] = []
    for number, ref in enumerate(product.images, 1):
        if ref.url is not None:
            counts["remote"] += 1
            continue
        try:
            data = images.read_bytes(ref, root=source.images_root if ref.path else None)
            images.decode(data, max_side=64)
        except images.ImageError as error:
            counts["missing" if error.code == "missing_file" else "broken"] += 1
            failed.append(Problem(row.number, "images", f"image {number}: {error}", product.id, fatal=False))
        else:
            counts["good"] += 1
    if not failed or len(failed) < len(product.images):
        row.problems += failed
        return
    row.product = None
    reason = failed[0].reason
    if len(failed) > 1:
        reason = f"none of its {len(failed)} images can be read; {reason}"
    row.problems.append(Problem(row.number, "images", reason, product.id))


class SeenIds:
    """Finds repeated ids in a stream and keeps 16 bytes per id: a 64-bit hash and the row.

    Ids are held as text until `flush`, which answers for all since the last one. Two different ids are
    taken for one with a probability of about n²/2⁶⁵: 3 in a hundred million for a million ids.
    """

    CHUNK = 1 << 16

    def __init__(self) -> None:
        self._pending: list[tuple[str, int]] = []
        self._hashes, self._rows = np.empty(0, np.int64), np.empty(0, np.int64)  # sorted by the hash

    def add(self, id: str, row: int) -> bool:
        """Takes an id; whether it is time to `flush`."""
        self._pending.append((id, row))
        return len(self._pending) >= self.CHUNK

    def flush(self) -> list[tuple[str, int, int]]:
        """Repeated ids since the last flush: (id, its row, the first row with that id), in their order."""
        pending, self._pending = self._pending, []
        codes = np.array([hash(id) for id, _ in pending], np.int64)
        rows = np.append(self._rows, np.array([row for _, row in pending], np.int64))
        # Of equal hashes `unique` gives the first, which is the one with the lowest row.
        self._hashes, at = np.unique(np.append(self._hashes, codes), return_index=True)
        self._rows = rows[at]
        first = self._rows[np.searchsorted(self._hashes, codes)].tolist()
        return [(id, row, one) for (id, row), one in zip(pending, first, strict=True) if one != row]
