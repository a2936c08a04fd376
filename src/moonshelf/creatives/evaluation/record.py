"""What an evaluation of selectors leaves in its folder, so that its figures can be counted again.

`pairs.jsonl` and `campaigns.jsonl` hold the data without the pictures (counts, words, truth), `judgements/`
one JSON Lines file a backend and set of pairs (the first line says whose), `rankings/` one a backend,
`edits.jsonl` the trials of edited pictures, `pictures/` the small ones that the report shows, `result.json`
every figure. Lines are appended while a backend judges, so an interrupted run goes on where it stopped; a
folder that belongs to other pairs, another seed or another temperature is refused, never mixed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moonshelf.creatives.evaluation.metrics import Bin, Gap
from moonshelf.creatives.schema import Campaign, Creative, Judgement, Pair
from moonshelf.errors import UserError
from moonshelf.evaluation.record import RESULT, read_result, typed, write_result
from moonshelf.files import write_atomic
from moonshelf.product import ImageRef

FORMAT = 1
PAIRS, CAMPAIGNS, EDITS = "pairs.jsonl", "campaigns.jsonl", "edits.jsonl"
JUDGEMENTS, RANKINGS, PICTURES = "judgements", "rankings", "pictures"
PART = 64  # pairs that are judged before they are written
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Line:
    """One figure of one backend; `group` and `part` say of what: skill on decisive pairs, a question …"""

    group: str  # skill, paired, interest, slices, explanations, questions, controls, edits, ranking
    part: str
    backend: str
    name: str
    value: float | None
    low: float | None = None  # bootstrap interval over products, 95 %
    high: float | None = None
    n: int = 0
    clusters: int = 0
    bound: float | None = None  # what nobody can beat on these rows: the label ceiling, or a floor
    chance: float | None = None  # of guessing, or of always giving the commonest answer
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A backend's bins of calibration and points of risk against coverage, on one part of the pairs."""

    backend: str
    part: str
    bins: list[Bin]
    risk: list[tuple[float, float]]


@dataclass(frozen=True)
class Difference:
    """Accuracy of one side minus another's, in one part: two backends, or one under two interests."""

    group: str  # backends, interest
    part: str
    gap: Gap


@dataclass(frozen=True)
class Trial:
    """One edit of a factor that a backend named: probability of the side it spoke for, before and after."""

    backend: str
    pair_id: str
    cluster: str
    question: str  # the named factor
    before: float
    edited: float  # that factor made worse on the side that was favoured for it
    placebo: float  # something that was not named changed there


@dataclass
class CreativeReport:
    """Every figure of an evaluation of selectors, and what is needed to run it again."""

    backends: list[str] = field(default_factory=list)  # in the order of the tables, ours first
    lines: list[Line] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    simulated: bool = False  # some of the pairs are drawn
    sources: dict[str, int] = field(default_factory=dict)  # data set -> pairs
    about: list[dict[str, Any]] = field(default_factory=list)  # of each backend: temperature, seconds, tokens
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def find(self, group: str, part: str, backend: str, name: str) -> Line | None:
        key = (group, part, backend, name)
        return next((one for one in self.lines if (one.group, one.part, one.backend, one.name) == key), None)

    def parts(self, group: str) -> list[str]:
        return list(dict.fromkeys(one.part for one in self.lines if one.group == group))

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def save(report: CreativeReport, out: Path) -> Path:
    """Write `out/result.json`, whole or not at all."""
    return write_result(report.as_dict(), out)


def load(out: Path) -> CreativeReport:
    """The record in a folder. Raises UserError if it is missing, or is no record of this version."""
    record = read_result(out)
    if record.get("format") != FORMAT or "differences" not in record:
        raise UserError(
            f"{out / RESULT} is no record of an evaluation of creatives: evaluate again with --out"
        )
    known = {one.name: record[one.name] for one in fields(CreativeReport) if one.name in record}
    for name, kind in (("lines", Line), ("differences", Difference), ("curves", Curve)):
        known[name] = typed(known.get(name, []), kind, f"{name} {{}} of {RESULT}")
    return CreativeReport(**known)


# ---- data -----------------------------------------------------------------------------------------------


def fingerprint(pairs: Sequence[Pair]) -> str:
    """Of everything that a backend sees of some pairs; counts and truth may change without a new run."""
    digest = hashlib.sha256()
    for pair in pairs:
        pictures = [one.sha256 or content_name(one.image) for one in (pair.a, pair.b)]
        seen = [pair.id, pair.title, list(pair.interest), *pictures, pair.a.text, pair.b.text]
        digest.update(json.dumps(seen, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def content_name(ref: ImageRef) -> str:
    """A name that follows from the bytes of a picture, where they are at hand, else from where they lie."""
    return hashlib.sha256(ref.data if ref.data is not None else ref.name.encode()).hexdigest()


def picture_name(creative: Creative) -> str:
    """File in `pictures/` of a creative."""
    return f"{content_name(creative.image)[:24]}.jpg"


def write_rows(rows: Iterable[BaseModel], path: Path) -> None:
    """Models as JSON Lines, whole or not at all."""
    _write(path, "".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows))


def read_rows(path: Path, kind: type[M]) -> list[M]:
    """Models of a file, [] if there is none. Raises UserError that names file and line."""
    if not path.is_file():
        return []
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(kind.model_validate_json(text))
        except ValidationError as error:
            why = error.errors(include_url=False)[0]["msg"].lower()
            raise UserError(f"line {number} of {path.name}: {why}; run the evaluation again") from None
    return found


def without_pictures(pair: Pair) -> Pair:
    """The pair with its pictures named as they are kept in `pictures/`, so that no image bytes are saved."""
    sides = {
        side: one.model_copy(update={"image": ImageRef(path=f"{PICTURES}/{picture_name(one)}")})
        for side, one in (("a", pair.a), ("b", pair.b))
    }
    return pair.model_copy(update=sides)


def bare_campaign(campaign: Campaign) -> Campaign:
    """A campaign in the manner of `without_pictures`."""
    kept = tuple(
        one.model_copy(update={"image": ImageRef(path=f"{PICTURES}/{picture_name(one)}")})
        for one in campaign.creatives
    )
    return campaign.model_copy(update={"creatives": kept})


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
        self.path, self.head = out / JUDGEMENTS / file_name(head.backend, part), head
        self.found = {one.pair_id: one for one in _resume(self.path, head)}
        self.resumed = len(self.found)
        self._whole = False  # the file holds whole lines, and its first

    def __call__(
        self, pairs: Sequence[Pair], judge: Callable[[Sequence[Pair]], Sequence[Judgement]]
    ) -> list[Judgement]:
        """One judgement a pair, in order; only what is missing is asked."""
        missing = [pair for pair in pairs if pair.id not in self.found]
        if not self._whole:
            kept = (self.head.line, *(one.model_dump_json() for one in self.found.values()))
            _write(self.path, "".join(f"{text}\n" for text in kept))  # a line that was cut off goes
            self._whole = True
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
    if not path.is_file():
        return {}
    return {one.pair_id: one for one in _rows(path.read_text(encoding="utf-8").splitlines()[1:], path)}


def _resume(path: Path, head: Head) -> list[Judgement]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1].splitlines()  # what an interruption cut off is judged again
    if not whole:
        return []
    if whole[0] != head.line:
        raise UserError(
            f"{path.name} in this folder is of another run ({_differs(whole[0], head)}): give another --out"
        )
    return _rows(whole[1:], path)


def _differs(line: str, head: Head) -> str:
    try:
        other = json.loads(line)
        names = [name for name, value in asdict(head).items() if other.get(name) != value]
    except (ValueError, AttributeError):
        names = []
    return f"its {' and '.join(names)} differ" if names else "its first line is damaged"


def _rows(lines: Sequence[str], path: Path) -> list[Judgement]:
    found = []
    for number, text in enumerate(lines, 2):
        try:
            found.append(Judgement.model_validate_json(text))
        except ValidationError:
            raise UserError(
                f"line {number} of {path.name} is no judgement: delete the file and evaluate again"
            ) from None
    return found


def write_trials(trials: Sequence[Trial], out: Path) -> None:
    _write(out / EDITS, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in trials))


def read_trials(out: Path) -> list[Trial]:
    path = out / EDITS
    if not path.is_file():
        return []
    try:
        rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise UserError(f"{EDITS} is damaged: delete it and evaluate again") from None
    return typed(rows, Trial, f"line {{}} of {EDITS}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
