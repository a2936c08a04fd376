"""What an evaluation of selectors leaves in its folder, so that its figures can be counted again.

`pairs.jsonl` and `campaigns.jsonl` hold the data without the pictures (counts, words, truth), `judgements/`
one JSON Lines file a backend and set of pairs (the first line says whose), `rankings/` one a backend,
`pictures.parquet` the small ones that the report shows, `result.json` every figure. Lines are appended while
a backend judges, so an interrupted run goes on where it stopped; a folder that belongs to other pairs,
another seed or another temperature is refused, never mixed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moonshelf.creatives.evaluation.metrics import Bin, Figure, Gap
from moonshelf.creatives.labels import content_key
from moonshelf.creatives.schema import Campaign, Creative, Judgement, Pair
from moonshelf.errors import UserError
from moonshelf.evaluation.record import RESULT, read_result, typed
from moonshelf.files import write_atomic
from moonshelf.product import ImageRef

FORMAT = 1
PAIRS, CAMPAIGNS = "pairs.jsonl", "campaigns.jsonl"
JUDGEMENTS, RANKINGS = "judgements", "rankings"
PART = 64  # pairs that are judged before they are written
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Curve:
    """A backend's bins of calibration and points of risk against coverage, on one part of the pairs."""

    backend: str
    part: str
    bins: list[Bin]
    risk: list[tuple[float, float]]


@dataclass
class CreativeReport:
    """Every figure of an evaluation of selectors, and what is needed to run it again."""

    backends: list[str] = field(default_factory=list)  # in the order of the tables, ours first
    lines: list[Figure] = field(default_factory=list)
    differences: list[Gap] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    simulated: bool = False  # some of the pairs are drawn
    sources: dict[str, int] = field(default_factory=dict)  # data set -> pairs
    about: list[dict[str, Any]] = field(default_factory=list)  # of each backend: temperature, seconds, tokens
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def find(self, group: str, part: str, backend: str, name: str) -> Figure | None:
        key = (group, part, backend, name)
        return next((one for one in self.lines if (one.group, one.part, one.backend, one.name) == key), None)

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def load(out: Path) -> CreativeReport:
    """The record in a folder. Raises UserError if it is missing, or is no record of this version."""
    record = read_result(out)
    if record.get("format") != FORMAT or "differences" not in record:
        raise UserError(
            f"{out / RESULT} is no record of an evaluation of creatives: evaluate again with --out"
        )
    return typed(record, CreativeReport)


# ---- data -----------------------------------------------------------------------------------------------


def fingerprint(rows: Sequence[Pair | Campaign]) -> str:
    """Of everything that a backend sees of some rows; counts and truth may change without a new run."""
    digest = hashlib.sha256()
    for row in rows:
        sides = row.creatives if isinstance(row, Campaign) else (row.a, row.b)
        seen = [row.id, row.title, list(row.interest), *map(content_key, sides), *(one.text for one in sides)]
        digest.update(json.dumps(seen, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def without_pictures(row: Pair | Campaign) -> Pair | Campaign:
    """The row with its pictures named by their content, so that no image bytes are saved."""

    def bare(creative: Creative) -> Creative:
        return creative.model_copy(update={"image": ImageRef(path=content_key(creative))})

    if isinstance(row, Campaign):
        return row.model_copy(update={"creatives": tuple(map(bare, row.creatives))})
    return row.model_copy(update={"a": bare(row.a), "b": bare(row.b)})


def write_rows(rows: Iterable[BaseModel], path: Path) -> None:
    """Models as JSON Lines, whole or not at all."""
    _write(path, (row.model_dump_json(exclude_defaults=True) for row in rows))


def read_rows(path: Path, kind: type[M]) -> list[M]:
    """Models of a file, [] if there is none. Raises UserError that names file and line."""
    return _parsed(path, path.read_text(encoding="utf-8").splitlines(), kind) if path.is_file() else []


def _parsed(path: Path, lines: Sequence[str], kind: type[M], first: int = 1) -> list[M]:
    found = []
    for number, text in enumerate(lines, first):
        try:
            found.append(kind.model_validate_json(text))
        except ValidationError as error:
            why = error.errors(include_url=False)[0]["msg"].lower()
            raise UserError(
                f"line {number} of {path.name}: {why}; delete the file and run the evaluation again"
            ) from None
    return found


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


# ---- judgements -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """Whose judgements a file holds: another head is another run."""

    backend: str
    version: str  # the backend's own fingerprint, "" where it has none
    pairs: str  # `fingerprint`
    seed: int
    temperature: float | None  # None: the backend's own

    @property
    def line(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)


def file_name(backend: str, part: str) -> str:
    """A readable name that is the same for the same backend and set, and different for others."""
    readable = "-".join(re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in (backend, part))
    return f"{readable[:80]}-{hashlib.sha256(f'{backend}|{part}'.encode()).hexdigest()[:8]}.jsonl"


class Kept:
    """Judgements of one backend on one set of pairs: those in its file, and new ones written at once."""

    def __init__(self, out: Path, part: str, head: Head) -> None:
        """Raises UserError where the file belongs to another run."""
        self.path = out / JUDGEMENTS / file_name(head.backend, part)
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # what an interruption cut off is judged again
        if whole and whole[0] != head.line:
            raise UserError(
                f"{self.path.name} in this folder is of another run ({_differs(whole[0], head)}): give "
                "another --out"
            )
        _write(self.path, whole or [head.line])
        self.found = {one.pair_id: one for one in _parsed(self.path, whole[1:], Judgement, 2)}
        self.resumed = bool(self.found)

    def __call__(
        self, pairs: Sequence[Pair], judge: Callable[[Sequence[Pair]], Sequence[Judgement]]
    ) -> list[Judgement]:
        """One judgement a pair, in order; only what is missing is asked."""
        missing = [pair for pair in pairs if pair.id not in self.found]
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            for start in range(0, len(missing), PART):
                for one in judge(missing[start : start + PART]):
                    self.found[one.pair_id] = one
                    file.write(one.model_dump_json() + "\n")
                file.flush()
        return [self.found[pair.id] for pair in pairs]


def read_judged(out: Path, part: str, backend: str) -> dict[str, Judgement]:
    """Those of a file by pair, {} where it is missing. Raises UserError for a damaged one."""
    path = out / JUDGEMENTS / file_name(backend, part)
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    return {one.pair_id: one for one in _parsed(path, lines, Judgement, 2)}


def _differs(line: str, head: Head) -> str:
    try:
        other = json.loads(line)
        names = [name for name, value in asdict(head).items() if other.get(name) != value]
    except (ValueError, AttributeError):
        names = []
    return f"its {' and '.join(names)} differ" if names else "its first line is damaged"
